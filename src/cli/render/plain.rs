//! What jobs print, as they print it: each job's by itself, to the output that it printed to. Of
//! one that failed, standard error says which and how.

use std::io::Write;

use super::{Render, Row, Voice};
use crate::cli::{color, humane};
use crate::tasks::command::tagged;

pub(super) struct Plain {
    voice: Voice,
}

impl Plain {
    pub(super) fn new(voice: Voice) -> Self {
        Self { voice }
    }

    fn put(&self, row: &Row, printed: &[u8], page: &mut Vec<u8>) {
        if self.voice.tag {
            let tag = [&*row.input.to_bytes(), b"\t"].concat();
            page.extend_from_slice(&tagged(&tag, printed));
        } else {
            page.extend_from_slice(printed);
        }
    }
}

impl Render for Plain {
    fn header(&mut self, _page: &mut Vec<u8>) {}

    fn row(&mut self, row: &Row, page: &mut Vec<u8>) {
        self.put(row, &row.stdout, page);
    }

    fn aside(&mut self, row: &Row, errors: &mut Vec<u8>) {
        self.put(row, &row.stderr, errors);
        let Some(error) = row.error.as_ref().filter(|_| !self.voice.quiet) else { return };
        let input = row.input.to_text();
        let (input, error) = (humane::one_line(&input), humane::one_line(error));
        let time = humane::duration(row.elapsed);
        let attempt =
            if row.attempt > 1 { format!(", attempt {}", row.attempt) } else { String::new() };
        // To memory, which can't fail.
        let _ = writeln!(
            errors,
            "{} {input}: {error} (after {time}{attempt})",
            color::error(&std::io::stderr())
        );
    }
}
