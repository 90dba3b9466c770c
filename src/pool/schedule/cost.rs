//! How long a function's items take, as measured, and how many of them are worth a chunk.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How long an item of a function takes, as measured by the workers.
#[derive(Debug, Default)]
pub(crate) struct CostEstimate {
    /// Nanoseconds per item: a moving average, zero as long as nothing is known.
    nanos: AtomicU64,
    /// What they take when nothing holds them up: down at once, up slowly.
    least: AtomicU64,
    /// How many items have been measured.
    seen: AtomicU64,
}

impl CostEstimate {
    /// How long a chunk should take, in nanoseconds. Sending one and waking up for its answer costs
    /// 20 to 50 µs of CPU time, so that this loses some per cent; results are not seen any earlier than
    /// a chunk's end or its first millisecond, whichever is first, so that it isn't felt.
    pub(crate) const CHUNK: u64 = 1_000_000;

    /// The same for a job whose results are wanted collects_all: nobody sees any of them earlier, and the
    /// other workers take back what turns out slow.
    pub(crate) const LONG_CHUNK: u64 = 4_000_000;

    /// What takes less, in nanoseconds, is not worth a chunk of its own, nor another worker: it is done
    /// sooner where it is than somebody else has been woken for it.
    pub(crate) const MIN_WORTH_A_WAKE: u64 = 100_000;

    /// What it takes to wake a worker, in nanoseconds.
    const BRISK: u64 = 20_000;

    /// The most items in a chunk that is sized here.
    const MOST: u32 = 1 << 16;

    /// Takes note that `items` took `nanos` collects_all.
    pub(crate) fn observe(&self, items: u64, nanos: u64) {
        if items == 0 {
            return;
        }
        let each = (nanos / items).max(1);
        let before = self.nanos.load(Relaxed);
        // Up at once where the time is worth speaking of: a chunk that is too long holds results back,
        // one that is too short costs a little. Else by how many were measured, against about as many
        // as a quarter of a chunk has: a few items' time may be that of a page fault or a cold cache.
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

    /// Whether an item is sooner done than a worker is woken for it, as far as that is known.
    pub(crate) fn is_short_lived(&self) -> bool {
        (1..Self::BRISK).contains(&self.least.load(Relaxed))
    }

    /// How many items to send at once, to take so many nanoseconds: one to begin with, and never many
    /// more than have been measured, since the first ones need not be like the others.
    pub(crate) fn chunk(&self, goal: u64) -> u32 {
        let (nanos, seen) = (self.nanos.load(Relaxed), self.seen.load(Relaxed));
        if nanos == 0 {
            return 1;
        }
        let worth = (goal / nanos).clamp(1, Self::MOST.into());
        worth.min(4 * seen) as u32
    }

    /// As [`nanos`](Self::nanos), when nothing holds them up.
    pub(crate) fn least(&self) -> u64 {
        self.least.load(Relaxed)
    }

    /// How many items are [worth](Self::MIN_WORTH_A_WAKE) a chunk of their own.
    pub(crate) fn worth_a_wake(&self) -> u32 {
        match self.least() {
            0 => 1,
            least => u32::try_from(Self::MIN_WORTH_A_WAKE / least).unwrap_or(u32::MAX),
        }
    }

    /// Nanoseconds per item, zero if not known.
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
        fn a_chunk_starts_at_one_item_and_never_outgrows_what_was_measured(
            observations in prop::collection::vec((1u64..5000, 0u64..10_000_000_000), 0..30)
        ) {
            let cost = CostEstimate::default();
            prop_assert_eq!(cost.chunk(CostEstimate::CHUNK), 1);
            let mut seen = 0;
            for (items, nanos) in observations {
                cost.observe(items, nanos);
                seen += items;
                let chunk = u64::from(cost.chunk(CostEstimate::CHUNK));
                prop_assert!(chunk >= 1 && chunk <= 4 * seen && chunk <= CostEstimate::MOST.into());
                prop_assert!(chunk == 1 || chunk * cost.nanos() <= CostEstimate::CHUNK);
            }
        }
    }
}
