//! An array that several processes write.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{
    AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicU8, AtomicU16, AtomicU32,
    AtomicU64, AtomicUsize, Ordering::Relaxed,
};
use std::time::Duration;

use bytemuck::Pod;
use serde::{Deserialize, Serialize};

use super::object::Object;
use crate::error::Error;
use crate::os::memory::Atomics;
use crate::sync::{LockGuard, RawLock};

/// Numbers, or other plain data, that several processes read and write: under a lock, or as atomics.
///
/// A clone is another handle on the same array. It can be sent as a
/// [`SharedSlice`](crate::shared::SharedSlice) can: anywhere inside an argument, and only there.
///
/// # Under a lock
///
/// Elements are any type that is [`Pod`], and are reached through the array's own lock:
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Pool;
/// use procpool::shared::SharedArray;
///
/// fn count((bins, x): (SharedArray<u64>, u64)) {
///     let mut bins = bins.lock();
///     let bin = (x % 3) as usize;
///     bins[bin] += 1;
/// }
///
/// let bins = SharedArray::new([0u64; 3])?;
/// Pool::new(4)?.map(count, (0..300).map(|x| (bins.clone(), x)))?;
/// assert_eq!(*bins.lock(), [100, 100, 100]);
/// # Ok(())
/// # }
/// ```
///
/// If a process dies or panics while it has the lock, the next one gets it, and is told so by
/// [`LockGuard::abandoned_by`]: any part of what the other was about to write may be there.
///
/// # As atomics
///
/// With an atomic integer as the type of its elements, the array is a slice of those, and there is no
/// lock:
///
/// ```
/// # fn main() -> Result<(), procpool::Error> {
/// use procpool::shared::SharedArray;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// let bins = SharedArray::<AtomicU64>::atomic([0, 0, 7])?;
/// assert_eq!(bins[2].fetch_add(1, Ordering::Relaxed), 7);
/// # Ok(())
/// # }
/// ```
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct SharedArray<T> {
    object: Object<Head<T>>,
}

#[repr(C)]
struct Head<T> {
    lock: RawLock,
    element: PhantomData<T>,
}

// SAFETY: a lock is made of atomics, and a marker of nothing.
unsafe impl<T> Atomics for Head<T> {}

impl<T> SharedArray<T> {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.object.tail_bytes() / const { Self::SIZE }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An element's size. Elements can be counted, and fit to where the tail begins.
    const SIZE: usize = {
        assert!(size_of::<T>() > 0 && align_of::<T>() <= 64);
        size_of::<T>()
    };

    fn with_len(len: usize) -> Result<Self, Error> {
        Ok(Self { object: Object::new(len.saturating_mul(const { Self::SIZE }))? })
    }
}

impl<T: Pod> SharedArray<T> {
    /// With a copy of `elements`, which may be a slice, a vector or an array.
    ///
    /// # Errors
    ///
    /// [`Error::SharedMemory`] when the system has no memory or no file descriptor for it.
    pub fn new(elements: impl AsRef<[T]>) -> Result<Self, Error> {
        let elements = elements.as_ref();
        let array = Self::zeroed(elements.len())?;
        array.lock().copy_from_slice(elements);
        Ok(array)
    }

    /// With `len` elements of zero.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn zeroed(len: usize) -> Result<Self, Error> {
        Self::with_len(len)
    }

    /// Waits for the lock, and gives the elements for as long as the guard is kept. It is not to be
    /// asked for by a thread that has it: that would wait for ever.
    pub fn lock(&self) -> LockGuard<'_, [T]> {
        self.guarded(self.raw().lock())
    }

    /// The same, if nobody has the lock.
    pub fn try_lock(&self) -> Option<LockGuard<'_, [T]>> {
        self.raw().try_lock().map(|guard| self.guarded(guard))
    }

    /// The same, unless the lock can't be had within `limit`.
    pub fn lock_timeout(&self, limit: Duration) -> Option<LockGuard<'_, [T]>> {
        self.raw().lock_timeout(limit).map(|guard| self.guarded(guard))
    }

    /// A copy of all elements, made under the lock.
    pub fn to_vec(&self) -> Vec<T> {
        self.lock().to_vec()
    }

    fn raw(&self) -> &RawLock {
        &self.object.head().lock
    }

    /// The elements, for who has the lock.
    fn guarded<'a>(&'a self, guard: LockGuard<'a>) -> LockGuard<'a, [T]> {
        let start = NonNull::new(self.object.tail_start()).expect("nothing is mapped at 0");
        let elements = NonNull::slice_from_raw_parts(start.cast(), self.len());
        // SAFETY: there are so many elements, which may have any bytes, for as long as the array
        // lives, which the guard borrows. Only here are they reached, since the array's kind says
        // that they are no atomics, in whatever process.
        unsafe { guard.guarding(elements) }
    }
}

impl<A: Atomic> SharedArray<A> {
    /// Atomic integers with these values.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn atomic(values: impl AsRef<[A::Value]>) -> Result<Self, Error> {
        let values = values.as_ref();
        let array = Self::with_len(values.len())?;
        array.iter().zip(values).for_each(|(atomic, value)| atomic.put(*value));
        Ok(array)
    }
}

impl<A: Atomic> Deref for SharedArray<A> {
    type Target = [A];

    fn deref(&self) -> &[A] {
        self.object.tail(self.len())
    }
}

impl<T> Clone for SharedArray<T> {
    fn clone(&self) -> Self {
        Self { object: self.object.clone() }
    }
}

impl<T> fmt::Debug for SharedArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedArray").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The atomic integers of `std::sync::atomic`, of which a [`SharedArray`] or a
/// [`SharedValue`](crate::shared::SharedValue) can be made.
#[expect(private_bounds, reason = "these are all that there are")]
pub trait Atomic: Atomics {
    /// The integer.
    type Value: Pod;

    #[doc(hidden)]
    fn put(&self, value: Self::Value);
}

macro_rules! atomics { ($($atomic:ident: $value:ty),*) => {$(
    // SAFETY: it is an atomic integer.
    unsafe impl Atomics for $atomic {}

    impl Atomic for $atomic {
        type Value = $value;

        fn put(&self, value: $value) {
            self.store(value, Relaxed);
        }
    }
)*} }
atomics!(AtomicI8: i8, AtomicI16: i16, AtomicI32: i32, AtomicI64: i64, AtomicIsize: isize,
         AtomicU8: u8, AtomicU16: u16, AtomicU32: u32, AtomicU64: u64, AtomicUsize: usize);
