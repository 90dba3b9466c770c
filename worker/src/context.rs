//! What the items of one call share: sent to a worker once, made at the first item that it runs of
//! the call, and kept until the parent says that the call is over.
//!
//! A [`Context`] holds one value. For `map_with` that is the context itself; for `map_init` it is a
//! [`Workshop`], which makes the state that the items change.

use std::any::{Any, type_name};
use std::cell::{Cell, OnceCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::DeserializeOwned;

use crate::codec::{self, CodecError};
use crate::function::Call;
use crate::region::Frozen;
use crate::{panics, plain};

/// A value as it was sent.
#[derive(Debug)]
pub(crate) enum Source {
    /// Its encoding, from a frame.
    Bytes(Vec<u8>),
    /// Its encoding.
    Region(Frozen),
    /// Its [elements](crate::plain::elements).
    Elements(Frozen),
}

/// One call's context.
pub(crate) struct Context {
    /// Until the value is made.
    source: Cell<Option<Source>>,
    value: OnceCell<Result<Box<dyn Any>, CodecError>>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("value", &self.value).finish_non_exhaustive()
    }
}

impl Context {
    pub(crate) fn new(source: Source) -> Self {
        Self { source: Cell::new(Some(source)), value: OnceCell::new() }
    }

    /// The value, decoded the first time.
    #[inline]
    pub(crate) fn value<C: DeserializeOwned + 'static>(&self) -> Result<&C, CodecError> {
        self.made_by(Source::decode::<C>)
    }

    /// The workshop that makes an `S` by the function that was named.
    #[inline]
    pub(crate) fn workshop<S: 'static>(&self) -> Result<&Workshop<S>, CodecError> {
        self.made_by(|source| {
            let call: Call = source.decode()?;
            let (init, _) = call.resolve().map_err(CodecError::new::<Call>)?;
            // SAFETY: named by `name_init`, as a `fn() -> S`, together with the trampoline that asks for
            // this.
            let init = unsafe { std::mem::transmute::<*const (), fn() -> S>(init) };
            Ok(Workshop { init, state: Cell::new(None) })
        })
    }

    #[inline]
    fn made_by<T: 'static>(
        &self,
        make: impl FnOnce(Source) -> Result<T, CodecError>,
    ) -> Result<&T, CodecError> {
        let value = self.value.get_or_init(|| {
            let source = self.source.take().ok_or_else(|| CodecError::new::<T>("it is gone"))?;
            Ok(Box::new(make(source)?))
        });
        let value = value.as_ref().map_err(CodecError::clone)?;
        value.downcast_ref().ok_or_else(|| CodecError::new::<T>("it is of another type"))
    }
}

impl Source {
    fn decode<C: DeserializeOwned>(self) -> Result<C, CodecError> {
        let decode = AssertUnwindSafe(|| match &self {
            Self::Bytes(bytes) => codec::decode(bytes),
            Self::Region(frozen) => codec::decode(frozen.bytes()),
            Self::Elements(frozen) => {
                let bytes = frozen.bytes();
                // SAFETY: the pointer is that of the slice, which is as long.
                unsafe { plain::from_elements(bytes.as_ptr(), bytes.len()) }
            }
        });
        let decoded = catch_unwind(decode).unwrap_or_else(|payload| {
            let reason = panics::take(&*payload).in_part("`Deserialize`");
            Err(CodecError { type_name: type_name::<C>(), reason })
        });
        decoded.map_err(|error| CodecError {
            reason: format!("the context: {}", error.reason),
            ..error
        })
    }
}

/// Makes the state that a call's items have in a worker, and keeps it between them.
pub(crate) struct Workshop<S> {
    init: fn() -> S,
    state: Cell<Option<Box<S>>>,
}

impl<S> Workshop<S> {
    /// Calls `f` with the state. One that a panic has left behind half changed is not used again.
    #[inline]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut S) -> R) -> R {
        let make = || Box::new(panics::within("`init`", self.init));
        let mut state = self.state.take().unwrap_or_else(make);
        let result = f(&mut state);
        self.state.set(Some(state));
        result
    }
}
