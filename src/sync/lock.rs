//! [`Lock`]: mutual exclusion that survives the death of its holder.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ipc::object::Object;
use crate::ipc::raw_lock::{LockGuard, RawLock};

/// A mutual exclusion lock between processes.
///
/// Use it to guard something outside of memory, such as a file or the terminal. For numbers in shared memory,
/// use [`SharedValue`](crate::shared::SharedValue) and [`SharedArray`](crate::shared::SharedArray), which
/// have locks of their own.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Pool;
/// use procpool::sync::Lock;
///
/// fn tell((terminal, x): (Lock, u32)) {
///     let _guard = terminal.lock();
///     print!("the square of {x} ");
///     println!("is {}", x * x);
/// }
///
/// let terminal = Lock::new()?;
/// Pool::new(4)?.map(tell, (0..10).map(|x| (terminal.clone(), x)))?;
/// # Ok(())
/// # }
/// ```
///
/// If a process dies or panics while it holds the lock, another process can acquire it, and
/// [`LockGuard::abandoned_by`] returns the PID of the previous holder. The lock is neither recursive nor
/// fair.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lock(Object<RawLock>);

impl Lock {
    /// Creates an unlocked lock.
    ///
    /// # Errors
    ///
    /// [`Error::SharedMemory`] if memory or a file descriptor cannot be allocated.
    pub fn new() -> Result<Self, Error> {
        Object::new(0).map(Self)
    }

    /// Acquires the lock, and blocks until it is free. Deadlocks if this thread already holds it.
    pub fn lock(&self) -> LockGuard<'_> {
        self.0.head().lock()
    }

    /// Acquires the lock without blocking. Returns `None` if it is held.
    pub fn try_lock(&self) -> Option<LockGuard<'_>> {
        self.0.head().try_lock()
    }

    /// Acquires the lock, and blocks for at most `limit`. Returns `None` if it is still held then.
    pub fn lock_timeout(&self, limit: Duration) -> Option<LockGuard<'_>> {
        self.0.head().lock_timeout(limit)
    }
}
