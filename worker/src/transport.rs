//! Frames from parent to worker over ipc-channel: the only file that knows it.
//!
//! Frames travel as bytes, each in one packet: a message of several is streamed through a second
//! socket, and its sender blocks for ever if the receiver dies meanwhile. Whatever is larger than
//! [`max_frame`] travels as a [`Region`](crate::region::Region).
//!
//! Only the worker receives through ipc-channel, and only what its parent has sent. ipc-channel trusts
//! the lengths in a packet, so the parent never reads through it what a worker may have written; the
//! answers come over the [control socket](crate::control).
//!
//! ipc-channel makes its channels by itself and has no way to take over a descriptor. A new worker
//! has nothing but descriptors, so both sides ask each other's socket who it is: what is sent into a
//! channel can be peeked at on exactly one descriptor, its receiver's ([`number_of`]). The parent
//! duplicates that descriptor to pass it on; the worker puts the descriptor that it was passed in the
//! place of the receiver's of a channel of its own.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use ipc_channel::IpcError;
use ipc_channel::ipc::{self, IpcBytesReceiver, IpcBytesSender};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{AddressFamily, RecvFlags, SocketType};

use crate::control::{Control, limit_send_time};
use crate::region::named;
use crate::seed;

/// Why a frame could not be moved.
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
    pub(crate) fn from_io(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected => Self::PeerGone,
            _ => Self::Io(error),
        }
    }

    fn is_interrupt(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::Interrupted)
    }
}

/// Calls ipc-channel, again where a signal has interrupted it.
fn call<T>(mut operation: impl FnMut() -> Result<T, TransportError>) -> Result<T, TransportError> {
    loop {
        match operation() {
            Err(error) if error.is_interrupt() => {}
            outcome => return outcome,
        }
    }
}

/// Returns the largest frame in bytes that travels in one packet.
///
/// # Errors
///
/// When the system has no socket to ask.
pub fn max_frame() -> Result<usize, TransportError> {
    // ipc-channel makes a socket to ask, and panics where there is none.
    drop(Control::pair()?);
    Ok(ipc_channel::platform::OsIpcSender::get_max_fragment_size())
}

/// Sends frames.
#[derive(Debug)]
pub struct FrameSender(IpcBytesSender);

/// Receives frames.
#[derive(Debug)]
pub struct FrameReceiver(IpcBytesReceiver);

/// Creates a channel, and returns its receiver as the descriptor that is passed to a worker.
///
/// # Errors
///
/// When the system refuses.
pub fn frames() -> Result<(FrameSender, OwnedFd), TransportError> {
    let likely = first_free()?;
    let (sender, receiver) = channel()?;
    let number = number_of(&sender, &receiver, likely)?;
    // SAFETY: `receiver` keeps the descriptor open until it is dropped at the end of this function.
    let own = unsafe { BorrowedFd::borrow_raw(number) };
    let passed = named("fcntl", fcntl_dupfd_cloexec(own, 3))?;
    limit_sends(own, likely)?;
    Ok((FrameSender(sender), passed))
}

/// Limits how long a send through the channel may wait for room, as on the control socket. Its sender's
/// descriptor is the one that receives what is written at its receiver's: the two are a socket pair.
fn limit_sends(receiver: BorrowedFd<'_>, likely: RawFd) -> Result<(), TransportError> {
    let token = token();
    named("write", rustix::io::write(receiver, &token))?;
    let number = find(likely, &token).ok_or_else(|| {
        io::Error::other("no descriptor receives what is sent to the channel's sender")
    })?;
    // SAFETY: the channel's sender, which the caller keeps, owns the descriptor.
    let sender = unsafe { BorrowedFd::borrow_raw(number) };
    let mut taken = [0; TOKEN];
    named("recv", rustix::net::recv(sender, &mut taken, RecvFlags::DONTWAIT))?;
    limit_send_time(sender);
    Ok(())
}

fn channel() -> Result<(IpcBytesSender, IpcBytesReceiver), TransportError> {
    ipc::bytes_channel().map_err(|error| {
        let text = format!("socketpair: {error}");
        let raw = error.raw_os_error().map(io::Error::from_raw_os_error);
        TransportError::Io(raw.unwrap_or_else(|| io::Error::new(error.kind(), text)))
    })
}

/// Returns the number that the next descriptor is likely to have.
fn first_free() -> Result<RawFd, TransportError> {
    Ok(Control::pair()?.0.as_raw_fd())
}

/// Returns the number of the descriptor that `receiver` reads: the one at which a frame that is only
/// peeked at can be seen. The search begins at `likely`.
fn number_of(
    sender: &IpcBytesSender,
    receiver: &IpcBytesReceiver,
    likely: RawFd,
) -> Result<RawFd, TransportError> {
    let token = token();
    send(sender, &token)?;
    match (find(likely, &token), recv(receiver)?) {
        (Some(number), received) if received == token => Ok(number),
        _ => Err(io::Error::other("no descriptor receives what is sent to the channel").into()),
    }
}

/// How many bytes a token has.
const TOKEN: usize = 16;

/// Returns bytes that no other packet ends with.
fn token() -> [u8; TOKEN] {
    let mut token = [0; TOKEN];
    token[..8].copy_from_slice(&seed::fresh().to_le_bytes());
    token[8..].copy_from_slice(&seed::fresh().to_le_bytes());
    token
}

/// Returns the number of the descriptor that [`shows`] the token. The search begins at `likely`.
fn find(likely: RawFd, token: &[u8]) -> Option<RawFd> {
    /// Other threads may open and close descriptors meanwhile, so some more are looked at first.
    const NEAR: RawFd = 64;
    /// And at last as many as a process has in practice: that takes 30 ms.
    const MOST: RawFd = 1 << 16;
    let near = likely..likely.saturating_add(NEAR);
    let far = near.end..near.end.saturating_add(MOST);
    near.chain(0..likely).chain(far).find(|number| shows(*number, token))
}

/// Returns whether the descriptor of that number, if there is one, is a socket whose next packet ends
/// with `token`. The packet stays there.
fn shows(number: RawFd, token: &[u8]) -> bool {
    // SAFETY: the number is only looked at, and one that is not open is an error; whose it is doesn't
    // matter, as nothing about it is changed.
    let socket = unsafe { BorrowedFd::borrow_raw(number) };
    let is_ours = rustix::net::sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX)
        && rustix::net::sockopt::socket_type(socket) == Ok(SocketType::SEQPACKET);
    let mut packet = [0; 256];
    is_ours
        && rustix::net::recv(socket, &mut packet, RecvFlags::PEEK | RecvFlags::DONTWAIT)
            .is_ok_and(|(len, _)| packet[..len].ends_with(token))
}

fn send(sender: &IpcBytesSender, frame: &[u8]) -> Result<(), TransportError> {
    call(|| sender.send(frame).map_err(TransportError::from_io))
}

fn recv(receiver: &IpcBytesReceiver) -> Result<Vec<u8>, TransportError> {
    call(|| {
        receiver.recv().map_err(|error| match error {
            IpcError::Disconnected => TransportError::PeerGone,
            IpcError::Io(error) => TransportError::from_io(error),
            error => TransportError::Malformed(error.to_string()),
        })
    })
}

impl FrameSender {
    /// Sends a frame of at most [`max_frame`] bytes. Blocks only while the receiver has several
    /// unread, and for a second at most.
    ///
    /// # Errors
    ///
    /// [`TransportError::PeerGone`] when no process can receive it, [`TransportError::Malformed`] when
    /// none does.
    pub fn send(&self, frame: &[u8]) -> Result<(), TransportError> {
        send(&self.0, frame).map_err(|error| match error {
            TransportError::Io(error) if error.kind() == io::ErrorKind::WouldBlock => {
                TransportError::Malformed("it reads nothing".to_owned())
            }
            error => error,
        })
    }
}

impl FrameReceiver {
    /// Takes over a descriptor that [`frames`] returned, in another process.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn adopt(passed: OwnedFd) -> Result<Self, TransportError> {
        // Its number is a low one, which a task may close by mistake; its worker then ends after that
        // task. To take all low numbers first, for it to get a high one, was tried: 0.6 ms a start.
        let likely = first_free()?;
        let (sender, receiver) = channel()?;
        let number = number_of(&sender, &receiver, likely)?;
        // SAFETY: `receiver` owns the descriptor and keeps the number; `dup3` changes what is behind it,
        // and nothing here closes it.
        let mut own = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
        let placed = rustix::io::dup3(&passed, &mut own, rustix::io::DupFlags::CLOEXEC);
        named("dup3", placed)?;
        Ok(Self(receiver))
    }

    /// Waits for a frame.
    ///
    /// # Errors
    ///
    /// [`TransportError::PeerGone`] when nobody can send one any more.
    pub fn recv(&self) -> Result<Vec<u8>, TransportError> {
        recv(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_receiver_that_was_passed_on_receives() {
        let (sender, passed) = frames().unwrap();
        sender.send(b"before").unwrap();
        let receiver = FrameReceiver::adopt(passed).unwrap();
        sender.send(b"after").unwrap();
        assert_eq!(receiver.recv().unwrap(), b"before");
        assert_eq!(receiver.recv().unwrap(), b"after");
        drop(sender);
        assert!(matches!(receiver.recv(), Err(TransportError::PeerGone)));
    }

    #[test]
    fn a_send_to_a_receiver_that_never_reads_is_over_in_time() {
        let (sender, _passed) = frames().unwrap();
        let begun = std::time::Instant::now();
        let refused = (0..10_000).find_map(|_| sender.send(&[0; 1000]).err());
        assert!(matches!(refused, Some(TransportError::Malformed(_))), "{refused:?}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    }

    #[test]
    fn a_sender_learns_that_its_receiver_is_gone() {
        let (sender, passed) = frames().unwrap();
        drop(passed);
        assert!(matches!(sender.send(b"lost"), Err(TransportError::PeerGone)));
    }
}
