//! Who gets what: the queue, the slots, and the moves between them. One lock guards both, and is
//! held for moments; what takes time (talking to a worker, starting one) happens outside of it.
//!
//! Locks are taken in this order: [`Central`], then a slot's [`Running`], then a job's own.
//!
//! A slot is a seat for one worker at a time:
//!
//! ```text
//!            supervisor starts a process         driver greets it
//!   Vacant ───────────────────────────► Spawned ─────────────────► Busy ◄──► Idle
//!     ▲                                                              │         │
//!     └───────────── the worker dies or is retired ◄─────────────────┴─────────┘
//! ```
//!
//! The [`Worker`] itself is a token that moves: it sits in the seat while it is idle, and whoever
//! takes it out (the slot's driver, or a caller of `apply`) brings it back or reports it lost.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use procpool_worker::function::Call;
use procpool_worker::protocol::SPAN_HEAD;
use rustix::process::Signal;

use super::batch::{Batch, Pace};
use super::builder::Config;
use super::chunk::{self, Chunk, Loss, Running};
use super::events::EventKind;
use super::job::{Failure, Job, Origin};
use super::regions::Regions;
use super::supervisor;
use super::worker::{Doom, Newborn, Process, Worker};
use super::{WorkerInfo, WorkerState};
use crate::error::{DidRun, StartError, TaskErrorKind};

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

/// What the pool's threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    central: Mutex<Central>,
    pub(crate) slots: Box<[Slot]>,
    /// Notified when a worker becomes ready or fails to, and when a driver ends.
    changed: Condvar,
    pub(crate) orders: supervisor::Orders,
    pub(crate) counters: Counters,
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
    phase: Phase,
    queue: VecDeque<Batch>,
    queued: u64,
    seats: Vec<Seat>,
    /// Slots with an idle worker whose driver sleeps; the last is the one to call first, since its
    /// worker's memory is the warmest.
    idle: Vec<usize>,
    /// How many workers are out of their seats.
    busy: usize,
    /// How many drivers are at work at all.
    drivers: usize,
    /// How many chunks of more than one item are running.
    crowded: usize,
    /// How many seats rest.
    resting: usize,
    /// The driver that looks out for slow chunks.
    watcher: Option<usize>,
    /// Set when waiting tasks were told that no worker can be made ready; a new task clears it and
    /// is worth new attempts.
    given_up: bool,
    /// The first start's outcome, for whoever builds the pool.
    first_start: Option<Result<(), StartError>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing more is accepted.
    Closed,
    /// Nothing more is done.
    Terminated,
}

#[derive(Debug)]
struct Seat {
    state: SeatState,
    /// The worker's process, or the last one's.
    process: Option<Arc<Process>>,
    /// How many times in a row a worker could not be made ready here.
    failures: u32,
    /// How many processes have been started here.
    starts: u64,
    /// Since when its worker is idle, if it is.
    idle_since: Instant,
    /// What its worker is to run and no other.
    own: VecDeque<Batch>,
}

#[derive(Debug)]
enum SeatState {
    /// The supervisor has been asked to start a process, or will be.
    Vacant,
    /// The driver is to greet it.
    Spawned(Newborn),
    /// The driver or a caller has the worker. If it has died meanwhile, its successor waits here.
    Busy(Option<Newborn>),
    Idle(Worker),
    /// The worker has been through all the tasks that one may be; it goes when its successor is
    /// there.
    Leaving(Worker),
    /// The worker was let go for want of work; another is started when there is some.
    Resting,
}

/// What a driver does next.
#[derive(Debug)]
pub(crate) enum Step {
    Greet(Newborn),
    /// The chunk lies in the slot's [`Running`]; `is_crowded` says whether it counts as such.
    Run {
        worker: Worker,
        is_crowded: bool,
    },
    Quit(Option<Worker>),
}

impl Counters {
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots: (0..slots).map(|_| AtomicU64::new(0)).collect(), ..Self::default() }
    }
}

impl Shared {
    pub(crate) fn new(config: Config, orders: supervisor::Orders, inline_limit: usize) -> Self {
        let slots = config.workers;
        let now = Instant::now();
        let seat = |_| Seat {
            state: SeatState::Vacant,
            process: None,
            failures: 0,
            starts: 0,
            idle_since: now,
            own: VecDeque::new(),
        };
        let central = Central {
            phase: Phase::Open,
            queue: VecDeque::new(),
            queued: 0,
            seats: (0..slots).map(seat).collect(),
            idle: Vec::with_capacity(slots),
            busy: 0,
            drivers: slots,
            crowded: 0,
            resting: 0,
            watcher: None,
            given_up: false,
            first_start: None,
        };
        let counters = Counters::new(slots);
        Self {
            config,
            central: Mutex::new(central),
            slots: (0..slots).map(|_| Slot::default()).collect(),
            changed: Condvar::new(),
            orders,
            counters,
            inline_limit,
            regions: Arc::default(),
            suspended: Mutex::default(),
            paces: RwLock::default(),
        }
    }

    fn central(&self) -> MutexGuard<'_, Central> {
        self.central.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ── from the callers ──

    /// What is known of a function's speed.
    pub(crate) fn pace(&self, call: Call) -> Arc<Pace> {
        if let Some(pace) = self.paces.read().unwrap_or_else(PoisonError::into_inner).get(&call) {
            return Arc::clone(pace);
        }
        let mut paces = self.paces.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(paces.entry(call).or_default())
    }

    /// Whether anything is still accepted.
    pub(crate) fn is_open(&self) -> bool {
        self.central().phase == Phase::Open
    }

    /// Queues a batch. A pool that is closed settles it at once.
    pub(crate) fn submit(&self, batch: Batch) {
        let mut central = self.central();
        if central.phase != Phase::Open || batch.job.call.is_err() {
            drop(central);
            return self.refuse(&batch);
        }
        central.queued += u64::from(batch.items);
        self.revive(&mut central);
        match batch.slot {
            Some(slot) => {
                central.seats[slot].own.push_back(batch);
                self.rouse(&mut central, slot);
                self.slots[slot].call.notify_one();
            }
            None => {
                central.queue.push_back(batch);
                self.call_one(&mut central);
            }
        }
    }

    /// Ends a batch that will not be run any more.
    fn refuse(&self, batch: &Batch) {
        let kind = match batch.job.call {
            Ok(_) => TaskErrorKind::Closed,
            Err(error) => TaskErrorKind::Function { reason: error.to_string() },
        };
        batch.fail(Failure::unstarted(kind), Origin::NONE, &self.counters);
    }

    /// Runs a batch on this thread, if there is a worker with nothing to do and nothing is queued
    /// before it; gives it back otherwise. It saves two changes of thread.
    pub(crate) fn run_here(&self, batch: Batch) -> Result<(), Batch> {
        let mut central = self.central();
        let is_open = central.phase == Phase::Open && batch.job.call.is_ok();
        if !is_open || !central.queue.is_empty() {
            return Err(batch);
        }
        let Some((slot, worker)) = central.take_idle() else { return Err(batch) };
        let is_crowded = self.start_chunk(&mut central, slot, &worker, VecDeque::from([batch]));
        drop(central);
        self.run(slot, worker, is_crowded);
        Ok(())
    }

    /// How many items of a job it makes sense to have waiting.
    pub(crate) fn window(&self, job: &Job) -> u64 {
        // Enough that a driver always finds a full chunk, and that one slow item doesn't soon stop
        // the others; few enough that an input is not read far ahead of its use.
        const LEAST: u64 = 32;
        const MOST: u64 = 1 << 20;
        let chunk = match job.options.chunk_size {
            Some(size) => 2 * u64::from(size),
            None => 4 * u64::from(job.pace.chunk()),
        };
        chunk.clamp(LEAST, MOST) * self.config.workers as u64
    }

    /// Takes a job out of the queue, and ends what of it is running.
    pub(crate) fn cancel(&self, job: &Arc<Job>) {
        job.cancelled.store(true, Relaxed);
        let is_target = |batch: &Batch| Arc::ptr_eq(&batch.job, job);
        let mut central = self.central();
        let (cancelled, kept) =
            std::mem::take(&mut central.queue).into_iter().partition(&is_target);
        central.queue = kept;
        let mut cancelled: VecDeque<Batch> = cancelled;
        central.queued -= cancelled.iter().map(|batch| u64::from(batch.items)).sum::<u64>();
        for slot in 0..self.slots.len() {
            let mut running = self.running(slot);
            let taken = running.as_mut().map_or_else(Vec::new, |chunk| chunk.cancel(is_target));
            drop(running);
            let (ours, others): (Vec<_>, Vec<_>) = taken.into_iter().partition(&is_target);
            cancelled.extend(ours);
            self.requeue(&mut central, others);
        }
        drop(central);
        for batch in cancelled {
            let failure = Failure::unstarted(TaskErrorKind::Cancelled);
            batch.fail(failure, Origin::NONE, &self.counters);
        }
    }

    /// Has idle workers drop the contexts of calls that are over. Busy ones do when they have become
    /// idle.
    pub(crate) fn forget_contexts(&self) {
        for seat in &mut self.central().seats {
            if let SeatState::Idle(worker) = &mut seat.state {
                worker.forget();
            }
        }
    }

    /// Cancels everything that has not been begun.
    pub(crate) fn cancel_queued(&self) {
        let mut central = self.central();
        let mut cancelled = central.take_queued();
        for slot in 0..self.slots.len() {
            let mut running = self.running(slot);
            cancelled
                .extend(running.as_mut().into_iter().flat_map(|chunk| chunk.take_back(u32::MAX)));
        }
        self.call_if_over(&central);
        drop(central);
        for batch in cancelled {
            let failure = Failure::unstarted(TaskErrorKind::Cancelled);
            batch.fail(failure, Origin::NONE, &self.counters);
        }
    }

    /// Accepts nothing more.
    pub(crate) fn close(&self) {
        let mut central = self.central();
        if central.phase == Phase::Open {
            central.phase = Phase::Closed;
        }
        self.call_all();
    }

    /// Ends everything: what is queued is settled here, what is running when its worker is dead.
    pub(crate) fn terminate(&self) {
        let mut central = self.central();
        central.phase = Phase::Terminated;
        let queue = central.take_queued();
        self.call_all();
        drop(central);
        self.orders.ring();
        for batch in queue {
            self.refuse(&batch);
        }
    }

    /// Waits until the drivers have ended.
    pub(crate) fn wait_end(&self) {
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
                Some(Ok(())) if central.seats.iter().all(|seat| seat.starts > 0) => return Ok(()),
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
            let is_over = central.is_over();
            let seat = &mut central.seats[slot].state;
            match std::mem::replace(seat, SeatState::Vacant) {
                SeatState::Spawned(newborn) => {
                    *seat = SeatState::Busy(None);
                    central.busy += 1;
                    return Step::Greet(newborn);
                }
                SeatState::Idle(worker) => {
                    central.idle.retain(|idle| *idle != slot);
                    if is_over {
                        return Step::Quit(Some(worker));
                    }
                    let allowed = self.allowance(&worker);
                    let mut batches = self.next_batches(&mut central, slot, allowed);
                    if batches.is_empty() && central.watcher.is_none_or(|watcher| watcher == slot) {
                        batches = self.take_back(slot, allowed).into();
                    }
                    if !batches.is_empty() {
                        central.watcher.take_if(|watcher| *watcher == slot);
                        central.seats[slot].state = SeatState::Busy(None);
                        let is_crowded = self.start_chunk(&mut central, slot, &worker, batches);
                        return Step::Run { worker, is_crowded };
                    }
                    central.seats[slot].state = SeatState::Idle(worker);
                    central.idle.push(slot);
                }
                SeatState::Leaving(worker) if is_over => {
                    return Step::Quit(Some(worker));
                }
                other => {
                    *seat = other;
                    if is_over && !matches!(central.seats[slot].state, SeatState::Busy(_)) {
                        return Step::Quit(None);
                    }
                }
            }
            central = self.sleep(central, slot);
        }
    }

    /// Sleeps until called; one idle driver looks out for chunks that have become slow meanwhile.
    fn sleep<'a>(
        &self,
        mut central: MutexGuard<'a, Central>,
        slot: usize,
    ) -> MutexGuard<'a, Central> {
        let call = &self.slots[slot].call;
        let is_idle = matches!(central.seats[slot].state, SeatState::Idle(_));
        if is_idle && central.crowded > 0 && central.watcher.is_none_or(|other| other == slot) {
            central.watcher = Some(slot);
            return call.wait_timeout(central, WATCH).unwrap_or_else(PoisonError::into_inner).0;
        }
        central.watcher.take_if(|watcher| *watcher == slot);
        call.wait(central).unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes items back from the worker that has the most of them waiting.
    fn take_back(&self, thief: usize, allowed: u32) -> Vec<Batch> {
        let surplus = |slot: &Slot| {
            let running = slot.running.try_lock().ok()?;
            running.as_ref().map(Chunk::surplus).filter(|surplus| *surplus > 0)
        };
        let others = self.slots.iter().enumerate().filter(|(slot, _)| *slot != thief);
        let most = others.filter_map(|(_, slot)| Some((surplus(slot)?, slot)));
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
        if let Some(own) = central.seats[slot].own.pop_front() {
            central.queued -= u64::from(own.items);
            return VecDeque::from([own]);
        }
        let mut chunk: VecDeque<Batch> = VecDeque::new();
        let (mut items, mut nanos, mut bytes) = (0u32, 0, 0);
        // What is queued is shared out, so that all are done at about the same time.
        let share = central.queued.div_ceil(self.config.workers as u64);
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        while let Some(first) = central.queue.front() {
            let job = &first.job;
            let is_other = chunk.front().is_some_and(|front| !front.job.travels_with(job));
            let size = job.options.chunk_size.unwrap_or_else(|| job.pace.chunk().min(share));
            let wanted = size.min(allowed).saturating_sub(items).min(first.items);
            let is_long = job.options.chunk_size.is_none() && nanos >= Pace::CHUNK;
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

    /// Makes batches the slot's chunk; whether it has more than one item.
    fn start_chunk(
        &self,
        central: &mut Central,
        slot: usize,
        worker: &Worker,
        batches: VecDeque<Batch>,
    ) -> bool {
        central.busy += 1;
        worker.process.set_used();
        let chunk = Chunk::new(worker, batches);
        let is_crowded = chunk.items() > 1;
        if is_crowded {
            central.crowded += 1;
            if central.queue.is_empty() && central.watcher.is_none() {
                self.call_one(central);
            }
        } else if !central.queue.is_empty() {
            self.call_one(central);
        }
        let limit = chunk.limit;
        *self.running(slot) = Some(chunk);
        if let Some(at) = limit.and_then(|limit| Instant::now().checked_add(limit)) {
            self.orders.look_by(at);
        }
        is_crowded
    }

    /// Runs the chunk in a slot's [`Running`] and brings the worker back.
    pub(crate) fn run(&self, slot: usize, mut worker: Worker, was_crowded: bool) {
        let running = &self.slots[slot].running;
        self.tell_assigned(slot);
        let observers = &self.config.observers;
        let limit = self.inline_limit;
        let outcome = chunk::run(&mut worker, running, limit, &self.counters, Some(observers));
        let outcome = outcome.map_err(|loss| self.mourn(&worker, *loss));
        if self.regions.have_returned()
            && let Some(at) = Regions::look_at()
        {
            self.orders.look_by(at);
        }
        let mut central = self.central();
        central.crowded -= usize::from(was_crowded);
        match outcome {
            Ok(()) => self.seat(central, slot, worker),
            Err(again) => {
                self.requeue(&mut central, again);
                self.vacate(central, slot);
            }
        }
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

    /// Puts an idle worker into its seat.
    fn seat(&self, mut central: MutexGuard<'_, Central>, slot: usize, mut worker: Worker) {
        central.busy -= 1;
        let seat = &mut central.seats[slot].state;
        match std::mem::replace(seat, SeatState::Vacant) {
            // It has died since; its successor is there.
            SeatState::Busy(Some(newborn)) => {
                *seat = SeatState::Spawned(newborn);
                self.slots[slot].call.notify_one();
            }
            // Where nobody takes its place, its end is found out by whoever is to use it.
            _ if worker.process.is_ending() && self.config.replaces => {
                self.order(&mut central, slot);
            }
            _ if self.config.max_tasks.is_some_and(|most| worker.tasks >= most) => {
                worker.process.set_leaving();
                *seat = SeatState::Leaving(worker);
                self.order(&mut central, slot);
            }
            _ => {
                worker.forget();
                *seat = SeatState::Idle(worker);
                central.seats[slot].idle_since = Instant::now();
                central.idle.push(slot);
                if !central.seats[slot].own.is_empty() {
                    self.slots[slot].call.notify_one();
                }
                if !central.queue.is_empty() {
                    self.call_one(&mut central);
                }
            }
        }
        self.call_if_over(&central);
    }

    /// Leaves the seat of a worker that is lost to its successor.
    fn vacate(&self, mut central: MutexGuard<'_, Central>, slot: usize) {
        central.busy -= 1;
        let seat = &mut central.seats[slot].state;
        match std::mem::replace(seat, SeatState::Vacant) {
            SeatState::Busy(Some(newborn)) => *seat = SeatState::Spawned(newborn),
            _ => self.order(&mut central, slot),
        }
        self.slots[slot].call.notify_one();
        self.call_if_over(&central);
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
                let id = batch.job.offset + batch.first;
                self.config.observers.retried(id, batch.attempt, &kind);
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
                batch.fail(failure, origin, &self.counters);
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
            batch.fail(Failure::unstarted(kind), origin(batch, loss.sent), &self.counters);
            false
        });
        again
    }

    /// Puts batches back to the front of the queue, in order.
    fn requeue(&self, central: &mut Central, batches: Vec<Batch>) {
        for batch in batches.into_iter().rev() {
            if central.phase == Phase::Terminated {
                self.refuse(&batch);
                continue;
            }
            central.queued += u64::from(batch.items);
            match batch.slot {
                Some(slot) => central.seats[slot].own.push_front(batch),
                None => central.queue.push_front(batch),
            }
        }
        if !central.queue.is_empty() {
            self.call_one(central);
        }
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
        central.seats[slot].failures = 0;
        central.given_up = false;
        self.seat(central, slot, worker);
        self.changed.notify_all();
    }

    /// A worker could not be made ready: tries again after a pause, and tells the waiting tasks
    /// when that has been in vain too often.
    pub(crate) fn start_failed(&self, slot: usize, cause: StartError, was_greeting: bool) {
        let mut central = self.central();
        central.busy -= usize::from(was_greeting);
        central.seats[slot].failures += 1;
        // Without a process, the slot's last worker may still be being mourned.
        if was_greeting || !matches!(central.seats[slot].state, SeatState::Busy(_)) {
            central.seats[slot].state = SeatState::Vacant;
        }
        let failures = central.seats[slot].failures;
        // An initializer's failure is the tasks' to learn; whatever comes before it is the
        // builder's, and so is a worker that can't be started beside others that could.
        if !matches!(cause, StartError::Initializer(_)) {
            if central.seats[slot].starts == 0 {
                central.first_start = Some(Err(cause.clone()));
            } else {
                central.first_start.get_or_insert(Err(cause.clone()));
            }
        }
        self.config.observers.tell(|| EventKind::StartFailed {
            slot,
            failures,
            cause: cause.to_string(),
        });
        let mut told = Vec::new();
        if failures >= START_ATTEMPTS {
            if central.seats.iter().all(|seat| seat.failures > 0) {
                central.given_up = true;
                told = central.take_queued();
            } else {
                // The others go on; what is for this one's worker alone is hopeless.
                told.extend(std::mem::take(&mut central.seats[slot].own));
                central.queued -= told.iter().map(|batch| u64::from(batch.items)).sum::<u64>();
            }
        }
        self.order(&mut central, slot);
        self.call_if_over(&central);
        drop(central);
        self.changed.notify_all();
        for batch in told {
            let (cause, attempts) = (cause.clone(), failures);
            let kind = TaskErrorKind::Initializer { cause, attempts };
            batch.fail(Failure::unstarted(kind), Origin::NONE, &self.counters);
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

    /// Whether a worker that has died is to have a successor.
    pub(crate) fn wants_successor(&self) -> bool {
        self.may_start(&self.central())
    }

    /// A slot's process, or its last one.
    pub(crate) fn process(&self, slot: usize) -> Option<Arc<Process>> {
        self.central().seats[slot].process.clone()
    }

    /// A process has been started for a slot.
    pub(crate) fn spawned(&self, slot: usize, newborn: Newborn) {
        let pid = newborn.process.pid();
        let mut central = self.central();
        let seat = &mut central.seats[slot];
        seat.process = Some(Arc::clone(&newborn.process));
        seat.starts += 1;
        let replaces = seat.starts > 1;
        self.config.observers.tell(|| EventKind::Spawned { slot, pid, replaces });
        if seat.starts > 1 {
            self.counters.restarts.fetch_add(1, Relaxed);
        }
        match &mut seat.state {
            SeatState::Busy(successor) => *successor = Some(newborn),
            // An idle worker that has died goes unmourned, one that leaves is let go.
            state => {
                if let SeatState::Leaving(worker) =
                    std::mem::replace(state, SeatState::Spawned(newborn))
                {
                    worker.retire();
                }
            }
        }
        let is_last = seat.starts == 1 && slot + 1 == central.seats.len();
        central.idle.retain(|idle| *idle != slot);
        self.slots[slot].call.notify_one();
        if is_last {
            self.changed.notify_all();
        }
    }

    /// Whether all is done: no driver is left to need a process.
    pub(crate) fn has_ended(&self) -> bool {
        self.central().drivers == 0
    }

    /// Whether the workers are stopped.
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(crate) fn is_terminated(&self) -> bool {
        self.central().phase == Phase::Terminated
    }

    /// Lets workers go that have been idle for long; gives when to look again.
    pub(crate) fn retire_idle(&self) -> Option<Instant> {
        let limit = self.config.idle_timeout?;
        let mut central = self.central();
        let now = Instant::now();
        for slot in 0..central.seats.len() {
            let live = central.seats.len() - central.resting;
            let seat = &mut central.seats[slot];
            if live <= self.config.min_workers
                || !seat.own.is_empty()
                || seat.idle_since.checked_add(limit).is_none_or(|at| now < at)
            {
                continue;
            }
            match std::mem::replace(&mut seat.state, SeatState::Resting) {
                SeatState::Idle(worker) => {
                    worker.process.set_leaving();
                    worker.retire();
                    central.resting += 1;
                    central.idle.retain(|idle| *idle != slot);
                }
                other => seat.state = other,
            }
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
        self.requeue(&mut central, rest);
    }

    /// Stops all workers and what they have started, or lets them go on; the time between does not
    /// count for time limits.
    pub(crate) fn suspend(&self, stop: bool) {
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
        let central = self.central();
        let info = |(slot, seat): (usize, &Seat)| WorkerInfo {
            slot,
            pid: seat.process.as_ref().map_or(0, |process| process.pid()),
            state: match &seat.state {
                SeatState::Vacant | SeatState::Resting => WorkerState::Absent,
                SeatState::Spawned(_) => WorkerState::Starting,
                SeatState::Busy(_) => {
                    let running = &self.slots[slot].running;
                    let running = running.lock().unwrap_or_else(PoisonError::into_inner);
                    match running.as_ref().map(|chunk| chunk.process.was_ready()) {
                        Some(true) => WorkerState::Busy,
                        _ => WorkerState::Starting,
                    }
                }
                SeatState::Idle(_) | SeatState::Leaving(_) => WorkerState::Idle,
            },
            tasks_done: self.counters.slots[slot].load(Relaxed),
            restarts: seat.starts.saturating_sub(1),
            memory: None,
            cpu: None,
        };
        central.seats.iter().enumerate().map(info).collect()
    }

    /// How many tasks wait, and how many have been sent to a worker and are not delivered.
    pub(crate) fn load(&self) -> (u64, u64) {
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
                self.requeue(&mut central, rest);
            }
        }
        next
    }

    // ── among themselves ──

    /// Whether another process is of use.
    fn may_start(&self, central: &Central) -> bool {
        let is_due =
            self.config.replaces || central.seats.iter().all(|seat| seat.process.is_none());
        is_due && !central.is_over() && !central.given_up
    }

    /// Asks the supervisor for a process, after a pause that grows with the failures.
    fn order(&self, central: &mut Central, slot: usize) {
        if !self.may_start(central) {
            return;
        }
        let pause = match central.seats[slot].failures {
            0 | 1 => Duration::ZERO,
            n => Duration::from_millis(10 << (n - 2).min(8)),
        };
        self.orders.spawn(slot, Instant::now() + pause);
    }

    /// Makes new attempts after having given up.
    fn revive(&self, central: &mut Central) {
        if !std::mem::take(&mut central.given_up) {
            return;
        }
        for slot in 0..central.seats.len() {
            central.seats[slot].failures = 0;
            if matches!(central.seats[slot].state, SeatState::Vacant) {
                self.order(central, slot);
            }
        }
    }

    /// Wakes the driver of one idle worker; where there is none, has one started of those that were
    /// let go.
    fn call_one(&self, central: &mut Central) {
        if let Some(slot) = central.idle.pop() {
            self.slots[slot].call.notify_one();
        } else if central.resting > 0
            && let Some(slot) =
                central.seats.iter().position(|seat| matches!(seat.state, SeatState::Resting))
        {
            self.rouse(central, slot);
        }
    }

    /// Has a worker started in a slot whose last one was let go.
    fn rouse(&self, central: &mut Central, slot: usize) {
        if matches!(central.seats[slot].state, SeatState::Resting) {
            central.resting -= 1;
            central.seats[slot].state = SeatState::Vacant;
            self.order(central, slot);
        }
    }

    fn call_all(&self) {
        for slot in &self.slots {
            slot.call.notify_one();
        }
    }

    fn call_if_over(&self, central: &Central) {
        if central.is_over() {
            self.call_all();
        }
    }
}

impl Central {
    /// Whether the drivers are to end.
    fn is_over(&self) -> bool {
        match self.phase {
            Phase::Open => false,
            Phase::Closed => self.queued == 0 && self.busy == 0,
            Phase::Terminated => true,
        }
    }

    /// Takes all that waits.
    fn take_queued(&mut self) -> Vec<Batch> {
        self.queued = 0;
        let own = self.seats.iter_mut().flat_map(|seat| seat.own.drain(..));
        self.queue.drain(..).chain(own).collect()
    }

    fn take_idle(&mut self) -> Option<(usize, Worker)> {
        while let Some(slot) = self.idle.pop() {
            let seat = &mut self.seats[slot].state;
            match std::mem::replace(seat, SeatState::Busy(None)) {
                SeatState::Idle(worker) => return Some((slot, worker)),
                other => *seat = other,
            }
        }
        None
    }
}
