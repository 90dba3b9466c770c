//! A driver's next chunk, from the queue or stolen from another worker, and the handling of finished chunks.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::protocol::SPAN_HEAD;

use super::batch::Batch;
use super::slots::SlotPoll;
use super::state::{DriverSlot, PoolState, RunTicket, SchedulerState, Step};
use crate::error::{DidRun, TaskErrorKind};
use crate::pool::call::outcome::Failure;
use crate::pool::drive::chunk::{self, Chunk};
use crate::pool::drive::exchange::{self, SpinWait};
use crate::pool::drive::loss::LostChunk;
use crate::pool::drive::regions::Regions;
use crate::pool::observe::events::EventKind;
use crate::pool::process::worker::Worker;

/// Consecutive workers that may die on a batch before they start any of its items.
const MAX_LOSSES: u32 = 8;

/// How often an idle driver checks for stragglers.
const STRAGGLER_POLL: Duration = Duration::from_millis(1);

/// Maximum number of single calls in a chunk.
const MAX_BATCHES: usize = 4096;

impl PoolState {
    /// Blocks until a slot's driver has something to do.
    pub(crate) fn next_step(&self, slot: usize) -> Step {
        let mut central = self.central();
        loop {
            match self.poll(&mut central, slot) {
                Ok(step) => return step,
                Err(is_idle) => central = self.sleep(central, slot, is_idle),
            }
        }
    }

    /// Returns the next step of a slot's driver; otherwise whether its worker is idle.
    pub(super) fn poll(&self, central: &mut SchedulerState, slot: usize) -> Result<Step, bool> {
        let has_work = central.has_work();
        match central.slots.poll(slot, has_work) {
            SlotPoll::PendingWorker(pending) => {
                self.cancel_needless_starts(central);
                Ok(Step::Handshake(pending))
            }
            SlotPoll::End(worker) => Ok(Step::Quit(worker)),
            SlotPoll::Nothing => Err(false),
            SlotPoll::Idle(worker) => {
                let allowed = self.allowance(worker);
                let batches = self.find_work(central, slot, allowed);
                if !batches.is_empty()
                    && let Some(worker) = central.slots.check_out(slot)
                {
                    central.watcher.take_if(|watcher| *watcher == slot);
                    let ticket = self.start_chunk(central, slot, &worker, batches, None);
                    return Ok(Step::Run { worker, ticket });
                }
                match central.slots.park_surplus(slot) {
                    Some(worker) => Ok(Step::Retire(worker)),
                    None => Err(true),
                }
            }
        }
    }

    /// Takes batches for a driver with an idle worker: from the queue, or stolen from another worker.
    fn find_work(
        &self,
        central: &mut SchedulerState,
        slot: usize,
        allowed: u32,
    ) -> VecDeque<Batch> {
        let is_watcher = central.watcher == Some(slot);
        let is_spreading = central.is_spreading;
        let is_bound = !central.by_slot[slot].own.is_empty();
        let is_free = !central.slots.is_full() && !central.slots.is_surplus(slot);
        if !is_bound && !(is_free && (is_spreading || central.wants_worker())) {
            return VecDeque::new();
        }
        // Leaves an item for each driver that is waking up.
        let coming = central.slots.woken() as u64;
        central.is_spreading &= coming > 0;
        let unclaimed = central.queued - if is_spreading { coming.min(central.queued) } else { 0 };
        let most = allowed.min(u32::try_from(unclaimed).unwrap_or(u32::MAX));
        let batches = self.next_batches(central, slot, most);
        if batches.is_empty() && (is_watcher || central.watcher.is_none()) {
            return self.steal(central, allowed).into();
        }
        batches
    }

    /// Sleeps until woken. One idle driver polls meanwhile for stragglers, and for work left to workers that
    /// did not return for it.
    fn sleep<'a>(
        &self,
        mut central: MutexGuard<'a, SchedulerState>,
        slot: usize,
        is_idle: bool,
    ) -> MutexGuard<'a, SchedulerState> {
        let wakeup = &self.slots[slot].wakeup;
        let is_needed = !central.slots.is_full()
            && (!central.multi_item.is_empty() || !central.queue.is_empty());
        if is_idle && is_needed && central.watcher.is_none_or(|other| other == slot) {
            central.watcher = Some(slot);
            let waited = wakeup
                .wait_timeout(central, STRAGGLER_POLL)
                .unwrap_or_else(PoisonError::into_inner);
            central = waited.0;
            if waited.1.timed_out() && central.watcher == Some(slot) {
                let has_work = !central.queue.is_empty();
                central.limiter.tick(has_work);
            }
            return central;
        }
        let was_watcher = central.watcher.take_if(|watcher| *watcher == slot).is_some();
        if was_watcher && is_needed {
            self.wake_for_queue(&mut central);
        }
        wakeup.wait(central).unwrap_or_else(PoisonError::into_inner)
    }

    /// Steals items from the worker with the most unclaimed ones.
    pub(super) fn steal(&self, central: &SchedulerState, allowed: u32) -> Vec<Batch> {
        let stealable = |slot: &DriverSlot| {
            let running = slot.running.try_lock().ok()?;
            running.as_ref().map(Chunk::stealable).filter(|stealable| *stealable > 0)
        };
        let multi_item = central.multi_item.iter().map(|slot| &self.slots[*slot]);
        let most = multi_item.filter_map(|slot| Some((stealable(slot)?, slot)));
        let Some((stealable, running_item)) = most.max_by_key(|(stealable, _)| *stealable) else {
            return Vec::new();
        };
        let mut running = running_item.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_mut().map_or_else(Vec::new, |chunk| chunk.steal(stealable.min(allowed)))
    }

    /// Returns how many more tasks a worker may run.
    fn allowance(&self, worker: &Worker) -> u32 {
        let left = self.config.max_tasks.map_or(u64::MAX, |most| most - worker.tasks.min(most));
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// Takes the batches of the next chunk: one bound to the slot, or from the front of the queue.
    fn next_batches(
        &self,
        central: &mut SchedulerState,
        slot: usize,
        allowed: u32,
    ) -> VecDeque<Batch> {
        if let Some(own) = central.by_slot[slot].own.pop_front() {
            central.queued -= u64::from(own.items);
            return VecDeque::from([own]);
        }
        let mut chunk: VecDeque<Batch> = VecDeque::new();
        let (mut items, mut nanos, mut bytes) = (0u32, 0, 0);
        // The queue is divided evenly, so that all workers finish at about the same time.
        let target_workers = match central.is_short_lived() {
            true => central.limiter.limit().min(self.most_running()),
            false => self.most_running(),
        };
        let share = central.queued.div_ceil(target_workers as u64);
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        while let Some(first) = central.queue.front() {
            let job = &first.job;
            let is_other = chunk.front().is_some_and(|front| {
                !front.job.can_share_chunk(job)
                    || first.must_be_sent_alone()
                    || front.must_be_sent_alone()
            });
            let size = match job.options.chunk_size {
                Some(size) => size,
                None => job.chunk().min(share.max(job.cost.worth_a_wake())),
            };
            let wanted = size.min(allowed).saturating_sub(items).min(first.items);
            let is_long = job.options.chunk_size.is_none() && nanos >= job.target_duration();
            if is_other || wanted == 0 || is_long || chunk.len() >= MAX_BATCHES {
                break;
            }
            let free = chunk::MAX_BODY.saturating_sub(bytes + SPAN_HEAD);
            let fitting = match first.fitting(wanted, free) {
                // A larger item is sent alone.
                0 if chunk.is_empty() => 1,
                0 => break,
                fitting => fitting,
            };
            let cost = job.cost.nanos();
            let Some(batch) = central.queue.pop(fitting) else { break };
            central.queued -= u64::from(batch.items);
            items += batch.items;
            nanos += u64::from(batch.items) * cost;
            bytes += batch.arguments().len() + SPAN_HEAD;
            chunk.push_back(batch);
        }
        chunk
    }

    /// Makes `batches` the slot's chunk. While a caller spins for it (`spin_for`), no driver needs to watch
    /// for it to become a straggler.
    pub(super) fn start_chunk(
        &self,
        central: &mut SchedulerState,
        slot: usize,
        worker: &Worker,
        batches: VecDeque<Batch>,
        spin_for: Option<Duration>,
    ) -> RunTicket {
        let is_short_lived = batches.front().is_some_and(|batch| batch.job.cost.is_short_lived());
        let period = is_short_lived.then(|| central.limiter.begin());
        worker.process.set_used();
        self.note_wait(&batches);
        let mut chunk = Chunk::new(worker, batches);
        chunk.is_last = self.is_of_one_process();
        let is_multi_item = chunk.items() > 1;
        if is_multi_item && spin_for.is_none() {
            central.multi_item.push(slot);
        }
        if !central.queue.is_empty() {
            self.wake_for_queue(central);
        } else if !central.multi_item.is_empty() {
            self.ensure_watcher(central);
        }
        let check_at = Instant::now() + chunk.silence_limit();
        *self.running(slot) = Some(chunk);
        self.supervisor.schedule_check(check_at);
        RunTicket { is_multi_item, period, spin_for }
    }

    /// Counts how long these batches were in the queue, and gives back their places there.
    fn note_wait(&self, batches: &VecDeque<Batch>) {
        let now = Instant::now();
        // Single calls in one chunk have waited about as long, so they are counted together.
        let (mut items, mut nanos) = (0, 0);
        for batch in batches {
            let waited = now.saturating_duration_since(batch.queued).as_nanos() as u64;
            items += u64::from(batch.items);
            nanos += waited.saturating_mul(batch.items.into());
            batch.job.leave_queue();
        }
        self.counters.wait.add(items, nanos);
    }

    /// Runs the slot's [running](super::state::DriverSlot::running) chunk and checks the worker back in.
    pub(crate) fn run(&self, slot: usize, mut worker: Worker, ticket: RunTicket) {
        let running = &self.slots[slot].running;
        self.admission.wake();
        self.emit_assigned(slot);
        let observers = &self.config.observers;
        let limit = self.inline_limit;
        let on_timeout = || {
            if ticket.is_multi_item {
                let mut central = self.central();
                central.multi_item.push(slot);
                self.ensure_watcher(&mut central);
            }
        };
        let spin_wait =
            ticket.spin_for.map(|spin_for| SpinWait { spin_for, on_timeout: &on_timeout });
        let counters = &self.counters;
        let outcome =
            exchange::run(&mut worker, running, limit, counters, Some(observers), spin_wait);
        self.finish_run(slot, worker, ticket, outcome);
    }

    /// Checks a worker back in after a chunk, or handles its loss.
    pub(super) fn finish_run(
        &self,
        slot: usize,
        mut worker: Worker,
        ticket: RunTicket,
        outcome: Result<(), Box<LostChunk>>,
    ) {
        let outcome = outcome.map_err(|loss| self.on_worker_lost(&worker, *loss));
        if self.regions.have_returned()
            && let Some(at) = Regions::check_at()
        {
            self.supervisor.schedule_check(at);
        }
        let mut central = self.central();
        central.end(slot, ticket);
        let rejected = match outcome {
            Ok(()) => {
                let is_spent = self.config.max_tasks.is_some_and(|most| worker.tasks >= most);
                worker.drop_contexts();
                let has_work = central.has_work();
                let actions =
                    central.slots.check_in(slot, worker, is_spent, has_work, Instant::now());
                if !central.queue.is_empty() && !central.slots.is_idle(slot) {
                    self.wake_for_queue(&mut central);
                }
                self.cancel_needless_starts(&central);
                drop(central);
                self.apply(actions);
                return;
            }
            Err(again) => self.requeue(&mut central, again),
        };
        let has_work = central.has_work();
        let actions = central.slots.lost(slot, has_work);
        if !central.queue.is_empty() {
            self.wake_for_queue(&mut central);
        }
        self.cancel_needless_starts(&central);
        drop(central);
        self.apply(actions);
        rejected.iter().for_each(|batch| self.reject(batch));
    }

    pub(super) fn emit_assigned(&self, slot: usize) {
        if !self.config.observers.is_enabled() {
            return;
        }
        let kind = self.running(slot).as_ref().and_then(Chunk::assignment);
        if let Some(kind) = kind {
            self.config.observers.emit(|| kind);
        }
    }

    /// Retries or fails the item that was running on a lost worker. Returns the batches to requeue.
    fn on_worker_lost(&self, worker: &Worker, mut loss: LostChunk) -> Vec<Batch> {
        let is_terminated = self.is_terminated();
        let process = &worker.process;
        let provenance = |batch: &Batch, sent| batch.provenance(process.worker_ref(), sent);
        let mut again = Vec::new();
        let most_losses = if self.config.replaces { MAX_LOSSES } else { 0 };
        if let Some(mut batch) = loss.running_item.take() {
            let kind = match loss.error_kind(process) {
                TaskErrorKind::Died { .. } if is_terminated => TaskErrorKind::Closed,
                kind => kind,
            };
            let retries = batch.job.options.retries.unwrap_or(0);
            let may_retry = !matches!(kind, TaskErrorKind::Cancelled | TaskErrorKind::Closed);
            if may_retry && batch.attempt <= retries && !batch.job.cancelled.load(Relaxed) {
                self.config.observers.emit(|| EventKind::Retried {
                    slot: process.slot,
                    pid: process.pid(),
                    id: batch.job.offset + batch.first,
                    attempt: batch.attempt,
                    elapsed: loss.elapsed,
                    error: kind.to_string(),
                });
                batch.attempt += 1;
                self.counters.retried.fetch_add(1, Relaxed);
                again.push(batch);
            } else {
                let provenance = provenance(&batch, loss.sent);
                self.config.observers.emit(|| EventKind::Finished {
                    slot: process.slot,
                    pid: process.pid(),
                    id: batch.job.offset + batch.first,
                    attempt: provenance.attempt,
                    elapsed: loss.elapsed,
                    error: Some(kind.to_string()),
                });
                let (elapsed, output) = (loss.elapsed, std::mem::take(&mut loss.output));
                let progress = loss.progress;
                let failure =
                    Failure { kind, did_it_run: DidRun::Maybe, elapsed, output, progress };
                self.fail(&batch, failure, provenance);
            }
        } else if let Some(first) = loss.rest.first_mut() {
            first.losses += 1;
        }
        again.extend(std::mem::take(&mut loss.rest));
        again.retain(|batch| {
            let kind = if is_terminated {
                TaskErrorKind::Closed
            } else if batch.job.cancelled.load(Relaxed) {
                TaskErrorKind::Cancelled
            } else if batch.losses > most_losses {
                loss.error_kind(process)
            } else {
                return true;
            };
            self.fail(batch, Failure::unstarted(kind), provenance(batch, loss.sent));
            false
        });
        again
    }
}
