//! Encodes arguments and contains panics of their `Serialize`.

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

/// Minimum size in bytes from which a vector of primitives or a string is sent through shared memory
/// directly, without encoding: about where that is cheaper than a frame.
pub(crate) const ELEMENTS_FROM: usize = 128 << 10;

thread_local! {
    /// Buffer for encoding single arguments, reused for its capacity.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Maximum capacity of the reused buffer, in bytes.
const SCRATCH_KEPT: usize = 4 << 10;

/// Encodes the argument of a single call and reserves its item, or returns why it can't be encoded. Also
/// returns the argument itself, unless its elements are sent directly: a blocking call keeps it alive,
/// because the task may work on resources it owns.
pub(crate) fn encode_one<A: Serialize>(
    pool: &PoolState,
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
            pool.check_attachments(&attachments)?;
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

/// Reserves an item and fails it immediately, because its argument can't be encoded.
pub(crate) fn fail_unencoded(pool: &PoolState, job: &Job, reason: String) {
    let first = job.reserve(1);
    let kind = TaskErrorKind::Encode { side: ValueSide::Argument, reason };
    let content = Content::Failed(Failure::unstarted(kind));
    pool.counters.failed.fetch_add(1, Relaxed);
    let mut calls = Deferred::default();
    job.deliver(Delivery { first, items: 1, provenance: Provenance::NONE, content }, &mut calls);
    pool.config.observers.fire(calls);
}
