//! What calls, pools, workers and processes promise.

mod async_calls;
mod basics;
mod contexts;
mod entry;
mod fairness;
mod growth;
mod in_place;
mod lifecycle;
mod limits;
#[cfg(all(feature = "log", feature = "tracing"))]
mod logs;
mod process;
mod resize;
#[cfg(all(feature = "metrics", feature = "tracing"))]
mod services;
mod streams;
mod tasks;
mod updates;
mod workers;
