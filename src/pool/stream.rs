//! Many items through a pool: [`Feed`] reads the input as it is needed, [`Results`] gives the
//! outcomes as an iterator, and [`collect`] makes a vector of them.
//!
//! Everything happens on the caller's thread, inside of `next`: the input need not be `Send`, it is
//! never read by surprise, and a consumer that stops asking stops everything.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use procpool_worker::attach::Attachments;
use procpool_worker::bulk::{self, RawBytes};
use procpool_worker::prefault::Prefault;
use procpool_worker::protocol::{encode_item, item_width};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Report;
use super::batch::{Batch, Pace};
use super::buffer::Buffer;
use super::callbacks;
use super::chunk;
use super::events::Calls;
use super::job::{Arrival, Content, Failure, Job, Origin, Outcome};
use super::scheduler::Shared;
use crate::error::{DidRun, Side, TaskError, TaskErrorKind};

/// The most bytes of arguments in one batch, which with its head is to be one chunk's body.
const BATCH_BYTES: usize = chunk::MOST_BYTES - (4 << 10);

/// From how many bytes on a batch takes over the buffer that it was encoded in, with all of its room.
const OWN_BUFFER: usize = 32 << 10;

/// From how many bytes on a vector of plain numbers or a string goes through shared memory by itself,
/// without being encoded first: about where that is cheaper than a frame.
const ELEMENTS_FROM: usize = 128 << 10;

/// As long as a batch has fewer items than this, the clock is looked at for each.
const FEW: u32 = 64;

/// How long the reading of a few items may take before they are sent.
const SLOW: Duration = Duration::from_millis(1);

/// The most bytes of arguments that wait, as long as each worker has something.
const WINDOW_BYTES: usize = 64 << 20;

/// The most bytes that are reserved for results because an iterator says that it has many items.
const MOST_AHEAD: usize = 256 << 20;

/// The items of one job on their way from an iterator into the queue.
#[derive(Debug)]
struct Feed<I> {
    input: I,
    job: Arc<Job>,
    pool: Arc<Shared>,
    /// How many items have been read, and how many of their outcomes have been taken.
    read: u64,
    taken: u64,
    /// Bytes of arguments whose batches may still be waiting, by the batch's end.
    waiting: BTreeMap<u64, usize>,
    /// Whether its thread has nothing else to do than to wait for all outcomes.
    may_drive: bool,
    /// The input has ended: of itself, or by a panic.
    ended: Option<Result<(), Box<dyn Any + Send>>>,
    buffer: Buffer,
    /// How much room the last buffer had that a batch has taken over.
    room: usize,
    /// What the arguments in the buffer point to.
    attachments: Attachments,
}

impl<A: Serialize, I: Iterator<Item = A>> Feed<I> {
    fn new(pool: Arc<Shared>, job: Arc<Job>, input: I) -> Self {
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
    fn fill(&mut self) {
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
            if self.read > 0 && !self.job.together.load(Relaxed) && self.job.has_arrivals() {
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
            let first = self.job.enter(items.into());
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
                self.pool.run_here(batch).unwrap_or_else(|batch| self.pool.submit(batch));
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
                let first = self.job.enter(1);
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
        let (job, each) = (&self.job, self.job.pace.least());
        let is_free = job.options.chunk_size.is_none()
            && job.options.timeout.is_none()
            && self.pool.config.max_tasks.is_none();
        is_free && each > 0 && each.saturating_mul(items.into()) <= Pace::WORTHWHILE
    }

    /// Takes note that all items before `end` have been settled.
    fn take(&mut self, items: u64, settled_end: u64) {
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

pub(super) fn serialize_panicked<A>(payload: Box<dyn Any + Send>) -> String {
    let message = callbacks::defuse(payload);
    format!("`{}`: `Serialize` panicked: {message}", std::any::type_name::<A>())
}

thread_local! {
    /// Where single arguments are encoded, kept for its room.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// With more room than this it isn't kept, in bytes.
const SCRATCH_KEPT: usize = 4 << 10;

/// Encodes the argument of a job for one call and enters it, or says why it could not be encoded.
/// Returns the argument as well, unless its elements travel by themselves: a call that waits keeps it
/// meanwhile, since what it owns may be what the task works on.
pub(super) fn encode_one<A: Serialize>(
    job: &Arc<Job>,
    argument: A,
) -> Result<(Batch, Option<A>), String> {
    let argument = match RawBytes::of(argument, ELEMENTS_FROM) {
        Ok(elements) => {
            return Ok((Batch::of_elements(Arc::clone(job), job.enter(1), elements), None));
        }
        Err(argument) => argument,
    };
    let (mut buffer, mut attachments) = (SCRATCH.take(), Attachments::default());
    buffer.clear();
    let encoded =
        catch_unwind(AssertUnwindSafe(|| encode_item(&mut buffer, &mut attachments, &argument)));
    match encoded {
        Ok(Ok(())) => {
            let width = item_width::<A>();
            let (job, first) = (Arc::clone(job), job.enter(1));
            let batch = Batch::new(job, first, 1, width, &buffer, attachments);
            if buffer.capacity() <= SCRATCH_KEPT {
                SCRATCH.set(buffer);
            }
            Ok((batch, Some(argument)))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(payload) => Err(serialize_panicked::<A>(payload)),
    }
}

/// Enters an item and ends it at once, since its argument could not be encoded.
pub(super) fn fail_unencoded(pool: &Shared, job: &Job, reason: String) {
    let first = job.enter(1);
    let kind = TaskErrorKind::Encode { side: Side::Argument, reason };
    let content = Content::Failed(Failure::unstarted(kind));
    pool.counters.failed.fetch_add(1, Relaxed);
    let mut calls = Calls::default();
    job.deliver(Arrival { first, items: 1, origin: Origin::NONE, content }, &mut calls);
    pool.config.observers.fire(calls);
}

/// Sends all of an input's items at once, for a job that is to be waited for later.
pub(super) fn feed_all<A, I>(pool: &Arc<Shared>, job: &Arc<Job>, input: I)
where
    A: Serialize,
    I: Iterator<Item = A>,
{
    /// Enough for a batch to be worth its handling, few enough that it is soon under way.
    const EACH: u64 = 1024;
    job.together.store(true, Relaxed);
    let mut feed = Feed::new(Arc::clone(pool), Arc::clone(job), input);
    while feed.ended.is_none() {
        feed.read_batch(EACH);
    }
    if let Some(Err(payload)) = feed.ended {
        resume_unwind(payload);
    }
}

/// All outcomes in input order.
pub(super) fn collect<A, R, I>(
    pool: Arc<Shared>,
    job: Arc<Job>,
    input: I,
) -> Result<Vec<R>, TaskError>
where
    A: Serialize,
    R: DeserializeOwned,
    I: Iterator<Item = A>,
{
    let (least, _) = input.size_hint();
    let (mut results, mut prefault) = Prefault::new(least.min(MOST_AHEAD / size_of::<R>().max(1)));
    let mut failure: Option<TaskError> = None;
    // The window bounds what is sent ahead, not what has come back: one slow item must not stop the
    // others, since all are wanted before any is given.
    job.together.store(true, Relaxed);
    let mut feed = Feed::new(pool, Arc::clone(&job), input);
    feed.may_drive = true;
    let mut early = BTreeMap::new();
    let mut next = 0;
    loop {
        feed.fill();
        // To be woken for less costs more than it is worth.
        let outstanding = feed.read - feed.taken;
        let arrivals = job.wait_arrivals(outstanding - outstanding / 4);
        if arrivals.is_empty() {
            match feed.ended.take() {
                None => continue,
                Some(Ok(())) => break,
                Some(Err(payload)) => resume_unwind(payload),
            }
        }
        for arrival in arrivals {
            let items = u64::from(arrival.items);
            feed.take(items, arrival.first + items);
            early.insert(arrival.first, arrival);
        }
        while let Some(arrival) = early.remove(&next) {
            next += u64::from(arrival.items);
            if failure.is_none() {
                prefault.ensure(&mut results, arrival.items as usize);
                failure = arrival.drain(&job, &mut results).err();
            }
        }
    }
    match failure {
        None => Ok(results),
        Some(error) => Err(error),
    }
}

/// In which order [`Results`] come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Input,
    Completion,
}

/// Results as an iterator, from [`Pool::imap`](super::Pool::imap) in the input's order, from
/// [`Pool::imap_unordered`](super::Pool::imap_unordered) as they come.
///
/// The input is read as results are taken, a bounded window ahead. Where reading it panics, the
/// earlier results come first, then the panic goes on. Dropping the iterator cancels what is left.
pub struct Results<I: Iterator, R> {
    feed: Feed<I>,
    order: Order,
    current: Option<Arrival>,
    /// What has come before its turn.
    early: BTreeMap<u64, Arrival>,
    /// The number whose turn it is.
    next: u64,
    /// Whether it has been said that this is a copy made by `fork`.
    refused: bool,
    result: std::marker::PhantomData<fn() -> R>,
}

impl<I: Iterator, R> std::fmt::Debug for Results<I, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Results")
            .field("order", &self.order)
            .field("read", &self.feed.read)
            .field("taken", &self.feed.taken)
            .finish_non_exhaustive()
    }
}

impl<A, R, I> Results<I, R>
where
    A: Serialize,
    R: DeserializeOwned,
    I: Iterator<Item = A>,
{
    pub(super) fn new(pool: Arc<Shared>, job: Arc<Job>, input: I, order: Order) -> Self {
        Self {
            feed: Feed::new(pool, job, input),
            order,
            current: None,
            early: BTreeMap::new(),
            next: 0,
            refused: false,
            result: std::marker::PhantomData,
        }
    }

    /// The same, with each result's id, PID, times and attempt.
    pub fn reports(self) -> Reports<I, R> {
        Reports { results: self }
    }

    fn next_outcome(&mut self) -> Option<(Outcome<R>, Origin)> {
        if let Some(kind) = self.feed.pool.forked() {
            if std::mem::replace(&mut self.refused, true) {
                return None;
            }
            let error = TaskError::new(kind, self.next, None, 0, DidRun::No);
            let outcome = Outcome {
                number: self.next,
                elapsed: Duration::ZERO,
                output: Vec::new(),
                result: Err(error),
            };
            return Some((outcome, Origin::NONE));
        }
        loop {
            if let Some(arrival) = &mut self.current {
                let origin = arrival.origin;
                if let Some(outcome) = arrival.next(&self.feed.job) {
                    self.next = self.next.max(outcome.number + 1);
                    self.feed.take(1, outcome.number + 1);
                    return Some((outcome, origin));
                }
            }
            self.feed.fill();
            self.current = match self.order {
                Order::Input => self.early.remove(&self.next),
                Order::Completion => None,
            };
            if self.current.is_some() {
                continue;
            }
            match self.feed.job.wait_arrival() {
                Some(arrival) if self.order == Order::Completion => self.current = Some(arrival),
                Some(arrival) => drop(self.early.insert(arrival.first, arrival)),
                None => match self.feed.ended.take() {
                    None => {}
                    Some(ended) => {
                        self.feed.ended = Some(Ok(()));
                        match ended {
                            Ok(()) => return None,
                            Err(payload) => resume_unwind(payload),
                        }
                    }
                },
            }
        }
    }
}

impl<A, R, I> Iterator for Results<I, R>
where
    A: Serialize,
    R: DeserializeOwned,
    I: Iterator<Item = A>,
{
    type Item = Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_outcome().map(|(outcome, _)| outcome.result)
    }
}

impl<I: Iterator, R> Drop for Results<I, R> {
    fn drop(&mut self) {
        let job = &self.feed.job;
        if self.feed.pool.forked().is_none() && !job.is_done() {
            self.feed.pool.cancel(job);
        }
    }
}

/// Results with all that is known of them, as an iterator; from [`Results::reports`].
#[derive(Debug)]
pub struct Reports<I: Iterator, R> {
    results: Results<I, R>,
}

impl<A, R, I> Iterator for Reports<I, R>
where
    A: Serialize,
    R: DeserializeOwned,
    I: Iterator<Item = A>,
{
    type Item = Report<R>;

    fn next(&mut self) -> Option<Self::Item> {
        let (outcome, origin) = self.results.next_outcome()?;
        Some(Report::new(outcome, origin, &self.results.feed.job))
    }
}
