//! Standard output as a page that rows are put on, and the progress bar that stands below it on a
//! terminal.
//!
//! A row at a time to a pipe would cost a system call per row. Rows are gathered instead, and
//! written when there are many of them or when nothing else is to be done.

use std::io::{self, Write};

use anyhow::{Context, Result};

use super::progress::Progress;

/// How much is gathered at most.
const PAGE: usize = 64 * 1024;

pub(super) struct Screen {
    page: Vec<u8>,
    /// What belongs on standard error after it.
    errors: Vec<u8>,
    progress: Progress,
}

impl Screen {
    pub(super) fn new(progress: Progress) -> Self {
        Self { page: Vec::with_capacity(PAGE), errors: Vec::new(), progress }
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
}
