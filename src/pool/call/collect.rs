//! Makes a vector of all outcomes of a call.

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

/// The most bytes that are reserved for results because an iterator says that it has many items.
const MOST_AHEAD: usize = 256 << 20;

/// All outcomes in input order.
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
    let (mut results, mut prefault) = Prefault::new(least.min(MOST_AHEAD / size_of::<R>().max(1)));
    let mut failure: Option<TaskError> = None;
    // The window bounds what is sent ahead, not what has come back: one slow item must not stop the
    // others, since all are wanted before any is given.
    job.collects_all.store(true, Relaxed);
    let mut feed = Feed::new(pool, Arc::clone(&job), input);
    feed.may_drive = true;
    let mut early = BTreeMap::new();
    let mut next = 0;
    loop {
        feed.fill();
        // To be woken for less costs more than it is worth.
        let outstanding = feed.read - feed.taken;
        let deliveries = job.wait_arrivals(outstanding - outstanding / 4);
        if deliveries.is_empty() {
            match feed.ended.take() {
                None => continue,
                Some(Ok(())) => break,
                Some(Err(payload)) => resume_unwind(payload),
            }
        }
        for arrival in deliveries {
            let items = u64::from(arrival.items);
            feed.take(items, arrival.first + items);
            early.insert(arrival.first, arrival);
        }
        while let Some(arrival) = early.remove(&next) {
            next += u64::from(arrival.items);
            if failure.is_none() {
                prefault.ensure(&mut results, arrival.items as usize);
                failure = arrival.drain(job.offset, &mut results).err();
            }
        }
    }
    match failure {
        None => Ok(results),
        Some(error) => Err(error),
    }
}
