//! The median duration of jobs, in constant memory.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// With fewer jobs, there is no median yet.
const MIN_COUNT: u64 = 3;

/// Buckets per power of two: the median is accurate to 1%.
const CLASSES: u32 = 128;

/// How many successful jobs fell into each bucket.
#[derive(Debug)]
pub(super) struct Median(Mutex<Vec<u64>>);

impl Default for Median {
    fn default() -> Self {
        Self(Mutex::new(vec![0; (u64::BITS * CLASSES) as usize]))
    }
}

impl Median {
    /// Adds a duration.
    pub(super) fn note(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1);
        let class = ((nanos as f64).log2() * f64::from(CLASSES)) as usize;
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = counts.len() - 1;
        counts[class.min(last)] += 1;
    }

    /// Returns the median, or none with too few durations.
    pub(super) fn get(&self) -> Option<Duration> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: u64 = counts.iter().sum();
        let mut before = 0;
        let class = counts.iter().position(|count| {
            before += count;
            2 * before >= all
        })?;
        let middle = (class as f64 + 0.5) / f64::from(CLASSES);
        (all >= MIN_COUNT).then(|| Duration::from_nanos(middle.exp2() as u64))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_median_is_known_to_within_a_hundredth_once_there_are_three() {
        let median = Median::default();
        for (millis, expected) in [(900, None), (30, None), (20, Some(30)), (25, Some(25))] {
            median.note(Duration::from_millis(millis));
            let got = median.get().map(|time| time.as_secs_f64() * 1000.0);
            assert_eq!(got.is_some(), expected.is_some());
            if let (Some(got), Some(expected)) = (got, expected) {
                assert!((got / f64::from(expected) - 1.0).abs() < 0.01, "{got} for {expected}");
            }
        }
    }
}
