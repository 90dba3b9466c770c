//! Pools that span hosts.
//!
//! ```text
//!  host 0: the program                       │  host 1…: the same program, in `init`
//!  ───────────────────                       │  ──────────────────────────────────
//!  caller ─► queue ─► manager ── CHUNK ──────┼──► agent ─► its own local pool ─► worker
//!              ▲         │                   │              │
//!   local drivers        └◄── RESULTS ───────┼──────────────┘
//! ```
//!
//! The program runs once on every host. On the first, [`init`](crate::init) returns, and the program's pool
//! spans the hosts. On the others it becomes an agent: it builds a pool of its own for each pool of the
//! program, and never returns. A task that crashes never touches the messaging library. The local pool of each
//! host handles the failures of its workers, with the code of every other pool.
//!
//! | module | owns |
//! |---|---|
//! | `link` | requests and wake-ups from the pool's threads to the manager |
//! | `settings` | the settings of a pool, as sent to each host |
//! | `wire` | the messages between manager and agents |
//! | `engine` | the interface of a messaging library, and an implementation inside one process for tests |
//! | `mpi` | the engine on MPI; the only file that names the crate |
//! | `requests` | how the program opens and closes pools: its requests to the manager, and the answers |
//! | `manager` | the thread of host 0 that owns the engine and tracks which hosts are connected or lost |
//! | `remote` | the items of one pool that other hosts have and have not answered |
//! | `remote_host` | the same for one host; what it may say about it |
//! | `agent` | the service on the other hosts |
//!
//! One thread on each side sends and receives all messages. It never blocks on one peer. A host is lost when
//! the engine reports it, or after [`LOSS`] without a message. Its items are then retried or fail, under the
//! rules for a worker that died. Later messages of a lost host are ignored.

#![cfg_attr(
    not(feature = "mpi"),
    allow(dead_code, reason = "without an engine, no pool spans hosts")
)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::pool::schedule::cost::CostEstimate;

mod agent;
mod engine;
pub(crate) mod link;
mod manager;
#[cfg(feature = "mpi")]
#[allow(unsafe_code)] // Calls of the library, which has no other interface that returns errors.
pub(crate) mod mpi;
mod remote;
mod remote_host;
pub(crate) mod requests;
mod settings;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

/// The longest interval between two messages of one side. An idle side sends a heartbeat.
const BEAT: Duration = Duration::from_millis(500);

/// How long a peer may be silent: ten beats.
const LOSS: Duration = Duration::from_secs(5);

/// How long a side polls its engine without a pause after an event. A single call is answered within this
/// time. With a limit below the duration of the slowest call, slow calls stayed slow: each message found
/// its receiver asleep.
const SPIN: Duration = Duration::from_millis(1);

/// The pause between two polls while a message is expected.
const PAUSE: Duration = Duration::from_micros(100);

/// The pause between two polls while no message is expected.
const IDLE_PAUSE: Duration = Duration::from_millis(20);

/// Returns the pause before the next poll of the engine, or `None` to poll at once. The next message is expected
/// after `expected` nanoseconds; `since` is the time since the last event. A poll takes CPU time from the
/// workers. Only short items are polled for without a pause.
fn next_look(expected: Option<u64>, since: Duration) -> Option<Duration> {
    const LONG_PAUSE: Duration = Duration::from_millis(1);
    let nanos = expected.unwrap_or(0);
    if nanos <= CostEstimate::MIN_WORTH_A_WAKE && since < SPIN {
        return None;
    }
    Some(Duration::from_nanos(nanos / 20).clamp(PAUSE, LONG_PAUSE))
}

/// Returns how long this process was stopped since `last`, or zero. A peer's silence during that time is no
/// sign of its loss.
fn pause_of(last: &mut Instant, now: Instant) -> Duration {
    let passed = now.saturating_duration_since(std::mem::replace(last, now));
    if passed > 2 * BEAT { passed } else { Duration::ZERO }
}

/// Excludes a pause of this process from a peer's silence. A message since the pause counts as it is:
/// otherwise, the peer's loss would be noticed too late by the length of the pause.
fn exclude_pause(heard: &mut Instant, pause: Duration, now: Instant) {
    *heard = (*heard + pause).min(now.max(*heard));
}

/// The hosts of a pool, for [`PoolBuilder::hosts`](crate::PoolBuilder::hosts).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Hosts {
    /// This host alone.
    #[default]
    Local,
    /// Every host on which `mpirun` or `srun` has started this program; this host alone if neither has.
    /// Needs the feature `mpi`.
    Mpi,
}

/// The variables in which launchers tell a process its rank.
const RANKS: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"];

/// The environment variable that decides where [`PoolBuilder::hosts`](crate::PoolBuilder::hosts) doesn't:
/// `mpi`, or `local`. With `local`, [`init`](crate::init) returns on every host.
const HOSTS: &str = "PROCPOOL_HOSTS";

impl Hosts {
    /// Checks that a program that a launcher has started on several hosts can span them.
    ///
    /// # Errors
    ///
    /// [`Error::Hosts`] without the feature `mpi`: each host would run the program for itself.
    pub(crate) fn check(self) -> Result<(), Error> {
        let is_launched = || RANKS.iter().any(|name| std::env::var_os(name).is_some());
        if self == Self::Mpi && !cfg!(feature = "mpi") && is_launched() {
            let reason = "this program was built without procpool's feature `mpi`".to_owned();
            return Err(Error::Hosts { reason });
        }
        Ok(())
    }

    /// Returns the default: the value of the environment variable, or this host alone.
    pub(crate) fn from_env() -> Self {
        match std::env::var_os(HOSTS) {
            Some(value) if value == "mpi" => Self::Mpi,
            _ => Self::Local,
        }
    }
}

/// Whether this process is part of a run that a launcher has started.
static IS_IN_RUN: AtomicBool = AtomicBool::new(false);

/// Returns the variables that workers don't inherit, because they would make an MPI program that a task
/// starts join the run.
pub(crate) fn launcher_variables() -> Vec<OsString> {
    if !IS_IN_RUN.load(Relaxed) {
        return Vec::new();
    }
    let is_launchers = |name: &OsString| {
        LAUNCHERS.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
    };
    std::env::vars_os().map(|(name, _)| name).filter(is_launchers).collect()
}

/// Prefixes of the variables by which launchers tell a program that it is part of a run. A process that a
/// worker starts is no part of it.
const LAUNCHERS: [&str; 7] = ["OMPI_", "PMIX_", "PRTE_", "ORTE_", "OPAL_", "PMI_", HOSTS];
