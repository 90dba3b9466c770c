//! Values, channels, shared memory and locks between processes.

mod channels;
mod payloads;
mod sharing;
mod sync;
