//! Task counters of a pool.

use std::sync::atomic::AtomicU64;

use super::grown::Grown;
use crate::pool::observe::metrics::{LiveDeaths, LiveHistogram};

/// Task counters of a pool.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) restarts: AtomicU64,
    /// How long tasks waited and ran.
    pub(crate) wait: LiveHistogram,
    pub(crate) run: LiveHistogram,
    pub(crate) deaths: LiveDeaths,
    /// Bytes of encoded arguments sent, and of encoded results received.
    pub(crate) argument_bytes: AtomicU64,
    pub(crate) result_bytes: AtomicU64,
    /// Finished tasks by slot.
    pub(crate) slots: Grown<AtomicU64>,
    /// Number of single calls, and of calls with many items.
    pub(crate) single_calls: AtomicU64,
    pub(crate) map_calls: AtomicU64,
}

impl Counters {
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots: Grown::with(slots), ..Self::default() }
    }
}
