//! The context that the items of one call share: encoded once, and sent once to each worker that runs any of
//! them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use procpool_worker::attach::Attachments;
use procpool_worker::protocol::{Body, RegionSlice};
use procpool_worker::{bulk, codec};
use serde::Serialize;

use crate::ipc::memory::SharedMemory;
use crate::pool::call::contain::serialize_panicked;

/// A call's context, encoded.
#[derive(Debug)]
pub(crate) struct Context {
    /// Unique id within this process.
    pub(crate) id: u64,
    pub(crate) body: Body,
    /// Bytes that follow the request in its frame.
    pub(crate) bytes: Vec<u8>,
    /// Region sent before the request. It is sealed: no worker can change what another reads there.
    pub(crate) region: Option<SharedMemory>,
    /// Files that the context refers to.
    pub(crate) attachments: Attachments,
    over: AtomicBool,
}

impl Context {
    /// Encodes `value`. Above `inline_limit` bytes, the encoding is placed in shared memory.
    ///
    /// # Errors
    ///
    /// The reason, if encoding fails.
    pub(crate) fn encode<C: Serialize>(value: &C, inline_limit: usize) -> Result<Self, String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let share = |bytes: &[u8]| {
            let region = SharedMemory::copy_of(bytes)
                .map_err(|error| format!("failed to place it in shared memory: {error}"))?;
            let len = bytes.len() as u64;
            // Each worker receives it once.
            Ok::<_, String>((
                RegionSlice { number: 0, len, is_new: true, is_cached: false },
                Some(region),
            ))
        };
        let mut attachments = Attachments::default();
        let elements = bulk::as_raw_bytes(value).filter(|all| all.len() > inline_limit);
        let (body, bytes, region) = match elements {
            Some(elements) => {
                let (slice, region) = share(elements)?;
                (Body::RawBytes(slice), Vec::new(), region)
            }
            None => {
                let encode = || attachments.collect(|| codec::encode_to_vec(value));
                let bytes = catch_unwind(AssertUnwindSafe(encode))
                    .map_err(serialize_panicked::<C>)?
                    .map_err(|error| error.to_string())?;
                if bytes.len() > inline_limit {
                    let (slice, region) = share(&bytes)?;
                    (Body::Region(slice), Vec::new(), region)
                } else {
                    (Body::Frame, bytes, None)
                }
            }
        };
        let (id, over) = (NEXT.fetch_add(1, Relaxed), AtomicBool::new(false));
        Ok(Self { id, body, bytes, region, attachments, over })
    }

    /// Marks all items of the call as settled.
    pub(crate) fn set_over(&self) {
        self.over.store(true, Relaxed);
    }

    /// Whether all items of the call are settled.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }
}
