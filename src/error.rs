//! Error types: [`Error`] for building a pool, [`TaskError`] for one task that has no result.
//!
//! Messages are lower-case fragments that name what failed and the remedy.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use procpool_worker::lane::AbortReason;
use procpool_worker::note::{LogRecord, Progress};
use serde::{Deserialize, Serialize};

use crate::worker_ref::{HostName, WorkerRef};

/// Why a pool, process or shared object could not be created. A [`TaskError`] converts into it with `?`.
///
/// An error with a cause returns it from [`source`](std::error::Error::source), and its message does not
/// repeat the cause's message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// [`init`](crate::init) was not called in this process.
    #[error(
        "procpool::init() was not called in this process: make it the first line of `main`; in a test binary, add `procpool::test_support!();` at its top level"
    )]
    NotInitialized,
    /// The program has more privileges than the user who started it. That user could control a privileged
    /// worker.
    #[error(
        "this program runs with more privileges than the user who started it (set-user-ID, set-group-ID or file capabilities), and that user could take control of a worker: drop the privileges and execute the program again, or use ambient capabilities instead"
    )]
    Privileged,
    /// This code is not linked into the running executable. A worker would be a copy of the executable.
    #[error(
        "procpool is linked into {}, but the running executable is {}, and a copy of it can't be a worker: link procpool into the executable itself, and start it directly, not through the dynamic loader",
        .library.display(), .executable.display()
    )]
    Library {
        /// The file that contains this code.
        library: PathBuf,
        /// The running executable.
        executable: PathBuf,
    },
    /// An option has an invalid value.
    #[error("the option `{option}` cannot be {value}: {remedy}")]
    Option {
        /// The builder's method that sets the option.
        option: &'static str,
        /// The invalid value.
        value: String,
        /// How to fix it.
        remedy: &'static str,
    },
    /// The limit of open files is too low for all workers.
    #[error(
        "{workers} workers need {needed} open files, including those that are open now, and the limit is {limit}: raise it (`ulimit -n {needed}`), or use fewer workers"
    )]
    OpenFiles {
        /// The number of workers of the pool.
        workers: usize,
        /// The number of open files that they need, including those that are open now.
        needed: u64,
        /// This process's limit of open files.
        limit: u64,
    },
    /// The first worker could not be started.
    #[error("failed to start the first worker")]
    Start(#[from] StartError),
    /// Shared memory, or a file descriptor for it, could not be allocated.
    #[error("failed to allocate {bytes} bytes of shared memory")]
    SharedMemory {
        /// The requested size in bytes.
        bytes: usize,
        /// The operating system's error.
        source: io::Error,
    },
    /// A system call or thread that the pool itself needs failed.
    #[error("failed to set up the pool: {what}{}", remedy(.source))]
    System {
        /// The resource that was requested.
        what: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// The hosts of the pool can't be used; see [`PoolBuilder::hosts`](crate::PoolBuilder::hosts).
    #[error("the hosts can't be used: {reason}")]
    Hosts {
        /// What failed, and the remedy.
        reason: String,
    },
    /// A host runs another build of this program. Functions are identified by their position in the
    /// program, which differs between builds.
    #[error(
        "host {host} runs another build of this program ({theirs}) than this host ({own}): copy this executable there"
    )]
    BuildMismatch {
        /// The host.
        host: HostName,
        /// The build of this process.
        own: String,
        /// The build of the process on the other host.
        theirs: String,
    },
    /// A task has no result.
    #[error(transparent)]
    Task(TaskError),
}

impl Error {
    /// Returns a function that converts the failure of a request for `what` into an [`Error::System`].
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// Lets functions that build pools and run tasks return one error type.
impl From<TaskError> for Error {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}

/// Why a worker did not become ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StartError {
    /// The operating system did not start the process.
    #[error("failed to start the process: {0}")]
    Spawn(String),
    /// The process ended before the handshake.
    #[error("it {0} before the handshake: is `procpool::init()` the first line of main?")]
    Died(DeathCause),
    /// The handshake or the initializer did not complete within this time.
    #[error(
        "it was not ready after {0:?}: is `procpool::init()` the first line of main, and `start_timeout` long enough for the initializer?"
    )]
    TimedOut(Duration),
    /// The process that sent the handshake is not a copy of this program.
    #[error("the process that sent the handshake is not a copy of this program: {0}")]
    HandshakeMismatch(String),
    /// The initializer panicked, or the worker died while running it.
    #[error("its initializer failed: {0}")]
    Initializer(String),
    /// The worker could not be confined as the pool asks.
    #[error(
        "it could not be confined: {0}; accept a weaker sandbox with best_effort(), or use another kernel"
    )]
    Sandbox(String),
    /// The preload function panicked, its process died, or it can't be forked.
    #[error("the pool's preload function failed: {0}")]
    Preload(String),
    /// The pool was terminated while the worker started.
    #[error("the pool was terminated")]
    Terminated,
}

/// How a worker process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DeathCause {
    /// It exited with this code.
    Exited(i32),
    /// It was killed by this signal. The flag is true if it dumped core.
    Signaled(i32, bool),
    /// It exceeded a memory limit, or the kernel killed it for lack of memory.
    OutOfMemory,
    /// It made a system call that its sandbox does not allow, and was killed.
    Sandboxed {
        /// The number of the system call, on this machine's architecture.
        syscall: u32,
    },
    /// It violated the worker protocol and was killed.
    ProtocolViolation,
    /// Another part of the program collected its exit status: it waits for any child, or ignores
    /// SIGCHLD.
    Unknown,
}

impl DeathCause {
    /// Returns the name of the signal that killed the worker, such as `"SIGSEGV"`. Returns `None` if no
    /// signal did, or if its name is not known.
    pub fn signal_name(&self) -> Option<&'static str> {
        match *self {
            Self::Signaled(signal, _) => crate::os::signals::signal_name(signal),
            _ => None,
        }
    }

    /// Returns the name of the system call for which a sandbox has killed the worker, such as `"ptrace"`. Returns
    /// `None` if none has, if its name is not known, or without the feature `sandbox`.
    pub fn syscall_name(&self) -> Option<&'static str> {
        match *self {
            #[cfg(feature = "sandbox")]
            Self::Sandboxed { syscall } => {
                syscalls::Sysno::new(syscall as usize).map(|call| call.name())
            }
            _ => None,
        }
    }

    /// Returns this cause, or the one behind it that the worker has recorded.
    pub(crate) fn explained(self, note: Option<AbortReason>) -> Self {
        match (self, note) {
            (Self::Signaled(libc::SIGABRT, _), Some(AbortReason::OutOfMemory)) => Self::OutOfMemory,
            (Self::Signaled(libc::SIGSYS, _), Some(AbortReason::Refused(syscall))) => {
                Self::Sandboxed { syscall }
            }
            (cause, _) => cause,
        }
    }
}

impl fmt::Display for DeathCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Signaled(signal, dumped) => {
                match crate::os::signals::signal_name(signal) {
                    Some(name) => write!(f, "was killed by {name}")?,
                    None => write!(f, "was killed by signal {signal}")?,
                }
                f.write_str(if dumped { " (core dumped)" } else { "" })
            }
            Self::OutOfMemory => f.write_str("ran out of memory"),
            Self::Sandboxed { syscall } => {
                f.write_str("was killed because its sandbox does not allow the system call ")?;
                match self.syscall_name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{syscall}"),
                }
            }
            Self::ProtocolViolation => {
                f.write_str("violated the worker protocol and was killed")
            },
            Self::Unknown => {
                f.write_str("ended in an unknown way, because another part of this program collected its exit status")
            }
        }
    }
}

/// Whether a failed task has run: what to check before running it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DidRun {
    /// It was never started.
    No,
    /// It was started, and any part of its effects may have happened.
    Maybe,
    /// It ran until it returned or panicked.
    Yes,
}

/// Why a task has no result.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskError {
    inner: Box<Inner>,
}

#[derive(Debug, Clone, PartialEq)]
struct Inner {
    kind: TaskErrorKind,
    id: u64,
    worker: Option<WorkerRef>,
    attempt: u32,
    did_it_run: DidRun,
    progress: Option<Progress>,
}

impl TaskError {
    pub(crate) fn new(
        kind: TaskErrorKind,
        id: u64,
        worker: Option<WorkerRef>,
        attempt: u32,
        did_it_run: DidRun,
    ) -> Self {
        Self { inner: Box::new(Inner { kind, id, worker, attempt, did_it_run, progress: None }) }
    }

    pub(crate) fn with_progress(mut self, progress: Option<Progress>) -> Self {
        self.inner.progress = progress;
        self
    }

    /// Returns what happened.
    pub fn kind(&self) -> &TaskErrorKind {
        &self.inner.kind
    }

    /// Returns the task's position in the input, from 0. For single calls, returns the number of the call in
    /// the pool.
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// Returns the worker that the task was sent to, if any.
    pub fn worker(&self) -> Option<WorkerRef> {
        self.inner.worker
    }

    /// Returns the PID of that worker.
    pub fn pid(&self) -> Option<u32> {
        self.worker().map(|worker| worker.pid)
    }

    /// Returns the number of the attempt that failed, from 1; 0 if there was none.
    pub fn attempt(&self) -> u32 {
        self.inner.attempt
    }

    /// Returns whether the task has run.
    pub fn did_it_run(&self) -> DidRun {
        self.inner.did_it_run
    }

    /// Returns how far the task was when its worker died or was stopped, if it has said so with
    /// [`progress`](crate::progress()).
    pub fn progress(&self) -> Option<Progress> {
        self.inner.progress
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}", self.id())?;
        if let Some(worker) = self.worker() {
            write!(f, " ({worker}")?;
            if self.attempt() > 1 {
                write!(f, ", attempt {}", self.attempt())?;
            }
            if let Some(progress) = self.progress() {
                write!(f, ", at {progress}")?;
            }
            f.write_str(")")?;
        }
        write!(f, ": {}", self.kind())
    }
}

impl std::error::Error for TaskError {}

/// The reasons why a task has no result.
#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TaskErrorKind {
    /// It panicked. The worker continues.
    #[error("panicked{}: {message}", at(.location))]
    Panicked {
        /// The panic's message.
        message: String,
        /// The location as `file:line:column`, if known.
        location: Option<String>,
        /// The backtrace; empty unless the worker's environment has `RUST_BACKTRACE=1`.
        backtrace: String,
    },
    /// Its worker died while running it. A new worker replaces the dead one.
    #[error("its worker {cause} while running it{}", output(.last_output, .last_records))]
    Died {
        /// How the worker ended.
        cause: DeathCause,
        /// The last lines that it wrote to standard error, if output is captured.
        last_output: Option<String>,
        /// The last log records that it made, if records of workers are sent; see
        /// [`PoolBuilder::worker_logs`](crate::PoolBuilder::worker_logs).
        last_records: Vec<LogRecord>,
    },
    /// It exceeded its time limit, and its worker was killed.
    #[error("was stopped after its time limit of {after:?}")]
    TimedOut {
        /// The time limit.
        after: Duration,
    },
    /// Its result was returned by an earlier call. A result can be taken once.
    #[error("its result was already taken")]
    AlreadyTaken,
    /// It was cancelled.
    #[error("was cancelled")]
    Cancelled,
    /// The pool was closed before the task was submitted, or terminated before it finished.
    #[error("the pool is closed")]
    Closed,
    /// The pool is a copy that `fork` made in a child process. Its workers and threads belong to the
    /// process that forked.
    #[error("this pool belongs to process PID {owner}, which forked: build a pool after the fork")]
    Forked {
        /// The PID of the process that built the pool.
        owner: u32,
    },
    /// A value could not be encoded.
    #[error("its {} could not be encoded: {reason}", value(.side))]
    Encode {
        /// Which of the two values.
        side: ValueSide,
        /// The encoding's error; names the type.
        reason: String,
    },
    /// A value could not be decoded.
    #[error("its {} could not be decoded: {reason}", value(.side))]
    Decode {
        /// Which of the two values.
        side: ValueSide,
        /// The encoding's error; names the type.
        reason: String,
    },
    /// The host of its worker was lost: the host crashed, was switched off, or could not be reached.
    #[error("its host {host} was lost: {reason}")]
    HostLost {
        /// The host.
        host: HostName,
        /// How the loss was noticed.
        reason: String,
    },
    /// The function can't be called in a worker.
    #[error("{reason}")]
    Function {
        /// The reason.
        reason: String,
    },
    /// No worker became ready to run it.
    #[error("no worker became ready in {attempts} attempts; the last one: {cause}")]
    Initializer {
        /// Why the last attempt failed.
        cause: StartError,
        /// The number of attempts.
        attempts: u32,
    },
}

/// Which value of a task could not be encoded or decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueSide {
    /// An argument: encoded in the parent, decoded in the worker.
    Argument,
    /// A result: encoded in the worker, decoded in the parent.
    Result,
}

/// Returns the remedy for a system call that was refused, or an empty text.
pub(crate) fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
            ": if a seccomp profile or a security module refuses it, allow it there"
        }
        _ => "",
    }
}

fn value(side: &ValueSide) -> &'static str {
    match side {
        ValueSide::Argument => "argument",
        ValueSide::Result => "result",
    }
}

fn at(location: &Option<String>) -> String {
    location.as_ref().map_or_else(String::new, |location| format!(" at {location}"))
}

fn output(last: &Option<String>, records: &[LogRecord]) -> String {
    match (last, records.last()) {
        (Some(last), _) => format!("; its last output: {}", last.trim_end()),
        (None, Some(record)) => format!("; its last log record: {record}"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use procpool_worker::error::CodecError;
    use procpool_worker::error::TransportError;
    use procpool_worker::function::ForeignFunction;

    use super::*;
    use crate::channel::{RecvError, SendError, SendErrorReason};
    use crate::sync::BarrierError;

    fn text() -> String {
        "the cause".to_owned()
    }

    fn starts() -> Vec<StartError> {
        let causes = [
            DeathCause::Exited(3),
            DeathCause::Signaled(9, false),
            DeathCause::OutOfMemory,
            DeathCause::ProtocolViolation,
            DeathCause::Unknown,
        ];
        let mut starts: Vec<_> = causes.into_iter().map(StartError::Died).collect();
        starts.extend([
            StartError::Spawn(text()),
            StartError::TimedOut(Duration::from_secs(1)),
            StartError::HandshakeMismatch(text()),
            StartError::Initializer(text()),
            StartError::Preload(text()),
            StartError::Terminated,
        ]);
        starts
    }

    fn tasks() -> Vec<TaskErrorKind> {
        let died = |cause| TaskErrorKind::Died {
            cause,
            last_output: Some(text()),
            last_records: Vec::new(),
        };
        let initializer = |cause| TaskErrorKind::Initializer { cause, attempts: 8 };
        let mut kinds: Vec<_> = starts().into_iter().map(initializer).collect();
        kinds.extend([
            TaskErrorKind::Panicked { message: text(), location: None, backtrace: text() },
            died(DeathCause::Signaled(11, true)),
            TaskErrorKind::TimedOut { after: Duration::from_secs(1) },
            TaskErrorKind::AlreadyTaken,
            TaskErrorKind::Cancelled,
            TaskErrorKind::Closed,
            TaskErrorKind::HostLost { host: HostName::new("n2"), reason: text() },
            TaskErrorKind::Encode { side: ValueSide::Argument, reason: text() },
            TaskErrorKind::Decode { side: ValueSide::Result, reason: text() },
            TaskErrorKind::Function { reason: ForeignFunction.to_string() },
        ]);
        kinds
    }

    #[test]
    fn each_error_names_its_cause_once() {
        let io = || io::Error::other(text());
        let mut errors: Vec<Box<dyn std::error::Error>> = vec![
            Box::new(Error::NotInitialized),
            Box::new(Error::Option { option: "nice", value: text(), remedy: "none" }),
            Box::new(Error::OpenFiles { workers: 1, needed: 2, limit: 3 }),
            Box::new(Error::Privileged),
            Box::new(Error::SharedMemory { bytes: 1, source: io() }),
            Box::new(Error::System { what: "a pipe", source: io() }),
            Box::new(TransportError::PeerGone),
            Box::new(TransportError::Malformed(text())),
            Box::new(TransportError::Io(io())),
            Box::new(CodecError { type_name: "T", reason: text() }),
            Box::new(BarrierError::TimedOut),
            Box::new(BarrierError::Broken),
        ];
        for start in starts() {
            errors.push(Box::new(Error::Start(start)));
        }
        for kind in tasks() {
            errors.push(Box::new(TaskError::new(
                kind.clone(),
                1,
                Some(WorkerRef::local(0, 2)),
                2,
                DidRun::Maybe,
            )));
            errors.push(Box::new(kind));
        }
        for reason in [
            SendErrorReason::Disconnected,
            SendErrorReason::Full,
            SendErrorReason::TimedOut,
            SendErrorReason::Encode(text()),
            SendErrorReason::System(text()),
            SendErrorReason::Corrupt,
        ] {
            errors.push(Box::new(SendError { value: 1, reason: reason.clone() }));
            errors.push(Box::new(reason));
        }
        for error in [RecvError::Decode(text()), RecvError::System(text()), RecvError::Corrupt] {
            errors.push(Box::new(error));
        }
        for error in &errors {
            let mut error: &dyn std::error::Error = &**error;
            while let Some(source) = error.source() {
                let (outer, inner) = (error.to_string(), source.to_string());
                assert!(!outer.contains(&inner), "\"{inner}\" is repeated in \"{outer}\"");
                error = source;
            }
        }
        // The cause is not lost either.
        let system = Error::System { what: "a pipe", source: io() };
        assert!(system.source().is_some_and(|source| source.to_string() == text()));
        let start = Error::Start(StartError::Spawn(text()));
        assert!(start.source().is_some_and(|source| source.to_string().contains(&text())));
    }
}
