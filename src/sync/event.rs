//! A flag to wait for.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::eventcount::{EventCount, deadline};
use crate::atomic::AtomicU32;
use crate::error::Error;
use crate::os::memory::Atomics;
use crate::shared::object::Object;

/// Something that happens once, until it is [cleared](Self::clear), and that any number of processes
/// wait for.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Pool;
/// use procpool::sync::Event;
///
/// let start = Event::new()?;
/// let pool = Pool::new(4)?;
/// let tasks = pool.map_async(|start: Event| start.wait(), vec![start.clone(); 4]);
/// start.set(); // all four go on
/// tasks.get()?;
/// # Ok(())
/// # }
/// ```
///
/// Nobody owns it, so it is not noticed if who should set it dies: [`wait_timeout`](Self::wait_timeout)
/// has a limit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event(Object<Head>);

#[derive(Debug)]
#[repr(C)]
struct Head {
    is_set: AtomicU32,
    eventcount: EventCount,
}

// SAFETY: it is made of atomics.
unsafe impl Atomics for Head {}

impl Event {
    /// One that has not happened.
    ///
    /// # Errors
    ///
    /// [`Error::SharedMemory`] when the system has no memory or no file descriptor for it.
    pub fn new() -> Result<Self, Error> {
        Object::new(0).map(Self)
    }

    /// Has it happen: all who wait go on.
    pub fn set(&self) {
        self.0.head().is_set.store(1, SeqCst);
        self.0.head().eventcount.notify(u32::MAX);
    }

    /// Has it not happened: who waits from now on waits for the next [`set`](Self::set).
    pub fn clear(&self) {
        self.0.head().is_set.store(0, SeqCst);
    }

    /// Whether it has happened.
    pub fn is_set(&self) -> bool {
        self.0.head().is_set.load(SeqCst) != 0
    }

    /// Waits until it has happened.
    pub fn wait(&self) {
        self.wait_until(None);
    }

    /// Waits for up to `limit`, and says whether it has happened.
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        self.wait_until(deadline(limit))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> bool {
        self.0.head().eventcount.wait(deadline, |_| self.is_set().then_some(())).is_some()
    }
}
