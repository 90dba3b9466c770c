//! [`Barrier`]: participants wait for each other.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::atomic::{AtomicU32, AtomicU64};
use crate::error::Error;
use crate::ipc::eventcount::{EventCount, Probe, deadline};
use crate::ipc::memory::Atomics;
use crate::ipc::object::Object;
use crate::ipc::owner::Owner;
use crate::ipc::raw_lock::{LockGuard, RawLock, try_acquire};

/// A reusable barrier at which a fixed number of participants wait for each other.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Pool;
/// use procpool::sync::Barrier;
///
/// fn simulate((barrier, me): (Barrier, usize)) -> usize {
///     for _step in 0..10 {
///         // … compute a part, then wait for all other parts …
///         if barrier.wait().expect("the others are alive") {
///             // … one participant combines the parts …
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
/// All participants must run at the same time: use one worker per participant and a chunk size of one.
///
/// # Broken barriers
///
/// A barrier breaks if a participant exceeds the limit of [`wait_timeout`](Self::wait_timeout), calls
/// [`abort`](Self::abort), drops the barrier during a panic, or dies. Once it is broken, every current and
/// future `wait` returns [`BarrierError::Broken`] until [`reset`](Self::reset).
///
/// A process becomes a participant when it starts a task with the barrier in its argument, or at its first
/// `wait`. It stays a participant until it drops the barrier. The death of a participant is detected
/// within milliseconds. The death of a process that never became one is not detected; use
/// [`wait_timeout`](Self::wait_timeout) for that.
#[derive(Debug, Clone)]
pub struct Barrier(Arc<Membership>);

/// Why a barrier was not passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// The other participants did not reach the barrier in time. The barrier is now broken.
    #[error("the other participants did not reach the barrier in time")]
    TimedOut,
    /// A participant died, panicked, timed out or called [`abort`](Barrier::abort), or the barrier was
    /// [reset](Barrier::reset) during the wait.
    #[error("the barrier is broken: a participant died or gave up, or it was reset")]
    Broken,
}

/// A handle to a barrier, which makes its process a participant.
#[derive(Debug)]
struct Membership {
    object: Object<Head>,
    /// The index of this process among the members; `None` if all entries were taken.
    member: OnceLock<Option<usize>>,
}

/// The barrier's state. Except for the eventcount, only the holder of the lock changes it.
#[derive(Debug)]
#[repr(C)]
struct Head {
    lock: RawLock,
    eventcount: EventCount,
    parties: AtomicU32,
    /// How many participants wait.
    arrived: AtomicU32,
    /// The lower half counts completed rounds, the upper half counts resets.
    round: AtomicU64,
    is_broken: AtomicU32,
}

// SAFETY: the type consists of atomics.
unsafe impl Atomics for Head {}

/// How long a non-blocking operation waits for the lock, which other processes hold for microseconds.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);

/// The number of member entries: several per participant, because a process that decodes the barrier twice
/// uses two, and a few more.
const MEMBERS_PER_PARTY: usize = 4;
const EXTRA_MEMBERS: usize = 64;

impl Barrier {
    /// Creates a barrier for this many participants.
    ///
    /// # Errors
    ///
    /// [`Error::SharedMemory`] if memory or a file descriptor cannot be allocated.
    pub fn new(participants: u32) -> Result<Self, Error> {
        let members = (participants as usize).saturating_mul(MEMBERS_PER_PARTY) + EXTRA_MEMBERS;
        let object = Object::<Head>::new(members.saturating_mul(size_of::<AtomicU64>()))?;
        object.head().parties.store(participants, SeqCst);
        Ok(Self(Arc::new(Membership { object, member: OnceLock::new() })))
    }

    /// Blocks until all participants wait. Returns true for exactly one of them.
    ///
    /// # Errors
    ///
    /// [`BarrierError::Broken`] if the barrier is or becomes broken, or is reset.
    pub fn wait(&self) -> Result<bool, BarrierError> {
        self.wait_until(None)
    }

    /// As [`wait`](Self::wait), but blocks for at most `limit`.
    ///
    /// # Errors
    ///
    /// [`BarrierError::TimedOut`] if the limit is exceeded, which breaks the barrier, and
    /// [`BarrierError::Broken`] as [`wait`](Self::wait).
    pub fn wait_timeout(&self, limit: Duration) -> Result<bool, BarrierError> {
        self.wait_until(deadline(limit))
    }

    /// Repairs a broken barrier and starts a new round. Participants that are waiting get
    /// [`BarrierError::Broken`].
    pub fn reset(&self) {
        let head = self.head();
        // Continues without the lock if its holder is stopped or its memory was overwritten.
        let guard = self.0.lock(deadline(LOCK_TIMEOUT));
        for member in self.0.members() {
            let word = member.load(SeqCst);
            if Owner::from_word(word).is_some_and(|owner| !owner.is_alive()) {
                let _ = member.compare_exchange(word, 0, SeqCst, SeqCst);
            }
        }
        head.arrived.store(0, SeqCst);
        head.round.fetch_add(1 << 32, SeqCst);
        head.is_broken.store(0, SeqCst);
        drop(guard);
        head.eventcount.notify(u32::MAX);
    }

    /// Breaks the barrier: every current and future `wait` returns [`BarrierError::Broken`] until
    /// [`reset`](Self::reset). For a participant that can no longer reach the barrier.
    pub fn abort(&self) {
        self.head().is_broken.store(1, SeqCst);
        self.head().eventcount.notify(u32::MAX);
    }

    /// Returns whether the barrier is broken.
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
        let passed = head.eventcount.wait(deadline, |probe| {
            let now = head.round.load(SeqCst);
            if now != round {
                let was_reset = now >> 32 != round >> 32;
                return Some(if was_reset { Err(BarrierError::Broken) } else { Ok(false) });
            }
            if probe == Probe::CheckOwners && !self.is_broken() && self.0.has_lost_one() {
                self.0.mark_broken(round);
            }
            self.is_broken().then_some(Err(BarrierError::Broken))
        });
        passed.unwrap_or_else(|| match self.0.mark_broken(round) {
            true => Err(BarrierError::TimedOut),
            false => Ok(false),
        })
    }

    fn head(&self) -> &Head {
        self.0.object.head()
    }
}

/// Returns the value of `round` after one more completed round.
fn next(round: u64) -> u64 {
    (round & !0xffff_ffff) | u64::from((round as u32).wrapping_add(1))
}

impl Membership {
    /// Makes this process a participant.
    fn join(&self) {
        self.member.get_or_init(|| {
            self.members().iter().position(|member| try_acquire(member, Probe::Fast).is_some())
        });
    }

    fn has_lost_one(&self) -> bool {
        let owners =
            self.members().iter().filter_map(|member| Owner::from_word(member.load(SeqCst)));
        owners.into_iter().any(|owner| !owner.is_alive())
    }

    /// Breaks the barrier if it is still in this round. Returns whether it was.
    fn mark_broken(&self, round: u64) -> bool {
        let guard = self.lock(deadline(LOCK_TIMEOUT));
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
            // The dead process will not reach the barrier, and may have left the counts inconsistent.
            head.is_broken.store(1, SeqCst);
        }
        Some(guard)
    }

    fn members(&self) -> &[AtomicU64] {
        self.object.tail(self.object.tail_bytes() / size_of::<AtomicU64>())
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(Some(member)) = self.member.get() {
            self.members()[*member].store(0, SeqCst);
        }
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        // A participant that panics will not reach the barrier.
        if std::thread::panicking() && matches!(self.0.member.get(), Some(Some(_))) {
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
        let membership = Membership { object, member: OnceLock::new() };
        membership.join();
        Ok(Self(Arc::new(membership)))
    }
}
