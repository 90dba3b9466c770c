//! The outbox: sends a task's [notes](crate::wire::note) to the parent while the task runs.
//!
//! Any thread of the worker may send one. Each note names the item that the serving thread runs at that moment.
//! Notes travel on the control socket, in order with the replies, and the lane counts them: the parent reads a task's
//! notes before it takes the task's result from the lane. It reads those of a dead worker from the socket's buffer.
//!
//! A value waits for space on the socket, because none may be lost; the parent reads while a task runs. A log
//! record waits [`RECORD_WAIT`] and is then dropped and counted. Progress is a few words in the lane, which the
//! parent reads when the worker dies. Until then, at most one packet per [`PROGRESS_INTERVAL`] reports it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::fork_guard;
use crate::shm::lane::Words;
use crate::shm::sys::now;
use crate::wire::codec;
use crate::wire::control::{Control, MAX_PACKET};
use crate::wire::error::TransportError;
#[cfg(any(feature = "log", feature = "tracing"))]
use crate::wire::note::LogRecord;
use crate::wire::note::{MAX_NOTE, Note, Progress};
use crate::wire::protocol::Reply;

/// How often a task's progress is sent, in nanoseconds.
const PROGRESS_INTERVAL: u64 = 50_000_000;

/// How long a log record may wait for space on the socket.
#[cfg(any(feature = "log", feature = "tracing"))]
const RECORD_WAIT: Duration = Duration::from_millis(10);

/// The most bytes of a note in one packet: the rest is for the nonce and the reply's head.
const PART: usize = MAX_PACKET - 64;

static OUTBOX: OnceLock<Outbox> = OnceLock::new();

/// Why a value could not be emitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// The calling code runs in no task of a pool.
    #[error("no task of a pool is running here")]
    NoTask,
    /// The calling code runs in a `Process`, whose parent reads nothing before its end.
    #[error("a `Process` can't emit values: use a pool, or a channel")]
    OfProcess,
    /// The value could not be encoded.
    #[error("it could not be encoded: {0}")]
    Encode(String),
    /// The encoded value is longer than 16 MiB.
    #[error(
        "it takes {0} bytes encoded, and 16 MiB are allowed: return it, or send it through a channel"
    )]
    TooLong(usize),
    /// The parent is gone, or the system refuses.
    #[error("it could not be sent: {0}")]
    Send(String),
}

/// How many notes were sent.
#[derive(Debug, Default)]
struct Sent(u64);

/// A worker's end of the control socket, for all of its threads.
#[derive(Debug)]
struct Outbox {
    control: Arc<Control>,
    lane: &'static Words,
    /// Whether the parent reads notes while a task runs.
    is_open: AtomicBool,
    /// The chunk that runs.
    sequence: AtomicU32,
    /// How many notes were sent. Locked while a note's parts are sent, so that none comes between.
    sending: Mutex<Sent>,
    /// The item whose progress was sent last, and when.
    told: AtomicU64,
    told_at: AtomicU64,
    #[cfg(any(feature = "log", feature = "tracing"))]
    dropped: AtomicU64,
}

/// Creates this process's outbox, which is closed.
pub(crate) fn create(control: Arc<Control>, lane: &'static Words) {
    let _ = OUTBOX.set(Outbox {
        control,
        lane,
        is_open: AtomicBool::new(false),
        sequence: AtomicU32::new(0),
        sending: Mutex::default(),
        told: AtomicU64::new(0),
        told_at: AtomicU64::new(0),
        #[cfg(any(feature = "log", feature = "tracing"))]
        dropped: AtomicU64::new(0),
    });
}

/// Sets whether the parent reads notes.
pub(crate) fn set_open(is_open: bool) {
    if let Some(outbox) = OUTBOX.get() {
        outbox.is_open.store(is_open, Relaxed);
    }
}

/// Sets which chunk runs.
pub(crate) fn set_sequence(sequence: u32) {
    if let Some(outbox) = OUTBOX.get() {
        outbox.sequence.store(sequence, Relaxed);
    }
}

/// Returns the worker's outbox. In other processes, and in copies of the worker that a task has forked, there is none.
fn outbox() -> Option<&'static Outbox> {
    if fork_guard::is_forked() { None } else { OUTBOX.get() }
}

/// Tells the caller how far the running task is, for `Task::progress`, events and errors. `total` is how much there
/// is, if that is known. Outside of tasks it does nothing.
///
/// It is cheap enough for a tight loop: a few stores, and a packet at most every 50 ms.
pub fn progress(done: u64, total: impl Into<Option<u64>>) {
    let total = total.into();
    let Some(outbox) = outbox() else { return };
    let Some(item) = outbox.running() else { return };
    outbox.lane.set_task_progress(item, Progress { done, total });
    let key = u64::from(outbox.sequence.load(Relaxed)) << 32 | u64::from(item);
    let now = now();
    if !outbox.is_open.load(Relaxed) {
        return;
    }
    let is_end = total == Some(done) && outbox.told.load(Relaxed) == key;
    if is_end || now.saturating_sub(outbox.told_at.load(Relaxed)) >= PROGRESS_INTERVAL {
        outbox.told.store(if is_end { 0 } else { key }, Relaxed);
        outbox.told_at.store(now, Relaxed);
        // If the parent does not read, it learns of the progress later.
        let _ =
            outbox.send(item, &Note::Progress(Progress { done, total }), &[], Some(Duration::ZERO));
    }
}

/// Sends `value` to the caller of the running task, which receives it from `Task::updates` while the task runs.
///
/// Waits while the caller's process does not read. What was sent before the task crashed is delivered.
///
/// # Errors
///
/// [`EmitError`] says why the value was not sent.
pub fn emit<T: Serialize>(value: &T) -> Result<(), EmitError> {
    let outbox = outbox().ok_or(EmitError::NoTask)?;
    let item = outbox.running().ok_or(EmitError::NoTask)?;
    if !outbox.is_open.load(Relaxed) {
        return Err(EmitError::OfProcess);
    }
    let bytes =
        codec::encode_to_vec(value).map_err(|error| EmitError::Encode(error.to_string()))?;
    let type_name = std::any::type_name::<T>().to_owned();
    if bytes.len() + type_name.len() > MAX_NOTE - 64 {
        return Err(EmitError::TooLong(bytes.len()));
    }
    let sent = outbox.send(item, &Note::Value { type_name }, &bytes, None);
    sent.map(drop).map_err(|error| EmitError::Send(error.to_string()))
}

/// Sends a log record, or drops and counts it.
#[cfg(any(feature = "log", feature = "tracing"))]
pub(crate) fn record(mut record: LogRecord) {
    let Some(outbox) = outbox() else { return };
    record.cut();
    record.dropped = outbox.dropped.swap(0, Relaxed);
    let dropped = record.dropped + 1;
    let item = outbox.running().unwrap_or(0);
    let note = Note::Record(Box::new(record));
    if !matches!(outbox.send(item, &note, &[], Some(RECORD_WAIT)), Ok(true)) {
        outbox.dropped.fetch_add(dropped, Relaxed);
    }
}

impl Outbox {
    /// Returns the number of the item that runs, counted from 1.
    fn running(&self) -> Option<u32> {
        let committed = self.lane.progress().items;
        let started = self.lane.started();
        (started > committed).then_some(started)
    }

    /// Sends a note of an item, and the value that follows it. Returns whether it was sent within `limit`.
    fn send(
        &self,
        item: u32,
        note: &Note,
        value: &[u8],
        limit: Option<Duration>,
    ) -> Result<bool, TransportError> {
        let malformed =
            |error: crate::wire::error::CodecError| TransportError::Malformed(error.to_string());
        let mut bytes = codec::encode_to_vec(note).map_err(malformed)?;
        bytes.extend_from_slice(value);
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let sequence = self.sequence.load(Relaxed);
        let Some(mut sent) = self.lock(deadline) else { return Ok(false) };
        let count = bytes.chunks(PART).len();
        for (at, part) in bytes.chunks(PART).enumerate() {
            let (is_first, is_last) = (at == 0, at + 1 == count);
            let mut packet = Vec::with_capacity(part.len() + 16);
            codec::encode(&Reply::Note { sequence, item, is_first, is_last }, &mut packet)
                .map_err(malformed)?;
            packet.extend_from_slice(part);
            if !self.control.send_by(&packet, &[], deadline)? {
                return Ok(false);
            }
        }
        sent.0 += 1;
        self.lane.set_notes(sent.0);
        Ok(true)
    }

    /// Waits until no other thread sends, but at most until `deadline`.
    fn lock(&self, deadline: Option<Instant>) -> Option<std::sync::MutexGuard<'_, Sent>> {
        let Some(deadline) = deadline else {
            return Some(self.sending.lock().unwrap_or_else(PoisonError::into_inner));
        };
        loop {
            match self.sending.try_lock() {
                Ok(sending) => return Some(sending),
                Err(std::sync::TryLockError::Poisoned(error)) => return Some(error.into_inner()),
                Err(std::sync::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return None;
                }
                Err(std::sync::TryLockError::WouldBlock) => {
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        }
    }
}
