//! What holds for every job of a run: the command line, and what becomes of what it prints.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::template::Template;

/// What holds for every job of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CommandSpec {
    /// The command line.
    pub(crate) template: Template,
    /// The program's file, where it's the same for every input.
    pub(crate) program: Option<PathBuf>,
    /// What becomes of what jobs print.
    pub(crate) prints: OutputMode,
    /// How often a job that has failed is tried again.
    pub(crate) retries: u32,
    /// The most resident memory in bytes that the processes of a job may have together.
    pub(crate) memory: Option<u64>,
    /// The abstract name of the socket at which the parent is told of what is kept in files.
    pub(crate) spill: Vec<u8>,
}

/// What becomes of what a job prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OutputMode {
    /// It is kept and comes with the answer.
    Grouped,
    /// It goes to where the worker's own output goes, a whole line at a time, after the input and a
    /// tab where that is `tag`.
    Lines {
        /// Whether each line begins with the input.
        tag: bool,
    },
    /// The job writes to where the worker's own output goes.
    Inherit,
    /// Nothing.
    Null,
}
