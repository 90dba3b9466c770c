//! A row: the outcome of one input, as every output shows it.

use std::time::Duration;

use super::key::JobKey;
use super::pending::PendingJob;
use super::spill::{Printed, Spills};
use crate::tasks::command::FailedAttempt;
use crate::tasks::{Input, Output};
use procpool::{DidRun, HostName, Report, TaskError, TaskErrorKind};

/// The outcome of one input.
#[derive(Clone)]
pub(super) struct Row {
    /// The position of the job in the run.
    pub(super) id: u64,
    /// The number of the input, from 1, as users see it.
    pub(super) number: u64,
    pub(super) pid: u32,
    pub(super) worker: usize,
    /// The worker's host, if the pool spans several.
    pub(super) host: Option<HostName>,
    pub(super) attempt: u32,
    pub(super) queued: Duration,
    pub(super) elapsed: Duration,
    /// When it started: nanoseconds on the monotonic clock.
    pub(super) began: u64,
    pub(super) input: Input,
    /// The job's key in the journal.
    pub(super) key: Option<JobKey>,
    /// Captured output. That of a task includes its standard error.
    pub(super) stdout: Printed,
    pub(super) stderr: Printed,
    /// The result. A command has one even if it failed.
    pub(super) values: Output,
    /// Why it failed, if it did.
    pub(super) error: Option<String>,
    /// Peak memory in bytes, if known.
    pub(super) memory: Option<u64>,
    /// Whether it never started because the run was ending.
    pub(super) cancelled: bool,
    /// The shell's exit code of a command that could not be started.
    pub(super) unstarted: Option<i32>,
    /// Whether it was killed with the run.
    pub(super) killed: bool,
    /// The attempts before the last one, if known.
    pub(super) earlier: Vec<FailedAttempt>,
    /// Set if this row ends the run.
    pub(super) abort: Option<Abort>,
}

/// Why a row ends the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Abort {
    /// The user has interrupted the job on the terminal, and with it the run.
    Interrupted,
    /// The reader of the output is gone.
    OutputClosed,
    /// Writing the output failed, with this error.
    OutputFailed(String),
}

impl Row {
    /// Splits a report into a row and the result, if there is one.
    pub(super) fn new<A>(report: Report<A>, kept: PendingJob) -> (Self, Option<A>) {
        let worker = report.worker;
        let (answer, error) = match report.result {
            Ok(answer) => (Some(answer), None),
            Err(error) => (None, Some(error)),
        };
        let has_run = error.as_ref().is_some_and(|error| error.did_it_run() != DidRun::No);
        let row = Self {
            id: report.id,
            number: kept.number,
            pid: worker.map_or(0, |worker| worker.pid),
            worker: worker.map_or(0, |worker| worker.slot),
            host: worker.and_then(|worker| worker.host),
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
            error: error.map(|error| describe(&error)),
        };
        (row, answer)
    }
}

impl Row {
    /// Returns the number of the worker, from 1, as users see it.
    pub(super) fn worker_number(&self) -> usize {
        self.worker + 1
    }

    /// Sets when the last attempt started, which a worker with another clock says: the first one
    /// started when this row did, as far as known here.
    pub(super) fn shift(&mut self, last: u64) {
        let first = self.earlier.first().map_or(last, |attempt| attempt.began);
        let start = self.began;
        let here = |there: u64| start.saturating_add(there.saturating_sub(first));
        self.began = here(last);
        for attempt in &mut self.earlier {
            attempt.began = here(attempt.began);
        }
    }

    /// Resolves output that was stored in files.
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

/// Whether a task has no result because the pool was closing.
fn is_end_of_run(error: &TaskError) -> bool {
    matches!(error.kind(), TaskErrorKind::Cancelled | TaskErrorKind::Closed)
}

/// Describes an error, without what the row shows anyway: id, worker and output.
fn describe(error: &TaskError) -> String {
    let text = match error.kind() {
        TaskErrorKind::Died { cause, last_records, .. } => {
            let (cause, last_records) = (*cause, last_records.clone());
            TaskErrorKind::Died { cause, last_output: None, last_records }.to_string()
        }
        kind => kind.to_string(),
    };
    match error.progress() {
        Some(progress) => format!("{text}, at {progress}"),
        None => text,
    }
}
