//! A chunk on its way through a worker. [`Chunk`] is its state while it runs, shared by the thread that
//! drives the worker, by threads that steal items, and by the supervisor.
//!
//! Every item of a chunk is accounted for: it is delivered, returned as never started, or identified as the
//! one that was running when the worker was lost. [`exchange`](super::exchange) exchanges the frames.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use procpool_worker::bulk::RawBytes;
use procpool_worker::error::TransportError;
use procpool_worker::lane::{CAPACITY, ParentLane};
use procpool_worker::memcpy::Sink;
use procpool_worker::protocol::{Body, ChunkOptions, Request, SPAN_HEAD, Span};
use procpool_worker::seed;

use crate::error::TaskErrorKind;
use crate::os::observe;
use crate::pool::call::context::Context;
use crate::pool::call::job::Job;
use crate::pool::call::outcome;
use crate::pool::call::outcome::Content;
use crate::pool::call::outcome::Delivery;
use crate::pool::call::outcome::Failure;
use crate::pool::call::outcome::Provenance;
use crate::pool::drive::buffer::Buffer;
use crate::pool::drive::loss::LostChunk;
use crate::pool::drive::notes::LastRecords;
use crate::pool::drive::parcel::Parcel;
use crate::pool::drive::records::{self, Records, Summary};
use crate::pool::drive::regions::Lease;
use crate::pool::drive::report::{Corrupt, Reporter};
use crate::pool::observe::events::{Deferred, EventKind};
use crate::pool::process::worker::{KillReason, Process, RETIRE_GRACE, Worker};
use crate::pool::schedule::batch::{Batch, split_back};
use crate::pool::schedule::cost::CostEstimate;
use crate::pool::schedule::counters::Counters;

/// A chunk that a worker runs.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) process: Arc<Process>,
    pub(crate) lane: Arc<ParentLane>,
    /// Undelivered batches, in order.
    pub(super) batches: VecDeque<Batch>,
    /// Number of items, delivered ones included.
    pub(super) items: u32,
    pub(super) delivered: u32,
    /// Bytes of the lane's results read so far.
    pub(super) read: usize,
    pub(super) sent: Instant,
    /// Time limit of each item.
    pub(crate) limit: Option<Duration>,
    /// Started and committed items at the last check, and when they last changed.
    pub(super) seen: ((u32, u32), Instant),
    /// Whether the worker has work and has not replied.
    pub(super) is_sent: bool,
    /// Whether the worker exits after this chunk.
    pub(crate) is_last: bool,
    /// Number of items delivered when the worker was last sent work.
    pub(super) delivered_at_send: Option<u32>,
    /// The item running when the pool was suspended, and for how long.
    pub(super) suspended: (Option<u32>, Duration),
    /// How much of the captured output has been delivered, in bytes.
    pub(super) printed: u64,
    /// Log records of the running item.
    pub(super) last_records: LastRecords,
}

/// How long a worker may be silent while no item runs. A healthy worker takes microseconds; with a hundred
/// processes per CPU, a tenth of this limit was measured.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);

/// How much of a dead worker's output is kept, in bytes.
const LAST_OUTPUT: u64 = 64 << 10;

/// A slot's running chunk.
pub(crate) type Running = Mutex<Option<Chunk>>;

/// Returns the largest body sent inline in a frame. Larger bodies go through shared memory.
pub(crate) fn inline_limit(max_frame: usize) -> usize {
    // Above 32 KiB, the socket's two copies cost more than an existing region. The request before the body
    // takes a few bytes.
    max_frame.min(32 << 10) - 64
}

/// Largest body of a chunk of several items. If the results are as large, a lane holds them with the records
/// of each block.
pub(crate) const MAX_BODY: usize = CAPACITY - (8 << 10);

impl Chunk {
    /// Creates a chunk of at least one batch. All batches have the same time limit. From here on items can be
    /// stolen, although the frame has not been sent.
    pub(crate) fn new(worker: &Worker, batches: VecDeque<Batch>) -> Self {
        let now = Instant::now();
        let items = batches.iter().map(|batch| batch.items).sum();
        worker.lane.open_chunk(items, procpool_worker::sys::now());
        if let Some(capture) = &worker.process.capture {
            capture.clear();
        }
        let limit = batches.front().and_then(|batch| batch.job.options.timeout);
        Self {
            process: Arc::clone(&worker.process),
            lane: Arc::clone(&worker.lane),
            items,
            batches,
            delivered: 0,
            read: 0,
            sent: now,
            limit,
            seen: ((0, 0), now),
            is_sent: false,
            is_last: false,
            delivered_at_send: None,
            suspended: (None, Duration::ZERO),
            printed: 0,
            last_records: LastRecords::default(),
        }
    }

    pub(crate) fn items(&self) -> u32 {
        self.items
    }

    /// Returns the number of undelivered items.
    pub(crate) fn open(&self) -> u32 {
        self.items - self.delivered
    }

    /// Returns how many items are worth stealing for another worker. Items behind a slow one in the worker's
    /// block become stealable the next time.
    pub(crate) fn stealable(&self) -> u32 {
        if self.is_bound() {
            return 0;
        }
        let unstarted = self.lane.unclaimed();
        let nanos = self.batches.back().map_or(0, |batch| batch.job.cost.nanos());
        let running = procpool_worker::sys::now().saturating_sub(self.lane.block_start());
        if running >= CostEstimate::MIN_WORTH_A_WAKE {
            self.lane.request_unclaim();
        }
        let soon = u64::from(unstarted).saturating_mul(nanos) < CostEstimate::MIN_WORTH_A_WAKE;
        if unstarted == 0 || (soon && running < CostEstimate::MIN_WORTH_A_WAKE) {
            0
        } else {
            unstarted.div_ceil(2)
        }
    }

    /// Whether the chunk is bound to this worker, like its initializer.
    pub(super) fn is_bound(&self) -> bool {
        self.batches.back().is_some_and(|batch| batch.slot.is_some())
    }

    /// Steals up to `max` items that have not started, from the end.
    pub(crate) fn steal(&mut self, max: u32) -> Vec<Batch> {
        if self.is_bound() {
            return Vec::new();
        }
        let range = self.lane.steal(max.min(self.items - self.delivered));
        // A corrupted worker may have set the claim to any value.
        if range.end != self.items || range.start < self.delivered || range.is_empty() {
            return Vec::new();
        }
        self.items = range.start;
        split_back(&mut self.batches, range.end - range.start)
    }

    /// Returns the running item, as the worker reports it.
    pub(super) fn running(&self) -> Option<u32> {
        let (started, committed) = (self.lane.started(), self.lane.progress().items);
        (started > committed && started <= self.items).then(|| started - 1)
    }

    /// Excludes a pause from the time limits.
    pub(crate) fn exclude_pause(&mut self, pause: Duration) {
        let item = self.running();
        let before = if self.suspended.0 == item { self.suspended.1 } else { Duration::ZERO };
        self.suspended = (item, before + pause);
        self.seen.1 = Instant::now();
    }

    /// Returns how long the worker may be silent: with unstarted items, or after it has committed the last
    /// one.
    pub(crate) fn silence_limit(&self) -> Duration {
        self.limit.map_or(SILENCE, |limit| limit.min(SILENCE))
    }

    /// Marks the worker as having work. Its silence counts from the first time, or from the last delivery
    /// since: a lane that is emptied repeatedly without deliveries is no progress.
    pub(super) fn set_sent(&mut self) {
        self.is_sent = true;
        if self.delivered_at_send.replace(self.delivered) != Some(self.delivered) {
            self.seen.1 = Instant::now();
        }
    }

    /// Kills the worker if its item exceeds the time limit, or if it is silent while no item runs. Returns
    /// the batches that it won't start, and when to check again.
    pub(crate) fn enforce(&mut self) -> (Vec<Batch>, Option<Instant>) {
        let now = Instant::now();
        // Read in this order, committed items have started.
        let committed = self.lane.progress().items;
        let (state, before) = ((self.lane.started(), committed), self.seen.0);
        let is_sane = state.1 <= state.0 && state.0 <= self.items;
        // Only increases count as progress: a corrupted worker can write anything to its lane.
        if is_sane && state != before && state.0 >= before.0 && state.1 >= before.1 {
            self.seen = (state, now);
        }
        if let Some(item) = self.running().filter(|item| self.is_cancelled(*item)) {
            return self.enforce_cancel(item, now);
        }
        match (self.running(), self.limit) {
            (Some(item), Some(limit)) => self.enforce_limit(item, limit, now),
            (Some(_), None) => (Vec::new(), now.checked_add(SILENCE)),
            // Delays here, such as copying a large argument, are not the worker's.
            (None, _) if !self.is_sent => (Vec::new(), now.checked_add(self.silence_limit())),
            (None, _) => self.enforce_progress(now),
        }
    }

    /// Whether an item's call was cancelled.
    pub(super) fn is_cancelled(&self, item: u32) -> bool {
        self.batch_of(item).is_some_and(|(batch, _)| batch.job.cancelled.load(Relaxed))
    }

    /// Returns the batch of an undelivered item, and the item's position in it.
    fn batch_of(&self, item: u32) -> Option<(&Batch, u32)> {
        let mut position = item.checked_sub(self.delivered)?;
        for batch in &self.batches {
            match position.checked_sub(batch.items) {
                None => return Some((batch, position)),
                Some(behind) => position = behind,
            }
        }
        None
    }

    /// Returns the job of an undelivered item, its number there, and its attempt.
    pub(super) fn place_of(&self, item: u32) -> Option<(Arc<Job>, u64, u32)> {
        let (batch, position) = self.batch_of(item)?;
        Some((Arc::clone(&batch.job), batch.first + u64::from(position), batch.attempt))
    }

    /// Stops the worker, whose item was cancelled before it had started.
    pub(super) fn enforce_cancel(
        &mut self,
        item: u32,
        now: Instant,
    ) -> (Vec<Batch>, Option<Instant>) {
        let rest = self.steal(u32::MAX);
        if self.running() == Some(item) {
            self.process.terminate_gracefully(KillReason::Cancelled);
        }
        (rest, now.checked_add(SILENCE))
    }

    pub(super) fn enforce_limit(
        &mut self,
        item: u32,
        limit: Duration,
        now: Instant,
    ) -> (Vec<Batch>, Option<Instant>) {
        let begun = Duration::from_nanos(self.lane.block_start());
        let clock = Duration::from_nanos(procpool_worker::sys::now());
        // The worker's own start time is trusted only if it shortens the wait.
        let ran = clock.saturating_sub(begun).max(now - self.seen.1);
        let (suspended, pause) = self.suspended;
        let ran = if suspended == Some(item) { ran.saturating_sub(pause) } else { ran };
        if ran < limit {
            // The item may finish earlier, and the worker be silent afterwards.
            return (Vec::new(), now.checked_add((limit - ran).min(SILENCE)));
        }
        // Steals first, so that the worker can't start another item, which would be killed innocently.
        let rest = self.steal(u32::MAX);
        if self.running() == Some(item) {
            self.process.terminate_gracefully(KillReason::TimedOut(limit));
        }
        (rest, now.checked_add(limit))
    }

    /// Steals what a silent worker has not started. A worker that is stopped, or still silent after that, is
    /// killed: items that it has claimed and not started can't be recovered otherwise.
    pub(super) fn enforce_progress(&mut self, now: Instant) -> (Vec<Batch>, Option<Instant>) {
        let (quiet, silence_limit) = (now - self.seen.1, self.silence_limit());
        if self.is_last && self.seen.0.1 == self.items {
            // It has replied, and exits like a retired worker.
            if quiet >= RETIRE_GRACE {
                self.process.kill(KillReason::Retired);
            }
            return (Vec::new(), now.checked_add(RETIRE_GRACE.saturating_sub(quiet).max(SILENCE)));
        }
        if quiet < silence_limit {
            return (Vec::new(), now.checked_add(silence_limit - quiet));
        }
        let rest = self.steal(u32::MAX);
        if quiet >= silence_limit + SILENCE || observe::is_stopped(self.process.pid()) {
            self.process.kill(KillReason::Silent);
        }
        (rest, now.checked_add(SILENCE))
    }

    /// Kills the worker, which exceeds its memory limit. Returns the batches that it won't start.
    pub(crate) fn end_for_memory(&mut self) -> Vec<Batch> {
        let rest = self.steal(u32::MAX);
        self.process.kill(KillReason::OutOfMemory);
        rest
    }

    /// Kills the worker if its running item is one that `is_target` matches. Returns the batches that it
    /// won't start.
    pub(crate) fn cancel(&mut self, is_target: impl Fn(&Batch) -> bool) -> Vec<Batch> {
        if !self.batches.iter().any(&is_target) {
            return Vec::new();
        }
        let rest = self.steal(u32::MAX);
        // Items claimed but not started are killed when they start, if they do.
        self.lane.request_unclaim();
        let Some(item) = self.running() else { return rest };
        let mut position = self.delivered;
        for batch in &self.batches {
            if (position..position + batch.items).contains(&item) && is_target(batch) {
                self.process.terminate_gracefully(KillReason::Cancelled);
            }
            position += batch.items;
        }
        rest
    }

    /// Returns the items' shared context. A job with a context doesn't share chunks.
    pub(super) fn context(&self) -> Option<&Arc<Context>> {
        self.batches.front().and_then(|batch| batch.job.context.as_ref())
    }

    /// Builds the frame; `region` holds a body that is too large for it. Returns whether the region is new to
    /// the worker.
    pub(super) fn encode(
        &self,
        worker: &mut Worker,
        region: Option<&Lease>,
        is_observed: bool,
    ) -> Result<bool, TransportError> {
        let elements = self.batches.front().and_then(Batch::elements);
        let slice = region.map(|lease| worker.mapped.reference(lease));
        let body = match slice {
            Some(slice) if elements.is_some() => Body::RawBytes(slice),
            Some(slice) => Body::Region(slice),
            None => Body::Frame,
        };
        let is_awaited = |batch: &Batch| !batch.job.collects_all.load(Relaxed);
        let options = ChunkOptions {
            sequence: worker.sequence,
            limited: self.limit.is_some(),
            prompt: is_observed || self.batches.iter().any(is_awaited),
            context: self.context().map(|context| context.id),
        };
        let attached = worker.attach(self.batches.iter().map(Batch::attachments))?;
        worker.make(&Request::Chunk { attached, body, options })?;
        if region.is_none() || elements.is_some() {
            self.put_spans(&mut worker.frame);
        }
        Ok(slice.is_some_and(|slice| slice.is_new))
    }

    /// Writes a body that is too large for a frame to a region.
    pub(super) fn body(&self, worker: &Worker, limit: usize) -> io::Result<Option<Lease>> {
        let size: usize =
            self.batches.iter().map(|batch| batch.arguments().len() + SPAN_HEAD).sum();
        // Such a batch is always alone, because it fits in no frame.
        if let Some(elements) = self.batches.front().and_then(Batch::elements) {
            let mut lease = worker.mapped.allocate(elements.len())?;
            if self.elements_to_stream().is_some() {
                worker.lane.set_argument(0);
                lease.announce(elements.len());
            } else {
                lease.put_slice(elements);
                worker.lane.set_argument(elements.len() as u64);
            }
            return Ok(Some(lease));
        }
        if size <= limit {
            return Ok(None);
        }
        let mut lease = worker.mapped.allocate(size)?;
        self.put_spans(&mut lease);
        Ok(Some(lease))
    }

    /// Returns the elements of the only argument, if they are copied while the worker copies them on. Not if its time
    /// is limited: the worker's time would include this process's.
    pub(super) fn elements_to_stream(&self) -> Option<Arc<RawBytes>> {
        const MIN: usize = 1 << 20;
        let elements = self.batches.front().and_then(Batch::shared_elements)?;
        (elements.as_bytes().len() >= MIN && self.limit.is_none()).then(|| Arc::clone(elements))
    }

    /// Writes the body.
    pub(super) fn put_spans(&self, body: &mut impl Sink) {
        let mut at = 0;
        while let Some(first) = self.batches.get(at) {
            // A function that can't be called was rejected on submission.
            let (Ok(call), width) = (first.job.call, first.width) else { break };
            let (seed, attempt) = (first.seed(), first.attempt);
            let mut span = Span { function: call, items: 0, width, bytes: 0, seed, attempt };
            // Consecutive single calls of one function are sent as one span.
            let start = at;
            for batch in self.batches.range(start..) {
                if (batch.job.call, batch.width, batch.attempt) != (Ok(call), width, attempt)
                    || batch.seed() != seed::advance(span.seed, span.items.into())
                {
                    break;
                }
                span.items += batch.items;
                span.bytes += batch.arguments().len() as u64;
                at += 1;
            }
            body.put_slice(&span.head());
            self.batches.range(start..at).for_each(|batch| body.put_slice(batch.arguments()));
        }
    }

    /// Delivers the committed results. With `all`, also items without a recorded time; without, only if all notes
    /// of these items were received: returns whether some are missing. Adds wakers and callbacks to `calls`, because
    /// the chunk's lock is held here.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if the lane's content is invalid.
    pub(super) fn collect_results(
        &mut self,
        worker: &mut Worker,
        reporter: &Reporter<'_>,
        all: bool,
        calls: &mut Deferred,
    ) -> Result<bool, Corrupt> {
        let progress = self.lane.progress();
        if !all && worker.notes < self.lane.notes() {
            // A caller that has a result has had what its task said before.
            return Ok(true);
        }
        let bytes = progress.bytes as usize;
        if progress.items < self.delivered
            || progress.items > self.items
            || bytes < self.read
            || bytes > CAPACITY
        {
            return Err(Corrupt);
        }
        if let Some(summary) = self.write_in_place(bytes, progress.items, all, reporter) {
            if summary.items > 0 {
                self.read = bytes;
                self.count(&summary, 0, reporter.counters);
                self.distribute(None, summary.items, calls);
            }
            return Ok(false);
        }
        let mut buffer = Buffer::with_capacity(bytes - self.read);
        self.lane.copy_results(self.read..bytes, &mut buffer);
        let summary = records::validate(&buffer).ok_or(Corrupt)?;
        if summary.items != progress.items - self.delivered {
            return Err(Corrupt);
        }
        if !all && summary.timed < summary.items {
            // In the middle of a block: its time follows soon.
            return Ok(false);
        }
        if summary.passed > 0 && !all && !worker.has_parcels(&buffer) {
            // They were passed after the reply that is being handled, and a reply that comes soon follows.
            return Ok(false);
        }
        let parcels = match summary.passed {
            0 => VecDeque::new(),
            _ => worker.take_parcels(&buffer).ok_or(Corrupt)?,
        };
        let outputs = self.outputs(&buffer);
        self.read = bytes;
        let in_regions: usize = parcels.iter().map(Parcel::len).sum();
        self.count(&summary, buffer.len() + in_regions, reporter.counters);
        if reporter.is_observed {
            self.emit_finished(&buffer, calls);
        }
        self.distribute(Some(Records::new(buffer, parcels, outputs)), summary.items, calls);
        Ok(false)
    }

    /// Counts delivered items, whose results took so many bytes.
    fn count(&self, summary: &Summary, bytes: usize, counters: &Counters) {
        counters.done.fetch_add(summary.answers.into(), Relaxed);
        counters.failed.fetch_add((summary.items - summary.answers).into(), Relaxed);
        counters.slots[self.process.slot].fetch_add(summary.items.into(), Relaxed);
        counters.run.add(summary.timed.into(), summary.nanos);
        counters.result_bytes.fetch_add(bytes as u64, Relaxed);
        if let Some(batch) = self.batches.front() {
            // If several functions share a chunk, it is unknown which of them took the time.
            let is_one = self.batches.iter().all(|other| other.job.call == batch.job.call);
            if is_one || summary.items == 1 {
                batch.job.cost.observe(summary.timed.into(), summary.nanos);
            }
        }
    }

    /// Returns the event of sending the chunk.
    pub(crate) fn assignment(&self) -> Option<EventKind> {
        let first = self.batches.front()?;
        Some(EventKind::Assigned {
            slot: self.process.slot,
            pid: self.process.pid(),
            id: first.job.offset + first.first,
            tasks: self.items - self.delivered,
            label: first.job.options.label.as_deref().map(str::to_owned),
        })
    }

    /// Emits an event for each item in these records.
    pub(super) fn emit_finished(&self, records: &[u8], calls: &mut Deferred) {
        let mut records = Records::new(records.into(), VecDeque::new(), VecDeque::new());
        for batch in &self.batches {
            for id in (batch.job.offset + batch.first..).take(batch.items as usize) {
                let Some(raw) = records.next() else { return };
                let elapsed = raw.elapsed;
                let error = outcome::failure(raw).map(|(kind, _)| kind.to_string());
                let (slot, pid, attempt) = (self.process.slot, self.process.pid(), batch.attempt);
                calls.emit(EventKind::Finished { slot, pid, id, attempt, elapsed, error });
            }
        }
    }

    /// Reads the captured output of the items in these records.
    pub(super) fn outputs(&mut self, records: &[u8]) -> VecDeque<Vec<u8>> {
        let Some(capture) = &self.process.capture else { return VecDeque::new() };
        let mut outputs = VecDeque::new();
        for end in records::output_ends(records) {
            outputs.push_back(capture.read(self.printed..end));
            self.printed = self.printed.max(end);
        }
        outputs
    }

    /// Delivers the first items. Without records, their values are in the job's destination.
    pub(super) fn distribute(
        &mut self,
        mut records: Option<Records>,
        mut items: u32,
        calls: &mut Deferred,
    ) {
        self.delivered += items;
        while items > 0 {
            let Some(mut batch) = self.batches.pop_front() else { return };
            if batch.items > items {
                let front = batch.split_front(items);
                self.batches.push_front(std::mem::replace(&mut batch, front));
            }
            let content = match &mut records {
                None => Content::Written,
                Some(records) if batch.items == items => Content::Records(std::mem::take(records)),
                Some(records) => Content::Records(records.split_front(batch.items)),
            };
            items -= batch.items;
            let provenance = self.provenance(&batch);
            let (first, count) = (batch.first, batch.items);
            batch.job.deliver(Delivery { first, items: count, provenance, content }, calls);
        }
    }

    pub(super) fn provenance(&self, batch: &Batch) -> Provenance {
        batch.provenance(self.process.worker_ref(), self.sent)
    }

    /// Fails the remaining batches, none of which was sent.
    pub(super) fn reject(
        &mut self,
        kind: &TaskErrorKind,
        counters: &Counters,
        calls: &mut Deferred,
    ) {
        for batch in std::mem::take(&mut self.batches) {
            let failure = Failure::unstarted(kind.clone());
            batch.fail(failure, self.provenance(&batch), counters, calls);
        }
        self.items = self.delivered;
    }

    /// Accounts for the remaining items after the worker is lost. The content of a corrupt lane is ignored:
    /// then the first remaining item is reported as the running one.
    pub(super) fn into_loss(mut self, is_sane: bool) -> LostChunk {
        let begun = !is_sane || self.running() == Some(self.delivered);
        let begun = begun && !self.batches.is_empty();
        let running_item = begun.then(|| match self.batches.front_mut() {
            Some(first) if first.items > 1 => Some(first.split_front(1)),
            _ => self.batches.pop_front(),
        });
        let ran = self.process.ended().saturating_sub(self.lane.block_start());
        let elapsed = Duration::from_nanos(ran).min(self.sent.elapsed());
        let output = self.process.capture.as_ref().map_or_else(Vec::new, |capture| {
            let end = capture.len();
            capture.read(self.printed.max(end.saturating_sub(LAST_OUTPUT))..end)
        });
        let note = self.lane.abort_reason();
        let item = self.delivered.saturating_add(1);
        let progress = if begun { self.lane.task_progress(item) } else { None };
        let records = if begun { self.last_records.take(item) } else { Vec::new() };
        let (running_item, rest) = (running_item.flatten(), self.batches.into());
        LostChunk { running_item, rest, sent: self.sent, elapsed, output, note, progress, records }
    }
}
