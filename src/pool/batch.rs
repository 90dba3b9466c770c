//! Tasks on their way to a worker: [`Batch`] is a run of items of one job, and [`Pace`] says how
//! many of them are worth sending at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use procpool_worker::attach::Attachments;
use procpool_worker::bulk::RawBytes;
use procpool_worker::protocol::split_item;
use procpool_worker::seed;

use super::buffer::Buffer;
use super::events::Calls;
use super::job::{Arrival, Content, Failure, Job, Origin};
use super::scheduler::Counters;

/// Consecutive items of one job, with their encoded arguments. An item is in exactly one place: in
/// a queued batch, in the running chunk of one worker, or settled in the job's ledger.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) job: Arc<Job>,
    /// Id of the first item.
    pub(crate) first: u64,
    pub(crate) items: u32,
    /// Which attempt this is, from 1.
    pub(crate) attempt: u32,
    /// How many workers have died on it before any of its items was begun.
    pub(crate) losses: u32,
    pub(crate) queued: Instant,
    /// The slot whose worker is to run it, if no other may.
    pub(crate) slot: Option<usize>,
    /// How many bytes each argument takes, if all take the same; 0 otherwise.
    pub(crate) width: u32,
    arguments: Arguments,
    /// What the arguments point to.
    attachments: Attachments,
}

/// Encoded arguments: a part of a shared buffer, so that a batch can be split without copying; or
/// one large argument's elements, which travel in a region of the worker that runs it.
#[derive(Debug, Clone)]
enum Arguments {
    Bytes { bytes: Bytes, start: usize, end: usize },
    RawBytes(Arc<RawBytes>),
}

/// A few bytes, which most single calls have, need no memory of their own.
#[derive(Debug, Clone)]
enum Bytes {
    Few([u8; FEW]),
    Shared(Arc<Buffer>),
}

/// How many bytes a batch has room for by itself: a pair of words and their length.
const FEW: usize = 24;

impl Bytes {
    fn get(&self, start: usize, end: usize) -> &[u8] {
        match self {
            Self::Few(bytes) => &bytes[start..end],
            Self::Shared(bytes) => &bytes[start..end],
        }
    }
}

impl Batch {
    /// `arguments` holds `items` arguments as [`encode_item`](procpool_worker::protocol::encode_item) puts
    /// them, each of `width` bytes or, if that is zero, with its length before it.
    pub(crate) fn new(
        job: Arc<Job>,
        first: u64,
        items: u32,
        width: u32,
        arguments: &[u8],
        attachments: Attachments,
    ) -> Self {
        if arguments.len() > FEW {
            return Self::of_buffer(job, first, items, width, arguments.into(), attachments);
        }
        let mut few = [0; FEW];
        few[..arguments.len()].copy_from_slice(arguments);
        let arguments = Arguments::Bytes { bytes: Bytes::Few(few), start: 0, end: arguments.len() };
        Self::with(job, first, items, width, arguments, attachments)
    }

    /// As [`new`](Self::new), of arguments that are in a buffer already.
    pub(crate) fn of_buffer(
        job: Arc<Job>,
        first: u64,
        items: u32,
        width: u32,
        arguments: Buffer,
        attachments: Attachments,
    ) -> Self {
        let end = arguments.len();
        let bytes = Bytes::Shared(Arc::new(arguments));
        let arguments = Arguments::Bytes { bytes, start: 0, end };
        Self::with(job, first, items, width, arguments, attachments)
    }

    /// One item whose argument has these elements.
    pub(crate) fn of_elements(job: Arc<Job>, first: u64, elements: RawBytes) -> Self {
        let arguments = Arguments::RawBytes(Arc::new(elements));
        Self::with(job, first, 1, 0, arguments, Attachments::default())
    }

    fn with(
        job: Arc<Job>,
        first: u64,
        items: u32,
        width: u32,
        arguments: Arguments,
        attachments: Attachments,
    ) -> Self {
        let queued = Instant::now();
        let (attempt, losses, slot) = (1, 0, None);
        Self { job, first, items, attempt, losses, queued, slot, width, arguments, attachments }
    }

    /// The same for another slot, as other items of the same job.
    pub(crate) fn for_slot(&self, first: u64, slot: usize) -> Self {
        let (job, arguments) = (Arc::clone(&self.job), self.arguments.clone());
        let attachments = self.attachments.clone();
        Self { job, first, slot: Some(slot), arguments, attachments, ..*self }
    }

    /// The encoded arguments; empty where they are elements.
    pub(crate) fn arguments(&self) -> &[u8] {
        match &self.arguments {
            Arguments::Bytes { bytes, start, end } => bytes.get(*start, *end),
            Arguments::RawBytes(_) => &[],
        }
    }

    /// What the arguments point to.
    pub(crate) fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    /// The only item's elements, where its argument has some.
    pub(crate) fn elements(&self) -> Option<&[u8]> {
        match &self.arguments {
            Arguments::Bytes { .. } => None,
            Arguments::RawBytes(elements) => Some(elements.as_bytes()),
        }
    }

    /// The first item's state among those of [`seed`].
    pub(crate) fn seed(&self) -> u64 {
        seed::advance(self.job.seed, self.first)
    }

    /// Bytes in the first `items` arguments.
    fn extent(&self, items: u32) -> usize {
        if self.width > 0 {
            return items as usize * self.width as usize;
        }
        let all = self.arguments();
        let mut rest = all;
        for _ in 0..items {
            rest = split_item(rest, 0).expect("arguments are as they were encoded here").1;
        }
        all.len() - rest.len()
    }

    /// Takes off the first `items`; there must be more than that.
    pub(crate) fn split_front(&mut self, items: u32) -> Self {
        debug_assert!(items < self.items);
        let extent = self.extent(items);
        let mut front = Self {
            job: Arc::clone(&self.job),
            items,
            arguments: self.arguments.clone(),
            attachments: self.attachments.clone(),
            ..*self
        };
        if let (Arguments::Bytes { end, .. }, Arguments::Bytes { start, .. }) =
            (&mut front.arguments, &mut self.arguments)
        {
            *start += extent;
            *end = *start;
        }
        self.first += u64::from(items);
        self.items -= items;
        front
    }

    /// Where its outcomes come from, when it was sent at `sent` to this worker.
    pub(crate) fn origin(&self, pid: u32, slot: usize, sent: Instant) -> Origin {
        let queued = sent.saturating_duration_since(self.queued);
        Origin { pid, slot, attempt: self.attempt, queued }
    }

    /// Ends its items as failed in this way. What is to be called for it is added to `calls`.
    pub(crate) fn fail(
        &self,
        failure: Failure,
        origin: Origin,
        counters: &Counters,
        calls: &mut Calls,
    ) {
        let content = Content::Failed(failure);
        let (first, items) = (self.first, self.items);
        // Counted first: who has seen the failure is to find it counted.
        counters.failed.fetch_add(items.into(), Relaxed);
        if !self.job.deliver(Arrival { first, items, origin, content }, calls) {
            counters.failed.fetch_sub(items.into(), Relaxed);
        }
    }

    /// Whether it is to be sent alone, since others may wait until what its last argument points to is
    /// let go of. That may be a task in the same worker.
    pub(crate) fn is_alone(&self) -> bool {
        self.attachments.holds_channel_end()
    }

    /// How many of the first `items` take up to `limit` bytes.
    pub(crate) fn fitting(&self, items: u32, limit: usize) -> u32 {
        if self.elements().is_some() {
            return 0;
        }
        if items == self.items && self.arguments().len() <= limit {
            return items;
        }
        if self.width > 0 {
            return items.min((limit / self.width as usize) as u32);
        }
        let (mut rest, mut left, mut count) = (self.arguments(), limit, 0);
        while count < items {
            let Some((_, next)) = split_item(rest, 0) else { break };
            let Some(after) = left.checked_sub(rest.len() - next.len()) else { break };
            (rest, left, count) = (next, after, count + 1);
        }
        count
    }
}

/// Takes the last `items` off a run of batches, in order.
pub(crate) fn split_back(batches: &mut VecDeque<Batch>, mut items: u32) -> Vec<Batch> {
    let mut taken = Vec::new();
    while items > 0 {
        let Some(mut last) = batches.pop_back() else { break };
        if last.items > items {
            batches.push_back(last.split_front(last.items - items));
        }
        items -= last.items;
        taken.push(last);
    }
    taken.reverse();
    taken
}

/// How long an item of a function takes, as measured by the workers.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Nanoseconds per item: a moving average, zero as long as nothing is known.
    nanos: AtomicU64,
    /// What they take when nothing holds them up: down at once, up slowly.
    least: AtomicU64,
    /// How many items have been measured.
    seen: AtomicU64,
}

impl Pace {
    /// How long a chunk should take, in nanoseconds. Sending one and waking up for its answer costs
    /// 20 to 50 µs of CPU time, so that this loses some per cent; results are not seen any earlier than
    /// a chunk's end or its first millisecond, whichever is first, so that it isn't felt.
    pub(crate) const CHUNK: u64 = 1_000_000;

    /// The same for a job whose results are wanted together: nobody sees any of them earlier, and the
    /// other workers take back what turns out slow.
    pub(crate) const LONG_CHUNK: u64 = 4_000_000;

    /// What takes less, in nanoseconds, is not worth a chunk of its own, nor another worker: it is done
    /// sooner where it is than somebody else has been woken for it.
    pub(crate) const WORTHWHILE: u64 = 100_000;

    /// What it takes to wake a worker, in nanoseconds.
    const BRISK: u64 = 20_000;

    /// The most items in a chunk that is sized here.
    const MOST: u32 = 1 << 16;

    /// Takes note that `items` took `nanos` together.
    pub(crate) fn observe(&self, items: u64, nanos: u64) {
        if items == 0 {
            return;
        }
        let each = (nanos / items).max(1);
        let before = self.nanos.load(Relaxed);
        // Up at once where the time is worth speaking of: a chunk that is too long holds results back,
        // one that is too short costs a little. Else by how many were measured, against about as many
        // as a quarter of a chunk has: a few items' time may be that of a page fault or a cold cache.
        let next = if before == 0 || (each > before && nanos >= Self::CHUNK / 16) {
            each
        } else {
            let weight = (Self::CHUNK / 4 / before).max(1);
            let sum = before.saturating_mul(weight).saturating_add(nanos);
            (sum / weight.saturating_add(items)).max(1)
        };
        self.nanos.store(next, Relaxed);
        let least = match self.least.load(Relaxed) {
            0 => each,
            least => each.min((least * 7 + each).div_ceil(8)).min(least * 2),
        };
        self.least.store(least, Relaxed);
        self.seen.fetch_add(items, Relaxed);
    }

    /// Whether an item is sooner done than a worker is woken for it, as far as that is known.
    pub(crate) fn is_brisk(&self) -> bool {
        (1..Self::BRISK).contains(&self.least.load(Relaxed))
    }

    /// How many items to send at once, to take so many nanoseconds: one to begin with, and never many
    /// more than have been measured, since the first ones need not be like the others.
    pub(crate) fn chunk(&self, goal: u64) -> u32 {
        let (nanos, seen) = (self.nanos.load(Relaxed), self.seen.load(Relaxed));
        if nanos == 0 {
            return 1;
        }
        let worth = (goal / nanos).clamp(1, Self::MOST.into());
        worth.min(4 * seen) as u32
    }

    /// As [`nanos`](Self::nanos), when nothing holds them up.
    pub(crate) fn least(&self) -> u64 {
        self.least.load(Relaxed)
    }

    /// How many items are [worth](Self::WORTHWHILE) a chunk of their own.
    pub(crate) fn worthwhile(&self) -> u32 {
        match self.least() {
            0 => 1,
            least => u32::try_from(Self::WORTHWHILE / least).unwrap_or(u32::MAX),
        }
    }

    /// Nanoseconds per item, zero if not known.
    pub(crate) fn nanos(&self) -> u64 {
        self.nanos.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use procpool_worker::function::FnRef;
    use procpool_worker::protocol::encode_item;
    use proptest::prelude::*;

    /// A batch of texts, whose arguments have lengths before them, or of numbers, which have none.
    fn batch(texts: &[String], numbers: bool) -> Batch {
        let mut arguments = Vec::new();
        for text in texts {
            if numbers {
                encode_item(&mut arguments, &mut Attachments::default(), &(text.len() as u32))
                    .unwrap();
            } else {
                encode_item(&mut arguments, &mut Attachments::default(), text).unwrap();
            }
        }
        let call = FnRef::NOWHERE;
        let job = Job::new(Ok(call), Default::default(), Default::default(), 0, None, 0);
        let width = if numbers { 4 } else { 0 };
        Batch::new(job, 100, texts.len() as u32, width, &arguments, Attachments::default())
    }

    /// Ids and arguments of all items of a run of batches, in order.
    fn items<'a>(batches: impl IntoIterator<Item = &'a Batch>) -> Vec<(u64, Vec<u8>)> {
        let mut items = Vec::new();
        for batch in batches {
            let mut rest = batch.arguments();
            for id in (batch.first..).take(batch.items as usize) {
                let (argument, next) = split_item(rest, batch.width).unwrap();
                items.push((id, argument.to_vec()));
                rest = next;
            }
            assert!(rest.is_empty(), "a batch holds its own arguments and no others");
        }
        items
    }

    proptest! {
        #[test]
        fn however_batches_are_split_each_item_stays_what_and_where_it_was(
            texts in prop::collection::vec(".{0,6}", 1..40),
            numbers in any::<bool>(),
            cuts in prop::collection::vec((any::<bool>(), 1u32..12), 0..12),
        ) {
            let whole = batch(&texts, numbers);
            let expected = items([&whole]);
            let (mut front, mut middle, mut back) = (Vec::new(), VecDeque::from([whole]), Vec::new());
            for (from_the_front, count) in cuts {
                if from_the_front {
                    if let Some(first) = middle.front_mut().filter(|first| first.items > count) {
                        front.push(first.split_front(count));
                    }
                } else {
                    let taken = split_back(&mut middle, count);
                    prop_assert!(taken.iter().map(|batch| batch.items).sum::<u32>() <= count);
                    back.splice(0..0, taken);
                }
            }
            prop_assert_eq!(items(front.iter().chain(&middle).chain(&back)), expected);
        }

        #[test]
        fn what_is_said_to_fit_does_and_no_less_is_said(
            texts in prop::collection::vec(".{0,6}", 1..40),
            numbers in any::<bool>(),
            wanted in 1u32..50,
            limit in 0usize..400,
        ) {
            let mut batch = batch(&texts, numbers);
            let wanted = wanted.min(batch.items);
            let fitting = batch.fitting(wanted, limit);
            prop_assert!(fitting <= wanted);
            prop_assert!(batch.extent(fitting) <= limit);
            prop_assert!(fitting == wanted || batch.extent(fitting + 1) > limit);
            if fitting > 0 && fitting < batch.items {
                prop_assert!(batch.split_front(fitting).arguments().len() <= limit);
            }
        }

        #[test]
        fn a_chunk_starts_at_one_item_and_never_outgrows_what_was_measured(
            observations in prop::collection::vec((1u64..5000, 0u64..10_000_000_000), 0..30)
        ) {
            let pace = Pace::default();
            prop_assert_eq!(pace.chunk(Pace::CHUNK), 1);
            let mut seen = 0;
            for (items, nanos) in observations {
                pace.observe(items, nanos);
                seen += items;
                let chunk = u64::from(pace.chunk(Pace::CHUNK));
                prop_assert!(chunk >= 1 && chunk <= 4 * seen && chunk <= Pace::MOST.into());
                prop_assert!(chunk == 1 || chunk * pace.nanos() <= Pace::CHUNK);
            }
        }
    }
}
