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
        if let Some(elements) = bulk::as_raw_bytes(value).filter(|all| all.len() > inline_limit) {
            return Self::of_elements(elements);
        }
        let mut attachments = Attachments::default();
        let encode = || attachments.collect(|| codec::encode_to_vec(value));
        let bytes = catch_unwind(AssertUnwindSafe(encode))
            .map_err(serialize_panicked::<C>)?
            .map_err(|error| error.to_string())?;
        Ok(Self { attachments, ..Self::of_encoded(bytes, inline_limit)? })
    }

    /// Creates the context that [`encode`](Self::encode) has made elsewhere.
    ///
    /// # Errors
    ///
    /// The reason, if there is no shared memory.
    pub(crate) fn of_encoded(bytes: Vec<u8>, inline_limit: usize) -> Result<Self, String> {
        if bytes.len() <= inline_limit {
            return Ok(Self::with(Body::Frame, bytes, None));
        }
        let (slice, region) = share(&bytes)?;
        Ok(Self::with(Body::Region(slice), Vec::new(), Some(region)))
    }

    /// Creates a context that is a vector with these elements.
    ///
    /// # Errors
    ///
    /// As [`of_encoded`](Self::of_encoded).
    pub(crate) fn of_elements(elements: &[u8]) -> Result<Self, String> {
        let (slice, region) = share(elements)?;
        Ok(Self::with(Body::RawBytes(slice), Vec::new(), Some(region)))
    }

    fn with(body: Body, bytes: Vec<u8>, region: Option<SharedMemory>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (id, over) = (NEXT.fetch_add(1, Relaxed), AtomicBool::new(false));
        Self { id, body, bytes, region, attachments: Attachments::default(), over }
    }

    /// Copies the encoding, or the elements, and says which of them it is: `true` for elements.
    pub(crate) fn copy(&self) -> (bool, Vec<u8>) {
        let bytes = match &self.region {
            None => self.bytes.clone(),
            Some(region) => region.frozen_bytes().unwrap_or_default().to_vec(),
        };
        (matches!(self.body, Body::RawBytes(_)), bytes)
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

/// Copies a context's bytes into shared memory. Each worker receives it once.
fn share(bytes: &[u8]) -> Result<(RegionSlice, SharedMemory), String> {
    let region = SharedMemory::copy_of(bytes)
        .map_err(|error| format!("failed to place it in shared memory: {error}"))?;
    let len = bytes.len() as u64;
    Ok((RegionSlice { number: 0, len, is_new: true, is_cached: false }, region))
}
