//! A row: what became of one input, as every output shows it.

use std::time::Duration;

use super::key::JobKey;
use super::pending::PendingJob;
use super::spill::{Printed, Spills};
use crate::tasks::command::FailedAttempt;
use crate::tasks::{Input, Output};
use procpool::{DidRun, Report, TaskError, TaskErrorKind};

/// What became of one input.
#[derive(Clone)]
pub(super) struct Row {
    /// The position of its job among those of the run.
    pub(super) id: u64,
    /// The number of its input, from 1: what people see.
    pub(super) number: u64,
    pub(super) pid: u32,
    pub(super) worker: usize,
    pub(super) attempt: u32,
    pub(super) queued: Duration,
    pub(super) elapsed: Duration,
    /// When it began, on the monotonic clock in nanoseconds.
    pub(super) began: u64,
    pub(super) input: Input,
    /// Which job of which input this is, for the journal.
    pub(super) key: Option<JobKey>,
    /// What it printed, where that is kept; of a task, with what it printed to standard error.
    pub(super) stdout: Printed,
    pub(super) stderr: Printed,
    /// The answer. A command has one also where it failed.
    pub(super) values: Output,
    /// Why it failed, if it did.
    pub(super) error: Option<String>,
    /// The most memory in bytes that it had at a time, where that is known.
    pub(super) memory: Option<u64>,
    /// It was never begun, because the run was to end before.
    pub(super) cancelled: bool,
    /// The command could not be started: the code that a shell gives for that.
    pub(super) unstarted: Option<i32>,
    /// It was ended with the run.
    pub(super) killed: bool,
    /// The attempts before the last one, where they are known.
    pub(super) earlier: Vec<FailedAttempt>,
    /// Why the run can't go on, if this row says so.
    pub(super) abort: Option<Abort>,
}

/// Why a row ends the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Abort {
    /// Nobody reads what jobs print any more.
    OutputClosed,
    /// What jobs print can't be written, for this reason.
    OutputFailed(String),
}

impl Row {
    /// What a report says of its job, and its answer, if it has one.
    pub(super) fn new<A>(report: Report<A>, kept: PendingJob) -> (Self, Option<A>) {
        let (answer, error) = match report.result {
            Ok(answer) => (Some(answer), None),
            Err(error) => (None, Some(error)),
        };
        let has_run = error.as_ref().is_some_and(|error| error.did_it_run() != DidRun::No);
        let row = Self {
            id: report.id,
            number: kept.number,
            pid: report.pid,
            worker: report.worker,
            attempt: report.attempt,
            queued: report.queued,
            elapsed: report.elapsed,
            began: kept.read.saturating_add(report.queued.as_nanos() as u64),
            input: kept.input,
            key: kept.key,
            stdout: Printed::Here(report.output),
            stderr: Printed::default(),
            values: Output::new(),
            memory: None,
            cancelled: error.as_ref().is_some_and(is_end_of_run) && !has_run,
            killed: error.as_ref().is_some_and(is_end_of_run) && has_run,
            earlier: Vec::new(),
            abort: None,
            unstarted: None,
            error: error.map(|error| said(error.kind())),
        };
        (row, answer)
    }
}

impl Row {
    /// The number of its worker, from 1: what people see.
    pub(super) fn worker_number(&self) -> usize {
        self.worker + 1
    }

    /// Finds what was printed, where that is in files.
    pub(super) fn find(&mut self, spills: &Spills) {
        for printed in [&mut self.stdout, &mut self.stderr] {
            let Printed::Named(range) = *printed else { continue };
            match spills.find(range) {
                Some(found) => *printed = found,
                None => {
                    let lost = "its output is lost: the worker never sent it";
                    self.error.get_or_insert_with(|| lost.to_owned());
                }
            }
        }
    }
}

/// Whether a task has no answer because its pool was to end.
fn is_end_of_run(error: &TaskError) -> bool {
    matches!(error.kind(), TaskErrorKind::Cancelled | TaskErrorKind::Closed)
}

/// What happened to a task, without what the row says anyhow: its id, its worker and what it printed.
fn said(kind: &TaskErrorKind) -> String {
    match kind {
        TaskErrorKind::Died { cause, .. } => {
            TaskErrorKind::Died { cause: *cause, last_output: None }.to_string()
        }
        kind => kind.to_string(),
    }
}
