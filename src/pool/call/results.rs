//! The results of a call as an iterator, and as a stream.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::Stream;
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
/// tasks. [`into_stream`](Self::into_stream) makes it a stream for async programs.
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

    /// Returns a [`Stream`] of the same results, for async programs.
    ///
    /// `poll_next` waits for no task, but reads the input on the thread that polls: an input that blocks
    /// blocks the runtime there.
    ///
    /// ```no_run
    /// # async fn squares() -> Result<(), Box<dyn std::error::Error>> {
    /// use futures_util::StreamExt;
    ///
    /// let pool = procpool::Pool::new(4)?;
    /// let mut squares = pool.imap(|x: u64| x * x, 0..8).into_stream();
    /// while let Some(square) = squares.next().await {
    ///     println!("{}", square?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    // A type of its own: with both traits on one type, `next` and `map` would be ambiguous wherever
    // `StreamExt` is imported.
    pub fn into_stream(self) -> IntoStream<Self> {
        IntoStream(self)
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
        self.outcome_with(|job| job.wait_delivery(deadline))
    }

    fn poll_outcome(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<(Outcome<R>, Provenance)>> {
        let polled = self.outcome_with(|job| match job.poll_delivery(context.waker()) {
            Poll::Ready(delivery) => Ok(delivery),
            Poll::Pending => Err(Pending),
        });
        match polled {
            Ok(outcome) => Poll::Ready(outcome),
            Err(Pending) => Poll::Pending,
        }
    }

    /// Returns the next outcome. `next_delivery` takes the next delivery of the job; its error ends the wait.
    fn outcome_with<E>(
        &mut self,
        mut next_delivery: impl FnMut(&Job) -> Result<Option<Delivery>, E>,
    ) -> Result<Option<(Outcome<R>, Provenance)>, E> {
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
            if let Some(delivery) = &self.current {
                self.feed.release(delivery);
                continue;
            }
            match next_delivery(&self.feed.job)? {
                Some(delivery) if self.order == Order::Completion => self.current = Some(delivery),
                Some(delivery) => {
                    self.feed.keep(&delivery);
                    self.early.insert(delivery.first, delivery);
                }
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

/// No delivery is there yet.
struct Pending;

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

impl<I: Iterator, R> Reports<I, R> {
    /// Returns a stream of the same reports, like [`Results::into_stream`].
    pub fn into_stream(self) -> IntoStream<Self> {
        IntoStream(self)
    }
}

/// [`Stream`] of results or of their [`Report`]s, from [`Results::into_stream`] and
/// [`Reports::into_stream`]. Independent of the runtime. Dropping the stream cancels the remaining tasks.
#[derive(Debug)]
#[must_use = "streams are lazy: nothing is sent before the first result is taken"]
pub struct IntoStream<T>(T);

// Nothing in it is pinned: the input is advanced through a plain reference.
impl<T> Unpin for IntoStream<T> {}

impl<A, R, I> Stream for IntoStream<Results<I, R>>
where
    A: Serialize,
    R: DeserializeOwned,
    I: Iterator<Item = A>,
{
    type Item = Result<R, TaskError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.0.poll_outcome(context);
        polled.map(|next| next.map(|(outcome, _)| outcome.result))
    }
}

impl<A, R, I> Stream for IntoStream<Reports<I, R>>
where
    A: Serialize,
    R: DeserializeOwned,
    I: Iterator<Item = A>,
{
    type Item = Report<R>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let offset = self.0.results.feed.job.offset;
        let polled = self.0.results.poll_outcome(context);
        polled
            .map(|next| next.map(|(outcome, provenance)| Report::new(outcome, provenance, offset)))
    }
}
