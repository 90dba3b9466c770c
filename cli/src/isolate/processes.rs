//! The act in a pool of worker processes.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use super::cases::{Case, MEMORY, NEIGHBOURS, NO_CORE};
use super::neighbour::{Surroundings, healthy, sick};
use super::scene::{Stage, wait};
use crate::humane;
use procpool::{Limits, OutputMode, Pool, TaskError, TaskErrorKind, TaskOptions};

/// What the endless task is given.
const TIME_LIMIT: Duration = Duration::from_millis(300);

/// The longest that the pool may take over what should take it milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a worker that has answered may take to die of what it did, to be seen doing so.
const SETTLING: Duration = Duration::from_millis(100);

/// What was seen.
#[derive(Debug, Serialize)]
pub(super) struct Seen {
    /// The worker in which it went wrong.
    pub(super) pid: u32,
    /// What happened there, as the pool reports it.
    pub(super) happened: String,
    /// Whether what was to go wrong did.
    pub(super) went_wrong: bool,
    pub(super) neighbours: usize,
    /// How many of the neighbours' answers came, and how many of those are right.
    pub(super) answers: usize,
    pub(super) right: usize,
    /// What the neighbours found changed.
    pub(super) changed: Vec<String>,
    /// What this process found changed.
    pub(super) changed_in_parent: Vec<String>,
    /// The worker that has taken the place of the one that is gone, if it is.
    pub(super) new_pid: Option<u32>,
    /// Whether the pool answered afterwards, and rightly.
    pub(super) answers_on: bool,
}

impl Seen {
    pub(super) fn contained(&self) -> bool {
        self.went_wrong
            && self.right == self.neighbours
            && self.changed.is_empty()
            && self.changed_in_parent.is_empty()
            && self.answers_on
    }
}

/// Has it go wrong, and watches.
pub(super) fn watch(case: Case) -> Result<Seen> {
    let stage = Stage::new().context("failed to make a file in memory")?;
    let scene = stage.scene();
    let surroundings = Surroundings::look();
    let mut builder = Pool::builder()
        .name("isolate")
        .workers(NEIGHBOURS + 1)
        // They wait for each other, so each must be under way by itself.
        .chunk_size(1)
        .limits(Limits::new().core_size(NO_CORE))
        // A crash prints its message, and the report says it all.
        .output(OutputMode::Null);
    if case == Case::Leak {
        builder = builder.max_memory_per_worker(MEMORY);
    }
    let pool = builder.build().context("failed to start the pool")?;

    let neighbours: Vec<_> = (0..NEIGHBOURS)
        .map(|neighbour| pool.apply_async(healthy, (scene.clone(), neighbour)))
        .collect();
    let sickbed = match case {
        Case::Loop => pool.with_options(TaskOptions::new().timeout(TIME_LIMIT)),
        _ => pool.clone(),
    };
    let patient = sickbed.apply_async(sick, (scene.clone(), case));
    if case == Case::Kill
        && let Some(pid) = scene.wait_acting(PATIENCE)
    {
        kill(pid);
    }
    let report = patient.report();
    scene.set_over();
    let answers: Vec<_> =
        neighbours.into_iter().filter_map(|neighbour| neighbour.get().ok()).collect();

    let (happened, went_wrong) = match &report.result {
        Ok(changes) if changes.is_empty() => ("came to its end".to_owned(), false),
        Ok(changes) => (changes.join(", "), case.is_change()),
        Err(error) => (said(error), !case.is_change()),
    };
    let mut changed: Vec<String> =
        answers.iter().flat_map(|answer| answer.changed.clone()).collect();
    changed.dedup();
    Ok(Seen {
        pid: report.pid().unwrap_or(0),
        happened,
        went_wrong,
        neighbours: NEIGHBOURS,
        answers: answers.len(),
        right: answers.iter().filter(|answer| answer.is_right()).count(),
        changed,
        changed_in_parent: surroundings.changes(),
        new_pid: report.worker.and_then(|worker| successor(&pool, worker.slot, worker.pid)),
        answers_on: pool
            .map(|x: u64| x * x, 0..16)
            .is_ok_and(|squares| squares.into_iter().eq((0..16).map(|x| x * x))),
    })
}

/// The worker that has taken this one's place; none if that one is still there.
fn successor(pool: &Pool, slot: usize, pid: u32) -> Option<u32> {
    let now = || pool.workers().get(slot).map_or(pid, |worker| worker.pid);
    let is_gone = || !fs::exists(format!("/proc/{pid}")).unwrap_or(false);
    if wait(SETTLING, is_gone) {
        wait(PATIENCE, || now() != pid);
    }
    Some(now()).filter(|now| *now != pid)
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // A worker of ours that nobody has waited for: the number is its own.
    let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
}

/// What happened, as the library has it, in a few words.
fn said(error: &TaskError) -> String {
    match error.kind() {
        TaskErrorKind::Panicked { message, .. } => format!("panicked: {message}"),
        TaskErrorKind::Died { cause, .. } => cause.to_string(),
        TaskErrorKind::TimedOut { after } => {
            format!("was stopped after {}", humane::duration(*after))
        }
        kind => kind.to_string(),
    }
}
