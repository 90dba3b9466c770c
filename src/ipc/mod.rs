//! The primitives in shared memory that channels, shared values and locks stand on.

pub(crate) mod eventcount;
pub(crate) mod handle;
pub(crate) mod memory;
pub(crate) mod object;
pub(crate) mod owner;
pub(crate) mod raw_lock;
