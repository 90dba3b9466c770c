//! The state machine of the slots: each is a seat for one worker at a time, and whatever happens to
//! a process, a driver or the pool is an event that moves one seat on and says what is to be done.
//!
//! ```text
//!            ┌──────────────────── it fails, or dies ◄──────────────────┐
//!            ▼                                                          │
//!         Vacant ── a process is started ──► Spawned ── greeted by ──► Greeting
//!          ▲  ▲                                 ▲      the driver       │
//!  called  │  └──── it dies ◄───────┐           │                       ▼ ready
//!          │                        │           │ successor
//!       Resting ◄── idle for long ─ Idle ◄──► Out ── been through enough ──► Leaving
//! ```
//!
//! Nothing here waits, locks, or knows what a process is: a process that has been started (`N`) and
//! a worker that is ready (`W`) are tokens, which are in one place each. The scheduler keeps the
//! seats under its lock and does what a [`Todo`] asks for; `model` walks through all that can happen
//! to them, with numbers for tokens.
//!
//! Many events are told whether there is work (`has_work`): whether tasks wait, for whomever.
//!
//! For one seat there are never more than two processes: the one that serves it, or is on its way
//! to, and one that has been told to go.

#[cfg(test)]
mod model;

use crate::pool::types::WorkerState;
use std::time::{Duration, Instant};

/// So many workers in a row may die without having been given a task before the next one is started
/// with a pause: something kills them as soon as they are there, and it would be a storm.
const UNUSED_DEATHS: u32 = 3;

/// How many processes of one slot may have been told to go and not have ended, when another is
/// started.
const MOST_LEAVERS: u32 = 1;

/// All seats of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Seats<N, W> {
    seats: Box<[Seat<N, W>]>,
    phase: Phase,
    /// Seats with an idle worker whose driver has not been called; the last is the one to call
    /// first, since its worker's memory is the warmest.
    idle: Vec<usize>,
    /// How many workers are out of their seats.
    out: usize,
    /// How many seats rest.
    resting: usize,
    /// How many drivers have been called and have not looked.
    called: usize,
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
struct Seat<N, W> {
    state: State<N, W>,
    process: Presence,
    /// From when on a process is to be started, if one is.
    due: Option<Instant>,
    /// How many processes have been started here; the number of the last one.
    generation: u64,
    /// How many older ones have been told to go and have not ended.
    leavers: u32,
    /// How many times in a row a worker could not be made ready here.
    failures: u32,
    /// How many workers in a row have died without having been given a task.
    unused: u32,
    /// Since when its worker is idle, if it is.
    idle_since: Instant,
    /// Whether its driver has been called and has not looked.
    is_called: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State<N, W> {
    /// A process is to be started, or is being started.
    Vacant,
    /// The driver is to greet it.
    Spawned(N),
    /// The driver makes it ready.
    Greeting,
    /// The driver or a caller has the worker. If it has died meanwhile, its successor waits here.
    Out(Option<N>),
    Idle(W),
    /// The worker has been through all the tasks that one may be; it goes when its successor is
    /// there.
    Leaving(W),
    /// The worker was let go for want of work; another is started when there is some.
    Resting,
    /// The driver has quit.
    Closed,
}

/// Whether the process that was started last serves the seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Presence {
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
pub(crate) struct Todo<W> {
    pub(crate) call: Call,
    /// The supervisor is to look for processes that are due.
    pub(crate) start: bool,
    /// Is to be told to go.
    pub(crate) retire: Option<W>,
}

/// Whose driver is to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Nobody,
    One(usize),
    All,
}

/// What a driver finds in its seat.
#[derive(Debug)]
pub(crate) enum Find<'a, N, W> {
    /// A process to greet.
    Newborn(N),
    /// A worker that may be [taken](Seats::take).
    Idle(&'a W),
    /// Nothing to do at the moment.
    Nothing,
    /// Nothing to do ever again; a worker that is left is to be let go.
    End(Option<W>),
}

/// What the supervisor is to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// A process for this slot, of this generation.
    Now(usize, u64),
    /// None before this.
    At(Instant),
    None,
}

impl<W> Todo<W> {
    fn nothing() -> Self {
        Self { call: Call::Nobody, start: false, retire: None }
    }

    fn call(call: Call) -> Self {
        Self { call, ..Self::nothing() }
    }

    fn start() -> Self {
        Self { start: true, ..Self::nothing() }
    }
}

impl<N, W> Seat<N, W> {
    /// Has a process started, after a pause that grows with the failures.
    fn order(&mut self, now: Instant) {
        let pause = match self.failures {
            0 | 1 => 0,
            n => 10 << (n - 2).min(8),
        };
        self.due = Some(now + Duration::from_millis(pause));
    }

    /// Notes that the process that serves the seat is to go.
    fn dismiss(&mut self) {
        self.process = Presence::Absent;
        self.leavers += 1;
    }
}

impl<N, W> Seats<N, W> {
    /// So many, for each of which a process is due, and another whenever one is lost.
    pub(crate) fn new(slots: usize, attempts: u32, now: Instant) -> Self {
        Self::with(slots, attempts, true, now)
    }

    /// So many, for each of which one process is due, and no other.
    pub(crate) fn for_one_process(slots: usize, now: Instant) -> Self {
        Self::with(slots, 1, false, now)
    }

    fn with(slots: usize, attempts: u32, replaces: bool, now: Instant) -> Self {
        let seat = |_| Seat {
            state: State::Vacant,
            process: Presence::Absent,
            due: Some(now),
            generation: 0,
            leavers: 0,
            failures: 0,
            unused: 0,
            idle_since: now,
            is_called: false,
        };
        Self {
            seats: (0..slots).map(seat).collect(),
            phase: Phase::Open,
            idle: Vec::with_capacity(slots),
            out: 0,
            resting: 0,
            called: 0,
            attempts,
            replaces,
            given_up: false,
        }
    }

    // ── what there is ──

    pub(crate) fn len(&self) -> usize {
        self.seats.len()
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
        let is_greeting = |seat: &&Seat<N, W>| matches!(seat.state, State::Greeting);
        self.phase == Phase::Closed
            && !has_work
            && self.out > 0
            && self.out == self.seats.iter().filter(is_greeting).count()
    }

    /// Whether a slot's worker could not be made ready so often that no other attempt is worth
    /// waiting for.
    pub(crate) fn is_hopeless(&self, slot: usize) -> bool {
        self.seats[slot].failures >= self.attempts
    }

    /// How many drivers have been called and have not looked.
    pub(crate) fn called(&self) -> usize {
        self.called
    }

    /// How many processes have been started for a slot.
    pub(crate) fn starts(&self, slot: usize) -> u64 {
        self.seats[slot].generation
    }

    /// How many times in a row a worker could not be made ready in a slot.
    pub(crate) fn failures(&self, slot: usize) -> u32 {
        self.seats[slot].failures
    }

    /// What a slot's worker is at.
    pub(crate) fn state(&self, slot: usize) -> WorkerState {
        match &self.seats[slot].state {
            State::Vacant | State::Resting | State::Closed => WorkerState::Absent,
            State::Spawned(_) | State::Greeting => WorkerState::Starting,
            State::Out(_) => WorkerState::Busy,
            State::Idle(_) | State::Leaving(_) => WorkerState::Idle,
        }
    }

    // ── from the pool ──

    /// Accepts nothing more.
    pub(crate) fn close(&mut self) -> Todo<W> {
        if self.phase == Phase::Open {
            self.phase = Phase::Closed;
        }
        Todo::call(Call::All)
    }

    /// Ends everything.
    pub(crate) fn terminate(&mut self) -> Todo<W> {
        self.phase = Phase::Terminated;
        Todo { start: true, ..Todo::call(Call::All) }
    }

    /// There is work: has somebody look for it, the driver of an idle worker or, where there is none,
    /// that of a new one in place of one that was let go. A pool that has given up tries again.
    pub(crate) fn summon(&mut self, now: Instant) -> Todo<W> {
        let is_resting = |seat: &Seat<N, W>| matches!(seat.state, State::Resting);
        let slot = self.idle.last().copied().or_else(|| match self.resting {
            0 => None,
            _ => self.seats.iter().position(is_resting),
        });
        match slot {
            Some(slot) => self.summon_to(slot, now),
            None => Todo { start: self.revive(now), ..Todo::nothing() },
        }
    }

    /// There is work for a slot's worker.
    pub(crate) fn summon_to(&mut self, slot: usize, now: Instant) -> Todo<W> {
        let start = self.revive(now);
        let seat = &mut self.seats[slot];
        match seat.state {
            State::Resting => {
                self.resting -= 1;
                seat.state = State::Vacant;
                seat.order(now);
                Todo::start()
            }
            State::Idle(_) => {
                self.called += usize::from(!std::mem::replace(&mut seat.is_called, true));
                self.unlist(slot);
                Todo { start, ..Todo::call(Call::One(slot)) }
            }
            // It is looked for when the worker has come, or come back.
            _ => Todo { start, ..Todo::nothing() },
        }
    }

    /// Makes new attempts after having given up; whether it had.
    fn revive(&mut self, now: Instant) -> bool {
        let had_given_up = std::mem::take(&mut self.given_up);
        if had_given_up {
            for seat in &mut self.seats {
                seat.failures = 0;
                seat.due = seat.due.map(|_| now);
            }
        }
        had_given_up
    }

    /// The workers that are idle.
    pub(crate) fn idle_workers(&mut self) -> impl Iterator<Item = &mut W> {
        self.seats.iter_mut().filter_map(|seat| match &mut seat.state {
            State::Idle(worker) => Some(worker),
            _ => None,
        })
    }

    /// Whether there is an idle worker whose driver has not been called.
    pub(crate) fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// The idle worker whose driver would be called last.
    pub(crate) fn coldest(&self) -> Option<usize> {
        self.idle.first().copied()
    }

    // ── from the drivers ──

    /// What there is to do for a slot's driver.
    pub(crate) fn look(&mut self, slot: usize, has_work: bool) -> Find<'_, N, W> {
        let is_over = self.is_over(has_work);
        let seat = &mut self.seats[slot];
        self.called -= usize::from(std::mem::take(&mut seat.is_called));
        match std::mem::replace(&mut seat.state, State::Closed) {
            State::Spawned(newborn) => {
                seat.state = State::Greeting;
                self.out += 1;
                Find::Newborn(newborn)
            }
            State::Idle(worker) if is_over => {
                seat.dismiss();
                self.unlist(slot);
                Find::End(Some(worker))
            }
            State::Leaving(worker) if is_over => Find::End(Some(worker)),
            State::Vacant | State::Closed if is_over => Find::End(None),
            State::Resting if is_over => {
                self.resting -= 1;
                Find::End(None)
            }
            state => {
                let is_idle = matches!(state, State::Idle(_));
                seat.state = state;
                if is_idle && !self.idle.contains(&slot) {
                    self.idle.push(slot);
                }
                match &self.seats[slot].state {
                    State::Idle(worker) => Find::Idle(worker),
                    _ => Find::Nothing,
                }
            }
        }
    }

    /// Takes an idle worker out of its seat.
    pub(crate) fn take(&mut self, slot: usize) -> Option<W> {
        let state = &mut self.seats[slot].state;
        match std::mem::replace(state, State::Out(None)) {
            State::Idle(worker) => {
                self.unlist(slot);
                self.out += 1;
                Some(worker)
            }
            other => {
                *state = other;
                None
            }
        }
    }

    /// How many workers are out of their seats.
    pub(crate) fn out(&self) -> usize {
        self.out
    }

    /// Takes the idle worker that was at work last, unless its driver has been called.
    pub(crate) fn take_any(&mut self) -> Option<(usize, W)> {
        let slot = *self.idle.last()?;
        self.take(slot).map(|worker| (slot, worker))
    }

    /// A worker is ready for the first time.
    pub(crate) fn ready(
        &mut self,
        slot: usize,
        worker: W,
        has_work: bool,
        now: Instant,
    ) -> Todo<W> {
        self.seats[slot].failures = 0;
        let is_revived = std::mem::take(&mut self.given_up);
        let todo = self.put(slot, worker, false, has_work, now);
        Todo { start: todo.start || is_revived, ..todo }
    }

    /// Brings a worker back into its seat; one that is spent is to be replaced.
    pub(crate) fn put(
        &mut self,
        slot: usize,
        worker: W,
        is_spent: bool,
        has_work: bool,
        now: Instant,
    ) -> Todo<W> {
        let successor = self.vacate(slot);
        let seat = &mut self.seats[slot];
        let todo = match successor {
            // It has died since: its successor is there,
            Some(todo) => todo,
            // or on its way,
            _ if seat.process == Presence::Starting => Todo::nothing(),
            // or to be started, if that has not been ordered. Where there will be none, its end is
            // found out by whoever is to use it.
            _ if seat.process == Presence::Absent && self.replaces => {
                seat.due.get_or_insert(now);
                Todo::start()
            }
            _ if is_spent => {
                seat.state = State::Leaving(worker);
                seat.dismiss();
                seat.order(now);
                Todo::start()
            }
            _ => {
                seat.state = State::Idle(worker);
                seat.idle_since = now;
                self.idle.push(slot);
                if has_work { self.summon(now) } else { Todo::nothing() }
            }
        };
        self.unless_over(todo, has_work)
    }

    /// A worker is lost that was out: its seat is its successor's.
    pub(crate) fn lost(&mut self, slot: usize, has_work: bool) -> Todo<W> {
        // Where there is no successor yet, the order is given when the process has ended.
        let todo = self.vacate(slot).unwrap_or_else(Todo::nothing);
        self.unless_over(todo, has_work)
    }

    /// Ends the time that a worker was out: gives its seat to its successor, if that is there.
    fn vacate(&mut self, slot: usize) -> Option<Todo<W>> {
        self.out -= 1;
        let state = &mut self.seats[slot].state;
        let State::Out(Some(newborn)) = std::mem::replace(state, State::Vacant) else {
            return None;
        };
        *state = State::Spawned(newborn);
        Some(Todo::call(Call::One(slot)))
    }

    /// A process could not be made a worker.
    pub(crate) fn unready(&mut self, slot: usize, has_work: bool, now: Instant) -> Todo<W> {
        self.out -= 1;
        self.seats[slot].state = State::Vacant;
        self.failed(slot, has_work, now)
    }

    // ── from the supervisor ──

    /// What is to be started next. Whoever asks must say what has become of it: [`spawned`] or
    /// [`unstarted`].
    ///
    /// [`spawned`]: Self::spawned
    /// [`unstarted`]: Self::unstarted
    pub(crate) fn next_start(&mut self, has_work: bool, now: Instant) -> Start {
        let is_served = !self.replaces && self.seats.iter().any(|seat| seat.generation > 0);
        let is_needless = self.is_over(has_work) || self.is_only_starting(has_work);
        if is_needless || self.given_up || is_served {
            return Start::None;
        }
        // Where one is there still, its end will be noticed.
        let is_free =
            |seat: &Seat<N, W>| seat.process == Presence::Absent && seat.leavers <= MOST_LEAVERS;
        let due = self.seats.iter_mut().enumerate().filter(|(_, seat)| is_free(seat));
        let next = due.filter_map(|(slot, seat)| Some((seat.due?, slot, seat)));
        match next.min_by_key(|(due, ..)| *due) {
            Some((due, slot, seat)) if due <= now => {
                seat.due = None;
                seat.process = Presence::Starting;
                Start::Now(slot, seat.generation + 1)
            }
            Some((due, ..)) => Start::At(due),
            None => Start::None,
        }
    }

    /// A process has been started.
    pub(crate) fn spawned(&mut self, slot: usize, newborn: N) -> Todo<W> {
        let seat = &mut self.seats[slot];
        seat.process = Presence::Alive;
        seat.generation += 1;
        match std::mem::replace(&mut seat.state, State::Vacant) {
            State::Out(_) => {
                seat.state = State::Out(Some(newborn));
                Todo::nothing()
            }
            // Its driver has quit; the process is ended with the pool.
            State::Closed => {
                seat.state = State::Closed;
                seat.dismiss();
                Todo::nothing()
            }
            state => {
                seat.state = State::Spawned(newborn);
                let retire = match state {
                    State::Leaving(worker) => Some(worker),
                    _ => None,
                };
                Todo { retire, ..Todo::call(Call::One(slot)) }
            }
        }
    }

    /// A process could not be started.
    pub(crate) fn unstarted(&mut self, slot: usize, has_work: bool, now: Instant) -> Todo<W> {
        self.seats[slot].process = Presence::Absent;
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
    ) -> Todo<W> {
        let seat = &mut self.seats[slot];
        if seat.process != Presence::Alive || seat.generation != generation {
            seat.leavers = seat.leavers.saturating_sub(1);
            return Todo::nothing();
        }
        seat.process = Presence::Absent;
        let was_idle = matches!(seat.state, State::Idle(_));
        match seat.state {
            State::Idle(_) if !self.replaces => return Todo::nothing(),
            State::Idle(_) => seat.state = State::Vacant,
            State::Out(None) => {}
            // Lost, and the driver knew it first.
            State::Vacant if seat.due.is_none() => {}
            // Who was to greet it learns of its end by that.
            _ => return Todo::nothing(),
        }
        seat.unused = if was_used { 0 } else { seat.unused + 1 };
        let pause = seat.unused.checked_sub(UNUSED_DEATHS).map_or(0, |more| 10 << more.min(7));
        seat.due = Some(now + Duration::from_millis(pause));
        let was_called = was_idle && !self.unlist(slot);
        if was_called && has_work { self.summon(now) } else { Todo::nothing() }
    }

    /// Lets the next worker go that has been idle since before `since`, as long as more than
    /// `least` are left.
    pub(crate) fn rest(&mut self, since: Instant, least: usize) -> Option<(usize, W)> {
        if self.seats.len() - self.resting <= least {
            return None;
        }
        // The first of them is the one that was called last.
        let is_long = |slot: &&usize| self.seats[**slot].idle_since <= since;
        let slot = *self.idle.iter().find(is_long)?;
        self.unlist(slot);
        let seat = &mut self.seats[slot];
        match std::mem::replace(&mut seat.state, State::Resting) {
            State::Idle(worker) => {
                self.resting += 1;
                seat.dismiss();
                Some((slot, worker))
            }
            // Not reached: whoever is listed is idle.
            other => {
                seat.state = other;
                None
            }
        }
    }

    // ── among themselves ──

    /// One more failure of a slot; too many of them everywhere, and the pool gives up.
    fn failed(&mut self, slot: usize, has_work: bool, now: Instant) -> Todo<W> {
        let seat = &mut self.seats[slot];
        seat.failures += 1;
        seat.order(now);
        // A seat that rests has nobody who could do better.
        let is_failing =
            |seat: &Seat<N, W>| seat.failures > 0 || matches!(seat.state, State::Resting);
        if seat.failures >= self.attempts && self.seats.iter().all(is_failing) {
            self.given_up = true;
        }
        // Who has given up tells the tasks that wait, so that none of them is left.
        self.unless_over(Todo::start(), has_work && !self.given_up)
    }

    /// Whether the pool has given up, and the tasks that wait are to be told.
    pub(crate) fn has_given_up(&self) -> bool {
        self.given_up
    }

    /// Takes a seat off the list of those that can be called; whether it was on it.
    fn unlist(&mut self, slot: usize) -> bool {
        // From the end, where those are that come and go.
        let at = self.idle.iter().rposition(|idle| *idle == slot);
        at.map(|at| self.idle.remove(at)).is_some()
    }

    fn unless_over(&self, todo: Todo<W>, has_work: bool) -> Todo<W> {
        if self.is_over(has_work) { Todo { call: Call::All, ..todo } } else { todo }
    }
}
