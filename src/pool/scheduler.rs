//! Who gets what: the queue, the slots, and the moves between them. One lock guards both, and is
//! held for moments; what takes time (talking to a worker, starting one) happens outside of it.
//!
//! Locks are taken in this order: [`Central`], then a slot's [`Running`], then a job's own. Under none
//! of them is anything called that belongs to the user: wakers, callbacks and subscribers may ask the
//! pool something, and may panic. What is to be called is collected as [`Calls`].
//!
//! The seats of the workers are [`Seats`]: what happens to one of them is told there, and the
//! [`Todo`] that comes back is done here. The [`Worker`] itself is a token that moves: it sits in its
//! seat while it is idle, and whoever takes it out (the slot's driver, or a caller of `apply`) brings
//! it back or reports it lost.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use procpool_worker::bell::PATIENCE;
use procpool_worker::function::Call;
use procpool_worker::harden;
use procpool_worker::protocol::SPAN_HEAD;
use rustix::process::Signal;

use super::WorkerInfo;
use super::batch::{Batch, Pace};
use super::builder::Config;
use super::chunk::{self, Awake, Chunk, Loss, Running};
use super::events::{Calls, EventKind};
use super::job::{Failure, Job, Origin};
use super::limiter::{Limiter, Period};
use super::regions::Regions;
use super::seats::{Call as Wake, Find, Phase, Seats, Start, Todo};
use super::supervisor;
use super::worker::{Doom, Newborn, Process, Worker};
use crate::error::{DeathCause, DidRun, StartError, TaskErrorKind};

/// How many times in a row a worker may fail to become ready before the tasks that wait for one are
/// told so. With the pauses between them this takes about a second and a half: long enough for a
/// passing shortage, short enough to wait for.
const START_ATTEMPTS: u32 = 8;

/// How many workers in a row may die on a batch before they have begun any of it.
const MAX_LOSSES: u32 = 8;

/// How often an idle driver looks whether a chunk elsewhere has become slow.
const WATCH: Duration = Duration::from_millis(1);

/// The most single calls that travel together.
const MAX_BATCHES: usize = 4096;

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
pub(crate) struct Shared {
    pub(crate) config: Config,
    /// The process that has built it.
    owner: u32,
    central: Mutex<Central>,
    pub(crate) slots: Box<[Slot]>,
    /// Notified when a worker becomes ready or fails to, and when a driver ends.
    changed: Condvar,
    pub(crate) orders: supervisor::Orders,
    pub(crate) counters: Counters,
    /// How many CPUs this process may use.
    cpus: usize,
    /// The largest chunk body that travels in a frame.
    pub(crate) inline_limit: usize,
    pub(crate) regions: Arc<Regions>,
    /// Since when the workers are stopped, if they are.
    suspended: Mutex<Option<Instant>>,
    /// What is known of each function's speed.
    paces: RwLock<HashMap<Call, Arc<Pace>>>,
}

/// One slot's part that has its own lock.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// Wakes the slot's driver.
    call: Condvar,
    pub(crate) running: Running,
}

/// What has happened so far, in tasks.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) restarts: AtomicU64,
    /// Outcomes by slot.
    pub(crate) slots: Box<[AtomicU64]>,
    /// Numbers the pool's single calls, and its others.
    pub(crate) singles: AtomicU64,
    pub(crate) manies: AtomicU64,
}

#[derive(Debug)]
struct Central {
    queue: VecDeque<Batch>,
    queued: u64,
    seats: Seats<Newborn, Worker>,
    by_slot: Box<[Place]>,
    /// How many drivers are at work at all.
    drivers: usize,
    limiter: Limiter,
    /// Where chunks of more than one item are running.
    crowded: Vec<usize>,
    /// The driver that looks out for slow chunks.
    watcher: Option<usize>,
    /// The first start's outcome, for whoever builds the pool.
    first_start: Option<Result<(), StartError>>,
}

/// What belongs to a slot whoever sits there.
#[derive(Debug, Default)]
struct Place {
    /// The worker's process, or the last one's.
    process: Option<Arc<Process>>,
    /// What its worker is to run and no other.
    own: VecDeque<Batch>,
}

/// What a driver does next.
#[derive(Debug)]
pub(crate) enum Step {
    Greet(Newborn),
    /// The chunk lies in the slot's [`Running`].
    Run {
        worker: Worker,
        turn: Turn,
    },
    Quit(Option<Worker>),
}

/// How a chunk counts while it runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// It has more than one item.
    is_crowded: bool,
    /// Its tasks are brisk.
    brisk: Option<Period>,
    /// How long to stay awake for its answer, if it is to come soon.
    patience: Option<Duration>,
}

impl Counters {
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots: (0..slots).map(|_| AtomicU64::new(0)).collect(), ..Self::default() }
    }
}

impl Shared {
    pub(crate) fn new(config: Config, orders: supervisor::Orders, inline_limit: usize) -> Self {
        let slots = config.workers;
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        let central = Central {
            queue: VecDeque::new(),
            queued: 0,
            seats: match config.replaces {
                true => Seats::new(slots, START_ATTEMPTS, Instant::now()),
                false => Seats::for_one_process(slots, Instant::now()),
            },
            by_slot: (0..slots).map(|_| Place::default()).collect(),
            drivers: slots,
            limiter: Limiter::new(cpus),
            crowded: Vec::new(),
            watcher: None,
            first_start: None,
        };
        let counters = Counters::new(slots);
        Self {
            config,
            owner: harden::own_pid(),
            central: Mutex::new(central),
            slots: (0..slots).map(|_| Slot::default()).collect(),
            changed: Condvar::new(),
            orders,
            counters,
            cpus,
            inline_limit,
            regions: Arc::default(),
            suspended: Mutex::default(),
            paces: RwLock::default(),
        }
    }

    fn central(&self) -> MutexGuard<'_, Central> {
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

    // ── from the callers ──

    /// In a copy of this pool that `fork` has made: the error of all that is asked of it. The copy has
    /// no threads, and its locks may be held by threads that it doesn't have: no lock of the pool, or
    /// of a job that is older than the fork, may be taken there.
    pub(crate) fn forked(&self) -> Option<TaskErrorKind> {
        (harden::own_pid() != self.owner).then_some(TaskErrorKind::Forked { owner: self.owner })
    }

    /// What is known of a function's speed.
    pub(crate) fn pace(&self, call: Call) -> Arc<Pace> {
        if self.forked().is_some() {
            return Arc::default();
        }
        if let Some(pace) = self.paces.read().unwrap_or_else(PoisonError::into_inner).get(&call) {
            return Arc::clone(pace);
        }
        let mut paces = self.paces.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(paces.entry(call).or_default())
    }

    /// Whether anything is still accepted.
    pub(crate) fn is_open(&self) -> bool {
        self.forked().is_none() && self.central().seats.phase() == Phase::Open
    }

    /// Queues a batch. A pool that is closed settles it at once.
    pub(crate) fn submit(&self, batch: Batch) {
        if self.forked().is_some() {
            return self.refuse(&batch);
        }
        let mut central = self.central();
        if central.seats.phase() != Phase::Open || batch.job.call.is_err() {
            drop(central);
            return self.refuse(&batch);
        }
        central.queued += u64::from(batch.items);
        match batch.slot {
            Some(slot) => {
                central.by_slot[slot].own.push_back(batch);
                let todo = central.seats.summon_to(slot, Instant::now());
                self.carry_out(todo);
            }
            None => {
                central.queue.push_back(batch);
                self.summon(&mut central);
            }
        }
    }

    /// Ends a batch that will not be run any more.
    fn refuse(&self, batch: &Batch) {
        let kind = match batch.job.call {
            Ok(_) => self.forked().unwrap_or(TaskErrorKind::Closed),
            Err(error) => TaskErrorKind::Function { reason: error.to_string() },
        };
        self.fail(batch, Failure::unstarted(kind), Origin::NONE);
    }

    /// Ends a batch as failed in this way, and calls what waits for it: under no lock.
    fn fail(&self, batch: &Batch, failure: Failure, origin: Origin) {
        let mut calls = Calls::default();
        batch.fail(failure, origin, &self.counters, &mut calls);
        self.config.observers.fire(calls);
    }

    /// Runs a batch on this thread, if there is a worker with nothing to do and nothing is queued
    /// before it; gives it back otherwise. It saves two changes of thread.
    pub(crate) fn run_here(&self, batch: Batch) -> Result<(), Batch> {
        let mut central = self.central();
        let is_open = central.seats.phase() == Phase::Open && batch.job.call.is_ok();
        if !is_open || !central.queue.is_empty() {
            return Err(batch);
        }
        let Some((slot, worker)) = central.seats.take_any() else { return Err(batch) };
        let patience = self.patience(&central, &batch);
        let batches = VecDeque::from([batch]);
        let turn = self.start_chunk(&mut central, slot, &worker, batches, patience);
        drop(central);
        self.run(slot, worker, turn);
        Ok(())
    }

    /// How long to stay awake for the answer to a batch that is on its way: not where it is to take
    /// long, nor where the CPUs are needed for work that is under way already.
    fn patience(&self, central: &Central, batch: &Batch) -> Option<Duration> {
        let each = Duration::from_nanos(batch.job.pace.least());
        let expected = each.saturating_mul(batch.items);
        let is_free = 2 * central.seats.out() <= self.cpus;
        let is_quick = expected <= Duration::from_nanos(Pace::WORTHWHILE);
        (is_free && is_quick).then(|| PATIENCE + 2 * expected)
    }

    /// How many items of a job it makes sense to have waiting.
    pub(crate) fn window(&self, job: &Job) -> u64 {
        // Enough that a driver always finds a full chunk, and that one slow item doesn't soon stop
        // the others; few enough that an input is not read far ahead of its use.
        const LEAST: u64 = 32;
        const MOST: u64 = 1 << 20;
        let has_small_chunks = job.options.chunk_size.is_none() && !job.together.load(Relaxed);
        let chunks = if has_small_chunks { 4 } else { 2 };
        (chunks * u64::from(job.chunk())).clamp(LEAST, MOST) * self.config.workers as u64
    }

    /// Takes a job out of the queue, and ends what of it is running.
    pub(crate) fn cancel(&self, job: &Arc<Job>) {
        if self.forked().is_some() {
            return;
        }
        job.cancelled.store(true, Relaxed);
        let is_target = |batch: &Batch| Arc::ptr_eq(&batch.job, job);
        let mut central = self.central();
        let (cancelled, kept) =
            std::mem::take(&mut central.queue).into_iter().partition(&is_target);
        central.queue = kept;
        let mut cancelled: VecDeque<Batch> = cancelled;
        central.queued -= cancelled.iter().map(|batch| u64::from(batch.items)).sum::<u64>();
        let mut refused = Vec::new();
        for slot in 0..self.slots.len() {
            let mut running = self.running(slot);
            let taken = running.as_mut().map_or_else(Vec::new, |chunk| chunk.cancel(is_target));
            drop(running);
            let (ours, others): (Vec<_>, Vec<_>) = taken.into_iter().partition(&is_target);
            cancelled.extend(ours);
            refused.extend(self.requeue(&mut central, others));
        }
        self.mind_needless(&central);
        drop(central);
        // What was asked to end has a grace that the supervisor keeps.
        self.orders.look_by(Instant::now());
        refused.iter().for_each(|batch| self.refuse(batch));
        for batch in cancelled {
            let failure = Failure::unstarted(TaskErrorKind::Cancelled);
            self.fail(&batch, failure, Origin::NONE);
        }
    }

    /// Has idle workers drop the contexts of calls that are over. Busy ones do when they have become
    /// idle.
    pub(crate) fn forget_contexts(&self) {
        self.central().seats.idle_workers().for_each(Worker::forget);
    }

    /// Cancels everything that has not been begun.
    pub(crate) fn cancel_queued(&self) {
        if self.forked().is_some() {
            return;
        }
        let mut central = self.central();
        let mut cancelled = central.take_queued();
        for slot in 0..self.slots.len() {
            let mut running = self.running(slot);
            cancelled
                .extend(running.as_mut().into_iter().flat_map(|chunk| chunk.take_back(u32::MAX)));
        }
        if central.is_over() {
            self.wake(Wake::All);
        }
        self.mind_needless(&central);
        drop(central);
        for batch in cancelled {
            let failure = Failure::unstarted(TaskErrorKind::Cancelled);
            self.fail(&batch, failure, Origin::NONE);
        }
    }

    /// Accepts nothing more.
    pub(crate) fn close(&self) {
        if self.forked().is_some() {
            return;
        }
        let mut central = self.central();
        let todo = central.seats.close();
        self.mind_needless(&central);
        drop(central);
        self.carry_out(todo);
    }

    /// Ends everything: what is queued is settled here, what is running when its worker is dead.
    pub(crate) fn terminate(&self) {
        if self.forked().is_some() {
            return;
        }
        let mut central = self.central();
        let todo = central.seats.terminate();
        let queue = central.take_queued();
        drop(central);
        self.carry_out(todo);
        for batch in queue {
            self.refuse(&batch);
        }
    }

    /// Waits until the drivers have ended.
    pub(crate) fn wait_end(&self) {
        if self.forked().is_some() {
            return;
        }
        let mut central = self.central();
        while central.drivers > 0 {
            central = self.changed.wait(central).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until all workers have been started and one of them has been heard of, or a first start
    /// has failed.
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

    // ── from the drivers ──

    /// Waits until there is something to do for a slot's driver.
    pub(crate) fn next_step(&self, slot: usize) -> Step {
        let mut central = self.central();
        loop {
            let has_work = central.has_work();
            let is_idle = match central.seats.look(slot, has_work) {
                Find::Newborn(newborn) => {
                    self.mind_needless(&central);
                    return Step::Greet(newborn);
                }
                Find::End(worker) => return Step::Quit(worker),
                Find::Nothing => false,
                Find::Idle(worker) => {
                    let allowed = self.allowance(worker);
                    let batches = self.find_work(&mut central, slot, allowed);
                    if !batches.is_empty()
                        && let Some(worker) = central.seats.take(slot)
                    {
                        central.watcher.take_if(|watcher| *watcher == slot);
                        let turn = self.start_chunk(&mut central, slot, &worker, batches, None);
                        return Step::Run { worker, turn };
                    }
                    true
                }
            };
            central = self.sleep(central, slot, is_idle);
        }
    }

    /// What a driver with an idle worker may take: from the queue, or back from another worker.
    fn find_work(&self, central: &mut Central, slot: usize, allowed: u32) -> VecDeque<Batch> {
        let is_watcher = central.watcher == Some(slot);
        if central.by_slot[slot].own.is_empty() && !central.wants_worker() {
            return VecDeque::new();
        }
        let batches = self.next_batches(central, slot, allowed);
        if batches.is_empty() && (is_watcher || central.watcher.is_none()) {
            return self.take_back(central, allowed).into();
        }
        batches
    }

    /// Sleeps until called; one idle driver looks out meanwhile for chunks that have become slow, and
    /// for work that was left to those who then didn't come.
    fn sleep<'a>(
        &self,
        mut central: MutexGuard<'a, Central>,
        slot: usize,
        is_idle: bool,
    ) -> MutexGuard<'a, Central> {
        let call = &self.slots[slot].call;
        let is_needed = !central.crowded.is_empty() || !central.queue.is_empty();
        if is_idle && is_needed && central.watcher.is_none_or(|other| other == slot) {
            central.watcher = Some(slot);
            let waited = call.wait_timeout(central, WATCH).unwrap_or_else(PoisonError::into_inner);
            central = waited.0;
            if waited.1.timed_out() && central.watcher == Some(slot) {
                let has_work = !central.queue.is_empty();
                central.limiter.tick(has_work);
            }
            return central;
        }
        let was_watcher = central.watcher.take_if(|watcher| *watcher == slot).is_some();
        if was_watcher && is_needed {
            self.summon(&mut central);
        }
        call.wait(central).unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes items back from the worker that has the most of them waiting.
    fn take_back(&self, central: &Central, allowed: u32) -> Vec<Batch> {
        let surplus = |slot: &Slot| {
            let running = slot.running.try_lock().ok()?;
            running.as_ref().map(Chunk::surplus).filter(|surplus| *surplus > 0)
        };
        let crowded = central.crowded.iter().map(|slot| &self.slots[*slot]);
        let most = crowded.filter_map(|slot| Some((surplus(slot)?, slot)));
        let Some((surplus, victim)) = most.max_by_key(|(surplus, _)| *surplus) else {
            return Vec::new();
        };
        let mut running = victim.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_mut().map_or_else(Vec::new, |chunk| chunk.take_back(surplus.min(allowed)))
    }

    /// How many tasks a worker may still be given.
    fn allowance(&self, worker: &Worker) -> u32 {
        let left = self.config.max_tasks.map_or(u64::MAX, |most| most - worker.tasks.min(most));
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// The next chunk's batches: one of the slot's own, or from the front of the queue.
    fn next_batches(&self, central: &mut Central, slot: usize, allowed: u32) -> VecDeque<Batch> {
        if let Some(own) = central.by_slot[slot].own.pop_front() {
            central.queued -= u64::from(own.items);
            return VecDeque::from([own]);
        }
        let mut chunk: VecDeque<Batch> = VecDeque::new();
        let (mut items, mut nanos, mut bytes) = (0u32, 0, 0);
        // What is queued is shared out, so that all are done at about the same time.
        let hands = match central.is_brisk() {
            true => central.limiter.limit().min(self.config.workers),
            false => self.config.workers,
        };
        let share = central.queued.div_ceil(hands as u64);
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        while let Some(first) = central.queue.front() {
            let job = &first.job;
            let is_other = chunk.front().is_some_and(|front| {
                !front.job.travels_with(job) || first.is_alone() || front.is_alone()
            });
            let size = match job.options.chunk_size {
                Some(size) => size,
                None => job.chunk().min(share.max(job.pace.worthwhile())),
            };
            let wanted = size.min(allowed).saturating_sub(items).min(first.items);
            let is_long = job.options.chunk_size.is_none() && nanos >= job.stint();
            if is_other || wanted == 0 || is_long || chunk.len() >= MAX_BATCHES {
                break;
            }
            let room = chunk::MOST_BYTES.saturating_sub(bytes + SPAN_HEAD);
            let fitting = match first.fitting(wanted, room) {
                // An item that is larger goes by itself.
                0 if chunk.is_empty() => 1,
                0 => break,
                fitting => fitting,
            };
            let pace = job.pace.nanos();
            let Some(mut batch) = central.queue.pop_front() else { break };
            if fitting < batch.items {
                let front = batch.split_front(fitting);
                central.queue.push_front(std::mem::replace(&mut batch, front));
            }
            central.queued -= u64::from(batch.items);
            items += batch.items;
            nanos += u64::from(batch.items) * pace;
            bytes += batch.arguments().len() + SPAN_HEAD;
            chunk.push_back(batch);
        }
        chunk
    }

    /// Makes batches the slot's chunk. As long as somebody stays awake for it, nobody else need look
    /// whether it has become slow.
    fn start_chunk(
        &self,
        central: &mut Central,
        slot: usize,
        worker: &Worker,
        batches: VecDeque<Batch>,
        patience: Option<Duration>,
    ) -> Turn {
        let is_brisk = batches.front().is_some_and(|batch| batch.job.pace.is_brisk());
        let brisk = is_brisk.then(|| central.limiter.begin());
        worker.process.set_used();
        let chunk = Chunk::new(worker, batches);
        let is_crowded = chunk.items() > 1;
        if is_crowded && patience.is_none() {
            central.crowded.push(slot);
        }
        if !central.queue.is_empty() {
            self.summon(central);
        } else if !central.crowded.is_empty() {
            self.call_watcher(central);
        }
        let look = Instant::now() + chunk.patience();
        *self.running(slot) = Some(chunk);
        self.orders.look_by(look);
        Turn { is_crowded, brisk, patience }
    }

    /// Runs the chunk in a slot's [`Running`] and brings the worker back.
    pub(crate) fn run(&self, slot: usize, mut worker: Worker, turn: Turn) {
        let running = &self.slots[slot].running;
        self.tell_assigned(slot);
        let observers = &self.config.observers;
        let limit = self.inline_limit;
        let late = || {
            if turn.is_crowded {
                let mut central = self.central();
                central.crowded.push(slot);
                self.call_watcher(&mut central);
            }
        };
        let awake = turn.patience.map(|patience| Awake { patience, late: &late });
        let counters = &self.counters;
        let outcome = chunk::run(&mut worker, running, limit, counters, Some(observers), awake);
        let outcome = outcome.map_err(|loss| self.mourn(&worker, *loss));
        if self.regions.have_returned()
            && let Some(at) = Regions::look_at()
        {
            self.orders.look_by(at);
        }
        let mut central = self.central();
        central.end(slot, turn);
        let refused = match outcome {
            Ok(()) => {
                let is_spent = self.config.max_tasks.is_some_and(|most| worker.tasks >= most);
                worker.forget();
                let has_work = central.has_work();
                let todo = central.seats.put(slot, worker, is_spent, has_work, Instant::now());
                self.mind_needless(&central);
                drop(central);
                self.carry_out(todo);
                return;
            }
            Err(again) => self.requeue(&mut central, again),
        };
        let has_work = central.has_work();
        let todo = central.seats.lost(slot, has_work);
        self.mind_needless(&central);
        drop(central);
        self.carry_out(todo);
        refused.iter().for_each(|batch| self.refuse(batch));
    }

    fn tell_assigned(&self, slot: usize) {
        if !self.config.observers.listen() {
            return;
        }
        let kind = self.running(slot).as_ref().and_then(Chunk::assignment);
        if let Some(kind) = kind {
            self.config.observers.tell(|| kind);
        }
    }

    /// Ends or retries the item that was running on a lost worker; gives what is to be queued again.
    fn mourn(&self, worker: &Worker, mut loss: Loss) -> Vec<Batch> {
        let is_terminated = self.is_terminated();
        let process = &worker.process;
        let origin = |batch: &Batch, sent| batch.origin(process.pid(), process.slot, sent);
        let mut again = Vec::new();
        let most_losses = if self.config.replaces { MAX_LOSSES } else { 0 };
        if let Some(mut batch) = loss.victim.take() {
            let kind = match loss.verdict(process) {
                TaskErrorKind::Died { .. } if is_terminated => TaskErrorKind::Closed,
                kind => kind,
            };
            let retries = batch.job.options.retries.unwrap_or(0);
            let may_retry = !matches!(kind, TaskErrorKind::Cancelled | TaskErrorKind::Closed);
            if may_retry && batch.attempt <= retries && !batch.job.cancelled.load(Relaxed) {
                self.config.observers.tell(|| EventKind::Retried {
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
                let origin = origin(&batch, loss.sent);
                self.config.observers.tell(|| EventKind::Finished {
                    slot: origin.slot,
                    pid: origin.pid,
                    id: batch.job.offset + batch.first,
                    attempt: origin.attempt,
                    elapsed: loss.elapsed,
                    error: Some(kind.to_string()),
                });
                let (elapsed, output) = (loss.elapsed, std::mem::take(&mut loss.output));
                let failure = Failure { kind, did_it_run: DidRun::Maybe, elapsed, output };
                self.fail(&batch, failure, origin);
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
                loss.verdict(process)
            } else {
                return true;
            };
            self.fail(batch, Failure::unstarted(kind), origin(batch, loss.sent));
            false
        });
        again
    }

    /// Puts batches back to the front of the queue, in order. Gives those that are not to be run any
    /// more: they are to be [refused](Self::refuse), which may wake somebody, when the lock is let
    /// go.
    #[must_use]
    fn requeue(&self, central: &mut Central, batches: Vec<Batch>) -> Vec<Batch> {
        if central.seats.phase() == Phase::Terminated {
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
            self.summon(central);
        }
        Vec::new()
    }

    /// A worker has been greeted; what is left is its initializer.
    pub(crate) fn greeted(&self) {
        self.central().first_start.get_or_insert(Ok(()));
        self.changed.notify_all();
    }

    /// Brings in a worker that is ready.
    pub(crate) fn ready(&self, slot: usize, worker: Worker) {
        worker.process.set_ready();
        let pid = worker.process.pid();
        self.config.observers.tell(|| EventKind::Ready { slot, pid });
        let mut central = self.central();
        let has_work = central.has_work();
        let todo = central.seats.ready(slot, worker, has_work, Instant::now());
        drop(central);
        self.carry_out(todo);
        self.changed.notify_all();
    }

    /// A worker could not be made ready: another attempt comes after a pause; and the waiting tasks
    /// are told when that has been in vain too often.
    pub(crate) fn start_failed(&self, slot: usize, cause: StartError, was_greeting: bool) {
        let mut central = self.central();
        let (has_work, now) = (central.has_work(), Instant::now());
        let todo = if was_greeting {
            central.seats.unready(slot, has_work, now)
        } else {
            central.seats.unstarted(slot, has_work, now)
        };
        let process = central.by_slot[slot].process.as_ref().filter(|_| was_greeting);
        if process.is_some_and(|process| process.doomed() == Some(Doom::Retired)) {
            // It has been ended because nothing was left to do for it.
            drop(central);
            self.carry_out(todo);
            return self.changed.notify_all();
        }
        let failures = central.seats.failures(slot);
        // What has killed it may be over, and the next attempt is under way.
        let is_killed =
            matches!(cause, StartError::Died(DeathCause::Signaled(..) | DeathCause::OutOfMemory));
        let is_passing = is_killed && !central.seats.is_hopeless(slot);
        // An initializer's failure is the tasks' to learn; whatever comes before it is the
        // builder's, and so is a worker that can't be started beside others that could.
        if !matches!(cause, StartError::Initializer(_)) && !is_passing {
            if central.seats.starts(slot) == 0 {
                central.first_start = Some(Err(cause.clone()));
            } else {
                central.first_start.get_or_insert(Err(cause.clone()));
            }
        }
        let mut told = Vec::new();
        if central.seats.has_given_up() {
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
        self.config.observers.tell(|| EventKind::StartFailed {
            slot,
            failures,
            cause: cause.to_string(),
        });
        self.carry_out(todo);
        self.changed.notify_all();
        for batch in told {
            let (cause, attempts) = (cause.clone(), failures);
            let kind = TaskErrorKind::Initializer { cause, attempts };
            self.fail(&batch, Failure::unstarted(kind), Origin::NONE);
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

    // ── from the supervisor ──

    /// Which process is to be started next; see [`Seats::next_start`].
    pub(crate) fn next_start(&self) -> Start {
        let mut central = self.central();
        let has_work = central.has_work();
        central.seats.next_start(has_work, Instant::now())
    }

    /// A slot's process, or its last one.
    pub(crate) fn process(&self, slot: usize) -> Option<Arc<Process>> {
        self.central().by_slot[slot].process.clone()
    }

    /// A process has been started for a slot.
    pub(crate) fn spawned(&self, slot: usize, newborn: Newborn) {
        let pid = newborn.process.pid();
        // This is the only thread that starts any.
        let replaces = self.central().seats.starts(slot) > 0;
        self.config.observers.tell(|| EventKind::Spawned { slot, pid, replaces });
        let mut central = self.central();
        if replaces {
            self.counters.restarts.fetch_add(1, Relaxed);
        }
        central.by_slot[slot].process = Some(Arc::clone(&newborn.process));
        let todo = central.seats.spawned(slot, newborn);
        let is_last = !replaces && central.all_started();
        drop(central);
        self.carry_out(todo);
        if is_last {
            self.changed.notify_all();
        }
    }

    /// A process has ended; what it leaves is seen to by whoever drove it.
    pub(crate) fn ended(&self, process: &Process) {
        let (slot, generation, was_used) = (process.slot, process.generation, process.was_used());
        let mut central = self.central();
        let has_work = central.has_work();
        let todo = central.seats.ended(slot, generation, was_used, has_work, Instant::now());
        drop(central);
        self.carry_out(todo);
    }

    /// Whether all is done: no driver is left to need a process.
    pub(crate) fn has_ended(&self) -> bool {
        self.central().drivers == 0
    }

    /// Whether nothing is left to do for the workers that are being started, and nothing else is.
    pub(crate) fn is_only_starting(&self) -> bool {
        let central = self.central();
        central.seats.is_only_starting(central.has_work())
    }

    /// Whether the workers are stopped.
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(crate) fn is_terminated(&self) -> bool {
        self.central().seats.phase() == Phase::Terminated
    }

    /// Lets workers go that have been idle for long; gives when to look again.
    pub(crate) fn retire_idle(&self) -> Option<Instant> {
        let limit = self.config.idle_timeout?;
        let now = Instant::now();
        if let Some(since) = now.checked_sub(limit) {
            let rest = || self.central().seats.rest(since, self.config.min_workers);
            std::iter::from_fn(rest).for_each(|(_, worker)| worker.retire());
        }
        // Often enough that nobody stays much longer, and not for each that becomes idle.
        now.checked_add((limit / 4).max(Duration::from_millis(5)))
    }

    /// Ends a worker that uses more memory than it may.
    pub(crate) fn end_for_memory(&self, process: &Arc<Process>) {
        let mut central = self.central();
        let mut running = self.running(process.slot);
        let chunk = running.as_mut().filter(|chunk| Arc::ptr_eq(&chunk.process, process));
        let Some(chunk) = chunk else { return process.kill(Doom::OutOfMemory) };
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
                chunk.forgive(since.elapsed());
            }
        }
        // Let go first: the supervisor looks at it, and it is the supervisor that is waited for.
        drop(suspended);
        self.orders.signal(signal);
    }

    fn running(&self, slot: usize) -> MutexGuard<'_, Option<Chunk>> {
        self.slots[slot].running.lock().unwrap_or_else(PoisonError::into_inner)
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
            state: central.seats.state(slot),
            tasks_done: self.counters.slots[slot].load(Relaxed),
            restarts: central.seats.starts(slot).saturating_sub(1),
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
        let open = |slot: &Slot| {
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
            let mut running = self.running(slot);
            let Some(chunk) = running.as_mut() else { continue };
            let (rest, again) = chunk.enforce();
            drop(running);
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

    // ── among themselves ──

    /// Rings for the supervisor if nothing is left to do for the workers that are being started.
    fn mind_needless(&self, central: &Central) {
        if central.seats.is_only_starting(central.has_work()) {
            self.orders.ring();
        }
    }

    /// Has somebody come for what is queued, unless somebody will be back for it in a moment.
    fn summon(&self, central: &mut Central) {
        if !central.wants_worker() && self.call_watcher(central) {
            return;
        }
        let todo = central.seats.summon(Instant::now());
        self.carry_out(todo);
    }

    /// Sees to it that somebody looks out, if there is an idle driver for that: the one that would be
    /// called last.
    fn call_watcher(&self, central: &mut Central) -> bool {
        if central.watcher.is_none() {
            central.watcher = central.seats.coldest();
            self.wake(central.watcher.map_or(Wake::Nobody, Wake::One));
        }
        central.watcher.is_some()
    }

    /// Does what an event asks for.
    fn carry_out(&self, todo: Todo<Worker>) {
        self.wake(todo.call);
        if todo.start {
            self.orders.ring();
        }
        if let Some(worker) = todo.retire {
            worker.retire();
        }
    }

    fn wake(&self, call: Wake) {
        match call {
            Wake::Nobody => {}
            Wake::One(slot) => self.slots[slot].call.notify_one(),
            Wake::All => self.slots.iter().for_each(|slot| slot.call.notify_one()),
        }
    }
}

impl Central {
    fn has_work(&self) -> bool {
        self.queued > 0
    }

    /// Takes all that waits.
    fn take_queued(&mut self) -> Vec<Batch> {
        self.queued = 0;
        let own = self.by_slot.iter_mut().flat_map(|place| place.own.drain(..));
        self.queue.drain(..).chain(own).collect()
    }

    /// Whether what is queued is brisk, as far as can be seen.
    fn is_brisk(&self) -> bool {
        self.queue.front().is_some_and(|batch| batch.job.pace.is_brisk())
    }

    /// Whether what is queued is worth another worker.
    fn wants_worker(&self) -> bool {
        let Some(first) = self.queue.front().filter(|_| self.is_brisk()) else { return true };
        let worthwhile = u64::from(first.job.pace.worthwhile());
        self.limiter.has_room(self.seats.called(), self.queued >= worthwhile)
    }

    /// A chunk is back.
    fn end(&mut self, slot: usize, turn: Turn) {
        if turn.is_crowded
            && let Some(at) = self.crowded.iter().position(|crowded| *crowded == slot)
        {
            self.crowded.swap_remove(at);
        }
        if let Some(sent) = turn.brisk {
            self.limiter.end(sent);
        }
    }

    /// Whether the drivers are to end.
    fn is_over(&self) -> bool {
        self.seats.is_over(self.has_work())
    }

    /// Whether each slot has had a process.
    fn all_started(&self) -> bool {
        (0..self.seats.len()).all(|slot| self.seats.starts(slot) > 0)
    }
}
