//! Faults of tasks, workers and user code: each costs its own task and no other.

mod faults;
mod hostile;
mod template;
mod timeouts;
mod user_code;
