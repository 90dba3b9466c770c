//! The callers' side, which knows the types. Encodes and feeds arguments; collects and decodes results.

pub(crate) mod collect;
pub(crate) mod completion;
pub(crate) mod contain;
pub(crate) mod context;
pub(crate) mod emitted;
pub(crate) mod encode;
pub(crate) mod feed;
pub(crate) mod job;
pub(crate) mod ledger;
#[allow(unsafe_code)] // Decodes results from memory that a worker may be writing.
pub(crate) mod outcome;
pub(crate) mod results;
pub(crate) mod scope;
pub(crate) mod task;
pub(crate) mod updates;
