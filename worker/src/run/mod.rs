//! A chunk in the worker: claiming items, calling the function, committing results, and what a task
//! can reach while it runs.

#[allow(unsafe_code)] // Reads arguments and writes results by raw pointer.
mod bulk_run;
pub(crate) mod channels;
#[allow(unsafe_code)] // Follows a pointer to the running chunk when the process aborts.
pub(crate) mod chunk_run;
#[allow(unsafe_code)] // Decodes from shared memory; calls a named `fn() -> S`.
pub(crate) mod context;
#[allow(unsafe_code)] // Ends the process without running its destructors.
pub(crate) mod fork_guard;
#[cfg(any(feature = "log", feature = "tracing"))]
pub(crate) mod logs;
pub mod outbox;
pub mod panics;
pub(crate) mod region_cache;
mod results;
pub mod seed;
pub mod state;
#[allow(unsafe_code)] // Turns addresses into functions of the types that they were named with.
pub(crate) mod trampoline;
