//! When a job may start: some time after the one before, while the machine has room, and after a
//! failure some time later. Starts are held; jobs that run are left alone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use procpool::shared::SharedArray;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::os::{clock, observe};
use crate::tasks::random;

/// How often to look whether the machine has room, and whether the run has ended.
const POLL: Duration = Duration::from_millis(50);

/// The time between two starts that depend on the machine: the first must be seen in its figures.
const SETTLING: Duration = Duration::from_millis(20);

/// The longest time before a retry.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(3600);

/// When the jobs of a run may start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct StartRules {
    /// The least time between the starts of two jobs.
    pub(crate) delay: Option<Duration>,
    /// The number of running and blocked processes of the machine from which on no job starts.
    pub(crate) load: Option<f64>,
    /// The free memory in bytes below which no job starts.
    pub(crate) memfree: Option<u64>,
    /// The time before the first retry. It doubles with each.
    pub(crate) retry_delay: Option<Duration>,
    /// What the workers share; none if they need not.
    pub(crate) shared: Option<SharedStart>,
}

/// What the workers of a run share: when the last job started, and whether the run is ending.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SharedStart(SharedArray<AtomicU64>);

impl SharedStart {
    pub(crate) fn new() -> Result<Self, procpool::Error> {
        SharedArray::atomic([0, 0]).map(Self)
    }

    /// Starts no more jobs: those that wait return.
    pub(crate) fn stop(&self) {
        self.0[1].store(1, Ordering::Release);
    }

    fn is_stopped(&self) -> bool {
        self.0[1].load(Ordering::Acquire) != 0
    }
}

impl StartRules {
    /// Whether jobs may have to wait for their start.
    pub(crate) fn hold(&self) -> bool {
        self.delay.is_some() || self.load.is_some() || self.memfree.is_some()
    }

    /// Blocks until a job may start. Returns false if the run has ended before.
    pub(super) fn wait(&self) -> bool {
        let Some(shared) = self.shared.as_ref().filter(|_| self.hold()) else { return true };
        let depends = self.load.is_some() || self.memfree.is_some();
        let spacing =
            self.delay.unwrap_or_default().max(if depends { SETTLING } else { Duration::ZERO });
        let last_start = &shared.0[0];
        loop {
            if shared.is_stopped() {
                return false;
            }
            let (last, now) = (last_start.load(Ordering::Acquire), clock::now());
            let passed = Duration::from_nanos(now.saturating_sub(last));
            if last != 0 && passed < spacing {
                thread::sleep((spacing - passed).min(POLL));
                continue;
            }
            if !self.has_room() {
                thread::sleep(POLL);
                continue;
            }
            let swapped =
                last_start.compare_exchange(last, now, Ordering::AcqRel, Ordering::Acquire);
            if swapped.is_ok() {
                return true;
            }
        }
    }

    /// Blocks after a failed attempt, from 1. Returns false if the run has ended before.
    pub(super) fn wait_to_retry(&self, attempt: u32) -> bool {
        let Some(delay) = self.retry_delay else { return true };
        let delay = backoff(delay, attempt, random::stream(clock::now()).random());
        let begun = Instant::now();
        loop {
            if self.shared.as_ref().is_some_and(SharedStart::is_stopped) {
                return false;
            }
            let left = delay.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(POLL));
        }
    }

    /// Whether the machine has room for one more job. What cannot be read holds nothing.
    fn has_room(&self) -> bool {
        let load = self.load.is_none_or(|most| {
            // This process is one of them.
            observe::runnable().is_none_or(|count| (count.saturating_sub(1) as f64) < most)
        });
        let least = self.memfree;
        load && least.is_none_or(|least| observe::available().is_none_or(|free| free >= least))
    }
}

/// Returns the time before a retry: twice as long each time, and between half of that and all of
/// it, so that jobs which failed together are not tried again together.
fn backoff(delay: Duration, attempt: u32, random: f64) -> Duration {
    let doubled = delay.saturating_mul(1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX));
    doubled.min(MAX_RETRY_DELAY.max(delay)).mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_before_a_retry_doubles_and_varies_and_has_an_end() {
        let second = Duration::from_secs(1);
        assert_eq!(backoff(second, 1, 1.0), second);
        assert_eq!(backoff(second, 1, 0.0), second / 2);
        assert_eq!(backoff(second, 4, 1.0), 8 * second);
        assert_eq!(backoff(second, 30, 1.0), MAX_RETRY_DELAY);
        assert_eq!(backoff(second, 99, 1.0), MAX_RETRY_DELAY);
        assert_eq!(backoff(2 * MAX_RETRY_DELAY, 9, 1.0), 2 * MAX_RETRY_DELAY);
    }
}
