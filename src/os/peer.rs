//! A pair of sockets: each end detects whether any process still has the other end, even if processes were
//! killed. Descriptors travel from the first end to the second.
//!
//! The packets carry numbers, because the processes that share an end may be killed at any time. The sender
//! passes descriptors before it publishes their number, so those of a killed sender have a number that
//! nobody asks for, and are dropped. The receiver first only peeks, which duplicates the descriptors: if it
//! is killed, another receiver finds the packet still there.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;

use procpool_worker::attach::{Attachments, FileId, Received};
use procpool_worker::codec;
use procpool_worker::passed::PassedFd;
use procpool_worker::protocol::MAX_FILES;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::closer;
use crate::ipc::handle::File;

/// The longest packet in bytes: a number and the ids of [`MAX_FILES`] files.
const MAX_PACKET: usize = 4096;

/// How many packets without the right number are dropped in one go. Far more than fit into a socket.
const MAX_DROPPED: usize = 10_000;

/// Creates a pair. Returns the end that passes descriptors and the end that receives them.
pub(crate) fn socket_pair() -> io::Result<(File, File)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (one, other) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok((File::new(one)?, File::new(other)?))
}

/// Returns whether no process has the other end.
pub(crate) fn is_hung_up(end: &File) -> bool {
    let mut end = [PollFd::new(end, PollFlags::empty())];
    let asked = rustix::event::poll(&mut end, Some(&Timespec::default()));
    asked.is_ok() && end[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Passes what is attached to a message, as number `number`. Returns false if the socket is full.
///
/// # Errors
///
/// [`io::ErrorKind::BrokenPipe`] if no process has the other end; others when the system refuses.
pub(crate) fn pass(end: &File, number: u64, attachments: &Attachments) -> io::Result<bool> {
    let (ids, descriptors): (Vec<FileId>, Vec<_>) = attachments.files().into_iter().unzip();
    let packet = codec::encode_to_vec(&(number, ids)).map_err(io::Error::other)?;
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other(format!("it may refer to {MAX_FILES} open files")));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = retry_on_intr(|| {
        rustix::net::sendmsg(end, &[IoSlice::new(&packet)], &mut ancillary, flags)
    });
    match sent {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(Errno::TOOMANYREFS) => Err(io::Error::other(
            "too many file descriptors are in messages that were not received (`ulimit -n` limits them)",
        )),
        // Reported once if the other end was closed with packets unread.
        Err(Errno::CONNRESET) => Err(Errno::PIPE.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns the descriptors that were passed as `number`, and drops those of other numbers before them. The
/// packet stays until [`drop_packet`]. Returns none if there is no such packet.
///
/// # Errors
///
/// When this process has no file descriptors left, or the system refuses.
pub(crate) fn peek(end: &File, number: u64) -> io::Result<Received> {
    closer::install();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut buffer = [0; MAX_PACKET];
    for _ in 0..MAX_DROPPED {
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let received = match rustix::net::recvmsg(end, &mut parts, &mut ancillary, flags) {
            Ok(received) => received,
            // Reported once if the other end was closed with packets unread.
            Err(Errno::INTR | Errno::CONNRESET) => continue,
            Err(Errno::AGAIN) => break,
            Err(errno) => return Err(errno.into()),
        };
        let descriptors: Vec<_> = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .map(PassedFd::from)
            .collect();
        let packet = codec::decode::<(u64, Vec<FileId>)>(&buffer[..received.bytes]);
        // Numbers rise: a later packet belongs to a later message.
        if matches!(&packet, Ok((known, _)) if *known > number) {
            break;
        }
        if let Ok((known, ids)) = packet
            && known == number
        {
            if received.flags.contains(ReturnFlags::CTRUNC) {
                return Err(Errno::MFILE.into());
            }
            return Ok(Received::new(ids.into_iter().zip(descriptors).collect()));
        }
        if received.bytes == 0 && is_hung_up(end) {
            break;
        }
        drop_packet(end);
    }
    Ok(Received::default())
}

/// Drops the first packet.
pub(crate) fn drop_packet(end: &File) {
    // Without space for descriptors, the kernel closes them.
    let _ = retry_on_intr(|| rustix::net::recv(end, &mut [0; 1], RecvFlags::DONTWAIT));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::sync::Arc;

    use procpool_worker::attach::{self, Attached};

    use super::*;

    struct Attachment(OwnedFd);

    impl Attached for Attachment {
        fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)> {
            vec![(FileId::of(&self.0).unwrap(), self.0.as_fd())]
        }
    }

    /// Attaches the read end of a pipe.
    fn attached() -> (Attachments, FileId, std::io::PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut attachments = Attachments::default();
        let object = Arc::new(Attachment(reader.into()));
        attachments.collect(|| attach::attach(&object).unwrap());
        (attachments, FileId::of(&object.0).unwrap(), writer)
    }

    fn has(received: Received, id: FileId) -> bool {
        received.decode(|| attach::was_received(id))
    }

    #[test]
    fn a_receiver_that_is_killed_leaves_the_descriptors_to_the_next() {
        let (sender, receiver) = socket_pair().unwrap();
        let (attachments, id, _writer) = attached();
        assert!(pass(&sender, 7, &attachments).unwrap());
        for _ in 0..3 {
            assert!(has(peek(&receiver, 7).unwrap(), id));
        }
        drop_packet(&receiver);
        assert!(peek(&receiver, 7).unwrap().is_empty());
    }

    #[test]
    fn what_a_killed_sender_has_passed_is_dropped_and_closed() {
        let (sender, receiver) = socket_pair().unwrap();
        let (stale, stale_id, writer) = attached();
        let (attachments, id, _writer) = attached();
        assert!(pass(&sender, 1, &stale).unwrap());
        rustix::net::send(&sender, b"junk", SendFlags::DONTWAIT).unwrap();
        rustix::net::send(&sender, b"", SendFlags::DONTWAIT).unwrap();
        assert!(pass(&sender, 2, &attachments).unwrap());
        drop(stale);
        let received = peek(&receiver, 2).unwrap();
        received.decode(|| {
            assert!(attach::was_received(id) && !attach::was_received(stale_id));
        });
        let broken = rustix::io::write(&writer, b"x");
        assert_eq!(broken, Err(rustix::io::Errno::PIPE));
    }

    #[test]
    fn a_full_socket_is_no_error_and_has_space_again_after_a_packet_is_dropped() {
        let (sender, receiver) = socket_pair().unwrap();
        let (attachments, id, _writer) = attached();
        let passed = (0..10_000).take_while(|n| pass(&sender, *n, &attachments).unwrap()).count();
        assert!((100..10_000).contains(&passed), "{passed}");
        assert!(has(peek(&receiver, 50).unwrap(), id));
        assert!(pass(&sender, 10_000, &attachments).unwrap());
        drop(receiver);
        assert!(is_hung_up(&sender));
        let error = pass(&sender, 1, &attachments).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
