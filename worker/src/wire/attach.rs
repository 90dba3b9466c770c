//! Attachments: the files that encoded values refer to. The bytes of a shared-memory handle or a
//! channel end only name descriptors of this process, so the files must stay open until the bytes are
//! decoded.
//!
//! The code that encodes an argument, a result or a message collects what is [attached](attach)
//! meanwhile, and keeps it with the bytes. Without a collection (for a file, another format), attaching
//! is an error.
//!
//! The descriptors are sent along with the bytes ([`Attachments::files`]). Decoding finds them by
//! [`FileId`] ([`open_received`]). A worker [registers](Received::register) those of a chunk's arguments
//! until [`clear_received`]. Those of a context, a result or a message are found only inside
//! [`Received::decode`], on the thread that decodes it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::passed::PassedFd;
use crate::shm::sys::HIGH_FD;

/// Identifies a file among all that exist at the same time. Both ends of a pipe are one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    /// The device that holds it.
    pub device: u64,
    /// Its inode number on that device.
    pub inode: u64,
}

impl FileId {
    /// The device of ids that are not those of a file.
    const NO_DEVICE: u64 = u64::MAX;

    /// Creates an id for one descriptor, because several open files may have one inode. It differs from
    /// all others that this process creates.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { device: Self::NO_DEVICE, inode: NEXT.fetch_add(1, Relaxed) }
    }

    /// Returns the file that a descriptor refers to.
    ///
    /// # Errors
    ///
    /// Those of `fstat`.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// An object that can be attached: it keeps files open.
pub trait Attached: Send + Sync + 'static {
    /// Returns all files that decoding may need, or none if they are attached separately.
    fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)>;
}

/// What encoded bytes refer to. A clone is cheap.
#[derive(Clone, Default)]
pub struct Attachments(Option<Arc<Objects>>);

#[derive(Clone, Default)]
struct Objects {
    /// The objects by address, so that each is held once.
    by_address: BTreeMap<usize, Arc<dyn Attached>>,
    /// Whether one of them is a channel end.
    holds_channel_end: bool,
}

/// A handle was encoded without a collection that keeps its files open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a handle can only be sent in an argument, a result or a channel's message: no file and no other format can keep it open"
)]
pub struct NotAttachable;

thread_local! {
    /// What the encoding on this thread has attached so far.
    static COLLECTED: RefCell<Option<Attachments>> = const { RefCell::new(None) };
}

impl Attachments {
    /// Runs `encode` and adds what it attaches.
    pub fn collect<R>(&mut self, encode: impl FnOnce() -> R) -> R {
        struct Restore<'a> {
            to: &'a mut Attachments,
            outer: Option<Attachments>,
        }
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                *self.to = COLLECTED.replace(self.outer.take()).unwrap_or_default();
            }
        }
        let outer = COLLECTED.replace(Some(std::mem::take(self)));
        let _restore = Restore { to: self, outer };
        encode()
    }

    /// Returns whether nothing is attached.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the files of all attached objects, to be sent along with the bytes. Each file is listed
    /// once; of a pipe, each attached end.
    pub fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)> {
        let objects = self.0.iter().flat_map(|objects| objects.by_address.values());
        let files = objects.flat_map(|object| object.files());
        let each_once: BTreeMap<_, _> =
            files.map(|(id, fd)| ((id, access(fd)), (id, fd))).collect();
        each_once.into_values().collect()
    }

    /// Returns whether any attachment is a channel end, a socket or a pipe. Peers wait for the end to close, so
    /// the batch is released as soon as its task finishes.
    pub fn holds_channel_end(&self) -> bool {
        self.0.as_ref().is_some_and(|objects| objects.holds_channel_end)
    }
}

impl fmt::Debug for Attachments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attachments({})", self.0.as_ref().map_or(0, |objects| objects.by_address.len()))
    }
}

/// Keeps `object` alive as long as the bytes that this thread is encoding.
///
/// # Errors
///
/// When no [collection](Attachments::collect) is open.
pub fn attach(object: &Arc<impl Attached>) -> Result<(), NotAttachable> {
    COLLECTED.with_borrow_mut(|collected| {
        let objects = collected.as_mut().ok_or(NotAttachable)?.0.get_or_insert_default();
        let address = Arc::as_ptr(object).cast::<()>().addr();
        let by_address = &mut Arc::make_mut(objects).by_address;
        by_address.entry(address).or_insert_with(|| Arc::clone(object) as _);
        Ok(())
    })
}

/// As [`attach`], for a channel end, a socket or a pipe.
///
/// # Errors
///
/// As [`attach`].
pub fn attach_channel_end(object: &Arc<impl Attached>) -> Result<(), NotAttachable> {
    attach(object)?;
    COLLECTED.with_borrow_mut(|collected| {
        if let Some(Attachments(Some(objects))) = collected {
            Arc::make_mut(objects).holds_channel_end = true;
        }
    });
    Ok(())
}

/// Received descriptors. The ends of a pipe are one file, told apart by their access mode.
type ByFile = BTreeMap<(FileId, u32), PassedFd>;

/// The descriptors received with the bytes to be decoded.
static RECEIVED: Mutex<ByFile> = Mutex::new(BTreeMap::new());

fn all_received() -> MutexGuard<'static, ByFile> {
    RECEIVED.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// The only descriptors that decoding on this thread finds, inside [`Received::decode`].
    static OF_VALUE: RefCell<Option<ByFile>> = const { RefCell::new(None) };
}

/// Calls `find` with the descriptors that decoding on this thread may use.
fn with_received<R>(find: impl FnOnce(&ByFile) -> R) -> R {
    OF_VALUE.with_borrow(|of_value| match of_value {
        Some(received) => find(received),
        None => find(&all_received()),
    })
}

/// Returns the access mode of a descriptor: read, write or both. All bits are set if it is unknown.
fn access(fd: impl AsFd) -> u32 {
    rustix::fs::fcntl_getfl(fd).map_or(u32::MAX, |flags| (flags & OFlags::ACCMODE).bits())
}

/// The descriptors that came with values.
#[derive(Debug, Default)]
pub struct Received(Vec<(FileId, PassedFd)>);

impl Received {
    /// Creates it from descriptors and the ids that the sender has given them.
    pub fn new(files: Vec<(FileId, PassedFd)>) -> Self {
        Self(files)
    }

    /// Returns the number of descriptors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Registers the descriptors: decoding finds them until [`clear_received`]. They come from the parent,
    /// which has named them by their files.
    pub fn register(self) {
        let mut all = all_received();
        for (id, fd) in self.0 {
            all.insert((id, access(&fd)), fd);
        }
    }

    /// Calls `decode`, which finds these descriptors and no others, and closes them. A descriptor of
    /// another file than the sender has claimed is not found.
    pub fn decode<R>(self, decode: impl FnOnce() -> R) -> R {
        struct Restore(Option<ByFile>);
        impl Drop for Restore {
            fn drop(&mut self) {
                drop(OF_VALUE.replace(self.0.take()));
            }
        }
        let is_it = |id: FileId, fd: &PassedFd| {
            let is_file = || fd.is_prompt() && FileId::of(fd).is_ok_and(|file| file == id);
            id.device == FileId::NO_DEVICE || is_file()
        };
        let files = self.0.into_iter().filter(|(id, fd)| is_it(*id, fd));
        let received = files.map(|(id, fd)| ((id, access(&fd)), fd)).collect();
        let _restore = Restore(OF_VALUE.replace(Some(received)));
        decode()
    }
}

/// Returns whether a descriptor of this file was received.
pub fn was_received(id: FileId) -> bool {
    with_received(|all| all.range((id, 0)..=(id, u32::MAX)).next().is_some())
}

/// Returns a new descriptor for a received file, if one was received with the access mode `wanted`:
/// `OFlags::RDONLY`, `WRONLY` or `RDWR`. The error is that this process has reached its limit of open
/// files.
pub fn open_received(id: FileId, wanted: OFlags) -> Option<io::Result<OwnedFd>> {
    let exact = (wanted & OFlags::ACCMODE).bits();
    with_received(|all| {
        let fd = all.get(&(id, exact)).or_else(|| all.get(&(id, OFlags::RDWR.bits())))?;
        let own = rustix::io::fcntl_dupfd_cloexec(fd, HIGH_FD)
            .or_else(|_| rustix::io::fcntl_dupfd_cloexec(fd, 0));
        Some(own.map_err(io::Error::from))
    })
}

/// Returns a new descriptor for a received file, whatever its access mode. Its number is an ordinary one.
pub fn open_received_any(id: FileId) -> Option<io::Result<OwnedFd>> {
    with_received(|all| {
        let (_, fd) = all.range((id, 0)..=(id, u32::MAX)).next()?;
        Some(fd.as_fd().try_clone_to_owned())
    })
}

/// Closes the received descriptors, after decoding.
pub fn clear_received() {
    let all = std::mem::take(&mut *all_received());
    drop(all);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    impl Attached for i32 {
        fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)> {
            Vec::new()
        }
    }

    /// Several descriptors of a file.
    struct Files(Vec<OwnedFd>);

    impl Attached for Files {
        fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)> {
            self.0.iter().map(|fd| (FileId::of(fd).unwrap(), fd.as_fd())).collect()
        }
    }

    #[test]
    fn each_attached_file_is_sent_once_and_found_by_its_id_and_access_until_cleared() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let copy = read.try_clone().unwrap();
        let pipe = FileId::of(&read).unwrap();
        let object = Arc::new(Files(vec![read, write, copy]));
        let mut attachments = Attachments::default();
        attachments.collect(|| attach(&object).unwrap());
        let files = attachments.files();
        assert_eq!(files.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [pipe; 2]);
        assert!(open_received(pipe, OFlags::RDONLY).is_none());
        let files = files.into_iter().map(|(id, fd)| (id, fd.try_clone_to_owned().unwrap().into()));
        Received::new(files.collect()).register();
        for wanted in [OFlags::RDONLY, OFlags::WRONLY] {
            let fd = open_received(pipe, wanted).unwrap().unwrap();
            assert_eq!((FileId::of(&fd).unwrap(), access(&fd)), (pipe, wanted.bits()));
        }
        assert!(open_received(pipe, OFlags::RDWR).is_none());
        clear_received();
        assert!(open_received(pipe, OFlags::RDONLY).is_none());
    }

    #[test]
    fn what_came_with_a_value_is_found_while_it_is_decoded_and_only_by_its_true_id() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (id, named) = (FileId::of(&read).unwrap(), FileId::unique());
        assert_ne!(named, FileId::unique());
        let other = FileId { inode: id.inode + 1, ..id };
        let files = || {
            let fd = || read.try_clone().unwrap().into();
            Received::new(vec![(id, fd()), (named, fd()), (other, fd())])
        };
        let found = |id| (was_received(id), open_received(id, OFlags::RDONLY).is_some());
        files().decode(|| {
            assert_eq!((found(id), found(named)), ((true, true), (true, true)));
            assert_eq!(found(other), (false, false), "it is another file");
            assert!(open_received_any(named).is_some_and(|fd| fd.is_ok()));
            // Those of a value inside of it, and then its own again.
            Received::default().decode(|| assert_eq!(found(id), (false, false)));
            assert_eq!(found(id), (true, true));
        });
        let panicked = std::panic::catch_unwind(|| files().decode(|| panic!("in the middle")));
        assert!(panicked.is_err());
        assert_eq!(found(id), (false, false));
        drop(read);
        assert_eq!(rustix::io::write(&write, b"x"), Err(rustix::io::Errno::PIPE), "all are closed");
    }

    #[test]
    fn an_attachment_is_kept_once_until_its_collection_is_dropped() {
        let (object, inner) = (Arc::new(1), Arc::new(2));
        let mut attachments = Attachments::default();
        attachments.collect(|| {
            attach(&object).unwrap();
            attach(&object).unwrap();
            Attachments::default().collect(|| attach(&inner).unwrap());
        });
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            attachments.collect(|| panic!("in the middle"))
        }));
        assert!(panicked.is_err());
        assert_eq!((Arc::strong_count(&object), Arc::strong_count(&inner)), (2, 1));
        let copy = attachments.clone();
        drop(attachments);
        assert_eq!(Arc::strong_count(&object), 2);
        drop(copy);
        assert_eq!(Arc::strong_count(&object), 1);
        assert_eq!(attach(&object), Err(NotAttachable));
    }
}
