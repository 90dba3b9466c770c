//! One slot: its state, its process, and the actions that an event on it requires.

use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Open,
    /// No more tasks are accepted.
    Closed,
    /// No more tasks are run.
    Terminated,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Slot<N, W> {
    pub(super) state: State<N, W>,
    pub(super) process: ProcessState,
    /// When a process is due to start, if one is.
    pub(super) due: Option<Instant>,
    /// Number of processes started in this slot; identifies the last one.
    pub(super) generation: u64,
    /// Number of older processes that were told to exit and have not ended.
    pub(super) draining: u32,
    /// Consecutive failed starts in this slot.
    pub(super) failures: u32,
    /// Consecutive workers that died without having received a task.
    pub(super) early_deaths: u32,
    /// When its worker became idle.
    pub(super) idle_since: Instant,
    /// Whether its driver was woken and has not polled yet.
    pub(super) is_woken: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum State<N, W> {
    /// A process is due, or is being started.
    Empty,
    /// Waiting for the driver to start the handshake.
    Spawned(N),
    /// The driver performs the handshake and runs the initializer.
    Handshaking,
    /// A driver or caller has the worker. If the worker has died since, its replacement waits here.
    CheckedOut(Option<N>),
    Idle(W),
    /// The worker has reached its task limit; it exits once its replacement is started.
    Draining(W),
    /// The worker was stopped while idle, or none was started. New work starts one.
    Parked,
    /// The driver has exited.
    Closed,
}

/// State of the process started last, as far as it serves the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ProcessState {
    /// It has ended or was told to exit.
    Absent,
    /// The supervisor is starting it.
    Starting,
    /// It is running, as far as known.
    Alive,
}

/// Actions that an event requires, besides the state change.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct Actions<W> {
    pub(crate) wake: Wake,
    /// The supervisor must check for due processes.
    pub(crate) start: bool,
    /// A worker to retire.
    pub(crate) retire: Option<W>,
}

/// Which drivers to wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    None,
    One(usize),
    All,
}

/// What a driver finds in its slot.
#[derive(Debug)]
pub(crate) enum SlotPoll<'a, N, W> {
    /// A process ready for its handshake.
    PendingWorker(N),
    /// A worker that may be [checked out](SlotTable::check_out).
    Idle(&'a W),
    /// Nothing to do now.
    Nothing,
    /// Nothing to do ever again: retire the worker, if there is one.
    End(Option<W>),
}

/// What the supervisor must start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpawnDecision {
    /// Start a process now, for this slot and generation.
    Now(usize, u64),
    /// The next process is due at this time.
    At(Instant),
    None,
}

impl<W> Actions<W> {
    pub(super) fn nothing() -> Self {
        Self { wake: Wake::None, start: false, retire: None }
    }

    pub(super) fn wake(wake: Wake) -> Self {
        Self { wake, ..Self::nothing() }
    }

    pub(super) fn start() -> Self {
        Self { start: true, ..Self::nothing() }
    }
}

impl<N, W> Slot<N, W> {
    /// Creates a slot whose process is due, or one that is parked.
    pub(super) fn new(is_due: bool, now: Instant) -> Self {
        Self {
            state: if is_due { State::Empty } else { State::Parked },
            process: ProcessState::Absent,
            due: is_due.then_some(now),
            generation: 0,
            draining: 0,
            failures: 0,
            early_deaths: 0,
            idle_since: now,
            is_woken: false,
        }
    }

    /// Schedules a start, after a delay that grows with the failures.
    pub(super) fn schedule_spawn(&mut self, now: Instant) {
        let pause = match self.failures {
            0 | 1 => 0,
            n => 10 << (n - 2).min(8),
        };
        self.due = Some(now + Duration::from_millis(pause));
    }

    /// Marks the slot's process as draining.
    pub(super) fn mark_draining(&mut self) {
        self.process = ProcessState::Absent;
        self.draining += 1;
    }
}
