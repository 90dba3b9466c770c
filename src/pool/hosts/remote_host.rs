//! What one pool has sent to one other host and not got back. Whatever the host says about an item that it
//! does not have is [`Nonsense`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::engine::Engine;
use super::link::Link;
use super::wire::{self, Blob, ItemRange, ItemResults, ResultContent, ToAgent, WorkerStatus};
use crate::error::{DidRun, TaskErrorKind};
use crate::pool::call::context::Context;
use crate::pool::call::job::Job;
use crate::pool::call::outcome::{Content, Delivery, Failure, Provenance};
use crate::pool::drive::parcel::{Files, Parcel};
use crate::pool::drive::records::{self, Records};
use crate::pool::observe::events::Deferred;
use crate::pool::schedule::batch::Batch;
use crate::pool::schedule::state::PoolState;
use crate::worker_ref::{HostName, WorkerRef};

/// Why a result of another host is missing.
const NOT_SENT: &str =
    "it holds a handle or a file, which exist on its host only, or there was no memory for it";

/// A peer sent an invalid message.
#[derive(Debug)]
pub(super) struct Nonsense(pub(super) &'static str);

/// One pool's view of another host.
#[derive(Debug)]
pub(super) struct RemoteHost {
    pub(super) peer: usize,
    pub(super) name: HostName,
    pub(super) slots: Range<usize>,
    pub(super) phase: Phase,
    pub(super) flights: BTreeMap<u64, Flight>,
    /// Number of items that it has.
    pub(super) open: u64,
    /// Contexts that it has, by their number.
    pub(super) contexts: HashMap<u64, Arc<Context>>,
    /// One entry per unanswered request to return items: whether those items are cancelled.
    pub(super) stealing: VecDeque<bool>,
    /// Whether its workers fail to start. Then it gets no more items.
    pub(super) is_unfit: bool,
    /// The time of the last chunk to it or delivery from it.
    pub(super) moved: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    Closing,
    Closed,
    Lost,
}

/// A chunk that a host has.
#[derive(Debug)]
pub(super) struct Flight {
    /// The items that it has not answered.
    pub(super) parts: Vec<Batch>,
    /// The number of the first item of the chunk.
    pub(super) base: u64,
    pub(super) sent: Instant,
}

impl Flight {
    /// Removes items. Returns `None` if one of them isn't here.
    pub(super) fn cut(&mut self, first: u64, items: u32) -> Option<Batch> {
        let first = self.base.checked_add(first)?;
        let end = first.checked_add(items.into())?;
        let holds = |part: &Batch| part.first <= first && end <= part.first + u64::from(part.items);
        let at = self.parts.iter().position(holds)?;
        if items == 0 {
            return None;
        }
        let mut part = self.parts.swap_remove(at);
        if first > part.first {
            let front = part.split_front((first - part.first) as u32);
            self.parts.push(front);
        }
        if items < part.items {
            let front = part.split_front(items);
            self.parts.push(std::mem::replace(&mut part, front));
        }
        Some(part)
    }
}

impl RemoteHost {
    pub(super) fn new(peer: usize, name: HostName, slots: Range<usize>) -> Self {
        Self {
            peer,
            name,
            slots,
            phase: Phase::Open,
            flights: BTreeMap::new(),
            open: 0,
            contexts: HashMap::new(),
            stealing: VecDeque::new(),
            is_unfit: false,
            moved: Instant::now(),
        }
    }

    /// Notes the state of the host's workers.
    pub(super) fn note_workers(&self, link: &Link, workers: Vec<WorkerStatus>) {
        link.with_status(|status| {
            for (slot, told) in self.slots.clone().zip(workers) {
                let known = status.workers.iter_mut().find(|known| known.slot == slot);
                if let Some(known) = known {
                    known.pid = told.pid;
                    known.state = told.state;
                    known.restarts = told.restarts;
                    known.memory = told.memory;
                    known.cpu = told.cpu;
                }
            }
        });
    }

    pub(super) fn send(&self, engine: &mut impl Engine, message: &ToAgent) {
        match wire::encode(message) {
            Ok(frame) => engine.send(self.peer, frame),
            // Reached only when memory is short: messages are not nested.
            Err(error) => eprintln!("procpool: a message to {} was lost: {error}", self.name),
        }
    }

    /// Whether items failed because the host has no workers, and may run elsewhere. Then it gets no more.
    pub(super) fn has_failed_to_start(&mut self, results: &ItemResults) -> bool {
        let has_failed = matches!(
            &results.content,
            ResultContent::Failed {
                kind: TaskErrorKind::Initializer { .. },
                did_it_run: DidRun::No,
                ..
            }
        );
        let is_bound = || {
            let flight = self.flights.get(&results.range.chunk);
            let part = flight.and_then(|flight| flight.parts.first());
            part.is_some_and(|part| part.slot.is_some())
        };
        let moves = has_failed && !is_bound();
        self.is_unfit |= moves;
        moves
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    pub(super) fn cut(&mut self, range: ItemRange) -> Result<(Batch, Instant), Nonsense> {
        const UNKNOWN: Nonsense = Nonsense("it answered items that it doesn't have");
        let flight = self.flights.get_mut(&range.chunk).ok_or(UNKNOWN)?;
        let (batch, sent) = (flight.cut(range.first, range.items).ok_or(UNKNOWN)?, flight.sent);
        if flight.parts.is_empty() {
            self.flights.remove(&range.chunk);
        }
        Ok((batch, sent))
    }

    /// Returns the worker that the host names by its own slot and PID.
    pub(super) fn worker_ref(
        &self,
        worker: Option<(u32, u32)>,
    ) -> Result<Option<WorkerRef>, Nonsense> {
        let Some((slot, pid)) = worker else { return Ok(None) };
        let slot = self.slots.start + slot as usize;
        match self.slots.contains(&slot) {
            true => Ok(Some(WorkerRef { slot, pid, host: Some(self.name) })),
            false => Err(Nonsense("it names a slot that it doesn't have")),
        }
    }

    /// Returns the job of a chunk that is not answered, and the number of the chunk's first item there.
    pub(super) fn job_of(&self, chunk: u64) -> Option<(Arc<Job>, u64)> {
        let flight = self.flights.get(&chunk)?;
        Some((Arc::clone(&flight.parts.first()?.job), flight.base))
    }

    /// Delivers outcomes to the caller.
    pub(super) fn deliver(
        &mut self,
        shared: &PoolState,
        results: ItemResults,
        calls: &mut Deferred,
    ) -> Result<(), Nonsense> {
        let ItemResults { range, worker, attempt, queued, content } = results;
        let content = self.check(shared, range.items, content)?;
        let worker = self.worker_ref(worker)?;
        let (batch, sent) = self.cut(range)?;
        let queued = sent.saturating_duration_since(batch.queued).saturating_add(queued);
        let provenance = Provenance { worker, attempt, queued };
        let counters = &shared.counters;
        if let Some(worker) = worker {
            counters.slots[worker.slot].fetch_add(range.items.into(), Relaxed);
        }
        match content {
            Checked::Failed(failure) => batch.fail(failure, provenance, counters, calls),
            Checked::Records(records, summary) => {
                counters.done.fetch_add(summary.answers.into(), Relaxed);
                counters.failed.fetch_add((summary.items - summary.answers).into(), Relaxed);
                batch.job.cost.observe(summary.timed.into(), summary.nanos);
                let (first, items) = (batch.first, batch.items);
                let content = Content::Records(records);
                batch.job.deliver(Delivery { first, items, provenance, content }, calls);
            }
        }
        Ok(())
    }

    /// Checks outcomes before any of them is used.
    fn check(
        &self,
        shared: &PoolState,
        items: u32,
        content: ResultContent,
    ) -> Result<Checked, Nonsense> {
        const INVALID: Nonsense = Nonsense("its results are invalid");
        match content {
            ResultContent::Failed { kind, did_it_run, elapsed, output, progress } => {
                let output = output.0;
                Ok(Checked::Failed(Failure { kind, did_it_run, elapsed, output, progress }))
            }
            ResultContent::Records { bytes, regions, outputs } => {
                let summary = records::validate(&bytes.0).ok_or(INVALID)?;
                if summary.items != items || summary.passed as usize != regions.len() {
                    return Err(INVALID);
                }
                let parcel = |region: Option<Blob>| {
                    let lease = region.and_then(|blob| shared.regions.filled(&blob.0).ok());
                    lease.map_or(Parcel::Lost(NOT_SENT), |region| Parcel::Arrived {
                        region: Some(region),
                        files: Files::default(),
                    })
                };
                let parcels = regions.into_iter().map(parcel).collect();
                let outputs = outputs.into_iter().map(|output| output.0).collect();
                let records = Records::new(bytes.0.into(), parcels, outputs);
                Ok(Checked::Records(records, summary))
            }
        }
    }
}

enum Checked {
    Failed(Failure),
    Records(Records, records::Summary),
}
