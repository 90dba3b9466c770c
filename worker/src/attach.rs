//! What encoded arguments point to: shared memory and the ends of channels aren't in the bytes, which
//! only say where this process has them open. They must be kept for as long as the bytes may still
//! be decoded.
//!
//! Whoever encodes an argument collects what is [attached](attach) meanwhile, and keeps it beside the
//! bytes. Where nobody collects (a result, a message, another format), attaching is an error.
//!
//! What is attached is made of open files. Their descriptors are sent beside the bytes
//! ([`Attachments::files`]); the receiving process keeps them ([`receive`]) until it has decoded the
//! bytes, which find them by [`FileId`] ([`received`]), and then closes them ([`clear_received`]).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

/// Descriptors that must survive a task which closes all the low ones are put above these.
pub const HIGH_FD: i32 = 512;

/// Tells one file from all others that exist at the same time. Both ends of a pipe are one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    /// The device that it lies on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

impl FileId {
    /// Returns which file a descriptor is of.
    ///
    /// # Errors
    ///
    /// Those of `fstat`.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// What can be attached: an object that keeps files open.
pub trait Attached: Send + Sync + 'static {
    /// Returns all files that decoding may ask for, or none where they are attached by themselves.
    fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)>;
}

/// What encoded bytes point to. A clone is cheap.
#[derive(Clone, Default)]
pub struct Attachments(Option<Arc<Objects>>);

#[derive(Clone, Default)]
struct Objects {
    /// Each once.
    by_address: BTreeMap<usize, Arc<dyn Attached>>,
    /// Whether there is one among them whose end others may wait for.
    have_ends: bool,
}

/// A handle was encoded where nobody keeps what it points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it can only be sent in an argument (of a task, an initializer or a process): a result, a message in a channel or a file can't keep it alive"
)]
pub struct Unattached;

thread_local! {
    /// What the encoding that runs on this thread has attached so far.
    static COLLECTED: RefCell<Option<Attachments>> = const { RefCell::new(None) };
}

impl Attachments {
    /// Runs `encode`, and adds what it attaches.
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

    /// Returns the files of all that was attached, to be sent beside the bytes. Each is there once; of
    /// a pipe, each end that was attached is.
    pub fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)> {
        let objects = self.0.iter().flat_map(|objects| objects.by_address.values());
        let files = objects.flat_map(|object| object.files());
        let each_once: BTreeMap<_, _> =
            files.map(|(id, fd)| ((id, access(fd)), (id, fd))).collect();
        each_once.into_values().collect()
    }

    /// Whether others may wait until what was attached is let go of: then it is to be as soon as the
    /// task is done, whatever others there are.
    pub fn have_ends(&self) -> bool {
        self.0.as_ref().is_some_and(|objects| objects.have_ends)
    }
}

impl fmt::Debug for Attachments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attachments({})", self.0.as_ref().map_or(0, |objects| objects.by_address.len()))
    }
}

/// Keeps `object` for as long as the bytes that are being encoded on this thread.
///
/// # Errors
///
/// When nobody [collects](Attachments::collect).
pub fn attach(object: &Arc<impl Attached>) -> Result<(), Unattached> {
    COLLECTED.with_borrow_mut(|collected| {
        let objects = collected.as_mut().ok_or(Unattached)?.0.get_or_insert_default();
        let address = Arc::as_ptr(object).cast::<()>().addr();
        let by_address = &mut Arc::make_mut(objects).by_address;
        by_address.entry(address).or_insert_with(|| Arc::clone(object) as _);
        Ok(())
    })
}

/// As [`attach`], for an object whose end others may wait for.
///
/// # Errors
///
/// As [`attach`].
pub fn attach_end(object: &Arc<impl Attached>) -> Result<(), Unattached> {
    attach(object)?;
    COLLECTED.with_borrow_mut(|collected| {
        if let Some(Attachments(Some(objects))) = collected {
            Arc::make_mut(objects).have_ends = true;
        }
    });
    Ok(())
}

/// The descriptors that were sent to this process beside what it is to decode. The ends of a pipe are
/// one file and told apart by their access.
static RECEIVED: Mutex<BTreeMap<(FileId, u32), OwnedFd>> = Mutex::new(BTreeMap::new());

fn all_received() -> MutexGuard<'static, BTreeMap<(FileId, u32), OwnedFd>> {
    RECEIVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a descriptor was opened: to be read, written or both; all bits where that can't be known.
fn access(fd: impl AsFd) -> u32 {
    rustix::fs::fcntl_getfl(fd).map_or(u32::MAX, |flags| (flags & OFlags::ACCMODE).bits())
}

/// Keeps a descriptor that was sent to this process for what will be decoded, out of the way of tasks
/// which close low descriptors.
pub fn receive(id: FileId, fd: OwnedFd) {
    // A low limit of open files may leave no room up there; then it stays where it is.
    let fd = rustix::io::fcntl_dupfd_cloexec(&fd, HIGH_FD).unwrap_or(fd);
    let access = access(&fd);
    all_received().insert((id, access), fd);
}

/// Returns a descriptor of its own for a file that was sent to this process, if one was that can be
/// accessed as asked for: `OFlags::RDONLY`, `WRONLY` or `RDWR`. Where this process has no number left for
/// it, that is the error.
pub fn received(id: FileId, wanted: OFlags) -> Option<io::Result<OwnedFd>> {
    let all = all_received();
    let exact = (wanted & OFlags::ACCMODE).bits();
    let fd = all.get(&(id, exact)).or_else(|| all.get(&(id, OFlags::RDWR.bits())))?;
    let own = rustix::io::fcntl_dupfd_cloexec(fd, HIGH_FD)
        .or_else(|_| rustix::io::fcntl_dupfd_cloexec(fd, 0));
    Some(own.map_err(io::Error::from))
}

/// Closes the descriptors that were received: what was sent beside them is decoded.
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

    /// An open file and some more of it.
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
        assert!(received(pipe, OFlags::RDONLY).is_none());
        for (id, fd) in files {
            receive(id, fd.try_clone_to_owned().unwrap());
        }
        for wanted in [OFlags::RDONLY, OFlags::WRONLY] {
            let fd = received(pipe, wanted).unwrap().unwrap();
            assert_eq!((FileId::of(&fd).unwrap(), access(&fd)), (pipe, wanted.bits()));
        }
        assert!(received(pipe, OFlags::RDWR).is_none());
        clear_received();
        assert!(received(pipe, OFlags::RDONLY).is_none());
    }

    #[test]
    fn what_is_attached_is_kept_once_until_its_collection_is_dropped() {
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
        assert_eq!(attach(&object), Err(Unattached));
    }
}
