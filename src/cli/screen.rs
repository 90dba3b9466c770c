//! Standard output as a page that rows are put on, and the progress bar that stands below it on a
//! terminal.
//!
//! A row at a time to a pipe would cost a system call per row. Rows are gathered instead, and
//! written when there are many of them or when nothing else is to be done.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};

use super::progress::Progress;

/// How much is gathered at most.
const PAGE: usize = 64 * 1024;

pub(super) struct Screen {
    page: Vec<u8>,
    /// What belongs on standard error after it.
    errors: Vec<u8>,
    progress: Progress,
    /// What is shown later, since the terminal is used for something else.
    held: Option<Held>,
}

/// What was put on the page since the terminal is used for something else.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    /// How much of it was dropped.
    dropped: usize,
}

/// How much of what is shown later is kept at most: what scrolls by is not read any more.
const MOST_HELD: usize = 1 << 20;

impl Screen {
    pub(super) fn new(progress: Progress) -> Self {
        Self { page: Vec::with_capacity(PAGE), errors: Vec::new(), progress, held: None }
    }

    /// Where rows are put.
    pub(super) fn page(&mut self) -> &mut Vec<u8> {
        &mut self.page
    }

    /// Where is put what belongs on standard error.
    pub(super) fn errors(&mut self) -> &mut Vec<u8> {
        &mut self.errors
    }

    pub(super) fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    pub(super) fn flush_if_full(&mut self) -> Result<()> {
        // Before the next row would make it grow. What is said of a row belongs right after it.
        let is_full = self.page.len() > PAGE - PAGE / 8 || !self.errors.is_empty();
        if is_full { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        if self.page.is_empty() && self.errors.is_empty() {
            return Ok(());
        }
        let stdout_waits = self.held.is_some() && io::stdout().is_terminal();
        let stderr_waits = self.held.is_some() && io::stderr().is_terminal();
        if let Some(held) = &mut self.held {
            if stdout_waits {
                held.put(&mut self.page);
            }
            if stderr_waits {
                held.put(&mut self.errors);
            }
        }
        let written = self.progress.aside(|| {
            let mut stdout = io::stdout().lock();
            let written = stdout.write_all(&self.page).and_then(|()| stdout.flush());
            let _ = io::stderr().write_all(&self.errors); // if nobody sees it, nobody misses it
            written
        });
        self.page.clear();
        self.errors.clear();
        written.context("failed to write the results to standard output")
    }

    /// From now on the terminal is used for something else.
    pub(super) fn hold(&mut self) {
        self.held = Some(Held::default());
    }

    /// The terminal is there again.
    pub(super) fn release(&mut self) -> Result<()> {
        self.flush()?;
        let Some(held) = self.held.take() else { return Ok(()) };
        if held.dropped > 0 {
            let what = format!("… {} bytes are left out: send them to a file\n", held.dropped);
            self.page.extend_from_slice(what.as_bytes());
        }
        self.page.extend_from_slice(&held.bytes);
        self.flush()
    }
}

impl Held {
    fn put(&mut self, bytes: &mut Vec<u8>) {
        self.bytes.append(bytes);
        if self.bytes.len() > 2 * MOST_HELD {
            // To the beginning of a line.
            let least = self.bytes.len() - MOST_HELD;
            let line = self.bytes[least..].iter().position(|byte| *byte == b'\n');
            let end = line.map_or(least, |line| least + line + 1);
            self.bytes.drain(..end);
            self.dropped += end;
        }
    }
}
