//! A place where processes wait for each other.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::eventcount::{EventCount, Probe, deadline};
use super::lock::{LockGuard, RawLock, take};
use super::owner::Owner;
use crate::atomic::{AtomicU32, AtomicU64};
use crate::error::Error;
use crate::os::memory::Atomics;
use crate::shared::object::Object;

/// Has a number of participants wait for each other, as often as they like.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Pool;
/// use procpool::sync::Barrier;
///
/// fn simulate((barrier, me): (Barrier, usize)) -> usize {
///     for _step in 0..10 {
///         // … compute a part, then wait until all parts are there …
///         if barrier.wait().expect("the others are alive") {
///             // … one of them does what is to be done once …
///         }
///     }
///     me
/// }
///
/// let barrier = Barrier::new(4)?;
/// let parts: Vec<_> = (0..4).map(|me| (barrier.clone(), me)).collect();
/// Pool::builder().workers(4).chunk_size(1).build()?.map(simulate, parts)?;
/// # Ok(())
/// # }
/// ```
///
/// All participants have to run at the same time: as many workers as there are participants, and a chunk
/// size of one.
///
/// # When it breaks
///
/// A barrier is broken when a participant gives up ([`wait_timeout`](Self::wait_timeout),
/// [`abort`](Self::abort)), drops the barrier while it panics, or dies, and then it is for all: those who wait, and those who come, get [`BarrierError::Broken`], until it is
/// [reset](Self::reset). A process is a participant from when a task in it begins that has the
/// barrier in its argument, or from when it first waits, until it drops the barrier. One that is killed
/// between is missed within some milliseconds; one that never came is not, and
/// [`wait_timeout`](Self::wait_timeout) has a limit.
#[derive(Debug, Clone)]
pub struct Barrier(Arc<Membership>);

/// Why a barrier was not passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// The others did not come in time. The barrier is broken now.
    #[error("the other participants did not come to the barrier in time")]
    TimedOut,
    /// A participant died or gave up, or the barrier was reset by another.
    #[error("the barrier is broken: a participant died or gave up, or it was reset")]
    Broken,
}

/// A handle on a barrier, which makes its process a participant.
#[derive(Debug)]
struct Membership {
    object: Object<Head>,
    /// Where this process is entered; none if there was no room.
    place: OnceLock<Option<usize>>,
}

/// All but the eventcount is changed by who has the lock.
#[derive(Debug)]
#[repr(C)]
struct Head {
    lock: RawLock,
    eventcount: EventCount,
    parties: AtomicU32,
    /// How many wait.
    arrived: AtomicU32,
    /// How often all have come, in the lower half, and how often it was reset, in the upper.
    round: AtomicU64,
    is_broken: AtomicU32,
}

// SAFETY: it is made of atomics.
unsafe impl Atomics for Head {}

/// How long what isn't to wait waits for another process to be through with the counts, which takes
/// it some microseconds.
const A_TURN: Duration = Duration::from_millis(100);

/// How many participants are watched: so many for each that there is room for, since a process that was
/// sent the barrier twice is entered twice, and some more.
const PLACES_EACH: usize = 4;
const PLACES_MORE: usize = 64;

impl Barrier {
    /// A barrier that so many participants have to come to.
    ///
    /// # Errors
    ///
    /// [`Error::SharedMemory`] when the system has no memory or no file descriptor for it.
    pub fn new(participants: u32) -> Result<Self, Error> {
        let places = (participants as usize).saturating_mul(PLACES_EACH) + PLACES_MORE;
        let object = Object::<Head>::new(places.saturating_mul(size_of::<AtomicU64>()))?;
        object.head().parties.store(participants, SeqCst);
        Ok(Self(Arc::new(Membership { object, place: OnceLock::new() })))
    }

    /// Waits until all participants wait; true for one of them.
    ///
    /// # Errors
    ///
    /// [`BarrierError::Broken`] when not all can come.
    pub fn wait(&self) -> Result<bool, BarrierError> {
        self.wait_until(None)
    }

    /// As [`wait`](Self::wait), for up to `limit`.
    ///
    /// # Errors
    ///
    /// [`BarrierError::TimedOut`] when that is over, for one of them, and [`BarrierError::Broken`] for
    /// the others.
    pub fn wait_timeout(&self, limit: Duration) -> Result<bool, BarrierError> {
        self.wait_until(deadline(limit))
    }

    /// Makes a broken barrier whole again, with none waiting: those who do get
    /// [`BarrierError::Broken`].
    pub fn reset(&self) {
        let head = self.head();
        // Resetting goes on without the lock where its holder is stopped, or was overwritten.
        let guard = self.0.lock(deadline(A_TURN));
        for place in self.0.places() {
            let word = place.load(SeqCst);
            if Owner::from_word(word).is_some_and(|owner| !owner.is_alive()) {
                let _ = place.compare_exchange(word, 0, SeqCst, SeqCst);
            }
        }
        head.arrived.store(0, SeqCst);
        head.round.fetch_add(1 << 32, SeqCst);
        head.is_broken.store(0, SeqCst);
        drop(guard);
        head.eventcount.notify(u32::MAX);
    }

    /// Breaks the barrier for all: those who wait, and those who come, get [`BarrierError::Broken`]
    /// until it is [reset](Self::reset). For a participant that can't come any more.
    pub fn abort(&self) {
        self.head().is_broken.store(1, SeqCst);
        self.head().eventcount.notify(u32::MAX);
    }

    /// Whether it is broken.
    pub fn is_broken(&self) -> bool {
        self.head().is_broken.load(SeqCst) != 0
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<bool, BarrierError> {
        self.0.join();
        let head = self.head();
        let Some(guard) = self.0.lock(deadline) else {
            self.abort();
            return Err(BarrierError::TimedOut);
        };
        if self.is_broken() {
            return Err(BarrierError::Broken);
        }
        let round = head.round.load(SeqCst);
        let arrived = head.arrived.load(SeqCst).saturating_add(1);
        if arrived >= head.parties.load(SeqCst) {
            head.arrived.store(0, SeqCst);
            head.round.store(next(round), SeqCst);
            drop(guard);
            head.eventcount.notify(u32::MAX);
            return Ok(true);
        }
        head.arrived.store(arrived, SeqCst);
        drop(guard);
        let passed = head.eventcount.wait(deadline, |look| {
            let now = head.round.load(SeqCst);
            if now != round {
                let was_reset = now >> 32 != round >> 32;
                return Some(if was_reset { Err(BarrierError::Broken) } else { Ok(false) });
            }
            if look == Probe::CheckOwners && !self.is_broken() && self.0.has_lost_one() {
                self.0.break_in(round);
            }
            self.is_broken().then_some(Err(BarrierError::Broken))
        });
        passed.unwrap_or_else(|| match self.0.break_in(round) {
            true => Err(BarrierError::TimedOut),
            false => Ok(false),
        })
    }

    fn head(&self) -> &Head {
        self.0.object.head()
    }
}

/// The round after this one.
fn next(round: u64) -> u64 {
    (round & !0xffff_ffff) | u64::from((round as u32).wrapping_add(1))
}

impl Membership {
    /// Enters this process.
    fn join(&self) {
        self.place.get_or_init(|| {
            self.places().iter().position(|place| take(place, Probe::Fast).is_some())
        });
    }

    fn has_lost_one(&self) -> bool {
        let owners = self.places().iter().filter_map(|place| Owner::from_word(place.load(SeqCst)));
        owners.into_iter().any(|owner| !owner.is_alive())
    }

    /// Breaks the barrier, if it still is in this round.
    fn break_in(&self, round: u64) -> bool {
        let guard = self.lock(deadline(A_TURN));
        let head = self.object.head();
        let is_current = head.round.load(SeqCst) == round;
        if is_current {
            head.is_broken.store(1, SeqCst);
        }
        drop(guard);
        head.eventcount.notify(u32::MAX);
        is_current
    }

    fn lock(&self, deadline: Option<Instant>) -> Option<LockGuard<'_>> {
        let head = self.object.head();
        let guard = head.lock.lock_until(deadline)?;
        if guard.abandoned_by().is_some() {
            // Who it was is missed at the barrier, and may have left the counts in the middle.
            head.is_broken.store(1, SeqCst);
        }
        Some(guard)
    }

    fn places(&self) -> &[AtomicU64] {
        self.object.tail(self.object.tail_bytes() / size_of::<AtomicU64>())
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(Some(place)) = self.place.get() {
            self.places()[*place].store(0, SeqCst);
        }
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        // Of a participant that panics the others would wait for what never comes.
        if std::thread::panicking() && matches!(self.0.place.get(), Some(Some(_))) {
            self.abort();
        }
    }
}

impl Serialize for Barrier {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.object.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Barrier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Object::deserialize(deserializer)?;
        let membership = Membership { object, place: OnceLock::new() };
        membership.join();
        Ok(Self(Arc::new(membership)))
    }
}
