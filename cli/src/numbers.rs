//! What people call jobs and workers: by numbers from 1, where the pool counts positions from 0.
//!
//! An input that a journal leaves out has its number all the same, and inputs that come by a pipe are
//! streams of the pool one after another, in each of which the positions begin again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use procpool::{Event, EventKind};

/// The numbers of the inputs that jobs are made of, by the positions of the jobs in the run.
#[derive(Clone, Default)]
pub(super) struct Numbers(Arc<Mutex<Vec<Gap>>>);

/// From this position on, so much more than the position is the number.
struct Gap {
    id: u64,
    more: u64,
}

impl Numbers {
    /// The job of this position is that of this input. Positions come in their order.
    pub(super) fn note(&self, id: u64, number: u64) {
        let mut gaps = self.gaps();
        let more = number - id;
        if gaps.last().is_none_or(|last| last.more != more) {
            gaps.push(Gap { id, more });
        }
    }

    /// The number of the job of this position.
    fn of(&self, id: u64) -> u64 {
        let gaps = self.gaps();
        let next = gaps.partition_point(|gap| gap.id <= id);
        id + next.checked_sub(1).map_or(1, |last| gaps[last].more)
    }

    fn gaps(&self) -> MutexGuard<'_, Vec<Gap>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events of a pool, with the numbers that people see.
pub(super) struct Numbering {
    numbers: Numbers,
    /// The position in the run at which the stream begins that each slot was sent something of last.
    streams: HashMap<usize, u64>,
}

impl Numbering {
    pub(super) fn new(numbers: Numbers) -> Self {
        Self { numbers, streams: HashMap::new() }
    }

    /// Must be told of each event.
    pub(super) fn of(&mut self, event: &Event) -> Event {
        let mut event = event.clone();
        match &mut event.kind {
            EventKind::Assigned { slot, id, label, .. } => {
                // The label is the run's own.
                let first = label.take().and_then(|label| label.parse().ok()).unwrap_or(0);
                self.streams.insert(*slot, first);
                *id = self.numbers.of(first + *id);
                *slot += 1;
            }
            EventKind::Finished { slot, id, .. } | EventKind::Retried { slot, id, .. } => {
                *id = self.numbers.of(self.streams.get(slot).unwrap_or(&0) + *id);
                *slot += 1;
            }
            EventKind::Spawned { slot, .. }
            | EventKind::Ready { slot, .. }
            | EventKind::StartFailed { slot, .. }
            | EventKind::Lost { slot, .. }
            | EventKind::Retired { slot, .. } => *slot += 1,
            _ => {}
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_the_inputs_that_are_left_out_too() {
        let numbers = Numbers::default();
        for (id, number) in [(0, 1), (1, 2), (2, 5), (3, 6), (4, 9)] {
            numbers.note(id, number);
        }
        assert_eq!([0, 1, 2, 3, 4, 5].map(|id| numbers.of(id)), [1, 2, 5, 6, 9, 10]);
    }
}
