//! Reports a chunk's outcomes to counters, callbacks and observers; the error of a lane with invalid data.

use crate::pool::observe::events::{Deferred, Observers};
use crate::pool::schedule::counters::Counters;
use procpool_worker::error::TransportError;

/// Counters and observers of a chunk's outcomes.
#[derive(Debug)]
pub(super) struct Reporter<'a> {
    pub(super) counters: &'a Counters,
    pub(super) observers: Option<&'a Observers>,
    /// Whether there are observers. Checked before a lock is taken.
    pub(super) is_observed: bool,
}

impl<'a> Reporter<'a> {
    pub(super) fn new(counters: &'a Counters, observers: Option<&'a Observers>) -> Self {
        Self { counters, observers, is_observed: observers.is_some_and(Observers::is_enabled) }
    }

    /// Makes the calls collected under the chunk's lock, which must not be held here.
    pub(super) fn fire(&self, calls: Deferred) {
        if let Some(observers) = self.observers {
            observers.fire(calls);
        }
    }
}

/// The lane holds data that no sane worker writes.
#[derive(Debug)]
pub(super) struct Corrupt;

impl From<Corrupt> for TransportError {
    fn from(_: Corrupt) -> Self {
        Self::Malformed("its lane holds invalid data".to_owned())
    }
}
