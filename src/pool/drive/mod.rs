//! Communication with workers. One thread per slot sends frames, reads replies, and accounts for each item of
//! a chunk.

pub(crate) mod buffer;
pub(crate) mod chunk;
pub(crate) mod driver;
pub(crate) mod exchange;
pub(crate) mod loss;
pub(crate) mod notes;
pub(crate) mod parcel;
pub(crate) mod records;
#[allow(unsafe_code)] // Copies into and out of shared memory.
pub(crate) mod regions;
mod report;
