//! A case in a pool of worker processes.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use super::bystander::{Environment, failing, healthy};
use super::cases::{BYSTANDERS, Case, MEMORY, NO_CORE};
use super::rendezvous::{RendezvousFile, wait};
use crate::format;
use procpool::{Limits, OutputMode, Pool, TaskError, TaskErrorKind, TaskOptions};

/// The time limit of the endless task.
const TIME_LIMIT: Duration = Duration::from_millis(300);

/// How long the pool may take for what should take milliseconds.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How long a worker that has returned a result may take to die of the fault, to be observed.
const SETTLING: Duration = Duration::from_millis(100);

/// The observations of a case.
#[derive(Debug, Serialize)]
pub(super) struct Observation {
    /// The worker of the failing task.
    pub(super) pid: u32,
    /// What happened there, as the pool reports it.
    pub(super) happened: String,
    /// Whether the intended fault occurred.
    pub(super) went_wrong: bool,
    pub(super) bystanders: usize,
    /// How many bystanders returned a result, and how many of the results are correct.
    pub(super) answers: usize,
    pub(super) right: usize,
    /// Changes that bystanders observed.
    pub(super) changed: Vec<String>,
    /// Changes that this process observed.
    pub(super) changed_in_parent: Vec<String>,
    /// The replacement of the dead worker, if it died.
    pub(super) new_pid: Option<u32>,
    /// Whether the pool returned correct results afterwards.
    pub(super) answers_on: bool,
}

impl Observation {
    pub(super) fn contained(&self) -> bool {
        self.went_wrong
            && self.right == self.bystanders
            && self.changed.is_empty()
            && self.changed_in_parent.is_empty()
            && self.answers_on
    }
}

/// Runs the case and observes it.
pub(super) fn watch(case: Case) -> Result<Observation> {
    let file = RendezvousFile::new().context("failed to create a memory file")?;
    let rendezvous = file.rendezvous();
    let environment = Environment::observe();
    let mut builder = Pool::builder()
        .name("isolate")
        .workers(BYSTANDERS + 1)
        // Tasks wait for each other, so none may wait behind another in a chunk.
        .chunk_size(1)
        .limits(Limits::new().core_size(NO_CORE))
        // A crash prints a message, and the report contains it.
        .output(OutputMode::Null);
    if case == Case::Leak {
        builder = builder.max_memory_per_worker(MEMORY);
    }
    let pool = builder.build().context("failed to start the pool")?;

    let bystanders: Vec<_> = (0..BYSTANDERS)
        .map(|bystander| pool.apply_async(healthy, (rendezvous.clone(), bystander)))
        .collect();
    let failing_pool = match case {
        Case::Loop => pool.with_options(TaskOptions::new().timeout(TIME_LIMIT)),
        _ => pool.clone(),
    };
    let failing_task = failing_pool.apply_async(failing, (rendezvous.clone(), case));
    if case == Case::Kill
        && let Some(pid) = rendezvous.wait_acting(TIMEOUT)
    {
        kill(pid);
    }
    let report = failing_task.report();
    rendezvous.set_over();
    let answers: Vec<_> =
        bystanders.into_iter().filter_map(|bystander| bystander.get().ok()).collect();

    let (happened, went_wrong) = match &report.result {
        Ok(changes) if changes.is_empty() => ("came to its end".to_owned(), false),
        Ok(changes) => (changes.join(", "), case.is_change()),
        Err(error) => (describe(error), !case.is_change()),
    };
    let mut changed: Vec<String> =
        answers.iter().flat_map(|answer| answer.changed.clone()).collect();
    changed.dedup();
    Ok(Observation {
        pid: report.pid().unwrap_or(0),
        happened,
        went_wrong,
        bystanders: BYSTANDERS,
        answers: answers.len(),
        right: answers.iter().filter(|answer| answer.is_right()).count(),
        changed,
        changed_in_parent: environment.changes(),
        new_pid: report.worker.and_then(|worker| successor(&pool, worker.slot, worker.pid)),
        answers_on: pool
            .map(|x: u64| x * x, 0..16)
            .is_ok_and(|squares| squares.into_iter().eq((0..16).map(|x| x * x))),
    })
}

/// Returns the replacement of this worker, or none if the worker is still there.
fn successor(pool: &Pool, slot: usize, pid: u32) -> Option<u32> {
    let now = || pool.workers().get(slot).map_or(pid, |worker| worker.pid);
    let is_gone = || !fs::exists(format!("/proc/{pid}")).unwrap_or(false);
    if wait(SETTLING, is_gone) {
        wait(TIMEOUT, || now() != pid);
    }
    Some(now()).filter(|now| *now != pid)
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // A worker of ours that has not been waited for: the PID cannot belong to another process.
    let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
}

/// Describes the error in a few words.
fn describe(error: &TaskError) -> String {
    match error.kind() {
        TaskErrorKind::Panicked { message, .. } => format!("panicked: {message}"),
        TaskErrorKind::Died { cause, .. } => cause.to_string(),
        TaskErrorKind::TimedOut { after } => {
            format!("was stopped after {}", format::duration(*after))
        }
        kind => kind.to_string(),
    }
}
