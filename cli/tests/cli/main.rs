//! The `procpool` command as a user or a script meets it: the real binary, its output and its exit
//! codes.
//!
//! - `support`: starts the binary and waits for it, but never for ever.
//! - `rows`: what is shown of each result, in each format, and the summary.
//! - `commands`: any program as a job, what it prints, its limits and its end.
//! - `journal`: nothing is lost, and nothing done twice, over a kill and a restart.
//! - `inputs`: where inputs come from, and that they stream.
//! - `exit_codes`: exit codes, errors, closed pipes, Ctrl-C.
//! - `limits`: what one input may take, what becomes of what tasks print, and the log.
//! - `output`: what jobs print where there is a lot of it, and outputs that can't be written.
//! - `snapshots`: help, errors, tables and exit codes, word for word.
//! - `signals`: what ends a run early, and what stops it for a while.
//! - `isolate`: the wall, shown.
//! - `terminal`: runs in a terminal, and what jobs do to it.
//! - `top`: the live table, and that the terminal is given back.
//! - `trace`: when each worker did what, and its picture.
//! - `tasks`: the built-in tasks give the answers of the tools that people know.

#![allow(clippy::unwrap_used)]

mod commands;
mod exit_codes;
mod inputs;
mod isolate;
mod journal;
mod limits;
mod output;
mod rows;
mod signals;
mod snapshots;
mod support;
mod tasks;
mod terminal;
mod top;
mod trace;
