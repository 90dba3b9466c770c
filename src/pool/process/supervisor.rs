//! The thread that starts and reaps a pool's processes. It lives as long as the pool, because the kernel
//! reports the exit of the thread that started a process to it as its parent's death. All
//! [`Process`](crate::Process)es share one such thread (see
//! [`shared_supervisor`](super::shared_supervisor)).
//!
//! It owns the pidfds, the limits on starting and retiring, and the tasks' time limits. It never communicates
//! with a worker and never blocks on one.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::sys::{self, now};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{DeathCause, StartError};
use crate::os::observe;
use crate::os::process::Child;
use crate::pool::config::StartMethod;
use crate::pool::observe::events::EventKind;
use crate::pool::process::preparation::Preparation;
use crate::pool::process::supervisor_handle::Waker;
use crate::pool::process::template::{Answer, Remains, Template};
use crate::pool::process::worker::{KillReason, Process, RETIRE_GRACE};
use crate::pool::schedule::slots::{MAX_EARLY_DEATHS, SpawnDecision};
use crate::pool::schedule::state::PoolState;

/// Polling interval if poll(2) fails.
const WITHOUT_POLL: Duration = Duration::from_millis(2);

/// Polling interval for the end of the rest of a template's process group, which was killed.
const GROUP_CHECK: Duration = Duration::from_millis(1);

/// A process that has not been reaped.
#[derive(Debug)]
struct Supervised {
    process: Arc<Process>,
    started: Instant,
    /// When it was told to exit.
    retired: Option<Instant>,
}

/// Runs a pool's supervisor thread.
pub(crate) fn supervise(shared: &Arc<PoolState>) {
    let mut supervisors = vec![Supervisor::new(Arc::clone(shared))];
    loop {
        shared.supervisor.waker.drain_eventfd();
        let wake = work(&mut supervisors);
        if supervisors.is_empty() {
            return;
        }
        sleep(&mut supervisors, &shared.supervisor.waker, wake);
    }
}

/// Does all due work for each pool and drops finished pools. Returns when to run again.
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

/// A supervisor thread's state for one pool.
pub(crate) struct Supervisor {
    shared: Arc<PoolState>,
    supervised: Vec<Supervised>,
    /// Forks the workers, if the pool has one.
    template: Option<Template>,
    /// Process groups of templates that have ended, until all their processes are reaped.
    groups: Vec<u32>,
    /// Consecutive templates that have ended by themselves and had forked no worker.
    early_template_deaths: u32,
    /// The last nonce. Nonces identify starts; they are not secret.
    nonce: u64,
    /// When the workers' memory is sampled next.
    next_watch: Instant,
    /// The kernel's count of OOM kills.
    oom_kills: u64,
}

impl Supervisor {
    pub(crate) fn new(shared: Arc<PoolState>) -> Self {
        Self {
            shared,
            supervised: Vec::new(),
            template: None,
            groups: Vec::new(),
            early_template_deaths: 0,
            nonce: sys::entropy(),
            next_watch: Instant::now(),
            oom_kills: observe::oom_kills(),
        }
    }

    /// Does all due work. Returns when to run again, or breaks when the pool is finished.
    fn work(&mut self) -> ControlFlow<(), Option<Instant>> {
        let supervisor = &self.shared.supervisor;
        let mut signals = supervisor.signals.lock().unwrap_or_else(PoisonError::into_inner);
        for signal in signals.drain(..) {
            self.supervised.iter().for_each(|supervised| supervised.process.signal_group(signal));
        }
        drop(signals);
        supervisor.signaled.notify_all();
        if self.shared.is_terminated() {
            for supervised in &self.supervised {
                supervised.process.child.kill();
            }
        }
        let is_over = self.shared.is_terminated() || self.shared.has_ended();
        if let Some(template) = self.template.as_mut().filter(|_| is_over) {
            template.fail(StartError::Terminated);
        }
        let mut wake = self.serve_template();
        if self.shared.has_ended() {
            let has_template = self.template.is_some() || !self.groups.is_empty();
            if self.supervised.is_empty() && !has_template {
                if !self.shared.is_terminated() {
                    self.shared.config.observers.emit(|| EventKind::Drained);
                }
                self.shared.set_supervised(false);
                return ControlFlow::Break(());
            }
            // No driver is left for the handshake of processes that were started meanwhile.
            let is_left = |supervised: &&Supervised| {
                supervised.process.kill_reason() != Some(KillReason::Retired)
            };
            self.supervised
                .iter()
                .filter(is_left)
                .for_each(|supervised| supervised.process.child.kill());
        }
        wake = earliest(wake, self.start_due());
        wake = earliest(wake, self.enforce_limits());
        wake = earliest(wake, self.watch_memory());
        wake = earliest(wake, self.shared.retire_idle());
        wake = earliest(wake, self.shared.regions.trim());
        ControlFlow::Continue(earliest(wake, self.end_overdue()))
    }

    /// Starts due processes. Returns when the next one is due.
    fn start_due(&mut self) -> Option<Instant> {
        loop {
            // A process started now would not be stopped like the others.
            if self.shared.is_suspended() {
                return None;
            }
            // Starting takes a while, and time limits apply meanwhile.
            self.enforce_limits();
            match self.shared.next_start() {
                SpawnDecision::Now(slot, generation) => self.start(slot, generation),
                SpawnDecision::At(at) => return Some(at),
                SpawnDecision::None => return None,
            }
        }
    }

    /// Starts a worker, or asks the template for it.
    fn start(&mut self, slot: usize, generation: u64) {
        let shared = Arc::clone(&self.shared);
        let config = &shared.config;
        let nonce = self.next_nonce();
        let outcome =
            Preparation::new(config, slot, generation, nonce).and_then(|mut preparation| {
                match config.start_method {
                    StartMethod::Spawn => {
                        let child = preparation.execute(config)?;
                        self.started(preparation, child);
                    }
                    StartMethod::Template => {
                        preparation.check_size()?;
                        self.template()?.ask(preparation);
                    }
                }
                Ok(())
            });
        if let Err(reason) = outcome {
            shared.start_failed(slot, StartError::Spawn(reason), false);
        }
    }

    fn next_nonce(&mut self) -> u64 {
        self.nonce = self.nonce.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(now() | 1);
        self.nonce
    }

    /// Supervises a worker whose process has started.
    fn started(&mut self, preparation: Preparation, child: Child) {
        let slot = preparation.slot;
        let pending = preparation.into_pending(child, &self.shared.config);
        self.supervised.push(Supervised {
            process: Arc::clone(&pending.process),
            started: Instant::now(),
            retired: None,
        });
        self.shared.spawned(slot, pending);
    }

    /// Returns the template, which is started if there is none.
    fn template(&mut self) -> Result<&mut Template, String> {
        let template = match self.template.take() {
            Some(template) => template,
            None => {
                let nonce = self.next_nonce();
                let template = Template::start(&self.shared.config, nonce)
                    .map_err(|reason| format!("its template process: {reason}"))?;
                let pid = template.child.pid();
                self.shared.config.observers.emit(|| EventKind::TemplateStarted { pid });
                template
            }
        };
        Ok(self.template.insert(template))
    }

    /// Starts the workers that the template has forked. Returns when to check it again.
    fn serve_template(&mut self) -> Option<Instant> {
        let shared = Arc::clone(&self.shared);
        let answers = match &mut self.template {
            Some(template) => template.answers(&shared.config),
            None => Vec::new(),
        };
        for answer in answers {
            match answer {
                Answer::Forked(preparation, child) => self.started(preparation, child),
                Answer::Refused(preparation, reason) => {
                    shared.start_failed(preparation.slot, StartError::Spawn(reason), false);
                }
            }
        }
        self.groups.retain(|group| !Child::reap_group(*group));
        let recheck = (!self.groups.is_empty()).then(|| Instant::now() + GROUP_CHECK);
        let deadline =
            self.template.as_mut().and_then(|template| template.check_deadline(&shared.config));
        earliest(recheck, deadline)
    }

    /// Reaps the template, which has ended. Workers that were asked of it have failed to start. If it had been
    /// ready, another is started at once, unless something kills them again and again: then the next worker that
    /// is due starts it.
    fn reap_template(&mut self) {
        // What it has forked before its end is known from its answers.
        self.serve_template();
        let Some(template) = self.template.take() else { return };
        let Remains { pid, cause, was_ready, has_forked, failed } = template.reap();
        // A worker that no answer has named is still in its group, and has been killed with it.
        if !Child::reap_group(pid) {
            self.groups.push(pid);
        }
        let is_over = self.shared.has_ended() || self.shared.is_terminated();
        if !is_over {
            let cause = cause.to_string();
            self.shared.config.observers.emit(|| EventKind::TemplateLost { pid, cause });
        }
        for (preparation, reason) in failed {
            self.shared.start_failed(preparation.slot, reason, false);
        }
        self.early_template_deaths = if has_forked { 0 } else { self.early_template_deaths + 1 };
        if was_ready && !is_over && self.early_template_deaths < MAX_EARLY_DEATHS {
            // Its failure is reported to the next worker that needs it.
            let _ = self.template();
        }
    }

    /// Kills processes that exceed the time to start or to exit. Returns when to check again.
    fn end_overdue(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let limit = self.shared.config.start_timeout;
        let are_needless = self.shared.is_only_starting();
        let mut wake = None;
        for supervised in &mut self.supervised {
            let (deadline, reason) = match supervised.process.kill_reason() {
                _ if supervised.process.kill_at().is_some() => {
                    let at = supervised.process.kill_at().unwrap_or(now);
                    (at, KillReason::Retired)
                }
                Some(KillReason::Retired) => {
                    let since = *supervised.retired.get_or_insert(now);
                    (since + RETIRE_GRACE, KillReason::Retired)
                }
                _ if supervised.process.was_ready() => continue,
                // No work is left for it. If its initializer is running, it may finish.
                _ if are_needless && supervised.process.has_connected() => {
                    let since = *supervised.retired.get_or_insert(now);
                    (since + RETIRE_GRACE, KillReason::Retired)
                }
                _ if are_needless => (now, KillReason::Retired),
                _ => match supervised.started.checked_add(limit) {
                    Some(deadline) => (deadline, KillReason::StartTimedOut(limit)),
                    None => continue,
                },
            };
            if deadline > now {
                wake = earliest(wake, Some(deadline));
            } else {
                supervised.process.kill(reason);
            }
        }
        wake
    }

    fn enforce_limits(&self) -> Option<Instant> {
        let supervisor = &self.shared.supervisor;
        let planned = supervisor.next_check.load(Ordering::Acquire);
        if planned == u64::MAX {
            return None;
        }
        let left = Duration::from_nanos(planned.saturating_sub(now()));
        if !left.is_zero() {
            return Some(Instant::now() + left);
        }
        supervisor.next_check.store(u64::MAX, Ordering::Release);
        let again = self.shared.enforce_limits()?;
        supervisor.schedule_check(again);
        Some(again)
    }

    /// Kills workers that exceed the memory limit. Returns when to check again.
    fn watch_memory(&mut self) -> Option<Instant> {
        const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);
        let most = self.shared.config.max_memory?;
        let now = Instant::now();
        if now < self.next_watch {
            return Some(self.next_watch);
        }
        for supervised in &self.supervised {
            let process = &supervised.process;
            if process.kill_reason().is_none()
                && observe::resident(process.pid()).is_some_and(|memory| memory > most)
            {
                self.shared.end_for_memory(process);
            }
        }
        self.next_watch = now + SAMPLE_INTERVAL;
        Some(self.next_watch)
    }

    /// Kills a dead worker's leftover processes, starts its replacement, and then announces the death. Where
    /// another worker stands by, the replacement has time.
    fn reap(&mut self, supervised: &Supervised) {
        let process = &supervised.process;
        process.set_ended();
        let cause = match process.child.reap() {
            DeathCause::Signaled(libc::SIGKILL, _) if self.kernel_killed(process) => {
                DeathCause::OutOfMemory
            }
            cause => cause,
        };
        self.shared.ended(process);
        if self.shared.config.spares == 0 {
            self.start_due();
        }
        if self.shared.is_of_one_process() {
            // No driver waits for the reply, so it is collected here.
            process.publish_exit(cause);
            self.shared.conclude();
        }
        let observers = &self.shared.config.observers;
        let (slot, pid) = (process.slot, process.pid());
        match process.kill_reason() {
            Some(KillReason::Retired) => observers.emit(|| EventKind::Retired { slot, pid }),
            reason if process.was_ready() && !self.shared.is_terminated() => {
                self.shared.counters.deaths.add(reason, cause);
                observers.lost(slot, pid, cause)
            }
            _ => {}
        }
        process.publish_exit(cause);
    }

    /// Whether the kernel's OOM killer killed a process. This is inferred: the pool didn't kill it, and the
    /// kernel has counted an OOM kill since the last check.
    fn kernel_killed(&mut self, process: &Process) -> bool {
        let kills = observe::oom_kills();
        let before = std::mem::replace(&mut self.oom_kills, kills);
        process.kill_reason().is_none() && kills > before
    }
}

/// Sleeps until `wake`, a wake-up, or the end of a process, and reaps ended processes.
pub(crate) fn sleep(supervisors: &mut [Supervisor], waker: &Waker, wake: Option<Instant>) {
    let left = wake.map(|wake| wake.saturating_duration_since(Instant::now()));
    let left = left.map(|left| Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    });
    let templates = || supervisors.iter().filter_map(|supervisor| supervisor.template.as_ref());
    let children = || {
        let supervised = supervisors.iter().flat_map(|supervisor| &supervisor.supervised);
        let children = supervised.map(|supervised| &supervised.process.child);
        children.chain(templates().map(|template| &template.child))
    };
    let waker = PollFd::new(&waker.0, PollFlags::IN);
    let pidfds = children().map(|child| PollFd::from_borrowed_fd(child.pidfd(), PollFlags::IN));
    // Their answers are read by `work`.
    let sockets = templates().map(|it| PollFd::from_borrowed_fd(it.socket(), PollFlags::IN));
    let mut fds: Vec<_> = std::iter::once(waker).chain(pidfds).chain(sockets).collect();
    let has_ended: Vec<bool> = match poll(&mut fds, left.as_ref()) {
        Ok(_) => fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect(),
        Err(rustix::io::Errno::INTR) => return,
        // poll(2) failed, for example with more descriptors than a lowered limit of open files: checks the
        // processes one by one.
        Err(_) => {
            std::thread::sleep(wake.map_or(WITHOUT_POLL, |wake| {
                wake.saturating_duration_since(Instant::now()).min(WITHOUT_POLL)
            }));
            children().map(Child::has_ended).collect()
        }
    };
    let mut has_ended = has_ended.into_iter();
    let mut ended = Vec::new();
    for supervisor in supervisors.iter_mut() {
        let is_ended = |_: &mut Supervised| has_ended.next() == Some(true);
        ended.push(supervisor.supervised.extract_if(.., is_ended).collect::<Vec<_>>());
    }
    for (supervisor, ended) in supervisors.iter_mut().zip(ended) {
        if supervisor.template.is_some() && has_ended.next() == Some(true) {
            supervisor.reap_template();
        }
        for supervised in ended {
            supervisor.reap(&supervised);
        }
    }
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
