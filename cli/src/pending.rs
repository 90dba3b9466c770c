//! The jobs that were sent and have no result yet.
//!
//! A result returns with the position of its input, not with the input itself, which would make
//! every result longer. So the inputs of pending jobs are kept here. The pool's window bounds their
//! number.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::key::JobKey;
use crate::tasks::Input;

/// A job that has no result yet.
pub(super) struct PendingJob {
    pub(super) input: Input,
    /// The number of the input, from 1.
    pub(super) number: u64,
    pub(super) key: Option<JobKey>,
    /// When it was read: nanoseconds on the monotonic clock.
    pub(super) read: u64,
}

/// The pending jobs of one stream, by their position in it. The pool reads a stream and returns its
/// results on the same thread, so no lock is needed.
#[derive(Clone, Default)]
pub(super) struct InFlight(Rc<RefCell<HashMap<u64, PendingJob>>>);

impl InFlight {
    /// Iterates over the jobs, and keeps each one when it is read.
    pub(super) fn keeping<J>(
        &self,
        jobs: impl Iterator<Item = (J, PendingJob)>,
    ) -> impl Iterator<Item = J> {
        let in_flight = self.clone();
        let mut next = 0;
        jobs.map(move |(job, kept)| {
            in_flight.0.borrow_mut().insert(next, kept);
            next += 1;
            job
        })
    }

    /// Removes and returns a job that has a result.
    pub(super) fn take(&self, position: u64) -> PendingJob {
        // A position that is unknown or was reported twice would be a bug of the pool: shown as
        // "?".
        let unknown = || PendingJob { input: Input::from("?"), number: 0, key: None, read: 0 };
        self.0.borrow_mut().remove(&position).unwrap_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_kept_from_its_reading_until_its_result_is_there() {
        let in_flight = InFlight::default();
        let kept = |input: i64| PendingJob { input: input.into(), number: 0, key: None, read: 0 };
        let mut jobs = in_flight.keeping([5, 6].map(|input| ((), kept(input))).into_iter());
        jobs.next();
        assert_eq!(in_flight.0.borrow().len(), 1);
        jobs.next();
        assert_eq!([1, 0].map(|position| in_flight.take(position).input), [6, 5].map(Input::from));
        assert!(in_flight.0.borrow().is_empty());
    }
}
