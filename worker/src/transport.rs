//! Moving frames and regions between parent and worker: the only file that knows ipc-channel.
//!
//! Frames travel as bytes, each in one packet: a message of several is streamed through a second
//! socket, and its sender waits for ever if the receiver dies meanwhile. Whatever is larger than
//! [`max_frame`] travels as a [`Region`], on a channel of its own ([`RegionSender`]) and always
//! *before* the frame that speaks of it, so that the frame's receiver need not wait for it. Both sides
//! may keep a region and use it again.
//!
//! ipc-channel may panic on what a corrupt peer sends and where a system call fails; both are
//! contained here and come out as errors.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ipc_channel::ipc::{
    self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcReceiver, IpcSender,
    IpcSharedMemory,
};
use ipc_channel::{IpcError, TryRecvError};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::harden;
use crate::panics;
use crate::protocol::Greeting;

/// Why a frame or region could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Nobody holds the other end any more.
    #[error("the other process is gone")]
    PeerGone,
    /// What arrived can't be understood.
    #[error("what the other process sent can't be understood: {0}")]
    Malformed(String),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl TransportError {
    /// The death of a peer has several faces; this makes them one.
    fn from_io(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected => Self::PeerGone,
            _ => Self::Io(error),
        }
    }

    fn from_ipc(error: IpcError) -> Self {
        match error {
            IpcError::Disconnected => Self::PeerGone,
            IpcError::Io(error) => Self::from_io(error),
            error => Self::Malformed(error.to_string()),
        }
    }

    fn is_interrupt(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::Interrupted)
    }
}

/// Calls ipc-channel: retries what a signal interrupted, and makes a panic an error.
fn call<T>(mut operation: impl FnMut() -> Result<T, TransportError>) -> Result<T, TransportError> {
    loop {
        let outcome = catch_unwind(AssertUnwindSafe(&mut operation));
        match outcome {
            Ok(Err(error)) if error.is_interrupt() => {}
            Ok(outcome) => return outcome,
            Err(payload) => {
                return Err(TransportError::Malformed(panics::message(&*payload)));
            }
        }
    }
}

/// The largest frame in bytes that travels in one packet.
///
/// # Errors
///
/// When the system won't give a socket to ask.
pub fn max_frame() -> Result<usize, TransportError> {
    call(|| Ok(ipc_channel::platform::OsIpcSender::get_max_fragment_size()))
}

/// Sends frames.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FrameSender(IpcBytesSender);

/// Receives frames.
#[derive(Debug, Serialize, Deserialize)]
pub struct FrameReceiver(IpcBytesReceiver);

/// A channel for frames.
///
/// # Errors
///
/// When the system won't make one.
pub fn frames() -> Result<(FrameSender, FrameReceiver), TransportError> {
    let (sender, receiver) = ipc::bytes_channel()?;
    Ok((FrameSender(sender), FrameReceiver(receiver)))
}

impl FrameSender {
    /// Sends a frame of at most [`max_frame`] bytes. Waits only if the receiver has several unread.
    ///
    /// # Errors
    ///
    /// [`TransportError::PeerGone`] when nobody can receive it.
    pub fn send(&self, frame: &[u8]) -> Result<(), TransportError> {
        call(|| self.0.send(frame).map_err(TransportError::from_io))
    }
}

impl FrameReceiver {
    /// Waits for a frame.
    ///
    /// # Errors
    ///
    /// [`TransportError::PeerGone`] when nobody can send one any more.
    pub fn recv(&self) -> Result<Vec<u8>, TransportError> {
        call(|| self.0.recv().map_err(TransportError::from_ipc))
    }
}

/// Sends regions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RegionSender(IpcSender<Region>);

/// Receives regions.
#[derive(Debug, Serialize, Deserialize)]
pub struct RegionReceiver(IpcReceiver<Region>);

/// A channel for regions.
///
/// # Errors
///
/// When the system won't make one.
pub fn regions() -> Result<(RegionSender, RegionReceiver), TransportError> {
    let (sender, receiver) = ipc::channel()?;
    Ok((RegionSender(sender), RegionReceiver(receiver)))
}

impl RegionSender {
    /// Sends a region. The memory is shared from then on, not copied.
    ///
    /// # Errors
    ///
    /// [`TransportError::PeerGone`] when nobody can receive it.
    pub fn send(&self, region: &Region) -> Result<(), TransportError> {
        call(|| self.0.send(region.clone()).map_err(TransportError::from_ipc))
    }
}

impl RegionReceiver {
    /// Takes a region that was sent before the frame that speaks of it; never waits.
    ///
    /// # Errors
    ///
    /// [`TransportError::Malformed`] when none was sent.
    pub fn take(&self) -> Result<Region, TransportError> {
        call(|| {
            self.0.try_recv().map_err(|error| match error {
                TryRecvError::Empty => TransportError::Malformed("no region was sent".to_owned()),
                TryRecvError::IpcError(error) => TransportError::from_ipc(error),
            })
        })
    }
}

/// Memory that two processes share. Anonymous: it is gone when both have let go of it, whatever
/// way they end.
#[derive(Clone, Serialize, Deserialize)]
pub struct Region(IpcSharedMemory);

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Region({} bytes)", self.len())
    }
}

impl Region {
    /// A region of `len` zero bytes.
    ///
    /// # Errors
    ///
    /// When the system has no memory or no file descriptor for it.
    pub fn zeroed(len: usize) -> Result<Self, TransportError> {
        call(|| Ok(Self(IpcSharedMemory::from_byte(0, len))))
    }

    /// A region that holds a copy of `bytes`.
    ///
    /// # Errors
    ///
    /// When the system has no memory or no file descriptor for it.
    pub fn copy_of(bytes: &[u8]) -> Result<Self, TransportError> {
        call(|| Ok(Self(IpcSharedMemory::from_bytes(bytes))))
    }

    /// Gives its memory back to the system, whoever has it mapped; what it held is lost.
    pub fn discard(&self) {
        harden::discard(self.as_ptr(), self.len());
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where its bytes start. The other process may write them at any time.
    pub fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }

    /// Where its bytes start, to be written through raw copies and atomics.
    pub fn base(&mut self) -> *mut u8 {
        // SAFETY: the slice is given up at once for its address; what is done through that is
        // argued where it is done.
        unsafe { self.0.deref_mut() }.as_mut_ptr()
    }
}

/// Where a worker that has just been started reports to: a socket in the temporary directory.
pub struct Bootstrap {
    server: IpcOneShotServer<Hello>,
}

impl std::fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bootstrap")
    }
}

/// A worker's first message: who it is, and its ends of everything.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Who says it.
    pub greeting: Greeting,
    /// Takes the parent's frames.
    pub requests: FrameSender,
    /// Takes the regions that the parent's frames speak of.
    pub arguments: RegionSender,
    /// Gives the worker's frames.
    pub replies: FrameReceiver,
    /// Goes into the same channel; the parent uses it to wake whoever waits for a reply that will
    /// not come.
    pub waker: FrameSender,
    /// Gives the regions that the worker's frames speak of.
    pub results: RegionReceiver,
    /// The shared region that the lane lies in.
    pub lane: Region,
}

impl Bootstrap {
    /// A new socket and its name.
    ///
    /// # Errors
    ///
    /// When it can't be made, or its path is longer than a socket's may be.
    pub fn new() -> Result<(Self, String), TransportError> {
        // A longer path is cut by ipc-channel without a word, and nobody finds the socket.
        const LONGEST: usize = 107;
        let (server, name) = call(|| Ok(IpcOneShotServer::new()?))?;
        if name.len() > LONGEST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidFilename,
                format!(
                    "the socket path {name:?} is longer than {LONGEST} bytes: set TMPDIR to a shorter directory"
                ),
            )
            .into());
        }
        Ok((Self { server }, name))
    }

    /// Waits for the worker's first message. [`interrupt`] ends the wait.
    ///
    /// # Errors
    ///
    /// When something else came than a hello.
    pub fn accept(self) -> Result<Hello, TransportError> {
        let mut server = Some(self.server);
        call(|| match server.take() {
            // The receiver that comes with it is dropped at once: its socket would be inherited.
            Some(server) => Ok(server.accept().map_err(TransportError::from_ipc)?.1),
            None => Err(TransportError::PeerGone),
        })
    }
}

/// Reports to a parent's [`Bootstrap`].
///
/// # Errors
///
/// When the parent is gone.
pub fn greet(name: &str, hello: Hello) -> Result<(), TransportError> {
    let mut hello = Some(hello);
    call(|| {
        let sender = IpcSender::<Hello>::connect(name.to_owned())?;
        let hello = hello.take().ok_or(TransportError::PeerGone)?;
        sender.send(hello).map_err(TransportError::from_ipc)
    })
}

/// Ends the wait of a [`Bootstrap::accept`] whose worker will never report: its next message is the
/// end of a connection.
///
/// # Errors
///
/// When nobody waits there any more, or there is no file descriptor to connect with.
pub fn interrupt(name: &str) -> io::Result<()> {
    // Not by ipc-channel, whose sender never closes its socket if it can't be connected.
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(rustix::net::connect(&socket, &SocketAddrUnix::new(name)?)?)
}
