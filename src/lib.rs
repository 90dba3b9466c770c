//! `multiprocessing.Pool` for Rust: a pool of worker processes that one task's crash, hang or leak
//! cannot bring down.

#[cfg(not(target_os = "linux"))]
compile_error!("procpool needs Linux: pidfds, parent death signals and /proc/self/exe");

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod entry;
mod error;
mod os;
mod pool;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod tasks;

pub use entry::init;
pub use error::{DeathCause, DidRun, Error, Side, StartError, TaskError, TaskErrorKind};
pub use os::process::Output;
pub use pool::{
    Event, EventKind, Limits, Pool, PoolBuilder, Report, Reports, Results, Stats, Task,
    TaskOptions, WorkerInfo, WorkerState, log_to_stderr,
};
pub use procpool_worker::state::with as with_state;

/// Reads bytes as if a worker had sent them; for fuzzing.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn read_hostile(bytes: &[u8]) {
    pool::read_hostile(bytes);
}
