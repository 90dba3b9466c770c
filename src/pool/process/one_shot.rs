//! One call in its own child process. [`Process`] is a pool of one worker without replacement, so it has the
//! same supervision as a pool's workers. It has no thread of its own: the caller's thread sends the call, and
//! the [shared supervisor](super::shared_supervisor) reaps the process.

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
#[cfg(feature = "sandbox")]
use crate::pool::sandbox::Sandbox;
use crate::pool::schedule::state::PoolState;
use crate::pool::types::Report;

/// One call in its own child process, like `multiprocessing.Process`.
///
/// The child calls the function and exits: with code 0 if it returned, with code 1 if it panicked or a value
/// could not be sent. [`join`](Self::join) reports a crash or an early exit. The child can have [pools](Pool)
/// and processes of its own. When it ends, for any reason, the processes that it started are killed. Dropping
/// a `Process` kills the child.
///
/// Starting a process takes a millisecond or more. For many calls, use a [`Pool`], which starts its workers
/// once.
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
    /// Kills the child on drop.
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
    /// Creates a builder with default options.
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
    /// As [`PoolBuilder::build`]. Failures of the call are returned by [`join`](Self::join).
    pub fn spawn<A>(f: fn(A) -> R, argument: A) -> Result<Self, Error>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        Process::builder().spawn(f, argument)
    }

    /// Returns the child's PID, also after it has ended.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Returns the child's name in `ps` and `top`.
    pub fn name(&self) -> &str {
        &self.pool.shared().config.name
    }

    /// Returns whether the child is running. Returns false in a copy of this process made by `fork`, which is
    /// not the child's parent.
    pub fn is_alive(&self) -> bool {
        self.pool.shared().forked().is_none() && self.child.death().is_none()
    }

    /// Returns the exit status. `None` while the child is running, or if other code in this program has
    /// reaped it.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        if self.pool.shared().forked().is_some() {
            return None;
        }
        let raw = match self.child.death()? {
            DeathCause::Exited(code) => code << 8,
            DeathCause::Signaled(signal, false) => signal,
            DeathCause::Signaled(signal, true) => signal | 0x80,
            // The kernel's OOM killer uses SIGKILL.
            DeathCause::OutOfMemory => libc::SIGKILL,
            DeathCause::Sandboxed { .. } => libc::SIGSYS,
            DeathCause::ProtocolViolation | DeathCause::Unknown => return None,
        };
        Some(ExitStatus::from_raw(raw))
    }

    /// Blocks until the child has ended and returns the call's result. A second call returns
    /// [`TaskErrorKind::AlreadyTaken`](crate::TaskErrorKind::AlreadyTaken).
    ///
    /// # Errors
    ///
    /// The call's failure: a panic, a crash, a timeout, or a value that can't be encoded or decoded.
    pub fn join(&mut self) -> Result<R, TaskError> {
        self.report().result
    }

    /// Like [`join`](Self::join), but blocks at most for `limit`. Returns `None` on timeout: the child
    /// continues, and can be joined again.
    pub fn join_timeout(&mut self, limit: Duration) -> Option<Result<R, TaskError>> {
        if self.pool.shared().forked().is_none() && !self.child.wait_death_timeout(limit) {
            return None;
        }
        // The call is settled once the process has ended.
        Some(self.task.wait_report().result)
    }

    /// Like [`join`](Self::join), but returns a [`Report`] with timing and captured output.
    pub fn report(&mut self) -> Report<R> {
        if self.pool.shared().forked().is_none() {
            self.child.wait_death();
        }
        self.task.wait_report()
    }

    /// Returns a handle that kills the child from another thread, for example while this one joins.
    pub fn handle(&self) -> ProcessHandle {
        ProcessHandle { child: Arc::clone(&self.child), pool: Arc::clone(self.pool.shared()) }
    }

    /// Sends SIGTERM. The child exits, unless it handles the signal. Its own child processes are killed once
    /// it has ended.
    pub fn terminate(&self) {
        self.handle().terminate();
    }

    /// Sends SIGKILL to the child and its own child processes.
    pub fn kill(&self) {
        self.handle().kill();
    }
}

/// Resolves to the call's result when the process has ended. Independent of the runtime.
impl<R> Future for Process<R> {
    type Output = Result<R, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The call is settled once the process has ended.
        Pin::new(&mut self.task).poll(context)
    }
}

/// Returns the child's pidfd, which becomes readable when the child ends: for poll(2), epoll(7) and reactors.
impl<R> AsFd for Process<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.child.child.pidfd()
    }
}

/// Terminates or kills a [`Process`], also from another thread; from [`Process::handle`].
#[derive(Debug, Clone)]
pub struct ProcessHandle {
    child: Arc<worker::Process>,
    pool: Arc<PoolState>,
}

impl ProcessHandle {
    /// Sends SIGTERM, like [`Process::terminate`].
    pub fn terminate(&self) {
        if self.pool.forked().is_none() {
            self.child.child.signal(Signal::TERM);
        }
    }

    /// Sends SIGKILL, like [`Process::kill`].
    pub fn kill(&self) {
        if self.pool.forked().is_none() {
            self.child.child.kill();
        }
    }
}

/// Builder of a [`Process`], from [`Process::builder`].
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
    /// Sets the child's name in `ps` and `top`. Default: "process-1", "process-2" and so on.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self(self.0.name(name))
    }

    /// Sets an environment variable in the child.
    pub fn env(self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        Self(self.0.env(name, value))
    }

    /// Sets the child's working directory. Default: this process's.
    pub fn current_dir(self, dir: impl Into<PathBuf>) -> Self {
        Self(self.0.current_dir(dir))
    }

    /// Sets where the child's stdout and stderr go. Default: inherited from this process. [`Process::report`]
    /// returns captured output.
    pub fn output(self, output: OutputMode) -> Self {
        Self(self.0.output(output))
    }

    /// Kills the child if the call runs longer than `limit`. The call fails with
    /// [`TaskErrorKind::TimedOut`](crate::TaskErrorKind::TimedOut).
    pub fn timeout(self, limit: Duration) -> Self {
        Self(self.0.task_timeout(limit))
    }

    /// Limits the time from the child's start until it is ready. Default: 30 s.
    pub fn start_timeout(self, limit: Duration) -> Self {
        Self(self.0.start_timeout(limit))
    }

    /// Sets the time between SIGTERM and SIGKILL, like [`PoolBuilder::kill_grace`].
    pub fn kill_grace(self, grace: Duration) -> Self {
        Self(self.0.kill_grace(grace))
    }

    /// Limits the child's resident memory, like [`PoolBuilder::max_memory_per_worker`].
    pub fn max_memory(self, bytes: u64) -> Self {
        Self(self.0.max_memory_per_worker(bytes))
    }

    /// Sets resource limits.
    pub fn limits(self, limits: Limits) -> Self {
        Self(self.0.limits(limits))
    }

    /// Confines the child, before its call.
    #[cfg(feature = "sandbox")]
    pub fn sandbox(self, sandbox: Sandbox) -> Self {
        Self(self.0.sandbox(sandbox))
    }

    /// Adds to the child's niceness, -20 to 19. At 19 it only uses CPU time that no other process wants.
    pub fn nice(self, nice: i32) -> Self {
        Self(self.0.nice(nice))
    }

    /// Seeds random numbers, like [`PoolBuilder::seed`].
    pub fn seed(self, seed: u64) -> Self {
        Self(self.0.seed(seed))
    }

    /// Calls `callback` with every event, like [`PoolBuilder::on_event`].
    pub fn on_event(self, callback: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self(self.0.on_event(callback))
    }

    /// Starts a process that calls `f` with `argument`.
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::build`]. Failures of the call are returned by [`Process::join`].
    pub fn spawn<A, R>(self, f: fn(A) -> R, argument: A) -> Result<Process<R>, Error>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let pool = self.0.build_one()?;
        let child = pool.shared().process(0).ok_or(StartError::Terminated)?;
        let task = pool.apply_async(f, argument);
        // The child exits after its only task.
        pool.close();
        pool.shared().dispatch();
        Ok(Process { task, child, pool })
    }
}
