//! How a run of the command can end. The codes are a promise to scripts.

use std::process::ExitCode;

use crate::tasks::command::NoProgram;

/// The end of a run, as the process that started it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// 0: everything was done; or nobody wants to read the rest.
    AllWell,
    /// 1: a task failed (the others are done all the same), or the run could not be made.
    SomeFailed,
    /// With `--exit-count`: how many failed, up to 100; 101 are more than that.
    Failed(u8),
    /// 2: the arguments make no sense; nothing was started.
    WrongUsage,
    /// With `--exit-count`, 255: wrong usage, or the run could not be made. No number of failures.
    Uncounted,
    /// 126: the command can't be executed; nothing was started, or no job that failed.
    NotExecutable,
    /// 127: there is no such command; nothing was started, or no job that failed.
    NotFound,
    /// 130: Ctrl-C (SIGINT), as shells have it: 128 and the number of the signal.
    Interrupted,
    /// 143: SIGTERM.
    Terminated,
    /// 129: SIGHUP, the terminal is gone.
    HungUp,
}

impl Exit {
    /// The code that the process ends with.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::AllWell => 0,
            Self::SomeFailed => 1,
            Self::Failed(count) => count,
            Self::WrongUsage => 2,
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
    /// That of a run in which so many jobs failed, which are counted if that was asked for.
    /// Where none of those could even be started, for the same reason, that is the code of the reason.
    pub(super) fn of_failed(failed: u64, count: bool, unstarted: Option<i32>) -> Self {
        match (failed, unstarted) {
            (0, _) => Self::AllWell,
            (_, Some(126)) if !count => Self::NotExecutable,
            (_, Some(127)) if !count => Self::NotFound,
            _ if !count => Self::SomeFailed,
            (failed, _) => Self::Failed(failed.min(101) as u8),
        }
    }
}

impl Exit {
    /// The same where numbers of failures are expected: what was not a number must not look like one.
    pub(super) fn uncounted(self) -> Self {
        if matches!(self, Self::WrongUsage | Self::SomeFailed) { Self::Uncounted } else { self }
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

/// An error of whoever typed the arguments.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(String);

impl Usage {
    /// The error with this message, which should say what to type instead.
    pub(super) fn error(message: impl Into<String>) -> anyhow::Error {
        Self(message.into()).into()
    }
}
