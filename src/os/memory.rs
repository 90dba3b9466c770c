//! Memory that processes share: an anonymous file, mapped. It has no name in the file system, and is
//! gone with the last process that has it, whatever way that ends.
//!
//! All of it is there from the beginning (`fallocate`), so that a lack of memory is an error when it is
//! made and not a SIGBUS when it is touched; and its size is sealed, so that nobody can take it away.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use procpool_worker::attach::{Attached, FileId, NotAttachable};
use rustix::fs::{FallocateFlags, MemfdFlags, OFlags, SealFlags};
use rustix::io::retry_on_intr;
use rustix::mm::{MapFlags, ProtFlags};

use super::handle::{File, Handle, OpenError};

/// How long a process keeps memory that it was given mapped without using it: the next task may be
/// given the same. It is far above the time between two tasks, and no time to be out of memory for.
const KEEP: Duration = Duration::from_millis(100);

/// Seals of memory that is written.
const SIZE: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Seals of memory that nobody can write any more.
const FROZEN: SealFlags = SIZE.union(SealFlags::WRITE);

/// Shared memory.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    file: File,
    mapping: Mapping,
    /// Whether no process can write it.
    is_frozen: bool,
}

/// A part of this process's address space.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is memory that any thread may access; how, is for those to see to who do.
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
    /// `len` zero bytes, for all to write.
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
        let file = allocate(len)?;
        let mapping = Mapping::new(&file, 0..len as u64, true)?;
        rustix::fs::fcntl_add_seals(&file, SIZE)?;
        Ok(Self { file, mapping, is_frozen: false })
    }

    /// `len` bytes that `fill` writes, and nobody after that.
    pub(crate) fn built(len: usize, fill: impl FnOnce(&mut [u8])) -> io::Result<Self> {
        let file = allocate(len)?;
        let mapping = Mapping::new(&file, 0..len as u64, true)?;
        // SAFETY: these are `len` zero bytes, which nobody else knows of yet.
        fill(unsafe { std::slice::from_raw_parts_mut(mapping.start(), len) });
        // Memory can't be sealed while it is mapped to be written.
        drop(mapping);
        Self::frozen(file, len)
    }

    /// A copy of `bytes`, which nobody can write.
    pub(crate) fn copy_of(bytes: &[u8]) -> io::Result<Self> {
        let file = create(bytes.len())?;
        // Cheaper than through a mapping, whose pages would have to be faulted in.
        write_at(&file, bytes, 0)?;
        Self::frozen(file, bytes.len())
    }

    fn frozen(file: File, len: usize) -> io::Result<Self> {
        rustix::fs::fcntl_add_seals(&file, FROZEN)?;
        let mapping = Mapping::new(&file, 0..len as u64, false)?;
        Ok(Self { file, mapping, is_frozen: true })
    }

    /// Names it within what is being encoded.
    pub(crate) fn handle(self: &Arc<Self>) -> Result<Handle, NotAttachable> {
        self.file.handle(self)
    }

    /// The memory that a handle names, mapped once however often it is asked for. `frozen` says
    /// whether it has to be such that nobody can write it.
    pub(crate) fn open(handle: Handle, frozen: bool) -> Result<Arc<Self>, OpenError> {
        let mut kept = kept();
        let entry = match kept.get_mut(&handle.identity()) {
            Some(entry) => entry,
            None => {
                let file = handle.open(if frozen { OFlags::RDONLY } else { OFlags::RDWR })?;
                let memory = Self::map(file, frozen)?;
                if kept.is_empty() {
                    std::thread::Builder::new().name("procpool-unmap".to_owned()).spawn(let_go)?;
                }
                kept.entry(handle.identity()).or_insert(Kept { memory, is_used: true })
            }
        };
        // It may have been mapped as another type: what one process may write can't be a slice of
        // another, and the reverse would write to a page that is mapped to be read.
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
            return Err(io::Error::other("it isn't sealed as it should be: it is something else"));
        }
        let len = rustix::fs::fstat(&file)?.st_size.cast_unsigned();
        let mapping = Mapping::new(&file, 0..len, !frozen)?;
        Ok(Arc::new(Self { file, mapping, is_frozen: frozen }))
    }

    /// Where it starts, at a page's border.
    pub(crate) fn start(&self) -> *mut u8 {
        self.mapping.start()
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> usize {
        self.mapping.len
    }

    /// The `len` values of `A` from `offset` on; none if the memory isn't so large.
    pub(crate) fn atomics<A: Atomics>(&self, offset: usize, len: usize) -> Option<&[A]> {
        let end = size_of::<A>().checked_mul(len)?.checked_add(offset)?;
        let fits = end <= self.len() && offset.is_multiple_of(align_of::<A>());
        // SAFETY: it is mapped as long as `self`, begins at a page's border, and holds atomics
        // from there on, which may have any bytes and be written at any time by anybody.
        fits.then(|| unsafe { std::slice::from_raw_parts(self.start().add(offset).cast(), len) })
    }
}

/// What can be looked at while other processes write it.
///
/// # Safety
///
/// It is made of atomic integers alone, and needs no alignment above a page's.
pub(crate) unsafe trait Atomics {}

/// An anonymous file of `len` zero bytes.
fn create(len: usize) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::new(rustix::fs::memfd_create("procpool", flags)?)?;
    rustix::fs::ftruncate(&file, len as u64)?;
    Ok(file)
}

/// The same, with all its memory.
fn allocate(len: usize) -> io::Result<File> {
    let file = create(len)?;
    if len > 0 {
        reserve(&file, 0..len as u64)?;
    }
    Ok(file)
}

/// A file of [`ENDLESS`] bytes, none of which takes memory yet.
pub(crate) fn endless() -> io::Result<File> {
    let file = create(ENDLESS as usize)?;
    rustix::fs::fcntl_add_seals(&file, SIZE)?;
    Ok(file)
}

/// Checks that a file was made by [`endless`].
pub(crate) fn check_endless(file: &File) -> io::Result<()> {
    let is_sealed = rustix::fs::fcntl_get_seals(file)?.contains(SIZE);
    match is_sealed && rustix::fs::fstat(file)?.st_size.cast_unsigned() == ENDLESS {
        true => Ok(()),
        false => Err(io::Error::other("it isn't the log of a channel: it is something else")),
    }
}

/// How many bytes of a file take memory.
pub(crate) fn allocated(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::fstat(file)?.st_blocks.cast_unsigned().saturating_mul(512))
}

/// More than can be written in a hundred years.
pub(crate) const ENDLESS: u64 = 1 << 62;

/// Has a part of a file take memory.
pub(crate) fn reserve(file: &File, range: Range<u64>) -> io::Result<()> {
    let len = range.end - range.start;
    let flags = FallocateFlags::empty();
    Ok(retry_on_intr(|| rustix::fs::fallocate(file, flags, range.start, len))?)
}

/// Has a part of a file take no memory any more.
pub(crate) fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    let len = range.end - range.start;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(retry_on_intr(|| rustix::fs::fallocate(file, flags, range.start, len))?)
}

/// Writes into a file, without a mapping.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let (rest, at) = (&bytes[done..], offset + done as u64);
        done += retry_on_intr(|| rustix::io::pwrite(file, rest, at))?;
    }
    Ok(())
}

/// Reads out of a file, without a mapping, and replaces what `bytes` held.
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
    /// Maps a part of a file, which begins at a page's border.
    pub(crate) fn new(file: &File, range: Range<u64>, writable: bool) -> io::Result<Self> {
        let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        if len == 0 {
            #[repr(align(4096))]
            struct Page;
            return Ok(Self { address: NonNull::<Page>::dangling().cast(), len });
        }
        // Private, since a sealed file can't be mapped otherwise before Linux 6.7; as it is never
        // written, its pages are the file's all the same.
        let (access, sharing) = match writable {
            true => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
            false => (ProtFlags::READ, MapFlags::PRIVATE),
        };
        // SAFETY: the kernel chooses the place, so nothing that is mapped already is replaced.
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
            // SAFETY: it was mapped by `new`, and whoever uses it borrows from what is dropped here.
            let _ = unsafe { rustix::mm::munmap(self.start().cast(), self.len) };
        }
    }
}

/// Memory that this process was given.
#[derive(Debug)]
struct Kept {
    memory: Arc<SharedMemory>,
    /// Since it was last looked at.
    is_used: bool,
}

static KEPT: Mutex<BTreeMap<FileId, Kept>> = Mutex::new(BTreeMap::new());

fn kept() -> MutexGuard<'static, BTreeMap<FileId, Kept>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets go of what has not been used for a while. Runs on a thread of its own, as long as there is
/// something.
fn let_go() {
    loop {
        std::thread::sleep(KEEP);
        let mut kept = kept();
        kept.retain(|_, kept| {
            std::mem::take(&mut kept.is_used) || Arc::strong_count(&kept.memory) > 1
        });
        if kept.is_empty() {
            return;
        }
    }
}
