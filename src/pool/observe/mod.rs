//! Tells what happens: events, and the thread that callbacks run on.

pub(crate) mod callbacks;
pub(crate) mod events;
