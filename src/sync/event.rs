//! [`Event`]: a flag that processes wait for.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::atomic::AtomicU32;
use crate::error::Error;
use crate::ipc::eventcount::{EventCount, deadline};
use crate::ipc::memory::Atomics;
use crate::ipc::object::Object;

/// A flag that is initially unset, and that any number of processes can wait for.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Pool;
/// use procpool::sync::Event;
///
/// let start = Event::new()?;
/// let pool = Pool::new(4)?;
/// let tasks = pool.map_async(|start: Event| start.wait(), vec![start.clone(); 4]);
/// start.set(); // wakes all four
/// tasks.get()?;
/// # Ok(())
/// # }
/// ```
///
/// An event has no owner, so the death of the process that should set it is not detected. Use
/// [`wait_timeout`](Self::wait_timeout) for that.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event(Object<Head>);

#[derive(Debug)]
#[repr(C)]
struct Head {
    is_set: AtomicU32,
    eventcount: EventCount,
}

// SAFETY: the type consists of atomics.
unsafe impl Atomics for Head {}

impl Event {
    /// Creates an event that is not set.
    ///
    /// # Errors
    ///
    /// [`Error::SharedMemory`] if memory or a file descriptor cannot be allocated.
    pub fn new() -> Result<Self, Error> {
        Object::new(0).map(Self)
    }

    /// Sets the event and wakes all waiters.
    pub fn set(&self) {
        self.0.head().is_set.store(1, SeqCst);
        self.0.head().eventcount.notify(u32::MAX);
    }

    /// Clears the event. Later waits block until the next [`set`](Self::set).
    pub fn clear(&self) {
        self.0.head().is_set.store(0, SeqCst);
    }

    /// Returns whether the event is set.
    pub fn is_set(&self) -> bool {
        self.0.head().is_set.load(SeqCst) != 0
    }

    /// Blocks until the event is set.
    pub fn wait(&self) {
        self.wait_until(None);
    }

    /// Blocks until the event is set, for at most `limit`. Returns whether it is set.
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        self.wait_until(deadline(limit))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> bool {
        self.0.head().eventcount.wait(deadline, |_| self.is_set().then_some(())).is_some()
    }
}
