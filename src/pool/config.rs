//! A pool's validated configuration, as the builder resolves it.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use procpool_worker::attach::Attachments;
use procpool_worker::function::{FnRef, PreloadRef};
use procpool_worker::note::LogLevel;
use procpool_worker::protocol::Setup;
use serde::{Deserialize, Serialize};

use crate::entry;
use crate::os::process::{Launch, OutputMode};
use crate::pool::limits::Limits;
use crate::pool::observe::events::Observers;
#[cfg(feature = "sandbox")]
use crate::pool::sandbox::Sandbox;
use crate::pool::schedule::admission::Bound;
use crate::pool::schedule::slots::Numbers;

pub(crate) type EnvPerWorker = Arc<dyn Fn(usize) -> Vec<(OsString, OsString)> + Send + Sync>;
/// Stack size of the pool's own threads, in bytes. The only user code on them is wakers and `env_per_worker`
/// closures.
pub(crate) const STACK: usize = 256 << 10;

/// More workers are surely a mistake: each costs a process and a thread.
pub(crate) const MAX_WORKERS: usize = 4096;

/// A pool's immutable configuration.
pub(crate) struct Config {
    /// The number of workers, on all hosts, with those that stand by.
    pub(crate) workers: usize,
    /// The number of workers on this host: the first slots.
    pub(crate) local: usize,
    /// How many of them stand by.
    pub(crate) spares: usize,
    /// How many start when the pool is built.
    pub(crate) initial: usize,
    /// The slot of the first worker here in the pool of all hosts: not 0 on an agent's host.
    pub(crate) first_slot: usize,
    pub(crate) name: String,
    pub(crate) initializer: Option<Initializer>,
    pub(crate) start_method: StartMethod,
    pub(crate) preload: Option<Preload>,
    #[cfg(feature = "sandbox")]
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) window: Option<u64>,
    /// The bound on calls that ask for a place in the queue.
    pub(crate) max_queued: Bound,
    pub(crate) start_timeout: Duration,
    pub(crate) env_per_worker: Vec<EnvPerWorker>,
    pub(crate) launch: Launch,
    pub(crate) kill_grace: Duration,
    pub(crate) max_tasks: Option<u64>,
    pub(crate) max_memory: Option<u64>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) min_workers: usize,
    pub(crate) replaces: bool,
    pub(crate) seed: u64,
    pub(crate) limits: Limits,
    pub(crate) nice: i32,
    /// CPUs that workers are pinned to, in turn.
    pub(crate) cpus: Vec<u32>,
    pub(crate) observers: Observers,
    /// The least urgent level of the log records that workers send.
    pub(crate) worker_logs: Option<LogLevel>,
}

impl Config {
    /// Returns how many workers run tasks at once, on all hosts.
    pub(crate) fn most_running(&self) -> usize {
        self.workers - self.spares
    }

    /// Whether workers start when there is work for them.
    pub(crate) fn starts_on_demand(&self) -> bool {
        self.initial < usize::MAX
    }

    /// Returns the numbers of workers on this host.
    pub(crate) fn numbers(&self) -> Numbers {
        Numbers { slots: self.local, spares: self.spares, initial: self.initial.min(self.local) }
    }

    /// Returns the process name of a slot's worker.
    pub(crate) fn title(&self, slot: usize) -> String {
        if self.replaces { format!("{}/{slot}", self.name) } else { self.name.clone() }
    }

    /// Returns the setup message for a slot's worker.
    pub(crate) fn setup(&self, slot: usize) -> Setup {
        let mut limits = self.limits.resources();
        if limits.iter().all(|(resource, ..)| *resource != libc::RLIMIT_NOFILE)
            && let Some((soft, hard)) = entry::open_files_of_workers()
        {
            limits.push((libc::RLIMIT_NOFILE, soft, hard));
        }
        Setup {
            name: self.title(slot),
            pool: self.name.clone(),
            slot: u32::try_from(self.first_slot + slot).unwrap_or(u32::MAX),
            host: self.observers.host.map(|host| host.to_string()),
            limits,
            nice: self.nice,
            cpu: (!self.cpus.is_empty()).then(|| self.cpus[slot % self.cpus.len()]),
            capture: self.launch.output == OutputMode::Capture,
            logs: self.worker_logs,
            // Nobody reads what a process says before it has ended.
            has_outbox: self.replaces,
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("workers", &self.workers).finish_non_exhaustive()
    }
}

/// How the processes of workers are started, for [`PoolBuilder::start_method`](crate::PoolBuilder::start_method).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StartMethod {
    /// Each worker executes the program anew.
    #[default]
    Spawn,
    /// A template process executes the program once, and forks each worker.
    Template,
}

/// Function that each worker runs before its first task.
#[derive(Debug)]
pub(crate) struct Initializer {
    pub(crate) call: FnRef,
    pub(crate) argument: Vec<u8>,
    /// Files that the argument refers to.
    pub(crate) attachments: Attachments,
    /// As in [`Batch`](crate::pool::schedule::batch::Batch).
    pub(crate) width: u32,
}

/// Function that the template runs before it forks a worker.
#[derive(Debug)]
pub(crate) struct Preload {
    pub(crate) call: PreloadRef,
    pub(crate) argument: Vec<u8>,
    /// Files that the argument refers to.
    pub(crate) attachments: Attachments,
}
