//! [`SharedArray`]: an array that several processes write.

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
use procpool_worker::memcpy;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ipc::memory::Atomics;
use crate::ipc::object::Object;
use crate::ipc::raw_lock::{LockGuard, RawLock};

/// An array of numbers or other plain data that several processes read and write, under a lock or as
/// atomics.
///
/// A clone is another handle to the same array. A handle can be sent anywhere inside an argument of a task,
/// an initializer or a [`Process`](crate::Process), inside a result, or inside a message of a
/// [`channel`](crate::channel).
///
/// # Under a lock
///
/// Elements of any [`Pod`] type are accessed through the array's own lock:
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
/// If a process dies or panics while it holds the lock, another process can acquire it.
/// [`LockGuard::abandoned_by`] then returns the PID of the previous holder, which may have written any part
/// of its changes.
///
/// A worker that attackers have taken over respects no lock. It can change the elements while a guard of this process
/// refers to them, which the language doesn't allow. With such workers use [`to_vec`](Self::to_vec), which copies, or
/// atomics, or a [`channel`](crate::channel).
///
/// # As atomics
///
/// With an atomic integer as its element type, the array dereferences to a slice of atomics and has no
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

// SAFETY: a lock consists of atomics, and a marker has no bytes.
unsafe impl<T> Atomics for Head<T> {}

impl<T> SharedArray<T> {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.object.tail_bytes() / const { Self::SIZE }
    }

    /// Returns whether the array has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The size of an element in bytes. It is not zero, and the tail is aligned for elements.
    const SIZE: usize = {
        assert!(size_of::<T>() > 0 && align_of::<T>() <= 64);
        size_of::<T>()
    };

    fn with_len(len: usize) -> Result<Self, Error> {
        Ok(Self { object: Object::new(len.saturating_mul(const { Self::SIZE }))? })
    }
}

impl<T: Pod> SharedArray<T> {
    /// Creates an array with a copy of `elements`: a slice, a vector or an array.
    ///
    /// # Errors
    ///
    /// [`Error::SharedMemory`] if memory or a file descriptor cannot be allocated.
    pub fn new(elements: impl AsRef<[T]>) -> Result<Self, Error> {
        let elements = elements.as_ref();
        let array = Self::zeroed(elements.len())?;
        array.lock().copy_from_slice(elements);
        Ok(array)
    }

    /// Creates an array of `len` zero elements.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn zeroed(len: usize) -> Result<Self, Error> {
        Self::with_len(len)
    }

    /// Acquires the lock, and blocks until it is free. The guard dereferences to the elements. Deadlocks if
    /// this thread already holds the lock.
    pub fn lock(&self) -> LockGuard<'_, [T]> {
        self.guarded(self.raw().lock())
    }

    /// Acquires the lock without blocking. Returns `None` if it is held.
    pub fn try_lock(&self) -> Option<LockGuard<'_, [T]>> {
        self.raw().try_lock().map(|guard| self.guarded(guard))
    }

    /// Acquires the lock, and blocks for at most `limit`. Returns `None` if it is still held then.
    pub fn lock_timeout(&self, limit: Duration) -> Option<LockGuard<'_, [T]>> {
        self.raw().lock_timeout(limit).map(|guard| self.guarded(guard))
    }

    /// Returns a copy of all elements, made under the lock.
    pub fn to_vec(&self) -> Vec<T> {
        let mut copy = Vec::<T>::with_capacity(self.len());
        let _held = self.raw().lock();
        // SAFETY: the memory holds this many elements, for which all bytes are valid. No reference to them exists
        // here, so that a process which does not respect the lock changes what is copied, and nothing else.
        unsafe {
            memcpy::copy(
                self.object.tail_start(),
                copy.as_mut_ptr().cast(),
                self.len() * Self::SIZE,
            );
            copy.set_len(self.len());
        }
        copy
    }

    /// Returns a copy of an element, made under the lock.
    pub(crate) fn load(&self, index: usize) -> T {
        assert!(index < self.len());
        let _held = self.raw().lock();
        // SAFETY: as in `to_vec`.
        unsafe { self.object.tail_start().cast::<T>().add(index).read_volatile() }
    }

    /// Replaces an element, under the lock.
    pub(crate) fn store(&self, index: usize, value: T) {
        assert!(index < self.len());
        let _held = self.raw().lock();
        // SAFETY: as in `to_vec`.
        unsafe { self.object.tail_start().cast::<T>().add(index).write_volatile(value) };
    }

    fn raw(&self) -> &RawLock {
        &self.object.head().lock
    }

    /// Converts the guard of the lock into a guard of the elements.
    fn guarded<'a>(&'a self, guard: LockGuard<'a>) -> LockGuard<'a, [T]> {
        let start = NonNull::new(self.object.tail_start()).expect("nothing is mapped at 0");
        let elements = NonNull::slice_from_raw_parts(start.cast(), self.len());
        // SAFETY: the memory holds this many elements, for which all bytes are valid, as long as the array,
        // which the guard borrows. They are accessed only here: the kind of the object ensures that no
        // process treats them as atomics.
        unsafe { guard.with_data(elements) }
    }
}

impl<A: Atomic> SharedArray<A> {
    /// Creates an array of atomic integers with these values.
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

/// The atomic integers of `std::sync::atomic`, which can be elements of a [`SharedArray`] or a
/// [`SharedValue`](crate::shared::SharedValue).
#[expect(private_bounds, reason = "sealed: these are all atomic integers")]
pub trait Atomic: Atomics {
    /// The integer type.
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
