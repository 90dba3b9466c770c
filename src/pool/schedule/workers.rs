//! Worker lifecycle events, and enforcement of limits.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::slots::{Phase, SpawnDecision, Wake};
use super::state::{DriverSlot, PoolState, START_ATTEMPTS, SlotQueue};
use crate::error::{DeathCause, StartError, TaskErrorKind};
use crate::pool::call::outcome::{Failure, Provenance};
use crate::pool::hosts::link::Command;
use crate::pool::observe::events::EventKind;
use crate::pool::process::worker::{KillReason, PendingWorker, Process, Worker};
use crate::pool::types::{WorkerInfo, WorkerState};

/// When the supervisor checks again after finding a chunk being sent.
const RECHECK_DELAY: Duration = Duration::from_millis(10);

impl PoolState {
    /// A worker has connected; its initializer follows.
    pub(crate) fn handshake_done(&self) {
        self.central().first_start.get_or_insert(Ok(()));
        self.changed.notify_all();
    }

    /// A worker is ready for its first task.
    pub(crate) fn ready(&self, slot: usize, worker: Worker) {
        worker.process.set_ready();
        let pid = worker.process.pid();
        self.config.observers.emit(|| EventKind::Ready { slot, pid });
        let mut central = self.central();
        let has_work = central.has_work();
        let actions = central.slots.ready(slot, worker, has_work, Instant::now());
        drop(central);
        self.apply(actions);
        self.changed.notify_all();
    }

    /// A worker failed to start. Another attempt follows after a delay; after too many failures, queued tasks
    /// fail.
    pub(crate) fn start_failed(&self, slot: usize, cause: StartError, in_handshake: bool) {
        let mut central = self.central();
        let (has_work, now) = (central.has_work(), Instant::now());
        let actions = if in_handshake {
            central.slots.handshake_failed(slot, has_work, now)
        } else {
            central.slots.spawn_failed(slot, has_work, now)
        };
        let process = central.by_slot[slot].process.as_ref().filter(|_| in_handshake);
        if process.is_some_and(|process| process.kill_reason() == Some(KillReason::Retired)) {
            // Retired during its start, because it is not needed.
            drop(central);
            self.apply(actions);
            return self.changed.notify_all();
        }
        let failures = central.slots.failures(slot);
        // The cause of a kill may be transient, and the next attempt is scheduled.
        let is_killed =
            matches!(cause, StartError::Died(DeathCause::Signaled(..) | DeathCause::OutOfMemory));
        let is_passing = is_killed && !central.slots.is_hopeless(slot);
        // An initializer's failure is reported to the tasks. An earlier failure is reported by `build`, and
        // so is that of a worker that can't start beside others that could.
        if !matches!(cause, StartError::Initializer(_)) && !is_passing {
            if central.slots.starts(slot) == 0 {
                central.first_start = Some(Err(cause.clone()));
            } else {
                central.first_start.get_or_insert(Err(cause.clone()));
            }
        }
        let mut told = Vec::new();
        if central.slots.has_given_up() {
            told = central.take_queued();
        } else if failures >= START_ATTEMPTS {
            // The other slots continue; batches bound to this slot fail.
            told.extend(std::mem::take(&mut central.by_slot[slot].own));
            central.queued -= told.iter().map(|batch| u64::from(batch.items)).sum::<u64>();
        }
        if central.is_over() {
            self.wake(Wake::All);
        }
        self.cancel_needless_starts(&central);
        drop(central);
        self.config.observers.emit(|| EventKind::StartFailed {
            slot,
            failures,
            cause: cause.to_string(),
        });
        self.apply(actions);
        self.changed.notify_all();
        for batch in told {
            let (cause, attempts) = (cause.clone(), failures);
            let kind = TaskErrorKind::Initializer { cause, attempts };
            self.fail(&batch, Failure::unstarted(kind), Provenance::NONE);
        }
    }

    /// Gives the pool another number of workers, with this many new slots. Returns false, and does nothing, if the pool
    /// takes no more tasks.
    pub(crate) fn resize(&self, workers: usize, new: usize) -> bool {
        let mut central = self.central();
        if central.slots.phase() != Phase::Open {
            return false;
        }
        let slots = self.slots.count() + new;
        self.slots.grow(slots);
        self.counters.slots.grow(slots);
        central.by_slot.resize_with(slots, SlotQueue::default);
        central.drivers += new;
        self.most_running.store(workers, Relaxed);
        let now = Instant::now();
        let actions = central.slots.resize(workers, self.config.starts_on_demand(), now);
        self.apply(actions);
        for slot in central.slots.limit()..central.slots.len() {
            if !central.by_slot[slot].own.is_empty() {
                let actions = central.slots.wake_slot(slot, now);
                self.apply(actions);
            }
        }
        if !central.queue.is_empty() {
            self.wake_for_queue(&mut central);
        }
        true
    }

    /// Drivers could not be started.
    pub(crate) fn drivers_missing(&self, drivers: usize) {
        self.central().drivers -= drivers;
        self.changed.notify_all();
    }

    /// A driver has exited.
    pub(crate) fn driver_ended(&self) {
        self.central().drivers -= 1;
        self.changed.notify_all();
        self.supervisor.wake();
    }

    /// Returns the process to start next; see [`SlotTable::next_start`](super::slots::SlotTable::next_start).
    pub(crate) fn next_start(&self) -> SpawnDecision {
        let mut central = self.central();
        let has_work = central.has_work();
        central.slots.next_start(has_work, Instant::now())
    }

    /// Returns a slot's process, or its last one.
    pub(crate) fn process(&self, slot: usize) -> Option<Arc<Process>> {
        self.central().by_slot[slot].process.clone()
    }

    /// A process has started for a slot.
    pub(crate) fn spawned(&self, slot: usize, pending: PendingWorker) {
        let pid = pending.process.pid();
        // Only this thread starts processes.
        let replaces = self.central().slots.starts(slot) > 0;
        self.config.observers.emit(|| EventKind::Spawned { slot, pid, replaces });
        let mut central = self.central();
        if replaces {
            self.counters.restarts.fetch_add(1, Relaxed);
        }
        central.by_slot[slot].process = Some(Arc::clone(&pending.process));
        let actions = central.slots.spawned(slot, pending);
        let is_last = !replaces && central.all_started();
        drop(central);
        self.apply(actions);
        if is_last {
            self.changed.notify_all();
        }
    }

    /// A process has ended. The thread that was driving it accounts for its chunk.
    pub(crate) fn ended(&self, process: &Process) {
        let (slot, generation, was_used) = (process.slot, process.generation, process.was_used());
        let mut central = self.central();
        let has_work = central.has_work();
        let actions = central.slots.ended(slot, generation, was_used, has_work, Instant::now());
        drop(central);
        self.apply(actions);
    }

    /// Whether no driver is left that needs a process.
    pub(crate) fn has_ended(&self) -> bool {
        let central = self.central();
        let is_dropped = self.is_of_one_process() && central.slots.phase() == Phase::Terminated;
        central.drivers == 0 || is_dropped
    }

    /// Whether the pool is closed without work and only starting workers are left.
    pub(crate) fn is_only_starting(&self) -> bool {
        let central = self.central();
        central.slots.is_only_starting(central.has_work())
    }

    /// Whether the workers are suspended.
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(crate) fn is_terminated(&self) -> bool {
        self.central().slots.phase() == Phase::Terminated
    }

    /// Retires workers that have been idle too long. Returns when to check again.
    pub(crate) fn retire_idle(&self) -> Option<Instant> {
        let limit = self.config.idle_timeout?;
        let now = Instant::now();
        if let Some(since) = now.checked_sub(limit) {
            let least = self.config.min_workers.saturating_add(self.config.spares);
            let rest = || self.central().slots.park_idle(since, least);
            std::iter::from_fn(rest).for_each(|(_, worker)| worker.retire());
        }
        // Often enough that idle workers are retired soon after the limit, without a timer for each.
        now.checked_add((limit / 4).max(Duration::from_millis(5)))
    }

    /// Kills a worker that exceeds its memory limit.
    pub(crate) fn end_for_memory(&self, process: &Arc<Process>) {
        let mut central = self.central();
        // A chunk being sent is checked again shortly.
        let Some(mut running) = self.try_running(process.slot) else { return };
        let chunk = running.as_mut().filter(|chunk| Arc::ptr_eq(&chunk.process, process));
        let Some(chunk) = chunk else { return process.kill(KillReason::OutOfMemory) };
        let rest = chunk.end_for_memory();
        drop(running);
        let rejected = self.requeue(&mut central, rest);
        drop(central);
        rejected.iter().for_each(|batch| self.reject(batch));
    }

    /// Stops or continues all workers and their child processes. Suspended time doesn't count towards time
    /// limits.
    pub(crate) fn suspend(&self, stop: bool) {
        if self.forked().is_some() {
            return;
        }
        let mut suspended = self.suspended.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match (stop, suspended.take()) {
            (true, since) => {
                *suspended = since.or_else(|| Some(Instant::now()));
                None
            }
            (false, since) => since,
        };
        let signal = if stop { Signal::STOP } else { Signal::CONT };
        for slot in 0..self.slots.count() {
            let mut running = self.running(slot);
            if let (Some(chunk), Some(since)) = (running.as_mut(), since) {
                chunk.exclude_pause(since.elapsed());
            }
        }
        // Released first: the supervisor takes this lock, and this thread waits for the supervisor.
        drop(suspended);
        self.supervisor.signal(signal);
        self.tell_hosts(|| Command::Suspend(stop));
    }

    /// Returns the state of all workers, without resource use, which needs system calls.
    pub(crate) fn workers(&self) -> Vec<WorkerInfo> {
        if self.forked().is_some() {
            return Vec::new();
        }
        let central = self.central();
        let info = |slot| WorkerInfo {
            slot,
            host: self.config.observers.host,
            pid: central.by_slot[slot].process.as_ref().map_or(0, |process| process.pid()),
            state: central.slots.state(slot),
            tasks_done: self.counters.slots[slot].load(Relaxed),
            restarts: central.slots.starts(slot).saturating_sub(1),
            memory: None,
            cpu: None,
        };
        // A surplus worker is listed as long as it lives.
        let is_listed = |slot: &usize| {
            !central.slots.is_surplus(*slot) || central.slots.state(*slot) != WorkerState::Absent
        };
        let mut workers: Vec<_> = (0..central.slots.len()).filter(is_listed).map(info).collect();
        drop(central);
        if let Some(link) = &self.link {
            let mut remote = link.with_status(|status| status.workers.clone());
            for worker in &mut remote {
                worker.tasks_done = self.counters.slots[worker.slot].load(Relaxed);
            }
            workers.append(&mut remote);
        }
        workers
    }

    /// Returns the number of queued tasks, and of tasks sent to a worker and not delivered.
    pub(crate) fn load(&self) -> (u64, u64) {
        if self.forked().is_some() {
            return (0, 0);
        }
        let central = self.central();
        let (queued, remote) = (central.queued, central.remote);
        drop(central);
        let open = |slot: &DriverSlot| {
            let running = slot.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.as_ref().map_or(0, |chunk| u64::from(chunk.open()))
        };
        (queued, remote + self.slots.iter().map(open).sum::<u64>())
    }

    /// Enforces the time limits of running chunks. Returns when to check again.
    pub(crate) fn enforce_limits(&self) -> Option<Instant> {
        if self.is_suspended() {
            return Some(Instant::now() + Duration::from_millis(100));
        }
        let mut next: Option<Instant> = None;
        // Held throughout: stolen items must not be invisible while another thread checks whether all is
        // done.
        let mut central = self.central();
        let mut rejected = Vec::new();
        for slot in 0..self.slots.count() {
            let (rest, again) = match self.try_running(slot) {
                Some(mut running) => match running.as_mut() {
                    Some(chunk) => chunk.enforce(),
                    None => continue,
                },
                None => (Vec::new(), Instant::now().checked_add(RECHECK_DELAY)),
            };
            next = match (next, again) {
                (Some(next), Some(again)) => Some(next.min(again)),
                (next, again) => next.or(again),
            };
            if !rest.is_empty() {
                rejected.extend(self.requeue(&mut central, rest));
            }
        }
        drop(central);
        rejected.iter().for_each(|batch| self.reject(batch));
        next
    }
}
