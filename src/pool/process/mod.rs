//! Processes: each worker's handle, the threads that start and reap them, the template process, and one-shot processes.

pub(crate) mod one_shot;
pub(crate) mod preparation;
pub(crate) mod shared_supervisor;
pub(crate) mod supervisor;
pub(crate) mod supervisor_handle;
mod template;
pub(crate) mod worker;
