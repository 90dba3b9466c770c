//! Keeps the panics of the user's `Serialize` and `Deserialize` to the task whose value it is.

use std::any::{Any, type_name};
use std::panic::{AssertUnwindSafe, catch_unwind};

use procpool_worker::error::CodecError;
use procpool_worker::panics;

use crate::pool::observe::callbacks;

/// Returns the reason why a value could not be encoded, where its `Serialize` panicked.
pub(crate) fn serialize_panicked<A>(payload: Box<dyn Any + Send>) -> String {
    let message = callbacks::defuse(payload);
    format!("`{}`: `Serialize` panicked: {message}", type_name::<A>())
}

/// Decoding runs the user's `Deserialize`, which may panic: that is this task's error.
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
