//! The interface of a messaging library for a pool that spans hosts.

/// Frames between this process and its peers: each arrives whole and in the order of sending, or its peer
/// is lost. No method waits for a peer.
pub(crate) trait Engine {
    /// Returns the number of processes. The manager is 0.
    fn size(&self) -> usize;

    /// Queues a frame. Calls of [`poll`](Self::poll) send it.
    fn send(&mut self, peer: usize, frame: Vec<u8>);

    /// Continues sending and receiving. Appends to `events`, and returns whether there was progress.
    fn poll(&mut self, events: &mut Vec<EngineEvent>) -> bool;

    /// Returns whether frames wait to be sent to a peer that is not lost.
    fn is_sending(&self) -> bool;

    /// Returns how many bytes wait to be sent to a peer.
    fn backlog(&self, peer: usize) -> usize;

    /// Stops sending to a peer and receiving from it.
    fn forget(&mut self, peer: usize);

    /// Leaves. If a peer was lost, does not wait for the others.
    fn leave(&mut self);
}

/// An event of an [`Engine`].
#[derive(Debug)]
pub(crate) enum EngineEvent {
    /// A frame has arrived.
    Frame(usize, Vec<u8>),
    /// A part of a large frame has arrived.
    Alive(usize),
    /// A peer is lost, for this reason.
    Lost(usize, String),
}

/// An engine inside of one process, for tests.
#[cfg(test)]
pub(crate) mod local {
    use super::{Engine, EngineEvent};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

    /// A frame and its sender.
    type Sent = (usize, Vec<u8>);

    /// One process's end.
    pub(crate) struct Local {
        rank: usize,
        to: Vec<Option<Sender<Sent>>>,
        from: Receiver<Sent>,
        /// While set, no frame arrives or is sent, as after a cable was unplugged.
        pub(crate) is_cut: Arc<AtomicBool>,
    }

    /// Creates the ends of `size` processes.
    pub(crate) fn ends(size: usize) -> Vec<Local> {
        let (to, from): (Vec<_>, Vec<_>) = (0..size).map(|_| channel()).unzip();
        from.into_iter()
            .enumerate()
            .map(|(rank, from)| {
                let to = to.iter().cloned().map(Some).collect();
                Local { rank, to, from, is_cut: Arc::default() }
            })
            .collect()
    }

    impl Engine for Local {
        fn size(&self) -> usize {
            self.to.len()
        }

        fn send(&mut self, peer: usize, frame: Vec<u8>) {
            if let Some(to) = &self.to[peer]
                && !self.is_cut.load(SeqCst)
            {
                let _ = to.send((self.rank, frame));
            }
        }

        fn poll(&mut self, events: &mut Vec<EngineEvent>) -> bool {
            let before = events.len();
            loop {
                match self.from.try_recv() {
                    _ if self.is_cut.load(SeqCst) => break,
                    Ok((peer, frame)) if self.to[peer].is_some() => {
                        events.push(EngineEvent::Frame(peer, frame));
                    }
                    Ok(_) => {}
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            events.len() > before
        }

        fn is_sending(&self) -> bool {
            false
        }

        fn backlog(&self, _: usize) -> usize {
            0
        }

        fn forget(&mut self, peer: usize) {
            self.to[peer] = None;
        }

        fn leave(&mut self) {}
    }
}
