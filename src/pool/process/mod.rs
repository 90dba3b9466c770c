//! Processes: each worker's handle, the thread that starts and reaps them, and one-shot processes.

pub(crate) mod one_shot;
pub(crate) mod preparation;
pub(crate) mod shared_supervisor;
pub(crate) mod supervisor;
pub(crate) mod supervisor_handle;
mod template;
pub(crate) mod worker;
