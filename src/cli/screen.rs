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
    progress: Progress,
}

impl Screen {
    pub(super) fn new(progress: Progress) -> Self {
        Self { page: Vec::with_capacity(PAGE), progress }
    }

    /// Where rows are put.
    pub(super) fn page(&mut self) -> &mut Vec<u8> {
        &mut self.page
    }

    pub(super) fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    pub(super) fn flush_if_full(&mut self) -> Result<()> {
        // Before the next row would make it grow.
        if self.page.len() > PAGE - PAGE / 8 { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        if self.page.is_empty() {
            return Ok(());
        }
        let written = self.progress.aside(|| {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&self.page)?;
            stdout.flush()
        });
        self.page.clear();
        written.context("failed to write the results to standard output")
    }
}
