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
//! program, and never returns. So a task that crashes never touches the messaging library, and all that a
//! worker may do to its pool is dealt with on its own host, by the code that deals with it everywhere.
//!
//! | module | owns |
//! |---|---|
//! | `link` | what the pool's threads tell the manager, and how they wake it |
//! | `settings` | what each host is told of a pool |
//! | `wire` | the messages between manager and agents |
//! | `engine` | what a messaging library must do; and one inside of a process, for tests |
//! | `mpi` | the engine on MPI; the only file that names the crate |
//! | `requests` | how the program's threads reach the manager |
//! | `manager` | the thread of host 0 that owns the engine: who is there, and who is lost |
//! | `remote` | what one pool has sent to the other hosts and not got back |
//! | `agent` | what the other hosts do |
//!
//! A message goes through one thread on each side, which never waits for one peer. A host is lost when the
//! engine says so, or after [`LOSS`] without a message. Then what it had is retried or fails, under the
//! rules for a worker that died. What a host that was taken for lost still sends is ignored.

#![cfg_attr(
    not(feature = "mpi"),
    allow(dead_code, reason = "without an engine, no pool spans hosts")
)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::pool::schedule::cost::CostEstimate;

mod agent;
mod engine;
pub(crate) mod link;
mod manager;
#[cfg(feature = "mpi")]
#[allow(unsafe_code)] // Calls of the library, which has no other interface that returns errors.
pub(crate) mod mpi;
mod remote;
pub(crate) mod requests;
mod settings;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

/// How often each side sends something, if only that it is there.
const BEAT: Duration = Duration::from_millis(500);

/// How long a peer may be silent: ten beats.
const LOSS: Duration = Duration::from_secs(5);

/// How long a side looks at its engine without a pause after something has happened. A single call is answered
/// meanwhile. With a shorter time than the slowest call takes, slow calls stayed slow: each side was found
/// asleep by the other.
const SPIN: Duration = Duration::from_millis(1);

/// The pause between two looks while something is expected.
const PAUSE: Duration = Duration::from_micros(100);

/// The pause while nothing is.
const IDLE_PAUSE: Duration = Duration::from_millis(20);

/// Returns whether to look again at once for what is expected after `expected` nanoseconds, `since` the last
/// event; and if not, how long to pause. A look costs CPU time that the workers want, so it is repeated without
/// a pause for short items only, and seldom for long ones.
fn next_look(expected: Option<u64>, since: Duration) -> Option<Duration> {
    const LONG_PAUSE: Duration = Duration::from_millis(1);
    let nanos = expected.unwrap_or(0);
    if nanos <= CostEstimate::MIN_WORTH_A_WAKE && since < SPIN {
        return None;
    }
    Some(Duration::from_nanos(nanos / 20).clamp(PAUSE, LONG_PAUSE))
}

/// Returns how long this process was stopped since the last look at its clock, if it was: a peer's silence
/// meanwhile is no sign of its loss.
fn pause_of(last: &mut Instant, now: Instant) -> Duration {
    let passed = now.saturating_duration_since(std::mem::replace(last, now));
    if passed > 2 * BEAT { passed } else { Duration::ZERO }
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

/// The environment variable that decides where [`PoolBuilder::hosts`](crate::PoolBuilder::hosts) doesn't:
/// `mpi`, or `local`. With `local`, [`init`](crate::init) returns on every host.
const HOSTS: &str = "PROCPOOL_HOSTS";

impl Hosts {
    /// Returns the default: what the environment says, or this host alone.
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
/// starts take itself for a part of the run.
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
