//! The interface to Linux: processes, shared memory, futexes, pipes and signals.

pub(crate) mod closer;
pub(crate) mod futex;
#[cfg(feature = "mpi")]
pub(crate) mod host;
pub(crate) mod observe;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod signals;
