//! The results of a call as an iterator.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{DidRun, TaskError};
use crate::pool::call::feed::Feed;
use crate::pool::call::job::Job;
use crate::pool::call::outcome::{Delivery, Outcome, Provenance};
use crate::pool::call::scope::Scope;
use crate::pool::schedule::state::PoolState;
use crate::pool::types::Report;

pub use crate::pool::call::job::Timeout;

/// Order in which [`Results`] are yielded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Input,
    Completion,
}

/// Iterator over results: in input order from [`Pool::imap`](crate::Pool::imap), in completion order from
/// [`Pool::imap_unordered`](crate::Pool::imap_unordered).
///
/// Reads the input lazily, a bounded window ahead of the results taken. If the input iterator panics, `next`
/// yields the earlier results first and then resumes the panic. Dropping the iterator cancels the remaining
/// tasks.
#[must_use = "iterators are lazy: nothing is sent before the first result is taken"]
pub struct Results<I: Iterator, R> {
    feed: Feed<I>,
    order: Order,
    current: Option<Delivery>,
    /// Deliveries that arrived before their turn, by first number.
    early: BTreeMap<u64, Delivery>,
    /// Number of the next result in input order.
    next: u64,
    /// Whether the error of a forked copy was yielded.
    refused: bool,
    /// Keeps the items' shared context in the workers.
    _scope: Option<Scope>,
    result: std::marker::PhantomData<fn() -> R>,
}

impl<I: Iterator, R> std::fmt::Debug for Results<I, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Results")
            .field("order", &self.order)
            .field("read", &self.feed.read)
            .field("taken", &self.feed.taken)
            .finish_non_exhaustive()
    }
}

impl<A, R, I> Results<I, R>
where
    A: Serialize,
    R: DeserializeOwned,
    I: Iterator<Item = A>,
{
    pub(crate) fn new(
        pool: Arc<PoolState>,
        job: Arc<Job>,
        input: I,
        order: Order,
        scope: Option<Scope>,
    ) -> Self {
        Self {
            feed: Feed::new(pool, job, input),
            order,
            current: None,
            early: BTreeMap::new(),
            next: 0,
            refused: false,
            _scope: scope,
            result: std::marker::PhantomData,
        }
    }

    /// Yields a [`Report`] for each result, with its id, worker, timing and attempt.
    pub fn reports(self) -> Reports<I, R> {
        Reports { results: self }
    }

    /// Returns the next result like `next`, but blocks at most for `limit`. Reading the input is not
    /// interrupted.
    ///
    /// # Errors
    ///
    /// [`Timeout`] if no result arrives in time.
    pub fn next_timeout(
        &mut self,
        limit: Duration,
    ) -> Result<Option<Result<R, TaskError>>, Timeout> {
        let outcome = self.outcome_by(Instant::now().checked_add(limit))?;
        Ok(outcome.map(|(outcome, _)| outcome.result))
    }

    fn next_outcome(&mut self) -> Option<(Outcome<R>, Provenance)> {
        // The only error is a timeout.
        self.outcome_by(None).unwrap_or(None)
    }

    fn outcome_by(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<(Outcome<R>, Provenance)>, Timeout> {
        if let Some(kind) = self.feed.pool.forked() {
            if std::mem::replace(&mut self.refused, true) {
                return Ok(None);
            }
            let error = TaskError::new(kind, self.next, None, 0, DidRun::No);
            let outcome = Outcome {
                number: self.next,
                elapsed: Duration::ZERO,
                output: Vec::new(),
                result: Err(error),
            };
            return Ok(Some((outcome, Provenance::NONE)));
        }
        loop {
            if let Some(delivery) = &mut self.current {
                let provenance = delivery.provenance;
                if let Some(outcome) = delivery.next(self.feed.job.offset) {
                    self.next = self.next.max(outcome.number + 1);
                    self.feed.take(1, outcome.number + 1);
                    return Ok(Some((outcome, provenance)));
                }
            }
            self.feed.fill();
            self.current = match self.order {
                Order::Input => self.early.remove(&self.next),
                Order::Completion => None,
            };
            if self.current.is_some() {
                continue;
            }
            match self.feed.job.wait_arrival(deadline)? {
                Some(delivery) if self.order == Order::Completion => self.current = Some(delivery),
                Some(delivery) => drop(self.early.insert(delivery.first, delivery)),
                None => match self.feed.ended.take() {
                    None => {}
                    Some(ended) => {
                        self.feed.ended = Some(Ok(()));
                        match ended {
                            Ok(()) => return Ok(None),
                            Err(payload) => resume_unwind(payload),
                        }
                    }
                },
            }
        }
    }
}

impl<A, R, I> Iterator for Results<I, R>
where
    A: Serialize,
    R: DeserializeOwned,
    I: Iterator<Item = A>,
{
    type Item = Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_outcome().map(|(outcome, _)| outcome.result)
    }
}

impl<I: Iterator, R> Drop for Results<I, R> {
    fn drop(&mut self) {
        let job = &self.feed.job;
        if self.feed.pool.forked().is_none() && !job.is_done() {
            self.feed.pool.cancel(job);
        }
    }
}

/// Iterator over the [`Report`]s of results, from [`Results::reports`].
#[derive(Debug)]
#[must_use = "iterators are lazy: nothing is sent before the first result is taken"]
pub struct Reports<I: Iterator, R> {
    results: Results<I, R>,
}

impl<A, R, I> Iterator for Reports<I, R>
where
    A: Serialize,
    R: DeserializeOwned,
    I: Iterator<Item = A>,
{
    type Item = Report<R>;

    fn next(&mut self) -> Option<Self::Item> {
        let (outcome, provenance) = self.results.next_outcome()?;
        Some(Report::new(outcome, provenance, self.results.feed.job.offset))
    }
}
