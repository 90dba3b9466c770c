//! What is left of a chunk whose worker is lost, and the error of the item that was running.

use crate::error::{DeathCause, TaskErrorKind};
use crate::pool::process::worker::{KillReason, Process};
use crate::pool::schedule::batch::Batch;
use procpool_worker::lane::AbortReason;
use procpool_worker::note::{LogRecord, Progress};
use std::time::{Duration, Instant};

/// What is left of a chunk after its worker is lost.
#[derive(Debug)]
pub(crate) struct LostChunk {
    /// The item that was running, as a batch of one.
    pub(crate) running_item: Option<Batch>,
    /// Batches that had not started.
    pub(crate) rest: Vec<Batch>,
    /// When the chunk was sent.
    pub(crate) sent: Instant,
    /// How long the running item had run.
    pub(crate) elapsed: Duration,
    /// Captured output of the running item.
    pub(crate) output: Vec<u8>,
    /// The worker's note about its abort.
    pub(super) note: Option<AbortReason>,
    /// How far the running item was, if it has said so.
    pub(crate) progress: Option<Progress>,
    /// Last log records of the running item.
    pub(super) records: Vec<LogRecord>,
}

impl LostChunk {
    /// Returns the error of the item that was running.
    pub(crate) fn error_kind(&self, process: &Process) -> TaskErrorKind {
        let cause = match process.kill_reason() {
            Some(KillReason::TimedOut(after)) => return TaskErrorKind::TimedOut { after },
            Some(KillReason::Cancelled) => return TaskErrorKind::Cancelled,
            Some(KillReason::OutOfMemory) => DeathCause::OutOfMemory,
            Some(KillReason::Malformed) => DeathCause::ProtocolViolation,
            Some(KillReason::StartTimedOut(_) | KillReason::Retired | KillReason::Silent)
            | None => self.cause(process),
        };
        TaskErrorKind::Died {
            cause,
            last_output: self.last_lines(),
            last_records: self.records.clone(),
        }
    }

    /// Returns how the worker has ended. Waits for its end.
    pub(crate) fn cause(&self, process: &Process) -> DeathCause {
        process.wait_death().explained(self.note)
    }

    fn last_lines(&self) -> Option<String> {
        const LINES: usize = 10;
        let text = String::from_utf8_lossy(&self.output);
        let text = text.trim_end();
        let start = text.rmatch_indices('\n').nth(LINES - 1).map_or(0, |(at, _)| at + 1);
        (!text.is_empty()).then(|| text[start..].to_owned())
    }
}
