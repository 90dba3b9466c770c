//! Task counters of a pool.

use std::sync::atomic::AtomicU64;

/// Task counters of a pool.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) restarts: AtomicU64,
    /// Finished tasks by slot.
    pub(crate) slots: boxcar::Vec<AtomicU64>,
    /// Number of single calls, and of calls with many items.
    pub(crate) single_calls: AtomicU64,
    pub(crate) map_calls: AtomicU64,
}

impl Counters {
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots: (0..slots).map(|_| AtomicU64::new(0)).collect(), ..Self::default() }
    }
}
