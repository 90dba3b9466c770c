//! Handles: identifying an open file to another process by device and inode. The descriptor itself is sent
//! beside the encoded handle (see [`attach`]), which needs neither /proc nor the permission to inspect the
//! other process. A handle whose descriptor was not sent cannot be opened.
//!
//! A handle is plain data and can be anywhere in an encoded argument, result or message. The file must stay
//! open in this process until its descriptor has been sent; [`attach`] ensures that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use procpool_worker::attach::{self, Attached, FileId, NotAttachable, attach};
use procpool_worker::sys::HIGH_FD;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

/// An open file and its identity.
#[derive(Debug)]
pub(crate) struct File {
    fd: OwnedFd,
    identity: FileId,
}

/// Identifies a [`File`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handle {
    identity: FileId,
}

/// Why a handle cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(
        "the descriptor of the shared object was not sent with it: send it in an argument, a result or a channel's message"
    )]
    NotSent,
    #[error("the shared object has another type")]
    Other,
    #[error("failed to open the shared object: {0}")]
    System(#[from] io::Error),
}

impl File {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        // A low limit of open files may not allow a high descriptor; then the original one is kept.
        let fd = rustix::io::fcntl_dupfd_cloexec(&fd, HIGH_FD).unwrap_or(fd);
        let identity = FileId::of(&fd)?;
        Ok(Self { fd, identity })
    }

    /// Returns the file's device and inode.
    pub(crate) fn identity(&self) -> FileId {
        self.identity
    }

    /// Duplicates the descriptor.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Self::new(self.fd.try_clone()?)
    }

    /// Attaches the file to the value that is being encoded, and returns its handle. `owner` keeps the
    /// file open.
    pub(crate) fn handle(&self, owner: &Arc<impl Attached>) -> Result<Handle, NotAttachable> {
        attach(owner)?;
        Ok(Handle { identity: self.identity })
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

impl From<FileId> for Handle {
    fn from(identity: FileId) -> Self {
        Self { identity }
    }
}

impl Handle {
    pub(crate) fn identity(self) -> FileId {
        self.identity
    }

    /// Opens the file with the access mode `access`.
    pub(crate) fn open(self, access: OFlags) -> Result<File, OpenError> {
        let descriptor =
            attach::open_received(self.identity, access).ok_or(OpenError::NotSent)??;
        let file = File::new(descriptor)?;
        if file.identity == self.identity { Ok(file) } else { Err(OpenError::Other) }
    }

    /// Returns a new descriptor for the file, whatever it is.
    pub(crate) fn receive(self) -> Result<OwnedFd, OpenError> {
        Ok(attach::open_received_any(self.identity).ok_or(OpenError::NotSent)??)
    }

    /// Returns whether the file's descriptor was sent with the handle.
    pub(crate) fn is_sent(self) -> bool {
        attach::was_received(self.identity)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::AsRawFd;

    use super::*;
    use procpool_worker::attach::Attachments;
    use rustix::fs::MemfdFlags;

    fn file() -> Arc<File> {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        Arc::new(File::new(fd).unwrap())
    }

    #[test]
    fn a_handle_opens_the_file_whose_descriptor_was_received_and_nothing_without_one() {
        let file = file();
        let mut attachments = Attachments::default();
        let named = attachments.collect(|| file.handle(&file).unwrap());
        assert!(matches!(named.open(OFlags::RDWR), Err(OpenError::NotSent)));
        let files = attachments.files().into_iter();
        let files = files.map(|(id, fd)| (id, fd.try_clone_to_owned().unwrap().into()));
        attach::Received::new(files.collect()).register();
        for access in [OFlags::RDWR, OFlags::RDONLY] {
            let opened = named.open(access).unwrap();
            assert_eq!(opened.identity, file.identity);
            assert!(opened.fd.as_raw_fd() >= HIGH_FD);
        }
        attach::clear_received();
        assert!(matches!(named.open(OFlags::RDWR), Err(OpenError::NotSent)));
    }

    #[test]
    fn a_handle_is_encoded_only_where_its_file_is_kept_open() {
        let file = file();
        assert!(file.handle(&file).is_err());
        let mut attachments = Attachments::default();
        attachments.collect(|| file.handle(&file)).unwrap();
        assert_eq!(Arc::strong_count(&file), 2);
    }
}
