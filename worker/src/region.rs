//! Shared memory between parent and worker: an anonymous file of a fixed size, mapped.
//!
//! The file is sealed against shrinking before anyone else can map it, and [`Region::open`] refuses a
//! file that isn't: memory that the other process could take away would be a SIGBUS here. Its content
//! is never trusted: the other process may write it at any time.
//!
//! A region needs its descriptor only until it has been sent; [`Region::close_descriptor`] closes it,
//! and the memory stays mapped.
//!
//! What several workers read is [`Frozen`]: sealed against writing too, before the first of them maps it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::copy;

/// Seals of a region: its size never changes.
const SIZE: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Seals of memory that no process writes any more.
const FROZEN: SealFlags = SIZE.union(SealFlags::WRITE);

/// Memory that two processes share. It is gone when both have unmapped it, however they end.
#[derive(Debug)]
pub struct Region {
    address: NonNull<u8>,
    len: usize,
    descriptor: Option<OwnedFd>,
}

// SAFETY: a region is memory that any thread may access; its methods hand out raw pointers only.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Creates a region of `len` zero bytes, of which the first `populated` have memory.
    ///
    /// # Errors
    ///
    /// When the system has no memory or no file descriptor for it.
    pub fn new(len: usize, populated: usize) -> io::Result<Self> {
        let file = named(
            "memfd_create",
            rustix::fs::memfd_create("procpool", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING),
        )?;
        named("ftruncate", retry_on_intr(|| rustix::fs::ftruncate(&file, len as u64)))?;
        named("fcntl(F_ADD_SEALS)", rustix::fs::fcntl_add_seals(&file, SIZE))?;
        let region = Self::map(file, len)?;
        region.populate(populated.min(len))?;
        Ok(region)
    }

    /// Creates a region that holds a copy of `bytes`.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn copy_of(bytes: &[u8]) -> io::Result<Self> {
        let mut region = Self::new(bytes.len(), bytes.len())?;
        region.write(0, bytes);
        Ok(region)
    }

    /// Maps a region that the parent has made, of at least so many bytes.
    ///
    /// # Errors
    ///
    /// When it isn't sealed, is smaller, or can't be mapped.
    pub fn open(file: OwnedFd, least: u64) -> io::Result<Self> {
        let (file, len, _) = examine(file, SIZE)?;
        if (len as u64) < least {
            return Err(invalid("the shared memory is smaller than claimed"));
        }
        Self::map(file, len)
    }

    /// Maps a region that a worker has made. All of it must have memory: what a worker claims to have
    /// sent has cost it as much.
    ///
    /// # Errors
    ///
    /// When it isn't sealed, has less memory than its size, or can't be mapped.
    pub fn open_backed(file: OwnedFd) -> io::Result<Self> {
        let (file, len, backed) = examine(file, SIZE)?;
        if backed < len as u64 {
            return Err(invalid("the shared memory is smaller than claimed"));
        }
        Self::map(file, len)
    }

    fn map(file: OwnedFd, len: usize) -> io::Result<Self> {
        if len == 0 {
            return Ok(Self { address: NonNull::dangling(), len, descriptor: Some(file) });
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place, so no existing mapping is replaced.
        let address = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, &file, 0)
        };
        let address = NonNull::new(named("mmap", address)?.cast())
            .ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { address, len, descriptor: Some(file) })
    }

    /// Gives memory to the first `bytes`, all at once: a lack of it is an error here, not a SIGBUS
    /// later, and one call costs a fraction of a page fault for each 4 KiB.
    ///
    /// # Errors
    ///
    /// When the system has no memory for it.
    pub fn populate(&self, bytes: usize) -> io::Result<()> {
        let bytes = bytes.min(self.len);
        if bytes == 0 {
            return Ok(());
        }
        let start = self.address.as_ptr().cast();
        // SAFETY: the memory is this region's mapping; what it holds stays as it is.
        match unsafe { rustix::mm::madvise(start, bytes, Advice::LinuxPopulateWrite) } {
            // A kernel before 5.14 doesn't know the advice, and a filter may refuse it.
            Err(Errno::INVAL | Errno::PERM | Errno::ACCESS | Errno::NOSYS) => {
                match &self.descriptor {
                    Some(file) => {
                        let reserve = || {
                            rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes as u64)
                        };
                        named("fallocate", retry_on_intr(reserve))
                    }
                    None => Ok(()),
                }
            }
            populated => named("madvise", populated),
        }
    }

    /// Closes the descriptor. The memory stays mapped; the region can't be sent any more.
    pub fn close_descriptor(&mut self) {
        self.descriptor = None;
    }

    /// Returns the descriptor to send, if it is still open.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.descriptor.as_ref().map(AsFd::as_fd)
    }

    /// Returns its memory to the system, in every process that has it mapped; its content is lost.
    pub fn discard(&self) {
        if self.len > 0 {
            // SAFETY: the mapping stays; readers read zeros from now on, and the content of a shared
            // region may be anything at any time.
            let _ = unsafe {
                rustix::mm::madvise(self.address.as_ptr().cast(), self.len, Advice::LinuxRemove)
            };
        }
    }

    /// Returns its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns where its bytes start: valid for [`len`](Self::len) bytes as long as the region lives.
    /// The other process may write them at any time: read and write them by raw copies and atomics
    /// alone.
    pub fn as_ptr(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// Copies `bytes` to offset `at`.
    ///
    /// # Panics
    ///
    /// When they don't fit.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at, "the bytes fit into the region");
        // SAFETY: inside of the region, as was just checked; the source is no part of it, or it could
        // not be borrowed as initialised memory.
        unsafe { copy::copy(bytes.as_ptr(), self.as_ptr().add(at), bytes.len()) };
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: mapped by `map`; what uses the memory borrows from the region or is argued where
            // the pointer was taken.
            let _ = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.len) };
        }
    }
}

/// Memory that several processes share and that none of them can write: the kernel refuses every write
/// to its file and every mapping that could write.
#[derive(Debug)]
pub struct Frozen {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: no process writes the memory, so any thread may read it.
unsafe impl Send for Frozen {}
// SAFETY: as above.
unsafe impl Sync for Frozen {}

impl Frozen {
    /// Maps a file of at least so many bytes that the parent has sealed against writing.
    ///
    /// # Errors
    ///
    /// When it isn't sealed, is smaller, or can't be mapped.
    pub fn open(file: OwnedFd, least: u64) -> io::Result<Self> {
        let (file, len, _) = examine(file, FROZEN)?;
        if (len as u64) < least {
            return Err(invalid("the shared memory is smaller than claimed"));
        }
        if len == 0 {
            return Ok(Self { address: NonNull::dangling(), len });
        }
        // Private, since before Linux 6.7 a file that is sealed against writing can't be mapped otherwise.
        // As nothing is written, the pages are the file's all the same.
        let (access, sharing) = (ProtFlags::READ, MapFlags::PRIVATE);
        // SAFETY: the kernel chooses the place, so no existing mapping is replaced.
        let address =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, access, sharing, &file, 0) };
        let address = NonNull::new(named("mmap", address)?.cast())
            .ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { address, len })
    }

    /// Returns its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for `len` bytes as long as `self`; the seals keep every process from changing
        // their number or their content.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.len) }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: mapped by `open`; what uses the memory borrows from `self`.
            let _ = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.len) };
        }
    }
}

/// Returns the file, its size, and how many bytes of memory are behind it; it must have these seals.
fn examine(file: OwnedFd, expected: SealFlags) -> io::Result<(OwnedFd, usize, u64)> {
    // What is no anonymous file has no seals.
    let seals = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
    if !seals.contains(expected) {
        return Err(invalid("the shared memory can still be changed: it lacks seals"));
    }
    let stat = rustix::fs::fstat(&file)?;
    let len =
        usize::try_from(stat.st_size).map_err(|_| invalid("the shared memory has no size"))?;
    Ok((file, len, stat.st_blocks.cast_unsigned().saturating_mul(512)))
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Names the system call in its error.
pub(crate) fn named<T>(call: &str, outcome: rustix::io::Result<T>) -> io::Result<T> {
    outcome.map_err(|errno| {
        let error = io::Error::from(errno);
        match errno {
            // What the callers explain by themselves keeps its number.
            Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::NOMEM => error,
            _ => io::Error::new(error.kind(), format!("{call}: {error}")),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sparse(len: u64, seals: SealFlags) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&file, len).unwrap();
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        file
    }

    #[test]
    fn memory_that_can_be_taken_away_is_refused() {
        assert!(Region::open(sparse(4096, SealFlags::empty()), 0).is_err());
        assert!(Region::open(sparse(4096, SealFlags::GROW), 0).is_err());
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(Region::open(reader.into(), 0).is_err());
        assert!(Region::open(std::fs::File::open("/dev/zero").unwrap().into(), 0).is_err());
    }

    #[test]
    fn frozen_memory_is_sealed_against_writing_and_as_large_as_claimed_or_is_refused() {
        assert!(Frozen::open(sparse(4096, SIZE), 0).is_err(), "it can still be written");
        assert!(Frozen::open(sparse(4096, FROZEN), 4097).is_err());
        assert_eq!(Frozen::open(sparse(4096, FROZEN), 4096).unwrap().bytes(), [0; 4096]);
        assert!(Frozen::open(sparse(0, FROZEN), 0).unwrap().bytes().is_empty());
    }

    #[test]
    fn a_region_has_as_much_memory_as_it_claims_or_is_refused() {
        assert!(Region::open_backed(sparse(1 << 40, SIZE)).is_err(), "nothing is behind it");
        assert!(Region::open(sparse(4096, SIZE), 4097).is_err());
        let region = Region::copy_of(&[7; 5000]).unwrap();
        let file = || region.descriptor().unwrap().try_clone_to_owned().unwrap();
        assert!(Region::open(file(), 5001).is_err());
        let other = Region::open_backed(file()).unwrap();
        let mut bytes = Vec::new();
        // SAFETY: the region has 5000 bytes, and no other thread writes them.
        unsafe { copy::append_from(&mut bytes, other.as_ptr(), other.len()) };
        assert_eq!(bytes, [7; 5000]);
    }
}
