//! Shared memory between parent and worker: an anonymous file of a fixed size, mapped.
//!
//! The file is sealed against shrinking before another process can map it, and [`Region::open`] refuses
//! an unsealed file: truncated memory would be a SIGBUS here. The content is untrusted: the other process
//! may write it at any time.
//!
//! A region needs its descriptor only until it is sent. [`Region::close_descriptor`] closes it; the
//! memory stays mapped.
//!
//! Memory that several workers read is [`Frozen`]: sealed against writing too, before the first of them
//! maps it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::shm::memcpy;
use crate::shm::sys::with_call_name;

/// The seals of a region: its size never changes.
const SIZE: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The seals of memory that no process writes any more.
const FROZEN: SealFlags = SIZE.union(SealFlags::WRITE);

/// Memory that two processes share. It is freed when both have unmapped it, however they end.
#[derive(Debug)]
pub struct Region {
    address: NonNull<u8>,
    len: usize,
    descriptor: Option<OwnedFd>,
    /// How many bytes have been populated through this mapping. Asking the kernel again costs some 30 µs
    /// per MiB.
    populated: AtomicUsize,
}

// SAFETY: a region is memory that any thread may access. Its methods return raw pointers only.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Creates a region of `len` zero bytes and allocates memory for the first `populated` bytes.
    ///
    /// # Errors
    ///
    /// When the system has no memory or no file descriptor for it.
    pub fn new(len: usize, populated: usize) -> io::Result<Self> {
        let file = with_call_name(
            "memfd_create",
            rustix::fs::memfd_create("procpool", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING),
        )?;
        with_call_name("ftruncate", retry_on_intr(|| rustix::fs::ftruncate(&file, len as u64)))?;
        with_call_name("fcntl(F_ADD_SEALS)", rustix::fs::fcntl_add_seals(&file, SIZE))?;
        let region = Self::map(file, len)?;
        region.populate(populated.min(len))?;
        Ok(region)
    }

    /// Creates a region with a copy of `bytes`.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn copy_of(bytes: &[u8]) -> io::Result<Self> {
        let mut region = Self::new(bytes.len(), bytes.len())?;
        region.write(0, bytes);
        Ok(region)
    }

    /// Maps a region that the parent has created, of at least `least` bytes.
    ///
    /// # Errors
    ///
    /// When it is unsealed, is smaller, or can't be mapped.
    pub fn open(file: OwnedFd, least: u64) -> io::Result<Self> {
        let (file, len, _) = examine(file, SIZE)?;
        if (len as u64) < least {
            return Err(invalid("the shared memory is smaller than claimed"));
        }
        Self::map(file, len)
    }

    /// Maps a region that a worker has created. Memory must be allocated for all of it: a worker can't
    /// claim to have sent more than it has paid for.
    ///
    /// # Errors
    ///
    /// When it is unsealed, has less memory than its size, or can't be mapped.
    pub fn open_backed(file: OwnedFd) -> io::Result<Self> {
        let (file, len, backed) = examine(file, SIZE)?;
        if backed < len as u64 {
            return Err(invalid("the shared memory is smaller than claimed"));
        }
        Self::map(file, len)
    }

    fn map(file: OwnedFd, len: usize) -> io::Result<Self> {
        if len == 0 {
            return Ok(Self {
                address: NonNull::dangling(),
                len,
                descriptor: Some(file),
                populated: AtomicUsize::new(0),
            });
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so no existing mapping is replaced.
        let address = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, &file, 0)
        };
        let address = NonNull::new(with_call_name("mmap", address)?.cast())
            .ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { address, len, descriptor: Some(file), populated: AtomicUsize::new(0) })
    }

    /// Allocates memory for the first `bytes` bytes at once. A lack of memory is an error here instead of
    /// a SIGBUS later, and one call costs a fraction of a page fault per 4 KiB.
    ///
    /// # Errors
    ///
    /// When the system has no memory for it.
    pub fn populate(&self, bytes: usize) -> io::Result<()> {
        let bytes = bytes.min(self.len);
        if bytes <= self.populated.load(Relaxed) {
            return Ok(());
        }
        let start = self.address.as_ptr().cast();
        // SAFETY: the memory is this region's mapping. Its content does not change.
        let populated = match unsafe {
            rustix::mm::madvise(start, bytes, Advice::LinuxPopulateWrite)
        } {
            // Kernels before 5.14 don't know the advice, and a filter may refuse it.
            Err(Errno::INVAL | Errno::PERM | Errno::ACCESS | Errno::NOSYS) => {
                match &self.descriptor {
                    Some(file) => {
                        let reserve = || {
                            rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes as u64)
                        };
                        with_call_name("fallocate", retry_on_intr(reserve))
                    }
                    None => Ok(()),
                }
            }
            populated => with_call_name("madvise", populated),
        };
        populated.inspect(|()| self.populated.store(bytes, Relaxed))
    }

    /// Closes the descriptor. The memory stays mapped, but the region can't be sent any more.
    pub fn close_descriptor(&mut self) {
        self.descriptor = None;
    }

    /// Returns the descriptor to send, if it is still open.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.descriptor.as_ref().map(AsFd::as_fd)
    }

    /// Returns the memory to the system, for all processes that map it. The content is lost.
    pub fn discard(&self) {
        self.populated.store(0, Relaxed);
        if self.len > 0 {
            // SAFETY: the mapping stays. Readers see zeros from now on, which the content of a shared
            // region may be at any time.
            let _ = unsafe {
                rustix::mm::madvise(self.address.as_ptr().cast(), self.len, Advice::LinuxRemove)
            };
        }
    }

    /// Returns the size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the size is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the address of the first byte. It is valid for [`len`](Self::len) bytes while the region
    /// lives. The other process may write the bytes at any time: access them by raw copies and atomics
    /// only.
    pub fn as_ptr(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// Copies `bytes` to offset `at`.
    ///
    /// # Panics
    ///
    /// When they do not fit.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at, "the bytes fit into the region");
        // SAFETY: inside the region, as just checked. The source does not overlap it: a region can't be
        // borrowed as initialised memory.
        unsafe { memcpy::copy(bytes.as_ptr(), self.as_ptr().add(at), bytes.len()) };
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: mapped by `map`. Users of the memory borrow the region, or justify it where they take
            // the pointer.
            let _ = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.len) };
        }
    }
}

/// Memory that several processes share and that none of them can write: the kernel refuses every write
/// to its file, and every mapping that could write.
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
    /// Maps a file of at least `least` bytes that the parent has sealed against writing.
    ///
    /// # Errors
    ///
    /// When it is unsealed, is smaller, or can't be mapped.
    pub fn open(file: OwnedFd, least: u64) -> io::Result<Self> {
        let (file, len, _) = examine(file, FROZEN)?;
        if (len as u64) < least {
            return Err(invalid("the shared memory is smaller than claimed"));
        }
        if len == 0 {
            return Ok(Self { address: NonNull::dangling(), len });
        }
        // Private, because before Linux 6.7 a file that is sealed against writing can't be mapped
        // otherwise. Nothing is written, so the pages are the file's all the same.
        let (access, sharing) = (ProtFlags::READ, MapFlags::PRIVATE);
        // SAFETY: the kernel chooses the address, so no existing mapping is replaced.
        let address =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, access, sharing, &file, 0) };
        let address = NonNull::new(with_call_name("mmap", address)?.cast())
            .ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { address, len })
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for `len` bytes while `self` lives. The seals keep every process from changing
        // their number or their content.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.len) }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: mapped by `open`. Users of the memory borrow `self`.
            let _ = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.len) };
        }
    }
}

/// Returns the file, its size, and the bytes of memory allocated for it. The file must have the seals
/// `expected`.
fn examine(file: OwnedFd, expected: SealFlags) -> io::Result<(OwnedFd, usize, u64)> {
    // Only an anonymous file has seals.
    let seals = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
    if !seals.contains(expected) {
        return Err(invalid("the shared memory can still be changed: it lacks seals"));
    }
    if !is_ordinary_memory(&file)? {
        return Err(invalid("the shared memory is in huge pages of a fixed number"));
    }
    let stat = rustix::fs::fstat(&file)?;
    let len =
        usize::try_from(stat.st_size).map_err(|_| invalid("the shared memory has no size"))?;
    Ok((file, len, stat.st_blocks.cast_unsigned().saturating_mul(512)))
}

/// Returns whether a file with seals is in ordinary memory. A seal against shrinking forbids no holes. In ordinary memory
/// a hole is filled at the next access; in huge pages that are counted (`MFD_HUGETLB`), that needs one that is free, and
/// is a SIGBUS without.
///
/// # Errors
///
/// Those of `fstatfs`.
pub fn is_ordinary_memory(file: impl AsFd) -> io::Result<bool> {
    /// Of tmpfs, whose files anonymous ones are.
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    Ok(rustix::fs::fstatfs(file)?.f_type as u64 == TMPFS_MAGIC)
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
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
        // Kernels without huge pages have no such files.
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
        if let Ok(file) = rustix::fs::memfd_create("test", flags) {
            rustix::fs::fcntl_add_seals(&file, SIZE).unwrap();
            assert!(!is_ordinary_memory(&file).unwrap());
            let refused = Region::open(file, 0).unwrap_err();
            assert!(refused.to_string().contains("huge pages"), "{refused}");
        }
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
        unsafe { memcpy::append_from(&mut bytes, other.as_ptr(), other.len()) };
        assert_eq!(bytes, [7; 5000]);
    }
}
