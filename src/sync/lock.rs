//! A lock that survives its holders.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::eventcount::{EventCount, Probe, deadline};
use super::owner::Owner;
use crate::atomic::{AtomicU32, AtomicU64};
use crate::error::Error;
use crate::os::memory::Atomics;
use crate::shared::object::Object;

/// Mutual exclusion between processes: one at a time has it.
///
/// What it guards is something outside, like a file or the terminal; for numbers in shared memory,
/// [`SharedValue`](crate::shared::SharedValue) and [`SharedArray`](crate::shared::SharedArray) have a lock of their own.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Pool;
/// use procpool::sync::Lock;
///
/// fn tell((terminal, x): (Lock, u32)) {
///     let _guard = terminal.lock();
///     print!("the square of {x} ");
///     println!("is {}", x * x);
/// }
///
/// let terminal = Lock::new()?;
/// Pool::new(4)?.map(tell, (0..10).map(|x| (terminal.clone(), x)))?;
/// # Ok(())
/// # }
/// ```
///
/// If a process dies or panics while it has the lock, the next one gets it, and is told so by
/// [`LockGuard::abandoned_by`]. Who gets it next is not determined.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lock(Object<RawLock>);

impl Lock {
    /// A lock that nobody has.
    ///
    /// # Errors
    ///
    /// [`Error::SharedMemory`] when the system has no memory or no file descriptor for it.
    pub fn new() -> Result<Self, Error> {
        Object::new(0).map(Self)
    }

    /// Waits for the lock. It is not to be asked for by a thread that has it: that would wait for ever.
    pub fn lock(&self) -> LockGuard<'_> {
        self.0.head().lock()
    }

    /// Takes the lock if nobody has it.
    pub fn try_lock(&self) -> Option<LockGuard<'_>> {
        self.0.head().try_lock()
    }

    /// Waits for the lock for up to `limit`.
    pub fn lock_timeout(&self, limit: Duration) -> Option<LockGuard<'_>> {
        self.0.head().lock_timeout(limit)
    }
}

/// Having a lock, and with it access to what it guards; gives it back when it is dropped, also by a
/// panic.
#[must_use = "a guard that is dropped gives the lock back"]
pub struct LockGuard<'a, T: ?Sized = ()> {
    lock: &'a RawLock,
    previous: Option<u32>,
    /// Whether the thread panicked already when it got the lock.
    was_panicking: bool,
    data: NonNull<T>,
}

impl<'a, T: ?Sized> LockGuard<'a, T> {
    /// Returns the PID of the process that had the lock before, if it died or panicked while it had it.
    /// What the lock guards may then be in the middle of a change. It is told once: the owner after this
    /// one is not.
    pub fn abandoned_by(&self) -> Option<u32> {
        self.previous
    }

    /// The same, with access to `data`.
    ///
    /// # Safety
    ///
    /// It is valid for as long as the lock is, and reached by guards of this lock alone.
    pub(crate) unsafe fn guarding<U: ?Sized>(self, data: NonNull<U>) -> LockGuard<'a, U> {
        let (lock, previous, was_panicking) = (self.lock, self.previous, self.was_panicking);
        std::mem::forget(self);
        LockGuard { lock, previous, was_panicking, data }
    }

    /// The same, for a part of what it guards.
    pub(crate) fn map<U: ?Sized>(
        mut self,
        part: impl FnOnce(&mut T) -> &mut U,
    ) -> LockGuard<'a, U> {
        let data = NonNull::from(part(&mut self));
        // SAFETY: a part of what it guards is guarded too.
        unsafe { self.guarding(data) }
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
    /// and [`abandoned_by`](Self::abandoned_by) tells. If all processes that could make the condition
    /// false have ended, this blocks for ever: use [`wait_while_timeout`](Self::wait_while_timeout).
    pub fn wait_while(mut self, mut condition: impl FnMut(&mut T) -> bool) -> Self {
        self.wait_until(None, &mut condition);
        self
    }

    /// As [`wait_while`](Self::wait_while), for at most `limit`.
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
        // SAFETY: what is guarded lives as long as the lock, and nobody else touches it as long as
        // the lock is had, in whatever process: it is reached by guards alone.
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

/// A lock as it lies in shared memory.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct RawLock {
    /// Zero, or who has it.
    owner: AtomicU64,
    eventcount: EventCount,
    /// Counts releases, for those who wait for one.
    releases: AtomicU32,
    released: EventCount,
    /// The PID of the last owner, if it panicked and the next one has not been told; else zero.
    /// Changed by the owner alone.
    panicked: AtomicU32,
}

// SAFETY: it is made of atomics.
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
        self.eventcount.wait(deadline, |look| self.acquire(look))
    }

    fn acquire(&self, look: Probe) -> Option<LockGuard<'_>> {
        let died = take(&self.owner, look)?;
        let panicked = Some(self.panicked.swap(0, SeqCst)).filter(|pid| *pid != 0);
        let was_panicking = std::thread::panicking();
        let previous = died.or(panicked);
        Some(LockGuard { lock: self, previous, was_panicking, data: NonNull::dangling() })
    }

    fn release(&self) {
        self.releases.fetch_add(1, SeqCst);
        self.owner.store(0, SeqCst);
        self.eventcount.notify(1);
        self.released.notify(u32::MAX);
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

/// Takes a word that says who has something, if nobody has it; with a thorough look, also if its owner
/// has died, who is then told.
pub(super) fn take(word: &AtomicU64, look: Probe) -> Option<Option<u32>> {
    let own = Owner::own().word();
    let Err(word_before) = word.compare_exchange(0, own, SeqCst, SeqCst) else { return Some(None) };
    let before = Owner::from_word(word_before).filter(|_| look == Probe::CheckOwners)?;
    if before.is_alive() {
        return None;
    }
    // A dead process takes nothing any more: if the word is still the same, nobody has it.
    let taken = word.compare_exchange(word_before, own, SeqCst, SeqCst);
    taken.is_ok().then_some(Some(before.pid()))
}

/// On the code itself. Deaths are not modelled, but for that of an owner that is dead from the beginning.
#[cfg(all(test, loom))]
mod loom_model {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread::spawn;

    use super::*;

    fn explore(model: impl Fn() + Sync + Send + 'static) {
        // What it finds out once is not found out in the middle of an exploration.
        Owner::own();
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(model);
    }

    #[test]
    fn threads_have_it_one_after_the_other_and_none_waits_for_ever() {
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
    fn what_a_dead_process_has_is_taken_over_once() {
        explore(|| {
            // No process has such a number.
            let word = Arc::new(AtomicU64::new(u64::MAX));
            let others = [(); 2].map(|()| {
                let word = Arc::clone(&word);
                spawn(move || take(&word, Probe::CheckOwners).is_some())
            });
            let own = take(&word, Probe::CheckOwners).is_some();
            let taken = others.map(|other| other.join().unwrap());
            let count = taken.into_iter().chain([own]).filter(|is_taken| *is_taken).count();
            assert_eq!(count, 1);
        });
    }
}
