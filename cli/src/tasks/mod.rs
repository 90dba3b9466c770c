//! The built-in tasks: real work that the command line can run by name.
//!
//! Each task is one module with three things in it: a plain typed function that a Rust program can
//! call or send to a pool itself (`random::estimate`, `sha256::digest`, …), an adapter `fn(Job) ->
//! Result<Output, String>` that makes an [`Input`] of the command line into its arguments, and a
//! static [`Task`] that describes it.
//!
//! All adapters have the same type, so that the command line needs to know nothing about a task but
//! its descriptor, and adding a task is a new module and one line in [`ALL`]. They run in a worker,
//! where nobody reads what they print: what went wrong is an `Err` that says what, where and the
//! remedy. It becomes a row of the output, and the other inputs are not touched by it.

use std::fmt;

pub(crate) mod command;
pub(crate) mod image;
pub(crate) mod parzen;
pub(crate) mod pi;
pub(crate) mod plot;
pub(crate) mod sha256;
pub(crate) mod sqrt;
pub(crate) mod square;
pub(crate) mod wordcount;

mod bytes;
pub(crate) mod canvas;
#[allow(unsafe_code)] // Asks the C library what a character is.
mod ctype;
mod files;
mod job;
mod output;
pub(crate) mod random;

pub(crate) use bytes::Bytes;
pub(crate) use job::{FileFormat, Input, Job, Params};
pub(crate) use output::{Column, Kind, Output, Value};

/// Every built-in task, in the order in which they are listed; the first is the default.
pub(crate) static ALL: &[&Task] = &[
    &square::TASK,
    &sqrt::TASK,
    &pi::TASK,
    &parzen::TASK,
    &sha256::TASK,
    &wordcount::TASK,
    &image::TASK,
    &plot::TASK,
];

/// The built-in task of that name.
pub(crate) fn find(name: &str) -> Option<&'static Task> {
    ALL.iter().copied().find(|task| task.name == name)
}

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
const A_SEED: &str = "a seed, which is a whole number from 0, or a range of them such as 0..8";

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_can_be_found_by_its_own_name_only() {
        for task in ALL {
            assert!(std::ptr::eq(find(task.name).expect("listed"), *task), "{}", task.name);
        }
        assert!(find("no-such-task").is_none());
    }

    #[test]
    fn tasks_over_files_have_no_default_inputs() {
        // The command line reads standard input exactly where there are no defaults.
        for task in ALL {
            assert_eq!(task.takes == Takes::Files, task.default_inputs.is_empty(), "{}", task.name);
        }
    }
}
