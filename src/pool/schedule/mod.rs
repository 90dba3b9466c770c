//! Scheduling: the queue, the slots, and which worker runs what. Code here handles workers as tokens and
//! never communicates with them.

pub(crate) mod admission;
pub(crate) mod batch;
pub(crate) mod cost;
pub(crate) mod counters;
mod dispatch;
pub(crate) mod grown;
mod limiter;
mod one_process;
mod queue;
mod remote;
pub(crate) mod slots;
pub(crate) mod state;
mod submit;
mod workers;
