//! State machine of the worker slots. Every event updates one slot and returns the [`Actions`] that the
//! scheduler must perform.
//!
//! | state | event | next state |
//! |---|---|---|
//! | `Empty` | a process has started | `Spawned` |
//! | `Spawned` | the driver polls | `Handshaking` |
//! | `Handshaking` | ready; failed or died | `Idle`; `Empty` |
//! | `Idle` | checked out; died; idle for long, or surplus | `CheckedOut`; `Empty`; `Parked` |
//! | `CheckedOut` | checked in; task limit reached; lost | `Idle`; `Draining`; `Empty`, or `Spawned` |
//! | `Draining` | the replacement has started | `Spawned` |
//! | `Parked` | work was queued | `Empty` |
//!
//! A slot starts as `Empty`, or as `Parked` if its worker is to start when there is work for it. Where workers stand
//! by as spares, all slots have workers, and no more of them run tasks at once than the pool has without the
//! spares. Which ones stand by changes with every task.
//!
//! A pool that has become smaller keeps its slots. Those from `limit` on are surplus: their workers take no task from
//! the queue, finish what is bound to them, and are parked when their drivers poll.
//!
//! `parking` parks slots, starts workers in parked ones, and changes their number. `slot` has the states.
//!
//! Nothing here blocks, locks, or knows what a process is. A started process (`N`) and a ready worker (`W`)
//! are tokens, each in exactly one place. The scheduler keeps the table under its lock and performs the
//! [`Actions`]; `model` explores all sequences of events, with numbers for tokens.
//!
//! Many events take `has_work`: whether any task is queued, for any slot.
//!
//! A slot never has more than two processes: the one that serves it, or will serve it, and one that is
//! draining.

#[cfg(test)]
mod model;
mod parking;
mod slot;

pub(crate) use self::slot::{Actions, Phase, SlotPoll, SpawnDecision, Wake};
use self::slot::{ProcessState, Slot, State};
use crate::pool::types::WorkerState;
use std::time::{Duration, Instant};

/// Consecutive workers of a slot that may die without having received a task before restarts are delayed.
/// Something kills them on start, and immediate restarts would be a spawn storm.
pub(crate) const MAX_EARLY_DEATHS: u32 = 3;

/// How long the replacement of a lost worker waits, in milliseconds, while another stands by. On the CPU of the
/// supervisor, its start would delay the next answer by 0.2 ms.
const REPLACEMENT_PAUSE: u64 = 1;

/// Maximum number of draining processes of a slot when another is started.
const MAX_DRAINING: u32 = 1;

/// Numbers of a pool's workers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    /// All of them.
    pub(crate) slots: usize,
    /// How many stand by while all others run tasks.
    pub(crate) spares: usize,
    /// How many are started at once. The others are started when there is work for them.
    pub(crate) initial: usize,
}

/// All slots of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SlotTable<N, W> {
    slots: Vec<Slot<N, W>>,
    /// The slots below this one serve the queue. The others are surplus.
    limit: usize,
    phase: Phase,
    /// Slots with an idle worker whose driver has not been woken. The last is woken first, because its
    /// worker's memory is the warmest.
    idle: Vec<usize>,
    /// Number of checked-out workers.
    out: usize,
    /// Number of workers that run tasks.
    running: usize,
    /// How many workers may run tasks of the queue at once. The others stand by.
    most_running: usize,
    /// Number of parked slots below the limit.
    parked: usize,
    /// Number of drivers that were woken and have not polled yet, surplus ones left out.
    woken: usize,
    /// Consecutive failed starts of a slot before the pool gives up.
    attempts: u32,
    /// Whether a lost worker is replaced.
    replaces: bool,
    /// Set when waiting tasks were failed because no worker can start. A new task clears it and triggers new
    /// attempts.
    given_up: bool,
}

impl<N, W> SlotTable<N, W> {
    /// Creates a table that replaces lost workers.
    pub(crate) fn new(numbers: Numbers, attempts: u32, now: Instant) -> Self {
        Self::with(numbers, attempts, true, now)
    }

    /// Creates a table of `slots` slots that starts one process each and replaces none.
    pub(crate) fn for_one_process(slots: usize, now: Instant) -> Self {
        Self::with(Numbers { slots, spares: 0, initial: slots }, 1, false, now)
    }

    fn with(numbers: Numbers, attempts: u32, replaces: bool, now: Instant) -> Self {
        let Numbers { slots, spares, initial } = numbers;
        Self {
            slots: (0..slots).map(|slot| Slot::new(slot < initial, now)).collect(),
            limit: slots,
            phase: Phase::Open,
            idle: Vec::with_capacity(slots),
            out: 0,
            running: 0,
            most_running: slots - spares,
            parked: slots.saturating_sub(initial),
            woken: 0,
            attempts,
            replaces,
            given_up: false,
        }
    }

    // ── queries ──

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the drivers must exit.
    pub(crate) fn is_over(&self, has_work: bool) -> bool {
        match self.phase {
            Phase::Open => false,
            Phase::Closed => !has_work && self.out == 0,
            Phase::Terminated => true,
        }
    }

    /// Whether the pool is closed without work, and all checked-out workers are still starting, for nothing.
    pub(crate) fn is_only_starting(&self, has_work: bool) -> bool {
        let is_handshaking =
            |slot_state: &&Slot<N, W>| matches!(slot_state.state, State::Handshaking);
        self.phase == Phase::Closed
            && !has_work
            && self.out > 0
            && self.out == self.slots.iter().filter(is_handshaking).count()
    }

    /// Whether a slot has failed to start so often that waiting for another attempt is pointless.
    pub(crate) fn is_hopeless(&self, slot: usize) -> bool {
        self.slots[slot].failures >= self.attempts
    }

    /// Returns the number of drivers that were woken and have not polled yet.
    pub(crate) fn woken(&self) -> usize {
        self.woken
    }

    /// Returns how many processes a slot has started.
    pub(crate) fn starts(&self, slot: usize) -> u64 {
        self.slots[slot].generation
    }

    /// Whether a slot has an idle worker that serves the queue.
    pub(crate) fn is_idle(&self, slot: usize) -> bool {
        matches!(self.slots[slot].state, State::Idle(_)) && !self.is_surplus(slot)
    }

    /// Whether a slot is one too many since the pool has become smaller.
    pub(crate) fn is_surplus(&self, slot: usize) -> bool {
        slot >= self.limit
    }

    /// Returns how many slots serve the queue: the first ones.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether a slot has no worker until there is work for it.
    pub(crate) fn is_parked(&self, slot: usize) -> bool {
        matches!(self.slots[slot].state, State::Parked)
    }

    /// Returns the consecutive failed starts of a slot.
    pub(crate) fn failures(&self, slot: usize) -> u32 {
        self.slots[slot].failures
    }

    /// Returns the state of a slot's worker.
    pub(crate) fn state(&self, slot: usize) -> WorkerState {
        match &self.slots[slot].state {
            State::Empty | State::Parked | State::Closed => WorkerState::Absent,
            State::Spawned(_) | State::Handshaking => WorkerState::Starting,
            State::CheckedOut(_) => WorkerState::Busy,
            State::Idle(_) | State::Draining(_) => WorkerState::Idle,
        }
    }

    // ── events from the pool ──

    /// Stops accepting tasks.
    pub(crate) fn close(&mut self) -> Actions<W> {
        if self.phase == Phase::Open {
            self.phase = Phase::Closed;
        }
        Actions::wake(Wake::All)
    }

    /// Ends everything.
    pub(crate) fn terminate(&mut self) -> Actions<W> {
        self.phase = Phase::Terminated;
        Actions { start: true, ..Actions::wake(Wake::All) }
    }

    /// Work was queued that is worth `wanted` workers: wakes the driver of an idle one. Starts workers in parked
    /// slots, where fewer than wanted are idle or starting. A pool that has given up retries.
    pub(crate) fn wake_one(&mut self, wanted: u64, now: Instant) -> Actions<W> {
        let actions = match self.idle.last().copied() {
            Some(slot) if !self.is_full() => self.wake_slot(slot, now),
            _ => Actions { start: self.retry_spawns(now), ..Actions::nothing() },
        };
        Actions { start: self.start_parked(wanted, now) || actions.start, ..actions }
    }

    /// Work was queued for this slot.
    pub(crate) fn wake_slot(&mut self, slot: usize, now: Instant) -> Actions<W> {
        let start = self.retry_spawns(now);
        let is_surplus = self.is_surplus(slot);
        let slot_state = &mut self.slots[slot];
        match slot_state.state {
            State::Parked => {
                self.parked -= usize::from(!is_surplus);
                slot_state.state = State::Empty;
                slot_state.schedule_spawn(now);
                Actions::start()
            }
            State::Idle(_) if is_surplus => Actions { start, ..Actions::wake(Wake::One(slot)) },
            State::Idle(_) => {
                self.woken += usize::from(!std::mem::replace(&mut slot_state.is_woken, true));
                self.remove_idle(slot);
                Actions { start, ..Actions::wake(Wake::One(slot)) }
            }
            // The driver looks for work when the worker is ready or returns.
            _ => Actions { start, ..Actions::nothing() },
        }
    }

    /// Retries starts after giving up. Returns whether the pool had given up.
    fn retry_spawns(&mut self, now: Instant) -> bool {
        let had_given_up = std::mem::take(&mut self.given_up);
        if had_given_up {
            for slot_state in &mut self.slots {
                slot_state.failures = 0;
                slot_state.due = slot_state.due.map(|_| now);
            }
        }
        had_given_up
    }

    /// Returns the idle workers.
    pub(crate) fn idle_workers(&mut self) -> impl Iterator<Item = &mut W> {
        self.slots.iter_mut().filter_map(|slot_state| match &mut slot_state.state {
            State::Idle(worker) => Some(worker),
            _ => None,
        })
    }

    /// Whether as many workers run tasks as may at once. Those that stand by run tasks bound to them only.
    pub(crate) fn is_full(&self) -> bool {
        self.running >= self.most_running
    }

    /// Whether there is an idle worker whose driver has not been woken.
    pub(crate) fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Returns the slot that would be woken last.
    pub(crate) fn least_recently_used(&self) -> Option<usize> {
        self.idle.first().copied()
    }

    // ── events from the drivers ──

    /// Returns what a slot's driver has to do.
    pub(crate) fn poll(&mut self, slot: usize, has_work: bool) -> SlotPoll<'_, N, W> {
        let (is_over, is_surplus) = (self.is_over(has_work), self.is_surplus(slot));
        let slot_state = &mut self.slots[slot];
        self.woken -= usize::from(std::mem::take(&mut slot_state.is_woken));
        match std::mem::replace(&mut slot_state.state, State::Closed) {
            State::Spawned(pending) => {
                slot_state.state = State::Handshaking;
                self.out += 1;
                SlotPoll::PendingWorker(pending)
            }
            State::Idle(worker) if is_over => {
                slot_state.mark_draining();
                self.remove_idle(slot);
                SlotPoll::End(Some(worker))
            }
            State::Draining(worker) if is_over => SlotPoll::End(Some(worker)),
            State::Empty | State::Closed if is_over => SlotPoll::End(None),
            State::Parked if is_over => {
                self.parked -= usize::from(!is_surplus);
                SlotPoll::End(None)
            }
            state => {
                let is_idle = matches!(state, State::Idle(_));
                slot_state.state = state;
                if is_idle && !is_surplus && !self.idle.contains(&slot) {
                    self.idle.push(slot);
                }
                match &self.slots[slot].state {
                    State::Idle(worker) => SlotPoll::Idle(worker),
                    _ => SlotPoll::Nothing,
                }
            }
        }
    }

    /// Checks an idle worker out of its slot.
    pub(crate) fn check_out(&mut self, slot: usize) -> Option<W> {
        let state = &mut self.slots[slot].state;
        match std::mem::replace(state, State::CheckedOut(None)) {
            State::Idle(worker) => {
                self.remove_idle(slot);
                self.out += 1;
                self.running += 1;
                Some(worker)
            }
            other => {
                *state = other;
                None
            }
        }
    }

    /// Returns the number of checked-out workers.
    pub(crate) fn out(&self) -> usize {
        self.out
    }

    /// Checks out the most recently used idle worker whose driver has not been woken.
    pub(crate) fn check_out_any(&mut self) -> Option<(usize, W)> {
        if self.is_full() {
            return None;
        }
        let slot = *self.idle.last()?;
        self.check_out(slot).map(|worker| (slot, worker))
    }

    /// A worker is ready for its first task.
    pub(crate) fn ready(
        &mut self,
        slot: usize,
        worker: W,
        has_work: bool,
        now: Instant,
    ) -> Actions<W> {
        self.slots[slot].failures = 0;
        let is_revived = std::mem::take(&mut self.given_up);
        let actions = self.put_back(slot, worker, false, has_work, now);
        Actions { start: actions.start || is_revived, ..actions }
    }

    /// A worker is checked back in. A spent or dead one is replaced: if the slot is not [idle](Self::is_idle)
    /// then, the caller wakes another for queued work.
    pub(crate) fn check_in(
        &mut self,
        slot: usize,
        worker: W,
        is_spent: bool,
        has_work: bool,
        now: Instant,
    ) -> Actions<W> {
        self.running -= 1;
        self.put_back(slot, worker, is_spent, has_work, now)
    }

    /// Ends a check-out with the worker.
    fn put_back(
        &mut self,
        slot: usize,
        worker: W,
        is_spent: bool,
        has_work: bool,
        now: Instant,
    ) -> Actions<W> {
        let (successor, is_surplus) = (self.release(slot), self.is_surplus(slot));
        let slot_state = &mut self.slots[slot];
        let actions = match successor {
            // The worker has died since, and its replacement has started,
            Some(actions) => actions,
            // or is starting,
            _ if slot_state.process == ProcessState::Starting => Actions::nothing(),
            // or is due now, unless it is scheduled. Without replacement, the next user of the worker detects
            // its death.
            _ if slot_state.process == ProcessState::Absent && self.replaces => {
                slot_state.due.get_or_insert(now);
                Actions::start()
            }
            _ if is_spent => {
                slot_state.state = State::Draining(worker);
                slot_state.mark_draining();
                slot_state.schedule_spawn(now);
                Actions::start()
            }
            // Its driver runs what is bound to it, or parks it.
            _ if is_surplus => {
                slot_state.state = State::Idle(worker);
                Actions::wake(Wake::One(slot))
            }
            _ => {
                slot_state.state = State::Idle(worker);
                slot_state.idle_since = now;
                self.idle.push(slot);
                if has_work { self.wake_one(0, now) } else { Actions::nothing() }
            }
        };
        self.or_wake_all(actions, has_work)
    }

    /// A checked-out worker is lost: its replacement gets the slot. The caller wakes another for queued work.
    pub(crate) fn lost(&mut self, slot: usize, has_work: bool) -> Actions<W> {
        self.running -= 1;
        // Without a replacement so far, the start is scheduled when the process has ended.
        let actions = self.release(slot).unwrap_or_else(Actions::nothing);
        self.or_wake_all(actions, has_work)
    }

    /// Ends a check-out. Moves a replacement that has started into the slot.
    fn release(&mut self, slot: usize) -> Option<Actions<W>> {
        self.out -= 1;
        let state = &mut self.slots[slot].state;
        let State::CheckedOut(Some(pending)) = std::mem::replace(state, State::Empty) else {
            return None;
        };
        *state = State::Spawned(pending);
        Some(Actions::wake(Wake::One(slot)))
    }

    /// A process failed its handshake or initializer.
    pub(crate) fn handshake_failed(
        &mut self,
        slot: usize,
        has_work: bool,
        now: Instant,
    ) -> Actions<W> {
        self.out -= 1;
        self.slots[slot].state = State::Empty;
        self.failed(slot, has_work, now)
    }

    // ── events from the supervisor ──

    /// Returns what to start next. The supervisor must report the result: [`spawned`] or [`spawn_failed`].
    ///
    /// [`spawned`]: Self::spawned
    /// [`spawn_failed`]: Self::spawn_failed
    pub(crate) fn next_start(&mut self, has_work: bool, now: Instant) -> SpawnDecision {
        let is_served =
            !self.replaces && self.slots.iter().any(|slot_state| slot_state.generation > 0);
        let is_needless = self.is_over(has_work) || self.is_only_starting(has_work);
        if is_needless || self.given_up || is_served {
            return SpawnDecision::None;
        }
        // Where a process still runs, its end will be noticed.
        let is_free = |slot_state: &Slot<N, W>| {
            slot_state.process == ProcessState::Absent && slot_state.draining <= MAX_DRAINING
        };
        let due = self.slots.iter_mut().enumerate().filter(|(_, slot_state)| is_free(slot_state));
        let next = due.filter_map(|(slot, slot_state)| Some((slot_state.due?, slot, slot_state)));
        match next.min_by_key(|(due, ..)| *due) {
            Some((due, slot, slot_state)) if due <= now => {
                slot_state.due = None;
                slot_state.process = ProcessState::Starting;
                SpawnDecision::Now(slot, slot_state.generation + 1)
            }
            Some((due, ..)) => SpawnDecision::At(due),
            None => SpawnDecision::None,
        }
    }

    /// A process has started.
    pub(crate) fn spawned(&mut self, slot: usize, pending: N) -> Actions<W> {
        let slot_state = &mut self.slots[slot];
        slot_state.process = ProcessState::Alive;
        slot_state.generation += 1;
        match std::mem::replace(&mut slot_state.state, State::Empty) {
            State::CheckedOut(_) => {
                slot_state.state = State::CheckedOut(Some(pending));
                Actions::nothing()
            }
            // The driver has exited; the process ends with the pool.
            State::Closed => {
                slot_state.state = State::Closed;
                slot_state.mark_draining();
                Actions::nothing()
            }
            state => {
                slot_state.state = State::Spawned(pending);
                let retire = match state {
                    State::Draining(worker) => Some(worker),
                    _ => None,
                };
                Actions { retire, ..Actions::wake(Wake::One(slot)) }
            }
        }
    }

    /// A process could not be started.
    pub(crate) fn spawn_failed(&mut self, slot: usize, has_work: bool, now: Instant) -> Actions<W> {
        self.slots[slot].process = ProcessState::Absent;
        self.failed(slot, has_work, now)
    }

    /// A process has ended.
    pub(crate) fn ended(
        &mut self,
        slot: usize,
        generation: u64,
        was_used: bool,
        has_work: bool,
        now: Instant,
    ) -> Actions<W> {
        let limit = self.limit;
        let slot_state = &mut self.slots[slot];
        if slot_state.process != ProcessState::Alive || slot_state.generation != generation {
            slot_state.draining = slot_state.draining.saturating_sub(1);
            return Actions::nothing();
        }
        slot_state.process = ProcessState::Absent;
        let was_idle = matches!(slot_state.state, State::Idle(_));
        let stands_by = self.most_running < limit && self.idle.len() > usize::from(was_idle);
        match slot_state.state {
            State::Idle(_) if !self.replaces => return Actions::nothing(),
            State::Idle(_) => slot_state.state = State::Empty,
            State::CheckedOut(None) => {}
            // Lost, and the driver noticed first.
            State::Empty if slot_state.due.is_none() => {}
            // The handshake detects the end.
            _ => return Actions::nothing(),
        }
        slot_state.early_deaths = if was_used { 0 } else { slot_state.early_deaths + 1 };
        let pause = slot_state
            .early_deaths
            .checked_sub(MAX_EARLY_DEATHS)
            .map_or(REPLACEMENT_PAUSE * u64::from(stands_by), |more| 10 << more.min(7));
        slot_state.due = Some(now + Duration::from_millis(pause));
        let was_called = was_idle && !self.remove_idle(slot);
        if was_called && has_work { self.wake_one(0, now) } else { Actions::nothing() }
    }

    // ── internals ──

    /// Counts a failure of a slot. The pool gives up when every slot fails.
    fn failed(&mut self, slot: usize, has_work: bool, now: Instant) -> Actions<W> {
        let slot_state = &mut self.slots[slot];
        slot_state.failures += 1;
        slot_state.schedule_spawn(now);
        // A parked slot has no worker that could do better.
        let is_failing = |slot_state: &Slot<N, W>| {
            slot_state.failures > 0 || matches!(slot_state.state, State::Parked)
        };
        if slot_state.failures >= self.attempts && self.slots.iter().all(is_failing) {
            self.given_up = true;
        }
        // A pool that has given up fails the queued tasks, so none is left.
        self.or_wake_all(Actions::start(), has_work && !self.given_up)
    }

    /// Whether the pool has given up, and queued tasks must be failed.
    pub(crate) fn has_given_up(&self) -> bool {
        self.given_up
    }

    /// Removes a slot from the wakeable ones. Returns whether it was one of them.
    fn remove_idle(&mut self, slot: usize) -> bool {
        // From the end, where slots change most.
        let at = self.idle.iter().rposition(|idle| *idle == slot);
        at.map(|at| self.idle.remove(at)).is_some()
    }

    fn or_wake_all(&self, actions: Actions<W>, has_work: bool) -> Actions<W> {
        if self.is_over(has_work) { Actions { wake: Wake::All, ..actions } } else { actions }
    }
}
