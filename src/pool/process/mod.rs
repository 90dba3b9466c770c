//! The processes: each worker's handle, the thread that starts and reaps them, and the process for one call.

pub(crate) mod common;
pub(crate) mod one_shot;
pub(crate) mod orders;
pub(crate) mod supervisor;
pub(crate) mod worker;
