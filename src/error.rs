//! What can go wrong: [`Error`] for making and using a pool, [`TaskError`] for what becomes of one
//! task.
//!
//! Messages are fragments that read after "failed to …", and name the remedy where there is one.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::worker_ref::WorkerRef;

/// Why a pool could not be made or, by `?` in a function that returns this, why a task has no result. What another error has caused names that as its
/// [`source`](std::error::Error::source), and does not repeat it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// [`init`](crate::init) has not run in this process.
    #[error(
        "procpool::init() was not called in this process: make it the first line of `main`; in a test binary, add `procpool::test_support!();` at its top level"
    )]
    NotInitialized,
    /// The program has more privileges than the user who started it, and that user could drive a
    /// worker that has them.
    #[error(
        "this program runs with more privileges than the user who started it (set-user-ID, set-group-ID or file capabilities), and that user could take control of a worker: drop the privileges and execute the program anew, or have ambient capabilities in their place"
    )]
    Privileged,
    /// This code is not in the executable that runs, of which a worker would be a copy.
    #[error(
        "procpool is linked into {}, and the executable that runs is {}, a copy of which can't be a worker: link procpool into the executable itself, and start it by its own name, not by way of the dynamic loader",
        .library.display(), .executable.display()
    )]
    Library {
        /// The file that this code comes from.
        library: PathBuf,
        /// The executable.
        executable: PathBuf,
    },
    /// An option has a value that can't be used.
    #[error("the option `{option}` cannot be {value}: {remedy}")]
    Option {
        /// The builder's method.
        option: &'static str,
        /// What it was set to.
        value: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// There are not enough file descriptors for all workers.
    #[error(
        "{workers} workers need {needed} open files, those that are open now included, and the limit is {limit}: raise it (`ulimit -n {needed}`), or have fewer workers"
    )]
    OpenFiles {
        /// How many workers were asked for.
        workers: usize,
        /// How many open files that takes.
        needed: u64,
        /// How many this process may have.
        limit: u64,
    },
    /// No worker could be started.
    #[error("the first worker could not be started")]
    Start(#[from] StartError),
    /// Memory to be shared between processes could not be had.
    #[error("{bytes} bytes of shared memory could not be had")]
    SharedMemory {
        /// How much was asked for.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something that the pool itself needs.
    #[error("the pool could not be set up: {what}{}", remedy(.source))]
    System {
        /// What was asked for.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A task has no result.
    #[error(transparent)]
    Task(TaskError),
}

impl Error {
    /// Returns what makes an error of what the system said, when it was asked for `what`.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// For programs whose functions return one kind of error.
impl From<TaskError> for Error {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}

/// Why one worker could not be made ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The system would not start a process.
    #[error("the process could not be started: {0}")]
    Spawn(String),
    /// The process ended before it had reported.
    #[error("it {0} before the handshake: is `procpool::init()` the first line of main?")]
    Died(DeathCause),
    /// The process had not reported, or its initializer not returned, in time.
    #[error(
        "it was not ready after {0:?}: is `procpool::init()` the first line of main, and `start_timeout` long enough for the initializer?"
    )]
    TimedOut(Duration),
    /// What reported is not a copy of this program.
    #[error("what reported is not a copy of this program: {0}")]
    HandshakeMismatch(String),
    /// The initializer panicked, or the worker died in it.
    #[error("its initializer failed: {0}")]
    Initializer(String),
    /// The pool was terminated meanwhile.
    #[error("the pool was terminated")]
    Terminated,
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeathCause {
    /// It exited with this code.
    Exited(i32),
    /// It was killed by this signal; the flag says whether it dumped core.
    Signaled(i32, bool),
    /// It needed more memory than it was allowed.
    OutOfMemory,
    /// What it sent could not be understood, so it was killed.
    ProtocolViolation,
    /// Somebody else collected its exit status: the host program waits for any child, or ignores
    /// SIGCHLD.
    Unknown,
}

impl DeathCause {
    /// Returns the name of the signal that killed the worker, if it was one that ends processes.
    pub fn signal_name(&self) -> Option<&'static str> {
        match *self {
            Self::Signaled(signal, _) => crate::os::signals::signal_name(signal),
            _ => None,
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
            Self::ProtocolViolation => f.write_str("sent what cannot be understood and was killed"),
            Self::Unknown => {
                f.write_str("ended in a way that is not known, since another part of this program collected its exit status")
            }
        }
    }
}

/// Whether a failed task has run, the first thing to know before running it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DidRun {
    /// It was never started.
    No,
    /// It was started and may have had any part of its effects.
    Maybe,
    /// It ran to its end, or to its panic.
    Yes,
}

/// What became of a task that has no answer.
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
}

impl TaskError {
    pub(crate) fn new(
        kind: TaskErrorKind,
        id: u64,
        worker: Option<WorkerRef>,
        attempt: u32,
        did_it_run: DidRun,
    ) -> Self {
        Self { inner: Box::new(Inner { kind, id, worker, attempt, did_it_run }) }
    }

    /// What happened.
    pub fn kind(&self) -> &TaskErrorKind {
        &self.inner.kind
    }

    /// The task's position in the input; for single calls, its number among the pool's.
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// The worker that it was given to, if it was.
    pub fn worker(&self) -> Option<WorkerRef> {
        self.inner.worker
    }

    /// Returns that worker's PID.
    pub fn pid(&self) -> Option<u32> {
        self.worker().map(|worker| worker.pid)
    }

    /// Which attempt this was, from 1.
    pub fn attempt(&self) -> u32 {
        self.inner.attempt
    }

    /// Whether the task has run.
    pub fn did_it_run(&self) -> DidRun {
        self.inner.did_it_run
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
            f.write_str(")")?;
        }
        write!(f, ": {}", self.kind())
    }
}

impl std::error::Error for TaskError {}

/// The ways in which a task can end without an answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskErrorKind {
    /// It panicked. The worker goes on.
    #[error("panicked{}: {message}", at(.location))]
    Panicked {
        /// The panic's message.
        message: String,
        /// `file:line:column`, where it is known.
        location: Option<String>,
        /// The stack, where `RUST_BACKTRACE=1` was in the worker's environment; else empty.
        backtrace: String,
    },
    /// Its worker died while it ran. Another takes the worker's place.
    #[error("its worker {cause} while running it{}", output(.last_output))]
    Died {
        /// How the worker ended.
        cause: DeathCause,
        /// The last lines that it wrote to standard error, where that is captured.
        last_output: Option<String>,
    },
    /// It ran for longer than its time limit, and its worker was killed.
    #[error("was stopped after its time limit of {after:?}")]
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// Its result has been taken before, and there is one only.
    #[error("has given its result before")]
    AlreadyTaken,
    /// It was cancelled.
    #[error("was cancelled")]
    Cancelled,
    /// The pool was closed before the task was submitted, or terminated before it was done.
    #[error("the pool is closed")]
    Closed,
    /// The pool is a copy that `fork` has made in a child process: its workers and threads are those of
    /// the process that forked.
    #[error("this pool belongs to process PID {owner}, which forked: build a pool after the fork")]
    Forked {
        /// The PID of the process that has built the pool.
        owner: u32,
    },
    /// A value could not be encoded.
    #[error("its {} could not be encoded: {reason}", value(.side))]
    Encode {
        /// Which value.
        side: ValueSide,
        /// Names the type.
        reason: String,
    },
    /// A value could not be decoded.
    #[error("its {} could not be decoded: {reason}", value(.side))]
    Decode {
        /// Which value.
        side: ValueSide,
        /// Names the type.
        reason: String,
    },
    /// The function can't be called in a worker.
    #[error("{reason}")]
    Function {
        /// Why.
        reason: String,
    },
    /// No worker could be made ready to run it.
    #[error("no worker could be made ready in {attempts} attempts; the last one: {cause}")]
    Initializer {
        /// What became of the last attempt.
        cause: StartError,
        /// How many attempts there were.
        attempts: u32,
    },
}

/// Where a value was encoded or decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueSide {
    /// An argument: encoded in the parent, decoded in the worker.
    Argument,
    /// A result: encoded in the worker, decoded in the parent.
    Result,
}

/// What to do about a system call that was refused.
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

fn output(last: &Option<String>) -> String {
    last.as_ref().map_or_else(String::new, |last| format!("; its last output: {}", last.trim_end()))
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
        "what is underneath".to_owned()
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
            StartError::Terminated,
        ]);
        starts
    }

    fn tasks() -> Vec<TaskErrorKind> {
        let died = |cause| TaskErrorKind::Died { cause, last_output: Some(text()) };
        let initializer = |cause| TaskErrorKind::Initializer { cause, attempts: 8 };
        let mut kinds: Vec<_> = starts().into_iter().map(initializer).collect();
        kinds.extend([
            TaskErrorKind::Panicked { message: text(), location: None, backtrace: text() },
            died(DeathCause::Signaled(11, true)),
            TaskErrorKind::TimedOut { after: Duration::from_secs(1) },
            TaskErrorKind::AlreadyTaken,
            TaskErrorKind::Cancelled,
            TaskErrorKind::Closed,
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
                Some(WorkerRef { slot: 0, pid: 2 }),
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
                assert!(!outer.contains(&inner), "\"{inner}\" is said twice: \"{outer}\"");
                error = source;
            }
        }
        // And it is not lost either.
        let system = Error::System { what: "a pipe", source: io() };
        assert!(system.source().is_some_and(|source| source.to_string() == text()));
        let start = Error::Start(StartError::Spawn(text()));
        assert!(start.source().is_some_and(|source| source.to_string().contains(&text())));
    }
}
