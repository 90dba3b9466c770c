//! The pool of worker processes.
//!
//! ```text
//!  caller                     parent process                          │        worker process
//!  ──────                     ──────────────                          │        ──────────────
//!  map(f, xs) ─► encode ─► queue ─► driver k (one thread per worker) ─┼─ frame ─► serve loop
//!  feed, task            scheduler        driver, chunk               │            │ for each item of the chunk:
//!                                     │        ▲                      │            │   claim · decode · call f
//!                                     │        └───────── reply ◄─────┼────────────┤   under catch_unwind · encode
//!  results in order ◄─ job ◄──────────┘                               │            │   into the lane · commit
//!                       ▲                                             │
//!                       └── supervisor: spawns, reaps, deadlines; ◄───┼── pidfd
//!                           one thread that lives as long as the pool
//! ```
//!
//! A call passes through `call`, `schedule` and `drive`, each once on the way out and once on the way back. The others
//! support it:
//!
//! | module | owns |
//! |---|---|
//! | `handle`, `builder`, `options`, `limits`, `types` | the public API: calls, options and reports; `async_calls` for async programs; `system` checks what the system allows; `resize` starts the drivers, more of them in a pool that grows |
//! | `call` | the callers' side: `encode`, `feed` (input into batches), `job` with its `ledger` (collects each item's outcome once), `outcome` (decoding), `collect`, `results`, `task`; `emitted` and `updates` (what tasks say while they run) |
//! | `schedule` | scheduling: the queue (`state`, `submit`, `dispatch`), the state machine of the `slots`, the lifecycle of `workers`, chunk sizes (`cost`), wake-ups (`limiter`) and the bound on the queue (`admission`) |
//! | `drive` | communication: one `driver` per slot sends a `chunk`, reads its `records` and `notes`, and accounts for each item |
//! | `process` | processes: the `supervisor` starts, monitors and reaps; each `worker`'s handle; `one_shot` processes and the supervisor that they share (`shared_supervisor`) |
//! | `hosts` | pools that span hosts: the manager here, an agent on each other host |
//! | `observe` | observation: `events`, `logs` of workers, `metrics`, and the thread that runs `callbacks` |
//!
//! The path of one `map`: `handle::Pool::map` creates a `job::Job`. `collect` uses `feed::Feed` to encode the
//! items into `batch::Batch`es. `submit` queues them and wakes a driver. `dispatch::next_step` forms a chunk,
//! and `exchange::run` sends it as a frame. In the worker, `procpool_worker` runs the items and commits their
//! results to the lane. On the way back, `chunk` reads them as `records`, `job` accepts them as `outcome`s,
//! and `collect` decodes them in order.
//!
//! An item is in exactly one place at any time: in the queue, in the running chunk of one worker, or settled.
//! It moves under a lock. Its job's ledger settles it exactly once.

mod async_calls;
mod builder;
mod call;
mod config;
mod context_calls;
mod drive;
mod handle;
pub(crate) mod hosts;
#[cfg(any(test, fuzzing))]
mod liar;
mod limits;
mod observe;
mod options;
mod process;
mod resize;
#[cfg(feature = "sandbox")]
mod sandbox;
mod schedule;
mod startup;
mod system;
mod types;

pub use self::async_calls::{Ending, Permit, QueueFull, Reserve};
pub use self::builder::PoolBuilder;
pub use self::call::completion::{AsCompleted, WaitFor, as_completed, wait};
pub use self::call::results::{IntoStream, Reports, Results, Timeout};
pub use self::call::task::{Canceller, Task};
pub use self::call::updates::{Update, UpdateError, UpdateStream, Updates};
pub use self::config::StartMethod;
pub use self::handle::Pool;
pub use self::hosts::Hosts;
pub use self::limits::Limits;
pub use self::observe::events::{Event, EventKind, log_to_stderr};
pub use self::observe::metrics::{Deaths, Histogram, Metrics};
pub use self::options::TaskOptions;
pub use self::process::one_shot::{Process, ProcessBuilder, ProcessHandle};
#[cfg(feature = "sandbox")]
pub use self::sandbox::{Ports, Sandbox};
pub use self::types::{HostInfo, Report, Stats, WorkerInfo, WorkerState};

#[cfg(fuzzing)]
pub(crate) use self::{call::outcome::read_hostile, liar::talk};
