//! The one thread that starts processes and sees to their end. It lives as long as the pool, since
//! the death of the thread that started a process is announced to it as its parent's death. All
//! [`Process`](crate::Process)es share one such thread ([`common`](super::common)).
//!
//! It owns the pidfds, the limits on starting and retiring, and the time limits of tasks. It never
//! talks to a worker and never waits for one.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::control::Control;
use procpool_worker::error::TransportError;
use procpool_worker::lane::{LANE_BYTES, ParentLane};
use procpool_worker::protocol::SpawnToken;
use procpool_worker::region::Region;
use procpool_worker::sys::{self, now};
use procpool_worker::transport;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{DeathCause, StartError};
use crate::os::observe;
use crate::os::process::{CaptureFile, Child, OutputMode};
use crate::pool::observe::callbacks::contain;
use crate::pool::observe::events::EventKind;
use crate::pool::process::orders::Waker;
use crate::pool::process::worker::{KillReason, PendingWorker, Process, RETIRE_GRACE};
use crate::pool::schedule::slots::SpawnDecision;
use crate::pool::schedule::state::PoolState;

/// How many file descriptors a worker takes in this process: one for frames, its control socket, its
/// pidfd, and one for captured output.
pub(crate) const FDS_PER_WORKER: u64 = 4;

/// How often it looks for what has happened where it can't wait for it.
const WITHOUT_POLL: Duration = Duration::from_millis(2);

/// A process that has not ended.
#[derive(Debug)]
struct Supervised {
    process: Arc<Process>,
    started: Instant,
    /// When it was told to go, if it was.
    retired: Option<Instant>,
}

/// The supervisor's thread.
pub(crate) fn supervise(shared: &Arc<PoolState>) {
    let mut supervisors = vec![Supervisor::new(Arc::clone(shared))];
    loop {
        shared.orders.waker.drain_eventfd();
        let wake = work(&mut supervisors);
        if supervisors.is_empty() {
            return;
        }
        sleep(&mut supervisors, &shared.orders.waker, wake);
    }
}

/// Does what is due for each pool, and drops those of which all is over; returns when to look again.
pub(crate) fn work(supervisors: &mut Vec<Supervisor>) -> Option<Instant> {
    let mut wake = None;
    supervisors.retain_mut(|supervisor| match supervisor.work() {
        ControlFlow::Continue(next) => {
            wake = earliest(wake, next);
            true
        }
        ControlFlow::Break(()) => false,
    });
    wake
}

/// What a supervisor's thread knows of one pool.
pub(crate) struct Supervisor {
    shared: Arc<PoolState>,
    supervised: Vec<Supervised>,
    /// The last one. Nonces tell starts apart; they are no secret.
    nonce: u64,
    /// When the workers' memory is looked at next.
    next_watch: Instant,
    /// How many processes the kernel has killed for want of memory.
    oom_kills: u64,
}

impl Supervisor {
    pub(crate) fn new(shared: Arc<PoolState>) -> Self {
        Self {
            shared,
            supervised: Vec::new(),
            nonce: sys::entropy(),
            next_watch: Instant::now(),
            oom_kills: observe::oom_kills(),
        }
    }

    /// Does what is due; returns when to look again, or breaks when all is over.
    fn work(&mut self) -> ControlFlow<(), Option<Instant>> {
        let orders = &self.shared.orders;
        let mut signals = orders.signals.lock().unwrap_or_else(PoisonError::into_inner);
        for signal in signals.drain(..) {
            self.supervised
                .iter()
                .for_each(|supervised_process| supervised_process.process.signal_group(signal));
        }
        drop(signals);
        orders.signaled.notify_all();
        if self.shared.is_terminated() {
            for supervised_process in &self.supervised {
                supervised_process.process.child.kill();
            }
        }
        if self.shared.has_ended() {
            if self.supervised.is_empty() {
                if !self.shared.is_terminated() {
                    self.shared.config.observers.emit(|| EventKind::Drained);
                }
                self.shared.set_supervised(false);
                return ControlFlow::Break(());
            }
            // Nobody is left to greet one that was started meanwhile.
            let is_left = |supervised_process: &&Supervised| {
                supervised_process.process.kill_reason() != Some(KillReason::Retired)
            };
            self.supervised
                .iter()
                .filter(is_left)
                .for_each(|supervised_process| supervised_process.process.child.kill());
        }
        let mut wake = self.start_due();
        wake = earliest(wake, self.enforce_limits());
        wake = earliest(wake, self.watch_memory());
        wake = earliest(wake, self.shared.retire_idle());
        wake = earliest(wake, self.shared.regions.trim());
        ControlFlow::Continue(earliest(wake, self.end_overdue()))
    }

    /// Starts what is due; gives when the next one is.
    fn start_due(&mut self) -> Option<Instant> {
        loop {
            // It would not be stopped as the others are.
            if self.shared.is_suspended() {
                return None;
            }
            // Starting takes a while, and a limit holds meanwhile.
            self.enforce_limits();
            match self.shared.next_start() {
                SpawnDecision::Now(slot, generation) => self.start(slot, generation),
                SpawnDecision::At(at) => return Some(at),
                SpawnDecision::None => return None,
            }
        }
    }

    fn start(&mut self, slot: usize, generation: u64) {
        match self.try_start(slot, generation) {
            Ok(pending) => {
                self.supervised.push(Supervised {
                    process: Arc::clone(&pending.process),
                    started: Instant::now(),
                    retired: None,
                });
                self.shared.spawned(slot, pending);
            }
            Err(reason) => self.shared.start_failed(slot, StartError::Spawn(reason), false),
        }
    }

    fn try_start(&mut self, slot: usize, generation: u64) -> Result<PendingWorker, String> {
        let config = &self.shared.config;
        let hint = |error: &dyn std::fmt::Display, code: Option<i32>| match code {
            Some(libc::EMFILE) => format!(
                "{error}: this process has reached its limit of open files (`ulimit -n`), of which a worker takes {FDS_PER_WORKER}"
            ),
            Some(libc::ENFILE) => {
                format!("{error}: the system has reached its limit of open files")
            }
            Some(libc::EAGAIN) => {
                format!("{error}: the limit of processes (`ulimit -u`) is reached")
            }
            _ => error.to_string(),
        };
        let io = |error: std::io::Error| hint(&error, error.raw_os_error());
        self.nonce = self.nonce.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(now() | 1);
        let token = SpawnToken { nonce: self.nonce, parent: std::process::id() };
        let (ours, theirs) = Control::pair().map_err(io)?;
        let control = Control::new(ours, self.nonce);
        let (requests, frames) = transport::frame_channel().map_err(|error| match error {
            TransportError::Io(error) => io(error),
            error => error.to_string(),
        })?;
        let mut lane = Region::new(LANE_BYTES, LANE_BYTES).map_err(io)?;
        let cord = config.launch.open_cord().map_err(io)?;
        let start = lane.descriptor().into_iter();
        let passed: Vec<_> =
            std::iter::once(cord.as_fd()).chain(start).chain([frames.as_fd()]).collect();
        control.send(&[], &passed).map_err(|error| error.to_string())?;
        lane.close_descriptor();
        drop(frames);
        let lane = ParentLane::new(lane).map_err(|_| "the lane has another size".to_owned())?;
        let env = || config.env_per_worker.iter().flat_map(|env| env(slot)).collect::<Vec<_>>();
        let env = contain(env)
            .map_err(|message| format!("the closure of `env_per_worker` panicked: {message}"))?;
        let title = config.title(slot);
        let capture = config.launch.output == OutputMode::Capture;
        let capture = capture.then(CaptureFile::new).transpose().map_err(io)?;
        let file = capture.as_ref().map(CaptureFile::file);
        let child =
            Child::start(&config.launch, env, &title, token, theirs, &cord, file).map_err(io)?;
        let process = Process::new(slot, generation, child, control, capture, config.kill_grace);
        Ok(PendingWorker { process, lane: Arc::new(lane), requests })
    }

    /// Kills what takes too long to become ready or to go; gives when to look again.
    fn end_overdue(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let limit = self.shared.config.start_timeout;
        let are_needless = self.shared.is_only_starting();
        let mut wake = None;
        for supervised_process in &mut self.supervised {
            let (deadline, set_kill_reason) = match supervised_process.process.kill_reason() {
                _ if supervised_process.process.kill_at().is_some() => {
                    let at = supervised_process.process.kill_at().unwrap_or(now);
                    (at, KillReason::Retired)
                }
                Some(KillReason::Retired) => {
                    let since = *supervised_process.retired.get_or_insert(now);
                    (since + RETIRE_GRACE, KillReason::Retired)
                }
                _ if supervised_process.process.was_ready() => continue,
                // Nothing is left to do for it. Its initializer, if it has come to that, may finish.
                _ if are_needless && supervised_process.process.was_greeted() => {
                    let since = *supervised_process.retired.get_or_insert(now);
                    (since + RETIRE_GRACE, KillReason::Retired)
                }
                _ if are_needless => (now, KillReason::Retired),
                _ => match supervised_process.started.checked_add(limit) {
                    Some(deadline) => (deadline, KillReason::StartTimedOut(limit)),
                    None => continue,
                },
            };
            if deadline > now {
                wake = earliest(wake, Some(deadline));
            } else {
                supervised_process.process.kill(set_kill_reason);
            }
        }
        wake
    }

    fn enforce_limits(&self) -> Option<Instant> {
        let orders = &self.shared.orders;
        let planned = orders.next_look.load(Ordering::Acquire);
        if planned == u64::MAX {
            return None;
        }
        let left = Duration::from_nanos(planned.saturating_sub(now()));
        if !left.is_zero() {
            return Some(Instant::now() + left);
        }
        orders.next_look.store(u64::MAX, Ordering::Release);
        let again = self.shared.enforce_limits()?;
        orders.schedule_check(again);
        Some(again)
    }

    /// Ends workers that use more memory than they may; gives when to look again.
    fn watch_memory(&mut self) -> Option<Instant> {
        const OFTEN: Duration = Duration::from_millis(10);
        let most = self.shared.config.max_memory?;
        let now = Instant::now();
        if now < self.next_watch {
            return Some(self.next_watch);
        }
        for supervised_process in &self.supervised {
            let process = &supervised_process.process;
            if process.kill_reason().is_none()
                && observe::resident(process.pid()).is_some_and(|memory| memory > most)
            {
                self.shared.end_for_memory(process);
            }
        }
        self.next_watch = now + OFTEN;
        Some(self.next_watch)
    }

    /// Kills what a worker that has died has left behind, starts its successor, and only then
    /// announces the death.
    fn reap(&mut self, supervised_process: &Supervised) {
        let process = &supervised_process.process;
        process.set_ended();
        let cause = match process.child.reap() {
            DeathCause::Signaled(libc::SIGKILL, _) if self.kernel_killed(process) => {
                DeathCause::OutOfMemory
            }
            cause => cause,
        };
        self.shared.ended(process);
        self.start_due();
        if self.shared.is_of_one_process() {
            // No driver waits for its answer, which is taken out here.
            process.publish_exit(cause);
            self.shared.conclude();
        }
        let observers = &self.shared.config.observers;
        let (slot, pid) = (process.slot, process.pid());
        match process.kill_reason() {
            Some(KillReason::Retired) => observers.emit(|| EventKind::Retired { slot, pid }),
            _ if process.was_ready() && !self.shared.is_terminated() => {
                observers.lost(slot, pid, cause)
            }
            _ => {}
        }
        process.publish_exit(cause);
    }

    /// Whether a process that was killed by somebody else was so by the kernel, for want of memory:
    /// as far as that can be known, when such a kill has been counted since the last one.
    fn kernel_killed(&mut self, process: &Process) -> bool {
        let kills = observe::oom_kills();
        let before = std::mem::replace(&mut self.oom_kills, kills);
        process.kill_reason().is_none() && kills > before
    }
}

/// Sleeps until `wake`, a ring, or the end of a process, and sees to those that have ended.
pub(crate) fn sleep(supervisors: &mut [Supervisor], waker: &Waker, wake: Option<Instant>) {
    let left = wake.map(|wake| wake.saturating_duration_since(Instant::now()));
    let left = left.map(|left| Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    });
    let children = || {
        let supervised = supervisors.iter().flat_map(|supervisor| &supervisor.supervised);
        supervised.map(|supervised_process| &supervised_process.process.child)
    };
    let waker = PollFd::new(&waker.0, PollFlags::IN);
    let pidfds = children().map(|child| PollFd::from_borrowed_fd(child.pidfd(), PollFlags::IN));
    let mut fds: Vec<_> = std::iter::once(waker).chain(pidfds).collect();
    let has_ended: Vec<bool> = match poll(&mut fds, left.as_ref()) {
        Ok(_) => fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect(),
        Err(rustix::io::Errno::INTR) => return,
        // Refused, or more descriptors than the limit of open files, which has been lowered: the
        // processes are asked one by one.
        Err(_) => {
            std::thread::sleep(wake.map_or(WITHOUT_POLL, |wake| {
                wake.saturating_duration_since(Instant::now()).min(WITHOUT_POLL)
            }));
            children().map(Child::has_ended).collect()
        }
    };
    let mut has_ended = has_ended.into_iter();
    for supervisor in supervisors {
        let is_ended = |_: &mut Supervised| has_ended.next() == Some(true);
        let ended: Vec<Supervised> = supervisor.supervised.extract_if(.., is_ended).collect();
        for supervised_process in ended {
            supervisor.reap(&supervised_process);
        }
    }
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
