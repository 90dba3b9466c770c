//! Scheduling for the other hosts of a pool: items that they take from the queue, and items that they return.
//!
//! A host keeps little more work than its workers run. What it has when it is lost may have run, so it uses
//! up an attempt; and an idle worker elsewhere can't take it without asking.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use super::batch::Batch;
use super::cost::CostEstimate;
use super::slots::{Phase, Wake};
use super::state::{PoolState, SchedulerState};
use crate::error::TaskErrorKind;
use crate::pool::call::outcome::{Failure, Provenance};

/// How much work a host has waiting for each of its workers, in nanoseconds. A message and its answer take a
/// tenth of a millisecond, and a host that is busy otherwise may answer some milliseconds late.
const AHEAD: u64 = 5_000_000;

/// Maximum number of items that wait for each worker of a host: about what takes the time above.
const MOST_ITEMS: u64 = 1 << 16;

/// Maximum bytes of arguments taken at once.
const MOST_BYTES: usize = 4 << 20;

impl PoolState {
    /// Takes work for a host that has the workers of `slots`, and `open` items.
    pub(crate) fn take_for_host(&self, slots: Range<usize>, open: u64) -> Vec<Batch> {
        let mut central = self.central();
        let mut taken = central.take_bound(slots.clone());
        let workers = slots.len() as u64;
        if !central.queue.is_empty() {
            self.take_share(&mut central, workers, open, &mut taken);
        } else if taken.is_empty() && open < workers {
            let most = u32::try_from(workers - open).unwrap_or(u32::MAX);
            taken = self.steal(&central, most);
        }
        central.remote += taken.iter().map(|batch| u64::from(batch.items)).sum::<u64>();
        drop(central);
        self.admission.wake();
        taken
    }

    /// Takes what is bound to the slots of a lost host.
    pub(crate) fn take_bound(&self, slots: Range<usize>) -> Vec<Batch> {
        let mut central = self.central();
        let taken = central.take_bound(slots);
        if !taken.is_empty() && central.is_over() {
            self.wake(Wake::All);
        }
        taken
    }

    /// No manager serves the other hosts any more: what is bound to them, now or later, fails.
    pub(crate) fn hosts_ended(&self) {
        let mut central = self.central();
        central.has_hosts = false;
        let bound = central.take_bound(self.slots.count()..self.config.workers);
        drop(central);
        bound.iter().for_each(|batch| self.reject(batch));
    }

    /// Takes a host's share of the queue, as far as its workers need it soon.
    fn take_share(
        &self,
        central: &mut SchedulerState,
        workers: u64,
        open: u64,
        taken: &mut Vec<Batch>,
    ) {
        let Some(first) = central.queue.front() else { return };
        // Leaves an item for each driver that is waking up.
        let unclaimed = central.queued.saturating_sub(central.slots.woken() as u64);
        let cost = first.job.cost.nanos();
        let is_done_soon =
            cost > 0 && central.queued.saturating_mul(cost) < CostEstimate::MIN_WORTH_A_WAKE;
        if is_done_soon && (central.slots.has_idle() || central.slots.woken() > 0) {
            return;
        }
        let waiting = AHEAD.checked_div(cost).unwrap_or(0).min(MOST_ITEMS);
        let each = (1 + waiting).max(first.job.options.chunk_size.unwrap_or(1).into());
        let target = workers * each;
        let fair = ((unclaimed + open) * workers).div_ceil(self.config.workers as u64);
        // A quarter at once, so that messages are worth sending.
        if open > target - target / 4 {
            return;
        }
        // An idle worker gets an item, whatever is fair.
        let mut wanted = target.min(fair.max(workers)).saturating_sub(open).min(unclaimed);
        if let Some(size) = first.job.options.chunk_size {
            wanted = wanted.next_multiple_of(size.into());
        }
        let mut bytes = 0;
        while wanted > 0 && bytes < MOST_BYTES {
            let most = u32::try_from(wanted).unwrap_or(u32::MAX);
            let Some(batch) = central.queue.pop(most) else { break };
            central.queued -= u64::from(batch.items);
            wanted -= u64::from(batch.items);
            bytes += batch.arguments().len();
            batch.job.leave_queue();
            taken.push(batch);
        }
    }

    /// Takes up to `most` items that have not started, for another host.
    pub(crate) fn give_back(&self, most: u32) -> Vec<Batch> {
        let mut central = self.central();
        let mut taken = central.queue.split_back(most);
        let count = |batches: &[Batch]| batches.iter().map(|batch| batch.items).sum::<u32>();
        central.queued -= u64::from(count(&taken));
        for slot in 0..self.slots.count() {
            let left = most - count(&taken);
            if left == 0 {
                break;
            }
            let mut running = self.running(slot);
            taken.extend(running.as_mut().into_iter().flat_map(|chunk| chunk.steal(left)));
        }
        taken
    }

    /// Items that a host had are settled.
    pub(crate) fn settled_elsewhere(&self, items: u64) {
        let mut central = self.central();
        central.remote -= items;
        if central.remote == 0 && central.is_over() {
            self.wake(Wake::All);
        }
    }

    /// Requeues items that a host had and won't run.
    pub(crate) fn requeue_from_host(&self, batches: Vec<Batch>) {
        let mut central = self.central();
        central.remote -= batches.iter().map(|batch| u64::from(batch.items)).sum::<u64>();
        // A call that was cancelled since has not found them in the queue.
        let (cancelled, batches): (Vec<_>, Vec<_>) =
            batches.into_iter().partition(|batch| batch.job.cancelled.load(Relaxed));
        let rejected = self.requeue(&mut central, batches);
        if central.is_over() {
            self.wake(Wake::All);
        }
        drop(central);
        rejected.iter().for_each(|batch| self.reject(batch));
        for batch in cancelled {
            let failure = Failure::unstarted(TaskErrorKind::Cancelled);
            self.fail(&batch, failure, Provenance::NONE);
        }
    }

    /// Returns whether the manager of the other hosts has work for this pool.
    pub(crate) fn has_work_for_hosts(&self, are_busy: bool) -> bool {
        let central = self.central();
        let is_bound =
            || central.by_slot[self.slots.count()..].iter().any(|queue| !queue.own.is_empty());
        central.is_over() || is_bound() || (!are_busy && !central.queue.is_empty())
    }

    /// Returns whether a worker of this host is idle.
    pub(crate) fn has_idle_worker(&self) -> bool {
        let central = self.central();
        !central.has_queued() && central.slots.has_idle()
    }

    /// Whether the other hosts may close their pools; and if so, whether they must kill what runs.
    pub(crate) fn hosts_may_close(&self) -> Option<bool> {
        let central = self.central();
        let is_terminated = central.slots.phase() == Phase::Terminated;
        central.is_over().then_some(is_terminated)
    }
}

impl SchedulerState {
    fn take_bound(&mut self, slots: Range<usize>) -> Vec<Batch> {
        let taken: Vec<Batch> =
            self.by_slot[slots].iter_mut().flat_map(|queue| queue.own.drain(..)).collect();
        self.queued -= taken.iter().map(|batch| u64::from(batch.items)).sum::<u64>();
        taken
    }
}
