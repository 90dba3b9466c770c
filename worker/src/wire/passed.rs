//! A descriptor that another process has sent. What it refers to was chosen there: the close of a connection may wait for
//! its peer, and that of a file for the server of its file system, without an end, and so may `fstat`. A parent must not
//! wait for a worker that has been taken over, so it closes such descriptors on a thread that may be lost.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::net::AddressFamily;

/// Closes a descriptor, at some time.
pub type Closer = fn(OwnedFd);

/// How descriptors are closed whose close may wait.
static CLOSER: OnceLock<Closer> = OnceLock::new();

/// Has descriptors closed by this function, if their close may wait. A worker closes what its parent sent by itself.
pub fn set_closer(closer: Closer) {
    let _ = CLOSER.set(closer);
}

/// A descriptor that another process has sent.
#[derive(Debug)]
pub struct PassedFd(Option<OwnedFd>);

impl PassedFd {
    /// Whether to close it and to ask what it is never waits: it is anonymous memory, a socket of this host or a pipe.
    pub fn is_prompt(&self) -> bool {
        let is_socket =
            || rustix::net::sockopt::socket_domain(self).is_ok_and(|it| it == AddressFamily::UNIX);
        rustix::fs::fcntl_get_seals(self).is_ok() || is_socket() || self.is_pipe()
    }

    /// Whether it is a pipe without a name. One with a name is of a file system, which `fstat` would ask.
    fn is_pipe(&self) -> bool {
        if rustix::pipe::fcntl_getpipe_size(self).is_err() {
            return false;
        }
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.as_fd()));
        std::fs::read_link(path)
            .is_ok_and(|path| path.as_os_str().as_encoded_bytes().starts_with(b"pipe:"))
    }
}

impl From<OwnedFd> for PassedFd {
    fn from(fd: OwnedFd) -> Self {
        Self(Some(fd))
    }
}

/// Who takes it decides what its close may wait for.
impl From<PassedFd> for OwnedFd {
    fn from(mut fd: PassedFd) -> Self {
        fd.0.take().expect("it is there until it is taken or dropped")
    }
}

impl AsFd for PassedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().expect("it is there until it is taken or dropped").as_fd()
    }
}

impl Drop for PassedFd {
    fn drop(&mut self) {
        if self.0.is_some()
            && let Some(close) = CLOSER.get()
            && !self.is_prompt()
        {
            self.0.take().into_iter().for_each(close);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_no_other_process_can_hold_up_is_closed_at_once() {
        let prompt = |fd: OwnedFd| PassedFd::from(fd).is_prompt();
        let (reader, writer) = std::io::pipe().unwrap();
        assert!(prompt(reader.into()) && prompt(writer.into()));
        let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(prompt(memory));
        assert!(prompt(std::os::unix::net::UnixStream::pair().unwrap().0.into()));
        assert!(!prompt(std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()));
        assert!(!prompt(std::fs::File::open("/").unwrap().into()));
        let fifo = std::env::temp_dir().join(format!("procpool-fifo-{}", std::process::id()));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        let opened = std::fs::File::options().read(true).write(true).open(&fifo).unwrap();
        std::fs::remove_file(&fifo).unwrap();
        assert!(!prompt(opened.into()));
    }
}
