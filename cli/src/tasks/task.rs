//! The descriptor of a task: what the command line knows of it.

use std::fmt;

use super::bytes::Bytes;
use super::job::{FileFormat, Input, Job, Params};
use super::output::{Column, Output};

/// The descriptor of a task.
pub(crate) struct Task {
    /// The name for `--task`.
    pub(crate) name: &'static str,
    /// One line for the list.
    pub(crate) summary: &'static str,
    /// Whether inputs are numbers or files.
    pub(crate) takes: Takes,
    /// The inputs if none are given; empty if inputs are required.
    pub(crate) default_inputs: &'static [&'static str],
    /// The column of the input.
    pub(crate) input: Column,
    /// The columns of the result.
    pub(crate) columns: &'static [Column],
    /// The options that it supports.
    pub(crate) options: Options,
    /// The adapter.
    pub(crate) run: fn(Job) -> Result<Output, String>,
    /// For a task that names its output after its input: returns that name. The caller detects two
    /// inputs of a run with the same output, which no worker can know, and sets [`Job::taken`].
    pub(crate) output_name: Option<fn(&Input, &Params) -> Option<Bytes>>,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Describes the inputs of tasks over seeds.
pub(super) const A_SEED: &str =
    "a seed, which is a whole number from 0, or a range of them such as 0..8";

/// The kind of inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Numbers; a range such as `0..5` stands for its whole numbers.
    Numbers,
    /// Paths of files.
    Files,
}

/// The options that a task supports.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// `--out DIR`: writes files, and requires a directory.
    pub(crate) out: bool,
    /// `--to FORMAT`: the supported formats; the first is the default.
    pub(crate) to: &'static [FileFormat],
    /// `--points N`: the default number of random points.
    pub(crate) points: Option<u64>,
    /// `--seed N`: the default seed of the random points, if inputs are not seeds.
    pub(crate) seed: Option<u64>,
}
