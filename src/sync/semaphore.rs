//! A number of permits.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::eventcount::{EventCount, Probe, deadline};
use super::lock::take;
use super::owner::Owner;
use crate::atomic::AtomicU64;
use crate::error::Error;
use crate::shared::object::Object;

/// So many processes at a time: each needs one of a number of permits.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Pool;
/// use procpool::sync::Semaphore;
///
/// fn load((connections, url): (Semaphore, String)) -> usize {
///     let _permit = connections.acquire();
///     url.len() // at most two workers are here at the same time
/// }
///
/// let connections = Semaphore::new(2)?;
/// let urls = ["a", "b", "c"].map(|url| (connections.clone(), url.to_owned()));
/// Pool::new(8)?.map(load, urls)?;
/// # Ok(())
/// # }
/// ```
///
/// A permit belongs to the process that has acquired it. If that dies, somebody who waits for one gets
/// its permit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Semaphore(Object<EventCount>);

impl Semaphore {
    /// A semaphore with so many permits.
    ///
    /// # Errors
    ///
    /// [`Error::SharedMemory`] when the system has no memory (eight bytes for each permit) or no file
    /// descriptor for it.
    pub fn new(permits: usize) -> Result<Self, Error> {
        Object::new(permits.saturating_mul(size_of::<AtomicU64>())).map(Self)
    }

    /// Waits for a permit.
    pub fn acquire(&self) -> Permit<'_> {
        self.acquire_until(None).expect("there is no deadline")
    }

    /// Takes a permit if there is one.
    pub fn try_acquire(&self) -> Option<Permit<'_>> {
        self.take(Probe::CheckOwners)
    }

    /// Waits for a permit for up to `limit`.
    pub fn acquire_timeout(&self, limit: Duration) -> Option<Permit<'_>> {
        self.acquire_until(deadline(limit))
    }

    /// How many permits nobody has at the moment.
    pub fn available(&self) -> usize {
        let is_free = |owner: &&AtomicU64| {
            Owner::from_word(owner.load(SeqCst)).is_none_or(|owner| !owner.is_alive())
        };
        self.owners().iter().filter(is_free).count()
    }

    fn acquire_until(&self, deadline: Option<Instant>) -> Option<Permit<'_>> {
        self.0.head().wait(deadline, |look| self.take(look))
    }

    fn take(&self, look: Probe) -> Option<Permit<'_>> {
        take_one(self.owners(), self.0.head(), look)
    }

    /// Who has each of the permits.
    fn owners(&self) -> &[AtomicU64] {
        self.0.tail(self.0.tail_bytes() / size_of::<AtomicU64>())
    }
}

/// Takes the first permit that no process has.
fn take_one<'a>(
    owners: &'a [AtomicU64],
    eventcount: &'a EventCount,
    look: Probe,
) -> Option<Permit<'a>> {
    let owner = owners.iter().find(|owner| take(owner, look).is_some())?;
    Some(Permit { owner, eventcount })
}

/// Having one of a [`Semaphore`]'s permits; gives it back when it is dropped.
#[derive(Debug)]
#[must_use = "a permit that is dropped is given back"]
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

/// On the code itself, but for the shared memory that the permits lie in.
#[cfg(all(test, loom))]
mod loom_model {
    use loom::sync::Arc;
    use loom::thread::spawn;

    use super::*;

    #[test]
    fn no_more_threads_have_a_permit_than_there_are_and_none_waits_for_ever() {
        Owner::own();
        for permits in 1..=2 {
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = Some(2);
            builder.check(move || {
                let owners: Vec<_> = (0..permits).map(|_| AtomicU64::default()).collect();
                let shared = Arc::new((owners, EventCount::default(), AtomicU64::default()));
                let hold = |shared: Arc<(Vec<AtomicU64>, EventCount, AtomicU64)>| {
                    let (owners, eventcount, held) = &*shared;
                    let permit = eventcount.wait(None, |look| take_one(owners, eventcount, look));
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
