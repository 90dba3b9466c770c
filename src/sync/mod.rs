//! Waiting for other processes: [`Lock`], [`Semaphore`], [`Event`] and [`Barrier`].
//!
//! Each is an object in shared memory. A clone is another handle to the same object. A handle can be sent
//! anywhere inside an argument, a result or a message of a [`channel`](crate::channel). The objects have
//! no names in the file system, and killed processes leave none behind.
//!
//! A lock or permit records the process that holds it. If that process dies, a waiter takes it over within
//! milliseconds; [`LockGuard::abandoned_by`] tells the new holder of a lock. Threads of one process exclude
//! each other too, but the end of a thread is not detected: a guard that a thread leaks is held until its
//! process ends.
//!
//! The standard library's `Mutex`, `Condvar` and `Barrier` work only between threads of one process.

mod barrier;
mod event;
mod lock;
mod semaphore;

pub use self::barrier::{Barrier, BarrierError};
pub use self::event::Event;
pub use self::lock::Lock;
pub use self::semaphore::{Permit, Semaphore};
pub use crate::ipc::raw_lock::LockGuard;
