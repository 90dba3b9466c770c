//! Communication with workers. One thread per slot sends frames, reads replies, and accounts for each item of
//! a chunk.

pub(crate) mod buffer;
pub(crate) mod chunk;
#[allow(unsafe_code)] // Several threads write to places of one vector.
pub(crate) mod destination;
pub(crate) mod driver;
pub(crate) mod exchange;
#[allow(unsafe_code)] // Copies from shared memory to places of a vector.
mod in_place;
pub(crate) mod loss;
pub(crate) mod notes;
pub(crate) mod parcel;
pub(crate) mod records;
#[allow(unsafe_code)] // Copies into and out of shared memory.
pub(crate) mod regions;
mod report;
