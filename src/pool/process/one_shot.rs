//! One call in a child process of its own: [`Process`] is a pool of one worker that is given one
//! task and has no successor, so that what watches over a pool's workers watches over it too. It has no
//! thread of its own: the caller's sends the call, and one that all share sees to the end
//! ([`common`](super::common)).

use std::ffi::OsString;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::process::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{DeathCause, Error, StartError, TaskError};
use crate::os::process::OutputMode;
use crate::pool::builder::PoolBuilder;
use crate::pool::call::task::Task;
use crate::pool::handle::Pool;
use crate::pool::limits::Limits;
use crate::pool::observe::events::Event;
use crate::pool::process::worker;
use crate::pool::schedule::state::PoolState;
use crate::pool::types::Report;

/// One call in a child process of its own: `multiprocessing.Process`.
///
/// The child calls the function and ends: with exit code 0 after an answer, with 1 where there is
/// none because it panicked, or a value could not be sent. If it crashes or exits, [`join`](Self::join)
/// says how. It may have [pools](Pool) and processes of its own; what it leaves behind is killed when
/// it ends, however that is. Dropped, it is killed.
///
/// A start takes a millisecond or more: for many calls, a [`Pool`] starts once.
///
/// ```no_run
/// use procpool::Process;
///
/// fn sort(mut list: Vec<i32>) -> Vec<i32> {
///     list.sort();
///     list
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procpool::init();
///     let mut process = Process::spawn(sort, vec![3, 1, 2])?;
///     println!("PID {} runs: {}", process.pid(), process.is_alive());
///     assert_eq!(process.join()?, [1, 2, 3]);
///     assert_eq!(process.exit_status().and_then(|status| status.code()), Some(0));
///     Ok(())
/// }
/// ```
#[must_use = "a process that is dropped is killed"]
pub struct Process<R> {
    task: Task<R>,
    child: Arc<worker::Process>,
    /// Ends the child when it is dropped.
    pool: Pool,
}

impl<R> std::fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process")
            .field("name", &self.name())
            .field("pid", &self.pid())
            .field("exit_status", &self.exit_status())
            .finish_non_exhaustive()
    }
}

impl Process<()> {
    /// Sets up a process.
    pub fn builder() -> ProcessBuilder {
        static STARTED: AtomicU64 = AtomicU64::new(1);
        let name = format!("process-{}", STARTED.fetch_add(1, Relaxed));
        ProcessBuilder(PoolBuilder::new().single().name(name))
    }
}

impl<R> Process<R> {
    /// Starts a process that calls `f` with `argument`.
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::build`]. What becomes of the call is [`join`](Self::join)'s to say.
    pub fn spawn<A>(f: fn(A) -> R, argument: A) -> Result<Self, Error>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        Process::builder().spawn(f, argument)
    }

    /// Its PID; that of the process that was, once it has ended.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// What it is called in `ps` and `top`.
    pub fn name(&self) -> &str {
        &self.pool.shared().config.name
    }

    /// Whether it has not ended. In a copy of this process, made by `fork`, it is nobody's child: there
    /// this is false.
    pub fn is_alive(&self) -> bool {
        self.pool.shared().forked().is_none() && self.child.death().is_none()
    }

    /// How it ended; `None` while it lives, and where another part of this program has collected its
    /// exit status.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        if self.pool.shared().forked().is_some() {
            return None;
        }
        let raw = match self.child.death()? {
            DeathCause::Exited(code) => code << 8,
            DeathCause::Signaled(signal, false) => signal,
            DeathCause::Signaled(signal, true) => signal | 0x80,
            // It is the kernel that killed it.
            DeathCause::OutOfMemory => libc::SIGKILL,
            DeathCause::ProtocolViolation | DeathCause::Unknown => return None,
        };
        Some(ExitStatus::from_raw(raw))
    }

    /// Waits for its end and gives its answer. There is one only: after it, joining gives
    /// [`TaskErrorKind::AlreadyTaken`](crate::TaskErrorKind::AlreadyTaken).
    ///
    /// # Errors
    ///
    /// What became of the call, if it has no answer.
    pub fn join(&mut self) -> Result<R, TaskError> {
        self.report().result
    }

    /// As [`join`](Self::join), for at most `limit`; `None` means that it has not ended yet. It goes
    /// on and can be joined again.
    pub fn join_timeout(&mut self, limit: Duration) -> Option<Result<R, TaskError>> {
        if self.pool.shared().forked().is_none() && !self.child.wait_death_timeout(limit) {
            return None;
        }
        // What has become of the call is settled as soon as the process has ended.
        Some(self.task.wait_report().result)
    }

    /// As [`join`](Self::join), with the times and, where that is captured, what it printed.
    pub fn report(&mut self) -> Report<R> {
        if self.pool.shared().forked().is_none() {
            self.child.wait_death();
        }
        self.task.wait_report()
    }

    /// Returns a handle that ends the process from elsewhere, as from another thread while this one joins.
    pub fn handle(&self) -> ProcessHandle {
        ProcessHandle { child: Arc::clone(&self.child), pool: Arc::clone(self.pool.shared()) }
    }

    /// Asks it to end (SIGTERM). It does at once, unless it has a handler of its own for that; what
    /// it has started is killed when it has ended.
    pub fn terminate(&self) {
        self.handle().terminate();
    }

    /// Kills it (SIGKILL), with what it has started.
    pub fn kill(&self) {
        self.handle().kill();
    }
}

/// The result of the call, when the process has ended. Under any runtime.
impl<R> Future for Process<R> {
    type Output = Result<R, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The call is settled when the process has ended.
        Pin::new(&mut self.task).poll(context)
    }
}

/// Its pidfd, which becomes readable when the process has ended: for poll(2), epoll(7) and reactors.
impl<R> AsFd for Process<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.child.child.pidfd()
    }
}

/// Ends a [`Process`] from elsewhere, from [`Process::handle`].
#[derive(Debug, Clone)]
pub struct ProcessHandle {
    child: Arc<worker::Process>,
    pool: Arc<PoolState>,
}

impl ProcessHandle {
    /// As [`Process::terminate`].
    pub fn terminate(&self) {
        if self.pool.forked().is_none() {
            self.child.child.signal(Signal::TERM);
        }
    }

    /// As [`Process::kill`].
    pub fn kill(&self) {
        if self.pool.forked().is_none() {
            self.child.child.kill();
        }
    }
}

/// Sets up a [`Process`]; made by [`Process::builder`].
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use procpool::{OutputMode, Process};
///
/// let mut process = Process::builder()
///     .name("fetch")
///     .env("LANG", "C")
///     .timeout(Duration::from_secs(10))
///     .output(OutputMode::Capture)
///     .spawn(|url: String| println!("fetching {url}"), "https://example.org".to_owned())?;
/// let report = process.report();
/// println!("{}", String::from_utf8_lossy(&report.output));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until `spawn` is called"]
pub struct ProcessBuilder(PoolBuilder);

impl ProcessBuilder {
    /// What it is called in `ps` and `top`. Not set: "process-1" and so on.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self(self.0.name(name))
    }

    /// Sets a variable in its environment.
    pub fn env(self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        Self(self.0.env(name, value))
    }

    /// Where it starts. Not set: where this process is.
    pub fn current_dir(self, dir: impl Into<PathBuf>) -> Self {
        Self(self.0.current_dir(dir))
    }

    /// Where its standard output and standard error go. Not set: to where this process's go. What is
    /// captured comes with [`Process::report`].
    pub fn output(self, output: OutputMode) -> Self {
        Self(self.0.output(output))
    }

    /// Kills it when the call runs for longer than this, which then fails with
    /// [`TaskErrorKind::TimedOut`](crate::TaskErrorKind::TimedOut).
    pub fn timeout(self, limit: Duration) -> Self {
        Self(self.0.task_timeout(limit))
    }

    /// How long it may take from its start until it reports. Not set: 30 s.
    pub fn start_timeout(self, limit: Duration) -> Self {
        Self(self.0.start_timeout(limit))
    }

    /// As [`PoolBuilder::kill_grace`].
    pub fn kill_grace(self, grace: Duration) -> Self {
        Self(self.0.kill_grace(grace))
    }

    /// As [`PoolBuilder::max_memory_per_worker`].
    pub fn max_memory(self, bytes: u64) -> Self {
        Self(self.0.max_memory_per_worker(bytes))
    }

    /// Limits what it may use.
    pub fn limits(self, limits: Limits) -> Self {
        Self(self.0.limits(limits))
    }

    /// Adds to its niceness: with 19, it runs when nobody else wants to.
    pub fn nice(self, nice: i32) -> Self {
        Self(self.0.nice(nice))
    }

    /// As [`PoolBuilder::seed`].
    pub fn seed(self, seed: u64) -> Self {
        Self(self.0.seed(seed))
    }

    /// As [`PoolBuilder::on_event`].
    pub fn on_event(self, callback: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self(self.0.on_event(callback))
    }

    /// Starts a process that calls `f` with `argument`.
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::build`]. What becomes of the call is [`Process::join`]'s to say.
    pub fn spawn<A, R>(self, f: fn(A) -> R, argument: A) -> Result<Process<R>, Error>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let pool = self.0.build_one()?;
        let child = pool.shared().process(0).ok_or(StartError::Terminated)?;
        let task = pool.apply_async(f, argument);
        // After its one task, the child ends.
        pool.close();
        pool.shared().dispatch();
        Ok(Process { task, child, pool })
    }
}
