//! The values that tasks emit, as their callers receive them.

use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::Stream;
use procpool_worker::codec;
use serde::de::DeserializeOwned;

use crate::pool::call::contain::catch_deserialize;
use crate::pool::call::emitted::RawUpdate;
use crate::pool::call::job::{Job, Timeout};
use crate::pool::schedule::state::PoolState;
use crate::worker_ref::WorkerRef;

pub use crate::pool::call::emitted::UpdateError;

/// A value that a task has emitted with [`emit`](crate::emit).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Update<T> {
    /// The task's id, as in [`Report::id`](crate::Report::id).
    pub id: u64,
    /// The worker that ran it.
    pub worker: Option<WorkerRef>,
    /// The attempt, from 1. A task that is retried emits anew.
    pub attempt: u32,
    /// The value.
    pub value: T,
}

/// Iterator and [`Stream`] over the values that a call's tasks emit, from [`Task::updates`](crate::Task::updates).
///
/// It ends when the call is done and all values were taken. The values of one task come in order. Several
/// iterators of one call share the values.
#[must_use = "iterators are lazy"]
pub struct Updates<T> {
    job: Arc<Job>,
    pool: Arc<PoolState>,
    value: PhantomData<fn() -> T>,
}

impl<T> std::fmt::Debug for Updates<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Updates").field("id", &self.job.offset).finish_non_exhaustive()
    }
}

impl<T: DeserializeOwned> Updates<T> {
    pub(crate) fn new(pool: Arc<PoolState>, job: Arc<Job>) -> Self {
        Self { job, pool, value: PhantomData }
    }

    /// Returns the next value like `next`, but blocks at most for `limit`.
    ///
    /// # Errors
    ///
    /// [`Timeout`] if none arrives in time.
    pub fn next_timeout(
        &mut self,
        limit: Duration,
    ) -> Result<Option<Result<Update<T>, UpdateError>>, Timeout> {
        self.next_by(Instant::now().checked_add(limit))
    }

    fn next_by(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<Result<Update<T>, UpdateError>>, Timeout> {
        if self.pool.forked().is_some() {
            // The workers belong to the original process.
            return Ok(None);
        }
        let taken = self.job.wait_update(deadline)?;
        Ok(taken.map(|taken| taken.and_then(|raw| self.decode(raw))))
    }

    fn decode(&self, raw: RawUpdate) -> Result<Update<T>, UpdateError> {
        let expected = std::any::type_name::<T>();
        if raw.type_name != expected {
            return Err(UpdateError::OtherType { emitted: raw.type_name, expected });
        }
        let value = catch_deserialize(|| codec::decode(&raw.bytes)).map_err(UpdateError::Decode)?;
        let id = self.job.offset + raw.number;
        Ok(Update { id, worker: raw.worker, attempt: raw.attempt, value })
    }
}

impl<T: DeserializeOwned> Iterator for Updates<T> {
    type Item = Result<Update<T>, UpdateError>;

    fn next(&mut self) -> Option<Self::Item> {
        // The only error is a timeout.
        self.next_by(None).unwrap_or(None)
    }
}

impl<T: DeserializeOwned> Updates<T> {
    /// Returns a [`Stream`] of the same values, for async programs.
    pub fn into_stream(self) -> UpdateStream<T> {
        UpdateStream(self)
    }
}

/// Stream over the values that a call's tasks emit, from [`Updates::into_stream`].
#[derive(Debug)]
#[must_use = "streams are lazy"]
pub struct UpdateStream<T>(Updates<T>);

impl<T: DeserializeOwned> Stream for UpdateStream<T> {
    type Item = Result<Update<T>, UpdateError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let updates = &self.0;
        if updates.pool.forked().is_some() {
            return Poll::Ready(None);
        }
        let polled = updates.job.poll_update(context.waker());
        polled.map(|taken| taken.map(|taken| taken.and_then(|raw| updates.decode(raw))))
    }
}
