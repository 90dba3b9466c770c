//! Queued tasks: a [`Batch`] is a run of items of one job.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use procpool_worker::attach::Attachments;
use procpool_worker::bulk::RawBytes;
use procpool_worker::protocol::split_item;
use procpool_worker::seed;

use crate::pool::call::job::Job;
use crate::pool::call::outcome::Content;
use crate::pool::call::outcome::Delivery;
use crate::pool::call::outcome::Failure;
use crate::pool::call::outcome::Provenance;
use crate::pool::drive::buffer::Buffer;
use crate::pool::observe::events::Deferred;
use crate::pool::schedule::counters::Counters;
use crate::worker_ref::WorkerRef;

/// Consecutive items of one job, with their encoded arguments. An item is in exactly one place: a queued
/// batch, the running chunk of one worker, or settled in the job's ledger.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) job: Arc<Job>,
    /// Id of the first item.
    pub(crate) first: u64,
    pub(crate) items: u32,
    /// Attempt number, from 1.
    pub(crate) attempt: u32,
    /// Number of workers that died on this batch before starting any of its items.
    pub(crate) losses: u32,
    pub(crate) queued: Instant,
    /// The only slot that may run it, if it is bound to one.
    pub(crate) slot: Option<usize>,
    /// Bytes of each argument if all have the same size; 0 otherwise.
    pub(crate) width: u32,
    arguments: Arguments,
    /// Files that the arguments refer to.
    attachments: Attachments,
}

/// Encoded arguments: a slice of a shared buffer, so that splitting a batch copies nothing; or the elements
/// of one large argument, sent through a region of the worker.
#[derive(Debug, Clone)]
enum Arguments {
    Bytes { bytes: Bytes, start: usize, end: usize },
    RawBytes(Arc<RawBytes>),
}

/// Bytes of arguments. Most single calls have a few, which need no allocation.
#[derive(Debug, Clone)]
enum Bytes {
    Few([u8; FEW]),
    Shared(Arc<Buffer>),
}

/// Bytes stored inline: two words and their length.
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
    /// Creates a batch of `items` arguments as [`encode_item`](procpool_worker::protocol::encode_item) writes
    /// them: each of `width` bytes or, if `width` is 0, prefixed with its length.
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

    /// Like [`new`](Self::new), but takes over a buffer.
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

    /// Creates a batch of one item whose argument is `elements`.
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
        Self {
            job,
            first,
            items,
            attempt: 1,
            losses: 0,
            queued,
            slot: None,
            width,
            arguments,
            attachments,
        }
    }

    /// Copies the batch for another slot, as new items of the same job.
    pub(crate) fn for_slot(&self, first: u64, slot: usize) -> Self {
        let (job, arguments) = (Arc::clone(&self.job), self.arguments.clone());
        let attachments = self.attachments.clone();
        Self { job, first, slot: Some(slot), arguments, attachments, ..*self }
    }

    /// Returns the encoded arguments; empty if they are elements.
    pub(crate) fn arguments(&self) -> &[u8] {
        match &self.arguments {
            Arguments::Bytes { bytes, start, end } => bytes.get(*start, *end),
            Arguments::RawBytes(_) => &[],
        }
    }

    /// Files that the arguments refer to.
    pub(crate) fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    /// Returns the elements of the only item, if its argument has any.
    pub(crate) fn elements(&self) -> Option<&[u8]> {
        self.shared_elements().map(|elements| elements.as_bytes())
    }

    /// Returns the same, to keep.
    pub(crate) fn shared_elements(&self) -> Option<&Arc<RawBytes>> {
        match &self.arguments {
            Arguments::Bytes { .. } => None,
            Arguments::RawBytes(elements) => Some(elements),
        }
    }

    /// Returns the first item's random state; see [`seed`].
    pub(crate) fn seed(&self) -> u64 {
        seed::advance(self.job.seed, self.first)
    }

    /// Returns the size of the first `items` arguments in bytes.
    fn extent(&self, items: u32) -> usize {
        if self.width > 0 {
            return items as usize * self.width as usize;
        }
        let all = self.arguments();
        let mut rest = all;
        for _ in 0..items {
            rest = split_item(rest, 0).expect("arguments were encoded by this process").1;
        }
        all.len() - rest.len()
    }

    /// Splits off the first `items`, which must be fewer than all.
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

    /// Returns the provenance of outcomes from this worker, for a batch sent at `sent`.
    pub(crate) fn provenance(&self, worker: WorkerRef, sent: Instant) -> Provenance {
        let queued = sent.saturating_duration_since(self.queued);
        Provenance { worker: Some(worker), attempt: self.attempt, queued }
    }

    /// Fails all items. Adds wakers and callbacks to `calls`.
    pub(crate) fn fail(
        &self,
        failure: Failure,
        provenance: Provenance,
        counters: &Counters,
        calls: &mut Deferred,
    ) {
        let content = Content::Failed(failure);
        let (first, items) = (self.first, self.items);
        // Counted first, so that a caller that sees the failure also sees the count.
        counters.failed.fetch_add(items.into(), Relaxed);
        if !self.job.deliver(Delivery { first, items, provenance, content }, calls) {
            counters.failed.fetch_sub(items.into(), Relaxed);
        }
    }

    /// Whether the batch must be sent in its own chunk. Its last argument holds a channel end, and peers wait
    /// for its release: a peer may be a task in the same worker.
    pub(crate) fn must_be_sent_alone(&self) -> bool {
        self.attachments.holds_channel_end()
    }

    /// Returns how many of the first `items` fit in `limit` bytes.
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

/// Splits the last `items` off a run of batches, in order.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use procpool_worker::function::FnRef;
    use procpool_worker::protocol::encode_item;
    use proptest::prelude::*;

    /// Creates a batch of strings, which have length prefixes, or of numbers, which have none.
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

    /// Returns ids and arguments of all items of a run of batches, in order.
    fn items<'a>(batches: impl IntoIterator<Item = &'a Batch>) -> Vec<(u64, Vec<u8>)> {
        let mut items = Vec::new();
        for batch in batches {
            let mut rest = batch.arguments();
            for id in (batch.first..).take(batch.items as usize) {
                let (argument, next) = split_item(rest, batch.width).unwrap();
                items.push((id, argument.to_vec()));
                rest = next;
            }
            assert!(rest.is_empty(), "a batch contains only its own arguments");
        }
        items
    }

    proptest! {
        #[test]
        fn splitting_batches_preserves_items_and_order(
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
        fn fitting_returns_the_largest_count_within_the_limit(
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
    }
}
