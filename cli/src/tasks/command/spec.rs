//! What holds for every job of a run: the command line, the limits, and the output mode.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::signals::SignalSequence;
use super::start::StartRules;
use super::template::Template;

/// What holds for every job of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CommandSpec {
    /// The command line.
    pub(crate) template: Template,
    /// The program's file, if it is the same for every input.
    pub(crate) program: Option<PathBuf>,
    /// Where the output of jobs goes.
    pub(crate) prints: OutputMode,
    /// Whether a job has the terminal.
    pub(crate) has_terminal: bool,
    /// Whether the worker is confined after [`prepare`](super::prepare): it opens what it may need there.
    pub(crate) confined: bool,
    /// Whether a job writes to a pseudo-terminal where its output is collected.
    pub(crate) pseudo_terminal: bool,
    /// Whether the output of running jobs can be looked at.
    pub(crate) watched: bool,
    /// Retries of a failed job.
    pub(crate) retries: u32,
    /// The signals for a job over its time limit.
    pub(crate) signals: SignalSequence,
    /// The prefix of each line of output, if it has one.
    pub(crate) tag: Option<Template>,
    /// Whether the command itself is printed where its output is not collected.
    pub(crate) verbose: bool,
    /// The limit of resident memory in bytes, for all processes of a job together.
    pub(crate) memory: Option<u64>,
    /// When jobs may start.
    pub(crate) start: StartRules,
    /// The abstract name of the parent's socket for output in files.
    pub(crate) spill: Vec<u8>,
}

/// Where the output of a job goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OutputMode {
    /// Captured, and returned with the result.
    Grouped,
    /// Forwarded to the worker's own streams, in whole lines.
    Lines,
    /// The job writes to the worker's own streams.
    Inherit,
    /// Discarded.
    Null,
}
