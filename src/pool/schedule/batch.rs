//! Tasks on their way to a worker: a [`Batch`] is a run of items of one job.

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
    PoolState(Arc<Buffer>),
}

/// How many bytes a batch has room for by itself: a pair of words and their length.
const FEW: usize = 24;

impl Bytes {
    fn get(&self, start: usize, end: usize) -> &[u8] {
        match self {
            Self::Few(bytes) => &bytes[start..end],
            Self::PoolState(bytes) => &bytes[start..end],
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
        let bytes = Bytes::PoolState(Arc::new(arguments));
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
    pub(crate) fn provenance(&self, pid: u32, slot: usize, sent: Instant) -> Provenance {
        let queued = sent.saturating_duration_since(self.queued);
        Provenance { worker: Some(WorkerRef { slot, pid }), attempt: self.attempt, queued }
    }

    /// Ends its items as failed in this way. What is to be called for it is added to `calls`.
    pub(crate) fn fail(
        &self,
        failure: Failure,
        provenance: Provenance,
        counters: &Counters,
        calls: &mut Deferred,
    ) {
        let content = Content::Failed(failure);
        let (first, items) = (self.first, self.items);
        // Counted first: who has seen the failure is to find it counted.
        counters.failed.fetch_add(items.into(), Relaxed);
        if !self.job.deliver(Delivery { first, items, provenance, content }, calls) {
            counters.failed.fetch_sub(items.into(), Relaxed);
        }
    }

    /// Whether it is to be sent alone, since others may wait until what its last argument points to is
    /// let go of. That may be a task in the same worker.
    pub(crate) fn must_be_sent_alone(&self) -> bool {
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
    }
}
