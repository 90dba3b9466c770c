//! What happens to workers and tasks, as one typed stream. Progress bars, logs and timelines are
//! observers of it; the pool itself never depends on who listens.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use crate::error::DeathCause;
use crate::pool::observe::callbacks::{Callback, Callbacks, contain};

/// Something that has happened in a pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// When: since the pool was made. Serialised as seconds.
    #[serde(serialize_with = "seconds")]
    pub time: Duration,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What has happened. A worker is named by its slot and PID, a task by its id and attempt.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// A worker process has been started.
    Spawned {
        /// Its slot.
        slot: usize,
        /// Its PID.
        pid: u32,
        /// Whether it takes the place of one that is lost or has retired.
        replaces: bool,
    },
    /// A worker is ready for tasks.
    Ready {
        /// Its slot.
        slot: usize,
        /// Its PID.
        pid: u32,
    },
    /// A worker could not be made ready.
    StartFailed {
        /// The slot that it was for.
        slot: usize,
        /// How many times in a row that was.
        failures: u32,
        /// Why.
        cause: String,
    },
    /// Tasks have been sent to a worker.
    Assigned {
        /// Its slot.
        slot: usize,
        /// Its PID.
        pid: u32,
        /// The first one's id.
        id: u64,
        /// How many there are.
        tasks: u32,
        /// The tasks' label, if they have one.
        label: Option<String>,
    },
    /// A task has ended.
    Finished {
        /// The worker's slot.
        slot: usize,
        /// The worker's PID.
        pid: u32,
        /// The task's id.
        id: u64,
        /// Which attempt this was, from 1.
        attempt: u32,
        /// How long it ran. Serialised as seconds.
        #[serde(serialize_with = "seconds")]
        elapsed: Duration,
        /// What went wrong, if it has no answer.
        error: Option<String>,
    },
    /// A task will be run again.
    Retried {
        /// The slot of the worker that was lost.
        slot: usize,
        /// That worker's PID.
        pid: u32,
        /// The task's id.
        id: u64,
        /// The attempt that failed.
        attempt: u32,
        /// How long it ran. Serialised as seconds.
        #[serde(serialize_with = "seconds")]
        elapsed: Duration,
        /// What went wrong.
        error: String,
    },
    /// A worker has died that was not to.
    Lost {
        /// Its slot.
        slot: usize,
        /// Its PID.
        pid: u32,
        /// How.
        cause: String,
    },
    /// A worker has ended as it was told to.
    Retired {
        /// Its slot.
        slot: usize,
        /// Its PID.
        pid: u32,
    },
    /// All that was submitted is done and all workers have ended.
    Drained,
    /// So much happened while listeners were busy that these many events were dropped here.
    Lagged {
        /// How many.
        events: u64,
    },
    /// A callback has panicked.
    CallbackPanicked {
        /// What it said.
        message: String,
    },
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:10.6}] ", self.time.as_secs_f64())?;
        match &self.kind {
            EventKind::Spawned { slot, pid, replaces } => {
                let what = if *replaces { "respawned" } else { "spawned" };
                write!(f, "worker {slot} (PID {pid}) {what}")
            }
            EventKind::Ready { slot, pid } => write!(f, "worker {slot} (PID {pid}) ready"),
            EventKind::StartFailed { slot, failures, cause } => {
                write!(f, "worker {slot} could not be made ready (failure {failures}): {cause}")
            }
            EventKind::Assigned { slot, pid, id, tasks, label } => {
                write!(f, "worker {slot} (PID {pid}) assigned {tasks} tasks from {id}")?;
                label.as_ref().map_or(Ok(()), |label| write!(f, " of {label}"))
            }
            EventKind::Finished { slot, pid, id, attempt, elapsed, error } => {
                write!(f, "worker {slot} (PID {pid}) finished task {id}")?;
                if *attempt > 1 {
                    write!(f, ", attempt {attempt}")?;
                }
                write!(f, " after {elapsed:?}")?;
                error.as_ref().map_or(Ok(()), |error| write!(f, ": {error}"))
            }
            EventKind::Retried { id, attempt, error, .. } => {
                write!(f, "task {id} is tried again after attempt {attempt}: {error}")
            }
            EventKind::Lost { slot, pid, cause } => {
                write!(f, "worker {slot} (PID {pid}) lost: it {cause}")
            }
            EventKind::Retired { slot, pid } => write!(f, "worker {slot} (PID {pid}) retired"),
            EventKind::Lagged { events } => write!(f, "{events} events missed"),
            EventKind::Drained => f.write_str("drained"),
            EventKind::CallbackPanicked { message } => write!(f, "a callback panicked: {message}"),
        }
    }
}

static TO_STDERR: AtomicBool = AtomicBool::new(false);

/// Prints the events of all pools of this process to standard error, a line each: what
/// `multiprocessing.log_to_stderr` does.
pub fn log_to_stderr() {
    TO_STDERR.store(true, Relaxed);
}

/// Who listens to a pool.
#[derive(Clone)]
pub(crate) struct Observers {
    began: Instant,
    listeners: Arc<[Observer]>,
    backlog: Arc<Backlog>,
    /// Where they are called: not where things happen, since there locks are held that a listener
    /// who asks the pool something would wait for.
    pub(crate) callbacks: Callbacks,
}

/// What listeners have not been told yet.
#[derive(Default)]
struct Backlog {
    /// How many events wait.
    waiting: AtomicUsize,
    /// How many have been dropped since the last one that was not.
    missed: AtomicU64,
}

/// How many events wait at most for listeners who are slower than what happens: about 10 MiB.
const MOST_WAITING: usize = 1 << 16;

/// What is the user's to be called after a delivery: wakers, and callbacks of jobs that are done. It is
/// collected under locks and [fired](Observers::fire) when they are let go.
#[derive(Default)]
#[must_use = "whoever waits for these calls would wait for ever"]
pub(crate) struct Deferred {
    /// What is told before.
    events: Vec<EventKind>,
    calls: Vec<Callback>,
}

impl Deferred {
    pub(crate) fn add(&mut self, call: Callback) {
        self.calls.push(call);
    }

    pub(crate) fn emit(&mut self, event: EventKind) {
        self.events.push(event);
    }
}

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Deferred({}, {})", self.events.len(), self.calls.len())
    }
}

/// One who listens.
pub(crate) type Observer = Arc<dyn Fn(&Event) + Send + Sync>;

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observers({})", self.listeners.len())
    }
}

impl Observers {
    pub(crate) fn new(listeners: Vec<Observer>) -> Self {
        Self {
            began: Instant::now(),
            listeners: listeners.into(),
            backlog: Arc::default(),
            callbacks: Callbacks::default(),
        }
    }

    /// Starts the thread that listeners are called on, if there are any: where things happen, locks are
    /// held and workers are waited for.
    pub(crate) fn start(&self) -> io::Result<()> {
        if self.listeners.is_empty() { Ok(()) } else { self.callbacks.start() }
    }

    /// Whether anybody listens, for what would cost something to find out.
    pub(crate) fn is_enabled(&self) -> bool {
        let traces = || contain(traced).unwrap_or(false);
        !self.listeners.is_empty() || TO_STDERR.load(Relaxed) || traces()
    }

    /// Tells everybody. `kind` is only made if somebody listens. Must be called under no lock, since a
    /// subscriber of the crate tracing is called here and may ask the pool something.
    pub(crate) fn emit(&self, kind: impl FnOnce() -> EventKind) {
        if !self.is_enabled() {
            return;
        }
        let event = Event { time: self.began.elapsed(), kind: kind() };
        if TO_STDERR.load(Relaxed) {
            // Where standard error can't be written to, the pool goes on all the same.
            let _ = writeln!(io::stderr(), "[procpool]{event}");
        }
        let _ = contain(|| trace(&event));
        if self.listeners.is_empty() {
            return;
        }
        // The last one is never dropped: somebody may wait for it.
        let is_last = event.kind == EventKind::Drained;
        if !is_last && self.backlog.waiting.load(Relaxed) >= MOST_WAITING {
            self.backlog.missed.fetch_add(1, Relaxed);
            return;
        }
        let events = self.backlog.missed.swap(0, Relaxed);
        if events > 0 {
            self.send(Event { time: event.time, kind: EventKind::Lagged { events } });
        }
        self.send(event);
    }

    fn send(&self, event: Event) {
        let (listeners, backlog) = (Arc::clone(&self.listeners), Arc::clone(&self.backlog));
        backlog.waiting.fetch_add(1, Relaxed);
        self.callbacks.call(Box::new(move || {
            backlog.waiting.fetch_sub(1, Relaxed);
            for listener in listeners.iter() {
                // A panic has been printed by the program's own hook; the others are told all the
                // same.
                let _ = contain(|| listener(&event));
            }
        }));
    }

    /// Deferred what a delivery has asked for. Must be called under no lock. A panic is told as an event.
    pub(crate) fn fire(&self, calls: Deferred) {
        calls.events.into_iter().for_each(|event| self.emit(|| event));
        for call in calls.calls {
            if let Err(message) = contain(call) {
                self.emit(|| EventKind::CallbackPanicked { message });
            }
        }
    }

    pub(crate) fn lost(&self, slot: usize, pid: u32, cause: DeathCause) {
        self.emit(|| EventKind::Lost { slot, pid, cause: cause.to_string() });
    }
}

#[cfg(feature = "tracing")]
fn traced() -> bool {
    tracing::enabled!(target: "procpool", tracing::Level::DEBUG)
        || tracing::enabled!(target: "procpool", tracing::Level::WARN)
}

#[cfg(feature = "tracing")]
fn trace(event: &Event) {
    let time = event.time.as_secs_f64();
    match &event.kind {
        EventKind::Lost { slot, pid, cause } => {
            tracing::warn!(target: "procpool", time, slot, pid, %cause, "lost");
        }
        EventKind::StartFailed { slot, failures, cause } => {
            tracing::warn!(target: "procpool", time, slot, failures, %cause, "start failed");
        }
        EventKind::CallbackPanicked { message } => {
            tracing::warn!(target: "procpool", time, %message, "callback panicked");
        }
        _ => tracing::debug!(target: "procpool", time, "{event}"),
    }
}

#[cfg(not(feature = "tracing"))]
fn traced() -> bool {
    false
}

#[cfg(not(feature = "tracing"))]
fn trace(_: &Event) {}
