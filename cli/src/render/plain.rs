//! The output of jobs, unchanged and not interleaved, on the stream that each job wrote to.
//! Standard error reports which jobs failed, and why.

use std::io::Write;

use super::form::{PlainOptions, Render};
use crate::row::Row;
use crate::screen::Page;
use crate::spill::{Encoding, Printed};
use crate::tasks::command::{CommandJob, tagged};
use crate::{color, format};

pub(super) struct Plain {
    plain: PlainOptions,
}

impl Plain {
    pub(super) fn new(plain: PlainOptions) -> Self {
        Self { plain }
    }

    fn put(&self, row: &Row, printed: &Printed, page: &mut Page) {
        let tag = self.plain.tag.as_ref().map(|tag| tag.tag(&job(row), &slot(row)));
        match (printed, tag) {
            (Printed::Here(printed), None) => page.extend_from_slice(printed),
            (Printed::Here(printed), Some(tag)) => page.extend_from_slice(&tagged(&tag, printed)),
            (Printed::InFile(part), None) => page.insert(part, Encoding::Raw),
            (Printed::InFile(part), Some(tag)) => page.insert(part, Encoding::Tagged(tag)),
            (Printed::Named(_), _) => {}
        }
    }
}

/// Returns the job of a row, for its replacement strings.
fn job(row: &Row) -> CommandJob {
    CommandJob {
        input: row.input.clone(),
        number: row.number,
        id: row.id,
        limit: None,
        stdin: None,
    }
}

fn slot(row: &Row) -> String {
    (row.worker + 1).to_string()
}

impl Render for Plain {
    fn header(&mut self, _page: &mut Page) {}

    fn row(&mut self, row: &Row, page: &mut Page) {
        self.put(row, &row.stdout, page);
    }

    fn row_errors(&mut self, row: &Row, errors: &mut Page) {
        if let Some(command) = &self.plain.command {
            errors.extend_from_slice(&command.line(&job(row), &slot(row)));
            errors.extend_from_slice(b"\n");
        }
        self.put(row, &row.stderr, errors);
        let Some(error) = row.error.as_ref().filter(|_| !self.plain.is_silent) else { return };
        let input = row.input.to_text();
        let (input, error) = (format::shortened(&input), format::shortened(error));
        let time = format::duration(row.elapsed);
        let attempt =
            if row.attempt > 1 { format!(", attempt {}", row.attempt) } else { String::new() };
        let host = row.host.map_or(String::new(), |host| format!(", on {host}"));
        // Writing to memory cannot fail.
        let _ = writeln!(
            **errors,
            "{} {input}: {error} (after {time}{attempt}{host})",
            color::error(&std::io::stderr())
        );
    }
}
