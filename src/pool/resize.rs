//! A pool's driver threads, at its start and when it gets another number of workers.

use std::ops::Range;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, PoisonError};

use crate::error::Error;
use crate::os::signals;
use crate::pool::config::{MAX_WORKERS, STACK};
use crate::pool::drive::driver;
use crate::pool::handle::Pool;
use crate::pool::schedule::state;
use crate::pool::system::check_system;

impl Pool {
    /// Changes the number of workers, under load too. Returns at once.
    ///
    /// New workers start now, or as they are needed in a pool with
    /// [`initial_workers`](crate::PoolBuilder::initial_workers). If there are to be fewer, workers that are idle exit,
    /// and busy ones finish their tasks first. Nothing is lost: queued tasks, and tasks that are bound to a worker by a
    /// [`broadcast`](Self::broadcast), run. [`spares`](crate::PoolBuilder::spares) are kept beside the workers, and an
    /// [`idle_timeout`](crate::PoolBuilder::idle_timeout) goes on. Variables such as `OMP_NUM_THREADS`, which a pool
    /// sets to a worker's share of the CPUs, keep the values of the pool's start.
    ///
    /// Does nothing in a pool that was closed or terminated.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = procpool::Pool::new(2)?;
    /// pool.resize(8)?;
    /// assert_eq!(pool.workers().len(), 8);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if `workers` is 0 or more than 4096, or the pool spans hosts. [`Error::OpenFiles`] or
    /// [`Error::System`] if the system does not allow so many. The pool is unchanged then.
    pub fn resize(&self, workers: usize) -> Result<(), Error> {
        let refuse = |value, remedy| Err(Error::Option { option: "resize", value, remedy });
        let shared = self.shared();
        if workers == 0 {
            return refuse("0".to_owned(), "use at least 1, or suspend the pool");
        }
        if workers > MAX_WORKERS {
            return refuse(workers.to_string(), "use at most 4096");
        }
        if shared.link.is_some() {
            let remedy = "build a pool with workers_on for another number on a host";
            return refuse(format!("{workers} in a pool that spans hosts"), remedy);
        }
        if shared.forked().is_some() {
            return Ok(());
        }
        let _alone = self.resizing().lock().unwrap_or_else(PoisonError::into_inner);
        let (before, slots) = (shared.slots.count(), workers + shared.config.spares);
        let new = slots.saturating_sub(before);
        if new > 0 {
            check_system(new)?;
        }
        let drivers = self.start_drivers(before..before + new)?;
        if shared.resize(workers, new) {
            begin(drivers);
        }
        Ok(())
    }

    /// Starts the drivers of all slots.
    pub(super) fn start_all_drivers(&self) -> Result<(), Error> {
        let slots = self.shared().slots.count();
        let drivers =
            self.start_drivers(0..slots).inspect_err(|_| self.shared().drivers_missing(slots))?;
        begin(drivers);
        Ok(())
    }

    /// Starts the threads of drivers, which [`begin`] with their slots, or end if that is dropped.
    fn start_drivers(&self, slots: Range<usize>) -> Result<Vec<Sender<()>>, Error> {
        let start = |slot| {
            let (begin, begins) = channel::<()>();
            let shared = Arc::clone(self.shared());
            self.start_thread(format!("procpool-{slot}"), move || {
                if begins.recv().is_ok() {
                    driver::drive(&shared, slot);
                }
            })
            .map(|()| begin)
        };
        slots.map(start).collect()
    }

    /// Starts a thread of the pool.
    pub(super) fn start_thread(
        &self,
        name: String,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        let thread = std::thread::Builder::new().name(name).stack_size(STACK);
        let run = move || {
            state::mark_pool_thread();
            run();
        };
        signals::blocked(|| thread.spawn(run))
            .map(|thread| self.add_thread(thread))
            .map_err(Error::system("a thread (clone3)"))
    }
}

/// Lets drivers begin.
fn begin(drivers: Vec<Sender<()>>) {
    for driver in drivers {
        // It waits for this and for nothing else.
        let _ = driver.send(());
    }
}
