//! Many items through a pool: [`Feed`] reads the input as it is needed, [`Results`] gives the
//! outcomes as an iterator, and [`collect`] makes a vector of them.
//!
//! Everything happens on the caller's thread, inside of `next`: the input need not be `Send`, it is
//! never read by surprise, and a consumer that stops asking stops everything.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use procpool_worker::attach::Attachments;
use procpool_worker::bulk::{self, RawBytes};
use procpool_worker::protocol::{encode_item, item_width};
use serde::Serialize;

use crate::pool::call::contain::serialize_panicked;
use crate::pool::call::encode::{ELEMENTS_FROM, fail_unencoded};
use crate::pool::call::job::Job;
use crate::pool::drive::buffer::Buffer;
use crate::pool::drive::chunk;
use crate::pool::schedule::batch::Batch;
use crate::pool::schedule::cost::CostEstimate;
use crate::pool::schedule::state::PoolState;

/// The most bytes of arguments in one batch, which with its head is to be one chunk's body.
const BATCH_BYTES: usize = chunk::MOST_BYTES - (4 << 10);

/// From how many bytes on a batch takes over the buffer that it was encoded in, with all of its room.
const OWN_BUFFER: usize = 32 << 10;

/// As long as a batch has fewer items than this, the clock is looked at for each.
const FEW: u32 = 64;

/// How long the reading of a few items may take before they are sent.
const SLOW: Duration = Duration::from_millis(1);

/// The most bytes of arguments that wait, as long as each worker has something.
const WINDOW_BYTES: usize = 64 << 20;

/// The items of one job on their way from an iterator into the queue.
#[derive(Debug)]
pub(crate) struct Feed<I> {
    input: I,
    pub(crate) job: Arc<Job>,
    pub(crate) pool: Arc<PoolState>,
    /// How many items have been read, and how many of their outcomes have been taken.
    pub(crate) read: u64,
    pub(crate) taken: u64,
    /// Bytes of arguments whose batches may still be waiting, by the batch's end.
    waiting: BTreeMap<u64, usize>,
    /// Whether its thread has nothing else to do than to wait for all outcomes.
    pub(crate) may_drive: bool,
    /// The input has ended: of itself, or by a panic.
    pub(crate) ended: Option<Result<(), Box<dyn Any + Send>>>,
    buffer: Buffer,
    /// How much room the last buffer had that a batch has taken over.
    room: usize,
    /// What the arguments in the buffer point to.
    attachments: Attachments,
}

impl<A: Serialize, I: Iterator<Item = A>> Feed<I> {
    pub(crate) fn new(pool: Arc<PoolState>, job: Arc<Job>, input: I) -> Self {
        Self {
            input,
            job,
            pool,
            read: 0,
            taken: 0,
            waiting: BTreeMap::new(),
            may_drive: false,
            ended: None,
            buffer: Buffer::default(),
            room: 0,
            attachments: Attachments::default(),
        }
    }

    /// Reads until the window is full or the input ends.
    pub(crate) fn fill(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let window = self.pool.config.window.unwrap_or_else(|| self.pool.window(&self.job));
        let open = self.read - self.taken;
        // Refilled when a quarter is free, so that batches are worth the while.
        if open > window - window / 4 {
            return;
        }
        let least = if self.job.options.chunk_size.is_some() { 1 } else { 8 };
        let each = u64::from(self.job.chunk().max(least));
        let workers = self.pool.config.workers as u64;
        while self.ended.is_none() && self.read - self.taken < window {
            if self.read > 0 && !self.job.collects_all.load(Relaxed) && self.job.has_arrivals() {
                // Where reading is slow, what is there already is not to wait for it.
                break;
            }
            let bytes: usize = self.waiting.values().sum();
            if bytes > WINDOW_BYTES && self.read - self.taken >= 2 * workers {
                break;
            }
            let room = window - (self.read - self.taken);
            self.read_batch(room.min(each));
        }
    }

    /// Reads up to `most` items and sends them.
    fn read_batch(&mut self, most: u64) {
        // A pool that is closed refuses what follows: one item of it is enough to say so, where the
        // input may be endless.
        let is_open = self.pool.is_open();
        let most = if is_open { most } else { 1 };
        let width = item_width::<A>();
        self.make_room(most, width as usize);
        self.attachments = Attachments::default();
        let began = Instant::now();
        let mut items = 0;
        // Where the last argument begins, while it is being encoded.
        let mut encoding = None;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            while u64::from(items) < most && self.buffer.len() < BATCH_BYTES {
                if width > 0 && items >= FEW {
                    let room = (BATCH_BYTES - self.buffer.len()).div_ceil(width as usize);
                    let wanted = room.min((most - u64::from(items)) as usize);
                    let taken = bulk::encode_all(&mut self.buffer, &mut self.input, wanted);
                    items += taken as u32;
                    if taken < wanted {
                        return Read::End;
                    }
                    continue;
                }
                let Some(item) = self.input.next() else { return Read::End };
                let item = match RawBytes::of(item, ELEMENTS_FROM) {
                    Ok(elements) => return Read::RawBytes(elements),
                    Err(item) => item,
                };
                encoding = Some(self.buffer.len());
                if let Err(error) = encode_item(&mut self.buffer, &mut self.attachments, &item) {
                    return Read::Unencoded(error.to_string());
                }
                encoding = None;
                items += 1;
                // Reading may be slow: then what has been read is not to wait. An end is let go of
                // with its batch, so no other item is to be in that.
                if items < FEW && began.elapsed() > SLOW || self.attachments.holds_channel_end() {
                    break;
                }
            }
            Read::More
        }));
        let outcome = match (outcome, encoding) {
            (Ok(outcome), _) => outcome,
            (Err(payload), None) => Read::Panicked(payload),
            (Err(payload), Some(start)) => {
                self.buffer.truncate(start);
                Read::Unencoded(serialize_panicked::<A>(payload))
            }
        };
        // Some may have been taken before the input panicked.
        items = (self.buffer.len() as u32).checked_div(width).unwrap_or(items);
        if items > 0 {
            self.read += u64::from(items);
            let first = self.job.reserve(items.into());
            self.waiting.insert(first + u64::from(items), self.buffer.len());
            let job = Arc::clone(&self.job);
            let attachments = std::mem::take(&mut self.attachments);
            let batch = if self.buffer.len() < OWN_BUFFER {
                Batch::new(job, first, items, width, &self.buffer, attachments)
            } else {
                let buffer = std::mem::take(&mut self.buffer);
                self.room = buffer.capacity();
                Batch::of_buffer(job, first, items, width, buffer, attachments)
            };
            let is_all = first == 0 && matches!(outcome, Read::End);
            if is_all && self.may_drive && self.is_short(items) {
                self.pool.try_run_inline(batch).unwrap_or_else(|batch| self.pool.submit(batch));
            } else {
                self.pool.submit(batch);
            }
        }
        match outcome {
            Read::More => {}
            Read::End => self.ended = Some(Ok(())),
            Read::Panicked(payload) => self.ended = Some(Err(payload)),
            Read::Unencoded(reason) => {
                self.read += 1;
                fail_unencoded(&self.pool, &self.job, reason);
            }
            Read::RawBytes(elements) => {
                self.read += 1;
                self.waiting.insert(self.read, elements.as_bytes().len());
                let first = self.job.reserve(1);
                self.pool.submit(Batch::of_elements(Arc::clone(&self.job), first, elements));
            }
        }
        if !is_open && self.ended.is_none() {
            self.ended = Some(Ok(()));
        }
    }

    /// Empties the buffer, and sees to it that it has room: for `most` items, where each takes so many
    /// bytes; for as much as the last one had, if that is not known.
    fn make_room(&mut self, most: u64, width: usize) {
        let room = match width {
            0 => self.room,
            width => {
                let (_, upper) = self.input.size_hint();
                let items =
                    usize::try_from(most).unwrap_or(usize::MAX).min(upper.unwrap_or(usize::MAX));
                items.saturating_mul(width).min(BATCH_BYTES + width)
            }
        };
        self.buffer.clear();
        if self.buffer.capacity() < room {
            self.buffer = Buffer::with_room(room);
        }
    }

    /// Whether so many items are known to take less than waking up a second worker would.
    fn is_short(&self, items: u32) -> bool {
        let (job, each) = (&self.job, self.job.cost.least());
        let is_free = job.options.chunk_size.is_none()
            && job.options.timeout.is_none()
            && self.pool.config.max_tasks.is_none();
        is_free && each > 0 && each.saturating_mul(items.into()) <= CostEstimate::MIN_WORTH_A_WAKE
    }

    /// Takes note that all items before `end` have been settled.
    pub(crate) fn take(&mut self, items: u64, settled_end: u64) {
        self.taken += items;
        while let Some(first) = self.waiting.first_entry() {
            if *first.key() > settled_end {
                break;
            }
            first.remove();
        }
    }
}

/// What reading a batch has come to.
enum Read {
    /// The batch is full.
    More,
    /// The input has ended.
    End,
    /// Reading the input has panicked.
    Panicked(Box<dyn Any + Send>),
    /// The next item can't be encoded.
    Unencoded(String),
    /// The next item is large and goes by itself.
    RawBytes(RawBytes),
}

/// Sends all of an input's items at once, for a job that is to be waited for later.
pub(crate) fn feed_all<A, I>(pool: &Arc<PoolState>, job: &Arc<Job>, input: I)
where
    A: Serialize,
    I: Iterator<Item = A>,
{
    /// Enough for a batch to be worth its handling, few enough that it is soon under way.
    const EACH: u64 = 1024;
    job.collects_all.store(true, Relaxed);
    let mut feed = Feed::new(Arc::clone(pool), Arc::clone(job), input);
    while feed.ended.is_none() {
        feed.read_batch(EACH);
    }
    if let Some(Err(payload)) = feed.ended {
        resume_unwind(payload);
    }
}
