//! Bounded spinning for replies that arrive faster than a futex wake-up.
//!
//! Waking a thread that sleeps on another CPU takes about 5 µs, and up to 50 µs if that CPU is idle
//! under a virtual machine. A call that a worker answers in 1 µs contains two such wake-ups. So where
//! CPUs are free, a thread that expects a quick answer spins first. Each side counts the frames that it
//! has sent in a word of the lane, its [`Doorbell`]. The other side compares that count with what it has
//! received, in its [`SpinWaiter`].
//!
//! A doorbell is only a hint: every frame is received from the channel all the same. A wrong doorbell
//! costs its waiter at most a short spin.
//!
//! A waiter never spins for a sender that was last seen on the same CPU, which can't run meanwhile; the
//! kernel's own hand-over is fastest there. After a spin in vain, the next waits don't spin: one wait,
//! then two, four, up to [`MAX_BACKOFF`].
//!
//! # Orderings
//!
//! A ring is a release store after the frame was sent, and a load of the doorbell is an acquire load: a
//! waiter that sees the ring finds the frame. Only one thread rings a doorbell, so counting needs no
//! read-modify-write. Nothing else depends on a doorbell: weaker orderings would change how long a wait
//! takes and lose no frame.

use std::time::Duration;

use crate::shm::atomic::{AtomicU64, Ordering, spin_loop};
use crate::shm::sys::now;

/// How long a wait spins by default: about the cost of one futex sleep and wake-up.
pub const SPIN_BUDGET: Duration = Duration::from_micros(50);

/// The most waits that don't spin after a spin in vain.
const MAX_BACKOFF: u32 = 64;

/// Spin iterations per clock read, which takes longer than an iteration.
const SPINS_PER_CLOCK_READ: u32 = if cfg!(all(test, loom)) { 1 } else { 32 };

/// A word that counts the frames that one side has sent. The low half is the count; the high half holds
/// the sender's CPU and whether the receiver should spin for the next frame.
#[derive(Debug, Clone, Copy)]
pub struct Doorbell<'a>(&'a AtomicU64);

impl<'a> Doorbell<'a> {
    /// Uses a word of a lane as a doorbell.
    pub(crate) fn new(word: &'a AtomicU64) -> Self {
        Self(word)
    }

    /// Announces that a frame was sent. With `more`, the next one follows soon after the answer.
    pub fn ring(&self, more: bool) {
        self.ring_from(current_cpu(), more);
    }

    fn ring_from(&self, current_cpu: u32, more: bool) {
        let count = (self.0.load(Ordering::Relaxed) as u32).wrapping_add(1);
        let from = current_cpu << 1 | u32::from(more);
        self.0.store(u64::from(from) << 32 | u64::from(count), Ordering::Release);
    }

    /// Returns the number of rings, the last sender's CPU, and whether another frame was announced.
    fn load(&self) -> (u32, u32, bool) {
        let word = self.0.load(Ordering::Acquire);
        let from = (word >> 32) as u32;
        (word as u32, from >> 1, from & 1 == 1)
    }
}

/// Returns this thread's CPU, counted from 1: 0 means that the doorbell was never rung.
fn current_cpu() -> u32 {
    rustix::thread::sched_getcpu() as u32 + 1
}

/// One side's view of the other side's doorbell.
#[derive(Debug, Default)]
pub struct SpinWaiter {
    received: u32,
    /// How many waits must still pass without spinning, and how many after the next spin in vain.
    skip: u32,
    backoff: u32,
}

impl SpinWaiter {
    /// Spins until the doorbell is rung for a frame that is not received yet, or until `budget` has
    /// passed. Returns whether it was rung.
    pub fn spin_until(&mut self, doorbell: Doorbell<'_>, budget: Duration) -> bool {
        self.spin_until_with(doorbell, budget, current_cpu, now)
    }

    /// As [`spin_until`](Self::spin_until), on the CPU `current_cpu()` and with the clock `now`.
    fn spin_until_with(
        &mut self,
        doorbell: Doorbell<'_>,
        budget: Duration,
        current_cpu: impl Fn() -> u32,
        now: impl Fn() -> u64,
    ) -> bool {
        let (rung, from, _) = doorbell.load();
        if self.is_new(rung) {
            return true;
        }
        if from == current_cpu() {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let start = now();
        loop {
            for _ in 0..SPINS_PER_CLOCK_READ {
                if self.is_new(doorbell.load().0) {
                    self.backoff = 0;
                    return true;
                }
                spin_loop();
            }
            if u128::from(now().saturating_sub(start)) >= budget.as_nanos() {
                self.backoff = (self.backoff * 2).clamp(1, MAX_BACKOFF);
                self.skip = self.backoff;
                return false;
            }
        }
    }

    /// Returns whether `rung` counts a frame that is not received yet. A frame is sent before its ring,
    /// so it may be received while the count still lags behind.
    fn is_new(&self, rung: u32) -> bool {
        rung.wrapping_sub(self.received).cast_signed() > 0
    }

    /// As [`spin_until`](Self::spin_until), if the last ring announced another frame.
    pub fn spin_if_hinted(&mut self, doorbell: Doorbell<'_>) {
        if doorbell.load().2 {
            self.spin_until(doorbell, SPIN_BUDGET);
        }
    }

    /// Records that a frame was received.
    pub fn note_received(&mut self) {
        self.received = self.received.wrapping_add(1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Returns a doorbell that was rung `count` times from another CPU.
    fn rung(count: u32, more: bool) -> AtomicU64 {
        let elsewhere = (current_cpu() + 1) << 1 | u32::from(more);
        AtomicU64::new(u64::from(elsewhere) << 32 | u64::from(count))
    }

    /// Returns how long `wait` takes, in nanoseconds.
    fn time(wait: impl FnOnce()) -> u64 {
        let start = now();
        wait();
        now() - start
    }

    const LONG: Duration = Duration::from_millis(20);

    #[test]
    fn a_frame_that_was_rung_for_is_not_waited_for() {
        let (word, mut waiter) = (rung(1, true), SpinWaiter::default());
        assert!(waiter.spin_until(Doorbell::new(&word), Duration::ZERO));
        assert_eq!(waiter.backoff, 0);
    }

    #[test]
    fn a_ring_after_its_frame_was_received_is_not_mistaken_for_the_next() {
        let (word, mut waiter) =
            (rung(6, true), SpinWaiter { received: 7, ..SpinWaiter::default() });
        assert!(!waiter.spin_until(Doorbell::new(&word), Duration::ZERO));
        Doorbell::new(&word).ring(false);
        waiter.skip = 0;
        assert!(!waiter.spin_until_with(Doorbell::new(&word), Duration::ZERO, || 0, now));
        Doorbell::new(&word).ring(false);
        assert!(waiter.spin_until(Doorbell::new(&word), Duration::ZERO));
    }

    #[test]
    fn a_spin_ends_when_the_doorbell_is_rung() {
        let (word, mut waiter) =
            (rung(7, true), SpinWaiter { received: 7, ..SpinWaiter::default() });
        std::thread::scope(|scope| {
            scope.spawn(|| Doorbell::new(&word).ring(false));
            waiter.spin_until(Doorbell::new(&word), Duration::from_secs(600));
        });
        waiter.note_received();
        assert_eq!((waiter.received, waiter.backoff), (8, 0));
    }

    #[test]
    fn spins_in_vain_become_rare_and_a_successful_one_resets_the_backoff() {
        let (word, mut waiter) = (rung(0, true), SpinWaiter::default());
        let mut awake = 0;
        for _ in 0..400 {
            awake += u32::from(waiter.skip == 0);
            waiter.spin_until(Doorbell::new(&word), Duration::ZERO);
        }
        // After 1, 2, 4, … 64 waits that don't spin, and after each 64 from then on.
        assert_eq!(awake, 7 + (400 - 7 - 127) / 65 + 1);
        waiter.skip = 0;
        // Rung at the first clock read: after the spin has started.
        let ring = || {
            Doorbell::new(&word).ring(false);
            0
        };
        waiter.spin_until_with(Doorbell::new(&word), Duration::from_secs(600), current_cpu, ring);
        assert_eq!((waiter.skip, waiter.backoff), (0, 0));
    }

    #[test]
    fn a_wait_spins_only_for_an_announced_frame() {
        let (word, mut waiter) = (rung(0, false), SpinWaiter::default());
        waiter.spin_if_hinted(Doorbell::new(&word));
        assert_eq!((waiter.skip, waiter.backoff), (0, 0));
        let word = rung(0, true);
        assert!(
            time(|| waiter.spin_if_hinted(Doorbell::new(&word))) >= SPIN_BUDGET.as_nanos() as u64
        );
        assert_eq!(waiter.skip, 1);
    }

    #[test]
    fn a_wait_does_not_spin_for_a_sender_on_the_same_cpu() {
        // The thread may migrate between the two reads of its CPU, but not every time.
        let mut skipped = 0;
        for _ in 0..100 {
            let (word, mut waiter) =
                (AtomicU64::new(0), SpinWaiter { received: 1, ..SpinWaiter::default() });
            Doorbell::new(&word).ring(true);
            waiter.spin_until(Doorbell::new(&word), LONG);
            skipped += u32::from(waiter.backoff == 0);
        }
        assert!(skipped > 50, "{skipped}");
    }
}

#[cfg(all(test, loom))]
mod loom_model {
    use std::cell::Cell;

    use loom::sync::Arc;

    use super::*;
    use crate::shm::atomic::AtomicU32;

    /// One side sends two frames and rings for each. The other waits on another CPU, with a clock that
    /// each read advances.
    #[test]
    fn a_waiter_that_sees_the_ring_finds_the_frame_and_sees_no_ring_twice() {
        loom::model(|| {
            let shared = Arc::new((AtomicU64::default(), AtomicU32::default()));
            let sender = loom::thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let (word, sent) = &*shared;
                    for frame in 1..=2 {
                        sent.store(frame, Ordering::Relaxed);
                        Doorbell::new(word).ring_from(2, false);
                    }
                }
            });
            let (word, sent) = &*shared;
            let (mut waiter, clock) = (SpinWaiter::default(), Cell::new(0));
            let tick = || clock.replace(clock.get() + 1);
            for _ in 0..3 {
                if waiter.spin_until_with(Doorbell::new(word), Duration::from_nanos(2), || 1, tick)
                {
                    waiter.note_received();
                    assert!(sent.load(Ordering::Relaxed) >= waiter.received);
                }
            }
            sender.join().unwrap();
            // All rings are visible now: the rest is seen without a spin.
            while waiter.received < 2 {
                assert!(waiter.spin_until_with(Doorbell::new(word), Duration::ZERO, || 1, || 0));
                waiter.note_received();
            }
            assert!(!waiter.spin_until_with(Doorbell::new(word), Duration::ZERO, || 1, || 0));
        });
    }
}
