//! A job as it is sent to a worker, and its result.

use std::fmt;
use std::time::Duration;

use procpool::shared::SharedFd;
use serde::{Deserialize, Serialize};

use crate::tasks::{Bytes, Column, Input, Output, Value};

/// One job of a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CommandJob {
    /// The value of `{}`.
    pub(crate) input: Input,
    /// The value of `{#}`.
    pub(crate) number: u64,
    /// The position of its result in the run.
    pub(crate) id: u64,
    /// The time limit.
    pub(crate) limit: Option<Duration>,
    /// What it reads on standard input, if it is not empty.
    pub(crate) stdin: Option<SharedFd>,
}

/// The result of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Completed {
    /// How it ended.
    pub(crate) status: Status,
    /// When its last attempt started: nanoseconds on the monotonic clock.
    pub(crate) began: u64,
    /// The duration of that attempt.
    pub(crate) elapsed: Duration,
    /// CPU time of its processes.
    pub(crate) cpu: Duration,
    /// Peak resident memory in bytes of its largest process.
    pub(crate) memory: u64,
    /// The number of attempts.
    pub(crate) attempts: u32,
    /// The attempts before the last one.
    pub(crate) earlier: Vec<FailedAttempt>,
    /// Captured standard output.
    pub(crate) stdout: Printed,
    /// Captured standard error.
    pub(crate) stderr: Printed,
}

/// An attempt that was retried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FailedAttempt {
    /// When it started: nanoseconds on the monotonic clock.
    pub(crate) began: u64,
    /// Its duration.
    pub(crate) elapsed: Duration,
    /// Why it failed.
    pub(crate) error: String,
}

/// Captured output of a job on one stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Printed {
    /// In memory.
    Here(Bytes),
    /// In a file.
    InFile(Range),
}

impl Default for Printed {
    fn default() -> Self {
        Self::Here(Bytes::default())
    }
}

/// A part of a file that a worker has passed to the parent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Range {
    /// The key of the worker.
    pub(crate) key: u64,
    /// The index of its file.
    pub(crate) which: usize,
    /// The offset.
    pub(crate) start: u64,
    /// The length.
    pub(crate) length: u64,
}

impl Completed {
    /// The columns of a table, beside the input.
    pub(crate) const COLUMNS: &[Column] = &[
        Column::number("exit", 4),
        Column::number("signal", 6),
        Column::fixed("cpu", 9, 3),
        Column::number("memory", 11),
    ];

    /// Returns the values of those columns; CPU time in seconds, memory in bytes.
    pub(crate) fn values(&self) -> Output {
        let number = |number: Option<i32>| number.map_or(Value::Missing, |it| i64::from(it).into());
        vec![
            number(self.status.exit()),
            number(self.status.signal()),
            self.cpu.as_secs_f64().into(),
            self.memory.into(),
        ]
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Status {
    /// Exited with this code.
    Exited(i32),
    /// Killed by this signal. The flag tells whether it dumped core.
    Signaled(i32, bool),
    /// Exceeded this time limit.
    TimedOut(Duration),
    /// Exceeded this memory limit, in bytes, with all its processes.
    OutOfMemory(u64),
    /// Could not be started: the shell's exit code for that, and the reason.
    NotStarted(i32, String),
    /// Was held until the run ended, and never started.
    Held,
    /// Asked for the terminal, which jobs do not have.
    NeedsTerminal,
    /// Was interrupted by Ctrl-C on the terminal, which it had.
    Interrupted,
    /// The reader of its output is gone.
    OutputClosed,
    /// Writing its lines to standard output failed, with this error.
    OutputFailed(String),
    /// Its output could not be stored: the reason and the remedy.
    SpillFailed(String),
}

impl Status {
    /// Whether the job succeeded.
    pub(crate) fn is_success(&self) -> bool {
        *self == Self::Exited(0)
    }

    /// Whether a retry may succeed.
    pub(crate) fn may_be_retried(&self) -> bool {
        let is_final = matches!(
            self,
            Self::Held
                | Self::NeedsTerminal
                | Self::Interrupted
                | Self::OutputClosed
                | Self::OutputFailed(_)
        );
        !self.is_success() && !is_final
    }

    /// Returns the exit code, as a shell has it; none after a signal or a limit.
    pub(crate) fn exit(&self) -> Option<i32> {
        match self {
            Self::Exited(code) | Self::NotStarted(code, _) => Some(*code),
            _ => None,
        }
    }

    /// Returns the signal that killed it, unless it was sent by this program.
    pub(crate) fn signal(&self) -> Option<i32> {
        if let Self::Signaled(signal, _) = self { Some(*signal) } else { None }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => procpool::DeathCause::Exited(*code).fmt(f),
            Self::Signaled(signal, dumped) => {
                procpool::DeathCause::Signaled(*signal, *dumped).fmt(f)
            }
            Self::TimedOut(after) => {
                write!(f, "exceeded its time limit of {after:?} and was killed")
            }
            Self::OutOfMemory(bytes) => {
                write!(f, "exceeded its memory limit of {} MiB and was killed", bytes >> 20)
            }
            Self::NotStarted(_, reason) => f.write_str(reason),
            Self::Held => f.write_str("was not started, since the run ended"),
            Self::NeedsTerminal => f.write_str(
                "was killed because it asked for the terminal: jobs run in the background, with \
                 empty standard input; use the command's option for unattended use, such as \
                 ssh -o BatchMode=yes or sudo -n, or run with --tty",
            ),
            Self::Interrupted => f.write_str("was interrupted"),
            Self::OutputClosed => {
                f.write_str("was killed because the reader of its output is gone")
            }
            Self::OutputFailed(error) => {
                write!(f, "was killed because writing its output failed: {error}")
            }
            Self::SpillFailed(why) => f.write_str(why),
        }
    }
}
