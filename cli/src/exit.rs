//! The exit codes of the command, which scripts depend on.

use std::process::ExitCode;

use crate::tasks::command::NoProgram;

/// How the command ends, as its parent process sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// 0: everything succeeded, or the reader has closed standard output.
    Success,
    /// 1: a job failed (the others are completed), or the run could not start.
    Failure,
    /// With `--exit-count`: the number of failed jobs, up to 100, or 101 for more.
    Failed(u8),
    /// 2: wrong usage; nothing was started.
    WrongUsage,
    /// 3: a run on several hosts has lost its engine, and could not be started again.
    EngineLost,
    /// 4: a host has another build of this program.
    BuildMismatch,
    /// The exit code of a run that was supervised.
    Code(u8),
    /// 255 with `--exit-count`: wrong usage, or the run could not start. Never a number of
    /// failures.
    Uncounted,
    /// 126: the command is not executable, for the run or for every job that failed.
    NotExecutable,
    /// 127: the command was not found, for the run or for every job that failed.
    NotFound,
    /// 130: Ctrl-C (SIGINT). Shells use 128 plus the signal's number.
    Interrupted,
    /// 143: SIGTERM.
    Terminated,
    /// 129: SIGHUP; the terminal is gone.
    HungUp,
}

impl Exit {
    /// Returns the exit code of the process.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Failed(count) => count,
            Self::WrongUsage => 2,
            Self::EngineLost => 3,
            Self::BuildMismatch => 4,
            Self::Code(code) => code,
            Self::Uncounted => 255,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
            Self::Interrupted => 130,
            Self::Terminated => 143,
            Self::HungUp => 129,
        }
    }
}

impl Exit {
    /// Returns the exit of a run with `failed` failed jobs. If all of them could not be started for
    /// the same reason, the exit code is that of the reason.
    pub(super) fn of_failed(failed: u64, count: bool, unstarted: Option<i32>) -> Self {
        match (failed, unstarted) {
            (0, _) => Self::Success,
            (_, Some(126)) if !count => Self::NotExecutable,
            (_, Some(127)) if !count => Self::NotFound,
            _ if !count => Self::Failure,
            (failed, _) => Self::Failed(failed.min(101) as u8),
        }
    }
}

impl Exit {
    /// Returns the exit where callers expect a number of failures: another code must not look like
    /// one.
    pub(super) fn uncounted(self) -> Self {
        match self {
            Self::WrongUsage | Self::Failure | Self::EngineLost | Self::BuildMismatch => {
                Self::Uncounted
            }
            counted => counted,
        }
    }
}

impl From<&NoProgram> for Exit {
    fn from(error: &NoProgram) -> Self {
        match error {
            NoProgram::NotFound(_) => Self::NotFound,
            NoProgram::NotExecutable(_) => Self::NotExecutable,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Wrong usage: an error in the arguments.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(String);

impl Usage {
    /// Creates the error. The message must say what to type instead.
    pub(super) fn error(message: impl Into<String>) -> anyhow::Error {
        Self(message.into()).into()
    }
}
