//! Sends a chunk to its worker and receives the replies, until every item is accounted for.

use crate::error::{TaskErrorKind, ValueSide};
use crate::pool::call::emitted::RawUpdate;
use crate::pool::drive::chunk::Running;
use crate::pool::drive::loss::LostChunk;
use crate::pool::drive::notes::NoteHead;
use crate::pool::drive::regions::Lease;
use crate::pool::drive::report::{Corrupt, Reporter};
use crate::pool::observe::events::{Deferred, EventKind, Observers};
use crate::pool::process::worker::{Incoming, KillReason, Worker};
use crate::pool::schedule::counters::Counters;
use procpool_worker::error::TransportError;
use procpool_worker::note::{Note, Progress};
use procpool_worker::protocol::{Reply, Request};
use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// How to spin for the reply of a short chunk.
pub(crate) struct SpinWait<'a> {
    /// How long to spin.
    pub(crate) spin_for: Duration,
    /// Called if the reply hasn't arrived by then.
    pub(crate) on_timeout: &'a dyn Fn(),
}

/// Outcome of sending a chunk.
#[derive(Debug)]
pub(crate) struct Sent {
    /// Whether a reply is expected.
    outcome: Result<bool, TransportError>,
    /// The body's region stays leased until the worker has finished with it, or has died.
    body: Option<Lease>,
}

/// Runs the chunk in `running` on `worker`, until either ends.
pub(crate) fn run(
    worker: &mut Worker,
    running: &Running,
    inline_limit: usize,
    counters: &Counters,
    observers: Option<&Observers>,
    spin_wait: Option<SpinWait<'_>>,
) -> Result<(), Box<LostChunk>> {
    worker.hint_more = spin_wait.is_some();
    let sent = send(worker, running, inline_limit, counters, observers);
    finish(worker, running, sent, counters, observers, spin_wait)
}

/// Sends the chunk in `running`. Kills a worker that it can't be sent to.
pub(crate) fn send(
    worker: &mut Worker,
    running: &Running,
    inline_limit: usize,
    counters: &Counters,
    observers: Option<&Observers>,
) -> Sent {
    let reporter = Reporter::new(counters, observers);
    let mut body = None;
    let outcome = try_send(worker, running, &mut body, inline_limit, &reporter);
    if let Err(error) = &outcome {
        kill_after(worker, error);
    }
    Sent { outcome, body }
}

/// Kills a worker after an error: whatever the cause, it must not be used again.
fn kill_after(worker: &Worker, error: &TransportError) {
    if !matches!(error, TransportError::PeerGone) {
        worker.process.set_kill_reason(KillReason::Malformed);
    }
    worker.process.child.kill();
}

/// Delivers the worker's results until the chunk or the worker ends.
pub(crate) fn finish(
    worker: &mut Worker,
    running: &Running,
    sent: Sent,
    counters: &Counters,
    observers: Option<&Observers>,
    spin_wait: Option<SpinWait<'_>>,
) -> Result<(), Box<LostChunk>> {
    let reporter = Reporter::new(counters, observers);
    let Sent { outcome, body } = sent;
    let outcome = outcome.and_then(|is_awaited| match is_awaited {
        true => receive(worker, running, &reporter, spin_wait),
        false => Ok(()),
    });
    // Another thread may have decided to kill it just as it finished.
    let is_lost = outcome.is_err() || worker.process.kill_reason().is_some();
    if is_lost {
        // The worker must be dead before its items are accounted for.
        if let Err(error) = &outcome {
            kill_after(worker, error);
        }
        worker.process.child.kill();
        worker.process.wait_death();
        // What its task said last is still in the socket.
        while let Ok(received) = worker.recv(false) {
            if let Incoming::Note(head, note) = received {
                take_note(worker, running, &reporter, head, note);
            }
        }
    }
    drop(body);
    let chunk = running.lock().unwrap_or_else(PoisonError::into_inner).take();
    worker.tasks += chunk.as_ref().map_or(0, |chunk| u64::from(chunk.delivered));
    let outcome = match chunk {
        Some(mut chunk) if is_lost => {
            let mut calls = Deferred::default();
            let is_sane = chunk.collect_results(worker, &reporter, true, &mut calls).is_ok();
            reporter.fire(calls);
            Err(Box::new(chunk.into_loss(is_sane)))
        }
        _ => Ok(()),
    };
    worker.mapped.end_chunk();
    outcome
}

/// Sends the chunk and returns whether a reply is expected. If this process fails to send it, its items fail.
fn try_send(
    worker: &mut Worker,
    running: &Running,
    body: &mut Option<Lease>,
    inline_limit: usize,
    reporter: &Reporter<'_>,
) -> Result<bool, TransportError> {
    let lock = || running.lock().unwrap_or_else(PoisonError::into_inner);
    worker.sequence = worker.sequence.wrapping_add(1);
    if let Some(updates) = worker.mapped.begin_chunk() {
        worker.send(&updates)?;
    }
    let (mut rejected, mut is_out_of_step) = (None, false);
    if let Some(chunk) = lock().as_mut() {
        let mut may_have_sent = false;
        let sent = chunk.body(worker, inline_limit).map_err(|error| {
            let text = format!("failed to place it in shared memory: {error}");
            io::Error::new(error.kind(), text).into()
        });
        let sent = sent.and_then(|region| {
            *body = region;
            may_have_sent = true;
            if let Some(context) = chunk.context() {
                worker.send_context(context)?;
            }
            let is_new = chunk.encode(worker, body.as_ref(), reporter.is_observed)?;
            let region = body.as_mut().and_then(Lease::region);
            if let Some(region) = region.filter(|_| is_new) {
                worker.send_region(region)?;
                region.close_descriptor();
            }
            Ok(())
        });
        match sent {
            Ok(()) => {}
            // This process is out of memory or descriptors.
            Err(TransportError::Io(error)) => {
                let reason = error.to_string();
                let kind = TaskErrorKind::Encode { side: ValueSide::Argument, reason };
                let calls = rejected.get_or_insert_default();
                chunk.reject(&kind, reporter.counters, calls);
                is_out_of_step = may_have_sent;
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(calls) = rejected {
        reporter.fire(calls);
        // A worker that received part of it would take that for part of the next chunk.
        return if is_out_of_step { Err(TransportError::PeerGone) } else { Ok(false) };
    }
    let mut elements = None;
    // Set before sending, so that a worker that doesn't even read is found silent.
    if let Some(chunk) = lock().as_mut() {
        chunk.set_sent();
        elements = chunk.elements_to_stream();
    }
    worker.send_frame()?;
    if let (Some(elements), Some(lease)) = (elements, body.as_mut()) {
        stream(worker, lease, elements.as_bytes());
    }
    let in_region = body.as_ref().map_or(0, Lease::len);
    let sent = (worker.frame.len() + in_region) as u64;
    reporter.counters.argument_bytes.fetch_add(sent, Relaxed);
    Ok(true)
}

/// Copies an argument while the worker, which has its frame, copies it on.
fn stream(worker: &Worker, lease: &mut Lease, elements: &[u8]) {
    /// The worker reads what is still in the cache.
    const PART: usize = 512 << 10;
    let mut at = 0;
    for part in elements.chunks(PART) {
        lease.fill(at, part);
        at += part.len();
        worker.lane.set_argument(at as u64);
    }
}

/// Receives replies until the chunk is done: all of its items are delivered or stolen.
fn receive(
    worker: &mut Worker,
    running: &Running,
    reporter: &Reporter<'_>,
    spin_wait: Option<SpinWait<'_>>,
) -> Result<(), TransportError> {
    let lock = || running.lock().unwrap_or_else(PoisonError::into_inner);
    let collect_results = |worker: &mut Worker, all: bool, reset: bool| {
        let mut calls = Deferred::default();
        let outcome = match lock().as_mut() {
            Some(chunk) => chunk.collect_results(worker, reporter, all, &mut calls).inspect(|_| {
                chunk.is_sent = !all;
                if reset {
                    chunk.lane.reset_results();
                    chunk.read = 0;
                }
            }),
            None => Err(Corrupt),
        };
        reporter.fire(calls);
        outcome
    };
    let sequence = worker.sequence;
    // Whether results wait for a note that is on its way.
    let mut is_behind = false;
    let mut on_timeout = spin_wait.as_ref().map(|spin_wait| spin_wait.on_timeout);
    if spin_wait.is_some_and(|spin_wait| !worker.spin_for_reply(spin_wait.spin_for))
        && let Some(on_timeout) = on_timeout.take()
    {
        on_timeout();
    }
    loop {
        let reply = match worker.recv(true)? {
            Incoming::Reply(reply) => reply,
            Incoming::Note(head, note) => {
                take_note(worker, running, reporter, head, note);
                is_behind = is_behind && collect_results(worker, false, false)?;
                continue;
            }
        };
        match reply {
            Reply::Done { sequence: of } if of == sequence => {
                collect_results(worker, true, false)?;
                let is_complete = lock().as_ref().is_none_or(|chunk| chunk.batches.is_empty());
                return if is_complete { Ok(()) } else { Err(Corrupt.into()) };
            }
            Reply::Progress { sequence: of } if of == sequence => {
                is_behind = collect_results(worker, false, false)?;
            }
            Reply::LaneFull { sequence: of } if of == sequence => {
                collect_results(worker, true, true)?;
                if let Some(chunk) = lock().as_mut() {
                    chunk.set_sent();
                }
                worker.send(&Request::Resume)?;
            }
            other => return Err(TransportError::Malformed(format!("an unexpected {other:?}"))),
        }
        // This was not the final reply, but the first of several.
        if let Some(on_timeout) = on_timeout.take() {
            on_timeout();
        }
    }
}

/// Maximum characters of a type's name in an event.
const MAX_TYPE_NAME: usize = 256;

/// Hands what a task says to its job, the observers and the loggers.
fn take_note(
    worker: &Worker,
    running: &Running,
    reporter: &Reporter<'_>,
    head: NoteHead,
    (note, bytes): (Note, Vec<u8>),
) {
    let (slot, pid) = (worker.process.slot, worker.process.pid());
    let mut calls = Deferred::default();
    let mut logged = None;
    {
        let mut chunk = running.lock().unwrap_or_else(PoisonError::into_inner);
        // A thread that a task has left behind may speak when it is over, or in a later chunk.
        let chunk = chunk.as_mut().filter(|_| head.sequence == worker.sequence);
        let item = head.item.checked_sub(1);
        let place = chunk.and_then(|chunk| {
            let (job, number, attempt) = chunk.place_of(item?)?;
            Some((chunk, job, number, attempt))
        });
        let of_task =
            place.as_ref().map(|(_, job, number, attempt)| (job.offset + number, *attempt));
        // An initializer is no task, and nobody observes it.
        let of_task = of_task.filter(|_| reporter.observers.is_some());
        match (note, place) {
            (Note::Progress(progress), Some((_, job, number, attempt))) => {
                job.set_progress(number, progress, &mut calls);
                if reporter.is_observed {
                    let (id, Progress { done, total }) = (job.offset + number, progress);
                    calls.emit(EventKind::Progressed { slot, pid, id, attempt, done, total });
                }
            }
            (Note::Value { type_name }, Some((_, job, number, attempt))) => {
                if reporter.is_observed {
                    let (id, len) = (job.offset + number, bytes.len() as u64);
                    // The name is the worker's to choose, and many events may wait.
                    let of_type: String = type_name.chars().take(MAX_TYPE_NAME).collect();
                    calls.emit(EventKind::Emitted {
                        slot,
                        pid,
                        id,
                        attempt,
                        type_name: of_type,
                        bytes: len,
                    });
                }
                let worker = Some(worker.process.worker_ref());
                job.add_update(RawUpdate { number, worker, attempt, type_name, bytes }, &mut calls);
            }
            // Its task is over, and nobody waits for it.
            (Note::Progress(_) | Note::Value { .. }, None) => {}
            (Note::Record(record), place) => {
                if let Some((chunk, ..)) = place {
                    chunk.last_records.add(head.item, (*record).clone());
                }
                let (id, attempt) = of_task.map_or((None, 0), |(id, attempt)| (Some(id), attempt));
                logged = Some(EventKind::Logged { slot, pid, id, attempt, record: *record });
            }
        }
    }
    reporter.fire(calls);
    if let Some(event) = logged {
        worker.observers.log(event);
    }
}
