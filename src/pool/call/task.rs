//! The handle on a submitted call: [`Task`].

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use procpool_worker::note::Progress;
use procpool_worker::prefault::Prefault;
use serde::de::DeserializeOwned;

use crate::error::{DidRun, TaskError, TaskErrorKind};
use crate::pool::call::job::Job;
use crate::pool::call::outcome::Delivery;
use crate::pool::call::updates::Updates;
use crate::pool::observe::callbacks::contain;
use crate::pool::observe::events::{Deferred, EventKind};
use crate::pool::schedule::state::PoolState;
use crate::pool::types::Report;

/// A submitted call: one task ([`Pool::apply_async`](crate::Pool::apply_async)), or one per item
/// ([`Pool::map_async`](crate::Pool::map_async), where `R` is a `Vec`).
///
/// Also a [`Future`], independent of the runtime. Dropping the handle doesn't cancel the task, but discards
/// its result; see [`cancel_on_drop`](Self::cancel_on_drop).
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = procpool::Pool::new(2)?;
/// let task = pool.apply_async(|n: u64| (1..=n).product::<u64>(), 20);
/// println!("meanwhile…");
/// println!("20! = {}", task.get()?);
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping a task discards its result; use `drop` if that is intended"]
pub struct Task<R> {
    job: Arc<Job>,
    pool: Arc<PoolState>,
    /// Assembles the result from the deliveries.
    collect: fn(&Job) -> Report<R>,
    /// Whether dropping the handle cancels the task.
    is_scoped: bool,
    result: PhantomData<fn() -> R>,
}

/// Cancels a [`Task`], also from another thread; from [`Task::canceller`].
#[derive(Clone)]
pub struct Canceller {
    job: Arc<Job>,
    pool: Arc<PoolState>,
}

impl Canceller {
    /// Cancels the task, like [`Task::cancel`].
    pub fn cancel(&self) {
        self.pool.cancel(&self.job);
    }
}

impl std::fmt::Debug for Canceller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Canceller").field("id", &self.job.offset).finish_non_exhaustive()
    }
}

impl<R> Drop for Task<R> {
    fn drop(&mut self) {
        if self.is_scoped && self.pool.forked().is_none() && !self.job.is_done() {
            self.cancel();
        }
    }
}

impl<R> std::fmt::Debug for Task<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task")
            .field("id", &self.job.offset)
            .field("is_ready", &self.is_ready())
            .finish_non_exhaustive()
    }
}

impl<R> Task<R> {
    /// Blocks until the result is there and returns it.
    ///
    /// # Errors
    ///
    /// The task's failure; for many items, that of the first failed item in input order.
    pub fn get(self) -> Result<R, TaskError> {
        self.report().result
    }

    /// Blocks until the result is there, but at most for `limit`. Returns `None` on timeout: the task
    /// continues, and the method can be called again. After the result has been returned, returns
    /// [`TaskErrorKind::AlreadyTaken`].
    pub fn get_timeout(&mut self, limit: Duration) -> Option<Result<R, TaskError>> {
        if self.pool.forked().is_some() {
            return Some(self.take().result);
        }
        // A limit that overflows the clock means no deadline.
        let deadline = Instant::now().checked_add(limit);
        self.job.wait(deadline).then(|| self.take().result)
    }

    /// Takes the result of a finished task. Only the first call returns it.
    fn take(&self) -> Report<R> {
        match self.pool.forked() {
            Some(kind) => empty_report(
                &self.job,
                Err(TaskError::new(kind, self.job.offset, None, 0, DidRun::Maybe)),
            ),
            None => take(&self.job, self.collect),
        }
    }

    /// Returns whether the result is there.
    pub fn is_ready(&self) -> bool {
        self.pool.forked().is_some() || self.job.is_done()
    }

    /// Returns how far the task is: what it said last with [`progress`](crate::progress()), or `None` if it has
    /// said nothing. Of a call with many items, returns how many are settled.
    pub fn progress(&self) -> Option<Progress> {
        if self.pool.forked().is_some() { None } else { self.job.progress() }
    }

    /// Returns the values that the call's tasks emit with [`emit`](crate::emit), while they run.
    ///
    /// What a task emitted before it crashed is among them. A call keeps up to 16 MiB of values that nobody has
    /// taken, and drops older ones; then the next one is [`UpdateError::Lagged`](crate::UpdateError::Lagged).
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// fn search(range: std::ops::Range<u64>) -> usize {
    ///     let (mut found, end) = (0, range.end);
    ///     for n in range {
    ///         procpool::progress(n, end);
    ///         if (2..n).take_while(|d| d * d <= n).all(|d| n % d > 0) {
    ///             found += 1;
    ///             procpool::emit(&n).ok();
    ///         }
    ///     }
    ///     found
    /// }
    ///
    /// let pool = procpool::Pool::new(2)?;
    /// let task = pool.apply_async(search, 2..1_000_000);
    /// for prime in task.updates::<u64>() {
    ///     println!("{}, at {:?}", prime?.value, task.progress());
    /// }
    /// println!("{} primes", task.get()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn updates<T: DeserializeOwned>(&self) -> Updates<T> {
        Updates::new(Arc::clone(&self.pool), Arc::clone(&self.job))
    }

    /// Cancels the task with [`TaskErrorKind::Cancelled`]. Queued items never start; running items are killed
    /// with their workers; finished items keep their results.
    pub fn cancel(&self) {
        self.pool.cancel(&self.job);
    }

    /// Returns a handle that cancels the task. It can be moved to another thread, or used while the task is
    /// awaited.
    pub fn canceller(&self) -> Canceller {
        Canceller { job: Arc::clone(&self.job), pool: Arc::clone(&self.pool) }
    }

    /// Cancels the task when its handle is dropped, for futures that may be dropped before they are ready, as
    /// in a `select!`.
    pub fn cancel_on_drop(mut self) -> Self {
        self.is_scoped = true;
        self
    }

    /// Returns whether the task is done. If not, the next delivery wakes `waker`.
    pub(crate) fn poll_ready(&self, waker: &Waker) -> bool {
        self.pool.forked().is_some() || self.job.poll_done(waker)
    }

    /// Blocks until the result is there and returns it with worker, timing and attempt. For many items, times
    /// are sums, and worker and attempt are the first item's.
    pub fn report(self) -> Report<R> {
        self.wait_report()
    }

    /// Like [`report`](Self::report), but keeps the handle.
    pub(crate) fn wait_report(&self) -> Report<R> {
        if self.pool.forked().is_none() {
            self.job.wait(None);
        }
        self.take()
    }

    /// Calls `callback` once with the result, on the pool's callback thread. The callback may use the pool. A
    /// panic in it is reported as [`EventKind::CallbackPanicked`] and otherwise ignored. Callbacks run one at
    /// a time: a callback that waits for another deadlocks.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = procpool::Pool::new(2)?;
    /// pool.apply_async(|x: u32| x + 1, 41).on_done(|result| println!("{result:?}"));
    /// pool.join();
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_done(mut self, callback: impl FnOnce(Result<R, TaskError>) + Send + 'static)
    where
        R: 'static,
    {
        if self.pool.forked().is_some() {
            // The callback thread belongs to the original process.
            return callback(self.take().result);
        }
        // The callback owns the task from here on.
        self.is_scoped = false;
        let (job, collect) = (Arc::clone(&self.job), self.collect);
        let observers = self.pool.config.observers.clone();
        // Started here and not on completion: on a driver's thread, a callback that waits for another task
        // could wait for itself. Without the thread the callback runs there nevertheless, which is better
        // than never.
        let _ = observers.callbacks.start();
        let when_done = Box::new(move || {
            let callbacks = observers.callbacks.clone();
            callbacks.call(Box::new(move || {
                if let Err(message) = contain(|| callback(take(&job, collect).result)) {
                    observers.emit(|| EventKind::CallbackPanicked { message });
                }
            }));
        });
        let mut calls = Deferred::default();
        self.job.when_done(when_done, &mut calls);
        self.pool.config.observers.fire(calls);
    }
}

impl<R: DeserializeOwned> Task<R> {
    /// Creates the task of a job with one item.
    pub(crate) fn of_one(pool: Arc<PoolState>, job: Arc<Job>) -> Self {
        Self { job, pool, collect: collect_one, is_scoped: false, result: PhantomData }
    }
}

impl<R: DeserializeOwned> Task<Vec<R>> {
    /// Creates the task of a job with any number of items.
    pub(crate) fn of_many(pool: Arc<PoolState>, job: Arc<Job>) -> Self {
        Self { job, pool, collect: collect_many, is_scoped: false, result: PhantomData }
    }
}

impl<R> Future for Task<R> {
    type Output = Result<R, TaskError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.poll_ready(context.waker()) {
            Poll::Ready(self.take().result)
        } else {
            Poll::Pending
        }
    }
}

/// Collects the job's result. The second call returns [`TaskErrorKind::AlreadyTaken`].
fn take<R>(job: &Job, collect: fn(&Job) -> Report<R>) -> Report<R> {
    if !job.taken.swap(true, Relaxed) {
        return collect(job);
    }
    let error = TaskError::new(TaskErrorKind::AlreadyTaken, job.offset, None, 0, DidRun::Yes);
    empty_report(job, Err(error))
}

/// A report without a worker.
fn empty_report<R>(job: &Job, result: Result<R, TaskError>) -> Report<R> {
    Report {
        id: job.offset,
        worker: None,
        attempt: 0,
        queued: Duration::ZERO,
        elapsed: Duration::ZERO,
        output: Vec::new(),
        result,
    }
}

/// Collects the outcome of a job with one item.
pub(crate) fn collect_one<R: DeserializeOwned>(job: &Job) -> Report<R> {
    let next = job.take_delivery().and_then(|mut delivery| {
        let provenance = delivery.provenance;
        Some(Report::new(delivery.next(job.offset)?, provenance, job.offset))
    });
    next.expect("a task's result is taken once, after the task is done")
}

/// Takes all deliveries of a job, in input order.
fn deliveries(job: &Job) -> Vec<Delivery> {
    let mut deliveries: Vec<Delivery> = std::iter::from_fn(|| job.take_delivery()).collect();
    deliveries.sort_unstable_by_key(|delivery| delivery.first);
    deliveries
}

/// Collects each outcome of a job with many items, in input order.
pub(crate) fn collect_each<R: DeserializeOwned>(job: &Job) -> Vec<Result<R, TaskError>> {
    let mut results = Vec::new();
    for mut delivery in deliveries(job) {
        results
            .extend(std::iter::from_fn(|| delivery.next(job.offset)).map(|outcome| outcome.result));
    }
    results
}

/// Collects the outcomes of a job with many items into one report, in input order.
fn collect_many<R: DeserializeOwned>(job: &Job) -> Report<Vec<R>> {
    let deliveries = deliveries(job);
    let items: usize = deliveries.iter().map(|delivery| delivery.items as usize).sum();
    let (results, mut prefault) = Prefault::new(items);
    let mut report = empty_report(job, Ok(results));
    for mut delivery in deliveries {
        let provenance = delivery.provenance;
        if report.worker.is_none() {
            (report.worker, report.attempt) = (provenance.worker, provenance.attempt);
        }
        report.queued += provenance.queued;
        if let Ok(results) = &mut report.result {
            prefault.ensure(results, delivery.items as usize);
        }
        while let Some(outcome) = delivery.next::<R>(job.offset) {
            report.elapsed += outcome.elapsed;
            report.output.extend(outcome.output);
            match (&mut report.result, outcome.result) {
                (Ok(results), Ok(result)) => results.push(result),
                (Ok(_), Err(error)) => report.result = Err(error),
                (Err(_), _) => {}
            }
        }
    }
    report
}
