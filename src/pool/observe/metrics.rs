//! What a pool has done, in numbers for a dashboard or an alert.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::error::DeathCause;
use crate::pool::process::worker::KillReason;
use crate::pool::types::Stats;

/// Numbers of a pool since it was built, from [`Pool::metrics`](crate::Pool::metrics). Counts the workers of this
/// host only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Tasks by state.
    pub stats: Stats,
    /// How long tasks waited in the queue, from their submission until they were sent to a worker.
    pub wait: Histogram,
    /// How long tasks ran. Short ones are measured together, and each counts with their average.
    pub run: Histogram,
    /// Workers that died, by cause.
    pub deaths: Deaths,
    /// Bytes of encoded arguments that were sent to workers.
    pub argument_bytes: u64,
    /// Bytes of encoded results that were received.
    pub result_bytes: u64,
    /// Workers that run now.
    pub workers: u64,
    /// Resident memory of the workers in bytes, shared pages counted for each.
    pub memory: u64,
}

/// Workers that died after their start, by cause. Those that retired or ended with the pool are not among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deaths {
    /// Killed by a signal that the pool did not send: a crash, or `kill`.
    pub signaled: u64,
    /// Exited by themselves.
    pub exited: u64,
    /// Killed because they exceeded the pool's memory limit, or by the kernel for lack of memory.
    pub out_of_memory: u64,
    /// Killed because a task exceeded its time limit.
    pub timed_out: u64,
    /// Killed because a running task was cancelled.
    pub cancelled: u64,
    /// Killed for a system call that their sandbox does not allow.
    pub sandboxed: u64,
    /// Violated the worker protocol, stopped answering, or ended in an unknown way.
    pub other: u64,
}

/// A distribution of durations. A bucket is at most a quarter wider than its lower end.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    sum: Duration,
}

/// Buckets per power of two, as a power of two.
const BITS: u32 = 2;

/// Four for each power of two of nanoseconds up to 2^63.
const BUCKETS: usize = 64 << BITS;

/// Returns the bucket of a duration in nanoseconds.
fn bucket(nanos: u64) -> usize {
    match nanos.checked_ilog2() {
        Some(power) if power >= BITS => {
            let next = (nanos >> (power - BITS)) & ((1 << BITS) - 1);
            ((power as usize) << BITS) + next as usize
        }
        // Few nanoseconds: each has its own.
        _ => nanos as usize,
    }
}

/// Returns the least duration above a bucket, in nanoseconds.
fn end(bucket: usize) -> u64 {
    let (power, part) = (bucket >> BITS, (bucket & ((1 << BITS) - 1)) as u64);
    if power < BITS as usize {
        return bucket as u64 + 1;
    }
    ((1 << BITS) + part + 1).saturating_mul(1 << (power as u32 - BITS))
}

/// Returns a bucket's width, in nanoseconds.
#[cfg(feature = "metrics")]
fn width(bucket: usize) -> u64 {
    1 << ((bucket >> BITS) as u32).saturating_sub(BITS)
}

impl Histogram {
    /// Returns how many durations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the sum of the durations.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Returns a duration that this part of them does not exceed: 0.5 for the median, 0.99 for the 99th percentile. It
    /// is at most a quarter too large. `None` if there are none.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let wanted = (part.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        self.buckets().find(|(_, count)| *count >= wanted).map(|(end, _)| end)
    }

    /// Returns how many durations there are that `before` has not, by the middle of their bucket.
    #[cfg(feature = "metrics")]
    pub(crate) fn since(&self, before: &Self) -> impl Iterator<Item = (Duration, usize)> {
        let counts = self.counts.iter().zip(before.counts.iter()).enumerate();
        counts.filter_map(|(bucket, (new, old))| {
            let count = new.saturating_sub(*old);
            let middle = end(bucket) - width(bucket) / 2;
            (count > 0).then(|| (Duration::from_nanos(middle), count as usize))
        })
    }

    /// Returns the buckets that are not empty: the end of each, and how many durations are below it. These are the
    /// cumulative buckets (`le`) of a Prometheus histogram.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let mut below = 0;
        self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(
            move |(bucket, count)| {
                below += count;
                (Duration::from_nanos(end(bucket)), below)
            },
        )
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), sum: Duration::ZERO }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count())
            .field("sum", &self.sum)
            .field("median", &self.quantile(0.5))
            .finish_non_exhaustive()
    }
}

/// A histogram that threads add to.
#[derive(Debug)]
pub(crate) struct LiveHistogram {
    counts: Box<[AtomicU64; BUCKETS]>,
    /// In nanoseconds.
    sum: AtomicU64,
}

impl LiveHistogram {
    /// Adds `count` durations that take `nanos` together.
    pub(crate) fn add(&self, count: u64, nanos: u64) {
        let Some(each) = nanos.checked_div(count) else { return };
        self.counts[bucket(each)].fetch_add(count, Relaxed);
        self.sum.fetch_add(nanos, Relaxed);
    }

    pub(crate) fn read(&self) -> Histogram {
        let counts = std::array::from_fn(|bucket| self.counts[bucket].load(Relaxed));
        Histogram { counts: Box::new(counts), sum: Duration::from_nanos(self.sum.load(Relaxed)) }
    }
}

impl Default for LiveHistogram {
    fn default() -> Self {
        let counts = Box::new([const { AtomicU64::new(0) }; BUCKETS]);
        Self { counts, sum: AtomicU64::new(0) }
    }
}

/// Counters of [`Deaths`].
#[derive(Debug, Default)]
pub(crate) struct LiveDeaths {
    signaled: AtomicU64,
    exited: AtomicU64,
    out_of_memory: AtomicU64,
    timed_out: AtomicU64,
    cancelled: AtomicU64,
    sandboxed: AtomicU64,
    other: AtomicU64,
}

impl LiveDeaths {
    /// Counts a death. `reason` is why the pool has killed the worker, if it has.
    pub(crate) fn add(&self, reason: Option<KillReason>, cause: DeathCause) {
        let counter = match (reason, cause) {
            (Some(KillReason::TimedOut(_)), _) => &self.timed_out,
            (Some(KillReason::Cancelled), _) => &self.cancelled,
            (Some(KillReason::OutOfMemory), _) | (None, DeathCause::OutOfMemory) => {
                &self.out_of_memory
            }
            (Some(_), _) => &self.other,
            (None, DeathCause::Sandboxed { .. } | DeathCause::Signaled(libc::SIGSYS, _)) => {
                &self.sandboxed
            }
            (None, DeathCause::Signaled(..)) => &self.signaled,
            (None, DeathCause::Exited(_)) => &self.exited,
            (None, DeathCause::ProtocolViolation | DeathCause::Unknown) => &self.other,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self) -> Deaths {
        Deaths {
            signaled: self.signaled.load(Relaxed),
            exited: self.exited.load(Relaxed),
            out_of_memory: self.out_of_memory.load(Relaxed),
            timed_out: self.timed_out.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            sandboxed: self.sandboxed.load(Relaxed),
            other: self.other.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_duration_is_in_a_bucket_that_ends_at_most_a_quarter_above_it(nanos in any::<u64>()) {
            is_well_placed(nanos >> (nanos % 64));
        }
    }

    fn is_well_placed(nanos: u64) {
        let bucket = bucket(nanos);
        assert!(bucket < BUCKETS, "{nanos}");
        assert!(end(bucket) > nanos || end(bucket) == u64::MAX, "{nanos} {}", end(bucket));
        assert!(end(bucket) as f64 <= (nanos as f64 * 1.25 + 1.0), "{nanos} {}", end(bucket));
    }

    #[test]
    fn so_are_the_durations_beside_each_power_of_two() {
        for power in 0..64 {
            for part in 4..8_u64 {
                let first = (u128::from(part) << power) / 4;
                let near = [first.saturating_sub(1), first, first + 1];
                near.iter().flat_map(|nanos| u64::try_from(*nanos)).for_each(is_well_placed);
            }
        }
        is_well_placed(u64::MAX);
    }

    #[test]
    fn quantiles_are_of_what_was_added() {
        let live = LiveHistogram::default();
        assert_eq!(live.read().quantile(0.5), None);
        live.add(98, 98_000);
        live.add(1, 1_000_000);
        live.add(1, 50_000_000);
        let read = live.read();
        assert_eq!((read.count(), read.sum()), (100, Duration::from_nanos(51_098_000)));
        let near = |part: f64, nanos: u64| {
            let found = read.quantile(part).unwrap().as_nanos() as u64;
            assert!((nanos..=nanos + nanos / 4 + 1).contains(&found), "{part}: {found}");
        };
        near(0.5, 1000);
        near(0.98, 1000);
        near(0.99, 1_000_000);
        near(1.0, 50_000_000);
        assert_eq!(read.buckets().last().unwrap().1, 100);
    }
}
