//! [`Semaphore`]: a fixed number of permits.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::atomic::AtomicU64;
use crate::error::Error;
use crate::ipc::eventcount::{EventCount, Probe, deadline};
use crate::ipc::object::Object;
use crate::ipc::owner::Owner;
use crate::ipc::raw_lock::try_acquire;

/// A fixed number of permits, which limits how many processes do something at the same time.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Pool;
/// use procpool::sync::Semaphore;
///
/// fn load((connections, url): (Semaphore, String)) -> usize {
///     let _permit = connections.acquire();
///     url.len() // at most two workers run this line at a time
/// }
///
/// let connections = Semaphore::new(2)?;
/// let urls = ["a", "b", "c"].map(|url| (connections.clone(), url.to_owned()));
/// Pool::new(8)?.map(load, urls)?;
/// # Ok(())
/// # }
/// ```
///
/// A permit belongs to the process that acquired it. If that process dies, the permit becomes available
/// again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Semaphore(Object<EventCount>);

impl Semaphore {
    /// Creates a semaphore with this many permits.
    ///
    /// # Errors
    ///
    /// [`Error::SharedMemory`] if memory (eight bytes per permit) or a file descriptor cannot be allocated.
    pub fn new(permits: usize) -> Result<Self, Error> {
        Object::new(permits.saturating_mul(size_of::<AtomicU64>())).map(Self)
    }

    /// Acquires a permit, and blocks until one is available.
    pub fn acquire(&self) -> Permit<'_> {
        self.acquire_until(None).expect("there is no deadline")
    }

    /// Acquires a permit without blocking. Returns `None` if none is available.
    pub fn try_acquire(&self) -> Option<Permit<'_>> {
        self.try_take(Probe::CheckOwners)
    }

    /// Acquires a permit, and blocks for at most `limit`. Returns `None` if none is available by then.
    pub fn acquire_timeout(&self, limit: Duration) -> Option<Permit<'_>> {
        self.acquire_until(deadline(limit))
    }

    /// Returns how many permits are currently available.
    pub fn available(&self) -> usize {
        let is_free = |owner: &&AtomicU64| {
            Owner::from_word(owner.load(SeqCst)).is_none_or(|owner| !owner.is_alive())
        };
        self.owners().iter().filter(is_free).count()
    }

    fn acquire_until(&self, deadline: Option<Instant>) -> Option<Permit<'_>> {
        self.0.head().wait(deadline, |probe| self.try_take(probe))
    }

    fn try_take(&self, probe: Probe) -> Option<Permit<'_>> {
        take_one(self.owners(), self.0.head(), probe)
    }

    /// Returns the owner words of the permits.
    fn owners(&self) -> &[AtomicU64] {
        self.0.tail(self.0.tail_bytes() / size_of::<AtomicU64>())
    }
}

/// Acquires the first permit that has no owner.
fn take_one<'a>(
    owners: &'a [AtomicU64],
    eventcount: &'a EventCount,
    probe: Probe,
) -> Option<Permit<'a>> {
    let owner = owners.iter().find(|owner| try_acquire(owner, probe).is_some())?;
    Some(Permit { owner, eventcount })
}

/// Holds a permit of a [`Semaphore`]. Dropping it returns the permit.
#[derive(Debug)]
#[must_use = "dropping the permit returns it"]
pub struct Permit<'a> {
    owner: &'a AtomicU64,
    eventcount: &'a EventCount,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.owner.store(0, SeqCst);
        self.eventcount.notify(1);
    }
}

/// Models the code itself, without the shared memory.
#[cfg(all(test, loom))]
mod loom_model {
    use loom::sync::Arc;
    use loom::thread::spawn;

    use super::*;

    #[test]
    fn no_more_threads_than_permits_hold_one_and_none_waits_forever() {
        Owner::own();
        for permits in 1..=2 {
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = Some(2);
            builder.check(move || {
                let owners: Vec<_> = (0..permits).map(|_| AtomicU64::default()).collect();
                let shared = Arc::new((owners, EventCount::default(), AtomicU64::default()));
                let hold = |shared: Arc<(Vec<AtomicU64>, EventCount, AtomicU64)>| {
                    let (owners, eventcount, held) = &*shared;
                    let permit = eventcount.wait(None, |probe| take_one(owners, eventcount, probe));
                    assert!(held.fetch_add(1, SeqCst) < owners.len() as u64);
                    let _ = held.fetch_update(SeqCst, SeqCst, |held| held.checked_sub(1));
                    drop(permit);
                };
                let others = [(); 2].map(|()| {
                    let shared = Arc::clone(&shared);
                    spawn(move || hold(shared))
                });
                hold(Arc::clone(&shared));
                others.into_iter().for_each(|other| other.join().unwrap());
            });
        }
    }
}
