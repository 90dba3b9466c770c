//! An object in shared memory that several processes write: a head of atomics, and what comes after
//! it, its tail.

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
        object.tag().store(kind::<H>(), Relaxed);
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

/// Tells objects apart; the same in all processes of a program.
fn kind<H>() -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    type_name::<H>().bytes().fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

impl<H> Clone for Object<H> {
    fn clone(&self) -> Self {
        Self { memory: Arc::clone(&self.memory), head: PhantomData }
    }
}

impl<H> Serialize for Object<H> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.memory.handle().map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de, H: Atomics> Deserialize<'de> for Object<H> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let handle = Handle::deserialize(deserializer)?;
        let memory = SharedMemory::open(handle, false).map_err(D::Error::custom)?;
        let object = Self { memory, head: PhantomData };
        if object.memory.len() < Self::TAIL || object.tag().load(Relaxed) != kind::<H>() {
            return Err(D::Error::custom("what was shared is something else"));
        }
        Ok(object)
    }
}
