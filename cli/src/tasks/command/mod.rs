//! Any program as a task: a command line in which `{}` stands for the input.
//!
//! | file | owns |
//! |---|---|
//! | `spec` | what holds for every job of a run |
//! | `job` | one job, and its result |
//! | `template` | the command line, and its replacement strings |
//! | `start` | when a job may start |
//! | `signals` | how a job over its time limit is ended |
//! | `run` | one job in its worker: start, limits, end |
//! | `lines` | output that is forwarded line by line |
//! | `spill` | output that is captured |
//!
//! The [`CommandSpec`] is sent to each worker once, as the argument of its initializer [`prepare`].
//! After that, a job is an input and a number. The worker starts the program itself, without a
//! shell, and waits for it. It also enforces the job's limits, so that a killed job still returns
//! its output and resource use, and the worker continues.

mod job;
mod lines;
mod run;
mod signals;
mod spec;
pub(crate) mod spill;
mod start;
mod template;

pub(crate) use self::job::{CommandJob, Completed, FailedAttempt, Printed, Range, Status};
pub(crate) use self::lines::tagged;
pub(crate) use self::run::{prepare, run};
pub(crate) use self::signals::SignalSequence;
pub(crate) use self::spec::{CommandSpec, OutputMode};
pub(crate) use self::start::{SharedStart, StartRules};
pub(crate) use self::template::quote;
pub(crate) use self::template::{NoProgram, Replacements, Template, TemplateError, ValueCost};
