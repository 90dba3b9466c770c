//! Shared memory for what is too large for a frame or a lane, kept to be used again: new memory costs
//! a page fault for each 4 KiB on either side, several times what the copy does.
//!
//! [`Regions`] are a pool's. One that holds something is out as a [`Lease`], and comes back when the
//! lease is dropped: then the same worker may have it again, which has it [`Mapped`]. It is never kept
//! for two workers, so that one which writes where it shouldn't reaches no other's arguments; one that
//! two have had, because an item moved on, is given up when it comes back. So is what a worker that
//! has ended had, what is more than [`KEPT`], and everything that has been idle for [`IDLE`].
//!
//! Whoever has mapped a region that is given up lets go of it when it is next spoken to; its memory
//! goes back to the system at once, whoever may still have it mapped.
//!
//! A region for arguments is made here, one for results by the worker that first has such a result.
//! Both are numbered by whoever made them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::codec::Sink;
use procpool_worker::copy;
use procpool_worker::protocol::{Place, Request};
use procpool_worker::transport::{Region, TransportError};

/// How many bytes a pool keeps that hold nothing: a large argument and its result. More than that
/// is as dear as it would be without being kept.
const KEPT: usize = 256 << 20;

/// For how long.
const IDLE: Duration = Duration::from_secs(5);

/// The least size of a region that is made for small items, so that the next chunk's fit too.
const LEAST: usize = 512 << 10;

/// Nobody's, and several workers'. Every other owner is one worker.
const NOBODY: u64 = 0;
const SEVERAL: u64 = u64::MAX;

/// A pool's shared memory.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    inner: Mutex<Inner>,
    /// Whether something has come back since somebody looked.
    returned: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    free: Vec<Entry>,
    /// All that may be kept when they come back.
    live: HashSet<Key>,
    /// The last number that was given.
    number: u32,
    workers: u64,
}

/// Which region: the worker that made and numbered it, or nobody, and its number.
type Key = (u64, u32);

#[derive(Debug)]
struct Entry {
    key: Key,
    region: Region,
    /// Which worker has it mapped.
    owner: u64,
    since: Instant,
    /// Whether the worker knows that it is free.
    is_known: bool,
}

/// A region that holds something.
#[derive(Debug)]
pub(crate) struct Lease {
    home: Arc<Regions>,
    key: Key,
    /// Taken out when it goes back.
    region: Option<Region>,
    len: usize,
    owner: AtomicU64,
}

impl Regions {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A region that holds a copy of `bytes`, for whichever worker.
    pub(crate) fn copy_of(self: &Arc<Self>, bytes: &[u8]) -> Result<Lease, TransportError> {
        if let Some(mut lease) = self.reuse(bytes.len(), None) {
            lease.put(bytes);
            return Ok(lease);
        }
        let mut lease = self.lease(Region::copy_of(bytes)?);
        lease.len = bytes.len();
        Ok(lease)
    }

    /// An empty one with room for `bytes`, for this worker.
    fn with_room(self: &Arc<Self>, bytes: usize, worker: u64) -> Result<Lease, TransportError> {
        match self.reuse(bytes, Some(worker)) {
            Some(lease) => Ok(lease),
            None => Ok(self.lease(Region::zeroed(bytes.max(LEAST))?)),
        }
    }

    /// One that is there: the smallest that fits, of those the one that came back last.
    fn reuse(self: &Arc<Self>, bytes: usize, worker: Option<u64>) -> Option<Lease> {
        let mut inner = self.inner();
        let fits = |entry: &Entry| {
            let is_ours = worker.is_none_or(|worker| [NOBODY, worker].contains(&entry.owner));
            let len = entry.region.len();
            entry.key.0 == NOBODY && is_ours && len >= bytes && len / 8 <= bytes.max(LEAST)
        };
        let fitting = inner.free.iter().enumerate().rev().filter(|(_, entry)| fits(entry));
        let (at, _) = fitting.min_by_key(|(_, entry)| entry.region.len())?;
        Some(self.take(inner.free.swap_remove(at), 0))
    }

    fn take(self: &Arc<Self>, entry: Entry, len: usize) -> Lease {
        let Entry { key, region, owner, .. } = entry;
        let (home, owner) = (Arc::clone(self), AtomicU64::new(owner));
        Lease { home, key, region: Some(region), len, owner }
    }

    fn lease(self: &Arc<Self>, region: Region) -> Lease {
        let mut inner = self.inner();
        inner.number = inner.number.wrapping_add(1);
        let key = (NOBODY, inner.number);
        inner.live.insert(key);
        let (home, owner) = (Arc::clone(self), AtomicU64::new(NOBODY));
        Lease { home, key, region: Some(region), len: 0, owner }
    }

    /// Whether something has come back since this was asked last.
    pub(crate) fn have_returned(&self) -> bool {
        self.returned.load(Relaxed) && self.returned.swap(false, Relaxed)
    }

    /// When to look whether what comes back now is still idle.
    pub(crate) fn look_at() -> Option<Instant> {
        Instant::now().checked_add(IDLE)
    }

    /// Gives up what has been idle; gives when to look again.
    pub(crate) fn trim(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut inner = self.inner();
        let is_idle = |entry: &mut Entry| now.saturating_duration_since(entry.since) >= IDLE;
        let idle: Vec<Entry> = inner.free.extract_if(.., is_idle).collect();
        inner.live.retain(|key| !idle.iter().any(|entry| entry.key == *key));
        let next = inner.free.iter().map(|entry| entry.since).min();
        drop(inner);
        idle.iter().for_each(|entry| entry.region.discard());
        next.and_then(|since| since.checked_add(IDLE))
    }
}

impl Lease {
    /// Where its content is: valid for [`len`](Self::len) bytes as long as the lease is, and written
    /// by others at any time.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.region.as_ref().map_or(std::ptr::null(), Region::as_ptr)
    }

    /// How many bytes its content has.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// What is to be sent to a worker that hasn't mapped it.
    pub(crate) fn region(&self) -> Option<&Region> {
        self.region.as_ref()
    }
}

impl Sink for Lease {
    /// Appends `bytes`, for which there must be room.
    fn put(&mut self, bytes: &[u8]) {
        let Some(region) = &mut self.region else { return };
        assert!(bytes.len() <= region.len() - self.len, "there is as much room as was asked for");
        // SAFETY: inside of the region, as was just checked; it holds what is to be sent, so nobody
        // else is to write it, and who does so all the same changes his own arguments.
        unsafe {
            let to = region.base().add(self.len);
            copy::copy(bytes.as_ptr(), to, bytes.len());
        }
        self.len += bytes.len();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(region) = self.region.take() else { return };
        let (key, owner) = (self.key, *self.owner.get_mut());
        let mut inner = self.home.inner();
        let kept: usize = inner.free.iter().map(|entry| entry.region.len()).sum();
        let is_kept = owner != SEVERAL && kept + region.len() <= KEPT && inner.live.contains(&key);
        if is_kept {
            let since = Instant::now();
            inner.free.push(Entry { key, region, owner, since, is_known: false });
            self.home.returned.store(true, Relaxed);
        } else {
            inner.live.remove(&key);
            drop(inner);
            region.discard();
        }
    }
}

/// Which regions a worker's process has mapped.
#[derive(Debug)]
pub(crate) struct Mapped {
    home: Arc<Regions>,
    worker: u64,
    keys: Vec<Key>,
}

impl Mapped {
    /// None, by a worker that is new.
    pub(crate) fn none(home: &Arc<Regions>) -> Self {
        let mut inner = home.inner();
        inner.workers += 1;
        Self { home: Arc::clone(home), worker: inner.workers, keys: Vec::new() }
    }

    /// A region with room for `bytes` that are for this worker.
    pub(crate) fn room(&self, bytes: usize) -> Result<Lease, TransportError> {
        self.home.with_room(bytes, self.worker)
    }

    /// Where the worker finds what the lease holds; if that is new to it, it is to be sent the region
    /// first.
    pub(crate) fn show(&mut self, lease: &Lease) -> Place {
        let owner = lease.owner.compare_exchange(NOBODY, self.worker, Relaxed, Relaxed);
        let is_new = owner != Err(self.worker);
        let is_kept = !is_new || owner.is_ok();
        if is_new && is_kept {
            self.keys.push(lease.key);
        } else if is_new {
            lease.owner.store(SEVERAL, Relaxed);
        }
        Place { number: lease.key.1, len: lease.len as u64, is_new, is_kept }
    }

    /// What the worker has put into a region: one that it has just sent, or one that it was told to
    /// be free. None if there is no such region or it is smaller.
    pub(crate) fn result(&mut self, place: Place, new: Option<Region>) -> Option<Lease> {
        let (key, len) = ((self.worker, place.number), usize::try_from(place.len).ok()?);
        let mut inner = self.home.inner();
        let region = match new {
            Some(region) if inner.live.insert(key) => {
                self.keys.push(key);
                region
            }
            Some(_) => return None,
            None => {
                let is_it = |entry: &Entry| entry.key == key;
                let at = inner.free.iter().position(is_it)?;
                inner.free.swap_remove(at).region
            }
        };
        let since = Instant::now();
        drop(inner);
        let entry = Entry { key, region, owner: self.worker, since, is_known: false };
        (entry.region.len() >= len).then(|| self.home.take(entry, len))
    }

    /// What the worker has to be told before it is given something to do, if there is anything.
    pub(crate) fn news(&mut self) -> Option<Request> {
        if self.keys.is_empty() {
            return None;
        }
        let mut inner = self.home.inner();
        let (mut gone, mut results_gone) = (Vec::new(), Vec::new());
        self.keys.retain(|key| {
            let is_live = inner.live.contains(key);
            if !is_live {
                if key.0 == NOBODY { &mut gone } else { &mut results_gone }.push(key.1);
            }
            is_live
        });
        let mut results_free = Vec::new();
        for entry in &mut inner.free {
            if entry.key.0 == self.worker && !std::mem::replace(&mut entry.is_known, true) {
                results_free.push(entry.key.1);
            }
        }
        let is_any = !(gone.is_empty() && results_gone.is_empty() && results_free.is_empty());
        is_any.then_some(Request::Regions { gone, results_gone, results_free })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let mut inner = self.home.inner();
        inner.live.retain(|key| !self.keys.contains(key));
        let is_ours = |entry: &mut Entry| entry.owner == self.worker;
        let ours: Vec<Entry> = inner.free.extract_if(.., is_ours).collect();
        drop(inner);
        ours.iter().for_each(|entry| entry.region.discard());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn content(lease: &Lease) -> Vec<u8> {
        // SAFETY: nobody else has the region.
        unsafe { std::slice::from_raw_parts(lease.as_ptr(), lease.len()) }.to_vec()
    }

    #[test]
    fn a_region_is_used_again_by_the_worker_that_has_it() {
        let regions = Arc::new(Regions::default());
        let mut mapped = Mapped::none(&regions);
        let first = regions.copy_of(&[1; 5000]).unwrap();
        let place = mapped.show(&first);
        assert!(place.is_new && place.is_kept);
        drop(first);
        let second = regions.copy_of(&[2; 4000]).unwrap();
        assert_eq!(content(&second), [2; 4000]);
        assert_eq!(mapped.show(&second), Place { len: 4000, is_new: false, ..place });
        assert_eq!(mapped.news(), None);
    }

    #[test]
    fn no_region_is_kept_for_two_workers() {
        let regions = Arc::new(Regions::default());
        let (mut one, mut other) = (Mapped::none(&regions), Mapped::none(&regions));
        let lease = regions.copy_of(&[1; 5000]).unwrap();
        one.show(&lease);
        let place = other.show(&lease);
        assert!(place.is_new && !place.is_kept);
        drop(lease);
        assert!(regions.inner().free.is_empty());
        let gone = vec![place.number];
        let expected = Request::Regions { gone, results_gone: vec![], results_free: vec![] };
        assert_eq!(one.news(), Some(expected));
        assert_eq!((one.news(), other.news()), (None, None));
    }

    #[test]
    fn what_one_worker_has_is_not_given_to_another() {
        let regions = Arc::new(Regions::default());
        let (mut one, other) = (Mapped::none(&regions), Mapped::none(&regions));
        let lease = one.room(1000).unwrap();
        one.show(&lease);
        let key = lease.key;
        drop(lease);
        let others = other.room(1000).unwrap();
        assert_ne!(others.key, key);
        assert_eq!(one.room(1000).unwrap().key, key);
    }

    #[test]
    fn what_a_lost_worker_had_is_not_kept() {
        let regions = Arc::new(Regions::default());
        let mut mapped = Mapped::none(&regions);
        let (out, back) = (regions.copy_of(&[1; 9]).unwrap(), regions.copy_of(&[1; 9]).unwrap());
        mapped.show(&out);
        mapped.show(&back);
        drop(back);
        drop(mapped);
        drop(out);
        let inner = regions.inner();
        assert!(inner.free.is_empty() && inner.live.is_empty());
    }

    #[test]
    fn a_result_is_where_the_worker_says_only_if_that_can_be() {
        let regions = Arc::new(Regions::default());
        let mut mapped = Mapped::none(&regions);
        let place = |number, len| Place { number, len, is_new: false, is_kept: true };
        let new = || Some(Region::copy_of(&[7; 100]).unwrap());
        assert!(mapped.result(place(1, 100), None).is_none(), "there is none of that number");
        assert!(mapped.result(place(1, 101), new()).is_none(), "it is smaller");
        let lease = mapped.result(place(2, 100), new()).unwrap();
        assert_eq!(content(&lease), [7; 100]);
        assert!(mapped.result(place(2, 100), new()).is_none(), "the number is another's");
        assert!(mapped.result(place(2, 100), None).is_none(), "it has not been given back");
        drop(lease);
        let news = mapped.news();
        assert!(matches!(news, Some(Request::Regions { results_free, .. }) if results_free == [2]));
        assert!(mapped.result(place(2, 50), None).is_some());
    }

    #[test]
    fn what_is_idle_is_given_up() {
        let regions = Arc::new(Regions::default());
        let mut mapped = Mapped::none(&regions);
        mapped.show(&regions.copy_of(&[1; 5000]).unwrap());
        assert!(regions.have_returned() && !regions.have_returned());
        assert!(regions.trim().is_some());
        regions.inner().free[0].since -= IDLE;
        assert_eq!(regions.trim(), None);
        assert!(regions.inner().free.is_empty());
        assert!(mapped.news().is_some());
    }
}
