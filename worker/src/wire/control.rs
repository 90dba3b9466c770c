//! The control socket between parent and worker, a pair of SEQPACKET sockets: carries the worker's
//! replies, and the descriptors that either side passes to the other.
//!
//! Frames with calls travel over ipc-channel ([`transport`](crate::wire::transport)). Replies must not:
//! ipc-channel trusts the lengths that it reads, and the code of a task may write to the worker's
//! descriptors. Here one `recvmsg` reads each packet into a buffer of fixed size, and a packet that does
//! not start with the worker's [nonce](Control::new) is dropped. So a task that writes to every
//! descriptor changes nothing.
//!
//! Descriptors are passed by `SCM_RIGHTS`, which needs neither /proc nor ptrace permission. They are
//! always sent *before* the frame or the record that refers to them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
};

use crate::shm::sys::with_call_name;
use crate::wire::error::TransportError;
use crate::wire::passed::PassedFd;

/// The longest packet in bytes, with its nonce. The handshake is the longest one of a worker.
pub const MAX_PACKET: usize = 4096;

/// The most descriptors in one packet; the kernel allows 253.
pub const MAX_DESCRIPTORS: usize = 250;

/// How long a send may wait for space. A peer that follows the protocol has always made some.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of a packet that are the nonce.
const NONCE: usize = size_of::<u64>();

/// One end of a control socket.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
    nonce: [u8; NONCE],
}

/// A received packet.
#[derive(Debug, Default)]
pub struct Packet {
    /// The bytes behind the nonce.
    pub bytes: Vec<u8>,
    /// The descriptors that were passed with it.
    pub descriptors: Vec<PassedFd>,
    /// Whether descriptors were lost because this process has reached its limit of open files.
    pub is_cut: bool,
}

impl Control {
    /// Creates a connected pair of sockets.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        with_call_name(
            "socketpair",
            rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None),
        )
    }

    /// Uses one end of a pair. Both ends need the same nonce.
    pub fn new(socket: OwnedFd, nonce: u64) -> Self {
        limit_send_time(socket.as_fd());
        Self { socket, nonce: nonce.to_le_bytes() }
    }

    /// Sends a packet. Blocks only while the other side has hundreds unread.
    ///
    /// # Errors
    ///
    /// [`TransportError::PeerGone`] when no process holds the other end. An I/O error when the system
    /// refuses, for example because too many descriptors are in flight.
    ///
    /// # Panics
    ///
    /// When `bytes` is longer than [`MAX_PACKET`] allows, or there are more than [`MAX_DESCRIPTORS`].
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), TransportError> {
        self.try_send(bytes, descriptors, SendFlags::NOSIGNAL).map_err(failed)
    }

    /// Sends a packet. Waits for space until `deadline`, or for as long as it takes. Returns whether it was sent.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Panics
    ///
    /// As [`send`](Self::send).
    pub(crate) fn send_by(
        &self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<bool, TransportError> {
        loop {
            match self.try_send(bytes, descriptors, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(()) => return Ok(true),
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(failed(errno)),
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            let left = left.map_or(SEND_TIMEOUT, |left| left.min(SEND_TIMEOUT));
            let limit = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut socket = [PollFd::new(&self.socket, PollFlags::OUT)];
            // The next attempt reports what is wrong with the socket.
            let _ = poll(&mut socket, Some(&limit));
        }
    }

    fn try_send(
        &self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
        flags: SendFlags,
    ) -> Result<(), Errno> {
        assert!(bytes.len() <= MAX_PACKET - NONCE && descriptors.len() <= MAX_DESCRIPTORS);
        let mut space = Vec::new();
        if !descriptors.is_empty() {
            let len = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));
            space.resize(len, MaybeUninit::uninit());
        }
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let parts = [IoSlice::new(&self.nonce), IoSlice::new(bytes)];
        retry_on_intr(|| rustix::net::sendmsg(&self.socket, &parts, &mut ancillary, flags))
            .map(drop)
    }

    /// Whether [`recv`](Self::recv) would not wait: a packet has arrived, or the other end is closed.
    pub fn has_packet(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = retry_on_intr(|| rustix::net::recv(&self.socket, &mut [0u8], flags));
        !matches!(peeked, Err(Errno::AGAIN))
    }

    /// Receives a packet with the nonce and drops all others. With `wait` false, it must be there already.
    ///
    /// # Errors
    ///
    /// [`TransportError::PeerGone`] when no process holds the other end, or this end was
    /// [shut down](Self::shut_down).
    pub fn recv(&self, wait: bool) -> Result<Packet, TransportError> {
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        flags.set(RecvFlags::DONTWAIT, !wait);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut buffer = [0; MAX_PACKET];
        loop {
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let received =
                match rustix::net::recvmsg(&self.socket, &mut parts, &mut ancillary, flags) {
                    Ok(received) => received,
                    Err(Errno::INTR) => continue,
                    // Reported once if the peer has ended with packets unread. Its own packets can still
                    // be received, and then the end.
                    Err(Errno::CONNRESET) => continue,
                    Err(Errno::AGAIN) => {
                        return Err(TransportError::Malformed("a packet is missing".to_owned()));
                    }
                    Err(errno) => return Err(TransportError::from_io(errno.into())),
                };
            let mut descriptors: Vec<PassedFd> = Vec::new();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    descriptors.extend(passed.map(PassedFd::from));
                }
            }
            for descriptor in &descriptors {
                // Closing a connection should not wait for its peer. Its sender may set it again.
                let _ = rustix::net::sockopt::set_socket_linger(descriptor, None);
            }
            if received.bytes == 0 && descriptors.is_empty() && self.has_ended() {
                return Err(TransportError::PeerGone);
            }
            let is_whole = !received.flags.contains(ReturnFlags::TRUNC);
            if let Some(bytes) = buffer[..received.bytes].strip_prefix(&self.nonce)
                && is_whole
            {
                let is_cut = received.flags.contains(ReturnFlags::CTRUNC);
                return Ok(Packet { bytes: bytes.to_vec(), descriptors, is_cut });
            }
        }
    }

    /// Returns whether the other end is closed, or this one shut down. To `recvmsg`, both look like an
    /// empty packet.
    fn has_ended(&self) -> bool {
        let mut socket = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        match retry_on_intr(|| poll(&mut socket, Some(&now))) {
            Ok(_) => socket[0].revents().intersects(ended),
            // If the system refuses to tell, assuming the end avoids an endless wait.
            Err(_) => true,
        }
    }

    /// Ends every current and future [`recv`](Self::recv), after the packets that have arrived.
    pub fn shut_down(&self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Read);
    }
}

/// Returns the error of a send.
fn failed(errno: Errno) -> TransportError {
    match errno {
        Errno::AGAIN => TransportError::Malformed("it does not read its packets".to_owned()),
        Errno::TOOMANYREFS => TransportError::Io(io::Error::other(
            "too many file descriptors are on their way to workers (`ulimit -n` limits them)",
        )),
        errno => TransportError::from_io(errno.into()),
    }
}

/// Limits how long a send on the socket may wait for space: a peer that does not read must not keep this
/// side from supervising it. If the timeout can't be set, hundreds of packets still fit.
pub(crate) fn limit_send_time(socket: BorrowedFd<'_>) {
    let which = rustix::net::sockopt::Timeout::Send;
    let _ = rustix::net::sockopt::set_socket_timeout(socket, which, Some(SEND_TIMEOUT));
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::io::write;

    fn pair() -> (Control, Control) {
        let (one, other) = Control::pair().unwrap();
        (Control::new(one, 7), Control::new(other, 7))
    }

    #[test]
    fn packets_without_the_nonce_are_dropped() {
        let (parent, worker) = pair();
        for junk in [&b""[..], b"hello, world\n", &[0; 24], &[255; 9000]] {
            let _ = rustix::net::send(&worker.socket, junk, SendFlags::DONTWAIT).unwrap();
        }
        worker.send(b"done", &[]).unwrap();
        assert_eq!(parent.recv(true).unwrap().bytes, b"done");
        write(&worker.socket, b"hello").unwrap();
        assert!(matches!(parent.recv(false), Err(TransportError::Malformed(_))));
        drop(worker);
        assert!(matches!(parent.recv(true), Err(TransportError::PeerGone)));
    }

    #[test]
    fn descriptors_arrive_and_the_file_is_the_same() {
        let (parent, worker) = pair();
        let (reader, writer) = std::io::pipe().unwrap();
        worker.send(b"", &[reader.as_fd()]).unwrap();
        drop(reader);
        let packet = parent.recv(true).unwrap();
        assert!(packet.bytes.is_empty() && !packet.is_cut);
        write(&writer, b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&packet.descriptors[0], &mut byte), Ok(1));
    }

    #[test]
    fn a_wait_ends_when_the_socket_is_shut_down() {
        let (parent, _worker) = pair();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| parent.recv(true));
            parent.shut_down();
            assert!(matches!(waits.join().unwrap(), Err(TransportError::PeerGone)));
        });
    }
}
