//! One job as it goes to a worker, and its result as it comes back.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::tasks::{Bytes, Column, Input, Output, Value};

/// One input, with what is particular about it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CommandJob {
    /// What `{}` stands for.
    pub(crate) input: Input,
    /// What `{#}` stands for.
    pub(crate) number: u64,
    /// The position of its result among all of them.
    pub(crate) id: u64,
    /// The longest that it may take.
    pub(crate) limit: Option<Duration>,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Completed {
    /// In which way.
    pub(crate) status: Status,
    /// When its last attempt began, on the monotonic clock in nanoseconds.
    pub(crate) began: u64,
    /// How long that took.
    pub(crate) elapsed: Duration,
    /// CPU time of its processes.
    pub(crate) cpu: Duration,
    /// The most resident memory in bytes that one of its processes had.
    pub(crate) memory: u64,
    /// How many attempts there were.
    pub(crate) attempts: u32,
    /// Those before the last one.
    pub(crate) earlier: Vec<FailedAttempt>,
    /// What it printed to standard output, where that is grouped.
    pub(crate) stdout: Printed,
    /// What it printed to standard error, where that is grouped.
    pub(crate) stderr: Printed,
}

/// An attempt that was followed by another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FailedAttempt {
    /// When it began, on the monotonic clock in nanoseconds.
    pub(crate) began: u64,
    /// How long it took.
    pub(crate) elapsed: Duration,
    /// Why it was not the last.
    pub(crate) error: String,
}

/// What a job printed to one of its outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Printed {
    /// This.
    Here(Bytes),
    /// What stands there.
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
    /// What the worker is known by.
    pub(crate) key: u64,
    /// Which of its two files it is.
    pub(crate) which: usize,
    /// Where it begins.
    pub(crate) start: u64,
    /// How long it is.
    pub(crate) length: u64,
}

impl Completed {
    /// What is shown of it in a table, beside its input.
    pub(crate) const COLUMNS: &[Column] = &[
        Column::number("exit", 4),
        Column::number("signal", 6),
        Column::fixed("cpu", 9, 3),
        Column::number("memory", 11),
    ];

    /// The values of those columns; CPU time in seconds, memory in bytes.
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

/// In which way a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Status {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it; the flag says whether it dumped core.
    Signaled(i32, bool),
    /// It took longer than this, and was ended.
    TimedOut(Duration),
    /// Its processes had more resident memory than this many bytes, and were ended.
    OutOfMemory(u64),
    /// The program could not be started: the code that a shell gives for it, and why.
    NotStarted(i32, String),
    /// It wanted the terminal, which jobs don't have, and was ended.
    NeedsTerminal,
    /// Whoever read what it prints is gone.
    OutputClosed,
    /// Its lines can't be written to standard output, for this reason.
    OutputFailed(String),
    /// What it prints can't be kept until it has ended: why, and the remedy.
    SpillFailed(String),
}

impl Status {
    /// Whether the job succeeded.
    pub(crate) fn is_success(&self) -> bool {
        *self == Self::Exited(0)
    }

    /// Whether another attempt may end better.
    pub(crate) fn may_be_retried(&self) -> bool {
        let is_final =
            matches!(self, Self::NeedsTerminal | Self::OutputClosed | Self::OutputFailed(_));
        !self.is_success() && !is_final
    }

    /// The exit code, as a shell gives it; none where a signal or a limit ended it.
    pub(crate) fn exit(&self) -> Option<i32> {
        match self {
            Self::Exited(code) | Self::NotStarted(code, _) => Some(*code),
            _ => None,
        }
    }

    /// The signal that ended it, where that was not this program's.
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
            Self::NeedsTerminal => f.write_str(
                "was killed because it asked for the terminal: jobs run in the background, with \
                 empty standard input; use the command's option for unattended use, such as \
                 ssh -o BatchMode=yes or sudo -n",
            ),
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
