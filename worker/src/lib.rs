//! What runs inside a procpool worker process, and the language that parent and worker speak.
//!
//! This crate is the child's half of [`procpool`](https://docs.rs/procpool). It is kept apart and
//! small so that it can be read in one sitting, and so that the compiler keeps the child's code
//! from reaching the scheduler. Nothing here is a public contract: use the crate `procpool`.
//!
//! One call passes the files in this order:
//!
//! | file | owns |
//! |---|---|
//! | [`function`] | naming a `fn(A) -> R` so that another copy of the same image can call it |
//! | [`codec`] | values to bytes and back |
//! | [`format`](mod@format) | what the bytes of a value are (with `codec`, the only file that knows bincode) |
//! | [`depth`] | how much stack a nested value may use |
//! | [`attach`] | keeping what encoded arguments point to |
//! | [`plain`] | the types that are moved in bulk |
//! | [`protocol`] | the frames that travel, and the marker that makes a process a worker |
//! | [`transport`] | moving frames to the worker (the only file that knows ipc-channel) |
//! | [`control`] | the worker's answers, and passing descriptors |
//! | [`region`] | memory that parent and worker share |
//! | [`lane`] | the shared region: who has claimed which item, what is committed, the results |
//! | [`bell`] | waiting awake where an answer comes sooner than a thread is woken |
//! | [`serve`] | the worker's loop: claim, decode, call, encode, commit |
//! | [`copy`](mod@copy) | copying many bytes |
//! | [`context`] | what the items of one call share |
//! | [`room`] | large pages for large vectors |
//! | [`state`] | what a worker's initializer made, for its tasks |
//! | [`seed`] | the tasks' random streams |
//! | [`panics`] | turning a panic into a report |
//! | [`harden`] | making a fresh process a safe worker (signals, file descriptors, dying with the parent) |

// A program can depend on this crate too: what is public and can be misused is an `unsafe fn`. The
// modules that may use `unsafe` are named below.
#![deny(unsafe_code)]
// The headers explain how things are done, and name what does them.
#![allow(rustdoc::private_intra_doc_links)]

/// The atomics of [`lane`] and [`bell`]: loom's in its models, std's otherwise.
mod atomic {
    #[cfg(all(test, loom))]
    pub(crate) use loom::{
        hint::spin_loop,
        sync::atomic::{AtomicU32, AtomicU64, Ordering},
    };
    #[cfg(not(all(test, loom)))]
    pub(crate) use std::{
        hint::spin_loop,
        sync::atomic::{AtomicU32, AtomicU64, Ordering},
    };
}

pub mod attach;
pub mod bell;
#[allow(unsafe_code)] // Decodes from memory that another process may be writing.
pub mod codec;
#[allow(unsafe_code)] // The same, and makes a function of a named address.
mod context;
pub mod control;
#[allow(unsafe_code)] // Copies by raw pointer.
pub mod copy;
pub mod depth;
mod format;
#[allow(unsafe_code)] // Reads the image's headers, and makes a trampoline of a named address.
pub mod function;
#[allow(unsafe_code)] // Raw system calls and signal handlers.
pub mod harden;
#[allow(unsafe_code)] // Lays its words over shared memory; copies results by raw pointer.
pub mod lane;
pub mod panics;
#[allow(unsafe_code)] // Moves numbers as the bytes that they are.
pub mod plain;
pub mod protocol;
#[allow(unsafe_code)] // Maps memory, and copies into it by raw pointer.
pub mod region;
#[allow(unsafe_code)] // Touches pages of a vector that are to be filled.
pub mod room;
pub mod seed;
#[allow(unsafe_code)] // Calls named functions; reads arguments and writes results by raw pointer.
pub mod serve;
pub mod state;
#[allow(unsafe_code)] // Takes over the descriptors of ipc-channel's sockets.
pub mod transport;
