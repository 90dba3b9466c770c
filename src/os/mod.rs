//! What is asked of the operating system: starting, watching and killing processes, and looking at
//! them. Everything here is Linux's.

pub(crate) mod futex;
pub(crate) mod handle;
pub(crate) mod memory;
pub(crate) mod observe;
pub(crate) mod pipe;
pub(crate) mod process;
pub(crate) mod signals;
