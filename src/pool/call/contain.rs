//! Contains panics of user `Serialize` and `Deserialize` code, so that only the affected task fails.

use std::any::{Any, type_name};
use std::panic::{AssertUnwindSafe, catch_unwind};

use procpool_worker::error::CodecError;
use procpool_worker::panics;

use crate::pool::observe::callbacks;

/// Returns the encoding error for a `Serialize` that panicked.
pub(crate) fn serialize_panicked<A>(payload: Box<dyn Any + Send>) -> String {
    let message = callbacks::defuse(payload);
    format!("`{}`: `Serialize` panicked: {message}", type_name::<A>())
}

/// Decodes a value and turns a panic of the user's `Deserialize` into an error.
pub(crate) fn catch_deserialize<R>(
    decode: impl FnOnce() -> Result<R, CodecError>,
) -> Result<R, String> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(decoded) => decoded.map_err(|error| error.to_string()),
        Err(payload) => Err(format!(
            "`{}`: `Deserialize` panicked: {}",
            type_name::<R>(),
            panics::message(&*payload)
        )),
    }
}
