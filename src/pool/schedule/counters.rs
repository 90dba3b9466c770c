//! What has happened in a pool so far, in tasks.

use std::sync::atomic::AtomicU64;

/// Counts of a pool.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) restarts: AtomicU64,
    /// Outcomes by slot.
    pub(crate) slots: Box<[AtomicU64]>,
    /// Numbers the pool's single calls, and its others.
    pub(crate) single_calls: AtomicU64,
    pub(crate) map_calls: AtomicU64,
}

impl Counters {
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots: (0..slots).map(|_| AtomicU64::new(0)).collect(), ..Self::default() }
    }
}
