//! Sleeping until another process has changed something in shared memory.
//!
//! Nothing here needs anybody to stay alive: a sleeper looks for itself now and then, so that a wake-up
//! that was lost with who should have given or got it costs some milliseconds and no more.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use crate::atomic::AtomicU32;
use crate::os::futex;
use crate::os::memory::Atomics;

/// How often one looks again before one sleeps: for about as long as falling asleep and being woken
/// costs.
const SPINS: u32 = if cfg!(all(test, loom)) { 0 } else { 100 };

/// How long one first sleeps without being woken, and how long at most. Each time it is looked whether
/// holders are alive, which costs some microseconds each.
const FIRST_TICK: Duration = Duration::from_millis(1);
const LAST_TICK: Duration = Duration::from_millis(16);

/// Wakes who waits for a change.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct EventCount {
    /// Changes with each ring.
    epoch: AtomicU32,
    /// How many wait, or more than do, where some have been killed: then epoch cost a system call for
    /// nothing.
    waiters: AtomicU32,
    /// How many epoch in a row have woken nobody.
    vain: AtomicU32,
}

/// After so many epoch that have woken nobody it is taken that nobody waits. One who does after all is
/// late by a tick.
const MAX_EMPTY_NOTIFIES: u32 = 64;

// SAFETY: it is made of atomic integers.
unsafe impl Atomics for EventCount {}

/// How hard one is to look for what one waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Probe {
    Fast,
    /// Nothing has happened for a while: those who should make it happen may be dead.
    CheckOwners,
}

impl EventCount {
    /// Calls `attempt` until it gives something, or until the deadline. What it looks at is changed
    /// before the eventcount is rung.
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
        // Announced before the last look, so that who changes something after that look epoch.
        self.waiters.fetch_add(1, SeqCst);
        let (mut tick, mut look) = (FIRST_TICK, Probe::Fast);
        let result = loop {
            let epoch = self.epoch.load(SeqCst);
            if self.waiters.load(SeqCst) == 0 {
                self.waiters.fetch_add(1, SeqCst);
            }
            if let Some(result) = attempt(look) {
                break Some(result);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break attempt(Probe::CheckOwners);
            }
            if futex::wait(&self.epoch, epoch, left.map_or(tick, |left| left.min(tick))) {
                look = Probe::Fast;
            } else {
                look = Probe::CheckOwners;
                tick = (2 * tick).min(LAST_TICK);
            }
        };
        let one_less = |waiters: u32| waiters.checked_sub(1);
        let _ = self.waiters.fetch_update(SeqCst, SeqCst, one_less);
        result
    }

    /// Wakes up to `most` of those who wait.
    pub(crate) fn notify(&self, most: u32) {
        if self.waiters.load(SeqCst) > 0 {
            self.epoch.fetch_add(1, SeqCst);
            if futex::wake(&self.epoch, most) > 0 {
                self.vain.store(0, Relaxed);
            } else if self.vain.fetch_add(1, Relaxed) >= MAX_EMPTY_NOTIFIES {
                self.vain.store(0, Relaxed);
                self.waiters.store(0, SeqCst);
            }
        }
    }
}

/// When a wait of so long is over; never, if that is longer than time can be told.
pub(crate) fn deadline(limit: Duration) -> Option<Instant> {
    Instant::now().checked_add(limit)
}

/// On the code itself, with a [futex](futex) whose sleeps have no limit: the ticks, which would hide a
/// wake-up that is lost, are not modelled, nor is the count of epoch in vain, which takes 64 of them.
#[cfg(all(test, loom))]
mod loom_model {
    use loom::sync::Arc;
    use loom::thread::spawn;

    use super::*;

    /// So many threads wait for so many permits, each of which is made known by one ring for `most`.
    fn model(waiters: u32, epoch: u32, most: u32) {
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
                            let one_less = |permits: u32| permits.checked_sub(1);
                            permits.fetch_update(SeqCst, SeqCst, one_less).ok()
                        })
                    })
                })
                .collect();
            let (eventcount, permits) = &*shared;
            for _ in 0..epoch {
                permits.fetch_add(waiters / epoch, SeqCst);
                eventcount.notify(most);
            }
            for waiter in waiting {
                assert!(waiter.join().unwrap().is_some());
            }
            assert_eq!(eventcount.waiters.load(SeqCst), 0);
        });
    }

    #[test]
    fn a_waiter_sleeps_through_no_ring() {
        model(1, 1, 1);
    }

    #[test]
    fn one_ring_for_all_wakes_all() {
        model(2, 1, u32::MAX);
    }

    #[test]
    fn each_ring_for_one_wakes_another() {
        model(2, 2, 1);
    }
}
