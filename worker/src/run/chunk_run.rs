//! Runs the items of a chunk: claims an item, decodes its argument, calls the function, commits the
//! result.
//!
//! The loop itself is instantiated by a [trampoline](super::trampoline) for the argument and result
//! types. Functions from a primitive to a primitive run in a tighter loop ([`ChunkRun::run_bulk`]).
//! What is written into the lane is in `results.rs`.
//!
//! Items are claimed in blocks. While an item takes a few microseconds or more, a block is one item,
//! so that the parent can steal every item that is not running. Tiny items are claimed up to
//! [`MAX_BLOCK`] at once, because a compare-and-swap and a clock read would cost more than the call. If
//! one item of a block is slow, the parent requests that the items behind it be unclaimed.

use std::any::type_name;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::channels::Channels;
use super::context::Context;
use super::region_cache::RegionCache;
use super::{fork_guard, panics, seed, state};
use crate::shm::lane::{Progress, WorkerLane};
use crate::shm::record::Record;
use crate::shm::sys::now;
use crate::wire::error::{CodecError, TransportError};
use crate::wire::protocol::{self, ChunkOptions, Span};
use crate::wire::{bulk, codec};

/// The most items claimed at once. That many of the tiniest items take about [`SHORT_BLOCK`], so the
/// cost of a block is negligible beside theirs.
const MAX_BLOCK: u32 = 256;

/// A block that takes less time, in nanoseconds, doubles the next one: the clock is read once per
/// block, which costs about 25 ns.
const SHORT_BLOCK: u64 = 2_000;

/// A block that takes more time, in nanoseconds, makes the next one a single item.
const LONG_BLOCK: u64 = 20_000;

/// How often, in nanoseconds, a long chunk reports progress when the caller waits for single results.
const PROGRESS_INTERVAL_PROMPT: u64 = 1_000_000;

/// How often it does otherwise: an exchange costs 20 to 50 µs of CPU time.
const PROGRESS_INTERVAL: u64 = 20_000_000;

/// The phase of the running item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// No item runs: the last one is committed.
    Between,
    Decoding,
    Calling,
    Encoding,
}

/// An argument in a region, as raw bytes. The parent may still be copying them into it; see
/// [`wait_argument`](crate::shm::lane::Words::wait_argument).
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawArgument {
    pub(crate) start: *const u8,
    pub(crate) len: usize,
}

/// A chunk while it runs.
#[derive(Debug)]
pub(crate) struct ChunkRun<'a> {
    pub(super) lane: &'a mut WorkerLane,
    pub(super) channels: &'a mut Channels,
    pub(super) regions: &'a mut RegionCache,
    pub(super) sequence: u32,
    /// Whether items are claimed one at a time.
    one_at_a_time: bool,
    /// Whether the end of each item's output is recorded.
    pub(super) capture: bool,
    /// The current span's unused arguments.
    pub(super) arguments: &'a [u8],
    /// Bytes per argument; 0 where each has its length before it.
    width: u32,
    /// The only item's argument, where it was sent as raw bytes.
    raw_argument: Option<RawArgument>,
    /// The call's context, if it has one.
    context: Option<&'a Context>,
    /// Where the open record of primitives starts, if one is open.
    pub(super) open_record: Option<usize>,
    /// Widths of arguments and results while [`run_bulk`](Self::run_bulk) is inside a block. The lane
    /// alone knows its progress then; see [`sync_progress`](Self::sync_progress).
    pub(super) bulk_widths: Option<(usize, usize)>,
    /// The current span's items, counted through the chunk.
    pub(super) span: Range<u32>,
    /// Items that are claimed and not started.
    pub(super) claimed: Range<u32>,
    block: u32,
    pub(super) block_start: u64,
    /// When the parent last received a reply, and how often it must receive one.
    pub(super) last_reply: u64,
    progress_interval: u64,
    pub(super) progress: Progress,
    pub(super) stage: Stage,
    /// Names of the current span's argument and result types.
    pub(super) types: (&'static str, &'static str),
    /// Whether an item failed.
    pub(super) has_failures: bool,
    /// The channel is broken: no further item runs.
    pub(super) error: Option<TransportError>,
}

thread_local! {
    /// The chunk that runs on this thread, for [`ChunkRun::on_abort`].
    static RUNNING: Cell<*mut ()> = const { Cell::new(null_mut()) };
}

impl<'a> ChunkRun<'a> {
    pub(crate) fn new(
        lane: &'a mut WorkerLane,
        channels: &'a mut Channels,
        regions: &'a mut RegionCache,
        options: ChunkOptions,
        capture: bool,
        context: Option<&'a Context>,
        raw_argument: Option<RawArgument>,
    ) -> Self {
        let start = now();
        Self {
            lane,
            channels,
            regions,
            sequence: options.sequence,
            // An item with a time limit is timed alone. Captured output must be attributed to one
            // item.
            one_at_a_time: options.limited || capture,
            capture,
            arguments: &[],
            width: 0,
            raw_argument,
            context,
            open_record: None,
            bulk_widths: None,
            span: 0..0,
            claimed: 0..0,
            block: 1,
            block_start: start,
            last_reply: start,
            progress_interval: match options.prompt {
                true => PROGRESS_INTERVAL_PROMPT,
                false => PROGRESS_INTERVAL,
            },
            progress: Progress { items: 0, bytes: 0 },
            stage: Stage::Between,
            types: ("", ""),
            has_failures: false,
            error: None,
        }
    }

    /// Sets the size of the next block.
    pub(crate) fn set_block(&mut self, items: u32) {
        self.block = if self.one_at_a_time { 1 } else { items };
    }

    /// Resets the block size, for a function that has not been measured.
    pub(crate) fn reset_block(&mut self) {
        self.block = 1;
    }

    /// Returns the size of the next block.
    pub(crate) fn block(&self) -> u32 {
        self.block
    }

    /// Returns whether an item failed.
    pub(crate) fn has_failures(&self) -> bool {
        self.has_failures
    }

    /// Makes `span` the current one.
    pub(crate) fn begin_span(&mut self, span: &Span, arguments: &'a [u8]) {
        self.arguments = arguments;
        self.width = span.width;
        self.span = self.span.end..self.span.end.saturating_add(span.items);
        seed::begin_span(self.lane.words, self.span.start, span.seed);
        state::set_attempt(span.attempt);
    }

    /// Ends the current span.
    ///
    /// # Errors
    ///
    /// When the channel broke while it ran.
    pub(crate) fn end_span(&mut self) -> Result<(), TransportError> {
        seed::end_span();
        self.error.take().map_or(Ok(()), Err)
    }

    /// Returns the call's context. A missing one fails the chunk.
    pub(super) fn context(&mut self) -> Option<&'a Context> {
        if self.context.is_none() {
            let missing = TransportError::Malformed("a call's context was not sent".to_owned());
            self.error = Some(missing);
        }
        self.context
    }

    /// Runs the current span's items, as far as they can be claimed. Calls `function` with each
    /// argument and with what `shared` returns.
    #[inline]
    pub(super) fn run_items<C, A, R>(
        &mut self,
        shared: impl Fn() -> Result<C, CodecError>,
        function: impl Fn(C, A) -> R,
    ) where
        C: Copy,
        A: DeserializeOwned,
        R: Serialize,
    {
        if cfg!(panic = "abort") {
            RUNNING.set(std::ptr::from_mut(self).cast());
        }
        self.types = (type_name::<A>(), type_name::<R>());
        let is_bulk = bulk::fixed_width::<A>() == Some(self.width as usize)
            && bulk::fixed_width::<R>().is_some()
            && !self.capture;
        // One `catch_unwind` covers all items that don't panic: entering it per item would cost one or
        // two nanoseconds. The stage tells which item a panic belongs to.
        while let Err(payload) = catch_unwind(AssertUnwindSafe(|| {
            if is_bulk && let Ok(shared) = shared() {
                // SAFETY: both are primitives, and the arguments are as wide as an `A`.
                return unsafe { self.run_bulk(|argument| function(shared, argument)) };
            }
            while let Some(argument) = self.next() {
                match shared().and_then(|shared| Ok((shared, self.decode::<A>(argument)?))) {
                    Ok((shared, argument)) => {
                        self.stage = Stage::Calling;
                        let result = function(shared, argument);
                        fork_guard::exit_if_forked();
                        self.stage = Stage::Encoding;
                        self.finish(&result);
                    }
                    Err(error) => self.finish_text(Record::Undecodable, &error.to_string()),
                }
            }
        })) {
            self.finish_panicked(panics::take_report(&*payload));
        }
        // The next span's results may have another type.
        self.close_record();
        RUNNING.set(null_mut());
    }

    /// Unclaims the items that are claimed and not started.
    #[cold]
    pub(super) fn unclaim(&mut self) {
        if !self.claimed.is_empty() {
            self.lane.unclaim(self.claimed.start);
            self.claimed.end = self.claimed.start;
            self.block = 1;
        }
    }

    #[inline(always)]
    fn decode<A: DeserializeOwned>(&self, argument: &[u8]) -> Result<A, CodecError> {
        match self.raw_argument {
            None => codec::decode(argument),
            Some(RawArgument { start, len }) => {
                let wait = |bytes: usize| self.lane.wait_argument(bytes as u64);
                // SAFETY: the argument's region is valid for its length while the chunk runs.
                unsafe { bulk::from_raw_bytes(start, len, wait) }
            }
        }
    }

    /// Marks the next item as started and returns its argument. Returns `None` when the span or the
    /// claim is exhausted.
    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.claimed.is_empty() && !self.claim() {
            return None;
        }
        let item = self.claimed.start;
        if item >= self.span.end || self.error.is_some() {
            return None;
        }
        let Some((argument, rest)) = protocol::split_item(self.arguments, self.width) else {
            if self.raw_argument.is_some() {
                self.claimed.start = item + 1;
                self.lane.set_started(item + 1);
                self.stage = Stage::Decoding;
                return Some(&[]);
            }
            self.error = Some(TransportError::Malformed("an argument is cut short".to_owned()));
            return None;
        };
        self.claimed.start = item + 1;
        self.arguments = rest;
        self.lane.set_started(item + 1);
        self.stage = Stage::Decoding;
        Some(argument)
    }

    /// Claims the next block. Returns whether it has items.
    pub(super) fn claim(&mut self) -> bool {
        let block = self.block;
        self.claimed = self.lane.claim(block);
        self.lane.set_block_start(self.block_start);
        !self.claimed.is_empty()
    }

    /// Adapts the block size to the time that the last block took. Returns whether the parent must
    /// receive a progress report.
    pub(super) fn end_block(&mut self, now: u64, took: u64) -> bool {
        self.block_start = now;
        if took > LONG_BLOCK || self.one_at_a_time {
            self.block = 1;
        } else if took < SHORT_BLOCK {
            self.block = (self.block * 2).min(MAX_BLOCK);
        }
        now.saturating_sub(self.last_reply) > self.progress_interval && self.lane.unclaimed() > 0
    }

    /// Commits the panic in a program built with `panic = "abort"`, where the process ends next.
    pub(crate) fn on_abort(report: panics::PanicReport) {
        let run = RUNNING.get().cast::<ChunkRun<'_>>();
        if !run.is_null() {
            // SAFETY: set by `run_items` on this thread while its `ChunkRun` lives. The panic has
            // interrupted that call for good, so nothing else uses the value.
            unsafe { &mut *run }.finish_panicked(report);
        }
    }
}
