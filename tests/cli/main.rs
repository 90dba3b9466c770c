//! The `procpool` command as a user or a script meets it: the real binary, its output and its exit
//! codes.
//!
//! - `support`: starts the binary and waits for it, but never for ever.
//! - `rows`: what is shown of each result, in each format, and the summary.
//! - `inputs`: where inputs come from, and that they stream.
//! - `endings`: exit codes, errors, closed pipes, Ctrl-C.
//! - `tasks`: the built-in tasks give the answers of the tools that people know.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod endings;
mod inputs;
mod rows;
mod support;
mod tasks;
