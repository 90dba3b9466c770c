//! What the command line knows of a task: its descriptor.

use std::fmt;

use super::bytes::Bytes;
use super::job::{FileFormat, Input, Job, Params};
use super::output::{Column, Output};

/// What the command line knows about a task.
pub(crate) struct Task {
    /// What `--task` calls it.
    pub(crate) name: &'static str,
    /// What it does, in one line.
    pub(crate) summary: &'static str,
    /// Whether an input is a number or a file.
    pub(crate) takes: Takes,
    /// The inputs where none are given; empty where some must be given.
    pub(crate) default_inputs: &'static [&'static str],
    /// How the input is shown.
    pub(crate) input: Column,
    /// What the task answers, value by value.
    pub(crate) columns: &'static [Column],
    /// The options that it understands.
    pub(crate) options: Options,
    /// The task itself.
    pub(crate) run: fn(Job) -> Result<Output, String>,
    /// For a task that names its output after its input: the name that it will write. The caller
    /// uses it to see that two inputs of one run would write the same file, which no worker can
    /// know, and sets [`Job::taken`].
    pub(crate) output_name: Option<fn(&Input, &Params) -> Option<Bytes>>,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What tasks over seeds want as an input.
pub(super) const A_SEED: &str =
    "a seed, which is a whole number from 0, or a range of them such as 0..8";

/// What the inputs of a task are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Numbers; a range such as `0..5` stands for all the whole numbers in it.
    Numbers,
    /// Paths of files.
    Files,
}

/// The options that a task understands beside its inputs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// `--out DIR`: it writes files, and must be told where.
    pub(crate) out: bool,
    /// `--to FORMAT`: what it can write; the first is the default.
    pub(crate) to: &'static [FileFormat],
    /// `--points N`: how many random points it draws unless told otherwise.
    pub(crate) points: Option<u64>,
    /// `--seed N`: the seed of its random points, for a task whose inputs are not seeds themselves.
    pub(crate) seed: Option<u64>,
}
