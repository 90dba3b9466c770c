//! Per-task options: how tasks run, apart from their function.

use std::sync::Arc;
use std::time::Duration;

/// Task options, for [`Pool::with_options`](crate::Pool::with_options). Unset options keep the pool's values.
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
    pub(crate) priority: Option<i32>,
}

impl TaskOptions {
    /// Creates options with nothing set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends `items` items to a worker at once, instead of an adaptive number. Zero means 1.
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.chunk_size = Some(u32::try_from(items).unwrap_or(u32::MAX).max(1));
        self
    }

    /// Kills the worker if an item runs longer than `limit`. The limit applies to each item, also within a
    /// chunk. The item fails with [`TaskErrorKind::TimedOut`](crate::TaskErrorKind::TimedOut).
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Retries an item up to `times` times after its worker died or it timed out. A panic is never retried.
    pub fn retries(mut self, times: u32) -> Self {
        self.retries = Some(times);
        self
    }

    /// Starts queued tasks of a higher priority before those of a lower one; running tasks go on. Default: 0.
    ///
    /// Among equals, calls share the workers: each call with many items, and all single calls together, get the same part
    /// of their time.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Names the tasks in events and logs.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into().into());
        self
    }

    /// Returns these options, with unset ones taken from `others`.
    pub(crate) fn or(self, others: &Self) -> Self {
        Self {
            chunk_size: self.chunk_size.or(others.chunk_size),
            timeout: self.timeout.or(others.timeout),
            retries: self.retries.or(others.retries),
            label: self.label.or_else(|| others.label.clone()),
            priority: self.priority.or(others.priority),
        }
    }
}
