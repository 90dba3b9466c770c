//! Naming an open file to another process: by device and inode. The descriptor itself is sent beside
//! the bytes that name it (see [`attach`]); where it was not, the other process opens it anew by
//! `/proc/PID/fd`. Either way it compares device and inode to be sure that it is the same.
//!
//! Nothing is passed but plain data, so a handle travels inside of any encoded argument. The file has
//! to stay open here until the other has opened it; [`attach`] sees to that.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use procpool_worker::attach::{self, Attached, FileId, NotAttachable, attach};
use procpool_worker::sys::HIGH_FD;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// An open file that can be named.
#[derive(Debug)]
pub(crate) struct File {
    fd: OwnedFd,
    identity: FileId,
}

/// Names a [`File`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handle {
    pid: u32,
    fd: i32,
    identity: FileId,
}

/// Why a handle can't be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("the process that has shared it (PID {0}) is gone")]
    HolderGone(u32),
    #[error("the process that has shared it (PID {0}) doesn't have it any more")]
    LetGo(u32),
    #[error(
        "this process may not look into the one that has shared it (PID {0}): do both run as the same user?"
    )]
    NotPermitted(u32),
    #[error("what the process with PID {0} has shared is something else")]
    Other(u32),
    #[error("what was shared by the process with PID {pid} can't be opened: {source}")]
    System { pid: u32, source: io::Error },
}

impl File {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        // A low limit of open files may leave no room up there; then it stays where it is.
        let fd = rustix::io::fcntl_dupfd_cloexec(&fd, HIGH_FD).unwrap_or(fd);
        let identity = FileId::of(&fd)?;
        Ok(Self { fd, identity })
    }

    /// Which file it is.
    pub(crate) fn identity(&self) -> FileId {
        self.identity
    }

    /// The same file, as another descriptor.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Self::new(self.fd.try_clone()?)
    }

    /// Names it within what is being encoded; `owner` is what keeps it open.
    pub(crate) fn handle(&self, owner: &Arc<impl Attached>) -> Result<Handle, NotAttachable> {
        attach(owner)?;
        let (pid, fd) = (std::process::id(), self.fd.as_raw_fd());
        Ok(Handle { pid, fd, identity: self.identity })
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Attached for File {
    fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)> {
        vec![(self.identity, self.as_fd())]
    }
}

impl Handle {
    pub(crate) fn identity(self) -> FileId {
        self.identity
    }

    /// Opens the file that it names; `access` is how.
    pub(crate) fn open(self, access: OFlags) -> Result<File, OpenError> {
        let file = match attach::open_received(self.identity, access) {
            Some(fd) => File::new(fd).map_err(|source| self.because(source))?,
            None => self.open_by_path(access)?,
        };
        if file.identity == self.identity { Ok(file) } else { Err(self.is_other()) }
    }

    /// Opens it anew, where its descriptor was not sent.
    fn open_by_path(self, access: OFlags) -> Result<File, OpenError> {
        let pid = self.pid;
        // Whatever it may turn out to be: opening it is not to wait, nor to make it our terminal.
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let path = format!("/proc/{pid}/fd/{}", self.fd);
        rustix::fs::open(path.as_str(), flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(File::new)
            .map_err(|source| self.because(source))
    }

    /// The error of a handle whose file is something else than what it was decoded as.
    pub(crate) fn is_other(self) -> OpenError {
        OpenError::Other(self.pid)
    }

    /// Says what may be behind a failure to open it.
    pub(crate) fn because(self, source: io::Error) -> OpenError {
        let pid = self.pid;
        let is_alive = || std::fs::exists(format!("/proc/{pid}")).unwrap_or(true);
        match Errno::from_io_error(&source) {
            Some(Errno::NOENT | Errno::SRCH) if is_alive() => OpenError::LetGo(pid),
            Some(Errno::NOENT | Errno::SRCH) => OpenError::HolderGone(pid),
            Some(Errno::ACCESS | Errno::PERM) => OpenError::NotPermitted(pid),
            _ => OpenError::System { pid, source },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use procpool_worker::attach::Attachments;
    use rustix::fs::MemfdFlags;

    fn file() -> Arc<File> {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        Arc::new(File::new(fd).unwrap())
    }

    fn handle(file: &Arc<File>) -> Handle {
        Attachments::default().collect(|| file.handle(file).unwrap())
    }

    #[test]
    fn a_handle_opens_the_file_that_it_names_and_no_other() {
        let (file, other) = (file(), file());
        let named = handle(&file);
        assert_eq!(named.open(OFlags::RDWR).unwrap().identity, file.identity);
        let moved = Handle { fd: other.fd.as_raw_fd(), ..named };
        assert!(matches!(moved.open(OFlags::RDWR), Err(OpenError::Other(_))));
    }

    #[test]
    fn a_file_whose_descriptor_was_received_needs_nothing_of_the_process_that_has_shared_it() {
        let file = file();
        let mut attachments = Attachments::default();
        let named = attachments.collect(|| file.handle(&file).unwrap());
        // That process can't be looked into.
        let named = Handle { fd: i32::MAX, ..named };
        assert!(named.open(OFlags::RDWR).is_err());
        for (id, fd) in attachments.files() {
            attach::register_received(id, fd.try_clone_to_owned().unwrap());
        }
        for access in [OFlags::RDWR, OFlags::RDONLY] {
            let opened = named.open(access).unwrap();
            assert_eq!(opened.identity, file.identity);
            assert!(opened.fd.as_raw_fd() >= HIGH_FD);
        }
        attach::clear_received();
        assert!(named.open(OFlags::RDWR).is_err());
    }

    #[test]
    fn what_cannot_be_opened_says_why() {
        let closed = Handle { fd: i32::MAX, ..handle(&file()) };
        assert!(matches!(closed.open(OFlags::RDWR), Err(OpenError::LetGo(_))));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let orphan = Handle { pid: child.id(), ..closed };
        assert!(matches!(orphan.open(OFlags::RDWR), Err(OpenError::HolderGone(_))));
    }

    #[test]
    fn a_handle_is_encoded_only_where_what_it_names_is_kept() {
        let file = file();
        assert!(file.handle(&file).is_err());
        let mut attachments = Attachments::default();
        attachments.collect(|| file.handle(&file)).unwrap();
        assert_eq!(Arc::strong_count(&file), 2);
    }
}
