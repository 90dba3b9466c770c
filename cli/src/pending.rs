//! The jobs that were sent and have no result yet.
//!
//! A result comes back with the position of its input, not with the input itself: that would make
//! every result longer. So the inputs of pending jobs are kept here. The pool's window bounds how many.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::key::JobKey;
use crate::tasks::Input;

/// What is known of a job that is under way.
pub(super) struct PendingJob {
    pub(super) input: Input,
    /// The number of the input, from 1.
    pub(super) number: u64,
    pub(super) key: Option<JobKey>,
    /// When it was read, on the monotonic clock in nanoseconds.
    pub(super) read: u64,
}

/// The jobs of one stream that are under way, by their position in it. The pool reads the stream on
/// the thread that its results are taken on, so there is nothing to lock.
#[derive(Clone, Default)]
pub(super) struct InFlight(Rc<RefCell<HashMap<u64, PendingJob>>>);

impl InFlight {
    /// These jobs; what is known of them is kept from when they are read.
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

    /// What was kept of a job that came back.
    pub(super) fn take(&self, position: u64) -> PendingJob {
        // A pool that reports a position twice, or one that isn't, would be shown as what it is.
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
