//! Waiting awake for what will be there sooner than a thread is put to sleep and woken.
//!
//! To wake a thread that sleeps on another CPU takes about 5 µs, and up to 50 where that CPU has gone
//! idle under a virtual machine; a call that a worker answers in 1 µs has two such wakes in it. So
//! where CPUs are free, who waits for a quick answer stays awake for a while. Each side counts the
//! frames that it has sent in a word of the lane, its [`Bell`]; the other compares that with what it
//! has received, in its [`Ear`].
//!
//! A bell is a hint and nothing more: every frame is received from the channel all the same, so that
//! one that lies costs its listener a short wait at most.
//!
//! Nobody stays awake for a sender that was last seen on the same CPU, which can't run meanwhile; there
//! the kernel's own hand-over is as quick as can be. And after a wait that was in vain, the next ones
//! sleep at once: first one, then two, four, up to [`MOST_SKIPPED`].
//!
//! # Orderings
//!
//! A ring is a release store after the frame was sent, and a look is an acquire load: a listener that
//! hears the bell finds the frame. One thread rings a bell, so counting needs no read-modify-write.
//! Nothing else depends on a bell. Weaker orderings would make a wait longer or shorter and lose no frame.

use std::time::Duration;

use crate::atomic::{AtomicU64, Ordering, spin_loop};
use crate::harden::now;

/// How long a wait is that costs no more than going to sleep and being woken does.
pub const PATIENCE: Duration = Duration::from_micros(50);

/// The most waits that sleep at once after one that was in vain.
const MOST_SKIPPED: u32 = 64;

/// How often a listener looks before it looks at the clock, which takes longer.
const LOOKS: u32 = if cfg!(all(test, loom)) { 1 } else { 32 };

/// A word that counts what one side has sent: below, how much; above, from which CPU, and whether the
/// receiver is to stay awake for the next.
#[derive(Debug, Clone, Copy)]
pub struct Bell<'a>(&'a AtomicU64);

impl<'a> Bell<'a> {
    /// Sees a word of a lane as a bell.
    pub(crate) fn new(word: &'a AtomicU64) -> Self {
        Self(word)
    }

    /// Says that a frame has been sent. With `more`, the next one will follow soon after the answer.
    pub fn ring(&self, more: bool) {
        self.ring_from(place(), more);
    }

    fn ring_from(&self, place: u32, more: bool) {
        let count = (self.0.load(Ordering::Relaxed) as u32).wrapping_add(1);
        let from = place << 1 | u32::from(more);
        self.0.store(u64::from(from) << 32 | u64::from(count), Ordering::Release);
    }

    /// How often it was rung, from where the last time, and whether more is to follow.
    fn look(&self) -> (u32, u32, bool) {
        let word = self.0.load(Ordering::Acquire);
        let from = (word >> 32) as u32;
        (word as u32, from >> 1, from & 1 == 1)
    }
}

/// The CPU that this thread is on, from 1, so that nobody's is 0.
fn place() -> u32 {
    rustix::thread::sched_getcpu() as u32 + 1
}

/// What one side has heard of the other's bell.
#[derive(Debug, Default)]
pub struct Ear {
    received: u32,
    /// How many waits are still to sleep at once, and how many after the next that is in vain.
    skip: u32,
    penalty: u32,
}

impl Ear {
    /// Stays awake until the bell has been rung for a frame that is not received, or for `patience`;
    /// whether it has been rung.
    pub fn listen(&mut self, bell: Bell<'_>, patience: Duration) -> bool {
        self.listen_by(bell, patience, place, now)
    }

    /// As [`listen`](Self::listen), on the CPU that `place` returns and by the clock `now`.
    fn listen_by(
        &mut self,
        bell: Bell<'_>,
        patience: Duration,
        place: impl Fn() -> u32,
        now: impl Fn() -> u64,
    ) -> bool {
        let (rung, from, _) = bell.look();
        if self.is_new(rung) {
            return true;
        }
        if from == place() {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let start = now();
        loop {
            for _ in 0..LOOKS {
                if self.is_new(bell.look().0) {
                    self.penalty = 0;
                    return true;
                }
                spin_loop();
            }
            if u128::from(now().saturating_sub(start)) >= patience.as_nanos() {
                self.penalty = (self.penalty * 2).clamp(1, MOST_SKIPPED);
                self.skip = self.penalty;
                return false;
            }
        }
    }

    /// Whether a count of rings is of a frame that is not received. A frame is sent before its ring, so
    /// that it may have been received while the count still lags behind.
    fn is_new(&self, rung: u32) -> bool {
        rung.wrapping_sub(self.received).cast_signed() > 0
    }

    /// As [`listen`](Self::listen), if the last ring announced more.
    pub fn listen_for_more(&mut self, bell: Bell<'_>) {
        if bell.look().2 {
            self.listen(bell, PATIENCE);
        }
    }

    /// Takes note that a frame was received.
    pub fn receive(&mut self) {
        self.received = self.received.wrapping_add(1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// As if it had been rung so often from another CPU than this thread's.
    fn rung(count: u32, more: bool) -> AtomicU64 {
        let elsewhere = (place() + 1) << 1 | u32::from(more);
        AtomicU64::new(u64::from(elsewhere) << 32 | u64::from(count))
    }

    /// How long that takes, in nanoseconds.
    fn time(wait: impl FnOnce()) -> u64 {
        let start = now();
        wait();
        now() - start
    }

    const LONG: Duration = Duration::from_millis(20);

    #[test]
    fn who_has_been_rung_for_does_not_wait() {
        let (word, mut ear) = (rung(1, true), Ear::default());
        assert!(ear.listen(Bell::new(&word), Duration::ZERO));
        assert_eq!(ear.penalty, 0);
    }

    #[test]
    fn a_ring_that_comes_after_its_frame_was_received_is_not_taken_for_the_next() {
        let (word, mut ear) = (rung(6, true), Ear { received: 7, ..Ear::default() });
        assert!(!ear.listen(Bell::new(&word), Duration::ZERO));
        Bell::new(&word).ring(false);
        ear.skip = 0;
        assert!(!ear.listen_by(Bell::new(&word), Duration::ZERO, || 0, now));
        Bell::new(&word).ring(false);
        assert!(ear.listen(Bell::new(&word), Duration::ZERO));
    }

    #[test]
    fn a_wait_ends_when_the_bell_is_rung() {
        let (word, mut ear) = (rung(7, true), Ear { received: 7, ..Ear::default() });
        std::thread::scope(|scope| {
            scope.spawn(|| Bell::new(&word).ring(false));
            ear.listen(Bell::new(&word), Duration::from_secs(600));
        });
        ear.receive();
        assert_eq!((ear.received, ear.penalty), (8, 0));
    }

    #[test]
    fn waits_in_vain_become_rare_and_one_that_is_not_brings_them_back() {
        let (word, mut ear) = (rung(0, true), Ear::default());
        let mut awake = 0;
        for _ in 0..400 {
            awake += u32::from(ear.skip == 0);
            ear.listen(Bell::new(&word), Duration::ZERO);
        }
        // After 1, 2, 4, … 64 that sleep at once, and each 64 from then on.
        assert_eq!(awake, 7 + (400 - 7 - 127) / 65 + 1);
        ear.skip = 0;
        // Rung at the first look at the clock: after the wait has begun.
        let ring = || {
            Bell::new(&word).ring(false);
            0
        };
        ear.listen_by(Bell::new(&word), Duration::from_secs(600), place, ring);
        assert_eq!((ear.skip, ear.penalty), (0, 0));
    }

    #[test]
    fn nobody_stays_awake_for_what_was_not_announced() {
        let (word, mut ear) = (rung(0, false), Ear::default());
        ear.listen_for_more(Bell::new(&word));
        assert_eq!((ear.skip, ear.penalty), (0, 0));
        let word = rung(0, true);
        assert!(time(|| ear.listen_for_more(Bell::new(&word))) >= PATIENCE.as_nanos() as u64);
        assert_eq!(ear.skip, 1);
    }

    #[test]
    fn nor_for_a_sender_on_the_same_cpu() {
        // The thread may be moved between the two looks at its CPU, but not each time.
        let mut skipped = 0;
        for _ in 0..100 {
            let (word, mut ear) = (AtomicU64::new(0), Ear { received: 1, ..Ear::default() });
            Bell::new(&word).ring(true);
            ear.listen(Bell::new(&word), LONG);
            skipped += u32::from(ear.penalty == 0);
        }
        assert!(skipped > 50, "{skipped}");
    }
}

#[cfg(all(test, loom))]
mod loom_model {
    use std::cell::Cell;

    use loom::sync::Arc;

    use super::*;
    use crate::atomic::AtomicU32;

    /// One side sends two frames and rings for each. The other listens on another CPU, by a clock that
    /// each reading advances.
    #[test]
    fn a_listener_that_hears_the_bell_finds_the_frame_and_hears_no_ring_twice() {
        loom::model(|| {
            let shared = Arc::new((AtomicU64::default(), AtomicU32::default()));
            let sender = loom::thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let (word, sent) = &*shared;
                    for frame in 1..=2 {
                        sent.store(frame, Ordering::Relaxed);
                        Bell::new(word).ring_from(2, false);
                    }
                }
            });
            let (word, sent) = &*shared;
            let (mut ear, clock) = (Ear::default(), Cell::new(0));
            let tick = || clock.replace(clock.get() + 1);
            for _ in 0..3 {
                if ear.listen_by(Bell::new(word), Duration::from_nanos(2), || 1, tick) {
                    ear.receive();
                    assert!(sent.load(Ordering::Relaxed) >= ear.received);
                }
            }
            sender.join().unwrap();
            // All rings are visible now: the rest is heard without a wait.
            while ear.received < 2 {
                assert!(ear.listen_by(Bell::new(word), Duration::ZERO, || 1, || 0));
                ear.receive();
            }
            assert!(!ear.listen_by(Bell::new(word), Duration::ZERO, || 1, || 0));
        });
    }
}
