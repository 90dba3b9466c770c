//! Shared memory for values that are too large for a frame or a lane, kept for reuse. New memory costs a page
//! fault per 4 KiB on each side, several times the cost of the copy.
//!
//! A pool owns its [`Regions`]. A region in use is a [`Lease`], and returns when the lease is dropped. Then
//! only the worker that has it [`Mapped`] may use it again, so no worker ever sees another's data. Regions of
//! a dead worker are discarded on return, and so are those beyond [`MAX_FREE`] and those idle for [`IDLE`].
//!
//! A region that a worker knows to be free is not discarded while it runs a chunk: it may be writing a result
//! there. A worker unmaps a discarded region at its next request. The memory returns to the system at once, even
//! while others still map it.
//!
//! The parent creates regions for arguments; a worker creates a region for results when it first has a large
//! result. Each side numbers its own. Neither keeps a descriptor after sending it: results that no caller has
//! taken cost memory, but no descriptors.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::memcpy::{self, Sink};
use procpool_worker::protocol::{RegionSlice, Request};
use procpool_worker::region::Region;

/// Bytes of unused regions that a pool keeps: a large argument and its result. For larger regions, reuse
/// saves nothing.
const MAX_FREE: usize = 256 << 20;

/// How long unused regions are kept.
const IDLE: Duration = Duration::from_secs(5);

/// Minimum size of a region for small items, so that the next chunk's fit too.
const MIN_REGION: usize = 512 << 10;

/// The owner number of this process; workers have others.
const PARENT: u64 = 0;

/// A pool's shared memory.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    inner: Mutex<Inner>,
    /// Whether a region was returned since the last check.
    returned: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    free: Vec<Entry>,
    /// Regions that may be kept when they return.
    live: HashSet<Key>,
    /// Workers that run a chunk and have been told of free regions. They may write to these at any time.
    busy: HashSet<u64>,
    /// The last number assigned.
    number: u32,
    workers: u64,
}

/// Key of a region: the number of its creator (the parent or a worker), and its own number.
type Key = (u64, u32);

#[derive(Debug)]
struct Entry {
    key: Key,
    region: Region,
    /// Worker that has it mapped.
    owner: u64,
    since: Instant,
    /// Whether the worker was told that it is free.
    is_known: bool,
}

/// A region in use.
#[derive(Debug)]
pub(crate) struct Lease {
    home: Arc<Regions>,
    key: Key,
    /// Taken when it returns.
    region: Option<Region>,
    len: usize,
    /// Worker that has it mapped, or will.
    owner: u64,
}

impl Regions {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an empty region with capacity for `bytes`, for this worker.
    fn allocate(self: &Arc<Self>, bytes: usize, worker: u64) -> io::Result<Lease> {
        if let Some(lease) = self.reuse(bytes, worker) {
            // Its previous content may have needed less memory.
            lease.region.as_ref().map_or(Ok(()), |region| region.populate(bytes))?;
            return Ok(lease);
        }
        let region = Region::new(bytes.max(MIN_REGION), bytes)?;
        let mut inner = self.inner();
        inner.number = inner.number.wrapping_add(1);
        let key = (PARENT, inner.number);
        inner.live.insert(key);
        Ok(Lease { home: Arc::clone(self), key, region: Some(region), len: 0, owner: worker })
    }

    /// Returns a region that holds `bytes`, which no worker has mapped.
    pub(crate) fn filled(self: &Arc<Self>, bytes: &[u8]) -> io::Result<Lease> {
        let mut lease = self.allocate(bytes.len(), PARENT)?;
        if let Some(region) = lease.region() {
            region.close_descriptor();
        }
        lease.put_slice(bytes);
        Ok(lease)
    }

    /// Returns a free region that the worker has mapped: the smallest that fits, and of equal ones the last
    /// returned.
    fn reuse(self: &Arc<Self>, bytes: usize, worker: u64) -> Option<Lease> {
        let mut inner = self.inner();
        let fits = |entry: &Entry| {
            let len = entry.region.len();
            let is_ours = entry.key.0 == PARENT && entry.owner == worker;
            is_ours && len >= bytes && len / 8 <= bytes.max(MIN_REGION)
        };
        let fitting = inner.free.iter().enumerate().rev().filter(|(_, entry)| fits(entry));
        let (at, _) = fitting.min_by_key(|(_, entry)| entry.region.len())?;
        Some(self.take(inner.free.swap_remove(at), 0))
    }

    fn take(self: &Arc<Self>, entry: Entry, len: usize) -> Lease {
        let Entry { key, region, owner, .. } = entry;
        Lease { home: Arc::clone(self), key, region: Some(region), len, owner }
    }

    /// Returns whether a region was returned since the last call.
    pub(crate) fn have_returned(&self) -> bool {
        self.returned.load(Relaxed) && self.returned.swap(false, Relaxed)
    }

    /// Returns whether a region for arguments may be used for another one.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn has_free_argument(&self) -> bool {
        self.inner().free.iter().any(|entry| entry.key.0 == PARENT)
    }

    /// Returns when to check whether regions returned now are still idle.
    pub(crate) fn check_at() -> Option<Instant> {
        Instant::now().checked_add(IDLE)
    }

    /// Discards idle regions. Returns when to check again.
    pub(crate) fn trim(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut inner = self.inner();
        let Inner { free, busy, .. } = &mut *inner;
        let is_idle = |entry: &mut Entry| {
            if now.saturating_duration_since(entry.since) < IDLE {
                return false;
            }
            let is_in_use = entry.is_known && busy.contains(&entry.key.0);
            if is_in_use {
                entry.since = now;
            }
            !is_in_use
        };
        let idle: Vec<Entry> = free.extract_if(.., is_idle).collect();
        inner.live.retain(|key| !idle.iter().any(|entry| entry.key == *key));
        let next = inner.free.iter().map(|entry| entry.since).min();
        drop(inner);
        idle.iter().for_each(|entry| entry.region.discard());
        next.and_then(|since| since.checked_add(IDLE))
    }
}

impl Lease {
    /// Returns a pointer to the content. It is valid for [`len`](Self::len) bytes while the lease lives, and
    /// other processes may write to it at any time.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.region.as_ref().map_or(std::ptr::null(), |region| region.as_ptr().cast_const())
    }

    /// Returns the size of the content in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Makes the next `bytes` bytes, which must fit, part of the content. They are written later, by
    /// [`fill`](Self::fill).
    pub(crate) fn announce(&mut self, bytes: usize) {
        self.len += bytes;
    }

    /// Writes announced bytes to offset `at`.
    pub(crate) fn fill(&mut self, at: usize, bytes: &[u8]) {
        if let Some(region) = &mut self.region {
            region.write(at, bytes);
        }
    }

    /// Copies the content. Returns `None` if there is no memory for it.
    pub(crate) fn copy(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(self.len).ok()?;
        // SAFETY: the region is mapped for its length for as long as it lives.
        unsafe { memcpy::append_from(&mut bytes, self.as_ptr(), self.len) };
        Some(bytes)
    }

    /// Returns the region, to send it to a worker that hasn't mapped it.
    pub(crate) fn region(&mut self) -> Option<&mut Region> {
        self.region.as_mut()
    }
}

impl Sink for Lease {
    /// Appends `bytes`, which must fit.
    fn put_slice(&mut self, bytes: &[u8]) {
        let Some(region) = &mut self.region else { return };
        region.write(self.len, bytes);
        self.len += bytes.len();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(region) = self.region.take() else { return };
        let (key, owner) = (self.key, self.owner);
        let mut inner = self.home.inner();
        let kept: usize = inner.free.iter().map(|entry| entry.region.len()).sum();
        let is_kept = kept + region.len() <= MAX_FREE && inner.live.contains(&key);
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

/// Regions that a worker process has mapped.
#[derive(Debug)]
pub(crate) struct Mapped {
    home: Arc<Regions>,
    worker: u64,
    keys: Vec<Key>,
    /// Whether it is among the busy ones.
    is_busy: bool,
}

impl Mapped {
    /// Creates an empty set for a new worker.
    pub(crate) fn new(home: &Arc<Regions>) -> Self {
        let mut inner = home.inner();
        inner.workers += 1;
        Self { home: Arc::clone(home), worker: inner.workers, keys: Vec::new(), is_busy: false }
    }

    /// Returns a region with capacity for `bytes`, for this worker.
    pub(crate) fn allocate(&self, bytes: usize) -> io::Result<Lease> {
        self.home.allocate(bytes, self.worker)
    }

    /// Returns a reference to the lease's content for the worker. If `is_new` is set in it, the region must
    /// be sent first.
    pub(crate) fn reference(&mut self, lease: &Lease) -> RegionSlice {
        let is_new = !self.keys.contains(&lease.key);
        if is_new {
            self.keys.push(lease.key);
        }
        RegionSlice { number: lease.key.1, len: lease.len as u64, is_new, is_cached: true }
    }

    /// Returns the region of a result: one that the worker has just sent, or one that it was told is free.
    /// `None` if there is no such region or it is too small.
    pub(crate) fn result(&mut self, slice: RegionSlice, new: Option<Region>) -> Option<Lease> {
        let (key, len) = ((self.worker, slice.number), usize::try_from(slice.len).ok()?);
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

    /// Returns pending updates that the worker must receive before its next chunk, if any. From here on, no
    /// region is discarded that the worker knows to be free.
    pub(crate) fn begin_chunk(&mut self) -> Option<Request> {
        if self.keys.is_empty() {
            return None;
        }
        let mut inner = self.home.inner();
        inner.busy.insert(self.worker);
        self.is_busy = true;
        let (mut gone, mut results_gone) = (Vec::new(), Vec::new());
        self.keys.retain(|key| {
            let is_live = inner.live.contains(key);
            if !is_live {
                if key.0 == PARENT { &mut gone } else { &mut results_gone }.push(key.1);
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

impl Mapped {
    /// Ends the worker's chunk.
    pub(crate) fn end_chunk(&mut self) {
        if std::mem::take(&mut self.is_busy) {
            self.home.inner().busy.remove(&self.worker);
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let mut inner = self.home.inner();
        inner.busy.remove(&self.worker);
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
        // SAFETY: no other process has the region mapped.
        unsafe { std::slice::from_raw_parts(lease.as_ptr(), lease.len()) }.to_vec()
    }

    fn leased(mapped: &Mapped, bytes: &[u8]) -> Lease {
        let mut lease = mapped.allocate(bytes.len()).unwrap();
        lease.put_slice(bytes);
        lease
    }

    #[test]
    fn a_region_is_reused_by_the_worker_that_has_it_mapped() {
        let regions = Arc::new(Regions::default());
        let mut mapped = Mapped::new(&regions);
        let first = leased(&mapped, &[1; 5000]);
        let slice = mapped.reference(&first);
        assert!(slice.is_new && slice.is_cached);
        drop(first);
        let second = leased(&mapped, &[2; 4000]);
        assert_eq!(content(&second), [2; 4000]);
        assert_eq!(mapped.reference(&second), RegionSlice { len: 4000, is_new: false, ..slice });
        assert_eq!(mapped.begin_chunk(), None);
    }

    #[test]
    fn a_region_of_one_worker_is_not_used_for_another() {
        let regions = Arc::new(Regions::default());
        let (mut one, other) = (Mapped::new(&regions), Mapped::new(&regions));
        let lease = leased(&one, &[1; 1000]);
        one.reference(&lease);
        let key = lease.key;
        drop(lease);
        let others = leased(&other, &[2; 1000]);
        assert_ne!(others.key, key);
        assert_eq!(one.allocate(1000).unwrap().key, key);
    }

    #[test]
    fn regions_of_a_lost_worker_are_discarded() {
        let regions = Arc::new(Regions::default());
        let mut mapped = Mapped::new(&regions);
        let (out, back) = (leased(&mapped, &[1; 9]), leased(&mapped, &[1; 9]));
        mapped.reference(&out);
        mapped.reference(&back);
        drop(back);
        drop(mapped);
        drop(out);
        let inner = regions.inner();
        assert!(inner.free.is_empty() && inner.live.is_empty());
    }

    #[test]
    fn a_result_in_an_impossible_region_is_refused() {
        let regions = Arc::new(Regions::default());
        let mut mapped = Mapped::new(&regions);
        let slice = |number, len| RegionSlice { number, len, is_new: false, is_cached: true };
        let new = || Some(Region::copy_of(&[7; 100]).unwrap());
        assert!(mapped.result(slice(1, 100), None).is_none(), "no region has this number");
        assert!(mapped.result(slice(1, 101), new()).is_none(), "the region is smaller");
        let lease = mapped.result(slice(2, 100), new()).unwrap();
        assert_eq!(content(&lease), [7; 100]);
        assert!(mapped.result(slice(2, 100), new()).is_none(), "the number is in use");
        assert!(mapped.result(slice(2, 100), None).is_none(), "the region was not returned");
        drop(lease);
        let updates = mapped.begin_chunk();
        assert!(
            matches!(updates, Some(Request::Regions { results_free, .. }) if results_free == [2])
        );
        assert!(mapped.result(slice(2, 50), None).is_some());
    }

    #[test]
    fn a_region_that_a_running_worker_knows_to_be_free_stays_until_its_chunk_has_ended() {
        let regions = Arc::new(Regions::default());
        let mut mapped = Mapped::new(&regions);
        let new = RegionSlice { number: 1, len: 100, is_new: true, is_cached: true };
        let old = RegionSlice { is_new: false, ..new };
        let age = || regions.inner().free[0].since -= IDLE;
        drop(mapped.result(new, Some(Region::copy_of(&[7; 100]).unwrap())).unwrap());
        assert!(mapped.begin_chunk().is_some());
        age();
        let now = Instant::now();
        assert!(regions.trim().is_some_and(|next| next > now), "it is looked at again, but later");
        let lease = mapped.result(old, None).unwrap();
        assert_eq!(content(&lease), [7; 100]);
        drop(lease);
        mapped.end_chunk();
        age();
        assert_eq!(regions.trim(), None);
        let news = mapped.begin_chunk();
        assert!(matches!(news, Some(Request::Regions { results_gone, .. }) if results_gone == [1]));
    }

    #[test]
    fn idle_regions_are_discarded() {
        let regions = Arc::new(Regions::default());
        let mut mapped = Mapped::new(&regions);
        let lease = leased(&mapped, &[1; 5000]);
        mapped.reference(&lease);
        drop(lease);
        assert!(regions.have_returned() && !regions.have_returned());
        assert!(regions.trim().is_some());
        regions.inner().free[0].since -= IDLE;
        assert_eq!(regions.trim(), None);
        assert!(regions.inner().free.is_empty());
        assert!(mapped.begin_chunk().is_some());
    }
}
