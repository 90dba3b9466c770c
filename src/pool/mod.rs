//! The pool of worker processes.
//!
//! ```text
//!  caller                     parent process                          │        worker process
//!  ──────                     ──────────────                          │        ──────────────
//!  map(f, xs) ─► encode ─► queue ─► driver k (one thread per worker) ─┼─ frame ─► serve loop
//!  stream, task          scheduler        driver, chunk               │            │ for each item of the chunk:
//!                                     │        ▲                      │            │   claim · decode · call f
//!                                     │        └───────── reply ◄─────┼────────────┤   under catch_unwind · encode
//!  results in order ◄─ job ◄──────────┘                               │            │   into the lane · commit
//!                       ▲                                             │
//!                       └── supervisor: spawns, reaps, deadlines; ◄───┼── pidfd
//!                           one thread that lives as long as the pool
//! ```
//!
//! A call goes through these rooms, each once on the way out and once on the way back:
//!
//! | room | does |
//! |---|---|
//! | `handle`, `builder`, `options`, `limits`, `types` | the public face: what can be asked for and set, what is reported |
//! | `call` | the callers' side: `encode`, `feed` (input into batches), `job` with its `ledger` (where outcomes arrive, each item's once), `outcome` (decoding), `collect`, `results`, `task` |
//! | `schedule` | decides: the queue (`state`, `submit`, `dispatch`), the state machine of the `slots`, the coming and going of `workers`, how much is worth sending (`cost`, `limiter`) |
//! | `drive` | talks: one `driver` per slot sends a `chunk`, reads its `records`, and accounts for each item |
//! | `process` | starts, watches and reaps: the `supervisor`, each `worker`'s handle, `one_shot` processes and the supervisor that they have in `common` |
//! | `observe` | tells: `events`, and the thread that `callbacks` run on |
//!
//! The way of one `map`: `handle::Pool::map` makes a `job::Job`; `collect` has `feed::Feed` encode the items
//! into `batch::Batch`es; `submit` queues them and wakes a driver; `dispatch::next_step` makes a chunk of
//! them; `chunk::run` sends the frame. In the worker, `procpool_worker` runs the items and commits their
//! results into the lane. Back: `chunk` reads them as `records`, `job` takes them as `outcome`s, and `collect`
//! decodes them in order.
//!
//! An item is in exactly one place at any time: in the queue, in the running chunk of one worker, or
//! settled. It is moved under a lock, and settled in its job's ledger, which lets it through once.

mod builder;
mod call;
mod config;
mod drive;
mod handle;
#[cfg(any(test, fuzzing))]
mod liar;
mod limits;
mod observe;
mod options;
mod process;
mod schedule;
mod types;

pub use self::builder::PoolBuilder;
pub use self::call::completion::{AsCompleted, WaitFor, as_completed, wait};
pub use self::call::results::{Reports, Results, Timeout};
pub use self::call::task::{Canceller, Task};
pub use self::handle::Pool;
pub use self::limits::Limits;
pub use self::observe::events::{Event, EventKind, log_to_stderr};
pub use self::options::TaskOptions;
pub use self::process::one_shot::{Process, ProcessBuilder, ProcessHandle};
pub use self::types::{Report, Stats, WorkerInfo, WorkerState};

#[cfg(fuzzing)]
pub(crate) use self::{call::outcome::read_hostile, liar::talk};
