//! The live state of a run: the input of each worker, and the counts.
//!
//! The pool's events name tasks by their position in a stream. The stream's label is the id of its
//! first task in the run, which leads to the input.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::format;
use crate::row::Row;
use crate::spill::LiveOutput;
use crate::tasks::Input;
use procpool::{Event, EventKind, Progress};

/// How many of the last failures are kept.
const FAILURES: usize = 8;

#[derive(Default)]
pub(crate) struct Board(Mutex<State>);

#[derive(Default)]
pub(super) struct State {
    /// The inputs of pending jobs, by id.
    inputs: HashMap<u64, Input>,
    slots: HashMap<usize, Running>,
    /// What running jobs have printed on their two streams, by id.
    outputs: HashMap<u64, [Option<LiveOutput>; 2]>,
    /// What was last said about a change of the run.
    pub(super) said: Option<String>,
    pub(super) is_paused: bool,
    pub(super) ended: u64,
    pub(super) failed: u64,
    pub(super) retried: u64,
    /// The last failures, the newest last.
    pub(super) failures: VecDeque<String>,
}

/// The chunk of a worker.
struct Running {
    /// The id of the running job.
    id: u64,
    /// The number of jobs left, including that one.
    left: u32,
    since: Instant,
    /// How far the job is, if it has said so.
    progress: Option<Progress>,
}

impl Board {
    /// Records a job that is about to be sent.
    pub(crate) fn begin(&self, id: u64, input: &Input) {
        self.state().inputs.insert(id, input.clone());
    }

    /// Records a finished job.
    pub(crate) fn end(&self, row: &Row) {
        let mut state = self.state();
        state.inputs.remove(&row.id);
        state.outputs.remove(&row.id);
        state.ended += u64::from(!row.cancelled);
        state.retried += u64::from(row.attempt.saturating_sub(1));
        if let Some(error) = row.error.as_ref().filter(|_| !row.cancelled) {
            state.failed += 1;
            let failure = format!("{}: {error}", row.input.to_text());
            state.failures.push_back(format::one_line(&failure).into_owned());
            if state.failures.len() > FAILURES {
                state.failures.pop_front();
            }
        }
    }

    /// Records where a running job prints.
    pub(crate) fn watch(&self, output: LiveOutput) {
        let mut state = self.state();
        if state.inputs.contains_key(&output.id) {
            let (id, which) = (output.id, output.which);
            state.outputs.entry(id).or_default()[which] = Some(output);
        }
    }

    /// Records a change of the run.
    pub(crate) fn changed(&self, said: Option<String>, is_paused: bool) {
        let mut state = self.state();
        (state.said, state.is_paused) = (said, is_paused);
    }

    /// Records an event of the pool.
    pub(crate) fn note(&self, event: &Event) {
        let mut state = self.state();
        match &event.kind {
            EventKind::Assigned { slot, id, tasks, label, .. } => {
                let first: u64 = label.as_ref().and_then(|label| label.parse().ok()).unwrap_or(0);
                let running =
                    Running { id: first + id, left: *tasks, since: Instant::now(), progress: None };
                state.slots.insert(*slot, running);
            }
            EventKind::Finished { slot, .. } => {
                if let Some(running) = state.slots.get_mut(slot) {
                    running.id += 1;
                    running.left = running.left.saturating_sub(1);
                    (running.since, running.progress) = (Instant::now(), None);
                }
            }
            EventKind::Progressed { slot, done, total, .. } => {
                if let Some(running) = state.slots.get_mut(slot) {
                    running.progress = Some(Progress { done: *done, total: *total });
                }
            }
            EventKind::Lost { slot, .. } | EventKind::Retired { slot, .. } => {
                state.slots.remove(slot);
            }
            _ => {}
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the end of what a worker's job has printed so far.
    pub(super) fn output(&self, slot: usize) -> Vec<u8> {
        /// As much as a large screen shows.
        const SHOWN: u64 = 64 << 10;
        let running = self.slots.get(&slot).filter(|running| running.left > 0);
        let outputs = running.and_then(|running| self.outputs.get(&running.id));
        let outputs = outputs.into_iter().flatten().flatten();
        // A file that can't be read was emptied by a retry, and is read again in a moment.
        outputs.flat_map(|output| output.tail(SHOWN).unwrap_or_default()).collect()
    }

    /// Returns the input of a worker and how far its job is, and when it started.
    pub(super) fn running(&self, slot: usize) -> Option<(String, Instant)> {
        let running = self.slots.get(&slot).filter(|running| running.left > 0)?;
        let input = self.inputs.get(&running.id)?.to_text();
        let progress = running.progress.map(|progress| format!("{}  ", format::part(progress)));
        Some((progress.unwrap_or_default() + &format::one_line(&input), running.since))
    }
}
