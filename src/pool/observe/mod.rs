//! Observation: events, log records of workers, metrics, and the thread that runs callbacks.

pub(crate) mod callbacks;
pub(crate) mod events;
pub(crate) mod logs;
pub(crate) mod metrics;
#[cfg(feature = "metrics")]
pub(crate) mod published;
