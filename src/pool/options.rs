//! How tasks are to be run, apart from what they do.

use std::sync::Arc;
use std::time::Duration;

/// Options of tasks, for [`Pool::with_options`](crate::Pool::with_options). What is not set is as the pool has it.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::{Pool, TaskOptions};
///
/// let pool = Pool::new(4)?;
/// let careful = pool.with_options(TaskOptions::new().chunk_size(1).label("parse"));
/// let lengths = careful.map(|line: String| line.len(), ["a".to_owned(), "bc".to_owned()])?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskOptions {
    pub(crate) chunk_size: Option<u32>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retries: Option<u32>,
    pub(crate) label: Option<Arc<str>>,
}

impl TaskOptions {
    /// None is set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends this many items to a worker at once, instead of as many as are worth it. Zero is
    /// understood as one.
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.chunk_size = Some(u32::try_from(items).unwrap_or(u32::MAX).max(1));
        self
    }

    /// Kills the worker of an item that runs for longer than this. It counts for each item, also
    /// within a chunk.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Runs an item again, up to this many times, after its worker died or its time ran out; never
    /// after a panic.
    pub fn retries(mut self, times: u32) -> Self {
        self.retries = Some(times);
        self
    }

    /// A name for what is done, seen in events and logs.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into().into());
        self
    }

    /// These options, and what they leave open from `others`.
    pub(crate) fn or(self, others: &Self) -> Self {
        Self {
            chunk_size: self.chunk_size.or(others.chunk_size),
            timeout: self.timeout.or(others.timeout),
            retries: self.retries.or(others.retries),
            label: self.label.or_else(|| others.label.clone()),
        }
    }
}
