//! The handle on something that was submitted: [`Task`].

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use procpool_worker::prefault::Prefault;
use serde::de::DeserializeOwned;

use crate::error::{DidRun, TaskError, TaskErrorKind};
use crate::pool::call::job::Job;
use crate::pool::call::outcome::Delivery;
use crate::pool::observe::callbacks::contain;
use crate::pool::observe::events::{Deferred, EventKind};
use crate::pool::schedule::state::PoolState;
use crate::pool::types::Report;

/// Something that was submitted: one call ([`Pool::apply_async`](crate::Pool::apply_async)), or one
/// over many items ([`Pool::map_async`](crate::Pool::map_async), where `R` is a `Vec`).
///
/// It is a [`Future`] too, which needs no particular runtime. A task whose handle is dropped goes
/// on; nobody learns of its result then.
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
#[must_use = "the result is lost with the handle; use `drop` where that is meant"]
pub struct Task<R> {
    job: Arc<Job>,
    pool: Arc<PoolState>,
    /// Makes the result of what has arrived.
    collect: fn(&Job) -> Report<R>,
    /// Whether dropping the handle cancels the task.
    is_scoped: bool,
    result: PhantomData<fn() -> R>,
}

/// Cancels a task from elsewhere, from [`Task::canceller`].
#[derive(Clone)]
pub struct Canceller {
    job: Arc<Job>,
    pool: Arc<PoolState>,
}

impl Canceller {
    /// As [`Task::cancel`].
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
    /// Waits for the result.
    ///
    /// # Errors
    ///
    /// What became of the task, if it has no answer; of many, the first by position.
    pub fn get(self) -> Result<R, TaskError> {
        self.report().result
    }

    /// Waits for the result, for at most `limit`; `None` means that there is none yet. The task goes
    /// on and can be asked again. Once the result has been given, there is no other: then this gives
    /// [`TaskErrorKind::AlreadyTaken`].
    pub fn get_timeout(&mut self, limit: Duration) -> Option<Result<R, TaskError>> {
        if self.pool.forked().is_some() {
            return Some(self.take().result);
        }
        // A limit that can't be added to the time is none.
        let deadline = Instant::now().checked_add(limit);
        self.job.wait(deadline).then(|| self.take().result)
    }

    /// The result of a task that is done, once.
    fn take(&self) -> Report<R> {
        match self.pool.forked() {
            Some(kind) => empty_report(
                &self.job,
                Err(TaskError::new(kind, self.job.offset, None, 0, DidRun::Maybe)),
            ),
            None => take(&self.job, self.collect),
        }
    }

    /// Whether the result is there.
    pub fn is_ready(&self) -> bool {
        self.pool.forked().is_some() || self.job.is_done()
    }

    /// Ends it with [`TaskErrorKind::Cancelled`]: what is queued is
    /// never started, what is running is ended with its worker, what is done stays done.
    pub fn cancel(&self) {
        self.pool.cancel(&self.job);
    }

    /// Returns a handle that cancels the task, to be moved to another thread or kept while the task is
    /// awaited.
    pub fn canceller(&self) -> Canceller {
        Canceller { job: Arc::clone(&self.job), pool: Arc::clone(&self.pool) }
    }

    /// Makes the task one that is cancelled when its handle is dropped: for a future that may be dropped
    /// before it is ready, as the branches of a `select!` are.
    pub fn cancel_on_drop(mut self) -> Self {
        self.is_scoped = true;
        self
    }

    /// Returns whether the task is done; if not, `waker` is woken at the next arrival.
    pub(crate) fn poll_ready(&self, waker: &Waker) -> bool {
        self.pool.forked().is_some() || self.job.poll_done(waker)
    }

    /// Waits for the result and gives it with its PID, times and attempt. Of many items, the times
    /// are sums and the rest is the first item's.
    pub fn report(self) -> Report<R> {
        self.wait_report()
    }

    /// As [`report`](Self::report), of a handle that is still needed.
    pub(crate) fn wait_report(&self) -> Report<R> {
        if self.pool.forked().is_none() {
            self.job.wait(None);
        }
        self.take()
    }

    /// Deferred `callback` with the result, once, on the thread that the pool has for callbacks. A
    /// callback may use the pool. A panic in it harms nothing and is told as
    /// [`EventKind::CallbackPanicked`]. The thread calls one callback at a time: one that waits for
    /// another waits for ever.
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
            // The callbacks' thread is the other process's.
            return callback(self.take().result);
        }
        // The callback has the task from here on.
        self.is_scoped = false;
        let (job, collect) = (Arc::clone(&self.job), self.collect);
        let observers = self.pool.config.observers.clone();
        // Here rather than at its end: on a driver's thread a callback that waits for another task
        // could wait for itself. Where there is no thread, that is still better than never.
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
    /// Of a job with one item.
    pub(crate) fn of_one(pool: Arc<PoolState>, job: Arc<Job>) -> Self {
        Self { job, pool, collect: collect_one, is_scoped: false, result: PhantomData }
    }
}

impl<R: DeserializeOwned> Task<Vec<R>> {
    /// Of a job with any number of items.
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

/// What has arrived, made a result by `collect`; the second time, an error that says so.
fn take<R>(job: &Job, collect: fn(&Job) -> Report<R>) -> Report<R> {
    if !job.taken.swap(true, Relaxed) {
        return collect(job);
    }
    let error = TaskError::new(TaskErrorKind::AlreadyTaken, job.offset, None, 0, DidRun::Yes);
    empty_report(job, Err(error))
}

/// A report in which no worker has a part yet.
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

/// The outcome of a job with one item.
pub(crate) fn collect_one<R: DeserializeOwned>(job: &Job) -> Report<R> {
    let next = job.take_arrival().and_then(|mut arrival| {
        let provenance = arrival.provenance;
        Some(Report::new(arrival.next(job.offset)?, provenance, job.offset))
    });
    next.expect("a task's result is taken once, after the task is done")
}

/// What has arrived of a job, in order.
fn deliveries(job: &Job) -> Vec<Delivery> {
    let mut deliveries: Vec<Delivery> = std::iter::from_fn(|| job.take_arrival()).collect();
    deliveries.sort_unstable_by_key(|arrival| arrival.first);
    deliveries
}

/// Each outcome of a job with many items, in order.
pub(crate) fn collect_each<R: DeserializeOwned>(job: &Job) -> Vec<Result<R, TaskError>> {
    let mut results = Vec::new();
    for mut arrival in deliveries(job) {
        results
            .extend(std::iter::from_fn(|| arrival.next(job.offset)).map(|outcome| outcome.result));
    }
    results
}

/// The outcomes of a job with many items collects_all, in order.
fn collect_many<R: DeserializeOwned>(job: &Job) -> Report<Vec<R>> {
    let deliveries = deliveries(job);
    let items: usize = deliveries.iter().map(|arrival| arrival.items as usize).sum();
    let (results, mut prefault) = Prefault::new(items);
    let mut report = empty_report(job, Ok(results));
    for mut arrival in deliveries {
        let provenance = arrival.provenance;
        if report.worker.is_none() {
            (report.worker, report.attempt) = (provenance.worker, provenance.attempt);
        }
        report.queued += provenance.queued;
        if let Ok(results) = &mut report.result {
            prefault.ensure(results, arrival.items as usize);
        }
        while let Some(outcome) = arrival.next::<R>(job.offset) {
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
