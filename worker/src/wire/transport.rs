//! Sends frames from parent to worker over ipc-channel. No other file uses that crate.
//!
//! A frame is bytes in a single packet. ipc-channel streams a message of several packets through a second
//! socket, and its sender blocks forever if the receiver dies meanwhile. So anything larger than
//! [`max_frame`] travels as a [`Region`](crate::shm::region::Region).
//!
//! Only the worker receives through ipc-channel, and only frames of its parent. ipc-channel trusts the
//! lengths in a packet, so the parent never uses it to read data that a worker may have written; replies
//! come over the [control socket](crate::wire::control).
//!
//! ipc-channel creates its own channels and can't adopt a descriptor, but a new worker has only
//! descriptors. So both sides find the descriptor behind an ipc-channel receiver: a frame sent into a
//! channel can be peeked at on exactly one descriptor ([`number_of`]). The parent duplicates that
//! descriptor to pass it. The worker replaces the receiver's descriptor of a channel of its own by the
//! passed one.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use ipc_channel::IpcError;
use ipc_channel::ipc::{self, IpcBytesReceiver, IpcBytesSender};
use rustix::event::EventfdFlags;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{AddressFamily, RecvFlags, SocketType};

use crate::shm::sys::{entropy, with_call_name};
use crate::wire::control::{Control, limit_send_time};
use crate::wire::error::TransportError;

/// Calls ipc-channel, and again if a signal interrupts it.
fn retry_interrupted<T>(
    mut operation: impl FnMut() -> Result<T, TransportError>,
) -> Result<T, TransportError> {
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
/// When the system refuses a socket.
pub fn max_frame() -> Result<usize, TransportError> {
    // ipc-channel creates a socket to ask, and panics if the system refuses one.
    drop(Control::pair()?);
    Ok(ipc_channel::platform::OsIpcSender::get_max_fragment_size())
}

/// Sends frames.
#[derive(Debug)]
pub struct FrameSender(IpcBytesSender);

/// Receives frames.
#[derive(Debug)]
pub struct FrameReceiver(IpcBytesReceiver);

/// Creates a channel. Returns its receiver as a descriptor, to be passed to a worker.
///
/// # Errors
///
/// When the system refuses.
pub fn frame_channel() -> Result<(FrameSender, OwnedFd), TransportError> {
    let likely = first_free()?;
    let (sender, receiver) = channel()?;
    let number = number_of(&sender, &receiver, likely)?;
    // SAFETY: `receiver` keeps the descriptor open until it is dropped at the end of this function.
    let own = unsafe { BorrowedFd::borrow_raw(number) };
    let passed = with_call_name("fcntl", fcntl_dupfd_cloexec(own, 3))?;
    limit_sends(own, likely)?;
    Ok((FrameSender(sender), passed))
}

/// Limits how long a send through the channel may wait for space, as on the control socket. The
/// channel is a socket pair: its sender's descriptor receives what is written to its receiver's.
fn limit_sends(receiver: BorrowedFd<'_>, likely: RawFd) -> Result<(), TransportError> {
    let token = token();
    with_call_name("write", rustix::io::write(receiver, &token))?;
    let number = find(likely, &token).ok_or_else(|| {
        io::Error::other("no descriptor receives what is sent to the channel's sender")
    })?;
    // SAFETY: the channel's sender, which the caller keeps, owns the descriptor.
    let sender = unsafe { BorrowedFd::borrow_raw(number) };
    let mut taken = [0; TOKEN];
    with_call_name("recv", rustix::net::recv(sender, &mut taken, RecvFlags::DONTWAIT))?;
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

/// Returns the number that the next descriptor probably gets. Of all descriptors, an event is made and closed
/// fastest.
fn first_free() -> Result<RawFd, TransportError> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC);
    Ok(with_call_name("eventfd", event)?.as_raw_fd())
}

/// Returns the number of the descriptor that `receiver` reads: the one at which a sent frame can be
/// peeked at. The search starts at `likely`.
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

/// Length of a token in bytes.
const TOKEN: usize = 16;

/// Returns bytes that no other packet ends with.
fn token() -> [u8; TOKEN] {
    let mut token = [0; TOKEN];
    token[..8].copy_from_slice(&entropy().to_le_bytes());
    token[8..].copy_from_slice(&entropy().to_le_bytes());
    token
}

/// Returns the number of the descriptor that [`receives`] the token. The search starts at `likely`.
fn find(likely: RawFd, token: &[u8]) -> Option<RawFd> {
    /// Numbers searched first: other threads may open and close descriptors meanwhile.
    const NEAR: RawFd = 64;
    /// Numbers searched last, more than a process has in practice. The search takes 30 ms.
    const FAR: RawFd = 1 << 16;
    let near = likely..likely.saturating_add(NEAR);
    let far = near.end..near.end.saturating_add(FAR);
    near.chain(0..likely).chain(far).find(|number| receives(*number, token))
}

/// Returns whether the descriptor of that number is a socket whose next packet ends with `token`. The
/// packet stays in the socket.
fn receives(number: RawFd, token: &[u8]) -> bool {
    // SAFETY: the number is only inspected, and a closed one is an error. Its owner does not matter,
    // because nothing about it changes.
    let socket = unsafe { BorrowedFd::borrow_raw(number) };
    let is_ours = rustix::net::sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX)
        && rustix::net::sockopt::socket_type(socket) == Ok(SocketType::SEQPACKET);
    let mut packet = [0; 256];
    is_ours
        && rustix::net::recv(socket, &mut packet, RecvFlags::PEEK | RecvFlags::DONTWAIT)
            .is_ok_and(|(len, _)| packet[..len].ends_with(token))
}

fn send(sender: &IpcBytesSender, frame: &[u8]) -> Result<(), TransportError> {
    retry_interrupted(|| sender.send(frame).map_err(TransportError::from_io))
}

fn recv(receiver: &IpcBytesReceiver) -> Result<Vec<u8>, TransportError> {
    retry_interrupted(|| {
        receiver.recv().map_err(|error| match error {
            IpcError::Disconnected => TransportError::PeerGone,
            IpcError::Io(error) => TransportError::from_io(error),
            error => TransportError::Malformed(error.to_string()),
        })
    })
}

impl FrameSender {
    /// Sends a frame of at most [`max_frame`] bytes. Blocks only while the receiver has several unread,
    /// and for a second at most.
    ///
    /// # Errors
    ///
    /// [`TransportError::PeerGone`] when no process holds the receiver, [`TransportError::Malformed`] when
    /// none reads.
    pub fn send(&self, frame: &[u8]) -> Result<(), TransportError> {
        send(&self.0, frame).map_err(|error| match error {
            TransportError::Io(error) if error.kind() == io::ErrorKind::WouldBlock => {
                TransportError::Malformed("it does not read its frames".to_owned())
            }
            error => error,
        })
    }
}

impl FrameReceiver {
    /// Adopts a descriptor from [`frame_channel`], in another process.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn adopt(passed: OwnedFd) -> Result<Self, TransportError> {
        // The receiver's number is low. A task that closes it by mistake ends its worker. Occupying all low
        // numbers first, to get a high one, was tried: it took 0.6 ms per start.
        let likely = first_free()?;
        let (sender, receiver) = channel()?;
        let number = number_of(&sender, &receiver, likely)?;
        // SAFETY: `receiver` owns the descriptor and keeps the number. `dup3` changes what is behind it,
        // and nothing here closes it.
        let mut own = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
        let placed = rustix::io::dup3(&passed, &mut own, rustix::io::DupFlags::CLOEXEC);
        with_call_name("dup3", placed)?;
        Ok(Self(receiver))
    }

    /// Receives a frame. Blocks until one arrives.
    ///
    /// # Errors
    ///
    /// [`TransportError::PeerGone`] when no process holds the sender.
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
        let (sender, passed) = frame_channel().unwrap();
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
        let (sender, _passed) = frame_channel().unwrap();
        let start = std::time::Instant::now();
        let refused = (0..10_000).find_map(|_| sender.send(&[0; 1000]).err());
        assert!(matches!(refused, Some(TransportError::Malformed(_))), "{refused:?}");
        assert!(start.elapsed() < std::time::Duration::from_secs(10));
    }

    #[test]
    fn a_sender_learns_that_its_receiver_is_gone() {
        let (sender, passed) = frame_channel().unwrap();
        drop(passed);
        assert!(matches!(sender.send(b"lost"), Err(TransportError::PeerGone)));
    }
}
