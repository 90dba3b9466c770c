//! What a worker passes with a result: the region that holds it, and the files that it refers to.
//!
//! A result that no caller has taken yet keeps its files open in this process. They may take up half of its
//! limit of open files ([`Files::new`]), so that tasks can't use up the descriptors of the program.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use procpool_worker::attach::Received;

use crate::os::process::open_files_limit;
use crate::pool::drive::regions::Lease;

/// What was passed with one result.
#[derive(Debug)]
pub(crate) enum Parcel {
    Arrived {
        region: Option<Lease>,
        files: Files,
    },
    /// A part of it was not received, for this reason.
    Lost(&'static str),
}

/// Files of a result that was not decoded yet.
#[derive(Debug, Default)]
pub(crate) struct Files(Received);

/// Number of descriptors in all [`Files`].
static HELD: AtomicUsize = AtomicUsize::new(0);

impl Files {
    /// Keeps what was received, or closes it if too many descriptors are kept.
    pub(crate) fn new(received: Received) -> Option<Self> {
        let held = HELD.fetch_add(received.len(), Relaxed) + received.len();
        let files = Self(received);
        (held <= open_files_limit() / 2).then_some(files)
    }

    /// Returns whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Calls `decode`, which finds these files.
    pub(crate) fn decode<R>(mut self, decode: impl FnOnce() -> R) -> R {
        let received = std::mem::take(&mut self.0);
        HELD.fetch_sub(received.len(), Relaxed);
        received.decode(decode)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        HELD.fetch_sub(self.0.len(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use procpool_worker::attach::{FileId, was_received};

    use super::*;

    #[test]
    fn untaken_results_keep_at_most_half_of_the_descriptors_and_give_them_back() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let id = FileId::of(&reader).unwrap();
        let file = || Received::new(vec![(id, reader.try_clone().unwrap().into())]);
        let before = HELD.fetch_add(open_files_limit() / 2 - 2, Relaxed);
        assert_eq!(before, 0, "no other test of this process has results with files");
        let kept = [Files::new(file()).unwrap(), Files::new(file()).unwrap()];
        assert!(Files::new(file()).is_none());
        let [dropped, decoded] = kept;
        drop(dropped);
        assert!(decoded.decode(|| was_received(id)));
        assert!(Files::new(file()).is_some());
        assert_eq!(HELD.fetch_sub(open_files_limit() / 2 - 2, Relaxed), open_files_limit() / 2 - 2);
    }
}
