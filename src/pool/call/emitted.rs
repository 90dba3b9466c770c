//! What a job's tasks have said while they run: the values that nobody has taken yet, and how far a task is.

use std::collections::VecDeque;
use std::task::Waker;

use procpool_worker::note::Progress;

use crate::worker_ref::WorkerRef;

/// Why an update has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// This many older values were dropped, because nobody took them: a call keeps 16 MiB.
    #[error(
        "{0} emitted values were dropped, because nobody took them: call `updates` earlier, or take them faster"
    )]
    Lagged(u64),
    /// The task has emitted another type.
    #[error("the task has emitted a `{emitted}`, not a `{expected}`")]
    OtherType {
        /// The type that was emitted.
        emitted: String,
        /// The type that was asked for.
        expected: &'static str,
    },
    /// The value could not be decoded.
    #[error("an emitted value could not be decoded: {0}")]
    Decode(String),
}

/// An emitted value as it was received.
#[derive(Debug)]
pub(crate) struct RawUpdate {
    /// The item's number in its job.
    pub(crate) number: u64,
    pub(crate) worker: Option<WorkerRef>,
    pub(crate) attempt: u32,
    pub(crate) type_name: String,
    pub(crate) bytes: Vec<u8>,
}

/// The values of a job that nobody has taken yet, and how far its only item is.
#[derive(Default)]
pub(crate) struct UpdateQueue {
    values: VecDeque<RawUpdate>,
    /// What the values take, in bytes.
    bytes: usize,
    /// How many values were dropped before the first.
    dropped: u64,
    /// What an item has said last, with the item's number.
    pub(crate) progress: Option<(u64, Progress)>,
    pub(crate) waker: Option<Waker>,
}

impl UpdateQueue {
    /// The most bytes of values that nobody has taken.
    const MAX_BYTES: usize = 16 << 20;

    fn size(update: &RawUpdate) -> usize {
        size_of::<RawUpdate>() + update.bytes.len() + update.type_name.len()
    }

    /// Adds a value. Drops the oldest ones if there are too many bytes, but not the new one.
    pub(crate) fn push(&mut self, update: RawUpdate) {
        self.bytes += Self::size(&update);
        while self.bytes > Self::MAX_BYTES
            && let Some(oldest) = self.values.pop_front()
        {
            self.bytes -= Self::size(&oldest);
            self.dropped += 1;
        }
        self.values.push_back(update);
    }

    /// Takes the oldest value, or how many are lost before it.
    pub(crate) fn pop(&mut self) -> Option<Result<RawUpdate, UpdateError>> {
        match std::mem::take(&mut self.dropped) {
            0 => {
                let update = self.values.pop_front()?;
                self.bytes -= Self::size(&update);
                Some(Ok(update))
            }
            dropped => Some(Err(UpdateError::Lagged(dropped))),
        }
    }

    /// Takes all values, and how many were dropped.
    pub(crate) fn take(&mut self) -> (Vec<RawUpdate>, u64) {
        self.bytes = 0;
        (std::mem::take(&mut self.values).into(), std::mem::take(&mut self.dropped))
    }

    /// Counts values that were dropped elsewhere.
    pub(crate) fn add_dropped(&mut self, values: u64) {
        self.dropped = self.dropped.saturating_add(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_values_are_dropped_and_counted() {
        let mut queue = UpdateQueue::default();
        let update = |number| RawUpdate {
            number,
            worker: None,
            attempt: 1,
            type_name: String::new(),
            bytes: vec![0; 6 << 20],
        };
        (0..5).for_each(|number| queue.push(update(number)));
        assert!(matches!(queue.pop(), Some(Err(UpdateError::Lagged(3)))));
        let number = |queue: &mut UpdateQueue| match queue.pop() {
            Some(Ok(update)) => Some(update.number),
            _ => None,
        };
        assert_eq!(number(&mut queue), Some(3));
        assert_eq!(number(&mut queue), Some(4));
        assert_eq!((number(&mut queue), queue.bytes), (None, 0));
    }
}
