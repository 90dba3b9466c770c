//! Operations of callers: queue, run inline, cancel and shut down.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::doorbell::SPIN_BUDGET;
use procpool_worker::function::FnRef;

use super::batch::Batch;
use super::cost::CostEstimate;
use super::slots::{Phase, Wake};
use super::state::{PoolState, SchedulerState};
use crate::error::{StartError, TaskErrorKind};
use crate::pool::call::job::Job;
use crate::pool::call::outcome::{Failure, Provenance};
use crate::pool::hosts::link::Command;
use crate::pool::process::worker::Worker;

/// Maximum number of idle workers woken at once for the first items of a function. Waking one costs 10 to 30
/// µs of CPU time, and the items may turn out shorter than that.
const MAX_SPREAD: usize = 8;

impl PoolState {
    /// Returns the cost estimate of a function.
    pub(crate) fn cost(&self, call: FnRef) -> Arc<CostEstimate> {
        if self.forked().is_some() {
            return Arc::default();
        }
        if let Some(cost) = self.costs.read().unwrap_or_else(PoisonError::into_inner).get(&call) {
            return Arc::clone(cost);
        }
        let mut costs = self.costs.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(costs.entry(call).or_default())
    }

    /// Whether the pool still accepts tasks.
    pub(crate) fn is_open(&self) -> bool {
        self.forked().is_none() && self.central().slots.phase() == Phase::Open
    }

    /// Queues a batch. A closed pool fails it at once.
    pub(crate) fn submit(&self, batch: Batch) {
        if self.forked().is_some() {
            return self.reject(&batch);
        }
        let mut central = self.central();
        let is_served =
            central.has_hosts || batch.slot.is_none_or(|slot| slot < self.slots.count());
        if central.slots.phase() != Phase::Open || batch.job.call.is_err() || !is_served {
            drop(central);
            return self.reject(&batch);
        }
        central.queued += u64::from(batch.items);
        match batch.slot {
            Some(slot) if slot >= self.slots.count() => {
                central.by_slot[slot].own.push_back(batch);
                self.wake_hosts();
            }
            Some(slot) => {
                central.by_slot[slot].own.push_back(batch);
                let actions = central.slots.wake_slot(slot, Instant::now());
                self.apply(actions);
            }
            None => {
                let is_unknown = batch.job.is_of_unknown_speed();
                let items = batch.items as usize;
                central.queue.push(batch);
                self.wake_for_queue(&mut central);
                if is_unknown {
                    self.spread(&mut central, items);
                }
            }
        }
    }

    /// Wakes an idle worker for each item. If workers woke each other in turn, they would come too late: with
    /// short items, the first worker would have finished them all.
    fn spread(&self, central: &mut SchedulerState, items: usize) {
        central.is_spreading = true;
        for _ in 1..items.min(MAX_SPREAD) {
            if !central.slots.has_idle() {
                break;
            }
            self.wake_for_queue(central);
        }
    }

    /// Runs a batch on an idle worker from this thread, which saves two context switches. Returns the batch
    /// if no worker is idle or tasks are queued before it.
    pub(crate) fn try_run_inline(&self, batch: Batch) -> Result<(), Batch> {
        let mut central = self.central();
        let is_open = central.slots.phase() == Phase::Open && batch.job.call.is_ok();
        if !is_open || !central.queue.is_empty() {
            return Err(batch);
        }
        let Some((slot, worker)) = central.slots.check_out_any() else { return Err(batch) };
        let spin_for = self.spin_budget(&central, &batch);
        let batches = VecDeque::from([batch]);
        let ticket = self.start_chunk(&mut central, slot, &worker, batches, spin_for);
        drop(central);
        self.run(slot, worker, ticket);
        Ok(())
    }

    /// Returns how long to spin for a batch's reply. `None` if the reply is expected to take long, or running
    /// work needs the CPUs.
    fn spin_budget(&self, central: &SchedulerState, batch: &Batch) -> Option<Duration> {
        let each = Duration::from_nanos(batch.job.cost.least());
        let expected = each.saturating_mul(batch.items);
        let is_free = 2 * central.slots.out() <= self.cpus;
        let is_quick = expected <= Duration::from_nanos(CostEstimate::MIN_WORTH_A_WAKE);
        (is_free && is_quick).then(|| SPIN_BUDGET + 2 * expected)
    }

    /// Returns how many items of a job to keep in flight.
    pub(crate) fn window(&self, job: &Job) -> u64 {
        // Enough that drivers always find a full chunk and one slow item doesn't soon stop the others; few
        // enough that the input is not read far ahead.
        const MIN: u64 = 32;
        const MAX: u64 = 1 << 20;
        let has_small_chunks = job.options.chunk_size.is_none() && !job.collects_all.load(Relaxed);
        let chunks = if has_small_chunks { 4 } else { 2 };
        (chunks * u64::from(job.chunk())).clamp(MIN, MAX) * self.most_running() as u64
    }

    /// Removes a job from the queue and stops its running items.
    pub(crate) fn cancel(&self, job: &Arc<Job>) {
        if self.forked().is_some() {
            return;
        }
        job.cancelled.store(true, Relaxed);
        let is_target = |batch: &Batch| Arc::ptr_eq(&batch.job, job);
        let mut central = self.central();
        let mut cancelled = central.queue.take(is_target);
        central.queued -= cancelled.iter().map(|batch| u64::from(batch.items)).sum::<u64>();
        let mut rejected = Vec::new();
        for slot in 0..self.slots.count() {
            let mut running = self.running(slot);
            let taken = running.as_mut().map_or_else(Vec::new, |chunk| chunk.cancel(is_target));
            drop(running);
            let (ours, others): (Vec<_>, Vec<_>) = taken.into_iter().partition(&is_target);
            cancelled.extend(ours);
            rejected.extend(self.requeue(&mut central, others));
        }
        if central.is_over() {
            self.wake(Wake::All);
        }
        self.cancel_needless_starts(&central);
        drop(central);
        self.tell_hosts(|| Command::Cancel(Arc::clone(job)));
        // The supervisor enforces the grace period after SIGTERM.
        self.supervisor.schedule_check(Instant::now());
        rejected.iter().for_each(|batch| self.reject(batch));
        for batch in cancelled {
            let failure = Failure::unstarted(TaskErrorKind::Cancelled);
            self.fail(&batch, failure, Provenance::NONE);
        }
    }

    /// Makes idle workers drop the contexts of finished calls. Busy workers do so when they become idle.
    pub(crate) fn forget_contexts(&self) {
        if self.forked().is_some() {
            return;
        }
        self.central().slots.idle_workers().for_each(Worker::drop_contexts);
        self.tell_hosts(|| Command::DropContexts);
    }

    /// Cancels all items that have not started.
    pub(crate) fn cancel_queued(&self) {
        if self.forked().is_some() {
            return;
        }
        let mut central = self.central();
        let mut cancelled = central.take_queued();
        for slot in 0..self.slots.count() {
            let mut running = self.running(slot);
            cancelled.extend(running.as_mut().into_iter().flat_map(|chunk| chunk.steal(u32::MAX)));
        }
        if central.is_over() {
            self.wake(Wake::All);
        }
        self.cancel_needless_starts(&central);
        drop(central);
        self.tell_hosts(|| Command::CancelQueued);
        for batch in cancelled {
            let failure = Failure::unstarted(TaskErrorKind::Cancelled);
            self.fail(&batch, failure, Provenance::NONE);
        }
    }

    /// Stops accepting tasks.
    pub(crate) fn close(&self) {
        if self.forked().is_some() {
            return;
        }
        let mut central = self.central();
        let actions = central.slots.close();
        self.cancel_needless_starts(&central);
        drop(central);
        self.apply(actions);
        self.admission.close();
        self.wake_hosts();
    }

    /// Terminates the pool. Queued tasks fail here, running ones once their worker is dead.
    pub(crate) fn terminate(&self) {
        if self.forked().is_some() {
            return;
        }
        let mut central = self.central();
        let actions = central.slots.terminate();
        let queue = central.take_queued();
        drop(central);
        self.apply(actions);
        self.admission.close();
        self.wake_hosts();
        for batch in queue {
            self.reject(&batch);
        }
    }

    /// Blocks until the drivers have exited; for a [`Process`](crate::Process), which has none, until it has
    /// ended.
    pub(crate) fn wait_end(&self) {
        if self.forked().is_some() {
            return;
        }
        let mut central = self.central();
        while match self.is_of_one_process() {
            true => central.is_supervised,
            false => central.drivers > 0,
        } {
            central = self.changed.wait(central).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Blocks until all tasks are done and the workers of a closed pool have been let go, at most until `deadline`.
    /// Returns whether they are.
    pub(crate) fn wait_end_until(&self, deadline: Option<Instant>) -> bool {
        let mut central = self.central();
        while central.drivers > 0 {
            let left = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(left) if left.is_zero() => return false,
                Some(left) => left,
                None => Duration::MAX,
            };
            let waited = self.changed.wait_timeout(central, left);
            central = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Blocks until all workers have started and one has connected, or a first start has failed.
    pub(crate) fn wait_first_start(&self) -> Result<(), StartError> {
        let mut central = self.central();
        loop {
            match &central.first_start {
                Some(Err(error)) => return Err(error.clone()),
                Some(Ok(())) if central.all_started() => return Ok(()),
                _ => {}
            }
            central = self.changed.wait(central).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
