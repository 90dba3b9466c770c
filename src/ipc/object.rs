//! An object in shared memory that several processes write: a head of atomics, followed by a tail.
//!
//! Small objects share regions, so that thousands of them use only a few descriptors. A region starts with
//! a directory, whose slots contain the kind and position of each object:
//!
//! ```text
//!   mark, number of slots │ slot 0 │ slot 1 │ …      │ object 0 │ object 1 │ …
//!   ──────────────────────┴────────┴────────┴────────┴──────────┴──────────┴───
//! ```
//!
//! The process that creates a region fills it from start to end. A slot is never reused, because other
//! processes may still have an object that this one has dropped. The region is freed with its last object.
//!
//! The type of the head is recorded twice: in the encoding, so that decoding as another type is an error
//! (see [`Kind`]), and in the directory, so that a forged encoding cannot access data as atomics that other
//! processes access under a lock.

use std::any::type_name;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;
use crate::ipc::handle::Handle;
use crate::ipc::memory::{Atomics, SharedMemory};
use crate::os::process::PerProcess;

/// The size of a cache line in bytes. Objects, which different processes write, do not share cache lines.
const LINE: usize = 64;

/// The size in bytes of a region for small objects, and its number of slots: enough to fill it with objects
/// of two cache lines, the smallest except for locks.
const REGION: usize = 64 << 10;
const SLOTS: usize = 416;

/// Objects of more bytes have a region of their own.
const SMALL: usize = 1 << 10;

/// An object whose head is `H`. A clone is another handle to the same object.
#[derive(Debug)]
pub(crate) struct Object<H> {
    memory: Arc<SharedMemory>,
    slot: u32,
    /// The offset of the head and the size of the tail in bytes. Read once, because any process may overwrite
    /// the directory.
    start: usize,
    tail: usize,
    head: PhantomData<fn() -> H>,
}

/// A slot in a region's directory.
#[derive(Debug)]
#[repr(C)]
struct Slot {
    kind: AtomicU64,
    start: AtomicU64,
    tail: AtomicU64,
}

// SAFETY: the type consists of atomics.
unsafe impl Atomics for Slot {}

/// The region that is being filled.
#[derive(Debug)]
struct Current {
    memory: Weak<SharedMemory>,
    slots: usize,
    end: usize,
}

/// A forked copy has one of its own: it must not fill the same region, and the lock might be held for ever
/// there.
static CURRENT: PerProcess<Mutex<Option<Current>>> = PerProcess::new();

/// Returns the offset of the first object in a region with this many slots.
const fn directory(slots: usize) -> usize {
    (LINE + slots * size_of::<Slot>()).next_multiple_of(LINE)
}

/// Creates a region of `bytes` bytes and `slots` slots.
fn region(bytes: usize, slots: usize) -> io::Result<Arc<SharedMemory>> {
    let memory = SharedMemory::zeroed(bytes)?;
    let words = memory.atomics::<AtomicU64>(0, 2).expect("a region holds its directory");
    words[0].store(number::<Slot>(), Relaxed);
    words[1].store(slots as u64, Relaxed);
    Ok(Arc::new(memory))
}

/// Allocates an object of `bytes` bytes. Returns its region, its slot and its offset.
fn allocate(bytes: usize) -> io::Result<(Arc<SharedMemory>, usize, usize)> {
    if bytes > SMALL {
        let start = directory(1);
        return Ok((region(start.saturating_add(bytes), 1)?, 0, start));
    }
    let mut current = CURRENT.get().lock().unwrap_or_else(PoisonError::into_inner);
    let known =
        current.as_mut().filter(|current| current.slots < SLOTS && current.end + bytes <= REGION);
    if let Some(current) = known
        && let Some(memory) = current.memory.upgrade()
    {
        let (slot, start) = (current.slots, current.end);
        current.slots += 1;
        current.end += bytes;
        return Ok((memory, slot, start));
    }
    let (memory, start) = (region(REGION, SLOTS)?, directory(SLOTS));
    *current = Some(Current { memory: Arc::downgrade(&memory), slots: 1, end: start + bytes });
    Ok((memory, 0, start))
}

/// Returns the directory's entry of a slot, or `None` if the memory is not a region with this slot.
fn slot(memory: &SharedMemory, slot: usize) -> Option<&Slot> {
    let words = memory.atomics::<AtomicU64>(0, 2)?;
    let is_there =
        words[0].load(Relaxed) == number::<Slot>() && (slot as u64) < words[1].load(Relaxed);
    let offset = slot.checked_mul(size_of::<Slot>())?.checked_add(LINE)?;
    memory.atomics(offset, 1).filter(|_| is_there)?.first()
}

impl<H: Atomics> Object<H> {
    /// Creates a zeroed object with a tail of `tail` bytes.
    pub(crate) fn new(tail: usize) -> Result<Self, Error> {
        let bytes = Self::HEAD.saturating_add(tail);
        let bytes = bytes.checked_next_multiple_of(LINE).unwrap_or(usize::MAX);
        let refused = |source| Error::SharedMemory { bytes, source };
        let (memory, index, start) = allocate(bytes).map_err(refused)?;
        let entry = slot(&memory, index).expect("the slot was just taken");
        entry.kind.store(number::<H>(), Relaxed);
        entry.start.store(start as u64, Relaxed);
        entry.tail.store(tail as u64, Relaxed);
        Ok(Self { memory, slot: index as u32, start, tail, head: PhantomData })
    }

    /// The size of the head, and the offset of the tail. It is a multiple of a cache line, which aligns every
    /// tail.
    const HEAD: usize = {
        assert!(align_of::<H>() <= LINE);
        size_of::<H>().next_multiple_of(LINE)
    };

    /// Returns the object in a slot, or `None` if the slot has no valid object of this kind.
    fn find(memory: Arc<SharedMemory>, index: u32) -> Option<Self> {
        let entry = slot(&memory, index as usize)?;
        let start = usize::try_from(entry.start.load(Relaxed)).ok()?;
        let tail = usize::try_from(entry.tail.load(Relaxed)).ok()?;
        let end = start.checked_add(Self::HEAD)?.checked_add(tail)?;
        let is_one = entry.kind.load(Relaxed) == number::<H>();
        // Behind the directory, whose length any process may have changed, too.
        let is_behind = start >= directory(index as usize + 1);
        let fits = start.is_multiple_of(LINE) && is_behind && end <= memory.len();
        (is_one && fits).then_some(Self { memory, slot: index, start, tail, head: PhantomData })
    }

    pub(crate) fn head(&self) -> &H {
        &self.atomics(self.start, 1)[0]
    }

    /// Returns the tail as `len` atomics.
    pub(crate) fn tail<A: Atomics>(&self, len: usize) -> &[A] {
        assert!(len.checked_mul(size_of::<A>()).is_some_and(|bytes| bytes <= self.tail));
        self.atomics(self.start + Self::HEAD, len)
    }

    /// Returns the size of the tail in bytes.
    pub(crate) fn tail_bytes(&self) -> usize {
        self.tail
    }

    /// Returns the start of the tail.
    pub(crate) fn tail_start(&self) -> *mut u8 {
        self.memory.start().wrapping_add(self.start + Self::HEAD)
    }

    fn atomics<A: Atomics>(&self, offset: usize, len: usize) -> &[A] {
        self.memory.atomics(offset, len).expect("an object's memory is as large as it was made")
    }
}

/// Marks an encoding as that of a `P`. Decoding it as another type's mark is an error.
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

/// Returns the error of decoding a `P` from the encoding of another type.
pub(crate) fn something_else<P: ?Sized, E: serde::de::Error>() -> E {
    E::custom(format_args!(
        "the shared object has another type than `{}`: encode and decode the same type",
        type_name::<P>()
    ))
}

/// Returns a number that identifies a type in all processes of a program.
fn number<P: ?Sized>() -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    type_name::<P>().bytes().fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

impl<H> Clone for Object<H> {
    fn clone(&self) -> Self {
        Self { memory: Arc::clone(&self.memory), head: PhantomData, ..*self }
    }
}

impl<H> Serialize for Object<H> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let handle = self.memory.handle().map_err(S::Error::custom)?;
        (Kind::<H>::new(), handle, self.slot).serialize(serializer)
    }
}

impl<'de, H: Atomics> Deserialize<'de> for Object<H> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (_, handle, slot) = <(Kind<H>, Handle, u32)>::deserialize(deserializer)?;
        let memory = SharedMemory::open(handle, false).map_err(D::Error::custom)?;
        Self::find(memory, slot).ok_or_else(something_else::<H, D::Error>)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_slot_is_found_only_as_its_own_kind_whatever_the_directory_contains() {
        let object = Object::<AtomicU64>::new(100).unwrap();
        let find = |slot| Object::<AtomicU64>::find(Arc::clone(&object.memory), slot);
        let found = find(object.slot).unwrap();
        assert_eq!((found.start, found.tail), (object.start, 100));
        assert!(Object::<Slot>::find(Arc::clone(&object.memory), object.slot).is_none());
        assert!(find(u32::MAX).is_none() && find(SLOTS as u32).is_none());
        let other = Object::<AtomicU64>::new(SMALL).unwrap();
        assert!(!Arc::ptr_eq(&other.memory, &object.memory));
        let entry = slot(&other.memory, 0).unwrap();
        let places =
            [(0, u64::MAX), (0, 8), (64, 8), (u64::MAX, 0), (8, 8), (1 << 20, 8), (128, 1 << 20)];
        for (start, tail) in places {
            entry.start.store(start, Relaxed);
            entry.tail.store(tail, Relaxed);
            assert!(Object::<AtomicU64>::find(Arc::clone(&other.memory), 0).is_none());
        }
    }

    #[test]
    fn objects_of_a_region_do_not_overlap_and_slots_are_never_reused() {
        let objects: Vec<_> =
            (0..2 * SLOTS).map(|_| Object::<AtomicU64>::new(8).unwrap()).collect();
        let mut places: Vec<_> = objects.iter().map(|it| it.head() as *const AtomicU64).collect();
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[1].addr() - pair[0].addr() >= 2 * LINE));
        let dropped = (objects[0].memory.start(), objects[0].slot);
        let kept: Vec<_> = objects.into_iter().skip(1).collect();
        let new = Object::<AtomicU64>::new(8).unwrap();
        assert_ne!((new.memory.start(), new.slot), dropped);
        drop(kept);
    }
}
