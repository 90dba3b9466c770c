//! The numbers of jobs and workers that users see. They start at 1; the pool's positions start at
//! 0.
//!
//! A skipped input keeps its number. Inputs of a pipe are several streams of the pool, and
//! positions start at 0 in each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use procpool::{Event, EventKind};

/// The numbers of inputs, by the positions of their jobs in the run.
#[derive(Clone, Default)]
pub(super) struct Numbers(Arc<Mutex<Vec<Gap>>>);

/// From this position on, the number exceeds the position by `more`.
struct Gap {
    id: u64,
    more: u64,
}

impl Numbers {
    /// Records the input's number of a job. Positions must come in order.
    pub(super) fn note(&self, id: u64, number: u64) {
        let mut gaps = self.gaps();
        let more = number - id;
        if gaps.last().is_none_or(|last| last.more != more) {
            gaps.push(Gap { id, more });
        }
    }

    /// Returns the number of the job at this position.
    fn of(&self, id: u64) -> u64 {
        let gaps = self.gaps();
        let next = gaps.partition_point(|gap| gap.id <= id);
        id + next.checked_sub(1).map_or(1, |last| gaps[last].more)
    }

    fn gaps(&self) -> MutexGuard<'_, Vec<Gap>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Translates events of the pool to the numbers that users see.
pub(super) struct Numbering {
    numbers: Numbers,
    /// For each slot, where in the run the stream of its last chunk starts.
    streams: HashMap<usize, u64>,
}

impl Numbering {
    pub(super) fn new(numbers: Numbers) -> Self {
        Self { numbers, streams: HashMap::new() }
    }

    /// Translates an event. Must see every event.
    pub(super) fn of(&mut self, event: &Event) -> Event {
        let mut event = event.clone();
        match &mut event.kind {
            EventKind::Assigned { slot, id, label, .. } => {
                // The label belongs to the run, not to the user.
                let first = label.take().and_then(|label| label.parse().ok()).unwrap_or(0);
                self.streams.insert(*slot, first);
                *id = self.numbers.of(first + *id);
                *slot += 1;
            }
            EventKind::Finished { slot, id, .. }
            | EventKind::Retried { slot, id, .. }
            | EventKind::Progressed { slot, id, .. }
            | EventKind::Emitted { slot, id, .. }
            | EventKind::Logged { slot, id: Some(id), .. } => {
                *id = self.numbers.of(self.streams.get(slot).unwrap_or(&0) + *id);
                *slot += 1;
            }
            EventKind::Spawned { slot, .. }
            | EventKind::Ready { slot, .. }
            | EventKind::StartFailed { slot, .. }
            | EventKind::Logged { slot, id: None, .. }
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
