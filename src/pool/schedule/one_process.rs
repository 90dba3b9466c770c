//! The pool of a [`Process`](crate::Process), which has no driver: the caller starts it and sends its call,
//! the supervisor sees to the rest.

use std::sync::{Arc, MutexGuard, PoisonError};

use super::slots::SlotPoll;
use super::state::{Flight, PoolState, Step};
use crate::error::StartError;
use crate::pool::drive::chunk;
use crate::pool::process::worker::PendingWorker;

impl PoolState {
    /// Whether this is the pool of a [`Process`](crate::Process): its threads are the caller, which
    /// starts it and sends its call, and the supervisor, which sees to the rest.
    pub(crate) fn is_of_one_process(&self) -> bool {
        !self.config.replaces
    }

    /// Waits until the process has been started, to be handshake_done.
    pub(crate) fn wait_newborn(&self) -> Result<PendingWorker, StartError> {
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

    /// Sends the call, after which the process is sent nothing more: it answers and ends.
    pub(crate) fn dispatch(&self) {
        let step = self.look(&mut self.central(), 0);
        let Ok(Step::Run { mut worker, turn }) = step else { return self.quit(step.ok()) };
        self.tell_assigned(0);
        let (running, limit) = (&self.slots[0].running, self.inline_limit);
        let observers = Some(&self.config.observers);
        let sent = chunk::send(&mut worker, running, limit, &self.counters, observers);
        worker.hang_up();
        let process = Arc::clone(&worker.process);
        *self.flight() = Some(Flight { worker, turn, sent });
        // It may have ended before there was anything to conclude.
        if process.death().is_some() {
            self.conclude();
        }
    }

    /// Settles the call when the process has ended. All that it has said has arrived by then, so that
    /// nothing is waited for.
    pub(crate) fn conclude(&self) {
        let flight = self.flight().take();
        let Some(Flight { mut worker, turn, sent }) = flight else { return };
        let (running, observers) = (&self.slots[0].running, Some(&self.config.observers));
        let outcome = chunk::finish(&mut worker, running, sent, &self.counters, observers, None);
        self.bring_back(0, worker, turn, outcome);
        let step = self.look(&mut self.central(), 0);
        self.quit(step.ok());
    }

    fn flight(&self) -> MutexGuard<'_, Option<Flight>> {
        self.slots[0].flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the part of the process's driver, which has nothing more to do.
    fn quit(&self, step: Option<Step>) {
        if let Some(Step::Quit(Some(worker))) = step {
            worker.retire();
        }
        self.driver_ended();
    }

    /// Notes whether the supervisor that all processes share has this pool.
    pub(crate) fn set_supervised(&self, is_supervised: bool) {
        self.central().is_supervised = is_supervised;
        self.changed.notify_all();
    }
}
