//! Shared memory: a mapped anonymous file. It has no name in the file system, and is freed with the last
//! process that has it open, even if processes are killed.
//!
//! All of its memory is allocated at creation (`fallocate`), so that a lack of memory is an error then and
//! not a SIGBUS at an access. Its size is sealed, so that no process can shrink it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use procpool_worker::attach::{Attached, FileId, NotAttachable};
use procpool_worker::region;
use rustix::fs::{FallocateFlags, MemfdFlags, OFlags, SealFlags};
use rustix::io::retry_on_intr;
use rustix::mm::{MapFlags, ProtFlags};

use crate::ipc::handle::{File, Handle, OpenError};
use crate::os::process::PerProcess;
use crate::os::signals;

/// How long a process keeps received memory mapped while it is unused, because the next task may receive the
/// same memory. Far longer than the time between two tasks, and short enough not to exhaust memory.
const KEEP: Duration = Duration::from_millis(100);

/// The seals of writable memory.
const SIZE: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The seals of read-only memory.
const FROZEN: SealFlags = SIZE.union(SealFlags::WRITE);

/// A mapped part of shared memory, with its file.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    file: File,
    mapping: Mapping,
    /// Whether it is sealed against writes.
    is_frozen: bool,
}

/// A part of this process's address space.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is memory that any thread may access. Its users synchronize their accesses.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Attached for SharedMemory {
    fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)> {
        self.file.files()
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl SharedMemory {
    /// Creates `len` zero bytes that all processes can write.
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
        let file = allocate(len)?;
        let mapping = Mapping::new(&file, 0..len as u64, true)?;
        rustix::fs::fcntl_add_seals(&file, SIZE)?;
        Ok(Self { file, mapping, is_frozen: false })
    }

    /// Creates `len` bytes that `fill` writes, and that are read-only afterwards.
    pub(crate) fn filled_by(len: usize, fill: impl FnOnce(&mut [u8])) -> io::Result<Self> {
        let file = allocate(len)?;
        let mapping = Mapping::new(&file, 0..len as u64, true)?;
        // SAFETY: the mapping has `len` zero bytes, and no other code has access to it yet.
        fill(unsafe { std::slice::from_raw_parts_mut(mapping.start(), len) });
        // A file cannot be sealed while it has a writable mapping.
        drop(mapping);
        Self::frozen(file, len)
    }

    /// Creates a read-only copy of `bytes`.
    pub(crate) fn copy_of(bytes: &[u8]) -> io::Result<Self> {
        let file = create(bytes.len())?;
        // Cheaper than through a mapping, which costs page faults.
        write_at(&file, bytes, 0)?;
        Self::frozen(file, bytes.len())
    }

    fn frozen(file: File, len: usize) -> io::Result<Self> {
        /// Attempts at sealing. The kernel refuses while it moves a page of the file, after a wait of its own of
        /// about a tenth of a second.
        const MAX_ATTEMPTS: u32 = 20;
        let mut attempts = 1;
        while let Err(errno) = rustix::fs::fcntl_add_seals(&file, FROZEN) {
            if errno != rustix::io::Errno::BUSY || attempts == MAX_ATTEMPTS {
                return Err(errno.into());
            }
            attempts += 1;
            std::thread::yield_now();
        }
        let mapping = Mapping::new(&file, 0..len as u64, false)?;
        Ok(Self { file, mapping, is_frozen: true })
    }

    /// Attaches the memory to the value that is being encoded, and returns its handle.
    pub(crate) fn handle(self: &Arc<Self>) -> Result<Handle, NotAttachable> {
        self.file.handle(self)
    }

    /// Opens the memory of a handle. It is mapped once, however often it is opened. If `frozen`, the memory
    /// must be read-only; otherwise it must be writable.
    pub(crate) fn open(handle: Handle, frozen: bool) -> Result<Arc<Self>, OpenError> {
        // Memory that is mapped already was sent with an earlier value, which may be of another task.
        if !handle.is_sent() {
            return Err(OpenError::NotSent);
        }
        let mut cache = map_cache();
        let entry = match cache.get_mut(&handle.identity()) {
            Some(entry) => entry,
            None => {
                let file = handle.open(if frozen { OFlags::RDONLY } else { OFlags::RDWR })?;
                let memory = Self::map(file, frozen)?;
                if cache.is_empty() {
                    let thread = std::thread::Builder::new().name("procpool-unmap".to_owned());
                    signals::blocked(|| thread.spawn(evict_unused))?;
                }
                cache.entry(handle.identity()).or_insert(Cached { memory, is_used: true })
            }
        };
        // It may have been mapped as another type. Writable memory cannot be a slice, and writing to a
        // read-only mapping would crash.
        if entry.memory.is_frozen != frozen {
            return Err(OpenError::Other);
        }
        entry.is_used = true;
        let memory = Arc::clone(&entry.memory);
        Ok(memory)
    }

    fn map(file: File, frozen: bool) -> io::Result<Arc<Self>> {
        let expected = if frozen { FROZEN } else { SIZE };
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        if !seals.contains(expected) || (!frozen && seals.contains(FROZEN)) {
            return Err(io::Error::other(
                "the seals of the file are wrong: the shared object has another type",
            ));
        }
        if !region::is_ordinary_memory(&file)? {
            return Err(io::Error::other("the shared object is in huge pages of a fixed number"));
        }
        let len = rustix::fs::fstat(&file)?.st_size.cast_unsigned();
        // Whoever sends memory has allocated all of it: without, an access could be a SIGBUS.
        if allocated(&file)? < len {
            return Err(io::Error::other("the shared object has less memory than its size"));
        }
        let mapping = Mapping::new(&file, 0..len, !frozen)?;
        Ok(Arc::new(Self { file, mapping, is_frozen: frozen }))
    }

    /// Returns its page-aligned start.
    pub(crate) fn start(&self) -> *mut u8 {
        self.mapping.start()
    }

    /// Returns its content, if it is read-only.
    pub(crate) fn frozen_bytes(&self) -> Option<&[u8]> {
        // SAFETY: the memory is mapped as long as `self`, and sealed against writing.
        self.is_frozen.then(|| unsafe { std::slice::from_raw_parts(self.start(), self.len()) })
    }

    /// Returns its size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.mapping.len
    }

    /// Returns the `len` values of `A` at `offset`, or `None` if they are misaligned or beyond the memory.
    pub(crate) fn atomics<A: Atomics>(&self, offset: usize, len: usize) -> Option<&[A]> {
        let end = size_of::<A>().checked_mul(len)?.checked_add(offset)?;
        let fits = end <= self.len() && offset.is_multiple_of(align_of::<A>());
        // SAFETY: the memory is mapped as long as `self`, and the range lies in it and is aligned. Atomics
        // are valid for all bytes, and any process may write them at any time.
        fits.then(|| unsafe { std::slice::from_raw_parts(self.start().add(offset).cast(), len) })
    }
}

/// A type that can be read while other processes write it.
///
/// # Safety
///
/// The type must consist of atomic integers only, with an alignment of at most a page.
pub(crate) unsafe trait Atomics {}

/// Creates an anonymous file of `len` zero bytes.
fn create(len: usize) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::new(rustix::fs::memfd_create("procpool", flags)?)?;
    rustix::fs::ftruncate(&file, len as u64)?;
    Ok(file)
}

/// Creates an anonymous file of `len` zero bytes and allocates all of its memory.
fn allocate(len: usize) -> io::Result<File> {
    let file = create(len)?;
    if len > 0 {
        reserve(&file, 0..len as u64)?;
    }
    Ok(file)
}

/// Creates a sparse file of [`SPARSE_LEN`] bytes, without allocating memory.
pub(crate) fn sparse() -> io::Result<File> {
    let file = create(SPARSE_LEN as usize)?;
    rustix::fs::fcntl_add_seals(&file, SIZE)?;
    Ok(file)
}

/// Checks that a file was created by [`sparse`].
pub(crate) fn check_sparse(file: &File) -> io::Result<()> {
    let is_sealed = rustix::fs::fcntl_get_seals(file)?.contains(SIZE);
    match is_sealed && rustix::fs::fstat(file)?.st_size.cast_unsigned() == SPARSE_LEN {
        true => Ok(()),
        false => Err(io::Error::other(
            "the file is not the log of a channel: the shared object has another type",
        )),
    }
}

/// Returns how many bytes of a file are allocated.
pub(crate) fn allocated(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::fstat(file)?.st_blocks.cast_unsigned().saturating_mul(512))
}

/// The size of a sparse file: more bytes than can be written in a hundred years.
pub(crate) const SPARSE_LEN: u64 = 1 << 62;

/// Allocates memory for a part of a file.
pub(crate) fn reserve(file: &File, range: Range<u64>) -> io::Result<()> {
    let len = range.end - range.start;
    let flags = FallocateFlags::empty();
    Ok(retry_on_intr(|| rustix::fs::fallocate(file, flags, range.start, len))?)
}

/// Frees the memory of a part of a file.
pub(crate) fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    let len = range.end - range.start;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(retry_on_intr(|| rustix::fs::fallocate(file, flags, range.start, len))?)
}

/// Writes to a file without a mapping.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let (rest, at) = (&bytes[done..], offset + done as u64);
        done += retry_on_intr(|| rustix::io::pwrite(file, rest, at))?;
    }
    Ok(())
}

/// Reads from a file without a mapping. Replaces the content of `bytes`.
pub(crate) fn read_at(file: &File, bytes: &mut Vec<u8>, offset: u64, len: u64) -> io::Result<()> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    bytes.clear();
    bytes.try_reserve_exact(len)?;
    bytes.resize(len, 0);
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        match retry_on_intr(|| rustix::io::pread(file, &mut bytes[done..], at))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => done += more,
        }
    }
    Ok(())
}

impl Mapping {
    /// Maps a part of a file, which must start at a page.
    pub(crate) fn new(file: &File, range: Range<u64>, writable: bool) -> io::Result<Self> {
        let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        if len == 0 {
            #[repr(align(4096))]
            struct Page;
            return Ok(Self { address: NonNull::<Page>::dangling().cast(), len });
        }
        // Private, because before Linux 6.7 a file sealed against writes cannot be mapped as shared. The
        // mapping is never written, so its pages are those of the file.
        let (access, sharing) = match writable {
            true => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
            false => (ProtFlags::READ, MapFlags::PRIVATE),
        };
        // SAFETY: the kernel chooses the address, so no existing mapping is replaced.
        let address = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, access, sharing, file, range.start)
        }?;
        let address =
            NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { address, len })
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.address.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: it was mapped by `new`, and all its users borrow from `self`.
            let _ = unsafe { rustix::mm::munmap(self.start().cast(), self.len) };
        }
    }
}

/// Memory that this process has received.
#[derive(Debug)]
struct Cached {
    memory: Arc<SharedMemory>,
    /// Whether it was opened since the last pass of [`evict_unused`].
    is_used: bool,
}

/// Not shared with a forked copy: there the lock might be held for ever, and [`evict_unused`] does not run.
static MAP_CACHE: PerProcess<Mutex<BTreeMap<FileId, Cached>>> = PerProcess::new();

fn map_cache() -> MutexGuard<'static, BTreeMap<FileId, Cached>> {
    MAP_CACHE.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Unmaps memory that has been unused for [`KEEP`]. Runs on a thread of its own until no memory is left.
fn evict_unused() {
    loop {
        std::thread::sleep(KEEP);
        let mut cache = map_cache();
        cache.retain(|_, entry| {
            std::mem::take(&mut entry.is_used) || Arc::strong_count(&entry.memory) > 1
        });
        if cache.is_empty() {
            return;
        }
    }
}
