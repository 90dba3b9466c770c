//! Faults of tasks, workers and user code: each costs its own task and no other.

mod faults;
mod hostile;
#[cfg(feature = "sandbox")]
#[allow(clippy::undocumented_unsafe_blocks)] // Plain system calls, which attack.
mod sandbox;
mod template;
mod timeouts;
mod user_code;
