//! The coming and going of workers, and the limits on what they run.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::slots::{Phase, SpawnDecision, Wake};
use super::state::{DriverSlot, PoolState, START_ATTEMPTS};
use crate::error::{DeathCause, StartError, TaskErrorKind};
use crate::pool::call::outcome::{Failure, Provenance};
use crate::pool::observe::events::EventKind;
use crate::pool::process::worker::{KillReason, PendingWorker, Process, Worker};
use crate::pool::types::WorkerInfo;

/// When the supervisor looks again at a chunk that is being sent.
const SOON: Duration = Duration::from_millis(10);

impl PoolState {
    /// A worker has been handshake_done; what is left is its initializer.
    pub(crate) fn handshake_done(&self) {
        self.central().first_start.get_or_insert(Ok(()));
        self.changed.notify_all();
    }

    /// Brings in a worker that is ready.
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

    /// A worker could not be made ready: another attempt comes after a pause; and the waiting tasks
    /// are told when that has been in vain too often.
    pub(crate) fn start_failed(&self, slot: usize, cause: StartError, was_greeting: bool) {
        let mut central = self.central();
        let (has_work, now) = (central.has_work(), Instant::now());
        let actions = if was_greeting {
            central.slots.handshake_failed(slot, has_work, now)
        } else {
            central.slots.spawn_failed(slot, has_work, now)
        };
        let process = central.by_slot[slot].process.as_ref().filter(|_| was_greeting);
        if process.is_some_and(|process| process.kill_reason() == Some(KillReason::Retired)) {
            // It has been ended because nothing was left to do for it.
            drop(central);
            self.apply(actions);
            return self.changed.notify_all();
        }
        let failures = central.slots.failures(slot);
        // What has killed it may be over, and the next attempt is under way.
        let is_killed =
            matches!(cause, StartError::Died(DeathCause::Signaled(..) | DeathCause::OutOfMemory));
        let is_passing = is_killed && !central.slots.is_hopeless(slot);
        // An initializer's failure is the tasks' to learn; whatever comes before it is the
        // builder's, and so is a worker that can't be started beside others that could.
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
            // The others go on; what is for this one's worker alone is hopeless.
            told.extend(std::mem::take(&mut central.by_slot[slot].own));
            central.queued -= told.iter().map(|batch| u64::from(batch.items)).sum::<u64>();
        }
        if central.is_over() {
            self.wake(Wake::All);
        }
        self.mind_needless(&central);
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

    /// So many drivers could not be started.
    pub(crate) fn drivers_missing(&self, drivers: usize) {
        self.central().drivers -= drivers;
        self.changed.notify_all();
    }

    /// A driver has ended.
    pub(crate) fn driver_ended(&self) {
        self.central().drivers -= 1;
        self.changed.notify_all();
        self.orders.ring();
    }

    /// Which process is to be started next; see [`SlotTable::next_start`].
    pub(crate) fn next_start(&self) -> SpawnDecision {
        let mut central = self.central();
        let has_work = central.has_work();
        central.slots.next_start(has_work, Instant::now())
    }

    /// A slot's process, or its last one.
    pub(crate) fn process(&self, slot: usize) -> Option<Arc<Process>> {
        self.central().by_slot[slot].process.clone()
    }

    /// A process has been started for a slot.
    pub(crate) fn spawned(&self, slot: usize, pending: PendingWorker) {
        let pid = pending.process.pid();
        // This is the only thread that starts any.
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

    /// A process has ended; what it leaves is seen to by whoever drove it.
    pub(crate) fn ended(&self, process: &Process) {
        let (slot, generation, was_used) = (process.slot, process.generation, process.was_used());
        let mut central = self.central();
        let has_work = central.has_work();
        let actions = central.slots.ended(slot, generation, was_used, has_work, Instant::now());
        drop(central);
        self.apply(actions);
    }

    /// Whether all is done: no driver is left to need a process.
    pub(crate) fn has_ended(&self) -> bool {
        let central = self.central();
        let is_dropped = self.is_of_one_process() && central.slots.phase() == Phase::Terminated;
        central.drivers == 0 || is_dropped
    }

    /// Whether nothing is left to do for the workers that are being started, and nothing else is.
    pub(crate) fn is_only_starting(&self) -> bool {
        let central = self.central();
        central.slots.is_only_starting(central.has_work())
    }

    /// Whether the workers are stopped.
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(crate) fn is_terminated(&self) -> bool {
        self.central().slots.phase() == Phase::Terminated
    }

    /// Lets workers go that have been idle for long; gives when to look again.
    pub(crate) fn retire_idle(&self) -> Option<Instant> {
        let limit = self.config.idle_timeout?;
        let now = Instant::now();
        if let Some(since) = now.checked_sub(limit) {
            let rest = || self.central().slots.park_idle(since, self.config.min_workers);
            std::iter::from_fn(rest).for_each(|(_, worker)| worker.retire());
        }
        // Often enough that nobody stays much longer, and not for each that becomes idle.
        now.checked_add((limit / 4).max(Duration::from_millis(5)))
    }

    /// Ends a worker that uses more memory than it may.
    pub(crate) fn end_for_memory(&self, process: &Arc<Process>) {
        let mut central = self.central();
        // A chunk that is being sent is looked at again in a moment.
        let Some(mut running) = self.try_running(process.slot) else { return };
        let chunk = running.as_mut().filter(|chunk| Arc::ptr_eq(&chunk.process, process));
        let Some(chunk) = chunk else { return process.kill(KillReason::OutOfMemory) };
        let rest = chunk.end_for_memory();
        drop(running);
        let refused = self.requeue(&mut central, rest);
        drop(central);
        refused.iter().for_each(|batch| self.refuse(batch));
    }

    /// Stops all workers and what they have started, or lets them go on; the time between does not
    /// count for time limits.
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
        for slot in 0..self.slots.len() {
            let mut running = self.running(slot);
            if let (Some(chunk), Some(since)) = (running.as_mut(), since) {
                chunk.exclude_pause(since.elapsed());
            }
        }
        // Let go first: the supervisor looks at it, and it is the supervisor that is waited for.
        drop(suspended);
        self.orders.signal(signal);
    }

    /// What is known of the slots' workers, without what the system would have to be asked for.
    pub(crate) fn workers(&self) -> Vec<WorkerInfo> {
        if self.forked().is_some() {
            return Vec::new();
        }
        let central = self.central();
        let info = |slot| WorkerInfo {
            slot,
            pid: central.by_slot[slot].process.as_ref().map_or(0, |process| process.pid()),
            state: central.slots.state(slot),
            tasks_done: self.counters.slots[slot].load(Relaxed),
            restarts: central.slots.starts(slot).saturating_sub(1),
            memory: None,
            cpu: None,
        };
        (0..self.slots.len()).map(info).collect()
    }

    /// How many tasks wait, and how many have been sent to a worker and are not delivered.
    pub(crate) fn load(&self) -> (u64, u64) {
        if self.forked().is_some() {
            return (0, 0);
        }
        let queued = self.central().queued;
        let open = |slot: &DriverSlot| {
            let running = slot.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.as_ref().map_or(0, |chunk| u64::from(chunk.open()))
        };
        (queued, self.slots.iter().map(open).sum())
    }

    /// Looks at the time limits of what is running; gives when to look again.
    pub(crate) fn enforce_limits(&self) -> Option<Instant> {
        if self.is_suspended() {
            return Some(Instant::now() + Duration::from_millis(100));
        }
        let mut next: Option<Instant> = None;
        // Held throughout: what is taken back must not be nowhere while somebody looks whether all
        // is done.
        let mut central = self.central();
        let mut refused = Vec::new();
        for slot in 0..self.slots.len() {
            let (rest, again) = match self.try_running(slot) {
                Some(mut running) => match running.as_mut() {
                    Some(chunk) => chunk.enforce(),
                    None => continue,
                },
                None => (Vec::new(), Instant::now().checked_add(SOON)),
            };
            next = match (next, again) {
                (Some(next), Some(again)) => Some(next.min(again)),
                (next, again) => next.or(again),
            };
            if !rest.is_empty() {
                refused.extend(self.requeue(&mut central, rest));
            }
        }
        drop(central);
        refused.iter().for_each(|batch| self.refuse(batch));
        next
    }
}
