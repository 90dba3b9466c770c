//! [`SharedValue`]: a value that several processes write.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::array::{Atomic, SharedArray};
use crate::error::Error;
use crate::ipc::object::{Kind, something_else};
use crate::ipc::raw_lock::LockGuard;

/// A number or other plain data that several processes read and write, under a lock or as an atomic. It is
/// a [`SharedArray`] with one element, and behaves like it.
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
/// `counter.set(counter.get() + 1)` is two steps, and loses changes that other processes make between them.
/// `*counter.lock() += 1` does not.
pub struct SharedValue<T>(SharedArray<T>);

impl<T: Pod> SharedValue<T> {
    /// Creates a shared value that is initially `value`.
    ///
    /// # Errors
    ///
    /// [`Error::SharedMemory`] if memory or a file descriptor cannot be allocated.
    pub fn new(value: T) -> Result<Self, Error> {
        SharedArray::new([value]).map(Self)
    }

    /// Acquires the lock, and blocks until it is free. The guard dereferences to the value. Deadlocks if this
    /// thread already holds the lock.
    pub fn lock(&self) -> LockGuard<'_, T> {
        self.0.lock().map(first)
    }

    /// Acquires the lock without blocking. Returns `None` if it is held.
    pub fn try_lock(&self) -> Option<LockGuard<'_, T>> {
        self.0.try_lock().map(|guard| guard.map(first))
    }

    /// Acquires the lock, and blocks for at most `limit`. Returns `None` if it is still held then.
    pub fn lock_timeout(&self, limit: Duration) -> Option<LockGuard<'_, T>> {
        self.0.lock_timeout(limit).map(|guard| guard.map(first))
    }

    /// Returns a copy of the value, made under the lock.
    pub fn get(&self) -> T {
        self.0.load(0)
    }

    /// Replaces the value, under the lock.
    pub fn set(&self, value: T) {
        self.0.store(0, value);
    }
}

impl<A: Atomic> SharedValue<A> {
    /// Creates a shared atomic integer that is initially `value`.
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

/// Returns the only element.
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
        // Checked, because the encoding is untrusted and `first` panics without an element.
        if array.len() == 1 { Ok(Self(array)) } else { Err(something_else::<Self, D::Error>()) }
    }
}
