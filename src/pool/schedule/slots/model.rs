//! Model checker of the slot table: explores every interleaving of a small pool's callers, drivers and
//! supervisor with processes that die at any time.
//!
//! The state machine under test is the one that the scheduler uses. The model around it does what the
//! scheduler, the driver and the supervisor do, one step per lock acquisition. Time is abstracted: a due
//! event may come at once, or after any other.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{
    Actions, Numbers, Phase, ProcessState, SlotPoll, SlotTable, SpawnDecision, State, Wake,
};

type Generation = u64;

/// A pool and all its participants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    table: SlotTable<Generation, Generation>,
    slots: Vec<Slot>,
    /// Number of queued tasks.
    queue: u8,
    is_suspended: bool,
    /// Process that the supervisor is starting.
    starting: Option<(usize, Generation)>,
    /// Whether the supervisor checks for due starts before it sleeps.
    is_supervisor_woken: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Slot {
    driver: Driver,
    /// Whether the driver is awake or will be woken.
    is_woken: bool,
    /// Worker that a caller of `apply` has checked out.
    caller: Option<Generation>,
    /// Processes that were not reaped.
    processes: Vec<Process>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Driver {
    Sleeping,
    Handshaking(Generation),
    Running(Generation),
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Process {
    generation: Generation,
    is_alive: bool,
    /// Whether it was told to exit.
    must_exit: bool,
}

/// Which thread drives a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Driver,
    Caller,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Submit,
    /// A task bound to a slot is submitted.
    SubmitTo(usize),
    /// A caller of `apply` checks out an idle worker.
    CheckOut,
    Close,
    Terminate,
    Suspend,
    Resume,
    /// A driver polls, possibly without having been woken.
    Poll(usize),
    Handshake(usize, Outcome),
    Return(usize, Holder, Spent),
    Lose(usize, Holder, Retry),
    /// A process dies, for any reason.
    Die(usize, Generation),
    /// The supervisor checks for due starts.
    Tick,
    Spawn(Outcome),
    Reap(usize, Generation),
    /// The supervisor parks an idle worker.
    Park,
    /// The pool gets another number of workers.
    Resize(usize),
}

type Outcome = Result<(), ()>;
type Spent = bool;
type Retry = bool;

/// Bounds of the explored pool.
struct Bounds {
    numbers: Numbers,
    attempts: u32,
    queue: u8,
    /// Whether the pool becomes smaller and larger again.
    is_resized: bool,
    /// Whether to explore more than tasks, deaths and parking: requeued tasks, spent workers, callers,
    /// spurious polls, suspension, closing and termination.
    is_eventful: bool,
}

/// How the environment treats a pool that waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Environment {
    /// Every started process becomes ready.
    Good,
    /// No started process becomes ready.
    Bad,
}

impl World {
    fn new(bounds: &Bounds, now: Instant) -> Self {
        let slot = || Slot {
            driver: Driver::Sleeping,
            is_woken: true,
            caller: None,
            processes: Vec::new(),
        };
        Self {
            table: SlotTable::new(bounds.numbers, bounds.attempts, now),
            slots: (0..bounds.numbers.slots).map(|_| slot()).collect(),
            queue: 0,
            is_suspended: false,
            starting: None,
            is_supervisor_woken: true,
        }
    }

    fn held_by(&self, slot: usize, holder: Holder) -> Option<Generation> {
        match (holder, self.slots[slot].driver) {
            (Holder::Caller, _) => self.slots[slot].caller,
            (Holder::Driver, Driver::Running(generation)) => Some(generation),
            (Holder::Driver, _) => None,
        }
    }

    fn release(&mut self, slot: usize, holder: Holder) {
        match holder {
            Holder::Caller => self.slots[slot].caller = None,
            Holder::Driver => {
                self.slots[slot].driver = Driver::Sleeping;
                self.slots[slot].is_woken = true;
            }
        }
    }

    fn process(&mut self, slot: usize, generation: Generation) -> Option<&mut Process> {
        let mut processes = self.slots[slot].processes.iter_mut();
        processes.find(|process| process.generation == generation)
    }

    fn is_alive(&self, slot: usize, generation: Generation) -> bool {
        let mut processes = self.slots[slot].processes.iter();
        processes.any(|process| process.generation == generation && process.is_alive)
    }

    /// Whether the supervisor kills the remaining processes.
    fn is_ending(&self) -> bool {
        self.table.phase() == Phase::Terminated
            || self.slots.iter().all(|slot| slot.driver == Driver::Ended)
    }

    /// Returns all possible next steps.
    fn moves(&self, bounds: &Bounds) -> Vec<Move> {
        let mut moves = Vec::new();
        let is_open = self.table.phase() == Phase::Open;
        if is_open && self.queue < bounds.queue {
            moves.push(Move::Submit);
            if bounds.numbers.slots == 1 {
                moves.push(Move::SubmitTo(0));
            }
        }
        if is_open && bounds.is_resized {
            let sizes = 1..=bounds.numbers.slots;
            let others = sizes.filter(|size| *size != self.table.most_running);
            moves.extend(others.map(Move::Resize));
        }
        if is_open && bounds.is_eventful {
            moves.push(Move::Close);
            if self.queue == 0 {
                moves.push(Move::CheckOut);
            }
        }
        if bounds.is_eventful && self.table.phase() != Phase::Terminated {
            moves.push(Move::Terminate);
        }
        if bounds.is_eventful {
            moves.push(if self.is_suspended { Move::Resume } else { Move::Suspend });
        }
        for (index, slot) in self.slots.iter().enumerate() {
            match slot.driver {
                Driver::Sleeping if slot.is_woken || bounds.is_eventful => {
                    moves.push(Move::Poll(index));
                }
                Driver::Handshaking(generation) => {
                    moves.push(Move::Handshake(index, Err(())));
                    if self.is_alive(index, generation) {
                        moves.push(Move::Handshake(index, Ok(())));
                    }
                }
                Driver::Sleeping | Driver::Running(_) | Driver::Ended => {}
            }
            for holder in [Holder::Driver, Holder::Caller] {
                let Some(generation) = self.held_by(index, holder) else { continue };
                // The reply may have arrived before the death.
                moves.push(Move::Return(index, holder, false));
                if bounds.is_eventful {
                    moves.push(Move::Return(index, holder, true));
                }
                if !self.is_alive(index, generation) {
                    moves.push(Move::Lose(index, holder, false));
                    if bounds.is_eventful {
                        moves.push(Move::Lose(index, holder, true));
                    }
                }
            }
            for process in &slot.processes {
                let is_new = slot.driver == Driver::Handshaking(process.generation);
                if process.is_alive && (bounds.is_eventful || !is_new) {
                    moves.push(Move::Die(index, process.generation));
                } else if !process.is_alive && self.starting.is_none() {
                    moves.push(Move::Reap(index, process.generation));
                }
            }
        }
        match self.starting {
            Some(_) => moves.extend([Move::Spawn(Ok(())), Move::Spawn(Err(()))]),
            None => {
                moves.push(Move::Park);
                if self.is_supervisor_woken && !self.is_suspended {
                    moves.push(Move::Tick);
                }
            }
        }
        moves
    }

    /// Whether a step eventually happens by itself, without calls to the pool.
    fn is_progress(&self, step: Move, environment: Environment) -> bool {
        match step {
            Move::Submit
            | Move::SubmitTo(_)
            | Move::CheckOut
            | Move::Close
            | Move::Terminate
            | Move::Suspend
            | Move::Park
            | Move::Resize(_) => false,
            Move::Resume | Move::Tick | Move::Reap(..) | Move::Lose(..) => true,
            Move::Poll(slot) => self.slots[slot].is_woken,
            Move::Return(slot, holder, _) => {
                self.held_by(slot, holder).is_some_and(|generation| self.is_alive(slot, generation))
            }
            Move::Handshake(slot, outcome) => match self.slots[slot].driver {
                Driver::Handshaking(generation) if self.is_alive(slot, generation) => {
                    outcome.is_ok() == (environment == Environment::Good)
                }
                _ => outcome.is_err(),
            },
            Move::Spawn(outcome) => outcome.is_ok() == (environment == Environment::Good),
            Move::Die(slot, generation) => {
                let mut processes = self.slots[slot].processes.iter();
                self.is_ending()
                    || processes
                        .any(|process| process.generation == generation && process.must_exit)
            }
        }
    }

    fn apply(&mut self, slot: usize, actions: Actions<Generation>) {
        match actions.wake {
            Wake::None => {}
            Wake::One(slot) => self.slots[slot].is_woken = true,
            Wake::All => self.slots.iter_mut().for_each(|slot| slot.is_woken = true),
        }
        self.is_supervisor_woken |= actions.start;
        if let Some(process) = actions.retire.and_then(|worker| self.process(slot, worker)) {
            process.must_exit = true;
        }
    }

    /// Performs a step of the scheduler, a driver or the supervisor.
    fn step(&mut self, step: Move, now: Instant) {
        let has_work = self.queue > 0;
        match step {
            Move::Submit => {
                self.queue += 1;
                self.wake_for_queue(now);
            }
            Move::SubmitTo(slot) => {
                self.queue += 1;
                let actions = self.table.wake_slot(slot, now);
                self.apply(slot, actions);
            }
            Move::CheckOut => {
                if let Some((slot, worker)) = self.table.check_out_any() {
                    self.slots[slot].caller = Some(worker);
                }
            }
            Move::Close => {
                let actions = self.table.close();
                self.apply(0, actions);
            }
            Move::Terminate => {
                self.queue = 0;
                let actions = self.table.terminate();
                self.apply(0, actions);
            }
            Move::Suspend => self.is_suspended = true,
            Move::Resume => {
                self.is_suspended = false;
                self.is_supervisor_woken = true;
            }
            Move::Poll(slot) => self.poll(slot, now),
            Move::Handshake(slot, outcome) => {
                let Driver::Handshaking(generation) = self.slots[slot].driver else { return };
                self.release(slot, Holder::Driver);
                let actions = match outcome {
                    Ok(()) => self.table.ready(slot, generation, has_work, now),
                    Err(()) => {
                        // Killed, whatever the error.
                        if let Some(process) = self.process(slot, generation) {
                            process.is_alive = false;
                        }
                        self.table.handshake_failed(slot, has_work, now)
                    }
                };
                self.apply(slot, actions);
                self.give_up();
            }
            Move::Return(slot, holder, is_spent) => {
                let Some(worker) = self.held_by(slot, holder) else { return };
                self.release(slot, holder);
                let actions = self.table.check_in(slot, worker, is_spent, has_work, now);
                self.apply(slot, actions);
                if has_work && !self.table.is_idle(slot) {
                    self.wake_for_queue(now);
                }
            }
            Move::Lose(slot, holder, is_retried) => {
                self.release(slot, holder);
                if is_retried && self.table.phase() != Phase::Terminated {
                    self.queue += 1;
                    self.wake_for_queue(now);
                }
                let actions = self.table.lost(slot, self.queue > 0);
                self.apply(slot, actions);
                if self.queue > 0 {
                    self.wake_for_queue(now);
                }
            }
            Move::Die(slot, generation) => {
                if let Some(process) = self.process(slot, generation) {
                    process.is_alive = false;
                }
            }
            Move::Tick => match self.table.next_start(has_work, now + Duration::from_secs(3600)) {
                SpawnDecision::Now(slot, generation) => self.starting = Some((slot, generation)),
                SpawnDecision::At(_) | SpawnDecision::None => self.is_supervisor_woken = false,
            },
            Move::Spawn(outcome) => {
                let Some((slot, generation)) = self.starting.take() else { return };
                let actions = match outcome {
                    Ok(()) => {
                        let process = Process { generation, is_alive: true, must_exit: false };
                        self.slots[slot].processes.push(process);
                        self.table.spawned(slot, generation)
                    }
                    Err(()) => self.table.spawn_failed(slot, has_work, now),
                };
                self.apply(slot, actions);
                self.give_up();
            }
            Move::Reap(slot, generation) => {
                self.slots[slot].processes.retain(|process| process.generation != generation);
                let actions = self.table.ended(slot, generation, true, has_work, now);
                self.apply(slot, actions);
                self.is_supervisor_woken = true;
            }
            Move::Park => {
                if let Some((slot, worker)) = self.table.park_idle(now, 0)
                    && let Some(process) = self.process(slot, worker)
                {
                    process.must_exit = true;
                }
            }
            Move::Resize(workers) => {
                let actions = self.table.resize(workers, false, now);
                self.apply(0, actions);
                if has_work {
                    self.wake_for_queue(now);
                }
            }
        }
    }

    fn poll(&mut self, slot: usize, now: Instant) {
        self.slots[slot].is_woken = false;
        let is_full = self.table.is_full() || self.table.is_surplus(slot);
        match self.table.poll(slot, self.queue > 0) {
            SlotPoll::PendingWorker(pending) => {
                self.slots[slot].driver = Driver::Handshaking(pending)
            }
            SlotPoll::Idle(_) if self.queue > 0 && !is_full => {
                self.queue -= 1;
                if let Some(worker) = self.table.check_out(slot) {
                    self.slots[slot].driver = Driver::Running(worker);
                }
                if self.queue > 0 {
                    self.wake_for_queue(now);
                }
            }
            SlotPoll::Idle(_) => {
                let surplus = self.table.park_surplus(slot);
                if let Some(process) = surplus.and_then(|worker| self.process(slot, worker)) {
                    process.must_exit = true;
                }
            }
            SlotPoll::Nothing => {}
            SlotPoll::End(worker) => {
                self.slots[slot].driver = Driver::Ended;
                if let Some(process) = worker.and_then(|worker| self.process(slot, worker)) {
                    process.must_exit = true;
                }
            }
        }
    }

    fn wake_for_queue(&mut self, now: Instant) {
        let actions = self.table.wake_one(self.queue.into(), now);
        self.apply(0, actions);
    }

    /// Queued tasks fail, because no worker can start.
    fn give_up(&mut self) {
        if self.table.has_given_up() {
            self.queue = 0;
        }
    }

    /// Removes details that no later step depends on, so that the set of states is finite: lengths of delays,
    /// except their order, and the number of past processes.
    fn normalize(&mut self, now: Instant) {
        let mut dues: Vec<_> =
            self.table.slots.iter().filter_map(|slot_state| slot_state.due).collect();
        dues.sort_unstable();
        for (index, slot_state) in self.table.slots.iter_mut().enumerate() {
            let before =
                slot_state.due.map(|due| dues.iter().filter(|other| **other < due).count());
            slot_state.due = before.map(|before| now + Duration::from_nanos(before as u64));
            slot_state.idle_since = now;
            slot_state.failures = slot_state.failures.min(self.table.attempts);
            slot_state.early_deaths = 0;
            let slot = &mut self.slots[index];
            let mut known: Vec<Generation> =
                slot.processes.iter().map(|process| process.generation).collect();
            known.push(slot_state.generation);
            known.extend(slot.caller);
            if let Driver::Running(generation) | Driver::Handshaking(generation) = slot.driver {
                known.push(generation);
            }
            match slot_state.state {
                State::Spawned(token)
                | State::CheckedOut(Some(token))
                | State::Idle(token)
                | State::Draining(token) => known.push(token),
                _ => {}
            }
            known.sort_unstable();
            known.dedup();
            let rank = |generation: &mut Generation| {
                *generation = known.iter().position(|known| known == generation).unwrap() as u64;
            };
            rank(&mut slot_state.generation);
            slot.processes.iter_mut().for_each(|process| rank(&mut process.generation));
            slot.processes.sort_unstable_by_key(|process| process.generation);
            slot.caller.iter_mut().for_each(rank);
            if let Driver::Running(generation) | Driver::Handshaking(generation) = &mut slot.driver
            {
                rank(generation);
            }
            match &mut slot_state.state {
                State::Spawned(token)
                | State::CheckedOut(Some(token))
                | State::Idle(token)
                | State::Draining(token) => rank(token),
                _ => {}
            }
            if let Some((starting, generation)) = &mut self.starting
                && *starting == index
            {
                *generation = slot_state.generation + 1;
            }
        }
    }

    /// Returns a violated invariant, if any.
    fn violated_invariant(&self) -> Option<&'static str> {
        let (mut out, mut parked) = (0, 0);
        let mut rules = Vec::new();
        for (index, (slot_state, slot)) in self.table.slots.iter().zip(&self.slots).enumerate() {
            let is_starting = self.starting.is_some_and(|(starting, _)| starting == index);
            let processes = slot.processes.len() + usize::from(is_starting);
            let remaining = slot.processes.iter().filter(|process| !process.must_exit).count();
            // A draining worker, which is told to exit once its replacement is started.
            let draining = usize::from(matches!(slot_state.state, State::Draining(_)));
            let is_driven = matches!(slot.driver, Driver::Running(_) | Driver::Handshaking(_));
            let is_out = is_driven || slot.caller.is_some();
            out += usize::from(is_out);
            let is_parked = matches!(slot_state.state, State::Parked);
            parked += usize::from(is_parked && !self.table.is_surplus(index));
            let listed = self.table.idle.iter().filter(|idle| **idle == index).count();
            let is_closed = matches!(slot_state.state, State::Closed);
            rules.extend([
                (processes <= 2, "more processes than one and its replacement"),
                (
                    remaining <= 1 + draining || is_closed,
                    "two processes that were not told to exit",
                ),
                (
                    (slot_state.process == ProcessState::Starting) == is_starting,
                    "a slot is starting, but the supervisor starts no process for it",
                ),
                (!is_driven || slot.caller.is_none(), "a worker is checked out twice"),
                (
                    is_out == matches!(slot_state.state, State::Handshaking | State::CheckedOut(_)),
                    "a worker is checked out, but no thread has it",
                ),
                (
                    listed == 0 || matches!(slot_state.state, State::Idle(_)),
                    "a wakeable slot has no idle worker",
                ),
            ]);
            match slot_state.state {
                State::Empty => rules.push((
                    slot_state.due.is_some() || slot_state.process != ProcessState::Absent,
                    "no process will be started for an empty slot",
                )),
                State::Idle(worker) => rules.extend([
                    (
                        slot_state.process == ProcessState::Alive
                            && worker == slot_state.generation,
                        "an idle worker is known to be dead",
                    ),
                    (
                        listed == 1 || (listed == 0 && slot.is_woken),
                        "the driver of an idle worker can't be woken",
                    ),
                ]),
                _ => {}
            }
        }
        let is_running =
            |slot_state: &&super::Slot<_, _>| matches!(slot_state.state, State::CheckedOut(_));
        let running = self.table.slots.iter().filter(is_running).count();
        rules.push((self.table.out == out, "wrong count of checked-out workers"));
        rules.push((self.table.running == running, "wrong count of workers that run tasks"));
        // What runs while the pool becomes smaller goes on, on a surplus worker or beside one.
        let surplus = self.table.slots.len() - self.table.limit;
        rules.push((
            running <= self.table.most_running + surplus,
            "a worker that stands by runs a task",
        ));
        rules.push((self.table.parked == parked, "wrong count of parked slots"));
        let woken = self.table.slots.iter().filter(|slot_state| slot_state.is_woken).count();
        rules.push((self.table.woken == woken, "wrong count of woken drivers"));
        rules.into_iter().find(|(holds, _)| !holds).map(|(_, invariant)| invariant)
    }

    /// Whether the pool is in its expected final state when no calls are made.
    fn is_settled(&self) -> bool {
        let processes = self.slots.iter().map(|slot| slot.processes.len()).sum::<usize>();
        if self.table.is_over(self.queue > 0) {
            let has_ended = |slot: &Slot| slot.driver == Driver::Ended;
            return self.slots.iter().all(has_ended) && processes == 0;
        }
        let is_served = |state: &State<_, _>| match state {
            State::Idle(_) | State::Parked => true,
            State::Empty | State::Draining(_) => self.table.given_up,
            _ => false,
        };
        let is_right = |(slot, slot_state): (usize, &super::Slot<_, _>)| {
            let is_idle = matches!(slot_state.state, State::Idle(_));
            is_served(&slot_state.state) && !(is_idle && self.table.is_surplus(slot))
        };
        self.queue == 0 && self.table.slots.iter().enumerate().all(is_right)
    }
}

/// All reachable states of a pool, with the step that first reached each, and their spontaneous transitions.
struct Explored {
    worlds: Vec<World>,
    from: Vec<Option<(u32, Move)>>,
    good: Vec<Vec<u32>>,
    bad: Vec<Vec<u32>>,
}

impl Explored {
    fn of(bounds: &Bounds) -> Self {
        let now = Instant::now();
        let start = World::new(bounds, now);
        let mut known_worlds = HashMap::from([(start.clone(), 0)]);
        let mut this =
            Self { worlds: vec![start], from: vec![None], good: Vec::new(), bad: Vec::new() };
        while let Some(world) = this.worlds.get(this.good.len()).cloned() {
            let here = this.good.len() as u32;
            let (mut good, mut bad, mut retries) = (Vec::new(), Vec::new(), Vec::new());
            for step in world.moves(bounds) {
                let mut next = world.clone();
                next.step(step, now + Duration::from_secs(1));
                next.normalize(now);
                let known = this.worlds.len() as u32;
                let index = *known_worlds.entry(next).or_insert_with_key(|next| {
                    this.worlds.push(next.clone());
                    this.from.push(Some((here, step)));
                    known
                });
                if index == known
                    && let Some(invariant) = this.worlds[index as usize].violated_invariant()
                {
                    this.fail(index, invariant);
                }
                if world.is_progress(step, Environment::Good) {
                    good.push(index);
                }
                // A new attempt comes after a delay.
                if world.is_progress(step, Environment::Bad) {
                    if step == Move::Tick { &mut retries } else { &mut bad }.push(index);
                }
            }
            this.good.push(good);
            this.bad.push(if bad.is_empty() { retries } else { bad });
        }
        this
    }

    /// Panics with the steps that led to the state.
    fn fail(&self, index: u32, invariant: &str) -> ! {
        let mut steps = Vec::new();
        let mut at = index as usize;
        while let Some((before, step)) = self.from[at] {
            steps.push(step);
            at = before as usize;
        }
        steps.reverse();
        panic!("{invariant}, after {steps:#?}: {:#?}", self.worlds[index as usize]);
    }

    /// Follows every path from every state that `is_open`, to its end, where `is_right` must hold. No path
    /// may be circular.
    fn follow(
        &self,
        transitions: &[Vec<u32>],
        is_open: impl Fn(&World) -> bool,
        is_right: impl Fn(&World) -> bool,
    ) {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            OnPath,
            Done,
        }
        let mut marks = vec![Mark::New; transitions.len()];
        for start in 0..transitions.len() as u32 {
            let mut path = vec![(start, 0)];
            while let Some((index, taken)) = path.last_mut() {
                let (index, at) = (*index, *index as usize);
                if *taken == 0 {
                    if marks[at] == Mark::Done || !is_open(&self.worlds[at]) {
                        path.pop();
                        continue;
                    }
                    if marks[at] == Mark::OnPath {
                        self.fail(index, "the path is circular");
                    }
                    marks[at] = Mark::OnPath;
                    if transitions[at].is_empty() && !is_right(&self.worlds[at]) {
                        self.fail(index, "the state is final, but not as expected");
                    }
                }
                match transitions[at].get(*taken) {
                    Some(next) => {
                        *taken += 1;
                        path.push((*next, 0));
                    }
                    None => {
                        marks[at] = Mark::Done;
                        path.pop();
                    }
                }
            }
        }
    }
}

fn check(bounds: &Bounds) {
    let explored = Explored::of(bounds);
    eprintln!("{} states", explored.worlds.len());
    // In a good environment, every state leads to a working pool, or to a pool that has ended.
    explored.follow(&explored.good, |_| true, World::is_settled);
    // In a bad environment, no task waits forever.
    explored.follow(&explored.bad, |world| world.queue > 0, |_| false);
    eprintln!("{} states", explored.worlds.len());
}

/// All workers start at once, and none stands by.
const fn plain(slots: usize) -> Numbers {
    Numbers { slots, spares: 0, initial: slots }
}

#[test]
fn one_slot_always_recovers_or_its_tasks_fail() {
    check(&Bounds {
        numbers: plain(1),
        attempts: 3,
        queue: 2,
        is_resized: false,
        is_eventful: true,
    });
}

#[test]
fn with_two_slots_no_task_waits_forever() {
    check(&Bounds {
        numbers: plain(2),
        attempts: 1,
        queue: 1,
        is_resized: false,
        is_eventful: false,
    });
}

#[test]
fn where_workers_start_when_there_is_work_no_task_waits_forever() {
    let numbers = Numbers { slots: 2, spares: 0, initial: 1 };
    check(&Bounds { numbers, attempts: 1, queue: 2, is_resized: false, is_eventful: false });
}

#[test]
fn with_a_spare_no_task_waits_forever_and_one_worker_runs_tasks() {
    let numbers = Numbers { slots: 2, spares: 1, initial: 2 };
    check(&Bounds { numbers, attempts: 1, queue: 2, is_resized: false, is_eventful: false });
}

#[test]
fn a_pool_that_is_resized_parks_its_surplus_workers_and_no_task_waits_forever() {
    let numbers = plain(2);
    check(&Bounds { numbers, attempts: 1, queue: 1, is_resized: true, is_eventful: false });
}
