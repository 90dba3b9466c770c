//! Collects all outcomes of a call in a vector.

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
use crate::pool::schedule::state::PoolState;

/// Maximum bytes reserved up front for results because the iterator announces many items.
const MAX_AHEAD: usize = 256 << 20;

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
    let (least, _) = input.size_hint();
    let (mut results, mut prefault) = Prefault::new(least.min(MAX_AHEAD / size_of::<R>().max(1)));
    let mut failure: Option<TaskError> = None;
    // The window limits items in flight, not results: one slow item must not stop the others, because all
    // results are needed before any is returned.
    job.collects_all.store(true, Relaxed);
    let mut feed = Feed::new(pool, Arc::clone(&job), input);
    feed.may_drive = true;
    let mut early = BTreeMap::new();
    let mut next = 0;
    loop {
        feed.fill();
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
            early.insert(delivery.first, delivery);
        }
        while let Some(delivery) = early.remove(&next) {
            next += u64::from(delivery.items);
            if failure.is_none() {
                prefault.ensure(&mut results, delivery.items as usize);
                failure = delivery.drain(job.offset, &mut results).err();
            }
        }
    }
    match failure {
        None => Ok(results),
        Some(error) => Err(error),
    }
}
