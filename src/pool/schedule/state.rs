//! The scheduler's state: the queue and the slots. One lock guards both and is held only briefly; slow
//! operations (communicating with a worker, starting one) happen outside it.
//!
//! Lock order: [`SchedulerState`], then a slot's [`Running`], then a job's own. No user code (wakers,
//! callbacks, subscribers) runs under any of them, because it may call the pool and may panic. It is
//! collected as [`Deferred`].
//!
//! [`SlotTable`] decides; this file applies the [`Actions`] it returns. The [`Worker`] is a token that moves:
//! its slot holds it while it is idle. A thread that checks it out (the slot's driver, or a caller of
//! `apply`) checks it back in or reports it lost.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use procpool_worker::attach::Attachments;
use procpool_worker::function::FnRef;
use procpool_worker::sys;

use crate::error::{StartError, TaskErrorKind};
use crate::pool::call::outcome::Failure;
use crate::pool::call::outcome::Provenance;
use crate::pool::config::Config;
use crate::pool::drive::chunk::{Chunk, Running};
use crate::pool::drive::exchange::Sent;
use crate::pool::drive::regions::Regions;
use crate::pool::hosts::link::{Command, Link};
use crate::pool::observe::events::Deferred;
use crate::pool::process::supervisor_handle::SupervisorHandle;
use crate::pool::process::worker::{PendingWorker, Process, Worker};
use crate::pool::schedule::admission::Admission;
use crate::pool::schedule::batch::Batch;
use crate::pool::schedule::cost::CostEstimate;
use crate::pool::schedule::counters::Counters;
use crate::pool::schedule::grown::Grown;
use crate::pool::schedule::limiter::{Limiter, Period};
use crate::pool::schedule::queue::Queue;
use crate::pool::schedule::slots::{Actions, Phase, SlotTable, Wake};

/// Consecutive failed starts of a slot before waiting tasks fail. With the delays between them they take
/// about 1.5 seconds: long enough for a transient shortage, short enough to wait for.
pub(super) const START_ATTEMPTS: u32 = 8;

/// Why a handle can't be sent to the workers of a pool that spans hosts.
pub(crate) const HOST_LOCAL: &str = "it holds a handle (a channel end, a lock, shared memory or a file), which exists on this host only, and the pool spans hosts: send the value itself, or use a pool of this host";

thread_local! {
    /// Whether this is a driver's or supervisor's thread.
    static IS_POOL_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as one that the pool needs to shut down. Calls made on it, such as wakers, must not wait
/// for the shutdown.
pub(crate) fn mark_pool_thread() {
    IS_POOL_THREAD.set(true);
}

/// Returns whether the pool needs this thread to shut down.
pub(crate) fn is_pool_thread() -> bool {
    IS_POOL_THREAD.get()
}

/// State shared by the pool's threads.
#[derive(Debug)]
pub(crate) struct PoolState {
    /// Places in the queue, for callers that ask for one.
    pub(crate) admission: Arc<Admission>,
    #[cfg(feature = "metrics")]
    pub(crate) published: crate::pool::observe::published::Published,
    pub(crate) config: Config,
    /// PID of the process that built the pool.
    pub(super) owner: u32,
    pub(super) central: Mutex<SchedulerState>,
    /// Grows with the pool.
    pub(crate) slots: Grown<DriverSlot>,
    /// How many workers run tasks at once, on all hosts.
    pub(super) most_running: AtomicUsize,
    /// Notified when a worker becomes ready or fails to start, and when a driver exits.
    pub(super) changed: Condvar,
    pub(crate) supervisor: SupervisorHandle,
    /// The manager of the other hosts, if there are any.
    pub(crate) link: Option<Arc<Link>>,
    pub(crate) counters: Counters,
    /// Number of CPUs available to this process.
    pub(super) cpus: usize,
    /// Largest chunk body sent inline in a frame, in bytes.
    pub(crate) inline_limit: usize,
    pub(crate) regions: Arc<Regions>,
    /// When the workers were suspended, if they are.
    pub(super) suspended: Mutex<Option<Instant>>,
    /// Measured cost of each function.
    pub(super) costs: RwLock<HashMap<FnRef, Arc<CostEstimate>>>,
}

/// Per-slot state with its own lock.
#[derive(Debug, Default)]
pub(crate) struct DriverSlot {
    /// Wakes the slot's driver.
    pub(super) wakeup: Condvar,
    pub(crate) running: Running,
    pub(super) in_flight: Mutex<Option<InFlight>>,
}

/// The call of a [`Process`](crate::Process), from its sending on the caller's thread until the supervisor
/// sees the process end.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) worker: Worker,
    pub(super) ticket: RunTicket,
    pub(super) sent: Sent,
}

#[derive(Debug)]
pub(super) struct SchedulerState {
    pub(super) queue: Queue,
    pub(super) queued: u64,
    pub(super) slots: SlotTable<PendingWorker, Worker>,
    pub(super) by_slot: Vec<SlotQueue>,
    /// Whether a manager serves the other hosts of the pool.
    pub(super) has_hosts: bool,
    /// Number of items that other hosts have.
    pub(super) remote: u64,
    /// Number of running drivers.
    pub(super) drivers: usize,
    pub(super) limiter: Limiter,
    /// Slots running chunks of more than one item.
    pub(super) multi_item: Vec<usize>,
    /// The driver that watches for stragglers.
    pub(super) watcher: Option<usize>,
    /// Whether drivers have been woken for items of unknown cost, one item each.
    pub(super) is_spreading: bool,
    /// Outcome of the first start, reported by the builder.
    pub(super) first_start: Option<Result<(), StartError>>,
    /// Whether the shared supervisor of all [`Process`](crate::Process)es has this pool.
    pub(super) is_supervised: bool,
}

/// Per-slot state that outlives its workers.
#[derive(Debug, Default)]
pub(super) struct SlotQueue {
    /// Current process, or the last one.
    pub(super) process: Option<Arc<Process>>,
    /// Batches that only this slot's worker may run.
    pub(super) own: VecDeque<Batch>,
}

/// A driver's next step.
#[derive(Debug)]
pub(crate) enum Step {
    Handshake(PendingWorker),
    /// The chunk is in the slot's [`Running`].
    Run {
        worker: Worker,
        ticket: RunTicket,
    },
    /// The worker is one too many.
    Retire(Worker),
    Quit(Option<Worker>),
}

/// How a running chunk is accounted for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunTicket {
    /// The chunk has more than one item.
    pub(super) is_multi_item: bool,
    /// The limiter's period, if the tasks are short.
    pub(super) period: Option<Period>,
    /// How long to spin for the reply, if it is expected soon.
    pub(super) spin_for: Option<Duration>,
}

impl PoolState {
    pub(crate) fn new(
        config: Config,
        supervisor: SupervisorHandle,
        inline_limit: usize,
        link: Option<Arc<Link>>,
    ) -> Self {
        let slots = config.local;
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        let central = SchedulerState {
            queue: Queue::default(),
            queued: 0,
            slots: match config.replaces {
                true => SlotTable::new(config.numbers(), START_ATTEMPTS, Instant::now()),
                false => SlotTable::for_one_process(slots, Instant::now()),
            },
            has_hosts: link.is_some(),
            remote: 0,
            by_slot: (0..config.workers).map(|_| SlotQueue::default()).collect(),
            drivers: slots + usize::from(link.is_some()),
            limiter: Limiter::new(cpus),
            multi_item: Vec::new(),
            watcher: None,
            is_spreading: false,
            first_start: None,
            is_supervised: false,
        };
        let counters = Counters::new(config.workers);
        let admission = Admission::new(config.max_queued);
        let most_running = AtomicUsize::new(config.most_running());
        Self {
            most_running,
            config,
            owner: sys::own_pid(),
            central: Mutex::new(central),
            slots: Grown::with(slots),
            changed: Condvar::new(),
            supervisor,
            link,
            counters,
            cpus,
            inline_limit,
            regions: Arc::default(),
            suspended: Mutex::default(),
            costs: RwLock::default(),
            admission,
            #[cfg(feature = "metrics")]
            published: Default::default(),
        }
    }

    /// Returns how many workers run tasks at once, on all hosts.
    pub(crate) fn most_running(&self) -> usize {
        self.most_running.load(Relaxed)
    }

    /// Returns the number of workers on all hosts, with those that stand by.
    pub(crate) fn worker_count(&self) -> usize {
        match self.link {
            Some(_) => self.config.workers,
            // No lock may be taken there.
            None if self.forked().is_some() => self.slots.count(),
            None => self.central().slots.limit(),
        }
    }

    pub(super) fn central(&self) -> MutexGuard<'_, SchedulerState> {
        /// About 10 µs: the lock is held no longer, and sleeping until it is free would take longer.
        const SPINS: u32 = 30;
        for _ in 0..SPINS {
            match self.central.try_lock() {
                Ok(central) => return central,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => (0..16).for_each(|_| std::hint::spin_loop()),
            }
        }
        self.central.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the error for all calls in a copy of the pool made by `fork`. The copy has no threads, and
    /// threads it doesn't have may hold its locks. No lock of the pool, or of a job created before the fork,
    /// may be taken there.
    pub(crate) fn forked(&self) -> Option<TaskErrorKind> {
        (sys::own_pid() != self.owner).then_some(TaskErrorKind::Forked { owner: self.owner })
    }

    /// Fails a batch that will not run. Called under no lock.
    pub(super) fn reject(&self, batch: &Batch) {
        let kind = match batch.job.call {
            Ok(_) => self.forked().unwrap_or(TaskErrorKind::Closed),
            Err(error) => TaskErrorKind::Function { reason: error.to_string() },
        };
        self.fail(batch, Failure::unstarted(kind), Provenance::NONE);
    }

    /// Fails a batch and calls its wakers and callbacks. Called under no lock.
    pub(crate) fn fail(&self, batch: &Batch, failure: Failure, provenance: Provenance) {
        let mut calls = Deferred::default();
        batch.fail(failure, provenance, &self.counters, &mut calls);
        self.config.observers.fire(calls);
    }

    /// Returns batches to the front of the queue, in order. If the pool is terminated, returns them: the
    /// caller must [reject](Self::reject) them after releasing the lock, because that may call wakers.
    #[must_use]
    pub(super) fn requeue(&self, central: &mut SchedulerState, batches: Vec<Batch>) -> Vec<Batch> {
        if central.slots.phase() == Phase::Terminated {
            return batches;
        }
        for batch in batches.into_iter().rev() {
            central.queued += u64::from(batch.items);
            match batch.slot {
                Some(slot) => central.by_slot[slot].own.push_front(batch),
                None => central.queue.push_again(batch),
            }
        }
        if !central.queue.is_empty() {
            self.wake_for_queue(central);
        }
        Vec::new()
    }

    /// Like [`running`](Self::running), for the supervisor. Returns `None` while a chunk is being sent or its
    /// results are collected, which may take long and must not block other slots.
    pub(super) fn try_running(&self, slot: usize) -> Option<MutexGuard<'_, Option<Chunk>>> {
        match self.slots[slot].running.try_lock() {
            Ok(running) => Some(running),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(super) fn running(&self, slot: usize) -> MutexGuard<'_, Option<Chunk>> {
        self.slots[slot].running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the supervisor if starting workers are no longer needed.
    pub(super) fn cancel_needless_starts(&self, central: &SchedulerState) {
        if central.slots.is_only_starting(central.has_work()) {
            self.supervisor.wake();
        }
    }

    /// Wakes a worker for the queue, unless a busy worker will return to it in a moment.
    pub(super) fn wake_for_queue(&self, central: &mut SchedulerState) {
        if !central.wants_worker() && self.ensure_watcher(central) {
            return;
        }
        let wanted = if central.is_short_lived() { 1 } else { central.queued };
        let actions = central.slots.wake_one(wanted, Instant::now());
        self.apply(actions);
    }

    /// Checks that what an argument refers to can be sent wherever the pool has workers.
    ///
    /// # Errors
    ///
    /// The reason, for a pool that spans hosts and an argument that holds a handle of this host.
    pub(crate) fn check_attachments(&self, attachments: &Attachments) -> Result<(), String> {
        match self.link.is_some() && !attachments.is_empty() {
            true => Err(HOST_LOCAL.to_owned()),
            false => Ok(()),
        }
    }

    /// Tells the manager of the other hosts something, if there are any.
    pub(super) fn tell_hosts(&self, command: impl FnOnce() -> Command) {
        if let Some(link) = &self.link {
            link.tell(command());
        }
    }

    /// Wakes the manager of the other hosts, if there are any.
    pub(super) fn wake_hosts(&self) {
        if let Some(link) = &self.link {
            link.wake();
        }
    }

    /// Ensures that an idle driver watches for stragglers, and returns whether one does. Picks the driver
    /// that would be woken last.
    pub(super) fn ensure_watcher(&self, central: &mut SchedulerState) -> bool {
        if central.watcher.is_none() {
            central.watcher = central.slots.least_recently_used();
            self.wake(central.watcher.map_or(Wake::None, Wake::One));
        }
        central.watcher.is_some()
    }

    /// Applies the actions that an event returned.
    pub(super) fn apply(&self, actions: Actions<Worker>) {
        self.wake(actions.wake);
        if actions.start {
            self.supervisor.wake();
        }
        if let Some(worker) = actions.retire {
            worker.retire();
        }
    }

    pub(super) fn wake(&self, call: Wake) {
        match call {
            Wake::None => {}
            Wake::One(slot) => self.slots[slot].wakeup.notify_one(),
            Wake::All => self.slots.iter().for_each(|slot| slot.wakeup.notify_one()),
        }
    }
}

impl SchedulerState {
    /// Whether items are queued here, or may come back from another host.
    pub(super) fn has_work(&self) -> bool {
        self.queued > 0 || self.remote > 0
    }

    pub(super) fn has_queued(&self) -> bool {
        self.queued > 0
    }

    /// Takes all queued batches.
    pub(super) fn take_queued(&mut self) -> Vec<Batch> {
        self.queued = 0;
        let own = self.by_slot.iter_mut().flat_map(|slot| slot.own.drain(..));
        self.queue.drain().chain(own).collect()
    }

    /// Whether the queued tasks are short, judged by the first batch.
    pub(super) fn is_short_lived(&self) -> bool {
        self.queue.front().is_some_and(|batch| batch.job.cost.is_short_lived())
    }

    /// Whether the queue is worth another worker.
    pub(super) fn wants_worker(&self) -> bool {
        let Some(first) = self.queue.front().filter(|_| self.is_short_lived()) else { return true };
        let worth_a_wake = u64::from(first.job.cost.worth_a_wake());
        self.limiter.has_room(self.slots.woken(), self.queued >= worth_a_wake)
    }

    /// Ends the accounting of a chunk.
    pub(super) fn end(&mut self, slot: usize, ticket: RunTicket) {
        if ticket.is_multi_item
            && let Some(at) = self.multi_item.iter().position(|multi_item| *multi_item == slot)
        {
            self.multi_item.swap_remove(at);
        }
        if let Some(sent) = ticket.period {
            self.limiter.end(sent);
        }
    }

    /// Whether the drivers must exit.
    pub(super) fn is_over(&self) -> bool {
        self.slots.is_over(self.has_work())
    }

    /// Whether every slot of this host that is to be served has had a process.
    pub(super) fn all_started(&self) -> bool {
        (0..self.slots.limit())
            .all(|slot| self.slots.is_parked(slot) || self.slots.starts(slot) > 0)
    }
}
