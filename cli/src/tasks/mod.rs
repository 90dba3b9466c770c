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
mod task;

pub(crate) use bytes::Bytes;
pub(crate) use job::{FileFormat, Input, Job, Params};
pub(crate) use output::{Column, Kind, Output, Value};
pub(crate) use task::{Takes, Task};

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
