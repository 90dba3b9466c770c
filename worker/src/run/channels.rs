//! The worker's ends of its channels: receives frames, sends replies, accepts passed descriptors.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{fork_guard, outbox};
use crate::shm::doorbell::SpinWaiter;
use crate::shm::lane::Words;
use crate::shm::region::{Frozen, Region};
use crate::shm::sys;
use crate::wire::attach::{Attachments, Received};
use crate::wire::codec;
use crate::wire::control::Control;
use crate::wire::error::TransportError;
use crate::wire::passed::PassedFd;
use crate::wire::protocol::{MAX_FILES, Passed, Reply};
use crate::wire::transport::FrameReceiver;

/// The worker's ends of its channels.
#[derive(Debug)]
pub(crate) struct Channels {
    from_parent: FrameReceiver,
    control: Arc<Control>,
    lane: &'static Words,
    waiter: SpinWaiter,
    /// Number of the last [`Reply::Attached`].
    attached: u32,
}

impl Channels {
    pub(crate) fn new(from_parent: FrameReceiver, control: Control, lane: &'static Words) -> Self {
        let control = Arc::new(control);
        outbox::create(Arc::clone(&control), lane);
        Self { from_parent, control, lane, waiter: SpinWaiter::default(), attached: 0 }
    }

    /// Receives the next frame. Spins first if the parent has announced one.
    pub(crate) fn recv(&mut self) -> Result<Vec<u8>, TransportError> {
        self.waiter.spin_if_hinted(self.lane.requests());
        let frame = self.from_parent.recv()?;
        self.waiter.note_received();
        Ok(frame)
    }

    /// Sends a reply and rings the doorbell.
    pub(crate) fn reply(&self, reply: &Reply) -> Result<(), TransportError> {
        fork_guard::exit_if_forked();
        self.pass(reply, &[])?;
        self.lane.replies().ring(false);
        Ok(())
    }

    /// Sends a reply with descriptors. Does not ring the doorbell.
    pub(crate) fn pass(
        &self,
        reply: &Reply,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), TransportError> {
        let mut packet = Vec::with_capacity(16);
        codec::encode(reply, &mut packet)
            .map_err(|error| TransportError::Malformed(error.to_string()))?;
        // Notes may have filled the socket, and the parent may be slow to read them. If it dies, so does this process.
        self.control.send_by(&packet, descriptors, None).map(drop)
    }

    /// Passes the files that a result refers to. Returns the number of the reply that passes them.
    pub(crate) fn attach(&mut self, attachments: &Attachments) -> Result<u32, TransportError> {
        let (files, descriptors): (Vec<_>, Vec<_>) = attachments.files().into_iter().unzip();
        if files.len() > MAX_FILES {
            let text = format!("{} are too many: a result may have {MAX_FILES}", files.len());
            return Err(std::io::Error::other(text).into());
        }
        self.attached = self.attached.wrapping_add(1);
        let number = self.attached;
        self.pass(&Reply::Attached { number, files }, &descriptors)?;
        Ok(number)
    }

    /// Receives a packet that the parent has sent before the frame that refers to it.
    fn recv_passed(&self) -> Result<(Passed, Vec<OwnedFd>), TransportError> {
        let packet = self.control.recv(false)?;
        if packet.is_cut {
            return Err(std::io::Error::from_raw_os_error(libc::EMFILE).into());
        }
        let passed = codec::decode(&packet.bytes)
            .map_err(|error| TransportError::Malformed(error.to_string()))?;
        Ok((passed, packet.descriptors.into_iter().map(|fd| sys::move_high(fd.into())).collect()))
    }

    /// Receives the file of the region that the current frame refers to.
    fn recv_region_file(&self) -> Result<OwnedFd, TransportError> {
        match self.recv_passed()? {
            (Passed::Region, mut descriptors) if descriptors.len() == 1 => {
                Ok(descriptors.swap_remove(0))
            }
            _ => Err(TransportError::Malformed("no region was passed".to_owned())),
        }
    }

    /// Receives the region that the current frame refers to, which must have at least `len` bytes.
    pub(crate) fn recv_region(&self, len: u64) -> Result<Region, TransportError> {
        let mut region = Region::open(self.recv_region_file()?, len)?;
        region.close_descriptor();
        Ok(region)
    }

    /// Receives the memory of a context, which no process can write.
    pub(crate) fn recv_frozen(&self, len: u64) -> Result<Frozen, TransportError> {
        Ok(Frozen::open(self.recv_region_file()?, len)?)
    }

    /// Receives the files that the values in the current frame refer to, in `packets` packets.
    pub(crate) fn recv_attached(&self, packets: u32) -> Result<Received, TransportError> {
        let mut received = Vec::new();
        for _ in 0..packets {
            match self.recv_passed()? {
                (Passed::Attached(files), descriptors) if files.len() == descriptors.len() => {
                    let descriptors = descriptors.into_iter().map(PassedFd::from);
                    received.extend(files.into_iter().zip(descriptors));
                }
                _ => return Err(TransportError::Malformed("nothing was attached".to_owned())),
            }
        }
        Ok(Received::new(received))
    }
}
