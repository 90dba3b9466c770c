//! Collects all outcomes of a call in a vector.
//!
//! Numbers of an input whose length is known are written to their places by the drivers; see
//! [`destination`](crate::pool::drive::destination). Other results are decoded here, in order.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use procpool_worker::prefault::Prefault;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::TaskError;
use crate::pool::call::feed::Feed;
use crate::pool::call::job::Job;
use crate::pool::call::outcome::{Content, Delivery};
use crate::pool::drive::destination::Numbers;
use crate::pool::schedule::state::PoolState;

/// Maximum bytes reserved up front for results because the iterator announces many items.
const MAX_AHEAD: usize = 256 << 20;

/// The least number of results that drivers write to their places. Fewer come back in a chunk or two.
const MANY: usize = 4096;

/// Feeds the input and collects all results in input order. Returns the first failure by position.
pub(crate) fn collect<A, R, I>(
    pool: Arc<PoolState>,
    job: Arc<Job>,
    input: I,
) -> Result<Vec<R>, TaskError>
where
    A: Serialize,
    R: DeserializeOwned,
    I: Iterator<Item = A>,
{
    let mut results = Collected::new(&pool, &job, input.size_hint());
    // The window limits items in flight, not results: one slow item must not stop the others, because all
    // results are needed before any is returned.
    job.collects_all.store(true, Relaxed);
    let mut feed = Feed::new(pool, Arc::clone(&job), input);
    feed.may_drive = true;
    loop {
        let window = feed.window();
        results.prepare(feed.read.saturating_add(window));
        feed.fill_within(window);
        // Waking up for fewer costs more than it saves.
        let outstanding = feed.read - feed.taken;
        let deliveries = job.wait_deliveries(outstanding - outstanding / 4);
        if deliveries.is_empty() {
            match feed.ended.take() {
                None => continue,
                Some(Ok(())) => break,
                Some(Err(payload)) => resume_unwind(payload),
            }
        }
        for delivery in deliveries {
            let items = u64::from(delivery.items);
            feed.take(items, delivery.first + items);
            results.put(delivery, job.offset);
        }
    }
    results.finish(feed.read)
}

/// The results so far.
enum Collected<R> {
    InOrder(InOrder<R>),
    InPlace(InPlace<R>),
}

impl<R: DeserializeOwned> Collected<R> {
    fn new(pool: &PoolState, job: &Job, (least, most): (usize, Option<usize>)) -> Self {
        let is_known =
            most == Some(least) && (MANY..=MAX_AHEAD / size_of::<R>().max(1)).contains(&least);
        // Another host's results come as records, and a lost host's items may have been done.
        if is_known
            && pool.link.is_none()
            && let Some(numbers) = Numbers::new(least)
        {
            job.set_destination(Arc::clone(numbers.destination()));
            return Self::InPlace(InPlace {
                numbers,
                capacity: least as u64,
                beyond: BTreeMap::new(),
                failure: None,
            });
        }
        let (results, prefault) = Prefault::new(least.min(MAX_AHEAD / size_of::<R>().max(1)));
        let (early, next, failure) = (BTreeMap::new(), 0, None);
        Self::InOrder(InOrder { results, prefault, early, next, failure })
    }

    /// Prepares memory for the first `items` items, before they are submitted.
    fn prepare(&mut self, items: u64) {
        match self {
            Self::InOrder(_) => {}
            Self::InPlace(results) => results.numbers.prefault(items),
        }
    }

    fn put(&mut self, delivery: Delivery, offset: u64) {
        match self {
            Self::InOrder(results) => results.put(delivery, offset),
            Self::InPlace(results) => results.put(delivery, offset),
        }
    }

    /// Returns all results, of so many items; or the first failure by position.
    fn finish(self, items: u64) -> Result<Vec<R>, TaskError> {
        match self {
            Self::InOrder(InOrder { failure: Some(error), .. })
            | Self::InPlace(InPlace { failure: Some((_, error)), .. }) => Err(error),
            Self::InOrder(InOrder { results, failure: None, .. }) => Ok(results),
            Self::InPlace(InPlace { numbers, beyond, failure: None, .. }) => {
                let mut results = numbers.into_vec(usize::try_from(items).unwrap_or(usize::MAX));
                // Of an input that was longer than it said.
                beyond.into_values().for_each(|mut more| results.append(&mut more));
                Ok(results)
            }
        }
    }
}

/// Results that are decoded in order.
struct InOrder<R> {
    results: Vec<R>,
    prefault: Prefault,
    /// Deliveries that have arrived before their turn.
    early: BTreeMap<u64, Delivery>,
    next: u64,
    failure: Option<TaskError>,
}

impl<R: DeserializeOwned> InOrder<R> {
    fn put(&mut self, delivery: Delivery, offset: u64) {
        self.early.insert(delivery.first, delivery);
        while let Some(delivery) = self.early.remove(&self.next) {
            self.next += u64::from(delivery.items);
            if self.failure.is_none() {
                self.prefault.ensure(&mut self.results, delivery.items as usize);
                self.failure = delivery.drain(offset, &mut self.results).err();
            }
        }
    }
}

/// Numbers, most of which are written by drivers.
struct InPlace<R> {
    numbers: Numbers<R>,
    /// How many items have a place.
    capacity: u64,
    /// Results of items without a place, by the first one's number.
    beyond: BTreeMap<u64, Vec<R>>,
    /// The failure with the least number.
    failure: Option<(u64, TaskError)>,
}

impl<R: DeserializeOwned> InPlace<R> {
    fn put(&mut self, delivery: Delivery, offset: u64) {
        if matches!(delivery.content, Content::Written) {
            return;
        }
        let (first, mut results) = (delivery.first, Vec::with_capacity(delivery.items as usize));
        if let Err(error) = delivery.drain(offset, &mut results) {
            let number = first + results.len() as u64;
            if self.failure.as_ref().is_none_or(|(least, _)| number < *least) {
                self.failure = Some((number, error));
            }
            return;
        }
        // A delivery may be the last with a place and the first without.
        let placed = self.capacity.saturating_sub(first).min(results.len() as u64) as usize;
        let beyond = results.split_off(placed);
        if placed > 0 {
            self.numbers.put(first, &results);
        }
        if !beyond.is_empty() {
            self.beyond.insert(first + placed as u64, beyond);
        }
    }
}
