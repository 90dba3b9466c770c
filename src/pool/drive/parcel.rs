//! The attachments of a result: the region that holds it, and the files that it refers to.
//!
//! A result that no caller has taken yet keeps its files open in this process. They may take up half of its
//! limit of open files ([`Files::new`]), so that tasks can't use up the descriptors of the program.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use procpool_worker::attach::Received;

use crate::os::process::open_files_limit;
use crate::pool::drive::regions::Lease;

/// The attachments of one result.
#[derive(Debug)]
pub(crate) enum Parcel {
    Arrived {
        region: Option<Lease>,
        files: Files,
    },
    /// A part of it was not received, for this reason.
    Lost(&'static str),
}

impl Parcel {
    /// Returns how many bytes lie in a region.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Arrived { region: Some(region), .. } => region.len(),
            Self::Arrived { region: None, .. } | Self::Lost(_) => 0,
        }
    }
}

/// Files of a result that was not decoded yet.
#[derive(Debug, Default)]
pub(crate) struct Files {
    received: Received,
    /// The counter that includes them.
    held: Option<&'static AtomicUsize>,
}

/// Number of descriptors in all [`Files`].
static HELD: AtomicUsize = AtomicUsize::new(0);

impl Files {
    /// Keeps the received files, or closes them if too many descriptors are kept.
    pub(crate) fn new(received: Received) -> Option<Self> {
        Self::within(received, &HELD, open_files_limit() / 2)
    }

    fn within(received: Received, held: &'static AtomicUsize, most: usize) -> Option<Self> {
        let sum = held.fetch_add(received.len(), Relaxed) + received.len();
        let files = Self { received, held: Some(held) };
        (sum <= most).then_some(files)
    }

    /// Returns whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    /// Calls `decode`, which finds these files.
    pub(crate) fn decode<R>(mut self, decode: impl FnOnce() -> R) -> R {
        self.release();
        std::mem::take(&mut self.received).decode(decode)
    }

    fn release(&mut self) {
        if let Some(held) = self.held.take() {
            held.fetch_sub(self.received.len(), Relaxed);
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use procpool_worker::attach::{FileId, was_received};

    use super::*;

    #[test]
    fn untaken_results_keep_a_limited_number_of_descriptors_and_give_them_back() {
        static HELD: AtomicUsize = AtomicUsize::new(0);
        let (reader, _writer) = std::io::pipe().unwrap();
        let id = FileId::of(&reader).unwrap();
        let keep = || {
            let file = (id, std::os::fd::OwnedFd::from(reader.try_clone().unwrap()).into());
            Files::within(Received::new(vec![file]), &HELD, 2)
        };
        let [dropped, decoded] = [keep(), keep()].map(Option::unwrap);
        assert!(keep().is_none());
        drop(dropped);
        assert!(keep().is_some());
        assert!(decoded.decode(|| was_received(id)));
        assert_eq!(HELD.load(Relaxed), 0);
    }
}
