//! Encodes arguments, and contains what the types do meanwhile.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use procpool_worker::attach::Attachments;
use procpool_worker::bulk::RawBytes;
use procpool_worker::protocol::{encode_item, item_width};
use serde::Serialize;

use crate::error::{TaskErrorKind, ValueSide};
use crate::pool::call::contain::serialize_panicked;
use crate::pool::call::job::Job;
use crate::pool::call::outcome::{Content, Delivery, Failure, Provenance};
use crate::pool::observe::events::Deferred;
use crate::pool::schedule::batch::Batch;
use crate::pool::schedule::state::PoolState;

/// From how many bytes on a vector of plain numbers or a string goes through shared memory by itself,
/// without being encoded first: about where that is cheaper than a frame.
pub(crate) const ELEMENTS_FROM: usize = 128 << 10;

thread_local! {
    /// Where single arguments are encoded, kept for its room.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// With more room than this it isn't kept, in bytes.
const SCRATCH_KEPT: usize = 4 << 10;

/// Encodes the argument of a job for one call and enters it, or says why it could not be encoded.
/// Returns the argument as well, unless its elements travel by themselves: a call that waits keeps it
/// meanwhile, since what it owns may be what the task works on.
pub(crate) fn encode_one<A: Serialize>(
    job: &Arc<Job>,
    argument: A,
) -> Result<(Batch, Option<A>), String> {
    let argument = match RawBytes::of(argument, ELEMENTS_FROM) {
        Ok(elements) => {
            return Ok((Batch::of_elements(Arc::clone(job), job.reserve(1), elements), None));
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
            let (job, first) = (Arc::clone(job), job.reserve(1));
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
pub(crate) fn fail_unencoded(pool: &PoolState, job: &Job, reason: String) {
    let first = job.reserve(1);
    let kind = TaskErrorKind::Encode { side: ValueSide::Argument, reason };
    let content = Content::Failed(Failure::unstarted(kind));
    pool.counters.failed.fetch_add(1, Relaxed);
    let mut calls = Deferred::default();
    job.deliver(Delivery { first, items: 1, provenance: Provenance::NONE, content }, &mut calls);
    pool.config.observers.fire(calls);
}
