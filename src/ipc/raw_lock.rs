//! A lock in shared memory that survives the death of its holder, and its guard.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::time::{Duration, Instant};

use crate::atomic::{AtomicU32, AtomicU64, fence};
use crate::ipc::eventcount::{EventCount, Probe, deadline};
use crate::ipc::memory::Atomics;
use crate::ipc::owner::Owner;

/// Holds a lock, and dereferences to the data that the lock guards. Dropping it releases the lock, also
/// during a panic.
#[must_use = "dropping the guard releases the lock"]
pub struct LockGuard<'a, T: ?Sized = ()> {
    lock: &'a RawLock,
    previous: Option<u32>,
    /// Whether the thread was already panicking when it acquired the lock.
    was_panicking: bool,
    data: NonNull<T>,
}

impl<'a, T: ?Sized> LockGuard<'a, T> {
    /// Returns the PID of the previous holder if it died or panicked while it held the lock. The guarded data
    /// may then be incompletely changed. Only the next holder gets the PID.
    pub fn abandoned_by(&self) -> Option<u32> {
        self.previous
    }

    /// Converts this into a guard of `data`.
    ///
    /// # Safety
    ///
    /// `data` must be valid for as long as the lock, and accessed only through guards of this lock.
    pub(crate) unsafe fn with_data<U: ?Sized>(self, data: NonNull<U>) -> LockGuard<'a, U> {
        let (lock, previous, was_panicking) = (self.lock, self.previous, self.was_panicking);
        std::mem::forget(self);
        LockGuard { lock, previous, was_panicking, data }
    }

    /// Converts this into a guard of a part of its data.
    pub(crate) fn map<U: ?Sized>(
        mut self,
        part: impl FnOnce(&mut T) -> &mut U,
    ) -> LockGuard<'a, U> {
        let data = NonNull::from(part(&mut self));
        // SAFETY: `part` returns a part of the guarded data.
        unsafe { self.with_data(data) }
    }
}

impl<T: ?Sized> LockGuard<'_, T> {
    /// Releases the lock and blocks while `condition` returns true, as `Condvar::wait_while` of the
    /// standard library does. The lock is held again when this returns, and whenever `condition` is
    /// called: first at once, then after another guard of this lock was released.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use procpool::Pool;
    /// use procpool::shared::SharedValue;
    ///
    /// fn finish(left: SharedValue<u64>) {
    ///     *left.lock() -= 1;
    /// }
    ///
    /// let pool = Pool::new(4)?;
    /// let left = SharedValue::new(8u64)?;
    /// let tasks = pool.map_async(finish, vec![left.clone(); 8]);
    /// let done = left.lock().wait_while(|left| *left > 0);
    /// assert_eq!(*done, 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// If a process dies while it holds the lock, the condition is checked again some milliseconds later,
    /// and [`abandoned_by`](Self::abandoned_by) returns its PID. If all processes that could make the condition
    /// false have ended, this blocks forever: use [`wait_while_timeout`](Self::wait_while_timeout).
    pub fn wait_while(mut self, mut condition: impl FnMut(&mut T) -> bool) -> Self {
        self.wait_until(None, &mut condition);
        self
    }

    /// As [`wait_while`](Self::wait_while), for at most `limit`. Acquiring the lock again takes longer if
    /// another process holds it then.
    ///
    /// # Errors
    ///
    /// The guard, if the condition still holds by then.
    pub fn wait_while_timeout(
        mut self,
        limit: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> Result<Self, Self> {
        if self.wait_until(deadline(limit), &mut condition) { Ok(self) } else { Err(self) }
    }

    /// Returns whether the condition has become false before the deadline.
    fn wait_until(
        &mut self,
        deadline: Option<Instant>,
        condition: &mut impl FnMut(&mut T) -> bool,
    ) -> bool {
        while condition(self) {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return false;
            }
            // No panic can happen until the lock is held again.
            self.previous = self.lock.wait_release(deadline).or(self.previous);
        }
        true
    }
}

impl<T: ?Sized> Deref for LockGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the data lives as long as the lock, and is accessed only through guards, of which at most
        // one exists in all processes.
        unsafe { self.data.as_ref() }
    }
}

impl<T: ?Sized> DerefMut for LockGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { self.data.as_mut() }
    }
}

impl<T: ?Sized> Drop for LockGuard<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.was_panicking {
            self.lock.panicked.store(std::process::id(), SeqCst);
        }
        self.lock.release();
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for LockGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("abandoned_by", &self.previous)
            .field("data", &&**self)
            .finish()
    }
}

/// A lock in shared memory.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct RawLock {
    /// The [`Owner`] that holds the lock; zero if it is free.
    owner: AtomicU64,
    eventcount: EventCount,
    /// Counts releases, for waits on a condition.
    releases: AtomicU32,
    released: EventCount,
    /// The PID of the last owner, if it panicked and the next owner has not been told; otherwise zero. Only
    /// the owner changes it.
    panicked: AtomicU32,
}

// SAFETY: the type consists of atomics.
unsafe impl Atomics for RawLock {}

impl RawLock {
    pub(crate) fn lock(&self) -> LockGuard<'_> {
        self.lock_until(None).expect("there is no deadline")
    }

    pub(crate) fn lock_timeout(&self, limit: Duration) -> Option<LockGuard<'_>> {
        self.lock_until(deadline(limit))
    }

    pub(crate) fn try_lock(&self) -> Option<LockGuard<'_>> {
        self.acquire(Probe::CheckOwners)
    }

    pub(crate) fn lock_until(&self, deadline: Option<Instant>) -> Option<LockGuard<'_>> {
        self.eventcount.wait(deadline, |probe| self.acquire(probe))
    }

    fn acquire(&self, probe: Probe) -> Option<LockGuard<'_>> {
        let died = try_acquire(&self.owner, probe)?;
        // Only the owner changes it, which is this process now. A swap each time would cost as much as the lock.
        let panicked = Some(self.panicked.load(SeqCst)).filter(|pid| *pid != 0);
        if panicked.is_some() {
            self.panicked.store(0, SeqCst);
        }
        let was_panicking = std::thread::panicking();
        let previous = died.or(panicked);
        Some(LockGuard { lock: self, previous, was_panicking, data: NonNull::dangling() })
    }

    /// Releases the lock. Makes a SeqCst fence after what its holder has stored.
    fn release(&self) {
        // Only the owner changes it.
        self.releases.store(self.releases.load(Relaxed).wrapping_add(1), Relaxed);
        self.owner.store(0, Release);
        // One for both. It costs less than a SeqCst store of each word.
        fence(SeqCst);
        self.eventcount.notify_fenced(1);
        self.released.notify_fenced(u32::MAX);
    }

    /// Releases the lock, which this thread holds, waits until another holder has released it or has died,
    /// and acquires it again. Returns the PID of a holder that has died or panicked.
    fn wait_release(&self, deadline: Option<Instant>) -> Option<u32> {
        // Read while the lock is held: a release that comes before the wait counts.
        let seen = self.releases.load(SeqCst).wrapping_add(1);
        self.release();
        let is_dead = || {
            let owner = Owner::from_word(self.owner.load(SeqCst));
            owner.is_some_and(|owner| !owner.is_alive())
        };
        self.released.wait(deadline, |probe| {
            let is_over = self.releases.load(SeqCst) != seen;
            (is_over || (probe == Probe::CheckOwners && is_dead())).then_some(())
        });
        let guard = self.lock();
        let previous = guard.previous;
        std::mem::forget(guard);
        previous
    }
}

/// Makes this process the owner in `word` if there is none, or if `probe` is [`Probe::CheckOwners`] and the
/// owner is dead. Returns `None` if there is a live owner, `Some(Some(pid))` if it replaced a dead owner.
pub(crate) fn try_acquire(word: &AtomicU64, probe: Probe) -> Option<Option<u32>> {
    let own = Owner::own().word();
    let Err(word_before) = word.compare_exchange(0, own, SeqCst, SeqCst) else { return Some(None) };
    let before = Owner::from_word(word_before).filter(|_| probe == Probe::CheckOwners)?;
    if before.is_alive() {
        return None;
    }
    // A dead process does not acquire again: if the word is unchanged, it has no owner.
    let taken = word.compare_exchange(word_before, own, SeqCst, SeqCst);
    taken.is_ok().then_some(Some(before.pid()))
}

/// Models the code itself. The only death that is modelled is that of an owner which is dead at the start.
#[cfg(all(test, loom))]
mod loom_model {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread::spawn;

    use super::*;

    fn explore(model: impl Fn() + Sync + Send + 'static) {
        // Initializes its static before the exploration.
        Owner::own();
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(model);
    }

    #[test]
    fn threads_hold_the_lock_one_at_a_time_and_none_waits_forever() {
        explore(|| {
            let shared = Arc::new((RawLock::default(), UnsafeCell::new(0)));
            let add = |shared: Arc<(RawLock, UnsafeCell<u32>)>| {
                let guard = shared.0.lock();
                assert_eq!(guard.abandoned_by(), None);
                // SAFETY: loom fails the test if two threads are here at once.
                shared.1.with_mut(|count| unsafe { *count += 1 });
            };
            let others = [(); 2].map(|()| {
                let shared = Arc::clone(&shared);
                spawn(move || add(shared))
            });
            add(Arc::clone(&shared));
            others.into_iter().for_each(|other| other.join().unwrap());
            // SAFETY: all threads are joined.
            shared.1.with(|count| assert_eq!(unsafe { *count }, 3));
        });
    }

    #[test]
    fn the_lock_of_a_dead_process_is_taken_over_once() {
        explore(|| {
            // No process has such a number.
            let word = Arc::new(AtomicU64::new(u64::MAX));
            let others = [(); 2].map(|()| {
                let word = Arc::clone(&word);
                spawn(move || try_acquire(&word, Probe::CheckOwners).is_some())
            });
            let own = try_acquire(&word, Probe::CheckOwners).is_some();
            let taken = others.map(|other| other.join().unwrap());
            let count = taken.into_iter().chain([own]).filter(|is_taken| *is_taken).count();
            assert_eq!(count, 1);
        });
    }
}
