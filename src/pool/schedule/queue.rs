//! The queue: batches that any worker may run, in the order in which they start.
//!
//! Callers share the workers by start-time fair queuing (Goyal, Vin and Cheng, 1996). Each call with many items is a flow,
//! and all single calls together are one. The flow that has had the least of the workers' time starts next, and one that
//! comes anew does not catch up. So a single call beside a map of a million items waits for a chunk, not for the map. The
//! time of an item is its function's measured cost. Flows of a higher priority come first.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::batch::{Batch, split_back};
use crate::pool::call::job::Job;

/// The cost of an item whose function was not measured, in nanoseconds.
const UNKNOWN_COST: u64 = 1_000;

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Those with batches, sorted by [`Flow::key`].
    flows: VecDeque<Flow>,
    /// The virtual time: that of the flow which started last, in nanoseconds of work.
    now: u64,
    /// The virtual time up to which single calls have had their part.
    singles: u64,
}

/// The batches of a call with many items, or of single calls, in their order.
#[derive(Debug)]
struct Flow {
    /// The call, unless these are single ones.
    job: Option<Arc<Job>>,
    priority: i32,
    /// The virtual time up to which it has had its part.
    start: u64,
    batches: VecDeque<Batch>,
}

impl Flow {
    /// Flows with a lower key start first.
    fn key(&self) -> (Reverse<i32>, u64) {
        (Reverse(self.priority), self.start)
    }

    fn has(&self, job: &Arc<Job>) -> bool {
        match &self.job {
            Some(own) => Arc::ptr_eq(own, job),
            None => job.is_single() && job.priority() == self.priority,
        }
    }
}

fn cost(batch: &Batch) -> u64 {
    let each = match batch.job.cost.nanos() {
        0 => UNKNOWN_COST,
        nanos => nanos,
    };
    u64::from(batch.items).saturating_mul(each)
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Returns the batch that starts next.
    pub(super) fn front(&self) -> Option<&Batch> {
        self.flows.front()?.batches.front()
    }

    /// Adds a new batch.
    pub(super) fn push(&mut self, batch: Batch) {
        self.flow(&batch.job).push_back(batch);
    }

    /// Returns a batch to the front of its flow.
    pub(super) fn push_again(&mut self, batch: Batch) {
        self.flow(&batch.job).push_front(batch);
    }

    /// Returns the batches of a call's flow.
    fn flow(&mut self, job: &Arc<Job>) -> &mut VecDeque<Batch> {
        let at = self.flows.iter().position(|flow| flow.has(job)).unwrap_or_else(|| {
            let is_single = job.is_single();
            let had = if is_single { self.singles } else { job.had.load(Relaxed) };
            let flow = Flow {
                job: (!is_single).then(|| Arc::clone(job)),
                priority: job.priority(),
                start: self.now.max(had),
                batches: VecDeque::with_capacity(1),
            };
            self.insert(flow)
        });
        &mut self.flows[at].batches
    }

    /// Inserts a flow after its equals. Returns its position.
    fn insert(&mut self, flow: Flow) -> usize {
        let at = self.flows.partition_point(|other| other.key() <= flow.key());
        self.flows.insert(at, flow);
        at
    }

    /// Takes up to `items` items of the batch that starts next.
    pub(super) fn pop(&mut self, items: u32) -> Option<Batch> {
        let flow = self.flows.front_mut()?;
        let mut batch = flow.batches.pop_front()?;
        if items < batch.items {
            let front = batch.split_front(items);
            flow.batches.push_front(std::mem::replace(&mut batch, front));
        }
        self.now = self.now.max(flow.start);
        flow.start = flow.start.saturating_add(cost(&batch));
        match &flow.job {
            Some(job) => job.had.store(flow.start, Relaxed),
            None => self.singles = flow.start,
        }
        if flow.batches.is_empty() {
            self.flows.pop_front();
        } else if self.flows.len() > 1
            && let Some(flow) = self.flows.pop_front()
        {
            self.insert(flow);
        }
        Some(batch)
    }

    /// Takes all batches of which this is true.
    pub(super) fn take(&mut self, is_wanted: impl Fn(&Batch) -> bool) -> VecDeque<Batch> {
        let mut taken = VecDeque::new();
        for flow in &mut self.flows {
            let (wanted, kept): (VecDeque<_>, _) =
                std::mem::take(&mut flow.batches).into_iter().partition(&is_wanted);
            flow.batches = kept;
            taken.extend(wanted);
        }
        self.flows.retain(|flow| !flow.batches.is_empty());
        taken
    }

    /// Takes all batches.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Batch> + use<> {
        std::mem::take(&mut self.flows).into_iter().flat_map(|flow| flow.batches)
    }

    /// Takes up to `most` items from the end.
    pub(super) fn split_back(&mut self, most: u32) -> Vec<Batch> {
        let mut taken = Vec::new();
        let mut left = most;
        for flow in self.flows.iter_mut().rev() {
            let mut batches = split_back(&mut flow.batches, left);
            left -= batches.iter().map(|batch| batch.items).sum::<u32>();
            batches.append(&mut taken);
            taken = batches;
        }
        self.flows.retain(|flow| !flow.batches.is_empty());
        taken
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use procpool_worker::attach::Attachments;
    use procpool_worker::function::FnRef;

    use super::*;
    use crate::pool::call::job::Job;
    use crate::pool::options::TaskOptions;

    fn job(priority: i32) -> Arc<Job> {
        let options = TaskOptions::new().priority(priority);
        Job::new(Ok(FnRef::NOWHERE), options, Arc::default(), 0, None, 0)
    }

    fn single(priority: i32) -> Arc<Job> {
        let job = job(priority);
        job.set_single();
        job
    }

    fn batch(job: &Arc<Job>, first: u64, items: u32) -> Batch {
        let bytes = vec![0; 4 * items as usize];
        Batch::new(Arc::clone(job), first, items, 4, &bytes, Attachments::default())
    }

    /// The job and first item of each batch, in the order in which they start, of at most 10 items each.
    fn order(queue: &mut Queue, jobs: &[&Arc<Job>]) -> Vec<(usize, u64)> {
        std::iter::from_fn(|| queue.pop(10))
            .map(|batch| {
                let job = jobs.iter().position(|job| Arc::ptr_eq(job, &batch.job)).unwrap();
                (job, batch.first)
            })
            .collect()
    }

    #[test]
    fn a_call_beside_a_large_one_waits_for_one_batch() {
        let (large, other) = (job(0), single(0));
        let mut queue = Queue::default();
        queue.push(batch(&large, 0, 1000));
        queue.push(batch(&large, 1000, 1000));
        assert_eq!(queue.pop(10).unwrap().first, 0);
        queue.push(batch(&other, 0, 1));
        let order = order(&mut queue, &[&large, &other]);
        assert_eq!(order[0], (1, 0));
        let rest: Vec<_> = (1..200).map(|batch| (0, 10 * batch)).collect();
        assert_eq!(order[1..], rest, "in its order");
    }

    #[test]
    fn two_calls_take_turns_and_neither_is_starved_by_single_ones() {
        let (one, two, calls) = (job(0), job(0), single(0));
        let mut queue = Queue::default();
        for first in 0..3 {
            queue.push(batch(&one, 10 * first, 10));
        }
        for first in 0..3 {
            queue.push(batch(&two, 10 * first, 10));
        }
        for first in 0..3 {
            queue.push(batch(&calls, first, 10));
        }
        let order = order(&mut queue, &[&one, &two, &calls]);
        let first: Vec<_> = order[..3].iter().map(|(job, _)| *job).collect();
        let second: Vec<_> = order[3..6].iter().map(|(job, _)| *job).collect();
        assert_eq!((first, second), (vec![0, 1, 2], vec![0, 1, 2]), "{order:?}");
    }

    #[test]
    fn a_higher_priority_comes_first_and_equals_in_their_order() {
        let (low, usual, high) = (job(-1), job(0), job(5));
        let mut queue = Queue::default();
        queue.push(batch(&usual, 0, 1));
        queue.push(batch(&low, 0, 1));
        queue.push(batch(&high, 0, 1));
        queue.push(batch(&high, 1, 1));
        queue.push(batch(&usual, 1, 1));
        let order = order(&mut queue, &[&low, &usual, &high]);
        assert_eq!(order, [(2, 0), (2, 1), (1, 0), (1, 1), (0, 0)]);
    }

    #[test]
    fn what_comes_back_starts_before_its_equals() {
        let call = job(0);
        let mut queue = Queue::default();
        queue.push(batch(&call, 0, 10));
        queue.push(batch(&call, 10, 10));
        let first = queue.pop(10).unwrap();
        queue.push_again(first);
        assert_eq!(order(&mut queue, &[&call]), [(0, 0), (0, 10)]);
    }
}
