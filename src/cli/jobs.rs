//! Jobs for the pool, made of inputs one by one; and the inputs of those under way, to show them
//! with results.
//!
//! A result comes back with the position of its input and not with the input itself, which would
//! make every answer longer. So the inputs of the jobs under way are kept here; the pool's window
//! bounds how many.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use crate::tasks::{Input, Job, Params, Task};

/// Makes jobs, in the order of their inputs.
pub(super) struct JobMaker {
    task: &'static Task,
    params: Params,
    next_id: u64,
    /// A fingerprint of each name that will be written: eight bytes, where the names of a million
    /// files would fill the memory. That two of a million differ and look alike has a chance of 1
    /// in 37 million.
    names: HashSet<u64>,
    hasher: RandomState,
}

impl JobMaker {
    pub(super) fn new(task: &'static Task, params: Params) -> Self {
        Self { task, params, next_id: 0, names: HashSet::new(), hasher: RandomState::new() }
    }

    /// The position of the next input.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id
    }

    pub(super) fn make(&mut self, input: Input) -> Job {
        self.next_id += 1;
        let taken = self.is_taken(&input);
        Job { input, params: self.params.clone(), taken }
    }

    /// Whether an earlier input will be written under the name that this one would get.
    fn is_taken(&mut self, input: &Input) -> bool {
        let name = self.task.output_name.and_then(|name| name(input, &self.params));
        name.is_some_and(|name| !self.names.insert(self.hasher.hash_one(name)))
    }
}

/// The inputs of the jobs of one stream that are under way, by their position in it. The pool reads
/// the stream on the thread that its results are taken on, so there is nothing to lock.
#[derive(Clone, Default)]
pub(super) struct UnderWay(Rc<RefCell<HashMap<u64, Input>>>);

impl UnderWay {
    /// These jobs, their inputs kept from when they are read.
    pub(super) fn keeping(&self, jobs: impl Iterator<Item = Job>) -> impl Iterator<Item = Job> {
        let kept = self.clone();
        let mut next = 0;
        jobs.inspect(move |job| {
            kept.0.borrow_mut().insert(next, job.input.clone());
            next += 1;
        })
    }

    /// The input of a job that came back.
    pub(super) fn take(&self, position: u64) -> Input {
        // A pool that reports a position twice, or one that isn't, would be shown as what it is.
        self.0.borrow_mut().remove(&position).unwrap_or_else(|| Input::from("?"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tasks::find;

    #[test]
    fn an_input_is_kept_from_its_reading_until_its_result_is_there() {
        let under_way = UnderWay::default();
        let mut jobs = under_way.keeping([5, 6].map(Job::new).into_iter());
        jobs.next();
        assert_eq!(under_way.0.borrow().len(), 1);
        jobs.next();
        assert_eq!([1, 0].map(|position| under_way.take(position)), [6, 5].map(Input::from));
        assert!(under_way.0.borrow().is_empty());
    }

    #[test]
    fn the_second_input_of_one_output_is_marked() {
        let taken = |task, inputs: [&str; 3]| {
            let mut jobs = JobMaker::new(find(task).unwrap(), Params::default());
            let taken = inputs.map(|input| jobs.make(Input::from(input)).taken);
            assert_eq!(jobs.next_id(), 3);
            taken
        };
        assert_eq!(taken("image", ["a/x.png", "b/y.png", "b/x.jpg"]), [false, false, true]);
        assert_eq!(taken("sha256", ["a/x", "a/x", "a/x"]), [false; 3]);
    }
}
