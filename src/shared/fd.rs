//! [`SharedFd`]: an open file as a value.

use std::fmt;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::Arc;

use procpool_worker::attach::{Attached, FileId, attach_channel_end};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ipc::handle::Handle;
use crate::ipc::object::Kind;

/// An open file, socket, pipe or any other file descriptor, which can be sent to other processes: in an
/// argument of a task, in a result, or in a message of a channel. The receiver gets a descriptor of its own
/// for the same open file, as after `fork`. It is closed on exec.
///
/// The processes share the file's position, its flags such as `O_NONBLOCK`, and its locks (`flock`). A
/// socket is connected, and a pipe has a writer, as long as any process has it open. Sent to a task, a
/// descriptor stays open in this process until the task has finished.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::io::Write;
/// use std::net::{TcpListener, TcpStream};
/// use procpool::{Pool, shared::SharedFd};
///
/// /// Serves one connection. A crash costs the other connections nothing.
/// fn serve(connection: SharedFd) -> std::io::Result<()> {
///     let mut connection = TcpStream::from(connection.into_owned()?);
///     connection.write_all(b"hello\n")
/// }
///
/// let pool = Pool::new(4)?;
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// for connection in listener.incoming() {
///     let task = pool.apply_async(|connection| serve(connection).is_ok(), connection?.into());
///     task.on_done(|result| println!("{result:?}"));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SharedFd(Arc<Descriptor>);

struct Descriptor {
    fd: OwnedFd,
    /// Tells it apart from other open files with the same inode.
    id: FileId,
}

impl Attached for Descriptor {
    fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)> {
        vec![(self.id, self.fd.as_fd())]
    }
}

impl SharedFd {
    /// Returns the descriptor. If a clone of this value exists, or a call still holds it, the descriptor is
    /// duplicated.
    ///
    /// # Errors
    ///
    /// When it must be duplicated and this process has no file descriptors left.
    pub fn into_owned(self) -> io::Result<OwnedFd> {
        match Arc::try_unwrap(self.0) {
            Ok(descriptor) => Ok(descriptor.fd),
            Err(shared) => shared.fd.try_clone(),
        }
    }
}

impl From<OwnedFd> for SharedFd {
    fn from(fd: OwnedFd) -> Self {
        Self(Arc::new(Descriptor { fd, id: FileId::unique() }))
    }
}

macro_rules! from {
    ($($Type:ty)*) => {$(
        impl From<$Type> for SharedFd {
            fn from(file: $Type) -> Self {
                OwnedFd::from(file).into()
            }
        }
    )*};
}
from!(File PipeReader PipeWriter TcpListener TcpStream UdpSocket UnixDatagram UnixListener UnixStream);

impl AsFd for SharedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl fmt::Debug for SharedFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedFd").field(&self.0.fd.as_raw_fd()).finish()
    }
}

impl Serialize for SharedFd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Peers of a socket or a pipe may wait for it to be closed, as those of a channel end do.
        attach_channel_end(&self.0).map_err(S::Error::custom)?;
        (Kind::<Self>::new(), Handle::from(self.0.id)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedFd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (_, handle) = <(Kind<Self>, Handle)>::deserialize(deserializer)?;
        handle.receive().map(Self::from).map_err(D::Error::custom)
    }
}
