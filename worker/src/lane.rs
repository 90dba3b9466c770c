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
//! are looked at, and no reference into the region is ever made, only atomics and raw copies.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::bell::Bell;
use crate::codec::Sink;
use crate::copy;
use crate::region::Region;

/// Size of a lane in bytes. Large enough that a chunk of tiny results is worth its frame, small
/// enough that touching all of it when a worker starts costs little (about 30 µs).
pub const LANE_BYTES: usize = 256 << 10;

// Each word that one side writes and the other reads often has a cache line of its own.
const CLAIM: usize = 0;
const COMMITTED: usize = 64;
const STARTED: usize = 128;
const BEGUN: usize = 136;
const NOTE: usize = 144;
const RECALL: usize = 192;
const REQUESTS: usize = 256;
const REPLIES: usize = 320;
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

/// One shared region, seen from either side.
#[derive(Debug)]
pub struct Lane {
    base: *mut u8,
    region: Region,
}

// SAFETY: `base` points into the mapping that `region` owns for as long as the lane lives. The words
// are only touched as atomics; who may touch the results when is said at each method.
unsafe impl Send for Lane {}
// SAFETY: as above.
unsafe impl Sync for Lane {}

impl Lane {
    /// Sees a region as a lane, or gives it back if it is too small for one.
    ///
    /// # Errors
    ///
    /// The region, when its size is not that of a lane.
    pub fn new(region: Region) -> Result<Self, Region> {
        if region.len() != LANE_BYTES {
            return Err(region);
        }
        Ok(Self { base: region.as_ptr(), region })
    }

    /// The region, to be sent to the peer.
    pub fn region(&self) -> &Region {
        &self.region
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: `at` is one of the offsets above, inside the region and aligned since the region
        // is mapped at a page; the peer too touches it as an atomic only.
        unsafe { AtomicU64::from_ptr(self.base.add(at).cast()) }
    }

    #[inline]
    fn started_word(&self) -> &AtomicU32 {
        // SAFETY: as in `word`.
        unsafe { AtomicU32::from_ptr(self.base.add(STARTED).cast()) }
    }

    /// What the parent rings.
    pub fn requests(&self) -> Bell<'_> {
        Bell::new(self.word(REQUESTS))
    }

    /// What the worker rings.
    pub fn replies(&self) -> Bell<'_> {
        Bell::new(self.word(REPLIES))
    }

    // The parent's side.

    /// Prepares for a chunk of `items`, whose first block counts as begun `now`. The worker must be
    /// waiting for a frame.
    pub fn open(&self, items: u32, now: u64) {
        self.word(BEGUN).store(now, Ordering::Relaxed);
        self.word(COMMITTED).store(0, Ordering::Relaxed);
        self.started_word().store(0, Ordering::Relaxed);
        self.word(RECALL).store(0, Ordering::Relaxed);
        self.word(CLAIM).store(pack(0, items), Ordering::Release);
    }

    /// Asks the worker to put back what it has claimed and not begun, if it has any such items.
    pub fn recall(&self) {
        let (front, _) = unpack(self.word(CLAIM).load(Ordering::Acquire));
        if front > self.started() {
            self.word(RECALL).store(1, Ordering::Release);
        }
    }

    /// Takes back up to `max` items that are not started, from the end; gives their range.
    pub fn take_back(&self, max: u32) -> Range<u32> {
        let mut taken = 0..0;
        let _ = self.word(CLAIM).fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let (front, end) = unpack(word);
            let from = front.max(end.saturating_sub(max));
            taken = from..end;
            (from < end).then(|| pack(front, from))
        });
        if taken.is_empty() { 0..0 } else { taken }
    }

    /// How many items are not started.
    pub fn unstarted(&self) -> u32 {
        let (front, end) = unpack(self.word(CLAIM).load(Ordering::Acquire));
        end.saturating_sub(front)
    }

    /// What the worker has committed. Not to be trusted.
    pub fn progress(&self) -> Progress {
        let (items, bytes) = unpack(self.word(COMMITTED).load(Ordering::Acquire));
        Progress { items, bytes }
    }

    /// How many items the worker says it has begun. Not to be trusted.
    pub fn started(&self) -> u32 {
        self.started_word().load(Ordering::Acquire)
    }

    /// When the running block of items began, in nanoseconds of the monotonic clock. Not to be
    /// trusted.
    pub fn begun(&self) -> u64 {
        self.word(BEGUN).load(Ordering::Acquire)
    }

    /// What the worker has noted about its end. Not to be trusted.
    pub fn note(&self) -> Option<Note> {
        match self.word(NOTE).load(Ordering::Acquire) as u32 {
            note if note == Note::OutOfMemory as u32 => Some(Note::OutOfMemory),
            _ => None,
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
        unsafe { copy::append_from(to, self.base.add(RESULTS + range.start), range.len()) };
    }

    /// Makes all room free again: the worker, which waits to be resumed, starts at the front.
    pub fn empty(&self) {
        let (items, _) = unpack(self.word(COMMITTED).load(Ordering::Acquire));
        self.word(COMMITTED).store(pack(items, 0), Ordering::Release);
    }

    // The worker's side.

    /// Where a [`Note`] is left: valid as long as the lane is.
    pub fn note_word(&self) -> *mut u64 {
        self.word(NOTE).as_ptr()
    }

    /// Claims up to `block` items from the front.
    pub fn claim(&self, block: u32) -> Range<u32> {
        let mut claimed = 0..0;
        let _ = self.word(CLAIM).fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let (front, end) = unpack(word);
            claimed = front..end.min(front.saturating_add(block));
            (front < end).then(|| pack(claimed.end, end))
        });
        if claimed.is_empty() { 0..0 } else { claimed }
    }

    /// Whether the parent wants claimed items back.
    #[inline]
    pub fn is_recalled(&self) -> bool {
        self.word(RECALL).load(Ordering::Relaxed) != 0
    }

    /// Puts back what was claimed from item `from` on, none of which has begun.
    pub fn unclaim(&self, from: u32) {
        self.word(RECALL).store(0, Ordering::Relaxed);
        let _ = self.word(CLAIM).fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let (front, end) = unpack(word);
            (from < front).then(|| pack(from, end))
        });
    }

    /// Says that a block of items begins at `now`.
    pub fn begin(&self, now: u64) {
        self.word(BEGUN).store(now, Ordering::Release);
    }

    /// Says that items up to but not including `items` have begun.
    #[inline]
    pub fn start(&self, items: u32) {
        self.started_word().store(items, Ordering::Release);
    }

    /// Says that `progress` is finished and valid.
    #[inline]
    pub fn commit(&self, progress: Progress) {
        self.word(COMMITTED).store(pack(progress.items, progress.bytes), Ordering::Release);
    }

    /// A place to write results at, from byte `at` on, keeping `spare` bytes of the end free.
    #[inline]
    pub fn writer(&self, at: usize, spare: usize) -> LaneWriter<'_> {
        let room = CAPACITY.saturating_sub(spare);
        LaneWriter { lane: self, start: at, at: at.min(room), room, spilled: Vec::new() }
    }

    /// Where byte `at` of the results lies, with room for `len` bytes: what isn't committed is the
    /// worker's to write.
    #[inline]
    pub fn room(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at + len <= CAPACITY, "results are only written where there is room");
        // SAFETY: inside the region, as was just checked.
        unsafe { self.base.add(RESULTS + at) }
    }

    /// Writes `bytes` at byte `at` of the results, if they fit.
    #[inline]
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let to = self.room(at, bytes.len());
        // SAFETY: there is room for them, and what is not committed is the worker's.
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

/// Writes one value into the lane, or, as soon as it is found not to fit, onto the heap.
#[derive(Debug)]
pub struct LaneWriter<'a> {
    lane: &'a Lane,
    start: usize,
    at: usize,
    room: usize,
    spilled: Vec<u8>,
}

impl LaneWriter<'_> {
    /// The end of what was written, or all of the value if it didn't fit.
    #[inline]
    pub fn finish(self) -> Result<usize, Vec<u8>> {
        if self.spilled.is_empty() { Ok(self.at) } else { Err(self.spilled) }
    }
}

impl Sink for LaneWriter<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        if self.spilled.is_empty() && bytes.len() <= self.room - self.at {
            self.lane.write(self.at, bytes);
            self.at += bytes.len();
            return;
        }
        if self.spilled.is_empty() {
            self.lane.copy_results(self.start..self.at, &mut self.spilled);
            self.at = self.room;
        }
        self.spilled.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lane(items: u32) -> Lane {
        let lane = Lane::new(Region::new(LANE_BYTES, 0).unwrap()).unwrap();
        lane.open(items, 0);
        lane
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
        fn step(&mut self, lane: &Lane, block: u32) {
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
    fn play(items: u32, block: u32, moves: &[Move]) -> (Worker, Vec<Range<u32>>, Lane) {
        let (lane, mut worker, mut taken) = (lane(items), Worker::default(), Vec::new());
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
    fn check(items: u32, (worker, taken, lane): &(Worker, Vec<Range<u32>>, Lane), moves: &[Move]) {
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
        let (lane, mut worker) = (lane(8), Worker::default());
        worker.step(&lane, 8);
        worker.step(&lane, 8);
        assert_eq!((lane.started(), lane.unstarted()), (1, 0));
        lane.recall();
        worker.step(&lane, 8);
        assert_eq!(lane.take_back(u32::MAX), 1..8);
    }

    #[test]
    fn claimed_and_taken_back_at_once_an_item_is_had_by_one() {
        let lane = lane(100_000);
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
        let lane = lane(1);
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
        let lane = lane(1);
        let mut to = Vec::new();
        lane.copy_results(0..CAPACITY + 1, &mut to);
        #[allow(clippy::reversed_empty_ranges)]
        lane.copy_results(5..4, &mut to);
        assert!(to.is_empty());
        assert!(Record::parse(u32::MAX.to_le_bytes()).is_some_and(|(_, len)| len > LANE_BYTES));
    }
}
