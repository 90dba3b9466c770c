//! How a run of the command can end. The codes are a promise to scripts.

use std::process::ExitCode;

/// The end of a run, as the process that started it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// 0: everything was done; or nobody wants to read the rest.
    AllWell,
    /// 1: a task failed (the others are done all the same), or the run could not be made.
    SomeFailed,
    /// 2: the arguments make no sense; nothing was started.
    WrongUsage,
    /// 130: Ctrl-C, as shells have it (128 and the number of the signal).
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::AllWell => 0,
            Exit::SomeFailed => 1,
            Exit::WrongUsage => 2,
            Exit::Interrupted => 130,
        })
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
