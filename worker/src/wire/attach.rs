//! Attachments: the files that encoded arguments refer to. The bytes of a shared-memory handle or a
//! channel end only name descriptors of this process, so the files must stay open until the bytes are
//! decoded.
//!
//! The code that encodes an argument collects what is [attached](attach) meanwhile, and keeps it with the
//! bytes. Without a collection (for a result, a message, another format), attaching is an error.
//!
//! The descriptors are sent along with the bytes ([`Attachments::files`]). The receiving process
//! registers them ([`register_received`]), decoding finds them by [`FileId`] ([`open_received`]), and
//! [`clear_received`] closes them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::shm::sys::{HIGH_FD, move_high};

/// Identifies a file among all that exist at the same time. Both ends of a pipe are one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    /// The device that holds it.
    pub device: u64,
    /// Its inode number on that device.
    pub inode: u64,
}

impl FileId {
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
    "a handle can only be sent in an argument (of a task, an initializer or a process): a result, a channel message or a file can't keep it open"
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

    /// Returns the files of all attached objects, to be sent along with the bytes. Each file is listed
    /// once; of a pipe, each attached end.
    pub fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)> {
        let objects = self.0.iter().flat_map(|objects| objects.by_address.values());
        let files = objects.flat_map(|object| object.files());
        let each_once: BTreeMap<_, _> =
            files.map(|(id, fd)| ((id, access(fd)), (id, fd))).collect();
        each_once.into_values().collect()
    }

    /// Returns whether nothing is attached.
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|objects| objects.by_address.is_empty())
    }

    /// Returns whether any attachment is a channel end. Peers wait for the end to close, so the batch is
    /// released as soon as its task finishes.
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

/// As [`attach`], for a channel end.
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

/// The descriptors received with the bytes to be decoded. The ends of a pipe are one file, told apart
/// by their access mode.
static RECEIVED: Mutex<BTreeMap<(FileId, u32), OwnedFd>> = Mutex::new(BTreeMap::new());

fn all_received() -> MutexGuard<'static, BTreeMap<(FileId, u32), OwnedFd>> {
    RECEIVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the access mode of a descriptor: read, write or both. All bits are set if it is unknown.
fn access(fd: impl AsFd) -> u32 {
    rustix::fs::fcntl_getfl(fd).map_or(u32::MAX, |flags| (flags & OFlags::ACCMODE).bits())
}

/// Registers a received descriptor for decoding. Moves it above the numbers that tasks may close.
pub fn register_received(id: FileId, fd: OwnedFd) {
    let fd = move_high(fd);
    let access = access(&fd);
    all_received().insert((id, access), fd);
}

/// Returns a new descriptor for a received file, if one was received with the access mode `wanted`:
/// `OFlags::RDONLY`, `WRONLY` or `RDWR`. The error is that this process has reached its limit of open
/// files.
pub fn open_received(id: FileId, wanted: OFlags) -> Option<io::Result<OwnedFd>> {
    let all = all_received();
    let exact = (wanted & OFlags::ACCMODE).bits();
    let fd = all.get(&(id, exact)).or_else(|| all.get(&(id, OFlags::RDWR.bits())))?;
    let own = rustix::io::fcntl_dupfd_cloexec(fd, HIGH_FD)
        .or_else(|_| rustix::io::fcntl_dupfd_cloexec(fd, 0));
    Some(own.map_err(io::Error::from))
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
        for (id, fd) in files {
            register_received(id, fd.try_clone_to_owned().unwrap());
        }
        for wanted in [OFlags::RDONLY, OFlags::WRONLY] {
            let fd = open_received(pipe, wanted).unwrap().unwrap();
            assert_eq!((FileId::of(&fd).unwrap(), access(&fd)), (pipe, wanted.bits()));
        }
        assert!(open_received(pipe, OFlags::RDWR).is_none());
        clear_received();
        assert!(open_received(pipe, OFlags::RDONLY).is_none());
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
