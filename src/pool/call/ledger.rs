//! Tracks which items of a job are open. Each id is reserved once and settled once; a second settlement has
//! no effect. This makes each outcome unique, whatever races.

use std::collections::VecDeque;
use std::ops::Range;

/// Open items as a sliding bit window that advances as the oldest are settled. With a bounded number of open
/// items, its size stays bounded for any number of items.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Id of the first bit; a multiple of 64.
    base: u64,
    /// A bit is set while its item is open.
    words: VecDeque<u64>,
    /// Next id to reserve.
    end: u64,
    open: u64,
}

impl Ledger {
    /// Reserves `items` new ids and returns the first.
    pub(crate) fn reserve(&mut self, items: u64) -> u64 {
        let first = self.end;
        if self.words.is_empty() {
            self.base = first / 64 * 64;
        }
        self.end += items;
        let words = (self.end - self.base).div_ceil(64) as usize;
        self.words.resize(words, 0);
        for (word, mask) in masks(self.base, first..self.end) {
            self.words[word] |= mask;
        }
        self.open += items;
        first
    }

    /// Settles the open ids in `ids` and returns how many there were.
    pub(crate) fn settle(&mut self, ids: Range<u64>) -> u64 {
        let ids = ids.start.max(self.base)..ids.end.min(self.end);
        let mut settled = 0;
        if !ids.is_empty() {
            for (word, mask) in masks(self.base, ids) {
                settled += u64::from((self.words[word] & mask).count_ones());
                self.words[word] &= !mask;
            }
        }
        self.open -= settled;
        while self.words.front() == Some(&0) {
            self.words.pop_front();
            self.base += 64;
        }
        settled
    }

    /// Returns the number of items that were reserved.
    pub(crate) fn reserved(&self) -> u64 {
        self.end
    }

    /// Returns the number of open items.
    pub(crate) fn open(&self) -> u64 {
        self.open
    }
}

/// Returns the words that hold `ids`, with the mask of their bits.
fn masks(base: u64, ids: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let (start, end) = (ids.start - base, ids.end - base);
    (start / 64..end.div_ceil(64)).map(move |word| {
        let low = start.saturating_sub(word * 64).min(64);
        let high = (end - word * 64).min(64);
        let below = |bits: u64| if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        (word as usize, below(high) & !below(low))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Debug, Clone)]
    enum Step {
        Enter(u64),
        Settle(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => (0..200u64).prop_map(Step::Enter),
            2 => (0..600u64, 0..150u64).prop_map(|(start, len)| Step::Settle(start, len)),
        ]
    }

    proptest! {
        #[test]
        fn each_id_is_settled_once(steps in prop::collection::vec(step(), 0..60)) {
            let mut ledger = Ledger::default();
            let mut open = BTreeSet::new();
            let mut end = 0;
            for step in steps {
                match step {
                    Step::Enter(items) => {
                        prop_assert_eq!(ledger.reserve(items), end);
                        open.extend(end..end + items);
                        end += items;
                    }
                    Step::Settle(start, len) => {
                        let before = open.len();
                        open.retain(|id| !(start..start + len).contains(id));
                        let settled = ledger.settle(start..start + len);
                        prop_assert_eq!(settled as usize, before - open.len());
                    }
                }
                prop_assert_eq!(ledger.open() as usize, open.len());
                prop_assert_eq!(ledger.end, end);
                prop_assert!(ledger.words.len() as u64 * 64 <= end.saturating_sub(ledger.base) + 64);
            }
        }
    }
}
