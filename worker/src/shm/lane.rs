//! The lane: a small shared region in which a chunk's progress can be observed and changed while the
//! worker runs it. It makes a chunk invisible except in speed.
//!
//! The parent opens the lane for a chunk of `n` items and sends the frame. The lane holds:
//!
//! - **claim**, one word, `front..end`: the unclaimed items. The worker claims items from the front,
//!   the parent steals items from the end. Both use compare-and-swap, so each item has one owner.
//! - **started**: how many items the worker has started. **block start**: when the current block of
//!   items started, in nanoseconds of `CLOCK_MONOTONIC`, which is one clock for all processes.
//! - **committed**, one word, so that its halves always agree: how many items are finished, and how
//!   many bytes of results are valid.
//! - **unclaim request**: the parent asks the worker to unclaim the items that it has claimed and not
//!   started, so that they can be stolen. The parent does so when the running item is slow.
//! - **requests** and **replies**: the [doorbells](Doorbell) of the two sides.
//! - **argument**: how many bytes of a large argument the parent has copied so far.
//! - **task progress**: what the running task [says](crate::run::outbox::progress) of how far it is.
//! - **abort reason**: what the worker records before it aborts; see [`AbortReason`].
//! - the **results**, encoded straight into the region as [records](super::record::Record).
//!
//! When a worker dies, `committed` tells which results are valid, `started` tells whether the next item
//! was running, and no later item has started.
//!
//! The parent treats the region as hostile, because a crashing worker may write anything. It checks
//! everything it reads ([`Progress`] against the chunk, lengths against the region). It copies results
//! out before it parses them, and never creates a reference to them.
//!
//! # The two halves
//!
//! Each half is a type. Both see the [`Words`], which are all atomics: the parent's operations are
//! public, the worker's are private to this crate. A [`ParentLane`] may be shared between threads; it
//! copies results out and never writes them. Only a [`WorkerLane`] writes results, through `&mut` and
//! on one thread; a process has one per region.
//!
//! # Orderings
//!
//! - A result's bytes are written before its [`commit`](Words::commit), a release store. The parent
//!   copies them after an acquire load of the same word ([`progress`](Words::progress)).
//! - Every change of the claim is a compare-and-swap; that alone assigns each item to one side. It is
//!   acquire and release: a parent that finds an item claimed also sees what was committed before, so
//!   it kills no worker for a finished item.
//! - [`open_chunk`](Words::open_chunk) runs after the worker's last store for the previous chunk,
//!   because the parent has received the reply that ends that chunk. Its relaxed stores are published by
//!   its own release of the claim and by the frame.
//! - `started` is a release store, made after the previous item's commit. A thread that loads `started`
//!   and then `committed` sees at most one item that is started and not committed.
//! - The unclaim request is a relaxed hint. Only the claim changes the owner of an item.
//!
//! The tests in `loom_model` check these under every permitted order; see CONTRIBUTING.

use std::ops::{Deref, Range};
use std::ptr::NonNull;

use crate::shm::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::shm::doorbell::Doorbell;
use crate::shm::memcpy::{self, Sink};
use crate::shm::region::Region;
use crate::wire::note;

/// Size of a lane in bytes. Large enough that a chunk of tiny results is worth its frame, small
/// enough that touching all of it once is cheap.
pub const LANE_BYTES: usize = 256 << 10;

/// Where the results start: the words have a page of their own.
const RESULTS: usize = 4096;

/// Capacity for results, in bytes.
pub const CAPACITY: usize = LANE_BYTES - RESULTS;

/// Why a worker aborts, as it records itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortReason {
    /// An allocation was refused.
    OutOfMemory,
    /// Its sandbox has refused the system call of this number.
    Refused(u32),
}

impl AbortReason {
    const OUT_OF_MEMORY: u64 = 1;
    const REFUSED: u64 = 2;

    fn to_word(self) -> u64 {
        match self {
            Self::OutOfMemory => Self::OUT_OF_MEMORY,
            Self::Refused(call) => Self::REFUSED | u64::from(call) << 32,
        }
    }

    fn from_word(word: u64) -> Option<Self> {
        match word & 0xffff_ffff {
            Self::OUT_OF_MEMORY => Some(Self::OutOfMemory),
            Self::REFUSED => Some(Self::Refused((word >> 32) as u32)),
            _ => None,
        }
    }
}

/// How far a chunk is, according to its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Items finished since the chunk started.
    pub items: u32,
    /// Bytes of valid results.
    pub bytes: u32,
}

/// A cache line of its own, for a word that one side writes and the other reads often.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct CacheLine<T>(T);

impl<T> Deref for CacheLine<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// What the worker publishes about the running item and about its own end.
#[derive(Debug, Default)]
#[repr(C)]
struct Running {
    started: AtomicU32,
    block_start: AtomicU64,
    abort_reason: AtomicU64,
}

/// How far the running task is, as it says itself.
#[derive(Debug, Default)]
#[repr(C)]
struct TaskProgress {
    /// The item, counted from 1 in the chunk; 0 if none has said anything.
    item: AtomicU32,
    done: AtomicU64,
    /// [`UNKNOWN`] if the task does not know it.
    total: AtomicU64,
    /// How many notes the worker has sent.
    notes: AtomicU64,
}

/// A total that is not known.
const UNKNOWN: u64 = u64::MAX;

/// The lane's words, as they lie at the start of its region. All are atomics for which every bit pattern
/// is valid: a hostile process can change their values, but can't make a load undefined.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Words {
    claim: CacheLine<AtomicU64>,
    committed: CacheLine<AtomicU64>,
    running: CacheLine<Running>,
    unclaim_request: CacheLine<AtomicU64>,
    requests: CacheLine<AtomicU64>,
    replies: CacheLine<AtomicU64>,
    task: CacheLine<TaskProgress>,
    argument: CacheLine<AtomicU64>,
}

// loom's atomics are larger than a word. They are never laid over a region.
#[cfg(not(all(test, loom)))]
const _: () = assert!(size_of::<Words>() == 8 * 64 && size_of::<Words>() <= RESULTS);

impl Words {
    /// Returns the doorbell that the parent rings.
    pub fn requests(&self) -> Doorbell<'_> {
        Doorbell::new(&self.requests)
    }

    /// Returns the doorbell that the worker rings.
    pub fn replies(&self) -> Doorbell<'_> {
        Doorbell::new(&self.replies)
    }

    /// Returns how many items are unclaimed.
    pub fn unclaimed(&self) -> u32 {
        let (front, end) = unpack(self.claim.load(Ordering::Acquire));
        end.saturating_sub(front)
    }

    /// Returns how many items the worker has started, according to the worker. Untrusted.
    pub fn started(&self) -> u32 {
        self.running.started.load(Ordering::Acquire)
    }

    // The parent's half.

    /// Opens the lane for a chunk of `items`, whose first block counts as started `now`. The worker must
    /// be waiting for a frame.
    pub fn open_chunk(&self, items: u32, now: u64) {
        self.running.block_start.store(now, Ordering::Relaxed);
        self.committed.store(0, Ordering::Relaxed);
        self.running.started.store(0, Ordering::Relaxed);
        // Of an abort that a task's handler has survived.
        self.running.abort_reason.store(0, Ordering::Relaxed);
        self.unclaim_request.store(0, Ordering::Relaxed);
        self.task.item.store(0, Ordering::Relaxed);
        self.claim.store(pack(0, items), Ordering::Release);
    }

    /// Publishes how many bytes of the chunk's only argument lie in its region, for an argument that is sent as raw
    /// bytes. The worker copies them meanwhile.
    pub fn set_argument(&self, bytes: u64) {
        self.argument.store(bytes, Ordering::Release);
    }

    /// Asks the worker to unclaim the items that it has claimed and not started, if there are any.
    pub fn request_unclaim(&self) {
        let (front, _) = unpack(self.claim.load(Ordering::Acquire));
        if front > self.started() {
            self.unclaim_request.store(1, Ordering::Release);
        }
    }

    /// Steals up to `max` unclaimed items from the end. Returns their range.
    pub fn steal(&self, max: u32) -> Range<u32> {
        let mut taken = 0..0;
        let _ = self.claim.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let (front, end) = unpack(word);
            let from = front.max(end.saturating_sub(max));
            taken = from..end;
            (from < end).then(|| pack(front, from))
        });
        if taken.is_empty() { 0..0 } else { taken }
    }

    /// Returns what the worker has committed. Untrusted.
    pub fn progress(&self) -> Progress {
        let (items, bytes) = unpack(self.committed.load(Ordering::Acquire));
        Progress { items, bytes }
    }

    /// Returns when the current block of items started, in nanoseconds of the monotonic clock.
    /// Untrusted.
    pub fn block_start(&self) -> u64 {
        self.running.block_start.load(Ordering::Acquire)
    }

    /// Returns why the worker aborts, if it has recorded a reason. Untrusted.
    pub fn abort_reason(&self) -> Option<AbortReason> {
        AbortReason::from_word(self.running.abort_reason.load(Ordering::Acquire))
    }

    /// Returns how far an item's task is, if it has said so. `item` counts from 1. Untrusted.
    pub fn task_progress(&self, item: u32) -> Option<note::Progress> {
        if self.task.item.load(Ordering::Acquire) != item {
            return None;
        }
        let total = self.task.total.load(Ordering::Acquire);
        let done = self.task.done.load(Ordering::Acquire);
        Some(note::Progress { done, total: (total != UNKNOWN).then_some(total) })
    }

    /// Returns how many notes the worker has sent. Loaded after [`progress`](Self::progress), it includes those of
    /// all committed items. Untrusted.
    pub fn notes(&self) -> u64 {
        self.task.notes.load(Ordering::Acquire)
    }

    /// Discards the results, which are consumed. The worker, which waits to be resumed, writes the next
    /// ones at the front.
    pub fn reset_results(&self) {
        let (items, _) = unpack(self.committed.load(Ordering::Acquire));
        self.committed.store(pack(items, 0), Ordering::Release);
    }

    // The worker's half.

    /// Records why this process aborts. Allowed in a signal handler.
    pub(crate) fn set_abort_reason(&self, note: AbortReason) {
        self.running.abort_reason.store(note.to_word(), Ordering::Release);
    }

    /// Publishes how far an item's task is. `item` counts from 1.
    pub(crate) fn set_task_progress(&self, item: u32, progress: note::Progress) {
        self.task.total.store(progress.total.unwrap_or(UNKNOWN), Ordering::Release);
        self.task.done.store(progress.done, Ordering::Release);
        self.task.item.store(item, Ordering::Release);
    }

    /// Publishes how many notes were sent.
    pub(crate) fn set_notes(&self, notes: u64) {
        self.task.notes.store(notes, Ordering::Release);
    }

    /// Waits until so many bytes of the chunk's only argument lie in its region. The parent is copying them: it needs a
    /// fraction of a millisecond, unless another process has its CPU.
    pub(crate) fn wait_argument(&self, bytes: u64) {
        const SPINS: u32 = 1000;
        const YIELDS: u32 = 1000;
        let is_there = || self.argument.load(Ordering::Acquire) >= bytes;
        for _ in 0..SPINS {
            if is_there() {
                return;
            }
            std::hint::spin_loop();
        }
        let mut yields = 0;
        while !is_there() {
            // If the parent dies, this process is killed.
            if yields < YIELDS {
                yields += 1;
                std::thread::yield_now();
            } else {
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
        }
    }

    /// Claims up to `block` items from the front.
    pub(crate) fn claim(&self, block: u32) -> Range<u32> {
        let mut claimed = 0..0;
        let _ = self.claim.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let (front, end) = unpack(word);
            claimed = front..end.min(front.saturating_add(block));
            (front < end).then(|| pack(claimed.end, end))
        });
        if claimed.is_empty() { 0..0 } else { claimed }
    }

    /// Returns whether the parent wants claimed items back.
    #[inline]
    pub(crate) fn unclaim_requested(&self) -> bool {
        self.unclaim_request.load(Ordering::Relaxed) != 0
    }

    /// Unclaims the claimed items from `from` on, none of which has started.
    pub(crate) fn unclaim(&self, from: u32) {
        self.unclaim_request.store(0, Ordering::Relaxed);
        let _ = self.claim.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let (front, end) = unpack(word);
            (from < front).then(|| pack(from, end))
        });
    }

    /// Publishes that a block of items starts at `now`.
    pub(crate) fn set_block_start(&self, now: u64) {
        self.running.block_start.store(now, Ordering::Release);
    }

    /// Publishes that the first `items` items have started.
    #[inline]
    pub(crate) fn set_started(&self, items: u32) {
        self.running.started.store(items, Ordering::Release);
    }

    /// Publishes that `progress` is finished and valid.
    #[inline]
    pub(crate) fn commit(&self, progress: Progress) {
        self.committed.store(pack(progress.items, progress.bytes), Ordering::Release);
    }
}

/// Returns where the words and the results of a region start, if its size is [`LANE_BYTES`].
fn parts(region: &Region) -> Option<(NonNull<Words>, NonNull<u8>)> {
    if region.len() != LANE_BYTES {
        return None;
    }
    let base = NonNull::new(region.as_ptr())?;
    // SAFETY: inside the region.
    let results = unsafe { base.add(RESULTS) };
    // Always true: a region is mapped at a page boundary.
    base.cast::<Words>().is_aligned().then_some((base.cast(), results))
}

/// The parent's half of a lane. Reads the worker's progress, steals items, copies results out. Threads
/// may share it:
///
/// ```
/// use procpool_worker::{lane::ParentLane, region::Region};
///
/// fn make(region: Region) {
///     let _ = ParentLane::new(region);
/// }
/// fn share(lane: &ParentLane) {
///     std::thread::scope(|scope| scope.spawn(|| lane.started()).join().unwrap());
/// }
/// ```
#[derive(Debug)]
pub struct ParentLane {
    words: NonNull<Words>,
    results: NonNull<u8>,
    /// Keeps the memory mapped.
    _region: Region,
}

// SAFETY: the pointers lead into the mapping that `_region` owns while this value lives. They point to
// atomics, and to results, which are only copied out, as bytes of any value.
unsafe impl Send for ParentLane {}
// SAFETY: as above.
unsafe impl Sync for ParentLane {}

impl Deref for ParentLane {
    type Target = Words;

    #[inline]
    fn deref(&self) -> &Words {
        // SAFETY: inside the region and aligned. Any bytes are valid words, and the peer touches them as
        // atomics only.
        unsafe { self.words.as_ref() }
    }
}

impl ParentLane {
    /// Uses a region as a lane.
    ///
    /// # Errors
    ///
    /// Returns the region if its size is not that of a lane.
    pub fn new(region: Region) -> Result<Self, Region> {
        match parts(&region) {
            Some((words, results)) => Ok(Self { words, results, _region: region }),
            None => Err(region),
        }
    }

    /// Returns some bytes of committed results. `None` if they are not inside of the results.
    #[inline]
    pub fn peek<const LEN: usize>(&self, at: usize) -> Option<[u8; LEN]> {
        let end = at.checked_add(LEN)?;
        // SAFETY: inside of the results, as just checked. The worker may write there: then the copy holds garbage.
        (end <= CAPACITY)
            .then(|| unsafe { self.results.add(at).cast::<[u8; LEN]>().read_volatile() })
    }

    /// Copies committed results to `to`. Returns false, and copies nothing, if they are not inside of the results.
    ///
    /// # Safety
    ///
    /// `to` is valid for writes of as many bytes.
    pub unsafe fn copy_results_to(&self, range: Range<usize>, to: *mut u8) -> bool {
        let is_inside = range.start <= range.end && range.end <= CAPACITY;
        if is_inside {
            // SAFETY: as the caller promises, and as [`copy_results`](Self::copy_results).
            unsafe { memcpy::copy(self.results.add(range.start).as_ptr(), to, range.len()) };
        }
        is_inside
    }

    /// Appends committed results to `to`. A range outside of the results appends nothing.
    pub fn copy_results(&self, range: Range<usize>, to: &mut Vec<u8>) {
        if range.start > range.end || range.end > CAPACITY {
            return;
        }
        // SAFETY: the range lies inside the results. A correct worker doesn't write below what it has
        // committed until the parent resumes it. If another one does, the copy holds garbage, which its
        // reader expects.
        unsafe { memcpy::append_from(to, self.results.add(range.start).as_ptr(), range.len()) };
    }
}

/// The worker's half of a lane. Writes results. It belongs to the serving thread,
///
/// ```compile_fail,E0277
/// use procpool_worker::{lane::WorkerLane, region::Region};
///
/// fn share(lane: &WorkerLane) {
///     std::thread::scope(|scope| scope.spawn(|| lane.started()).join().unwrap());
/// }
/// ```
///
/// and safe code can't create one, so no second one exists for the same memory.
///
/// ```compile_fail,E0624
/// use procpool_worker::{lane::WorkerLane, region::Region};
///
/// fn make(region: Region) {
///     let _ = unsafe { WorkerLane::new(region) };
/// }
/// ```
#[derive(Debug)]
pub struct WorkerLane {
    pub(crate) words: &'static Words,
    /// The pointer also makes the type neither `Send` nor `Sync`.
    results: NonNull<u8>,
}

impl Deref for WorkerLane {
    type Target = Words;

    #[inline]
    fn deref(&self) -> &Words {
        self.words
    }
}

impl WorkerLane {
    /// Uses a region as a lane. It stays mapped until the process ends, because a signal handler writes
    /// its [`AbortReason`] there.
    ///
    /// # Errors
    ///
    /// Returns the region if its size is not that of a lane.
    ///
    /// # Safety
    ///
    /// No other `WorkerLane` of this memory exists in this process.
    pub(crate) unsafe fn new(region: Region) -> Result<Self, Region> {
        let Some((words, results)) = parts(&region) else { return Err(region) };
        std::mem::forget(region);
        // SAFETY: inside the region, which is never unmapped, and aligned. Any bytes are valid words, and
        // the peer touches them as atomics only.
        let words = unsafe { words.as_ref() };
        Ok(Self { words, results })
    }

    /// Returns a writer for one result, from byte `at` on, that leaves the last `spare` bytes free.
    #[inline]
    pub(crate) fn writer(&mut self, at: usize, spare: usize) -> ResultWriter<'_> {
        let end = CAPACITY.saturating_sub(spare);
        let at = at.min(end);
        ResultWriter { lane: self, start: at, at, end, spilled: Vec::new() }
    }

    /// Returns the address of byte `at` of the results, with space for `len` bytes behind it. Bytes that
    /// are not committed belong to the worker.
    ///
    /// # Panics
    ///
    /// When they would exceed [`CAPACITY`].
    #[inline]
    pub(crate) fn results_at(&mut self, at: usize, len: usize) -> *mut u8 {
        let fits = at.checked_add(len).is_some_and(|end| end <= CAPACITY);
        assert!(fits, "results are only written where there is room");
        // SAFETY: inside the region, as just checked.
        unsafe { self.results.add(at).as_ptr() }
    }

    /// Writes `bytes` at byte `at` of the results.
    #[inline]
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) {
        let to = self.results_at(at, bytes.len());
        // SAFETY: they fit, and only this thread writes results. `bytes` don't overlap them: no reference
        // to a result is ever created.
        unsafe { memcpy::copy(bytes.as_ptr(), to, bytes.len()) };
    }
}

#[inline]
fn pack(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn unpack(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

/// Writes one result into the lane, or onto the heap as soon as it does not fit.
#[derive(Debug)]
pub(crate) struct ResultWriter<'a> {
    lane: &'a mut WorkerLane,
    start: usize,
    at: usize,
    end: usize,
    spilled: Vec<u8>,
}

impl ResultWriter<'_> {
    /// Returns the end of what was written, or the whole value if it did not fit.
    #[inline]
    pub(crate) fn finish(self) -> Result<usize, Vec<u8>> {
        if self.spilled.is_empty() { Ok(self.at) } else { Err(self.spilled) }
    }

    /// Returns the whole value.
    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        if self.spilled.is_empty() {
            self.spill();
        }
        self.spilled
    }

    /// Copies to the heap what was written so far.
    fn spill(&mut self) {
        let len = self.at - self.start;
        let written = self.lane.results_at(self.start, len);
        // SAFETY: this writer has written that many bytes there.
        unsafe { memcpy::append_from(&mut self.spilled, written, len) };
        self.at = self.end;
    }
}

impl Sink for ResultWriter<'_> {
    #[inline]
    fn put_slice(&mut self, bytes: &[u8]) {
        if self.spilled.is_empty() && bytes.len() <= self.end - self.at {
            self.lane.write(self.at, bytes);
            self.at += bytes.len();
            return;
        }
        if self.spilled.is_empty() {
            self.spill();
        }
        self.spilled.extend_from_slice(bytes);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_model;
