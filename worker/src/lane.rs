//! The lane: the small shared region through which a chunk's progress can be seen and changed while
//! the worker runs it, so that a chunk is invisible except in speed.
//!
//! The parent opens the lane for a chunk of `n` items and sends the frame. From then on:
//!
//! - **claim** is one word, `front..end`: the items that are not started. The worker takes items
//!   from the front, the parent may take items back from the end, each by compare-and-swap, so that
//!   an item is had by exactly one of them.
//! - **started** counts the items that the worker has begun; **begun** is when the last block of
//!   them began (nanoseconds of `CLOCK_MONOTONIC`, which is one clock for all processes).
//! - **committed** is one word, so that its halves always agree: how many items are finished, and
//!   how many bytes of results are valid.
//! - **recall** is the parent's wish that items which are claimed and not begun be put back into the
//!   claim, from where it can take them: the running one has turned out slow.
//! - **requests** and **replies** are the two sides' [bells](Bell).
//! - **note** is what a worker may leave about its own end; see [`Note`].
//! - the **results** follow, encoded straight into the region as [records](Record).
//!
//! When a worker dies, `committed` says what is to be delivered, `started` says whether the item
//! after it was running, and whatever lies behind was never begun.
//!
//! To the parent the region is hostile once a worker has crashed: everything it reads is checked
//! ([`Progress`] against the chunk, lengths against the region), results are copied out before they
//! are looked at, and no reference to them is ever made, only raw copies.
//!
//! # The two halves
//!
//! Each half is a type of its own. Both see the [`Words`], which are atomics alone: the parent's
//! operations on them are public, the worker's are private to this crate. A [`ParentLane`] may be shared
//! between threads; it copies results out and never writes them. Only a [`WorkerLane`] writes results,
//! through `&mut` and on one thread; a process has one per region.
//!
//! # Orderings
//!
//! - A result's bytes are written before its [`commit`](Words::commit), a release store. The parent
//!   copies them after an acquire load of the same word ([`progress`](Words::progress)).
//! - Every change of the claim is a compare-and-swap; this alone hands each item to one side. Each is
//!   acquire and release: a parent that finds an item claimed also sees what was committed before, and
//!   so ends no worker for an item that is done.
//! - [`open`](Words::open) runs after the worker's last store of the chunk before, since the parent has
//!   received the reply that ends that chunk. Its relaxed stores are published by its own release of the
//!   claim and by the frame.
//! - `started` is a release store, made after the commit of the item before. A thread that loads
//!   `started` and then `committed` sees at most one item that is begun and not committed.
//! - The recall is a relaxed hint. The claim does what it asks for.
//!
//! The tests in `loom_model` check these under every order that they allow; see CONTRIBUTING.

use std::ops::{Deref, Range};
use std::ptr::NonNull;

use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::bell::Bell;
use crate::codec::Sink;
use crate::copy;
use crate::region::Region;

/// Size of a lane in bytes. Large enough that a chunk of tiny results is worth its frame, small
/// enough that touching all of it when a worker starts costs little (about 30 µs).
pub const LANE_BYTES: usize = 256 << 10;

/// Where the results begin: the words have a page of their own.
const RESULTS: usize = 4096;

/// Room for results in bytes.
pub const CAPACITY: usize = LANE_BYTES - RESULTS;

/// Every record starts with one word: its kind in the low bits, its payload's length above.
pub const RECORD_HEAD: usize = size_of::<u32>();

/// What is written after the results of each block: see [`Record::Time`].
pub const TIME_RECORD: usize = RECORD_HEAD + size_of::<u64>();

const KIND_BITS: u32 = 3;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Record {
    /// An item's encoded result.
    Value = 0,
    /// An item's panic, an encoded [`PanicReport`](crate::panics::PanicReport).
    Panicked = 1,
    /// An item's argument could not be decoded; the text says why.
    Undecodable = 2,
    /// An item's result could not be encoded; the text says why.
    Unencodable = 3,
    /// An item's result that is too large for the lane and lies in a region of its own. An encoded
    /// [`Place`](crate::protocol::Place) and whether it holds the value's bare
    /// [elements](crate::plain::elements) instead of its encoding.
    Region = 4,
    /// How long the items since the last such record took together, in nanoseconds. Not an item.
    Time = 5,
    /// The results of a block of items that are plain numbers, one after the other without heads of
    /// their own; how wide they are, who decodes them knows. The head says how many bytes they take
    /// when the block is done: of a worker that died in it there may be fewer.
    Numbers = 7,
    /// Where the output of the item before ends in the file that it is captured in. Not an item.
    Output = 6,
}

/// What a worker leaves about its own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Note {
    /// It aborts after memory was refused to it.
    OutOfMemory = 1,
}

impl Record {
    /// Reads a record's head: the kind and the payload's length.
    pub fn parse(head: [u8; RECORD_HEAD]) -> Option<(Self, usize)> {
        let head = u32::from_le_bytes(head);
        let kind = match head & ((1 << KIND_BITS) - 1) {
            0 => Self::Value,
            1 => Self::Panicked,
            2 => Self::Undecodable,
            3 => Self::Unencodable,
            4 => Self::Region,
            5 => Self::Time,
            6 => Self::Output,
            7 => Self::Numbers,
            _ => return None,
        };
        Some((kind, (head >> KIND_BITS) as usize))
    }

    /// A record's head. A payload in a lane is always shorter than the lane.
    pub fn head(self, len: usize) -> [u8; RECORD_HEAD] {
        debug_assert!(len <= LANE_BYTES);
        ((len as u32) << KIND_BITS | self as u32).to_le_bytes()
    }

    /// Whether the record is the outcome of an item.
    pub fn is_outcome(self) -> bool {
        !matches!(self, Self::Time | Self::Output)
    }
}

/// How far a chunk is, as its worker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Items finished since the chunk began.
    pub items: u32,
    /// Bytes of results that are valid.
    pub bytes: u32,
}

/// A cache line of its own for what one side writes and the other reads often.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Line<T>(T);

impl<T> Deref for Line<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// What the worker says about the running item and about its own end.
#[derive(Debug, Default)]
#[repr(C)]
struct Running {
    started: AtomicU32,
    begun: AtomicU64,
    note: AtomicU64,
}

/// The lane's words, as they lie at the start of its region. All are atomics of which every bit pattern
/// is a value: a hostile process can make them say anything, and can't make a load undefined.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Words {
    claim: Line<AtomicU64>,
    committed: Line<AtomicU64>,
    running: Line<Running>,
    recall: Line<AtomicU64>,
    requests: Line<AtomicU64>,
    replies: Line<AtomicU64>,
}

// loom's atomics are larger than a word. They are never laid over a region.
#[cfg(not(all(test, loom)))]
const _: () = assert!(size_of::<Words>() == 6 * 64 && size_of::<Words>() <= RESULTS);

impl Words {
    /// What the parent rings.
    pub fn requests(&self) -> Bell<'_> {
        Bell::new(&self.requests)
    }

    /// What the worker rings.
    pub fn replies(&self) -> Bell<'_> {
        Bell::new(&self.replies)
    }

    /// How many items are not started.
    pub fn unstarted(&self) -> u32 {
        let (front, end) = unpack(self.claim.load(Ordering::Acquire));
        end.saturating_sub(front)
    }

    /// How many items the worker says it has begun. Not to be trusted.
    pub fn started(&self) -> u32 {
        self.running.started.load(Ordering::Acquire)
    }

    // The parent's side.

    /// Prepares for a chunk of `items`, whose first block counts as begun `now`. The worker must be
    /// waiting for a frame.
    pub fn open(&self, items: u32, now: u64) {
        self.running.begun.store(now, Ordering::Relaxed);
        self.committed.store(0, Ordering::Relaxed);
        self.running.started.store(0, Ordering::Relaxed);
        self.recall.store(0, Ordering::Relaxed);
        self.claim.store(pack(0, items), Ordering::Release);
    }

    /// Asks the worker to put back what it has claimed and not begun, if it has any such items.
    pub fn recall(&self) {
        let (front, _) = unpack(self.claim.load(Ordering::Acquire));
        if front > self.started() {
            self.recall.store(1, Ordering::Release);
        }
    }

    /// Takes back up to `max` items that are not started, from the end, and returns their range.
    pub fn take_back(&self, max: u32) -> Range<u32> {
        let mut taken = 0..0;
        let _ = self.claim.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let (front, end) = unpack(word);
            let from = front.max(end.saturating_sub(max));
            taken = from..end;
            (from < end).then(|| pack(front, from))
        });
        if taken.is_empty() { 0..0 } else { taken }
    }

    /// What the worker has committed. Not to be trusted.
    pub fn progress(&self) -> Progress {
        let (items, bytes) = unpack(self.committed.load(Ordering::Acquire));
        Progress { items, bytes }
    }

    /// When the running block of items began, in nanoseconds of the monotonic clock. Not to be
    /// trusted.
    pub fn begun(&self) -> u64 {
        self.running.begun.load(Ordering::Acquire)
    }

    /// What the worker has noted about its end. Not to be trusted.
    pub fn note(&self) -> Option<Note> {
        match self.running.note.load(Ordering::Acquire) as u32 {
            note if note == Note::OutOfMemory as u32 => Some(Note::OutOfMemory),
            _ => None,
        }
    }

    /// Makes all room free again: the worker, which waits to be resumed, starts at the front.
    pub fn empty(&self) {
        let (items, _) = unpack(self.committed.load(Ordering::Acquire));
        self.committed.store(pack(items, 0), Ordering::Release);
    }

    // The worker's side.

    /// Leaves a note. Allowed in a signal handler.
    pub(crate) fn leave_note(&self, note: Note) {
        self.running.note.store(note as u64, Ordering::Release);
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

    /// Whether the parent wants claimed items back.
    #[inline]
    pub(crate) fn is_recalled(&self) -> bool {
        self.recall.load(Ordering::Relaxed) != 0
    }

    /// Puts back what was claimed from item `from` on, none of which has begun.
    pub(crate) fn unclaim(&self, from: u32) {
        self.recall.store(0, Ordering::Relaxed);
        let _ = self.claim.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let (front, end) = unpack(word);
            (from < front).then(|| pack(from, end))
        });
    }

    /// Says that a block of items begins at `now`.
    pub(crate) fn begin(&self, now: u64) {
        self.running.begun.store(now, Ordering::Release);
    }

    /// Says that items up to but not including `items` have begun.
    #[inline]
    pub(crate) fn start(&self, items: u32) {
        self.running.started.store(items, Ordering::Release);
    }

    /// Says that `progress` is finished and valid.
    #[inline]
    pub(crate) fn commit(&self, progress: Progress) {
        self.committed.store(pack(progress.items, progress.bytes), Ordering::Release);
    }
}

/// Returns where the words and the results of a region begin, if it has [`LANE_BYTES`].
fn parts(region: &Region) -> Option<(NonNull<Words>, NonNull<u8>)> {
    if region.len() != LANE_BYTES {
        return None;
    }
    let base = NonNull::new(region.as_ptr())?;
    // SAFETY: inside of the region.
    let results = unsafe { base.add(RESULTS) };
    // Always so, as a region is mapped at a page.
    base.cast::<Words>().is_aligned().then_some((base.cast(), results))
}

/// The parent's half of a lane. Reads what the worker says of itself, takes items back, copies results
/// out. Threads may share it:
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
    /// Keeps them mapped.
    _region: Region,
}

// SAFETY: the pointers lead into the mapping that `_region` owns for as long as this lives. What they
// point to are atomics, and results, which are only copied out, as bytes of any value.
unsafe impl Send for ParentLane {}
// SAFETY: as above.
unsafe impl Sync for ParentLane {}

impl Deref for ParentLane {
    type Target = Words;

    #[inline]
    fn deref(&self) -> &Words {
        // SAFETY: inside of the region, aligned, and any bytes are such words; the peer too touches
        // them as atomics only.
        unsafe { self.words.as_ref() }
    }
}

impl ParentLane {
    /// Takes a region as a lane.
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

    /// Copies committed results to the end of `to`. A range outside of the region copies nothing.
    pub fn copy_results(&self, range: Range<usize>, to: &mut Vec<u8>) {
        if range.start > range.end || range.end > CAPACITY {
            return;
        }
        // SAFETY: the range lies inside the results. The worker doesn't write below what it has
        // committed until the parent resumes it; should it do so all the same, the copy holds garbage,
        // which its reader expects.
        unsafe { copy::append_from(to, self.results.add(range.start).as_ptr(), range.len()) };
    }
}

/// The worker's half of a lane. Writes results. It belongs to the thread that serves,
///
/// ```compile_fail,E0277
/// use procpool_worker::{lane::WorkerLane, region::Region};
///
/// fn share(lane: &WorkerLane) {
///     std::thread::scope(|scope| scope.spawn(|| lane.started()).join().unwrap());
/// }
/// ```
///
/// and safe code can't make one, so there is no second one of the same memory.
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
    /// As a pointer it also keeps this on its thread: neither `Send` nor `Sync`.
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
    /// Takes a region as a lane. It stays mapped until the process ends: a signal handler leaves its
    /// [`Note`] there.
    ///
    /// # Errors
    ///
    /// Returns the region if its size is not that of a lane.
    ///
    /// # Safety
    ///
    /// No other `WorkerLane` is made of this memory in this process.
    pub(crate) unsafe fn new(region: Region) -> Result<Self, Region> {
        let Some((words, results)) = parts(&region) else { return Err(region) };
        std::mem::forget(region);
        // SAFETY: inside of the region, which is never unmapped, aligned, and any bytes are such words;
        // the peer too touches them as atomics only.
        let words = unsafe { words.as_ref() };
        Ok(Self { words, results })
    }

    /// A place to write a result at, from byte `at` on, keeping `spare` bytes of the end free.
    #[inline]
    pub(crate) fn writer(&mut self, at: usize, spare: usize) -> ResultWriter<'_> {
        let room = CAPACITY.saturating_sub(spare);
        let at = at.min(room);
        ResultWriter { lane: self, start: at, at, room, spilled: Vec::new() }
    }

    /// Returns the address of byte `at` of the results, which has room for `len` bytes. Bytes that are
    /// not committed are the worker's to write.
    #[inline]
    pub(crate) fn room(&mut self, at: usize, len: usize) -> *mut u8 {
        let fits = at.checked_add(len).is_some_and(|end| end <= CAPACITY);
        assert!(fits, "results are only written where there is room");
        // SAFETY: inside the region, as was just checked.
        unsafe { self.results.add(at).as_ptr() }
    }

    /// Writes `bytes` at byte `at` of the results, which has room for them.
    #[inline]
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) {
        let to = self.room(at, bytes.len());
        // SAFETY: there is room for them, and this thread alone writes results. `bytes` are none of
        // them: no reference to a result is ever made.
        unsafe { copy::copy(bytes.as_ptr(), to, bytes.len()) };
    }
}

#[inline]
fn pack(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn unpack(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

/// Writes one result into the lane, or, as soon as it is found not to fit, onto the heap.
#[derive(Debug)]
pub(crate) struct ResultWriter<'a> {
    lane: &'a mut WorkerLane,
    start: usize,
    at: usize,
    room: usize,
    spilled: Vec<u8>,
}

impl ResultWriter<'_> {
    /// The end of what was written, or all of the value if it didn't fit.
    #[inline]
    pub(crate) fn finish(self) -> Result<usize, Vec<u8>> {
        if self.spilled.is_empty() { Ok(self.at) } else { Err(self.spilled) }
    }
}

impl Sink for ResultWriter<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        if self.spilled.is_empty() && bytes.len() <= self.room - self.at {
            self.lane.write(self.at, bytes);
            self.at += bytes.len();
            return;
        }
        if self.spilled.is_empty() {
            let len = self.at - self.start;
            let written = self.lane.room(self.start, len);
            // SAFETY: so many bytes have been written there by this writer.
            unsafe { copy::append_from(&mut self.spilled, written, len) };
            self.at = self.room;
        }
        self.spilled.extend_from_slice(bytes);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(items: u32) -> Words {
        let words = Words::default();
        words.open(items, 0);
        words
    }

    /// Both halves of one region.
    fn halves() -> (ParentLane, WorkerLane) {
        let region = Region::new(LANE_BYTES, 0).unwrap();
        let file = region.descriptor().unwrap().try_clone_to_owned().unwrap();
        let parent = ParentLane::new(region).unwrap();
        let region = Region::open(file, LANE_BYTES as u64).unwrap();
        // SAFETY: the only one.
        let worker = unsafe { WorkerLane::new(region) }.unwrap();
        (parent, worker)
    }

    /// A worker that runs a chunk in its smallest steps, as `serve` does.
    #[derive(Debug, Clone, Default)]
    struct Worker {
        claimed: Range<u32>,
        running: bool,
        committed: u32,
        done: bool,
    }

    impl Worker {
        fn step(&mut self, lane: &Words, block: u32) {
            if self.running && !self.claimed.is_empty() && lane.is_recalled() {
                lane.unclaim(self.claimed.start);
                self.claimed = 0..0;
            } else if self.running {
                self.committed += 1;
                self.running = false;
                lane.commit(Progress { items: self.committed, bytes: 0 });
            } else if self.claimed.is_empty() {
                self.claimed = lane.claim(block);
                self.done = self.claimed.is_empty();
            } else {
                self.claimed.start += 1;
                self.running = true;
                lane.start(self.claimed.start);
            }
        }
    }

    /// What somebody does next: the worker a step, the parent taking back so many or asking for what
    /// is claimed, or a kill.
    #[derive(Debug, Clone, Copy)]
    enum Move {
        Step,
        TakeBack(u32),
        Recall,
        Kill,
    }

    /// Plays `moves` from the start, and gives the worker, what was taken back, and the lane.
    fn play(items: u32, block: u32, moves: &[Move]) -> (Worker, Vec<Range<u32>>, Words) {
        let (lane, mut worker, mut taken) = (words(items), Worker::default(), Vec::new());
        for next in moves {
            match next {
                Move::Step => worker.step(&lane, block),
                Move::TakeBack(max) => taken.push(lane.take_back(*max)),
                Move::Recall => lane.recall(),
                Move::Kill => {}
            }
        }
        (worker, taken, lane)
    }

    /// At the end, each item is in one place: committed, the one that was running, taken back, or
    /// never begun.
    fn check(items: u32, (worker, taken, lane): &(Worker, Vec<Range<u32>>, Words), moves: &[Move]) {
        let (started, committed) = (lane.started(), lane.progress().items);
        let left = items - taken.iter().map(|range| range.end - range.start).sum::<u32>();
        let mut end = items;
        for range in taken.iter().filter(|range| !range.is_empty()) {
            assert_eq!(range.end, end, "taken from the end, once: {moves:?}");
            end = range.start;
        }
        assert_eq!(end, left, "{moves:?}");
        assert!(committed <= started && started <= left, "nothing taken back was begun: {moves:?}");
        assert!(started - committed <= 1, "one item runs at a time: {moves:?}");
        assert_eq!(worker.committed, committed);
        if worker.done {
            assert_eq!(committed, left, "all that was not taken back is done: {moves:?}");
        }
    }

    /// Every order in which a worker's steps, two moves of the parent and a kill at any moment can
    /// happen.
    #[test]
    fn in_every_interleaving_each_item_is_in_exactly_one_place() {
        fn explore(items: u32, block: u32, moves: &mut Vec<Move>, takes: u32, seen: &mut u64) {
            let state = play(items, block, moves);
            check(items, &state, moves);
            *seen += 1;
            if state.0.done {
                return;
            }
            let mut choices = vec![Move::Step, Move::Kill];
            if takes > 0 {
                choices.extend([1, 2, u32::MAX].map(Move::TakeBack));
                choices.push(Move::Recall);
            }
            for choice in choices {
                moves.push(choice);
                match choice {
                    // The worker does nothing more; the parent may still take back.
                    Move::Kill => {
                        for max in [0, 1, u32::MAX] {
                            moves.push(Move::TakeBack(max));
                            check(items, &play(items, block, moves), moves);
                            moves.pop();
                        }
                    }
                    Move::TakeBack(_) | Move::Recall => {
                        explore(items, block, moves, takes - 1, seen);
                    }
                    Move::Step => explore(items, block, moves, takes, seen),
                }
                moves.pop();
            }
        }
        let mut seen = 0;
        for items in 0..=3 {
            for block in 1..=2 {
                explore(items, block, &mut Vec::new(), 2, &mut seen);
            }
        }
        assert!(seen > 1000, "{seen} states");
    }

    #[test]
    fn what_is_recalled_can_be_taken_back_but_for_the_item_that_runs() {
        let (lane, mut worker) = (words(8), Worker::default());
        worker.step(&lane, 8);
        worker.step(&lane, 8);
        assert_eq!((lane.started(), lane.unstarted()), (1, 0));
        lane.recall();
        worker.step(&lane, 8);
        assert_eq!(lane.take_back(u32::MAX), 1..8);
    }

    #[test]
    fn claimed_and_taken_back_at_once_an_item_is_had_by_one() {
        let lane = words(100_000);
        let (claimed, taken) = std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let mut items = 0;
                loop {
                    let block = lane.claim(7);
                    if block.is_empty() {
                        return items;
                    }
                    items += block.len();
                }
            });
            let parent = scope.spawn(|| {
                let mut items = 0;
                while lane.unstarted() > 0 {
                    items += lane.take_back(5).len();
                }
                items
            });
            (worker.join().unwrap(), parent.join().unwrap())
        });
        assert_eq!(claimed + taken, 100_000);
    }

    #[test]
    fn a_value_that_does_not_fit_is_spilled_whole() {
        let (_, mut lane) = halves();
        let mut writer = lane.writer(CAPACITY - 10, 2);
        writer.put(b"1234567");
        assert_eq!(writer.finish(), Ok(CAPACITY - 3));
        let mut writer = lane.writer(CAPACITY - 10, 2);
        writer.put(b"1234567");
        writer.put(b"89");
        writer.put(b"0");
        assert_eq!(writer.finish(), Err(b"1234567890".to_vec()));
    }

    #[test]
    fn reading_outside_of_the_results_gives_nothing() {
        let (lane, _) = halves();
        let mut to = Vec::new();
        lane.copy_results(0..CAPACITY + 1, &mut to);
        #[allow(clippy::reversed_empty_ranges)]
        lane.copy_results(5..4, &mut to);
        assert!(to.is_empty());
        assert!(Record::parse(u32::MAX.to_le_bytes()).is_some_and(|(_, len)| len > LANE_BYTES));
    }
}

#[cfg(all(test, loom))]
mod loom_model {
    use loom::cell::UnsafeCell;
    use loom::sync::{Arc, Mutex};
    use loom::thread::{spawn, yield_now};

    use super::*;

    /// The words and what they hand over: items and results, which loom lets one thread at a time touch,
    /// and the sockets.
    struct Model {
        words: Words,
        items: [UnsafeCell<Item>; 3],
        results: [UnsafeCell<u32>; ROOM],
        /// How many frames each side has sent: a socket orders like a release and an acquire.
        to_worker: AtomicU32,
        to_parent: AtomicU32,
    }

    /// How many results fit.
    const ROOM: usize = 2;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Item {
        Waits,
        Begun,
        TakenBack,
    }

    impl Model {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                words: Words::default(),
                items: [(); 3].map(|()| UnsafeCell::new(Item::Waits)),
                results: [(); ROOM].map(|()| UnsafeCell::new(0)),
                to_worker: AtomicU32::default(),
                to_parent: AtomicU32::default(),
            })
        }

        /// Moves a waiting item on. Fails if another thread has moved it, or is about to.
        fn becomes(&self, item: u32, what: Item) {
            // SAFETY: loom fails the test if two threads are here at once.
            self.items[item as usize].with_mut(|item| unsafe {
                assert_eq!(*item, Item::Waits);
                *item = what;
            });
        }

        fn take_back(&self, max: u32) -> u32 {
            let range = self.words.take_back(max);
            range.clone().for_each(|item| self.becomes(item, Item::TakenBack));
            range.end - range.start
        }

        /// Runs what can be claimed, as `serve` does. Returns how many items it has run.
        fn run(&self, block: u32) -> u32 {
            let mut done = 0;
            loop {
                let mut claimed = self.words.claim(block);
                if claimed.is_empty() {
                    return done;
                }
                while !claimed.is_empty() {
                    self.words.start(claimed.start + 1);
                    self.becomes(claimed.start, Item::Begun);
                    claimed.start += 1;
                    done += 1;
                    if !claimed.is_empty() && self.words.is_recalled() {
                        self.words.unclaim(claimed.start);
                        claimed.end = claimed.start;
                    }
                    self.words.commit(Progress { items: done, bytes: 0 });
                }
            }
        }
    }

    /// Explores every order with at most so many preemptions.
    fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(model);
    }

    fn send(count: &AtomicU32) {
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    fn wait_for(count: &AtomicU32, frames: u32) {
        while count.load(Ordering::Acquire) < frames {
            yield_now();
        }
    }

    #[test]
    fn each_item_is_committed_or_taken_back_and_none_is_both() {
        for block in 1..=3 {
            explore(3, move || {
                let model = Model::new();
                model.words.open(3, 0);
                let worker = spawn({
                    let model = Arc::clone(&model);
                    move || model.run(block)
                });
                let mut taken = model.take_back(1);
                model.words.recall();
                taken += model.take_back(u32::MAX);
                let done = worker.join().unwrap();
                assert_eq!((done + taken, model.words.unstarted()), (3, 0));
                assert_eq!(model.words.progress().items, done);
                // Items at the front were run, those at the end were taken back.
                for (item, what) in (0..).zip(&model.items) {
                    let expected = if item < done { Item::Begun } else { Item::TakenBack };
                    // SAFETY: all threads are joined.
                    what.with(|what| assert_eq!(unsafe { *what }, expected));
                }
            });
        }
    }

    #[test]
    fn one_item_at_most_is_begun_and_not_committed() {
        explore(3, || {
            let model = Model::new();
            model.words.open(2, 0);
            let worker = spawn({
                let model = Arc::clone(&model);
                move || model.run(2)
            });
            let started = model.words.started();
            let committed = model.words.progress().items;
            assert!(started <= committed + 1, "{started} begun, {committed} committed");
            assert!(model.words.started() >= committed);
            worker.join().unwrap();
        });
    }

    /// Where items have time limits, each is claimed alone: the parent takes back the rest, and then ends
    /// the worker if the item is not committed.
    #[test]
    fn of_an_item_whose_successor_was_claimed_the_commit_is_seen() {
        explore(3, || {
            let model = Model::new();
            model.words.open(2, 0);
            let worker = spawn({
                let model = Arc::clone(&model);
                move || model.run(1)
            });
            if model.take_back(u32::MAX) == 0 {
                assert!(model.words.progress().items >= 1);
            }
            worker.join().unwrap();
        });
    }

    #[test]
    fn after_a_recall_all_but_the_running_item_can_be_taken_back() {
        explore(3, || {
            let model = Model::new();
            model.words.open(3, 0);
            let worker = spawn({
                let model = Arc::clone(&model);
                move || {
                    let claimed = model.words.claim(3);
                    model.words.start(1);
                    model.becomes(0, Item::Begun);
                    // The item runs until the parent finds that it does.
                    while !model.words.is_recalled() {
                        yield_now();
                    }
                    model.words.unclaim(claimed.start + 1);
                    model.words.commit(Progress { items: 1, bytes: 0 });
                    wait_for(&model.to_worker, 1);
                    assert_eq!(model.words.claim(3), 0..0);
                }
            });
            while model.words.unstarted() > 0 || model.words.started() == 0 {
                yield_now();
            }
            let mut taken = 0;
            while taken < 2 {
                model.words.recall();
                taken += model.take_back(u32::MAX);
                yield_now();
            }
            send(&model.to_worker);
            worker.join().unwrap();
            assert_eq!(taken, 2);
        });
    }

    #[test]
    fn the_results_of_committed_items_are_seen_whole_also_in_room_that_is_used_again() {
        explore(2, || {
            let model = Model::new();
            model.words.open(3, 0);
            let worker = spawn({
                let model = Arc::clone(&model);
                move || {
                    let mut bytes = 0;
                    for item in 0..3 {
                        if bytes == ROOM {
                            send(&model.to_parent);
                            wait_for(&model.to_worker, 1);
                            bytes = 0;
                        }
                        model.words.start(item + 1);
                        // SAFETY: loom fails the test if the parent reads it meanwhile.
                        model.results[bytes].with_mut(|result| unsafe { *result = item + 1 });
                        bytes += 1;
                        let progress = Progress { items: item + 1, bytes: bytes as u32 };
                        model.words.commit(progress);
                    }
                }
            });
            let (mut items, mut read) = (0, 0);
            let mut look = || {
                let progress = model.words.progress();
                for result in &model.results[read..progress.bytes as usize] {
                    items += 1;
                    // SAFETY: loom fails the test if the worker writes it meanwhile.
                    result.with(|result| assert_eq!(unsafe { *result }, items));
                }
                read = progress.bytes as usize;
                assert_eq!(items, progress.items);
                if read == ROOM && model.to_parent.load(Ordering::Acquire) == 1 {
                    model.words.empty();
                    read = 0;
                    send(&model.to_worker);
                }
                items
            };
            look();
            while look() < 3 {
                yield_now();
            }
            worker.join().unwrap();
        });
    }

    /// The supervisor reads a chunk under its slot's lock while the driver opens one after the other.
    #[test]
    fn a_thread_that_reads_a_chunk_sees_nothing_of_the_one_before() {
        explore(2, || {
            let model = Model::new();
            model.words.open(2, 1);
            let worker = spawn({
                let model = Arc::clone(&model);
                move || {
                    for (frame, items) in [(1, 2), (2, 1)] {
                        wait_for(&model.to_worker, frame);
                        let claimed = model.words.claim(2);
                        assert!(claimed.end <= items);
                        for item in claimed {
                            assert!(!model.words.is_recalled());
                            model.words.start(item + 1);
                            model.words.commit(Progress { items: item + 1, bytes: 0 });
                        }
                        send(&model.to_parent);
                    }
                }
            });
            let chunk = Arc::new(Mutex::new(0));
            let supervisor = spawn({
                let (model, chunk) = (Arc::clone(&model), Arc::clone(&chunk));
                move || {
                    let items = chunk.lock().unwrap();
                    if *items == 1 {
                        assert!(model.words.started() <= 1 && model.words.progress().items <= 1);
                        assert_eq!(model.words.begun(), 2);
                    }
                }
            });
            send(&model.to_worker);
            wait_for(&model.to_parent, 1);
            model.words.open(1, 2);
            *chunk.lock().unwrap() = 1;
            send(&model.to_worker);
            wait_for(&model.to_parent, 2);
            worker.join().unwrap();
            supervisor.join().unwrap();
            assert_eq!(model.words.progress().items, 1);
        });
    }
}
