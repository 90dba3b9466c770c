//! What a pool reports about its tasks and workers.

use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::TaskError;
use crate::worker_ref::{HostName, WorkerRef};

/// The outcome of a task, with its worker, timing and output.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report<R> {
    /// The task's position in the input; for single calls, its number within the pool.
    pub id: u64,
    /// The worker that the task was sent to, if any.
    pub worker: Option<WorkerRef>,
    /// Attempt number, from 1; 0 if the task was never sent.
    pub attempt: u32,
    /// Time between submission and sending to a worker.
    pub queued: Duration,
    /// Run time. Items that take less than a few microseconds are timed in groups and report an equal share.
    pub elapsed: Duration,
    /// Captured output of the task, from Rust or any other language, with
    /// [`OutputMode::Capture`](crate::OutputMode::Capture). If the worker died, the last part of it.
    pub output: Vec<u8>,
    /// The function's return value, or why there is none.
    pub result: Result<R, TaskError>,
}

impl<R> Report<R> {
    /// Returns the PID of the worker that the task was sent to, if any.
    pub fn pid(&self) -> Option<u32> {
        self.worker.map(|worker| worker.pid)
    }
}

/// The state of a worker slot, from [`Pool::workers`](crate::Pool::workers).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Slot number, from 0.
    pub slot: usize,
    /// The slot's host, if the pool spans several.
    pub host: Option<HostName>,
    /// PID of the worker; while the slot is empty, of the previous one.
    pub pid: u32,
    /// Current state.
    pub state: WorkerState,
    /// Number of tasks finished in this slot.
    pub tasks_done: u64,
    /// Number of times a lost worker in this slot was replaced.
    pub restarts: u64,
    /// Resident memory in bytes; `None` if it can't be read.
    pub memory: Option<u64>,
    /// CPU time used; `None` if it can't be read.
    pub cpu: Option<Duration>,
}

/// State of a worker slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum WorkerState {
    /// The slot has no process.
    Absent,
    /// The process has started, but isn't ready yet.
    Starting,
    /// Ready, without a task.
    Idle,
    /// Running tasks.
    Busy,
}

/// A host of a pool, from [`Pool::hosts`](crate::Pool::hosts).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HostInfo {
    /// The host's name; with several ranks on one host, followed by `#` and the rank.
    pub name: HostName,
    /// The slots of its workers.
    pub slots: Range<usize>,
    /// The number of its CPUs.
    pub cpus: usize,
    /// Its memory in bytes; 0 if it can't be read.
    pub memory: u64,
    /// Why it was lost; `None` while it serves the pool.
    pub lost: Option<String>,
}

/// Task counters of a pool, from [`Pool::stats`](crate::Pool::stats).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Tasks waiting for a worker.
    pub queued: u64,
    /// Tasks sent to a worker and unfinished.
    pub running: u64,
    /// Tasks that returned a result.
    pub done: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// Failed attempts that were retried.
    pub retried: u64,
    /// Lost workers that were replaced.
    pub restarts: u64,
}
