//! The tests of the library, in one program. Each module's header says what it tests.
#![allow(clippy::unwrap_used)]

mod api;
mod failure;
mod ipc;
mod stress;
mod support;

procpool::test_support!();
