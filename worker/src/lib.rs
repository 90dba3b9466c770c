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
//! | [`transport`] | moving frames and regions (the only file that knows ipc-channel) |
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

// The headers explain how things are done, and name what does them.
#![allow(rustdoc::private_intra_doc_links)]

pub mod attach;
pub mod bell;
pub mod codec;
pub mod context;
pub mod copy;
pub mod depth;
mod format;
pub mod function;
pub mod harden;
pub mod lane;
pub mod panics;
pub mod plain;
pub mod protocol;
pub mod room;
pub mod seed;
pub mod serve;
pub mod state;
pub mod transport;
