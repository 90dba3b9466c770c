//! The `procpool` command as users and scripts run it: the real binary, its output and its exit
//! codes.
//!
//! - `support`: starts the binary and waits for it, with a timeout.
//! - `rows`: the rows of each format, and the summary.
//! - `commands`: any program as a job: output, limits, exit status.
//! - `control`: what a user changes while a run runs.
//! - `journal`: no job is lost or repeated after a kill and a restart.
//! - `inputs`: the sources of inputs, and streaming.
//! - `exit_codes`: exit codes, errors, closed pipes, Ctrl-C.
//! - `limits`: limits of an input, output modes of tasks, and the log.
//! - `job_options`: where and how jobs run, and what is said about them.
//! - `blocks`: standard input in blocks.
//! - `from_parallel`: the command lines of docs/from-parallel.md, beside GNU parallel and xargs.
//! - `report`: pages for a browser, in one (`browser`).
//! - `output`: large output of jobs, and outputs that cannot be written.
//! - `sandbox`: what jobs in a sandbox reach.
//! - `snapshots`: help, errors, tables and exit codes, verbatim.
//! - `starts`: when jobs start, and the deadline of a run.
//! - `signals`: signals that end, stop or continue a run.
//! - `hosts`: launching and supervising runs that span hosts (with the feature `mpi`).
//! - `isolate`: the cases of `procpool isolate`.
//! - `terminal`: runs in a terminal, and jobs that use it.
//! - `top`: the live table, and leaving it in every case.
//! - `trace`: the trace file, and its picture.
//! - `tasks`: the built-in tasks agree with the standard tools.

#![allow(clippy::unwrap_used)]

mod blocks;
mod browser;
mod commands;
mod control;
mod exit_codes;
mod from_parallel;
#[cfg(feature = "mpi")]
mod hosts;
mod inputs;
mod isolate;
mod job_options;
mod journal;
mod limits;
mod output;
mod report;
mod rows;
mod sandbox;
mod signals;
mod snapshots;
mod starts;
mod support;
mod tasks;
mod terminal;
mod top;
mod trace;
