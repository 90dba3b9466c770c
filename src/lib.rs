//! `multiprocessing.Pool` for Rust: a pool of worker processes that one task's crash, hang or leak
//! cannot bring down.
//!
//! A pool starts copies of this program as workers, sends them calls, and gives back the results: in
//! order, or as they come, each with the PID of the worker that made it. If a worker is lost, the one task
//! that was running in it fails with an error that says why; its neighbours get their answers, and
//! another worker takes its place.
//!
//! Threads are simpler and cheaper where no task can go wrong. Processes are for what can: C libraries,
//! unbounded recursion, code that aborts, loops or leaks, anything with global state.
//!
//! # A first program
//!
//! ```no_run
//! fn divide_100_by(x: i32) -> i32 {
//!     if x == 0 { std::process::abort() } else { 100 / x }
//! }
//!
//! fn main() -> Result<(), procpool::Error> {
//!     procpool::init();
//!     let pool = procpool::Pool::new(4)?;
//!     for result in pool.imap(divide_100_by, [1, 2, 0, 5]) {
//!         match result {
//!             Ok(y) => println!("{y}"),
//!             Err(error) => println!("{error}"),
//!         }
//!     }
//!     Ok(())
//! }
//! ```
//!
//! It prints 100, 50, `task 2 (PID 4711): its worker was killed by SIGABRT while running it`, and 20.
//!
//! [`init`] comes first in `main`. A worker is a copy of the program, so it begins like it: `init` makes
//! it a worker and doesn't return there, and returns at once everywhere else. What comes before it is
//! done in each worker too. A pool in a process that has not called it is [`Error::NotInitialized`].
//!
//! # Async programs
//!
//! With `#[tokio::main]`, the first line of `main` runs inside of the runtime, and so it does in each
//! worker. Where [`init`] is that first line, this works: the runtime's threads and descriptors live on
//! beside the tasks. But a task that starts a runtime of its own panics, since it is inside of one:
//! it has to do it on a thread of its own, or within `tokio::task::block_in_place`.
//!
//! [`main!`] enters before `main`, so that a worker has no runtime but what its tasks make:
//!
//! ```
//! procpool::main!();
//!
//! fn answer(x: u32) -> u32 {
//!     let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
//!     runtime.block_on(async move { x * 2 })
//! }
//!
//! // As `#[tokio::main]` does it.
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     tokio::runtime::Runtime::new()?.block_on(async {
//!         let pool = procpool::Pool::new(2)?;
//!         assert_eq!(pool.apply_async(answer, 21).await?, 42);
//!         Ok(())
//!     })
//! }
//! ```
//!
//! A [`Task`] is a `Future` under any runtime; calls that wait, as [`Pool::apply`], block the thread.
//!
//! # What can be sent
//!
//! A function is a plain `fn(A) -> R`: any function that is linked into the executable, generic ones
//! included, and any closure that captures nothing. There is nothing to register. It is named by its place
//! in the program's image, which is the same in every worker.
//!
//! Arguments and results have serde's `Serialize` and `DeserializeOwned`. Several arguments travel as a
//! tuple. What can't be sent doesn't compile; see [`Pool`] for how that looks. If `R` is itself a
//! `Result`, an `Err` in it is an answer like any other; [`Failure`] is an error for it that any other
//! error turns into by `?`.
//!
//! The format names no fields and no types. What needs them compiles and is refused when it is sent:
//! `serde_json::Value`, and types with `#[serde(untagged)]`, `#[serde(tag = "…")]`,
//! `#[serde(flatten)]` or `#[serde(skip_serializing_if = "…")]`. [`SelfDescribing`] carries them. A
//! `#[serde(skip_serializing)]` or `#[serde(skip_deserializing)]` alone, without the other, is not
//! noticed and misplaces the fields after it. A path that isn't UTF-8 travels as an `OsString`.
//!
//! A value may be nested some hundred levels deep, depending on the stack that its type needs for each:
//! a deeper one is refused, since decoding it could overflow the receiver's stack. So is one with more
//! than four million elements that take no bytes, such as `()`.
//!
//! # How calls are named
//!
//! Names are those of Python's `multiprocessing`.
//!
//! | call | gives | in order | waits |
//! |---|---|---|---|
//! | [`apply`](Pool::apply) | `Result<R, TaskError>` | | yes |
//! | [`apply_async`](Pool::apply_async) | [`Task<R>`](Task) | | no |
//! | [`map`](Pool::map) | `Result<Vec<R>, TaskError>` | yes | yes |
//! | [`map_with`](Pool::map_with), [`map_init`](Pool::map_init) | as `map`, for items that share something in a worker | yes | yes |
//! | [`map_async`](Pool::map_async) | [`Task<Vec<R>>`](Task) | yes | no |
//! | [`imap`](Pool::imap) | iterator of `Result<R, TaskError>` | yes | for the next |
//! | [`imap_unordered`](Pool::imap_unordered) | iterator of `Result<R, TaskError>` | as they come | for the next |
//! | [`broadcast`](Pool::broadcast) | `Vec<Result<R, TaskError>>`, one of each worker | by slot | yes |
//!
//! A [`Task`] can be waited for, with a limit or without, asked whether it is ready, cancelled, given a
//! callback, or awaited as a `Future` under any runtime. The iterators read their input a bounded window
//! ahead of what has been taken, so that it may be endless; dropping one cancels what is left.
//! [`reports`](Results::reports) gives each result with its id, PID, attempt and times, as a [`Report`].
//!
//! [`Pool::builder`] sets what holds for a pool: the number of workers, an initializer whose value tasks
//! reach by [`with_state`], time limits, retries, limits on memory and other resources, when workers are
//! replaced, environment, output, and who is told of each [`Event`]. [`Pool::with_options`] gives a handle on
//! the same workers whose tasks have other [`TaskOptions`].
//!
//! [`close`](Pool::close) accepts nothing more, [`join`](Pool::join) waits for what was submitted,
//! [`terminate`](Pool::terminate) ends it now. A pool that is dropped is terminated.
//!
//! A task that needs random numbers draws them, or the seed of a generator, from [`random_u64`]: another
//! stream for each task, and the same in each run with the same [pool seed](PoolBuilder::seed).
//!
//! For one call, [`Process::spawn`] starts a process that ends with it, and has an exit status to be
//! asked for.
//!
//! # Talking and sharing
//!
//! Arguments are copies. What processes are to have in common goes inside of an argument as a handle:
//! the ends of a [`channel`]; a [`SharedSlice`](shared::SharedSlice) that all read, a
//! [`SharedArray`](shared::SharedArray) or a [`SharedValue`](shared::SharedValue) that they write; and to
//! wait for each other, what [`sync`] has. A process that is killed meanwhile harms no other.
//!
//! # What errors mean
//!
//! [`Error`] is why a pool could not be made. [`TaskError`] is what became of one task that has no answer:
//!
//! | kind | what happened | did it run | the worker |
//! |---|---|---|---|
//! | [`Panicked`](TaskErrorKind::Panicked) | with message, location and, where `RUST_BACKTRACE=1`, backtrace | yes | goes on |
//! | [`Died`](TaskErrorKind::Died) | its worker crashed, exited or was killed | maybe | is replaced |
//! | [`TimedOut`](TaskErrorKind::TimedOut) | it ran for longer than its limit | maybe | is replaced |
//! | [`Cancelled`](TaskErrorKind::Cancelled) | by [`Task::cancel`], or with its iterator | no, or maybe | is replaced if it ran |
//! | [`Closed`](TaskErrorKind::Closed) | the pool was closed or terminated | no, or maybe | |
//! | [`Encode`](TaskErrorKind::Encode), [`Decode`](TaskErrorKind::Decode) | a value could not be sent; names the type | argument: no; result: yes | goes on |
//! | [`Forked`](TaskErrorKind::Forked) | the pool is a copy that `fork` made in a child process | no, or maybe, in the original | |
//! | [`Function`](TaskErrorKind::Function) | it is in another shared object | no | |
//! | [`Initializer`](TaskErrorKind::Initializer) | no worker could be made ready | no | |
//!
//! "Maybe" ([`DidRun::Maybe`]) means that any part of the task's effects may be there. Only with
//! [`retries`](PoolBuilder::retries) is such a task run again, after a death or a time limit, never after
//! a panic. Items that waited behind one that crashed, in the same chunk, are run elsewhere, which is no
//! attempt; those that had finished are delivered.
//!
//! # Testing
//!
//! A worker of a test binary would run the tests instead of serving. One line, at the top level of each
//! test binary, makes `#[test]` functions able to have pools, under `cargo test` and under nextest:
//!
//! ```
//! procpool::test_support!();
//! # fn main() {}
//! ```
//!
//! # Limits
//!
//! - Linux, on 64-bit machines.
//! - The wall is against accidents, not against an attacker: a worker has its parent's user, files and
//!   network, and one that is hostile can harm its parent. What a task has done outside of its process is
//!   not undone.
//! - What a task changes in its own process (globals, environment, working directory) stays so for the
//!   tasks after it in the same worker.
//! - Descendants of a worker are killed with it, unless they have made a session or process group of
//!   their own.
//! - An argument takes less than 4 GiB when it is encoded. One that is a vector of plain numbers or a
//!   string isn't encoded and may be larger.
//! - A task's threads end with [`Process`], which doesn't wait for them; in a [`Pool`] they live as long
//!   as the worker.
//! - All callbacks of a pool are called in turn on one thread. One that waits for another waits for ever.
//! - A worker's standard input is empty; its output goes where the parent's goes, unless
//!   [`output`](PoolBuilder::output) says otherwise.

#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("procpool needs Linux: pidfds, parent death signals and /proc/self/exe");

#[cfg_attr(all(test, loom), allow(unsafe_code))]
mod atomic;
#[allow(unsafe_code)] // Messages lie in shared memory.
pub mod channel;
#[allow(unsafe_code)] // Serves the parent that the marker names.
mod entry;
mod error;
mod failure;
#[allow(unsafe_code)] // Raw system calls, and the mappings that all shared memory stands on.
mod os;
mod pool;
mod self_describing;
#[allow(unsafe_code)] // Values lie in shared memory.
pub mod shared;
#[allow(unsafe_code)] // So do locks and their waiters.
pub mod sync;
mod worker_ref;

pub use entry::init;
pub use error::{DeathCause, DidRun, Error, StartError, TaskError, TaskErrorKind, ValueSide};
pub use failure::Failure;
pub use os::process::OutputMode;
pub use pool::{
    AsCompleted, Canceller, Event, EventKind, Limits, Pool, PoolBuilder, Process, ProcessBuilder,
    ProcessHandle, Report, Reports, Results, Stats, Task, TaskOptions, Timeout, WaitFor,
    WorkerInfo, WorkerState, as_completed, log_to_stderr, wait,
};
pub use procpool_worker::state::{WorkerContext, with as with_state};
pub use self_describing::SelfDescribing;
pub use worker_ref::WorkerRef;

/// Returns which worker of which pool runs this code, or `None` in any other process.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// fn device(_: u32) -> Option<usize> {
///     procpool::worker().map(|worker| worker.slot % 2)
/// }
///
/// let pool = procpool::Pool::new(4)?;
/// println!("{:?}", pool.map(device, 0..8)?);
/// # Ok(())
/// # }
/// ```
pub fn worker() -> Option<WorkerContext> {
    procpool_worker::state::worker()
}

/// A random number to seed a generator with: inside a task, the next of the task's own stream.
///
/// Each task's stream is another, and the same in each run of the program that gives its pool the same
/// seed ([`PoolBuilder::seed`]) and makes the same calls in the same order: it depends on the number of
/// the call and the item's position, and not on which worker runs it, on chunks, or on retries. An
/// initializer's depends on its worker's slot.
///
/// Outside of tasks, and on threads that a task has started, it is drawn from the system's randomness
/// and another each time. It is not for cryptography. The numbers are those of SplitMix64.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// fn roll(sides: u64) -> u64 {
///     procpool::random_u64() % sides + 1
/// }
///
/// let once = procpool::Pool::builder().workers(4).seed(7).build()?.map(roll, [6; 100])?;
/// let again = procpool::Pool::builder().workers(2).seed(7).build()?.map(roll, [6; 100])?;
/// assert_eq!(once, again);
/// # Ok(())
/// # }
/// ```
pub fn random_u64() -> u64 {
    procpool_worker::seed::next()
}

/// Reads bytes as if a worker had sent them; for fuzzing.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn read_hostile(bytes: &[u8]) {
    pool::read_hostile(bytes);
}

/// Has a worker do to its parent what the bytes say; for fuzzing.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn talk_to_liar(bytes: &[u8]) {
    pool::talk(bytes);
}
