//! Measured cost of a function's items, and chunk sizes derived from it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Estimated run time of a function's items, as measured by the workers.
#[derive(Debug, Default)]
pub(crate) struct CostEstimate {
    /// Nanoseconds per item: a moving average, 0 while unknown.
    nanos: AtomicU64,
    /// Nanoseconds per item without interference: falls immediately, rises slowly.
    least: AtomicU64,
    /// Number of measured items.
    seen: AtomicU64,
}

impl CostEstimate {
    /// Target duration of a chunk, in nanoseconds. Sending a chunk and waking up for its reply costs 20 to 50
    /// µs of CPU time, so the overhead is a few per cent. Callers see results at the end of a chunk or after
    /// its first millisecond, whichever comes first, so the delay is not noticeable.
    pub(crate) const CHUNK: u64 = 1_000_000;

    /// Target duration for a job that collects all results before it returns any: no caller sees a result
    /// earlier, and other workers steal items that turn out slow.
    pub(crate) const LONG_CHUNK: u64 = 4_000_000;

    /// Work shorter than this, in nanoseconds, is not worth its own chunk or another worker: it finishes
    /// sooner where it is than another worker wakes up.
    pub(crate) const MIN_WORTH_A_WAKE: u64 = 100_000;

    /// Cost of waking a worker, in nanoseconds.
    const WAKE_COST: u64 = 20_000;

    /// Maximum number of items in an adaptively sized chunk.
    const MAX_CHUNK: u32 = 1 << 16;

    /// Records that `items` took `nanos` in total.
    pub(crate) fn observe(&self, items: u64, nanos: u64) {
        if items == 0 {
            return;
        }
        let each = (nanos / items).max(1);
        let before = self.nanos.load(Relaxed);
        // Rises immediately if the total is significant: a chunk that is too long delays results, one that is
        // too short costs little. Otherwise averages by the number of items, with a quarter of a chunk as the
        // weight of the past: a few items' time may include a page fault or a cold cache.
        let next = if before == 0 || (each > before && nanos >= Self::CHUNK / 16) {
            each
        } else {
            let weight = (Self::CHUNK / 4 / before).max(1);
            let sum = before.saturating_mul(weight).saturating_add(nanos);
            (sum / weight.saturating_add(items)).max(1)
        };
        self.nanos.store(next, Relaxed);
        let least = match self.least.load(Relaxed) {
            0 => each,
            least => each.min((least * 7 + each).div_ceil(8)).min(least * 2),
        };
        self.least.store(least, Relaxed);
        self.seen.fetch_add(items, Relaxed);
    }

    /// Whether an item is known to finish sooner than a worker wakes up for it.
    pub(crate) fn is_short_lived(&self) -> bool {
        (1..Self::WAKE_COST).contains(&self.least.load(Relaxed))
    }

    /// Returns how many items to send at once to take `goal` nanoseconds. Starts at 1 and stays within four
    /// times the number measured, because the first items may not be representative.
    pub(crate) fn chunk(&self, goal: u64) -> u32 {
        let (nanos, seen) = (self.nanos.load(Relaxed), self.seen.load(Relaxed));
        if nanos == 0 {
            return 1;
        }
        let worth = (goal / nanos).clamp(1, Self::MAX_CHUNK.into());
        worth.min(4 * seen) as u32
    }

    /// Returns the nanoseconds per item without interference, 0 if unknown.
    pub(crate) fn least(&self) -> u64 {
        self.least.load(Relaxed)
    }

    /// Returns how many items are [worth](Self::MIN_WORTH_A_WAKE) a chunk of their own.
    pub(crate) fn worth_a_wake(&self) -> u32 {
        match self.least() {
            0 => 1,
            least => u32::try_from(Self::MIN_WORTH_A_WAKE / least).unwrap_or(u32::MAX),
        }
    }

    /// Returns the average nanoseconds per item, 0 if unknown.
    pub(crate) fn nanos(&self) -> u64 {
        self.nanos.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_chunk_starts_at_one_item_and_stays_within_four_times_the_measured_count(
            observations in prop::collection::vec((1u64..5000, 0u64..10_000_000_000), 0..30)
        ) {
            let cost = CostEstimate::default();
            prop_assert_eq!(cost.chunk(CostEstimate::CHUNK), 1);
            let mut seen = 0;
            for (items, nanos) in observations {
                cost.observe(items, nanos);
                seen += items;
                let chunk = u64::from(cost.chunk(CostEstimate::CHUNK));
                prop_assert!(chunk >= 1 && chunk <= 4 * seen && chunk <= CostEstimate::MAX_CHUNK.into());
                prop_assert!(chunk == 1 || chunk * cost.nanos() <= CostEstimate::CHUNK);
            }
        }
    }
}
