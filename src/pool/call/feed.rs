//! Feeds the items of a call to a pool. [`Feed`] reads the input as needed;
//! [`Results`](crate::pool::call::results::Results) yields outcomes as an iterator, and
//! [`collect`](crate::pool::call::collect::collect) gathers them in a vector.
//!
//! Everything runs on the caller's thread, inside `next`. The input need not be `Send`, it is never read
//! unexpectedly, and a consumer that stops polling stops the feed.

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
use crate::pool::call::outcome::Delivery;
use crate::pool::drive::buffer::Buffer;
use crate::pool::drive::chunk;
use crate::pool::schedule::batch::Batch;
use crate::pool::schedule::cost::CostEstimate;
use crate::pool::schedule::state::PoolState;

/// Maximum bytes of arguments in a batch, which with its header must fit one chunk's body.
const BATCH_BYTES: usize = chunk::MAX_BODY - (4 << 10);

/// Minimum size in bytes from which a batch takes over the encoding buffer with all of its capacity.
const OWN_BUFFER: usize = 32 << 10;

/// Below this number of items in a batch, the clock is read for each.
const FEW: u32 = 64;

/// How long reading a batch's first items may take before it is sent.
const SLOW: Duration = Duration::from_millis(1);

/// Maximum bytes of queued arguments, if every worker has work; and of results that wait for their turn.
const WINDOW_BYTES: usize = 64 << 20;

/// Feeds the items of one job from an iterator into the queue.
#[derive(Debug)]
pub(crate) struct Feed<I> {
    input: I,
    pub(crate) job: Arc<Job>,
    pub(crate) pool: Arc<PoolState>,
    /// Number of items read, and of outcomes taken.
    pub(crate) read: u64,
    pub(crate) taken: u64,
    /// Outcomes that have arrived and wait for their turn, and their size in bytes.
    early: (u64, usize),
    /// Bytes of arguments in possibly queued batches, by the batch's end.
    waiting: BTreeMap<u64, usize>,
    /// Whether the caller's thread only waits for all outcomes, and so may run a batch inline.
    pub(crate) may_drive: bool,
    /// Set when the input has ended, or panicked.
    pub(crate) ended: Option<Result<(), Box<dyn Any + Send>>>,
    buffer: Buffer,
    /// Capacity of the last buffer that a batch took over.
    last_capacity: usize,
    /// Files that the buffered arguments refer to.
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
            early: (0, 0),
            waiting: BTreeMap::new(),
            may_drive: false,
            ended: None,
            buffer: Buffer::default(),
            last_capacity: 0,
            attachments: Attachments::default(),
        }
    }

    /// Returns how many items may be in flight.
    pub(crate) fn window(&self) -> u64 {
        self.pool.config.window.unwrap_or_else(|| self.pool.window(&self.job))
    }

    /// Reads until the window is full or the input ends.
    pub(crate) fn fill(&mut self) {
        self.fill_within(self.window());
    }

    /// Reads until `window` items are in flight or the input ends. Submits no item from number `read + window` on.
    pub(crate) fn fill_within(&mut self, window: u64) {
        if self.ended.is_some() {
            return;
        }
        // One slow item must not stop the other workers: results that wait for it take up memory, not places.
        let early = match (self.pool.config.window, self.early) {
            (None, (items, bytes)) if bytes <= WINDOW_BYTES => items,
            _ => 0,
        };
        let done = self.taken + early;
        // Refills when a quarter is free, so that batches are worth sending.
        if self.read - done > window - window / 4 {
            return;
        }
        let least = if self.job.options.chunk_size.is_some() { 1 } else { 8 };
        let each = u64::from(self.job.chunk().max(least));
        let workers = self.pool.most_running() as u64;
        while self.ended.is_none() && self.read - done < window {
            if self.read > 0 && !self.job.collects_all.load(Relaxed) && self.job.has_deliveries() {
                // If reading is slow, results that have arrived must not wait for it.
                break;
            }
            let bytes: usize = self.waiting.values().sum();
            if bytes > WINDOW_BYTES && self.read - done >= 2 * workers {
                break;
            }
            let free = window - (self.read - done);
            self.read_batch(free.min(each));
        }
    }

    /// Reads up to `most` items and submits them.
    fn read_batch(&mut self, most: u64) {
        // A closed pool rejects every item. One item is enough to report that, because the input may be
        // infinite.
        let is_open = self.pool.is_open();
        let most = if is_open { most } else { 1 };
        let width = item_width::<A>();
        self.reset_buffer(most, width as usize);
        self.attachments = Attachments::default();
        let began = Instant::now();
        let mut items = 0;
        // Start of the argument being encoded.
        let mut encoding = None;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            while u64::from(items) < most && self.buffer.len() < BATCH_BYTES {
                if width > 0 && items >= FEW {
                    let fitting = (BATCH_BYTES - self.buffer.len()).div_ceil(width as usize);
                    let wanted = fitting.min((most - u64::from(items)) as usize);
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
                if let Err(reason) = self.pool.check_attachments(&self.attachments) {
                    self.buffer.truncate(encoding.unwrap_or(0));
                    return Read::Unencoded(reason);
                }
                encoding = None;
                items += 1;
                // If reading is slow, submit what has been read. A channel end is released with its batch, so
                // it must be the batch's last item.
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
        // Some items may have been read before the input panicked.
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
                self.last_capacity = buffer.capacity();
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

    /// Empties the buffer and reserves capacity: for `most` items of `width` bytes, or as much as the last
    /// buffer had if the width is unknown.
    fn reset_buffer(&mut self, most: u64, width: usize) {
        let capacity = match width {
            0 => self.last_capacity,
            width => {
                let (_, upper) = self.input.size_hint();
                let items =
                    usize::try_from(most).unwrap_or(usize::MAX).min(upper.unwrap_or(usize::MAX));
                items.saturating_mul(width).min(BATCH_BYTES + width)
            }
        };
        self.buffer.clear();
        if self.buffer.capacity() < capacity {
            self.buffer = Buffer::with_capacity(capacity);
        }
    }

    /// Whether `items` items are known to take less than waking a second worker.
    fn is_short(&self, items: u32) -> bool {
        let (job, each) = (&self.job, self.job.cost.least());
        let is_free = job.options.chunk_size.is_none()
            && job.options.timeout.is_none()
            && self.pool.config.max_tasks.is_none();
        is_free && each > 0 && each.saturating_mul(items.into()) <= CostEstimate::MIN_WORTH_A_WAKE
    }

    /// Counts the outcomes of a delivery as waiting for their turn.
    pub(crate) fn keep(&mut self, delivery: &Delivery) {
        self.early.0 += u64::from(delivery.items);
        self.early.1 += delivery.size();
    }

    /// Counts the outcomes of a delivery as waiting no longer.
    pub(crate) fn release(&mut self, delivery: &Delivery) {
        self.early.0 -= u64::from(delivery.items);
        self.early.1 -= delivery.size();
    }

    /// Counts `items` outcomes as taken, and all items before `settled_end` as settled.
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

/// Outcome of reading a batch.
enum Read {
    /// The batch is full.
    More,
    /// The input has ended.
    End,
    /// The input panicked.
    Panicked(Box<dyn Any + Send>),
    /// The next item can't be encoded.
    Unencoded(String),
    /// The next item is large and is sent alone.
    RawBytes(RawBytes),
}

/// Submits all items of an input, for a job whose results are collected later.
pub(crate) fn feed_all<A, I>(pool: &Arc<PoolState>, job: &Arc<Job>, input: I)
where
    A: Serialize,
    I: Iterator<Item = A>,
{
    /// Enough for a batch to be worth its overhead, few enough to start it soon.
    const BATCH_ITEMS: u64 = 1024;
    job.collects_all.store(true, Relaxed);
    let mut feed = Feed::new(Arc::clone(pool), Arc::clone(job), input);
    while feed.ended.is_none() {
        feed.read_batch(BATCH_ITEMS);
    }
    if let Some(Err(payload)) = feed.ended {
        resume_unwind(payload);
    }
}
