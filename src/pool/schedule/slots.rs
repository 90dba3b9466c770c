//! The state machine of the slots: each is a slot_state for one worker at a time, and whatever happens to
//! a process, a driver or the pool is an event that moves one slot_state on and says what is to be done.
//!
//! ```text
//!            ┌──────────────────── it fails, or dies ◄──────────────────┐
//!            ▼                                                          │
//!         Empty ── a process is started ──► Spawned ── handshake_done by ──► Handshaking
//!          ▲  ▲                                 ▲      the driver       │
//!  woken  │  └──── it dies ◄───────┐           │                       ▼ ready
//!          │                        │           │ successor
//!       Parked ◄── idle for long ─ Idle ◄──► Out ── been through enough ──► Draining
//! ```
//!
//! Nothing here waits, locks, or knows what a process is: a process that has been started (`N`) and
//! a worker that is ready (`W`) are tokens, which are in one place each. The scheduler keeps the
//! slots under its lock and does what a [`Actions`] asks for; `model` walks through all that can happen
//! to them, with numbers for tokens.
//!
//! Many events are told whether there is work (`has_work`): whether tasks wait, for whomever.
//!
//! For one slot_state there are never more than two processes: the one that serves it, or is on its way
//! to, and one that has been told to go.

#[cfg(test)]
mod model;

use crate::pool::types::WorkerState;
use std::time::{Duration, Instant};

/// So many workers in a row may die without having been given a task before the next one is started
/// with a pause: something kills them as soon as they are there, and it would be a storm.
const MAX_EARLY_DEATHS: u32 = 3;

/// How many processes of one slot may have been told to go and not have ended, when another is
/// started.
const MAX_DRAINING: u32 = 1;

/// All slots of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SlotTable<N, W> {
    slots: Box<[Slot<N, W>]>,
    phase: Phase,
    /// SlotTable with an idle worker whose driver has not been woken; the last is the one to call
    /// first, since its worker's memory is the warmest.
    idle: Vec<usize>,
    /// How many workers are out of their slots.
    out: usize,
    /// How many slots rest.
    parked: usize,
    /// How many drivers have been woken and have not looked.
    woken: usize,
    /// How many times in a row a worker may fail to become ready before the pool gives up.
    attempts: u32,
    /// Whether a worker that is lost has a successor.
    replaces: bool,
    /// Set when the waiting tasks were told that no worker can be made ready; a new task clears it
    /// and is worth new attempts.
    given_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Open,
    /// Nothing more is accepted.
    Closed,
    /// Nothing more is done.
    Terminated,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Slot<N, W> {
    state: State<N, W>,
    process: ProcessState,
    /// From when on a process is to be started, if one is.
    due: Option<Instant>,
    /// How many processes have been started here; the number of the last one.
    generation: u64,
    /// How many older ones have been told to go and have not ended.
    draining: u32,
    /// How many times in a row a worker could not be made ready here.
    failures: u32,
    /// How many workers in a row have died without having been given a task.
    early_deaths: u32,
    /// Since when its worker is idle, if it is.
    idle_since: Instant,
    /// Whether its driver has been woken and has not looked.
    is_woken: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State<N, W> {
    /// A process is to be started, or is being started.
    Empty,
    /// The driver is to greet it.
    Spawned(N),
    /// The driver makes it ready.
    Handshaking,
    /// The driver or a caller has the worker. If it has died meanwhile, its successor waits here.
    CheckedOut(Option<N>),
    Idle(W),
    /// The worker has been through all the tasks that one may be; it goes when its successor is
    /// there.
    Draining(W),
    /// The worker was let go for want of work; another is started when there is some.
    Parked,
    /// The driver has quit.
    Closed,
}

/// Whether the process that was started last serves the slot_state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ProcessState {
    /// It has ended, or it has been told to go.
    Absent,
    /// The supervisor is starting it.
    Starting,
    /// It has not been seen to end.
    Alive,
}

/// What an event asks for, besides the change of state.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct Actions<W> {
    pub(crate) wake: Wake,
    /// The supervisor is to look for processes that are due.
    pub(crate) start: bool,
    /// Is to be told to go.
    pub(crate) retire: Option<W>,
}

/// Whose driver is to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    None,
    One(usize),
    All,
}

/// What a driver finds in its slot_state.
#[derive(Debug)]
pub(crate) enum SlotPoll<'a, N, W> {
    /// A process to greet.
    PendingWorker(N),
    /// A worker that may be [taken](SlotTable::take).
    Idle(&'a W),
    /// Nothing to do at the moment.
    Nothing,
    /// Nothing to do ever again; a worker that is left is to be let go.
    End(Option<W>),
}

/// What the supervisor is to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpawnDecision {
    /// A process for this slot, of this generation.
    Now(usize, u64),
    /// None before this.
    At(Instant),
    None,
}

impl<W> Actions<W> {
    fn nothing() -> Self {
        Self { wake: Wake::None, start: false, retire: None }
    }

    fn wake(wake: Wake) -> Self {
        Self { wake, ..Self::nothing() }
    }

    fn start() -> Self {
        Self { start: true, ..Self::nothing() }
    }
}

impl<N, W> Slot<N, W> {
    /// Has a process started, after a pause that grows with the failures.
    fn schedule_spawn(&mut self, now: Instant) {
        let pause = match self.failures {
            0 | 1 => 0,
            n => 10 << (n - 2).min(8),
        };
        self.due = Some(now + Duration::from_millis(pause));
    }

    /// Notes that the process that serves the slot_state is to go.
    fn mark_draining(&mut self) {
        self.process = ProcessState::Absent;
        self.draining += 1;
    }
}

impl<N, W> SlotTable<N, W> {
    /// So many, for each of which a process is due, and another whenever one is lost.
    pub(crate) fn new(slots: usize, attempts: u32, now: Instant) -> Self {
        Self::with(slots, attempts, true, now)
    }

    /// So many, for each of which one process is due, and no other.
    pub(crate) fn for_one_process(slots: usize, now: Instant) -> Self {
        Self::with(slots, 1, false, now)
    }

    fn with(slots: usize, attempts: u32, replaces: bool, now: Instant) -> Self {
        let slot_state = |_| Slot {
            state: State::Empty,
            process: ProcessState::Absent,
            due: Some(now),
            generation: 0,
            draining: 0,
            failures: 0,
            early_deaths: 0,
            idle_since: now,
            is_woken: false,
        };
        Self {
            slots: (0..slots).map(slot_state).collect(),
            phase: Phase::Open,
            idle: Vec::with_capacity(slots),
            out: 0,
            parked: 0,
            woken: 0,
            attempts,
            replaces,
            given_up: false,
        }
    }

    // ── what there is ──

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the drivers are to end.
    pub(crate) fn is_over(&self, has_work: bool) -> bool {
        match self.phase {
            Phase::Open => false,
            Phase::Closed => !has_work && self.out == 0,
            Phase::Terminated => true,
        }
    }

    /// Whether nothing more is to come and all that is out are workers that are being made ready, for
    /// which nothing is left to do.
    pub(crate) fn is_only_starting(&self, has_work: bool) -> bool {
        let is_greeting = |slot_state: &&Slot<N, W>| matches!(slot_state.state, State::Handshaking);
        self.phase == Phase::Closed
            && !has_work
            && self.out > 0
            && self.out == self.slots.iter().filter(is_greeting).count()
    }

    /// Whether a slot's worker could not be made ready so often that no other attempt is worth
    /// waiting for.
    pub(crate) fn is_hopeless(&self, slot: usize) -> bool {
        self.slots[slot].failures >= self.attempts
    }

    /// How many drivers have been woken and have not looked.
    pub(crate) fn woken(&self) -> usize {
        self.woken
    }

    /// How many processes have been started for a slot.
    pub(crate) fn starts(&self, slot: usize) -> u64 {
        self.slots[slot].generation
    }

    /// How many times in a row a worker could not be made ready in a slot.
    pub(crate) fn failures(&self, slot: usize) -> u32 {
        self.slots[slot].failures
    }

    /// What a slot's worker is at.
    pub(crate) fn state(&self, slot: usize) -> WorkerState {
        match &self.slots[slot].state {
            State::Empty | State::Parked | State::Closed => WorkerState::Absent,
            State::Spawned(_) | State::Handshaking => WorkerState::Starting,
            State::CheckedOut(_) => WorkerState::Busy,
            State::Idle(_) | State::Draining(_) => WorkerState::Idle,
        }
    }

    // ── from the pool ──

    /// Accepts nothing more.
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

    /// There is work: has somebody look for it, the driver of an idle worker or, where there is none,
    /// that of a new one in place of one that was let go. A pool that has given up tries again.
    pub(crate) fn wake_one(&mut self, now: Instant) -> Actions<W> {
        let is_resting = |slot_state: &Slot<N, W>| matches!(slot_state.state, State::Parked);
        let slot = self.idle.last().copied().or_else(|| match self.parked {
            0 => None,
            _ => self.slots.iter().position(is_resting),
        });
        match slot {
            Some(slot) => self.wake_slot(slot, now),
            None => Actions { start: self.retry_spawns(now), ..Actions::nothing() },
        }
    }

    /// There is work for a slot's worker.
    pub(crate) fn wake_slot(&mut self, slot: usize, now: Instant) -> Actions<W> {
        let start = self.retry_spawns(now);
        let slot_state = &mut self.slots[slot];
        match slot_state.state {
            State::Parked => {
                self.parked -= 1;
                slot_state.state = State::Empty;
                slot_state.schedule_spawn(now);
                Actions::start()
            }
            State::Idle(_) => {
                self.woken += usize::from(!std::mem::replace(&mut slot_state.is_woken, true));
                self.remove_idle(slot);
                Actions { start, ..Actions::wake(Wake::One(slot)) }
            }
            // It is looked for when the worker has come, or come back.
            _ => Actions { start, ..Actions::nothing() },
        }
    }

    /// Makes new attempts after having given up; whether it had.
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

    /// The workers that are idle.
    pub(crate) fn idle_workers(&mut self) -> impl Iterator<Item = &mut W> {
        self.slots.iter_mut().filter_map(|slot_state| match &mut slot_state.state {
            State::Idle(worker) => Some(worker),
            _ => None,
        })
    }

    /// Whether there is an idle worker whose driver has not been woken.
    pub(crate) fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// The idle worker whose driver would be woken last.
    pub(crate) fn least_recently_used(&self) -> Option<usize> {
        self.idle.first().copied()
    }

    // ── from the drivers ──

    /// What there is to do for a slot's driver.
    pub(crate) fn poll(&mut self, slot: usize, has_work: bool) -> SlotPoll<'_, N, W> {
        let is_over = self.is_over(has_work);
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
                self.parked -= 1;
                SlotPoll::End(None)
            }
            state => {
                let is_idle = matches!(state, State::Idle(_));
                slot_state.state = state;
                if is_idle && !self.idle.contains(&slot) {
                    self.idle.push(slot);
                }
                match &self.slots[slot].state {
                    State::Idle(worker) => SlotPoll::Idle(worker),
                    _ => SlotPoll::Nothing,
                }
            }
        }
    }

    /// Takes an idle worker out of its slot_state.
    pub(crate) fn check_out(&mut self, slot: usize) -> Option<W> {
        let state = &mut self.slots[slot].state;
        match std::mem::replace(state, State::CheckedOut(None)) {
            State::Idle(worker) => {
                self.remove_idle(slot);
                self.out += 1;
                Some(worker)
            }
            other => {
                *state = other;
                None
            }
        }
    }

    /// How many workers are out of their slots.
    pub(crate) fn out(&self) -> usize {
        self.out
    }

    /// Takes the idle worker that was at work last, unless its driver has been woken.
    pub(crate) fn check_out_any(&mut self) -> Option<(usize, W)> {
        let slot = *self.idle.last()?;
        self.check_out(slot).map(|worker| (slot, worker))
    }

    /// A worker is ready for the first time.
    pub(crate) fn ready(
        &mut self,
        slot: usize,
        worker: W,
        has_work: bool,
        now: Instant,
    ) -> Actions<W> {
        self.slots[slot].failures = 0;
        let is_revived = std::mem::take(&mut self.given_up);
        let actions = self.check_in(slot, worker, false, has_work, now);
        Actions { start: actions.start || is_revived, ..actions }
    }

    /// Brings a worker back into its slot_state; one that is spent is to be replaced.
    pub(crate) fn check_in(
        &mut self,
        slot: usize,
        worker: W,
        is_spent: bool,
        has_work: bool,
        now: Instant,
    ) -> Actions<W> {
        let successor = self.release(slot);
        let slot_state = &mut self.slots[slot];
        let actions = match successor {
            // It has died since: its successor is there,
            Some(actions) => actions,
            // or on its way,
            _ if slot_state.process == ProcessState::Starting => Actions::nothing(),
            // or to be started, if that has not been ordered. Where there will be none, its end is
            // found out by whoever is to use it.
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
            _ => {
                slot_state.state = State::Idle(worker);
                slot_state.idle_since = now;
                self.idle.push(slot);
                if has_work { self.wake_one(now) } else { Actions::nothing() }
            }
        };
        self.or_wake_all(actions, has_work)
    }

    /// A worker is lost that was out: its slot_state is its successor's.
    pub(crate) fn lost(&mut self, slot: usize, has_work: bool) -> Actions<W> {
        // Where there is no successor yet, the order is given when the process has ended.
        let actions = self.release(slot).unwrap_or_else(Actions::nothing);
        self.or_wake_all(actions, has_work)
    }

    /// Ends the time that a worker was out: gives its slot_state to its successor, if that is there.
    fn release(&mut self, slot: usize) -> Option<Actions<W>> {
        self.out -= 1;
        let state = &mut self.slots[slot].state;
        let State::CheckedOut(Some(pending)) = std::mem::replace(state, State::Empty) else {
            return None;
        };
        *state = State::Spawned(pending);
        Some(Actions::wake(Wake::One(slot)))
    }

    /// A process could not be made a worker.
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

    // ── from the supervisor ──

    /// What is to be started next. Whoever asks must say what has become of it: [`spawned`] or
    /// [`unstarted`].
    ///
    /// [`spawned`]: Self::spawned
    /// [`unstarted`]: Self::unstarted
    pub(crate) fn next_start(&mut self, has_work: bool, now: Instant) -> SpawnDecision {
        let is_served =
            !self.replaces && self.slots.iter().any(|slot_state| slot_state.generation > 0);
        let is_needless = self.is_over(has_work) || self.is_only_starting(has_work);
        if is_needless || self.given_up || is_served {
            return SpawnDecision::None;
        }
        // Where one is there still, its end will be noticed.
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

    /// A process has been started.
    pub(crate) fn spawned(&mut self, slot: usize, pending: N) -> Actions<W> {
        let slot_state = &mut self.slots[slot];
        slot_state.process = ProcessState::Alive;
        slot_state.generation += 1;
        match std::mem::replace(&mut slot_state.state, State::Empty) {
            State::CheckedOut(_) => {
                slot_state.state = State::CheckedOut(Some(pending));
                Actions::nothing()
            }
            // Its driver has quit; the process is ended with the pool.
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
        let slot_state = &mut self.slots[slot];
        if slot_state.process != ProcessState::Alive || slot_state.generation != generation {
            slot_state.draining = slot_state.draining.saturating_sub(1);
            return Actions::nothing();
        }
        slot_state.process = ProcessState::Absent;
        let was_idle = matches!(slot_state.state, State::Idle(_));
        match slot_state.state {
            State::Idle(_) if !self.replaces => return Actions::nothing(),
            State::Idle(_) => slot_state.state = State::Empty,
            State::CheckedOut(None) => {}
            // Lost, and the driver knew it first.
            State::Empty if slot_state.due.is_none() => {}
            // Who was to greet it learns of its end by that.
            _ => return Actions::nothing(),
        }
        slot_state.early_deaths = if was_used { 0 } else { slot_state.early_deaths + 1 };
        let pause = slot_state
            .early_deaths
            .checked_sub(MAX_EARLY_DEATHS)
            .map_or(0, |more| 10 << more.min(7));
        slot_state.due = Some(now + Duration::from_millis(pause));
        let was_called = was_idle && !self.remove_idle(slot);
        if was_called && has_work { self.wake_one(now) } else { Actions::nothing() }
    }

    /// Lets the next worker go that has been idle since before `since`, as long as more than
    /// `least` are left.
    pub(crate) fn park_idle(&mut self, since: Instant, least: usize) -> Option<(usize, W)> {
        if self.slots.len() - self.parked <= least {
            return None;
        }
        // The first of them is the one that was woken last.
        let is_long = |slot: &&usize| self.slots[**slot].idle_since <= since;
        let slot = *self.idle.iter().find(is_long)?;
        self.remove_idle(slot);
        let slot_state = &mut self.slots[slot];
        match std::mem::replace(&mut slot_state.state, State::Parked) {
            State::Idle(worker) => {
                self.parked += 1;
                slot_state.mark_draining();
                Some((slot, worker))
            }
            // Not reached: whoever is listed is idle.
            other => {
                slot_state.state = other;
                None
            }
        }
    }

    // ── among themselves ──

    /// One more failure of a slot; too many of them everywhere, and the pool gives up.
    fn failed(&mut self, slot: usize, has_work: bool, now: Instant) -> Actions<W> {
        let slot_state = &mut self.slots[slot];
        slot_state.failures += 1;
        slot_state.schedule_spawn(now);
        // A slot_state that rests has nobody who could do better.
        let is_failing = |slot_state: &Slot<N, W>| {
            slot_state.failures > 0 || matches!(slot_state.state, State::Parked)
        };
        if slot_state.failures >= self.attempts && self.slots.iter().all(is_failing) {
            self.given_up = true;
        }
        // Who has given up tells the tasks that wait, so that none of them is left.
        self.or_wake_all(Actions::start(), has_work && !self.given_up)
    }

    /// Whether the pool has given up, and the tasks that wait are to be told.
    pub(crate) fn has_given_up(&self) -> bool {
        self.given_up
    }

    /// Takes a slot_state off the list of those that can be woken; whether it was on it.
    fn remove_idle(&mut self, slot: usize) -> bool {
        // From the end, where those are that come and go.
        let at = self.idle.iter().rposition(|idle| *idle == slot);
        at.map(|at| self.idle.remove(at)).is_some()
    }

    fn or_wake_all(&self, actions: Actions<W>, has_work: bool) -> Actions<W> {
        if self.is_over(has_work) { Actions { wake: Wake::All, ..actions } } else { actions }
    }
}
