//! The event stream of a pool. Progress bars, logs and timelines observe it; the pool never depends on its
//! observers.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use procpool_worker::note::{self, LogRecord, Progress};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::DeathCause;
use crate::pool::observe::callbacks::{Callback, Callbacks, contain};
use crate::pool::observe::logs;
use crate::worker_ref::HostName;

/// An event in a pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// Time since the pool was created. Serialized as seconds.
    #[serde(serialize_with = "seconds")]
    pub time: Duration,
    /// The host on which it happened, if the pool spans several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Kind of an [`Event`]. Workers are identified by slot and PID, tasks by id and attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// A worker process was started.
    Spawned {
        /// Worker slot.
        slot: usize,
        /// PID of the worker.
        pid: u32,
        /// Whether it replaces a lost or retired worker.
        replaces: bool,
    },
    /// The pool's template process was started. It forks the workers.
    TemplateStarted {
        /// PID of the template.
        pid: u32,
    },
    /// The template process ended unexpectedly, or did not start. Another takes its place.
    TemplateLost {
        /// PID of the template.
        pid: u32,
        /// How it ended.
        cause: String,
    },
    /// A worker is ready for tasks.
    Ready {
        /// Worker slot.
        slot: usize,
        /// PID of the worker.
        pid: u32,
    },
    /// A worker failed to start.
    StartFailed {
        /// Worker slot.
        slot: usize,
        /// Consecutive failures in this slot.
        failures: u32,
        /// The reason.
        cause: String,
    },
    /// Tasks were sent to a worker.
    Assigned {
        /// Worker slot.
        slot: usize,
        /// PID of the worker.
        pid: u32,
        /// Id of the first task.
        id: u64,
        /// Number of tasks.
        tasks: u32,
        /// Label of the tasks, if set.
        label: Option<String>,
    },
    /// A task finished or failed.
    Finished {
        /// Worker slot.
        slot: usize,
        /// PID of the worker.
        pid: u32,
        /// Id of the task.
        id: u64,
        /// Attempt number, from 1.
        attempt: u32,
        /// Run time. Serialized as seconds.
        #[serde(serialize_with = "seconds", deserialize_with = "from_seconds")]
        elapsed: Duration,
        /// The error of a failed task.
        error: Option<String>,
    },
    /// A running task has said how far it is, with [`progress`](crate::progress()).
    Progressed {
        /// Worker slot.
        slot: usize,
        /// PID of the worker.
        pid: u32,
        /// Id of the task.
        id: u64,
        /// Attempt number, from 1.
        attempt: u32,
        /// How much is done.
        done: u64,
        /// How much there is, if the task knows it.
        total: Option<u64>,
    },
    /// A running task has emitted a value, with [`emit`](crate::emit).
    Emitted {
        /// Worker slot.
        slot: usize,
        /// PID of the worker.
        pid: u32,
        /// Id of the task.
        id: u64,
        /// Attempt number, from 1.
        attempt: u32,
        /// The value's type.
        type_name: String,
        /// Length of the encoded value in bytes.
        bytes: u64,
    },
    /// A log record was made in a worker.
    Logged {
        /// Worker slot.
        slot: usize,
        /// PID of the worker.
        pid: u32,
        /// Id of the task that was running, if one was.
        id: Option<u64>,
        /// Attempt number, from 1; 0 if no task was running.
        attempt: u32,
        /// The record.
        record: LogRecord,
    },
    /// A task will be retried.
    Retried {
        /// Slot of the lost worker.
        slot: usize,
        /// PID of the lost worker.
        pid: u32,
        /// Id of the task.
        id: u64,
        /// The failed attempt, from 1.
        attempt: u32,
        /// Run time. Serialized as seconds.
        #[serde(serialize_with = "seconds", deserialize_with = "from_seconds")]
        elapsed: Duration,
        /// The error of the failed attempt.
        error: String,
    },
    /// A worker died unexpectedly.
    Lost {
        /// Worker slot.
        slot: usize,
        /// PID of the worker.
        pid: u32,
        /// How it died.
        cause: String,
    },
    /// A worker exited as requested.
    Retired {
        /// Worker slot.
        slot: usize,
        /// PID of the worker.
        pid: u32,
    },
    /// A host was lost, with its workers. What they ran is retried elsewhere, or fails.
    HostLost {
        /// How the loss was noticed.
        reason: String,
    },
    /// All tasks are done and all workers have exited.
    Drained,
    /// Events were dropped at this point, because callbacks were too slow.
    Lagged {
        /// Number of dropped events.
        events: u64,
    },
    /// A callback panicked.
    CallbackPanicked {
        /// The panic's message.
        message: String,
    },
}

impl EventKind {
    /// Cuts a text that is too long.
    fn cut(&mut self) {
        let text = match self {
            Self::Finished { error: Some(text), .. }
            | Self::Retried { error: text, .. }
            | Self::StartFailed { cause: text, .. }
            | Self::TemplateLost { cause: text, .. }
            | Self::Lost { cause: text, .. }
            | Self::HostLost { reason: text }
            | Self::CallbackPanicked { message: text } => text,
            _ => return,
        };
        note::cut(text, MAX_TEXT);
    }

    /// Returns the slot of the worker that the event is about.
    pub(crate) fn slot_mut(&mut self) -> Option<&mut usize> {
        match self {
            Self::Spawned { slot, .. }
            | Self::Ready { slot, .. }
            | Self::StartFailed { slot, .. }
            | Self::Assigned { slot, .. }
            | Self::Finished { slot, .. }
            | Self::Progressed { slot, .. }
            | Self::Emitted { slot, .. }
            | Self::Logged { slot, .. }
            | Self::Retried { slot, .. }
            | Self::Lost { slot, .. }
            | Self::Retired { slot, .. } => Some(slot),
            Self::TemplateStarted { .. }
            | Self::TemplateLost { .. }
            | Self::HostLost { .. }
            | Self::Drained
            | Self::Lagged { .. }
            | Self::CallbackPanicked { .. } => None,
        }
    }
}

fn from_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:10.6}] ", self.time.as_secs_f64())?;
        if let Some(host) = self.host {
            write!(f, "{host}: ")?;
        }
        match &self.kind {
            EventKind::Spawned { slot, pid, replaces } => {
                let what = if *replaces { "respawned" } else { "spawned" };
                write!(f, "worker {slot} (PID {pid}) {what}")
            }
            EventKind::TemplateStarted { pid } => write!(f, "template (PID {pid}) started"),
            EventKind::TemplateLost { pid, cause } => {
                write!(f, "template (PID {pid}) lost: it {cause}")
            }
            EventKind::Ready { slot, pid } => write!(f, "worker {slot} (PID {pid}) ready"),
            EventKind::StartFailed { slot, failures, cause } => {
                write!(f, "worker {slot} failed to start (failure {failures}): {cause}")
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
            EventKind::Progressed { slot, pid, id, done, total, .. } => {
                let progress = Progress { done: *done, total: *total };
                write!(f, "worker {slot} (PID {pid}) is at {progress} of task {id}")
            }
            EventKind::Emitted { slot, pid, id, type_name, bytes, .. } => {
                write!(
                    f,
                    "worker {slot} (PID {pid}) emitted a `{type_name}` of {bytes} bytes in task {id}"
                )
            }
            EventKind::Logged { slot, pid, id, record, .. } => {
                write!(f, "worker {slot} (PID {pid})")?;
                id.map_or(Ok(()), |id| write!(f, " task {id}"))?;
                write!(f, ": {record}")
            }
            EventKind::Retried { id, attempt, error, .. } => {
                write!(f, "task {id} retried after attempt {attempt}: {error}")
            }
            EventKind::Lost { slot, pid, cause } => {
                write!(f, "worker {slot} (PID {pid}) lost: it {cause}")
            }
            EventKind::Retired { slot, pid } => write!(f, "worker {slot} (PID {pid}) retired"),
            EventKind::Lagged { events } => write!(f, "{events} events dropped"),
            EventKind::HostLost { reason } => write!(f, "lost with all workers: {reason}"),
            EventKind::Drained => f.write_str("drained"),
            EventKind::CallbackPanicked { message } => write!(f, "a callback panicked: {message}"),
        }
    }
}

static TO_STDERR: AtomicBool = AtomicBool::new(false);

/// Prints the events of all pools of this process to stderr, one per line, like
/// `multiprocessing.log_to_stderr`.
pub fn log_to_stderr() {
    TO_STDERR.store(true, Relaxed);
}

/// The observers of a pool.
#[derive(Clone)]
pub(crate) struct Observers {
    began: Instant,
    /// This host, if the pool spans several.
    pub(crate) host: Option<HostName>,
    /// The pool's name.
    pool: Arc<str>,
    listeners: Arc<[Observer]>,
    backlog: Arc<Backlog>,
    /// The thread that observers run on. They can't run where events occur: locks are held there, which an
    /// observer that calls the pool would wait for.
    pub(crate) callbacks: Callbacks,
}

/// Events that observers have not seen yet.
#[derive(Default)]
struct Backlog {
    /// Number of pending events.
    waiting: AtomicUsize,
    /// Number of events dropped since the last one that was kept; and of log records.
    missed: AtomicU64,
    missed_records: AtomicU64,
    /// Bytes of pending log records.
    record_bytes: AtomicUsize,
}

/// Maximum number of pending events: about 10 MiB, and 70 MiB if each has the longest text.
const MAX_WAITING: usize = 1 << 16;

/// Maximum bytes of an event's text. A worker decides how long the message of a panic is. The task's error has the
/// whole.
const MAX_TEXT: usize = 1 << 10;

/// Maximum bytes of pending log records: their number alone bounds nothing.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// User code to call after a delivery: wakers, and callbacks of finished jobs. Collected under locks and
/// [fired](Observers::fire) once they are released.
#[derive(Default)]
#[must_use = "if these calls are dropped, their waiters never wake"]
pub(crate) struct Deferred {
    /// Events to emit before the calls.
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

/// A callback for events.
pub(crate) type Observer = Arc<dyn Fn(&Event) + Send + Sync>;

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observers({})", self.listeners.len())
    }
}

impl Observers {
    pub(crate) fn new(pool: &str, listeners: Vec<Observer>) -> Self {
        Self {
            began: Instant::now(),
            host: None,
            pool: pool.into(),
            listeners: listeners.into(),
            backlog: Arc::default(),
            callbacks: Callbacks::default(),
        }
    }

    /// Starts the callback thread, if there are observers. Starting it on the first event would be too late:
    /// locks are held there, and callers wait for workers.
    pub(crate) fn start(&self) -> io::Result<()> {
        if self.listeners.is_empty() { Ok(()) } else { self.callbacks.start() }
    }

    /// Returns whether events have observers. Check it before computing an event's fields.
    pub(crate) fn is_enabled(&self) -> bool {
        let traces = || contain(traced).unwrap_or(false);
        !self.listeners.is_empty() || TO_STDERR.load(Relaxed) || traces()
    }

    /// Emits an event. Calls `kind` only if there are observers. Must be called under no lock: this calls
    /// subscribers of the crate tracing, which may call the pool.
    pub(crate) fn emit(&self, kind: impl FnOnce() -> EventKind) {
        self.emit_of(self.host, kind);
    }

    /// Emits an event of a host; see [`emit`](Self::emit).
    pub(crate) fn emit_of(&self, host: Option<HostName>, kind: impl FnOnce() -> EventKind) {
        if !self.is_enabled() {
            return;
        }
        let mut event = Event { time: self.began.elapsed(), host, kind: kind() };
        event.kind.cut();
        if TO_STDERR.load(Relaxed) {
            // A failed write to stderr doesn't affect the pool.
            let _ = writeln!(io::stderr(), "[procpool]{event}");
        }
        let _ = contain(|| trace(&event));
        if self.listeners.is_empty() {
            return;
        }
        // The last event is never dropped, because observers may wait for it.
        let is_last = event.kind == EventKind::Drained;
        if !is_last && self.backlog.waiting.load(Relaxed) >= MAX_WAITING {
            self.backlog.missed.fetch_add(1, Relaxed);
            return;
        }
        let events = self.backlog.missed.swap(0, Relaxed);
        if events > 0 {
            self.send(Event { time: event.time, host, kind: EventKind::Lagged { events } });
        }
        self.send(event);
    }

    /// Emits a log record of a worker. Loggers learn of it also where events have no observers.
    pub(crate) fn log(&self, event: EventKind) {
        self.log_of(self.host, event);
    }

    /// Emits a log record of a host's worker; see [`log`](Self::log). Loggers are called on the callback thread: they
    /// are user code, and one that blocks must not keep a driver from its worker.
    pub(crate) fn log_of(&self, host: Option<HostName>, mut event: EventKind) {
        let EventKind::Logged { record, .. } = &mut event else { return };
        // Another host's, too.
        record.cut();
        let bytes = record.size();
        let waiting = (&self.backlog.waiting, &self.backlog.record_bytes);
        if waiting.0.load(Relaxed) >= MAX_WAITING || waiting.1.load(Relaxed) >= MAX_RECORD_BYTES {
            self.backlog.missed_records.fetch_add(1 + record.dropped, Relaxed);
            return;
        }
        let missed = self.backlog.missed_records.swap(0, Relaxed);
        record.dropped = record.dropped.saturating_add(missed);
        let event = Event { time: self.began.elapsed(), host, kind: event };
        let (observers, backlog) = (self.clone(), Arc::clone(&self.backlog));
        backlog.waiting.fetch_add(1, Relaxed);
        backlog.record_bytes.fetch_add(bytes, Relaxed);
        self.callbacks.call(Box::new(move || {
            backlog.waiting.fetch_sub(1, Relaxed);
            backlog.record_bytes.fetch_sub(bytes, Relaxed);
            observers.hand_on_record(&event);
        }));
    }

    /// Calls loggers and observers with a log record.
    fn hand_on_record(&self, event: &Event) {
        if let EventKind::Logged { slot, pid, id, attempt, record } = &event.kind {
            let (host, slot, pid, task, attempt) = (event.host, *slot, *pid, *id, *attempt);
            let origin = logs::Origin { pool: &self.pool, host, slot, pid, task, attempt };
            let _ = contain(|| logs::forward(&origin, record));
        }
        if TO_STDERR.load(Relaxed) {
            let _ = writeln!(io::stderr(), "[procpool]{event}");
        }
        for listener in self.listeners.iter() {
            let _ = contain(|| listener(event));
        }
    }

    fn send(&self, event: Event) {
        let (listeners, backlog) = (Arc::clone(&self.listeners), Arc::clone(&self.backlog));
        backlog.waiting.fetch_add(1, Relaxed);
        self.callbacks.call(Box::new(move || {
            backlog.waiting.fetch_sub(1, Relaxed);
            for listener in listeners.iter() {
                // The program's panic hook has printed the panic. The other observers still run.
                let _ = contain(|| listener(&event));
            }
        }));
    }

    /// Emits the events and makes the calls that a delivery has collected. Must be called under no lock. A
    /// panic is reported as an event.
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
        EventKind::TemplateLost { pid, cause } => {
            tracing::warn!(target: "procpool", time, pid, %cause, "template lost");
        }
        EventKind::HostLost { reason } => {
            tracing::warn!(target: "procpool", time, host = event.host.map(|host| host.as_str()), %reason, "host lost");
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
