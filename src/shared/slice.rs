//! [`SharedSlice`]: a slice that is created once and read by many processes.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use bytemuck::Pod;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;
use crate::ipc::handle::Handle;
use crate::ipc::memory::SharedMemory;
use crate::ipc::object::Kind;

/// A slice of numbers or other plain data that many processes read and none can write.
///
/// It is created once, and exists once in memory. An argument or a result contains only a handle of a few
/// bytes. A worker maps the memory when it receives the first handle, and keeps it mapped while it is in use. A clone
/// is another handle to the same memory. The memory is freed when no process has a handle, even if processes
/// are killed.
///
/// Elements can be of any [`Pod`] type.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Pool;
/// use procpool::shared::SharedSlice;
///
/// fn sum_of_part((samples, part): (SharedSlice<f64>, usize)) -> f64 {
///     samples.chunks(1000).nth(part).map_or(0.0, |part| part.iter().sum())
/// }
///
/// let pool = Pool::new(4)?;
/// let samples = SharedSlice::new(vec![0.5; 10_000])?;
/// let sums = pool.map(sum_of_part, (0..10).map(|part| (samples.clone(), part)))?;
/// assert_eq!(sums, [500.0; 10]);
/// # Ok(())
/// # }
/// ```
///
/// # Sending it
///
/// It can be anywhere inside an argument of a task, an initializer or a [`Process`](crate::Process), inside a
/// result, or inside a message of a [`channel`](crate::channel). The pool keeps it alive until the task finishes
/// and its result is taken.
///
/// # Limits
///
/// The part that a worker has read counts towards its
/// [memory limit](crate::PoolBuilder::max_memory_per_worker).
pub struct SharedSlice<T> {
    memory: Arc<SharedMemory>,
    elements: PhantomData<Arc<[T]>>,
}

impl<T: Pod> SharedSlice<T> {
    /// Creates a shared copy of `elements`: a slice, a vector or an array.
    ///
    /// # Errors
    ///
    /// [`Error::SharedMemory`] if memory or a file descriptor cannot be allocated.
    pub fn new(elements: impl AsRef<[T]>) -> Result<Self, Error> {
        let bytes = bytemuck::cast_slice(elements.as_ref());
        Self::of(SharedMemory::copy_of(bytes), bytes.len())
    }

    /// Creates a slice of `len` zero elements and calls `fill` once to write them in place.
    ///
    /// ```
    /// # fn main() -> Result<(), procpool::Error> {
    /// let squares = procpool::shared::SharedSlice::build(5, |squares: &mut [u64]| {
    ///     for (x, square) in (0..).zip(squares) {
    ///         *square = x * x;
    ///     }
    /// })?;
    /// assert_eq!(*squares, [0, 1, 4, 9, 16]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn build(len: usize, fill: impl FnOnce(&mut [T])) -> Result<Self, Error> {
        // The operating system refuses impossible sizes.
        let bytes = len.saturating_mul(size_of::<T>());
        let fill = |bytes: &mut [u8]| fill(bytemuck::cast_slice_mut(bytes));
        Self::of(SharedMemory::filled_by(bytes, fill), bytes)
    }

    fn of(memory: io::Result<SharedMemory>, bytes: usize) -> Result<Self, Error> {
        const { Self::FITS };
        let memory = memory.map_err(|source| Error::SharedMemory { bytes, source })?;
        Ok(Self { memory: Arc::new(memory), elements: PhantomData })
    }

    /// The size of an element is not zero, and the memory, which starts at a page, is aligned for it.
    const FITS: () = assert!(size_of::<T>() > 0 && align_of::<T>() <= 4096);
}

impl<T: Pod> Deref for SharedSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        const { Self::FITS };
        let len = self.memory.len() / size_of::<T>();
        // SAFETY: the memory is page-aligned and holds this many elements, for which all bytes are valid. It
        // is sealed: no process can write or shrink it.
        unsafe { std::slice::from_raw_parts(self.memory.start().cast(), len) }
    }
}

impl<T: Pod> AsRef<[T]> for SharedSlice<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<T> Clone for SharedSlice<T> {
    fn clone(&self) -> Self {
        Self { memory: Arc::clone(&self.memory), elements: PhantomData }
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for SharedSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T> Serialize for SharedSlice<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let handle = self.memory.handle().map_err(S::Error::custom)?;
        (Kind::<Self>::new(), handle).serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for SharedSlice<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (_, handle) = <(Kind<Self>, Handle)>::deserialize(deserializer)?;
        let memory = SharedMemory::open(handle, true).map_err(D::Error::custom)?;
        Ok(Self { memory, elements: PhantomData })
    }
}
