//! PoolState memory for what is too large for a frame or a lane, kept to be used again: new memory costs
//! a page fault for each 4 KiB on either side, several times what the copy does.
//!
//! [`Regions`] are a pool's. One that holds something is out as a [`Lease`], and comes back when the
//! lease is dropped: then the worker that has it [`Mapped`] may have it again, and no other, so that no
//! worker ever sees what another one is sent. What a worker that has ended had is given up when it
//! comes back, and so is what is more than [`KEPT`], and everything that has been idle for [`IDLE`].
//!
//! Whoever has mapped a region that is given up lets go of it when it is next spoken to; its memory
//! goes back to the system at once, whoever may still have it mapped.
//!
//! A region for arguments is made here, one for results by the worker that first has such a result.
//! Both are numbered by whoever made them. Neither keeps a descriptor once it has been sent: results
//! that nobody has taken yet cost memory and nothing else.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::memcpy::Sink;
use procpool_worker::protocol::{RegionSlice, Request};
use procpool_worker::region::Region;

/// How many bytes a pool keeps that hold nothing: a large argument and its result. More than that
/// is as dear as it would be without being kept.
const KEPT: usize = 256 << 20;

/// For how long.
const IDLE: Duration = Duration::from_secs(5);

/// The least size of a region that is made for small items, so that the next chunk's fit too.
const LEAST: usize = 512 << 10;

/// Stands for this process where a worker's number stands for that worker.
const PARENT: u64 = 0;

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

/// Which region: who made and numbered it, the parent or a worker, and its number.
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
    /// Which worker has it mapped, or is to.
    owner: u64,
}

impl Regions {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty one with room for `bytes`, for this worker.
    fn with_room(self: &Arc<Self>, bytes: usize, worker: u64) -> io::Result<Lease> {
        if let Some(lease) = self.reuse(bytes, worker) {
            // What it held before may have needed less memory.
            lease.region.as_ref().map_or(Ok(()), |region| region.populate(bytes))?;
            return Ok(lease);
        }
        let region = Region::new(bytes.max(LEAST), bytes)?;
        let mut inner = self.inner();
        inner.number = inner.number.wrapping_add(1);
        let key = (PARENT, inner.number);
        inner.live.insert(key);
        Ok(Lease { home: Arc::clone(self), key, region: Some(region), len: 0, owner: worker })
    }

    /// One that the worker has: the smallest that fits, of those the one that came back last.
    fn reuse(self: &Arc<Self>, bytes: usize, worker: u64) -> Option<Lease> {
        let mut inner = self.inner();
        let fits = |entry: &Entry| {
            let len = entry.region.len();
            let is_ours = entry.key.0 == PARENT && entry.owner == worker;
            is_ours && len >= bytes && len / 8 <= bytes.max(LEAST)
        };
        let fitting = inner.free.iter().enumerate().rev().filter(|(_, entry)| fits(entry));
        let (at, _) = fitting.min_by_key(|(_, entry)| entry.region.len())?;
        Some(self.take(inner.free.swap_remove(at), 0))
    }

    fn take(self: &Arc<Self>, entry: Entry, len: usize) -> Lease {
        let Entry { key, region, owner, .. } = entry;
        Lease { home: Arc::clone(self), key, region: Some(region), len, owner }
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
        self.region.as_ref().map_or(std::ptr::null(), |region| region.as_ptr().cast_const())
    }

    /// How many bytes its content has.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// What is to be sent to its worker, if that hasn't mapped it.
    pub(crate) fn region(&mut self) -> Option<&mut Region> {
        self.region.as_mut()
    }
}

impl Sink for Lease {
    /// Appends `bytes`, for which there must be room.
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
        let is_kept = kept + region.len() <= KEPT && inner.live.contains(&key);
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
    pub(crate) fn room(&self, bytes: usize) -> io::Result<Lease> {
        self.home.with_room(bytes, self.worker)
    }

    /// Where the worker finds what the lease holds; if that is new to it, it is to be sent the region
    /// first.
    pub(crate) fn show(&mut self, lease: &Lease) -> RegionSlice {
        let is_new = !self.keys.contains(&lease.key);
        if is_new {
            self.keys.push(lease.key);
        }
        RegionSlice { number: lease.key.1, len: lease.len as u64, is_new, is_cached: true }
    }

    /// What the worker has put into a region: one that it has just sent, or one that it was told to
    /// be free. None if there is no such region or it is smaller.
    pub(crate) fn result(&mut self, place: RegionSlice, new: Option<Region>) -> Option<Lease> {
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

    fn leased(mapped: &Mapped, bytes: &[u8]) -> Lease {
        let mut lease = mapped.room(bytes.len()).unwrap();
        lease.put_slice(bytes);
        lease
    }

    #[test]
    fn a_region_is_used_again_by_the_worker_that_has_it() {
        let regions = Arc::new(Regions::default());
        let mut mapped = Mapped::none(&regions);
        let first = leased(&mapped, &[1; 5000]);
        let place = mapped.show(&first);
        assert!(place.is_new && place.is_cached);
        drop(first);
        let second = leased(&mapped, &[2; 4000]);
        assert_eq!(content(&second), [2; 4000]);
        assert_eq!(mapped.show(&second), RegionSlice { len: 4000, is_new: false, ..place });
        assert_eq!(mapped.news(), None);
    }

    #[test]
    fn what_one_worker_has_is_not_given_to_another() {
        let regions = Arc::new(Regions::default());
        let (mut one, other) = (Mapped::none(&regions), Mapped::none(&regions));
        let lease = leased(&one, &[1; 1000]);
        one.show(&lease);
        let key = lease.key;
        drop(lease);
        let others = leased(&other, &[2; 1000]);
        assert_ne!(others.key, key);
        assert_eq!(one.room(1000).unwrap().key, key);
    }

    #[test]
    fn what_a_lost_worker_had_is_not_kept() {
        let regions = Arc::new(Regions::default());
        let mut mapped = Mapped::none(&regions);
        let (out, back) = (leased(&mapped, &[1; 9]), leased(&mapped, &[1; 9]));
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
        let place = |number, len| RegionSlice { number, len, is_new: false, is_cached: true };
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
        let lease = leased(&mapped, &[1; 5000]);
        mapped.show(&lease);
        drop(lease);
        assert!(regions.have_returned() && !regions.have_returned());
        assert!(regions.trim().is_some());
        regions.inner().free[0].since -= IDLE;
        assert_eq!(regions.trim(), None);
        assert!(regions.inner().free.is_empty());
        assert!(mapped.news().is_some());
    }
}
