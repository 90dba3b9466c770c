//! Decides: the queue, the slots, and which worker gets what. A worker is a token here, which nothing talks
//! to.

pub(crate) mod batch;
pub(crate) mod cost;
pub(crate) mod counters;
mod dispatch;
mod limiter;
mod one_process;
pub(crate) mod slots;
pub(crate) mod state;
mod submit;
mod workers;
