//! A call's context: what its items share. The worker receives it once, decodes it at the call's first
//! item, and keeps it until the parent ends the call.
//!
//! A [`Context`] holds one value. For `map_with` that is the context itself; for `map_init` it is a
//! [`CallState`], which creates the state that the items change.

use std::any::{Any, type_name};
use std::cell::{Cell, OnceCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::DeserializeOwned;

use super::panics;
use crate::shm::region::Frozen;
use crate::wire::attach::Received;
use crate::wire::error::CodecError;
use crate::wire::function::InitRef;
use crate::wire::{bulk, codec};

/// A value in the form that it was sent in.
#[derive(Debug)]
pub(crate) enum Source {
    /// The encoding, from a frame.
    Bytes(Vec<u8>),
    /// The encoding, in a region.
    Region(Frozen),
    /// The [raw bytes](crate::wire::bulk::as_raw_bytes), in a region.
    RawBytes(Frozen),
}

/// One call's context.
pub(crate) struct Context {
    /// The encoded value and the files that it refers to, until it is decoded: at the first item, which may be
    /// in a later chunk.
    source: Cell<Option<(Source, Received)>>,
    value: OnceCell<Result<Box<dyn Any>, CodecError>>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("value", &self.value).finish_non_exhaustive()
    }
}

impl Context {
    pub(crate) fn new(source: Source, files: Received) -> Self {
        Self { source: Cell::new(Some((source, files))), value: OnceCell::new() }
    }

    /// Returns the value. Decodes it on the first call.
    #[inline]
    pub(crate) fn value<C: DeserializeOwned + 'static>(&self) -> Result<&C, CodecError> {
        self.get_or_decode(Source::decode::<C>)
    }

    /// Returns the state holder for an `S`, which the function that the context references creates.
    #[inline]
    pub(crate) fn call_state<S: 'static>(&self) -> Result<&CallState<S>, CodecError> {
        self.get_or_decode(|source| {
            let call: InitRef = source.decode()?;
            let (init, _) = call.0.resolve().map_err(CodecError::new::<InitRef>)?;
            // SAFETY: referenced by `FnRef::task_init`, as a `fn() -> S`, with the trampoline that calls
            // this method for `S`.
            let init = unsafe { std::mem::transmute::<*const (), fn() -> S>(init) };
            Ok(CallState { init, state: Cell::new(None) })
        })
    }

    #[inline]
    fn get_or_decode<T: 'static>(
        &self,
        make: impl FnOnce(Source) -> Result<T, CodecError>,
    ) -> Result<&T, CodecError> {
        let value = self.value.get_or_init(|| {
            let (source, files) =
                self.source.take().ok_or_else(|| CodecError::new::<T>("it was decoded before"))?;
            Ok(Box::new(files.decode(|| make(source))?))
        });
        let value = value.as_ref().map_err(CodecError::clone)?;
        value.downcast_ref().ok_or_else(|| CodecError::new::<T>("it has another type"))
    }
}

impl Source {
    fn decode<C: DeserializeOwned>(self) -> Result<C, CodecError> {
        let decode = AssertUnwindSafe(|| match &self {
            Self::Bytes(bytes) => codec::decode(bytes),
            Self::Region(frozen) => codec::decode(frozen.bytes()),
            Self::RawBytes(frozen) => {
                let bytes = frozen.bytes();
                // SAFETY: a slice is valid for its length.
                unsafe { bulk::from_raw_bytes(bytes.as_ptr(), bytes.len(), |_| ()) }
            }
        });
        let decoded = catch_unwind(decode).unwrap_or_else(|payload| {
            let reason = panics::take_report(&*payload).prefixed("`Deserialize`");
            Err(CodecError { type_name: type_name::<C>(), reason })
        });
        decoded.map_err(|error| CodecError {
            reason: format!("the context: {}", error.reason),
            ..error
        })
    }
}

/// Creates the state that a call's items have in a worker, and keeps it between them.
pub(crate) struct CallState<S> {
    init: fn() -> S,
    state: Cell<Option<Box<S>>>,
}

impl<S> CallState<S> {
    /// Calls `f` with the state. A state that a panic has left half changed is not used again.
    #[inline]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut S) -> R) -> R {
        let make = || Box::new(panics::with_origin("`init`", self.init));
        let mut state = self.state.take().unwrap_or_else(make);
        let result = f(&mut state);
        self.state.set(Some(state));
        result
    }
}
