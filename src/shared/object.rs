//! An object in shared memory that several processes write: a head of atomics, and what comes after
//! it, its tail.
//!
//! The type of the head is noted twice: in the encoding, so that a type decoded as another is an error
//! (see [`Kind`]), and in the memory itself, so that no encoding put together by hand makes atomics of
//! what others reach under a lock.

use std::fmt;

use std::any::type_name;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;
use crate::os::handle::Handle;
use crate::os::memory::{Atomics, SharedMemory};

/// Where the head begins: parts that are written by different processes are kept in cache lines of
/// their own.
const LINE: usize = 64;

/// An object whose head is `H`. A clone is another handle on the same one.
#[derive(Debug)]
pub(crate) struct Object<H> {
    memory: Arc<SharedMemory>,
    head: PhantomData<fn() -> H>,
}

impl<H: Atomics> Object<H> {
    /// All of it zero, with a tail of `tail` bytes.
    pub(crate) fn new(tail: usize) -> Result<Self, Error> {
        let bytes = Self::TAIL.saturating_add(tail);
        let memory = SharedMemory::zeroed(bytes);
        let memory = memory.map_err(|source| Error::SharedMemory { bytes, source })?;
        let object = Self { memory: Arc::new(memory), head: PhantomData };
        object.tag().store(number::<H>(), Relaxed);
        Ok(object)
    }

    /// Where the tail begins: at a border that is good enough for all that may be there.
    const TAIL: usize = (LINE + size_of::<H>()).next_multiple_of(LINE);

    /// Says of which kind the object is.
    fn tag(&self) -> &AtomicU64 {
        &self.atomics(0, 1)[0]
    }

    pub(crate) fn head(&self) -> &H {
        &self.atomics(LINE, 1)[0]
    }

    /// The tail as `len` atomics.
    pub(crate) fn tail<A: Atomics>(&self, len: usize) -> &[A] {
        self.atomics(Self::TAIL, len)
    }

    /// How many bytes the tail has.
    pub(crate) fn tail_bytes(&self) -> usize {
        self.memory.len() - Self::TAIL
    }

    /// Where the tail begins.
    pub(crate) fn tail_start(&self) -> *mut u8 {
        self.memory.start().wrapping_add(Self::TAIL)
    }

    fn atomics<A: Atomics>(&self, offset: usize, len: usize) -> &[A] {
        self.memory.atomics(offset, len).expect("an object's memory is as large as it was made")
    }
}

/// Marks an encoding as one of a `P`. Decoding it as the mark of another type is an error.
pub(crate) struct Kind<P: ?Sized>(PhantomData<fn() -> P>);

impl<P: ?Sized> Kind<P> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<P: ?Sized> fmt::Debug for Kind<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kind({})", type_name::<P>())
    }
}

impl<P: ?Sized> Serialize for Kind<P> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        number::<P>().serialize(serializer)
    }
}

impl<'de, P: ?Sized> Deserialize<'de> for Kind<P> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? == number::<P>() {
            true => Ok(Self::new()),
            false => Err(something_else::<P, D::Error>()),
        }
    }
}

/// The error of what was shared as another type than `P`.
pub(crate) fn something_else<P: ?Sized, E: serde::de::Error>() -> E {
    E::custom(format_args!(
        "what was shared is something else than a `{}`: encode and decode the same type",
        type_name::<P>()
    ))
}

/// Tells types apart; the same in all processes of a program.
fn number<P: ?Sized>() -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    type_name::<P>().bytes().fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

impl<H> Clone for Object<H> {
    fn clone(&self) -> Self {
        Self { memory: Arc::clone(&self.memory), head: PhantomData }
    }
}

impl<H> Serialize for Object<H> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let handle = self.memory.handle().map_err(S::Error::custom)?;
        (Kind::<H>::new(), handle).serialize(serializer)
    }
}

impl<'de, H: Atomics> Deserialize<'de> for Object<H> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (_, handle) = <(Kind<H>, Handle)>::deserialize(deserializer)?;
        let memory = SharedMemory::open(handle, false).map_err(D::Error::custom)?;
        let object = Self { memory, head: PhantomData };
        if object.memory.len() < Self::TAIL || object.tag().load(Relaxed) != number::<H>() {
            return Err(something_else::<H, D::Error>());
        }
        Ok(object)
    }
}
