//! Makes jobs of inputs, one by one.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use crate::os::clock;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::blocks::BlockFiles;
use super::journal::History;
use super::key::JobKey;
use super::median::Median;
use super::numbers::Numbers;
use super::pending::PendingJob;
use super::row::{Abort, Row};
use super::units::TimeLimit;
use crate::tasks::command::{self, CommandJob, Completed, Status, Template};
use crate::tasks::{Input, Job, Output, Params, Task};
use procpool::Report;

/// The least time over the median that a percentage allows: many very short jobs take several times
/// the median through no fault of theirs.
const MIN_OVER_MEDIAN: Duration = Duration::from_secs(1);

/// The work to do for each input.
pub(super) trait Work: Send + 'static {
    /// What is sent to a worker.
    type Job: Serialize + DeserializeOwned;
    /// What the worker returns.
    type Answer: Serialize + DeserializeOwned;

    /// Returns the function that the worker runs.
    fn task(&self) -> fn(Self::Job) -> Self::Answer;

    /// Makes the job of an input. `number` is the input's, from 1; `id` is the position of the
    /// result.
    fn job(&mut self, input: &Input, number: u64, id: u64) -> Self::Job;

    /// Returns the key of a job, which does not depend on the position of its input.
    fn key(&self, input: &Input, number: u64) -> JobKey;

    /// Makes the row of a finished job.
    fn row(report: Report<Self::Answer>, kept: PendingJob) -> Row;
}

/// A built-in task.
pub(super) struct BuiltIn {
    task: &'static Task,
    params: Params,
    /// A hash of each output name, eight bytes each: the names of a million files would fill the
    /// memory. With a million names, a collision has a chance of 1 in 37 million.
    names: HashSet<u64>,
    hasher: RandomState,
}

impl BuiltIn {
    pub(super) fn new(task: &'static Task, params: Params) -> Self {
        Self { task, params, names: HashSet::new(), hasher: RandomState::new() }
    }

    /// Whether an earlier input has the same output name.
    fn is_taken(&mut self, input: &Input) -> bool {
        let name = self.task.output_name.and_then(|name| name(input, &self.params));
        name.is_some_and(|name| !self.names.insert(self.hasher.hash_one(name)))
    }
}

impl Work for BuiltIn {
    type Job = Job;
    type Answer = Result<Output, String>;

    fn task(&self) -> fn(Job) -> Result<Output, String> {
        self.task.run
    }

    fn job(&mut self, input: &Input, _number: u64, _id: u64) -> Job {
        let taken = self.is_taken(input);
        Job { input: input.clone(), params: self.params.clone(), taken }
    }

    fn key(&self, input: &Input, _number: u64) -> JobKey {
        let params = format!("{:?}", self.params);
        JobKey::of([b"task", self.task.name.as_bytes(), params.as_bytes(), &input.to_bytes()])
    }

    fn row(report: Report<Self::Answer>, kept: PendingJob) -> Row {
        let (mut row, answer) = Row::new(report, kept);
        match answer {
            Some(Ok(values)) => row.values = values,
            Some(Err(error)) => row.error = Some(error),
            None => {}
        }
        row
    }
}

/// A command.
pub(super) struct Commands {
    template: Template,
    limit: Option<TimeLimit>,
    median: Arc<Median>,
    /// What jobs read on standard input.
    blocks: Option<BlockFiles>,
}

impl Commands {
    pub(super) fn new(template: Template, limit: Option<TimeLimit>, median: Arc<Median>) -> Self {
        Self { template, limit, median, blocks: None }
    }

    /// Passes these blocks to the jobs, in order, one to each.
    pub(super) fn reading(self, blocks: Option<BlockFiles>) -> Self {
        Self { blocks, ..self }
    }

    fn limit(&self) -> Option<Duration> {
        match self.limit? {
            TimeLimit::Fixed(limit) => Some(limit),
            TimeLimit::OfMedian(times) => {
                let median = self.median.get()?;
                Some(median.mul_f64(times).max(median + MIN_OVER_MEDIAN))
            }
        }
    }
}

impl Work for Commands {
    type Job = CommandJob;
    type Answer = Completed;

    fn task(&self) -> fn(CommandJob) -> Completed {
        command::run
    }

    fn job(&mut self, input: &Input, number: u64, id: u64) -> CommandJob {
        let stdin = self.blocks.as_ref().and_then(BlockFiles::take);
        CommandJob { input: input.clone(), number, id, limit: self.limit(), stdin }
    }

    fn key(&self, input: &Input, number: u64) -> JobKey {
        let job = CommandJob { input: input.clone(), number, id: 0, limit: None, stdin: None };
        let words = self.template.words(&job, "");
        JobKey::of(std::iter::once(&b"command"[..]).chain(words.iter()))
    }

    fn row(report: Report<Completed>, kept: PendingJob) -> Row {
        let (mut row, ended) = Row::new(report, kept);
        let Some(ended) = ended else { return row };
        row.values = ended.values();
        row.error = (!ended.status.is_success()).then(|| ended.status.to_string());
        if ended.status == Status::Held {
            row.cancelled = true;
        }
        if let Status::NotStarted(code, _) = ended.status {
            row.unstarted = Some(code);
        }
        row.abort = match ended.status {
            Status::Interrupted => Some(Abort::Interrupted),
            Status::OutputClosed => Some(Abort::OutputClosed),
            Status::OutputFailed(error) => Some(Abort::OutputFailed(error)),
            _ => None,
        };
        row.earlier = ended.earlier;
        match row.host {
            None => row.began = ended.began,
            Some(_) => row.shift(ended.began),
        }
        row.elapsed = ended.elapsed;
        row.memory = Some(ended.memory);
        // The worker's attempts, plus those lost with earlier workers.
        row.attempt = (row.attempt + ended.attempts).saturating_sub(1);
        row.stdout = ended.stdout.into();
        row.stderr = ended.stderr.into();
        row
    }
}

/// Makes jobs in the order of their inputs.
pub(super) struct JobMaker<W> {
    work: W,
    next_id: u64,
    /// Inputs so far, including skipped ones.
    inputs: u64,
    /// What earlier runs did; none without a journal.
    history: Option<History>,
    numbers: Numbers,
}

impl<W: Work> JobMaker<W> {
    pub(super) fn new(work: W, history: Option<History>, numbers: Numbers) -> Self {
        Self { work, next_id: 0, inputs: 0, history, numbers }
    }

    pub(super) fn task(&self) -> fn(W::Job) -> W::Answer {
        self.work.task()
    }

    /// Returns the id of the next job.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Makes the job of the next input. Returns none if the input is skipped.
    pub(super) fn make(&mut self, input: Input) -> Option<(W::Job, PendingJob)> {
        self.inputs += 1;
        // A skipped input also reserves its output name.
        let job = self.work.job(&input, self.inputs, self.next_id);
        let key = self.history.is_some().then(|| self.work.key(&input, self.inputs));
        if let (Some(history), Some(key)) = (&mut self.history, key)
            && history.skips(key)
        {
            return None;
        }
        self.next_id += 1;
        self.numbers.note(self.next_id - 1, self.inputs);
        Some((job, PendingJob { input, number: self.inputs, key, read: clock::now() }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tasks::find;

    #[test]
    fn the_second_input_of_one_output_is_marked() {
        let taken = |task, inputs: [&str; 3]| {
            let work = BuiltIn::new(find(task).unwrap(), Params::default());
            let mut jobs = JobMaker::new(work, None, Numbers::default());
            let taken = inputs.map(|input| jobs.make(Input::from(input)).unwrap().0.taken);
            assert_eq!(jobs.next_id(), 3);
            taken
        };
        assert_eq!(taken("image", ["a/x.png", "b/y.png", "b/x.jpg"]), [false, false, true]);
        assert_eq!(taken("sha256", ["a/x", "a/x", "a/x"]), [false; 3]);
    }
}
