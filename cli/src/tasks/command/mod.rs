//! Any program as a task: a command line in which `{}` stands for the input.
//!
//! | file | owns |
//! |---|---|
//! | `spec` | what holds for every job of a run |
//! | `job` | one job, and its result |
//! | `template` | the command line, and what it becomes for an input |
//! | `run` | one job in its worker: starting it, its limits, how it ended |
//! | `lines` | what it prints, passed on line by line |
//! | `spill` | what it prints, kept until it has ended |
//!
//! The command line and what holds for every job (a [`CommandSpec`]) goes to each worker once, as the
//! argument of its initializer [`prepare`]; after that a job is an input and a number. The worker
//! starts the program itself, without a shell in between, and waits for it. It keeps the job's
//! limits too, so that a job that is ended is still answered with what it printed and used, and
//! the worker goes on.

mod job;
mod lines;
mod run;
mod spec;
pub(crate) mod spill;
mod template;

pub(crate) use self::job::{CommandJob, Completed, FailedAttempt, Printed, Range, Status};
pub(crate) use self::lines::{tag_of, tagged};
pub(crate) use self::run::SLOT;
pub(crate) use self::run::{prepare, run};
pub(crate) use self::spec::{CommandSpec, OutputMode};
pub(crate) use self::template::quote;
pub(crate) use self::template::{NoProgram, Template};
