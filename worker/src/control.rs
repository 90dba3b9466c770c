//! The control socket between parent and worker, a pair of SEQPACKET sockets: the worker's answers, and
//! the descriptors that either side passes to the other.
//!
//! Frames with calls travel over ipc-channel ([`transport`](crate::transport)). What comes back must
//! not: ipc-channel trusts the lengths that it reads, and whatever runs in a worker may write to its
//! descriptors. Here each packet is read by one `recvmsg` into a buffer of fixed size, and a packet
//! that doesn't begin with the worker's [nonce](Control::new) is dropped. So a task that writes to
//! every descriptor it finds changes nothing.
//!
//! Descriptors are passed by `SCM_RIGHTS`, which needs neither /proc nor the right to look into the
//! other process. They are always sent *before* the frame or the record that speaks of them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
};

use crate::region::named;
use crate::transport::TransportError;

/// The longest packet in bytes, its nonce included: the handshake is the longest one of a worker.
pub const MAX_PACKET: usize = 4096;

/// The most descriptors in one packet; the kernel allows 253.
pub const MAX_DESCRIPTORS: usize = 250;

/// How long a send may wait for room: a peer that keeps to the protocol has always made some.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// How many bytes of a packet are the nonce.
const NONCE: usize = size_of::<u64>();

/// One end of a control socket.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
    nonce: [u8; NONCE],
}

/// A packet as it was received.
#[derive(Debug, Default)]
pub struct Packet {
    /// What follows the nonce.
    pub bytes: Vec<u8>,
    /// The descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
    /// Whether descriptors were lost, since this process has no number left for them.
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
        named("socketpair", rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None))
    }

    /// Takes one end; both ends must be given the same nonce.
    pub fn new(socket: OwnedFd, nonce: u64) -> Self {
        limit_send_time(socket.as_fd());
        Self { socket, nonce: nonce.to_le_bytes() }
    }

    /// Sends a packet. Blocks only while the other side has hundreds unread.
    ///
    /// # Errors
    ///
    /// [`TransportError::PeerGone`] when nobody can receive it, and the system's refusal, as of
    /// descriptors that are more than one process may have on their way.
    ///
    /// # Panics
    ///
    /// When there are more bytes than [`MAX_PACKET`] or descriptors than [`MAX_DESCRIPTORS`].
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), TransportError> {
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
        let sent = retry_on_intr(|| {
            rustix::net::sendmsg(&self.socket, &parts, &mut ancillary, SendFlags::NOSIGNAL)
        });
        sent.map(drop).map_err(|errno| match errno {
            Errno::AGAIN => TransportError::Malformed("it reads nothing".to_owned()),
            Errno::TOOMANYREFS => TransportError::Io(io::Error::other(
                "too many file descriptors are on their way to workers (`ulimit -n` limits them)",
            )),
            errno => TransportError::from_io(errno.into()),
        })
    }

    /// Waits for a packet with the nonce; drops what else arrives. With `wait` false, it must be there
    /// already.
    ///
    /// # Errors
    ///
    /// [`TransportError::PeerGone`] when none will come: nobody holds the other end, or this end was
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
                    // Said once of a peer that has ended with packets unread; its own are still here,
                    // and after them the end.
                    Err(Errno::CONNRESET) => continue,
                    Err(Errno::AGAIN) => {
                        return Err(TransportError::Malformed("nothing was sent".to_owned()));
                    }
                    Err(errno) => return Err(TransportError::from_io(errno.into())),
                };
            let mut descriptors = Vec::new();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    descriptors.extend(passed);
                }
            }
            for descriptor in &descriptors {
                // To close one that is a connection must not wait for whoever is at its other end.
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

    /// Returns whether the other end is closed or this one shut down: an empty packet looks the same to
    /// `recvmsg`.
    fn has_ended(&self) -> bool {
        let mut socket = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        match retry_on_intr(|| poll(&mut socket, Some(&now))) {
            Ok(_) => socket[0].revents().intersects(ended),
            // Where the system refuses to say, an end is the one that doesn't wait for ever.
            Err(_) => true,
        }
    }

    /// Ends every [`recv`](Self::recv) that waits, now and later, after what has arrived already.
    pub fn shut_down(&self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Read);
    }
}

/// Limits how long a send on the socket may wait for room: a peer that doesn't read must not keep this
/// side from watching it. Where the limit can't be set, there is room for hundreds of packets all the
/// same.
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
    fn what_lacks_the_nonce_is_dropped() {
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
