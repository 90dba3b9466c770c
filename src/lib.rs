//! `multiprocessing.Pool` for Rust: a pool of worker processes that one task's crash, hang or leak
//! cannot bring down.
//!
//! A pool starts copies of this program as workers, sends them calls, and returns the results: in input
//! order or as they complete, each with the PID of its worker. If a worker dies, the task that it was
//! running fails with an error that names the cause. The other tasks return their results, and a new
//! worker replaces the dead one.
//!
//! Threads are simpler and cheaper where no task can go wrong. Use processes for C libraries, unbounded
//! recursion, code that aborts, loops or leaks, and anything with global state.
//!
//! # A first program
//!
//! Add this crate with `cargo add procpool --path PATH`, where PATH is a clone. Types of your own also
//! need `cargo add serde --features derive`.
//!
//! ```no_run
//! fn divide_100_by(x: i32) -> i32 {
//!     if x == 0 { std::process::abort() } else { 100 / x }
//! }
//!
//! fn main() -> Result<(), procpool::Error> {
//!     procpool::init(); // the first line of main
//!     let pool = procpool::Pool::new(4)?; // four workers; 0 means one per CPU
//!
//!     let sum: i32 = pool.map(divide_100_by, [1, 2, 5])?.into_iter().sum();
//!     println!("sum: {sum}");
//!
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
//! It prints `sum: 170`, and then 100, 50,
//! `task 2 (PID 4711): its worker was killed by SIGABRT while running it`, and 20.
//!
//! [`init`] must be the first line of `main`; it replaces Python's `if __name__ == "__main__"`. A worker
//! is a copy of the program and starts in `main`. There `init` serves the pool and never returns; in
//! every other process it returns at once. Code before `init` runs in each worker too. Without `init`,
//! building a pool fails with [`Error::NotInitialized`].
//!
//! # Calls
//!
//! Calls have the names of Python's `multiprocessing`.
//!
//! | call | returns | order | blocks |
//! |---|---|---|---|
//! | [`apply`](Pool::apply) | `Result<R, TaskError>` | | yes |
//! | [`apply_async`](Pool::apply_async) | [`Task<R>`](Task) | | no |
//! | [`map`](Pool::map) | `Result<Vec<R>, TaskError>` | input | yes |
//! | [`map_async`](Pool::map_async) | [`Task<Vec<R>>`](Task) | input | no |
//! | [`map_with`](Pool::map_with) | as `map`; the items share a context sent once per worker | input | yes |
//! | [`map_init`](Pool::map_init) | as `map`; the items share a value created in each worker | input | yes |
//! | [`imap`](Pool::imap) | iterator of `Result<R, TaskError>` | input | per item |
//! | [`imap_unordered`](Pool::imap_unordered) | iterator of `Result<R, TaskError>` | completion | per item |
//! | [`broadcast`](Pool::broadcast) | `Vec<Result<R, TaskError>>`, one per worker | slot | yes |
//!
//! [`apply_with`](Pool::apply_with), [`imap_with`](Pool::imap_with) and
//! [`imap_unordered_with`](Pool::imap_unordered_with) take a context too.
//!
//! A [`Task`] can be waited for with or without a time limit, polled, cancelled, awaited as a `Future`,
//! or observed by a callback. [`wait`] and [`as_completed`] wait for several tasks. The iterators read
//! their input a bounded window ahead, so the input may be infinite; dropping an iterator cancels its
//! remaining tasks. [`reports`](Results::reports) yields a [`Report`] per result, with its id, PID,
//! attempt and times. [`into_stream`](Results::into_stream) makes a `Stream` of an iterator.
//!
//! [`Pool::builder`] configures a pool: the number of workers, an initializer whose value tasks reach
//! with [`with_state`], time limits, retries, memory and other resource limits, worker replacement,
//! environment, output, and callbacks for [`Event`]s. [`Pool::with_options`] returns another handle to
//! the same workers, with other [`TaskOptions`].
//!
//! [`close`](Pool::close) rejects new tasks, [`join`](Pool::join) waits for the submitted ones, and
//! [`terminate`](Pool::terminate) kills the workers. Dropping the pool terminates it.
//!
//! [`Process::spawn`] starts one process for one call and reports its exit status.
//!
//! A task says how far it is with [`progress()`], and sends values to its caller with [`emit`] while it runs;
//! [`Task::updates`] receives them.
//!
//! [`random_u64`] returns random numbers from a stream of the task's own, which is the same in each run
//! with the same [pool seed](PoolBuilder::seed).
//!
//! # Functions and values
//!
//! A task is a plain `fn(A) -> R`: any function linked into the executable, generic functions and
//! closures without captures included. Nothing has to be registered. A function is identified by its
//! position in the program's image, which is the same in every worker.
//!
//! Arguments and results must implement serde's `Serialize` and `DeserializeOwned`. Several arguments
//! are one tuple. A type without these traits does not compile; [`Pool`] shows the compiler's message.
//! If `R` is itself a `Result`, its `Err` is a result like any other. [`Failure`] is an error type for
//! such tasks, and `?` converts any other error into it.
//!
//! ```no_run
//! use procpool::{Failure, Pool};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Job {
//!     path: String,
//!     word: String,
//! }
//!
//! fn count(job: Job) -> Result<usize, Failure> {
//!     let text = std::fs::read_to_string(&job.path)?;
//!     Ok(text.matches(&job.word).count())
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     procpool::init();
//!     let jobs = ["a.txt", "b.txt"].map(|path| Job { path: path.into(), word: "pool".into() });
//!     for result in Pool::new(0)?.map(count, jobs)? {
//!         match result {
//!             Ok(count) => println!("{count}"),
//!             Err(failure) => println!("{failure}"),
//!         }
//!     }
//!     Ok(())
//! }
//! ```
//!
//! The encoding contains no field names and no types. Types that need them compile and are rejected
//! when they are sent: `serde_json::Value`, and types with `#[serde(untagged)]`,
//! `#[serde(tag = "…")]`, `#[serde(flatten)]` or `#[serde(skip_serializing_if = "…")]`. Wrap them in
//! [`SelfDescribing`]. `#[serde(skip_serializing)]` without `#[serde(skip_deserializing)]`, or the
//! reverse, is not detected and misplaces all later fields. A path that is not UTF-8 can be sent as an
//! `OsString`.
//!
//! A value may be nested some hundred levels deep, depending on the stack that its type needs per level.
//! A deeper value is rejected, because decoding it could overflow the receiver's stack. A value with
//! more than four million elements of zero bytes, such as `()`, is rejected too.
//!
//! # Shared state
//!
//! Arguments and results are copies. To share state between processes, pass a handle to it in an argument,
//! a result or a message: the ends of a [`channel`]; a read-only [`SharedSlice`](shared::SharedSlice); a
//! writable [`SharedArray`](shared::SharedArray) or [`SharedValue`](shared::SharedValue); a lock, semaphore,
//! event or barrier of [`sync`]. All of them stay usable if a process that uses them is killed. An open file
//! or socket travels as a [`SharedFd`](shared::SharedFd).
//!
//! # From Python
//!
//! | Python | Rust |
//! |---|---|
//! | `Pool(n)`, `Pool()` | `Pool::new(n)?`, `Pool::new(0)?` |
//! | the end of `with Pool() as pool:` | dropping the pool |
//! | `Pool(initializer=f, initargs=(a,))` | [`Pool::builder().initializer(f, a)`](PoolBuilder::initializer) |
//! | `pool.apply(f, (a, b))` | `pool.apply(f, (a, b))?`, where `f` takes one tuple |
//! | `result.get(timeout)` | [`task.get_timeout(limit)`](Task::get_timeout) |
//! | `Process(target=f, args=(a,))`, `p.start()`, `p.join()` | [`Process::spawn(f, a)?`](Process::spawn), `p.join()?` |
//! | `Queue()`, `Queue(n)` | [`channel::unbounded()?`](channel::unbounded), [`channel::bounded(n)?`](channel::bounded) |
//! | `Value`, `Array`, `SharedMemory` | [`SharedValue`](shared::SharedValue), [`SharedArray`](shared::SharedArray), [`SharedSlice`](shared::SharedSlice) |
//! | `Lock`, `Semaphore`, `Event`, `Barrier` | the types of [`sync`] |
//! | `as_completed`, `wait` | [`as_completed`], [`wait`] |
//!
//! # Errors
//!
//! [`Error`] is returned if a pool cannot be built. [`TaskError`] is returned for a task that has no
//! result:
//!
//! | kind | cause | did it run | worker |
//! |---|---|---|---|
//! | [`Panicked`](TaskErrorKind::Panicked) | the task panicked; has message, location and, with `RUST_BACKTRACE=1`, backtrace | yes | continues |
//! | [`Died`](TaskErrorKind::Died) | the worker crashed, exited or was killed | maybe | replaced |
//! | [`TimedOut`](TaskErrorKind::TimedOut) | the task exceeded its time limit | maybe | replaced |
//! | [`Cancelled`](TaskErrorKind::Cancelled) | [`Task::cancel`], or its iterator was dropped | no, or maybe | replaced if it ran |
//! | [`Closed`](TaskErrorKind::Closed) | the pool was closed or terminated | no, or maybe | |
//! | [`Encode`](TaskErrorKind::Encode), [`Decode`](TaskErrorKind::Decode) | a value could not be sent; names the type | argument: no; result: yes | continues |
//! | [`AlreadyTaken`](TaskErrorKind::AlreadyTaken) | the result was returned by an earlier call | yes | |
//! | [`HostLost`](TaskErrorKind::HostLost) | the host of the worker was lost, in a pool that spans hosts | maybe | |
//! | [`Forked`](TaskErrorKind::Forked) | the pool is a copy that `fork` made in a child process | no, or maybe, in the original | |
//! | [`Function`](TaskErrorKind::Function) | the function is in another shared object | no | |
//! | [`Initializer`](TaskErrorKind::Initializer) | no worker became ready | no | |
//!
//! "Maybe" ([`DidRun::Maybe`]) means that any part of the task's effects may have happened. Such a task
//! runs again only with [`retries`](PoolBuilder::retries), after a death or a timeout, never after a
//! panic. If a task kills its worker, the finished items of its chunk are delivered, and the queued ones
//! run elsewhere without using up an attempt.
//!
//! # Async programs
//!
//! A [`Task`] is a `Future` under any runtime, and [`Results::into_stream`] returns a `Stream`. Blocking calls
//! such as [`Pool::apply`] block the thread. [`Pool::reserve`] waits for room in the queue, and
//! [`Pool::join_async`] for the pool's end.
//!
//! With `#[tokio::main]`, the first line of `main` runs inside the runtime, in each worker too. [`init`]
//! works there, and the runtime's threads and descriptors stay alive beside the tasks. But a task that
//! starts a runtime of its own panics, because it already runs inside one; such a task needs a thread of
//! its own or `tokio::task::block_in_place`.
//!
//! [`main!`] runs before `main`, so a worker has no runtime except those that its tasks create:
//!
//! ```
//! procpool::main!();
//!
//! fn answer(x: u32) -> u32 {
//!     let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
//!     runtime.block_on(async move { x * 2 })
//! }
//!
//! // What `#[tokio::main]` expands to.
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     tokio::runtime::Runtime::new()?.block_on(async {
//!         let pool = procpool::Pool::new(2)?;
//!         assert_eq!(pool.apply_async(answer, 21).await?, 42);
//!         Ok(())
//!     })
//! }
//! ```
//!
//! # Features
//!
//! None is on by default.
//!
//! - `sandbox`: [`PoolBuilder::sandbox`](https://docs.rs/procpool/latest/procpool/struct.PoolBuilder.html#method.sandbox)
//!   confines workers, by Landlock and seccomp.
//! - `log`, `tracing`: log records that tasks make with these crates reach the program's logger and subscriber; see
//!   [`PoolBuilder::worker_logs`]. With `tracing`, the pool's events too.
//! - `metrics`: `Pool::publish_metrics` passes the pool's [`Metrics`] to the crate `metrics`.
//! - `mpi`: pools that span hosts; see [`Hosts`].
//!
//! # Testing
//!
//! A worker of a test binary would run the tests instead of serving the pool. This line at the top level
//! of each test binary lets `#[test]` functions build pools, under `cargo test` and under nextest:
//!
//! ```
//! procpool::test_support!();
//! # fn main() {}
//! ```
//!
//! # Limits
//!
//! - Linux only, on 64-bit machines.
//! - The isolation protects against accidents. A worker has its parent's user, files and network, and a
//!   hostile worker can harm its parent, unless a sandbox confines it (feature `sandbox`). Effects
//!   outside the worker's process are not undone.
//! - A task's changes to its own process (globals, environment, working directory) remain for later
//!   tasks of the same worker.
//! - Descendants of a worker are killed with it, unless they created their own session or process group.
//! - An encoded argument must be smaller than 4 GiB. Strings and vectors of primitive numbers are not
//!   encoded and may be larger.
//! - Threads that a task starts live as long as the worker. A [`Process`] does not wait for them.
//! - One thread runs all callbacks of a pool in turn. A callback that waits for another callback waits
//!   forever.
//! - A worker's standard input is empty. Its output goes where the parent's goes, unless
//!   [`output`](PoolBuilder::output) says otherwise.

#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("procpool needs Linux: pidfds, parent death signals and /proc/self/exe");

#[cfg_attr(all(test, loom), allow(unsafe_code))]
mod atomic;
#[allow(unsafe_code)] // Messages lie in shared memory.
pub mod channel;
#[allow(unsafe_code)] // Serves the parent that the token names.
mod entry;
mod error;
mod failure;
mod init;
#[allow(unsafe_code)] // Values of several processes lie in its memory.
mod ipc;
#[allow(unsafe_code)] // System calls, and the mappings of shared memory.
mod os;
mod pool;
mod self_describing;
#[allow(unsafe_code)] // Values lie in shared memory.
pub mod shared;
#[allow(unsafe_code)] // So do locks and their waiters.
pub mod sync;
mod worker_ref;

pub use error::{DeathCause, DidRun, Error, StartError, TaskError, TaskErrorKind, ValueSide};
pub use failure::Failure;
pub use init::init;
pub use os::process::OutputMode;
pub use pool::{
    AsCompleted, Canceller, Deaths, Ending, Event, EventKind, Histogram, HostInfo, Hosts,
    IntoStream, Limits, Metrics, Permit, Pool, PoolBuilder, Process, ProcessBuilder, ProcessHandle,
    QueueFull, Report, Reports, Reserve, Results, StartMethod, Stats, Task, TaskOptions, Timeout,
    Update, UpdateError, UpdateStream, Updates, WaitFor, WorkerInfo, WorkerState, as_completed,
    log_to_stderr, wait,
};
#[cfg(feature = "sandbox")]
pub use pool::{Ports, Sandbox};
pub use procpool_worker::note::{LogLevel, LogRecord, LogSource, Progress};
pub use procpool_worker::outbox::{EmitError, emit, progress};
pub use procpool_worker::state::{WorkerContext, with as with_state};
pub use self_describing::SelfDescribing;
pub use worker_ref::{HostName, WorkerRef};

/// Returns the pool name and slot of the worker that runs this code, and the attempt number of its task, or
/// `None` outside of workers.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// fn device(_: u32) -> Option<usize> {
///     let worker = procpool::worker()?;
///     // Whatever killed the first attempt is not tried again.
///     (worker.attempt == 1).then_some(worker.slot % 2)
/// }
///
/// let pool = procpool::Pool::builder().workers(4).retries(1).build()?;
/// println!("{:?}", pool.map(device, 0..8)?);
/// # Ok(())
/// # }
/// ```
pub fn worker() -> Option<WorkerContext> {
    procpool_worker::state::worker()
}

/// Returns a random number, for use as it is or as a generator's seed. Inside a task, it is the next
/// number of the task's own stream.
///
/// Each task has a different stream. A run with the same pool seed ([`PoolBuilder::seed`]) and the same
/// calls in the same order repeats all streams: a stream depends on the number of the call and the
/// item's position, not on workers, chunks or retries. An initializer's stream depends on its worker's
/// slot.
///
/// Outside of tasks, and on threads that a task started, each number comes from the operating system.
/// The generator is SplitMix64. It is not for cryptography.
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

/// Decodes `bytes` as a worker's message; for fuzzing.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn read_hostile(bytes: &[u8]) {
    pool::read_hostile(bytes);
}

/// Runs a hostile worker that `bytes` script; for fuzzing.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn talk_to_liar(bytes: &[u8]) {
    pool::talk(bytes);
}
