//! The built-in tasks: real work that the command line runs by name.
//!
//! Each task is a module with three parts: a plain typed function that a Rust program can call or
//! send to a pool (`random::estimate`, `sha256::digest`, …), an adapter `fn(Job) -> Result<Output,
//! String>` that parses an [`Input`] of the command line, and a static [`Task`] that describes it.
//!
//! All adapters have the same type, so the command line needs only the descriptor of a task. Adding
//! a task takes a module and a line in [`ALL`]. Adapters run in a worker, where nobody reads what
//! they print: an error is an `Err` with what failed, on what, and the remedy. It becomes a row and
//! does not affect other inputs.

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
#[allow(unsafe_code)] // Asks the C library what a character is.
mod ctype;
mod files;
mod job;
mod output;
pub(crate) mod random;
mod strings;
mod task;

pub(crate) use bytes::Bytes;
pub(crate) use job::{FileFormat, Input, Job, Params};
pub(crate) use output::{Column, Kind, Output, Value};
pub(crate) use strings::Strings;
pub(crate) use task::{Takes, Task};

/// Every built-in task, in the order of the list. The first is the default.
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

/// Returns the built-in task of that name.
pub(crate) fn find(name: &str) -> Option<&'static Task> {
    ALL.iter().copied().find(|task| task.name == name)
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
