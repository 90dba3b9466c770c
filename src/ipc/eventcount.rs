//! An eventcount in shared memory: sleeping until another process has changed something.
//!
//! No process needs to stay alive: a waiter also wakes up periodically to probe. A wake-up that is lost
//! because the notifier or another waiter was killed costs only milliseconds.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use crate::atomic::{AtomicU32, fence};
use crate::ipc::memory::Atomics;
use crate::os::futex;

/// Spin iterations before sleeping: about the cost of one futex sleep and wake-up.
const SPINS: u32 = if cfg!(all(test, loom)) { 0 } else { 100 };

/// The first and the longest sleep without a wake-up. After each, a waiter checks whether the owners are
/// alive, which costs some microseconds per owner.
const FIRST_TICK: Duration = Duration::from_millis(1);
const LAST_TICK: Duration = Duration::from_millis(16);

/// Wakes processes that wait for a change.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct EventCount {
    /// Changes with each notify.
    epoch: AtomicU32,
    /// The number of waiters, or more if some were killed: then a notify makes a system call in vain.
    waiters: AtomicU32,
    /// How many notifies in a row have woken no waiter.
    empty_notifies: AtomicU32,
}

/// After this many notifies that woke no waiter, the number of waiters is reset to zero. A waiter that
/// exists nevertheless is late by one tick.
const MAX_EMPTY_NOTIFIES: u32 = 64;

// SAFETY: the type consists of atomics.
unsafe impl Atomics for EventCount {}

/// How thoroughly a waiter probes for its condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Probe {
    Fast,
    /// Also check whether owners are alive: no notify has come for a while, so they may be dead.
    CheckOwners,
}

impl EventCount {
    /// Calls `attempt` until it returns something or the deadline has passed. Other processes must change
    /// the condition of `attempt` before they call [`notify`](Self::notify).
    pub(crate) fn wait<R>(
        &self,
        deadline: Option<Instant>,
        mut attempt: impl FnMut(Probe) -> Option<R>,
    ) -> Option<R> {
        for _ in 0..SPINS {
            if let Some(result) = attempt(Probe::Fast) {
                return Some(result);
            }
            std::hint::spin_loop();
        }
        // Registered before the last probe, so that a process that changes the condition after that probe
        // notifies.
        self.waiters.fetch_add(1, SeqCst);
        let (mut tick, mut probe) = (FIRST_TICK, Probe::Fast);
        let result = loop {
            let epoch = self.epoch.load(SeqCst);
            if self.waiters.load(SeqCst) == 0 {
                self.waiters.fetch_add(1, SeqCst);
            }
            if let Some(result) = attempt(probe) {
                break Some(result);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break attempt(Probe::CheckOwners);
            }
            if futex::wait(&self.epoch, epoch, left.map_or(tick, |left| left.min(tick))) {
                probe = Probe::Fast;
            } else {
                probe = Probe::CheckOwners;
                tick = (2 * tick).min(LAST_TICK);
            }
        };
        let decrement = |waiters: u32| waiters.checked_sub(1);
        let _ = self.waiters.fetch_update(SeqCst, SeqCst, decrement);
        result
    }

    /// Wakes up to `most` waiters, if what they wait for was stored before.
    pub(crate) fn notify(&self, most: u32) {
        fence(SeqCst);
        self.notify_fenced(most);
    }

    /// As [`notify`](Self::notify), if this thread has made a SeqCst fence since it stored what they wait for.
    ///
    /// Waiters register by a SeqCst access before they probe. So either this sees them, or they see what was stored.
    pub(crate) fn notify_fenced(&self, most: u32) {
        if self.waiters.load(Relaxed) > 0 {
            self.epoch.fetch_add(1, SeqCst);
            if futex::wake(&self.epoch, most) > 0 {
                self.empty_notifies.store(0, Relaxed);
            } else if self.empty_notifies.fetch_add(1, Relaxed) >= MAX_EMPTY_NOTIFIES {
                self.empty_notifies.store(0, Relaxed);
                self.waiters.store(0, SeqCst);
            }
        }
    }
}

/// Returns the time at which a wait of `limit` ends, or `None` if it is too far in the future to represent.
pub(crate) fn deadline(limit: Duration) -> Option<Instant> {
    Instant::now().checked_add(limit)
}

/// Models the code itself with a [futex](futex) without time limits. The ticks are not modelled, because
/// they would hide a lost wake-up. Nor is `empty_notifies`, which needs 64 notifies.
#[cfg(all(test, loom))]
mod loom_model {
    use loom::sync::Arc;
    use loom::thread::spawn;

    use super::*;

    /// As many permits as there are waiting threads are added in `notifies` steps, with one notify for `most`
    /// waiters after each.
    fn model(waiters: u32, notifies: u32, most: u32) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(move || {
            let shared = Arc::new((EventCount::default(), AtomicU32::default()));
            let waiting: Vec<_> = (0..waiters)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    spawn(move || {
                        let (eventcount, permits) = &*shared;
                        eventcount.wait(None, |_| {
                            let decrement = |permits: u32| permits.checked_sub(1);
                            permits.fetch_update(SeqCst, SeqCst, decrement).ok()
                        })
                    })
                })
                .collect();
            let (eventcount, permits) = &*shared;
            for _ in 0..notifies {
                permits.fetch_add(waiters / notifies, SeqCst);
                eventcount.notify(most);
            }
            for waiter in waiting {
                assert!(waiter.join().unwrap().is_some());
            }
            assert_eq!(eventcount.waiters.load(SeqCst), 0);
        });
    }

    #[test]
    fn a_waiter_misses_no_notify() {
        model(1, 1, 1);
    }

    #[test]
    fn one_notify_for_all_wakes_all() {
        model(2, 1, u32::MAX);
    }

    #[test]
    fn each_notify_for_one_wakes_another() {
        model(2, 2, 1);
    }
}
