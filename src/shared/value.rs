//! A value that several processes write.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::array::{Atomic, SharedArray};
use super::object::{Kind, something_else};
use crate::error::Error;
use crate::sync::LockGuard;

/// A number, or another piece of plain data, that several processes read and write: under a lock, or
/// as an atomic. It is a [`SharedArray`] of one, with all that is said there.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Pool;
/// use procpool::shared::SharedValue;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// let pool = Pool::new(4)?;
///
/// let counter = SharedValue::new(0u64)?;
/// let count = |counter: SharedValue<u64>| *counter.lock() += 1;
/// pool.map(count, vec![counter.clone(); 100])?;
/// assert_eq!(counter.get(), 100);
///
/// let counter = SharedValue::<AtomicU64>::atomic(0)?;
/// let count = |counter: SharedValue<AtomicU64>| counter.fetch_add(1, Ordering::Relaxed);
/// pool.map(count, vec![counter.clone(); 100])?;
/// assert_eq!(counter.load(Ordering::Relaxed), 100);
/// # Ok(())
/// # }
/// ```
///
/// Reading and writing are two steps: `counter.set(counter.get() + 1)` loses what another process does
/// between them. `*counter.lock() += 1` doesn't.
pub struct SharedValue<T>(SharedArray<T>);

impl<T: Pod> SharedValue<T> {
    /// With `value` to begin with.
    ///
    /// # Errors
    ///
    /// [`Error::SharedMemory`] when the system has no memory or no file descriptor for it.
    pub fn new(value: T) -> Result<Self, Error> {
        SharedArray::new([value]).map(Self)
    }

    /// Waits for the lock, and gives the value for as long as the guard is kept. It is not to be
    /// asked for by a thread that has it: that would wait for ever.
    pub fn lock(&self) -> LockGuard<'_, T> {
        self.0.lock().map(first)
    }

    /// The same, if nobody has the lock.
    pub fn try_lock(&self) -> Option<LockGuard<'_, T>> {
        self.0.try_lock().map(|guard| guard.map(first))
    }

    /// The same, unless the lock can't be had within `limit`.
    pub fn lock_timeout(&self, limit: Duration) -> Option<LockGuard<'_, T>> {
        self.0.lock_timeout(limit).map(|guard| guard.map(first))
    }

    /// A copy of the value.
    pub fn get(&self) -> T {
        *self.lock()
    }

    /// Puts `value` in the place of what is there.
    pub fn set(&self, value: T) {
        *self.lock() = value;
    }
}

impl<A: Atomic> SharedValue<A> {
    /// An atomic integer with `value` to begin with.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn atomic(value: A::Value) -> Result<Self, Error> {
        SharedArray::atomic([value]).map(Self)
    }
}

impl<A: Atomic> Deref for SharedValue<A> {
    type Target = A;

    fn deref(&self) -> &A {
        &self.0[0]
    }
}

/// The only element.
fn first<T>(elements: &mut [T]) -> &mut T {
    &mut elements[0]
}

impl<T> Clone for SharedValue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for SharedValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedValue").finish_non_exhaustive()
    }
}

impl<T> Serialize for SharedValue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (Kind::<Self>::new(), &self.0).serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for SharedValue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (_, array) = <(Kind<Self>, SharedArray<T>)>::deserialize(deserializer)?;
        // The only element is there whatever was encoded: nothing here may panic for want of it.
        if array.len() == 1 { Ok(Self(array)) } else { Err(something_else::<Self, D::Error>()) }
    }
}
