//! The lines of a journal that are no job's, and any line as it is read back.

use serde::{Deserialize, Serialize};

/// A line as it is read back: the fields of one kind of line are there.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Known {
    pub(super) key: Option<String>,
    #[serde(default)]
    pub(super) ok: bool,
    #[serde(default)]
    pub(super) pending: bool,
    pub(super) shown: Option<Shown>,
    pub(super) lost: Option<LostHost>,
    pub(super) end: Option<End>,
}

/// How far the results are written when the jobs before this line are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Shown {
    /// The length of the file of the results.
    pub(super) out: u64,
    /// The length of the file for standard error, if there is one.
    #[serde(default)]
    pub(super) err: u64,
    /// The file of the results, unless it ends with the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<String>,
}

/// A host that the run has lost.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct LostHost {
    pub(super) host: String,
    pub(super) reason: String,
}

/// The end of a run that spans hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct End {
    /// The exit code of the run.
    pub(super) exit: u8,
    /// Jobs that succeeded, failed, and were not started as far as known.
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    pub(super) not_started: u64,
}

/// A line that is no job's.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Note<'a> {
    Shown(&'a Shown),
    Lost(&'a LostHost),
    End(End),
}
