//! Who gets what: the queue, the slots, and the moves between them. One lock guards both, and is
//! held for moments; what takes time (talking to a worker, starting one) happens outside of it.
//!
//! Locks are taken in this order: [`SchedulerState`], then a slot's [`Running`], then a job's own. Under none
//! of them is anything called that belongs to the user: wakers, callbacks and subscribers may ask the
//! pool something, and may panic. What is to be called is collected as [`Deferred`].
//!
//! The slots of the workers are [`SlotTable`]: what happens to one of them is told there, and the
//! [`Actions`] that comes back is done here. The [`Worker`] itself is a token that moves: it sits in its
//! seat while it is idle, and whoever takes it out (the slot's driver, or a caller of `apply`) brings
//! it back or reports it lost.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::num::NonZero;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use procpool_worker::function::FnRef;
use procpool_worker::sys;

use crate::error::{StartError, TaskErrorKind};
use crate::pool::call::outcome::Failure;
use crate::pool::call::outcome::Provenance;
use crate::pool::config::Config;
use crate::pool::drive::chunk::{Chunk, Running, Sent};
use crate::pool::drive::regions::Regions;
use crate::pool::observe::events::Deferred;
use crate::pool::process::orders::SupervisorHandle;
use crate::pool::process::worker::{PendingWorker, Process, Worker};
use crate::pool::schedule::batch::Batch;
use crate::pool::schedule::cost::CostEstimate;
use crate::pool::schedule::counters::Counters;
use crate::pool::schedule::limiter::{Limiter, Period};
use crate::pool::schedule::slots::{Actions, Phase, SlotTable, Wake};

/// How many times in a row a worker may fail to become ready before the tasks that wait for one are
/// told so. With the pauses between them this takes about a second and a half: long enough for a
/// passing shortage, short enough to wait for.
pub(super) const START_ATTEMPTS: u32 = 8;

thread_local! {
    /// Whether this is a driver's thread or a supervisor's.
    static IS_SERVING: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as one that a pool needs to come to its end. What is called on it, such as a
/// waker, must not wait for that.
pub(crate) fn serve() {
    IS_SERVING.set(true);
}

/// Whether this thread is one that a pool needs to come to its end.
pub(crate) fn is_serving() -> bool {
    IS_SERVING.get()
}

/// What the pool's threads share.
#[derive(Debug)]
pub(crate) struct PoolState {
    pub(crate) config: Config,
    /// The process that has built it.
    pub(super) owner: u32,
    pub(super) central: Mutex<SchedulerState>,
    pub(crate) slots: Box<[DriverSlot]>,
    /// Notified when a worker becomes ready or fails to, and when a driver ends.
    pub(super) changed: Condvar,
    pub(crate) orders: SupervisorHandle,
    pub(crate) counters: Counters,
    /// How many CPUs this process may use.
    pub(super) cpus: usize,
    /// The largest chunk body that travels in a frame.
    pub(crate) inline_limit: usize,
    pub(crate) regions: Arc<Regions>,
    /// Since when the workers are stopped, if they are.
    pub(super) suspended: Mutex<Option<Instant>>,
    /// What is known of each function's speed.
    pub(super) costs: RwLock<HashMap<FnRef, Arc<CostEstimate>>>,
}

/// One slot's part that has its own lock.
#[derive(Debug, Default)]
pub(crate) struct DriverSlot {
    /// Wakes the slot's driver.
    pub(super) call: Condvar,
    pub(crate) running: Running,
    pub(super) flight: Mutex<Option<Flight>>,
}

/// The only call of a [`Process`](crate::Process), between its sending, on the thread of the caller, and
/// the end of its process, which the supervisor notices.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) worker: Worker,
    pub(super) turn: RunTicket,
    pub(super) sent: Sent,
}

#[derive(Debug)]
pub(super) struct SchedulerState {
    pub(super) queue: VecDeque<Batch>,
    pub(super) queued: u64,
    pub(super) slots: SlotTable<PendingWorker, Worker>,
    pub(super) by_slot: Box<[SlotQueue]>,
    /// How many drivers are at work at all.
    pub(super) drivers: usize,
    pub(super) limiter: Limiter,
    /// Where chunks of more than one item are running.
    pub(super) multi_item: Vec<usize>,
    /// The driver that looks out for slow chunks.
    pub(super) watcher: Option<usize>,
    /// Whether drivers are on their way for items of a function of unknown speed, one item each.
    pub(super) is_spreading: bool,
    /// The first start's outcome, for whoever builds the pool.
    pub(super) first_start: Option<Result<(), StartError>>,
    /// Whether the supervisor that all processes share has this pool.
    pub(super) is_supervised: bool,
}

/// What belongs to a slot whoever sits there.
#[derive(Debug, Default)]
pub(super) struct SlotQueue {
    /// The worker's process, or the last one's.
    pub(super) process: Option<Arc<Process>>,
    /// What its worker is to run and no other.
    pub(super) own: VecDeque<Batch>,
}

/// What a driver does next.
#[derive(Debug)]
pub(crate) enum Step {
    Greet(PendingWorker),
    /// The chunk lies in the slot's [`Running`].
    Run {
        worker: Worker,
        turn: RunTicket,
    },
    Quit(Option<Worker>),
}

/// How a chunk counts while it runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunTicket {
    /// It has more than one item.
    pub(super) is_multi_item: bool,
    /// Its tasks are brisk.
    pub(super) brisk: Option<Period>,
    /// How long to stay awake for its answer, if it is to come soon.
    pub(super) patience: Option<Duration>,
}

impl PoolState {
    pub(crate) fn new(config: Config, orders: SupervisorHandle, inline_limit: usize) -> Self {
        let slots = config.workers;
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        let central = SchedulerState {
            queue: VecDeque::new(),
            queued: 0,
            slots: match config.replaces {
                true => SlotTable::new(slots, START_ATTEMPTS, Instant::now()),
                false => SlotTable::for_one_process(slots, Instant::now()),
            },
            by_slot: (0..slots).map(|_| SlotQueue::default()).collect(),
            drivers: slots,
            limiter: Limiter::new(cpus),
            multi_item: Vec::new(),
            watcher: None,
            is_spreading: false,
            first_start: None,
            is_supervised: false,
        };
        let counters = Counters::new(slots);
        Self {
            config,
            owner: sys::own_pid(),
            central: Mutex::new(central),
            slots: (0..slots).map(|_| DriverSlot::default()).collect(),
            changed: Condvar::new(),
            orders,
            counters,
            cpus,
            inline_limit,
            regions: Arc::default(),
            suspended: Mutex::default(),
            costs: RwLock::default(),
        }
    }

    pub(super) fn central(&self) -> MutexGuard<'_, SchedulerState> {
        /// About 10 µs: it is held for no longer, and to sleep until it is free would take longer.
        const LOOKS: u32 = 30;
        for _ in 0..LOOKS {
            match self.central.try_lock() {
                Ok(central) => return central,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => (0..16).for_each(|_| std::hint::spin_loop()),
            }
        }
        self.central.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In a copy of this pool that `fork` has made: the error of all that is asked of it. The copy has
    /// no threads, and its locks may be held by threads that it doesn't have: no lock of the pool, or
    /// of a job that is older than the fork, may be taken there.
    pub(crate) fn forked(&self) -> Option<TaskErrorKind> {
        (sys::own_pid() != self.owner).then_some(TaskErrorKind::Forked { owner: self.owner })
    }

    /// Ends a batch that will not be run any more.
    pub(super) fn refuse(&self, batch: &Batch) {
        let kind = match batch.job.call {
            Ok(_) => self.forked().unwrap_or(TaskErrorKind::Closed),
            Err(error) => TaskErrorKind::Function { reason: error.to_string() },
        };
        self.fail(batch, Failure::unstarted(kind), Provenance::NONE);
    }

    /// Ends a batch as failed in this way, and calls what waits for it: under no lock.
    pub(super) fn fail(&self, batch: &Batch, failure: Failure, provenance: Provenance) {
        let mut calls = Deferred::default();
        batch.fail(failure, provenance, &self.counters, &mut calls);
        self.config.observers.fire(calls);
    }

    /// Puts batches back to the front of the queue, in order. Gives those that are not to be run any
    /// more: they are to be [refused](Self::refuse), which may wake somebody, when the lock is let
    /// go.
    #[must_use]
    pub(super) fn requeue(&self, central: &mut SchedulerState, batches: Vec<Batch>) -> Vec<Batch> {
        if central.slots.phase() == Phase::Terminated {
            return batches;
        }
        for batch in batches.into_iter().rev() {
            central.queued += u64::from(batch.items);
            match batch.slot {
                Some(slot) => central.by_slot[slot].own.push_front(batch),
                None => central.queue.push_front(batch),
            }
        }
        if !central.queue.is_empty() {
            self.wake_for_queue(central);
        }
        Vec::new()
    }

    /// As [`running`](Self::running), for the supervisor: none while a chunk is being sent or its results
    /// are taken out, which may take long and must hold up no other.
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

    /// Rings for the supervisor if nothing is left to do for the workers that are being started.
    pub(super) fn mind_needless(&self, central: &SchedulerState) {
        if central.slots.is_only_starting(central.has_work()) {
            self.orders.ring();
        }
    }

    /// Has somebody come for what is queued, unless somebody will be back for it in a moment.
    pub(super) fn wake_for_queue(&self, central: &mut SchedulerState) {
        if !central.wants_worker() && self.ensure_watcher(central) {
            return;
        }
        let actions = central.slots.wake_one(Instant::now());
        self.apply(actions);
    }

    /// Sees to it that somebody looks out, if there is an idle driver for that: the one that would be
    /// called last.
    pub(super) fn ensure_watcher(&self, central: &mut SchedulerState) -> bool {
        if central.watcher.is_none() {
            central.watcher = central.slots.least_recently_used();
            self.wake(central.watcher.map_or(Wake::None, Wake::One));
        }
        central.watcher.is_some()
    }

    /// Does what an event asks for.
    pub(super) fn apply(&self, actions: Actions<Worker>) {
        self.wake(actions.wake);
        if actions.start {
            self.orders.ring();
        }
        if let Some(worker) = actions.retire {
            worker.retire();
        }
    }

    pub(super) fn wake(&self, call: Wake) {
        match call {
            Wake::None => {}
            Wake::One(slot) => self.slots[slot].call.notify_one(),
            Wake::All => self.slots.iter().for_each(|slot| slot.call.notify_one()),
        }
    }
}

impl SchedulerState {
    pub(super) fn has_work(&self) -> bool {
        self.queued > 0
    }

    /// Takes all that waits.
    pub(super) fn take_queued(&mut self) -> Vec<Batch> {
        self.queued = 0;
        let own = self.by_slot.iter_mut().flat_map(|place| place.own.drain(..));
        self.queue.drain(..).chain(own).collect()
    }

    /// Whether what is queued is brisk, as far as can be seen.
    pub(super) fn is_short_lived(&self) -> bool {
        self.queue.front().is_some_and(|batch| batch.job.cost.is_short_lived())
    }

    /// Whether what is queued is worth another worker.
    pub(super) fn wants_worker(&self) -> bool {
        let Some(first) = self.queue.front().filter(|_| self.is_short_lived()) else { return true };
        let worth_a_wake = u64::from(first.job.cost.worth_a_wake());
        self.limiter.has_room(self.slots.woken(), self.queued >= worth_a_wake)
    }

    /// A chunk is back.
    pub(super) fn end(&mut self, slot: usize, turn: RunTicket) {
        if turn.is_multi_item
            && let Some(at) = self.multi_item.iter().position(|multi_item| *multi_item == slot)
        {
            self.multi_item.swap_remove(at);
        }
        if let Some(sent) = turn.brisk {
            self.limiter.end(sent);
        }
    }

    /// Whether the drivers are to end.
    pub(super) fn is_over(&self) -> bool {
        self.slots.is_over(self.has_work())
    }

    /// Whether each slot has had a process.
    pub(super) fn all_started(&self) -> bool {
        (0..self.slots.len()).all(|slot| self.slots.starts(slot) > 0)
    }
}
