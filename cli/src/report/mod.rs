//! `--report`: pages for a browser.
//!
//! | file | owns |
//! |---|---|
//! | `jobs` | what is kept of each job of a run |
//! | `page` | the page of a run: its template, its data, its policy |
//! | `document` | pages of tables and pictures |
//! | `target` | the file of a page |
//!
//! A page needs no network and no other file. Inputs and outputs are hostile text: the template escapes
//! them, the data are JSON in which no character can end a script, and a content security policy allows the
//! page's own style and script only, by their hashes.

mod document;
mod jobs;
mod page;
mod target;

use std::path::Path;

use anyhow::Result;

pub(super) use self::document::{Document, DocumentTable};
use self::jobs::Jobs;
pub(super) use self::page::RunEnd;
pub(super) use self::target::Target;
use crate::os::clock;
use crate::row::Row;

/// The report of a run, while it is collected.
pub(super) struct Report {
    target: Target,
    jobs: Jobs,
}

impl Report {
    /// Opens the file.
    ///
    /// # Errors
    ///
    /// As [`Target::open`].
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self { target: Target::open(path)?, jobs: Jobs::since(clock::now()) })
    }

    /// Adds a job that has ended.
    pub(super) fn note(&mut self, row: &Row) {
        self.jobs.add(row);
    }

    /// Writes the page.
    ///
    /// # Errors
    ///
    /// When the file can't be written.
    pub(super) fn write(self, end: &RunEnd<'_>) -> Result<()> {
        self.target.write(&page::render(&self.jobs, end)?)
    }
}
