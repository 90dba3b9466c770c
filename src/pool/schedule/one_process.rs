//! Scheduling for a [`Process`](crate::Process), whose pool has no driver: the caller's thread starts the
//! process and sends the call, and the supervisor does the rest.

use std::sync::{Arc, MutexGuard, PoisonError};

use super::slots::SlotPoll;
use super::state::{InFlight, PoolState, Step};
use crate::error::StartError;
use crate::pool::drive::exchange;
use crate::pool::process::worker::PendingWorker;

impl PoolState {
    /// Whether this is the pool of a [`Process`](crate::Process), which has no driver.
    pub(crate) fn is_of_one_process(&self) -> bool {
        !self.config.replaces
    }

    /// Blocks until the process has started and is ready for its handshake.
    pub(crate) fn wait_pending_worker(&self) -> Result<PendingWorker, StartError> {
        let mut central = self.central();
        loop {
            if let Some(Err(error)) = &central.first_start {
                return Err(error.clone());
            }
            if let SlotPoll::PendingWorker(pending) = central.slots.poll(0, false) {
                return Ok(pending);
            }
            central = self.changed.wait(central).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sends the call and closes the channel: the process replies and exits.
    pub(crate) fn dispatch(&self) {
        let step = self.poll(&mut self.central(), 0);
        let Ok(Step::Run { mut worker, ticket }) = step else { return self.quit(step.ok()) };
        self.emit_assigned(0);
        let (running, limit) = (&self.slots[0].running, self.inline_limit);
        let observers = Some(&self.config.observers);
        let sent = exchange::send(&mut worker, running, limit, &self.counters, observers);
        worker.hang_up();
        let process = Arc::clone(&worker.process);
        *self.in_flight() = Some(InFlight { worker, ticket, sent });
        // The process may have ended before the flight was stored.
        if process.death().is_some() {
            self.conclude();
        }
    }

    /// Settles the call after the process has ended. All its replies have arrived by then, so this never
    /// blocks.
    pub(crate) fn conclude(&self) {
        let flight = self.in_flight().take();
        let Some(InFlight { mut worker, ticket, sent }) = flight else { return };
        let (running, observers) = (&self.slots[0].running, Some(&self.config.observers));
        let outcome = exchange::finish(&mut worker, running, sent, &self.counters, observers, None);
        self.finish_run(0, worker, ticket, outcome);
        let step = self.poll(&mut self.central(), 0);
        self.quit(step.ok());
    }

    fn in_flight(&self) -> MutexGuard<'_, Option<InFlight>> {
        self.slots[0].in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the caller's thread, in the role of the driver, as finished.
    fn quit(&self, step: Option<Step>) {
        if let Some(Step::Quit(Some(worker))) = step {
            worker.retire();
        }
        self.driver_ended();
    }

    /// Sets whether the shared supervisor has this pool.
    pub(crate) fn set_supervised(&self, is_supervised: bool) {
        self.central().is_supervised = is_supervised;
        self.changed.notify_all();
    }
}
