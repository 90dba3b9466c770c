//! The code inside a procpool worker process, and the protocol between parent and worker.
//!
//! This crate is the child's half of `procpool`, small enough to audit by itself. The
//! compiler keeps the child's code from reaching the scheduler. Nothing here is a public contract: use the
//! crate `procpool`.
//!
//! # The layers
//!
//! Each layer uses the ones below it, never those above:
//!
//! | layer | owns |
//! |---|---|
//! | `entry` | the process: set-up, liveness, the request loop |
//! | `run` | a chunk: claim, call, commit; and what a task can reach while it runs |
//! | `wire` | the language: protocol, encoding, transport |
//! | `shm` | shared memory: the lane, regions, doorbells; and system calls |
//!
//! `context`, `panics`, `seed` and `state` are in `run`, not in `entry`: the loop over a chunk's items
//! uses them, and no other layer uses `entry`. The errors of `wire` have a file of their own, because
//! both its encoding and its transport return them.
//!
//! # One call, in order
//!
//! | file | owns |
//! |---|---|
//! | [`function`] | referring to a `fn(A) -> R` so that another copy of the same image can call it |
//! | [`codec`] | encoding and decoding values |
//! | `format` | the encoding itself (with the tests of `codec`, the only file that knows bincode) |
//! | [`depth`] | the stack budget of nested values |
//! | [`bulk`] | the types that are copied instead of encoded |
//! | [`attach`] | the files that encoded values refer to |
//! | [`protocol`] | the frames, and the token that makes a process a worker |
//! | [`note`] | what a task tells its parent while it runs |
//! | [`template`] | the packets between supervisor and template process |
//! | [`transport`] | sending frames to the worker (the only file that knows ipc-channel) |
//! | [`control`] | the worker's replies, and passing descriptors |
//! | [`region`] | a mapping that parent and worker share |
//! | [`lane`] | a chunk's progress: what is claimed, started and committed |
//! | [`record`] | how results lie in the lane |
//! | [`doorbell`] | bounded spinning for quick replies |
//! | [`serve`] | the worker's request loop |
//! | [`template_process`] | the template process, which forks workers |
//! | `sandbox`, `confinement` | (feature `sandbox`) what a worker may still do |
//! | `setup`, `liveness`, `oom` | the process's descriptors and signals, its end, its aborts |
//! | `channels`, `region_cache` | the worker's ends of its channels, the regions it keeps |
//! | `trampoline`, `chunk_run`, `bulk_run`, `results` | running the items of a chunk |
//! | [`outbox`], `logs` | sending notes; (features `log`, `tracing`) making notes of log records |
//! | `context`, [`state`], [`seed`] | what a task can reach: its call's context, the initializer's result, random numbers |
//! | [`panics`], `fork_guard` | reporting panics, ending forked copies |
//! | [`memcpy`](mod@memcpy), [`prefault`] | copying many bytes, memory for large vectors |
//! | [`sys`] | clocks, PID, stack bounds |

// Any program can depend on this crate: a public function that can be misused is an `unsafe fn`. Only
// the modules that say so at their `mod` line may use `unsafe`.
#![deny(unsafe_code)]
// The headers explain how things are done, and name what does them.
#![allow(rustdoc::private_intra_doc_links)]

mod entry;
mod run;
mod shm;
mod wire;

#[cfg(feature = "sandbox")]
pub use entry::sandbox;
pub use entry::{serve, template_process};
pub use run::{outbox, panics, seed, state};
pub use shm::{doorbell, lane, memcpy, prefault, record, region, sys};
#[cfg(feature = "sandbox")]
pub use wire::confinement;
pub use wire::{
    attach, bulk, codec, control, depth, error, function, note, passed, protocol, template,
    transport,
};
