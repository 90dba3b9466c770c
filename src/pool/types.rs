//! What a pool says of its tasks and its workers.

use std::time::Duration;

use crate::error::TaskError;
use crate::worker_ref::WorkerRef;

/// An answer or a failure, with all that is known about it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report<R> {
    /// The position in the input; for single calls, the number among the pool's.
    pub id: u64,
    /// The worker that the task was sent to, if it was sent to one.
    pub worker: Option<WorkerRef>,
    /// Which attempt this was, from 1; 0 if there was none.
    pub attempt: u32,
    /// How long it waited before it was sent to the worker.
    pub queued: Duration,
    /// How long it ran. Items that take less than some microseconds are timed several at once, and
    /// share the time.
    pub elapsed: Duration,
    /// What it printed, in whatever language, where that is captured
    /// ([`OutputMode::Capture`](crate::OutputMode::Capture)); of a task whose worker died, the last of it.
    pub output: Vec<u8>,
    /// The answer.
    pub result: Result<R, TaskError>,
}

impl<R> Report<R> {
    /// Returns the PID of the worker that the task was sent to, if it was sent to one.
    pub fn pid(&self) -> Option<u32> {
        self.worker.map(|worker| worker.pid)
    }
}

/// One of a pool's workers, from [`Pool::workers`](crate::Pool::workers).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Which of the pool's places it has, from 0.
    pub slot: usize,
    /// Its PID; where there is no process at the moment, the last one's.
    pub pid: u32,
    /// What it is at.
    pub state: WorkerState,
    /// How many tasks have ended in this slot.
    pub tasks_done: u64,
    /// How many times a new process has taken the place of one that was lost.
    pub restarts: u64,
    /// Its resident memory in bytes, if it could be looked at.
    pub memory: Option<u64>,
    /// The CPU time that it has used, if it could be looked at.
    pub cpu: Option<Duration>,
}

/// What a worker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkerState {
    /// There is none at the moment.
    Absent,
    /// It has been started and is not ready yet.
    Starting,
    /// It is ready and has nothing to do.
    Idle,
    /// It runs tasks.
    Busy,
}

/// How much a pool has done and has to do, in tasks; from [`Pool::stats`](crate::Pool::stats).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Wait for a worker.
    pub queued: u64,
    /// Have been sent to a worker.
    pub running: u64,
    /// Have been answered.
    pub done: u64,
    /// Have ended without an answer.
    pub failed: u64,
    /// Attempts that were followed by another.
    pub retried: u64,
    /// Workers that have taken the place of one that was lost.
    pub restarts: u64,
}
