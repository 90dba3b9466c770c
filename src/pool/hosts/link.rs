//! Requests and wake-ups from a pool's threads to the manager of its hosts.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;

use crate::pool::call::job::Job;
use crate::pool::types::HostInfo;
use crate::pool::types::WorkerInfo;

/// A request of the pool.
#[derive(Debug)]
pub(crate) enum Command {
    /// Stop the running items of a call.
    Cancel(Arc<Job>),
    /// Cancel all items that have not started.
    CancelQueued,
    /// Stop or continue the workers.
    Suspend(bool),
    /// A call has ended, and so has the use of its context.
    DropContexts,
}

/// A pool's connection to the manager of its hosts.
#[derive(Debug)]
pub(crate) struct Link {
    /// The number of the pool among those of this process.
    pub(crate) run: u32,
    commands: Mutex<Vec<Command>>,
    waker: Waker,
    /// The last reported state of the other hosts.
    status: Mutex<Status>,
}

/// The other hosts and their workers, as last reported.
#[derive(Debug, Default)]
pub(crate) struct Status {
    pub(crate) hosts: Vec<HostInfo>,
    pub(crate) workers: Vec<WorkerInfo>,
}

impl Link {
    pub(crate) fn new(run: u32, waker: Waker) -> Self {
        Self { run, commands: Mutex::default(), waker, status: Mutex::default() }
    }

    /// Sends a request to the manager.
    pub(crate) fn tell(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        self.waker.wake();
    }

    /// Wakes the manager, because there is work.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// Takes the pool's requests.
    pub(crate) fn commands(&self) -> Vec<Command> {
        std::mem::take(&mut *self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns whether there are requests.
    pub(crate) fn has_commands(&self) -> bool {
        !self.commands.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Calls `f` with the last reported state of the other hosts.
    pub(crate) fn with_status<R>(&self, f: impl FnOnce(&mut Status) -> R) -> R {
        f(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Wakes a thread that sleeps between two polls of its engine. The engine has no descriptor to wait for.
#[derive(Debug, Clone)]
pub(crate) struct Waker {
    thread: Thread,
    asleep: Arc<AtomicBool>,
}

impl Waker {
    /// Creates the waker of the current thread.
    pub(crate) fn of_this_thread() -> Self {
        Self { thread: std::thread::current(), asleep: Arc::default() }
    }

    /// Wakes the thread if it sleeps.
    pub(crate) fn wake(&self) {
        // Ordered after what the caller has stored: the thread stores that it sleeps, then looks once more.
        if self.asleep.swap(false, SeqCst) {
            self.thread.unpark();
        }
    }

    /// Sleeps for up to `limit`, unless `has_news` finds something after others could see that this thread
    /// sleeps. Called on the waker's own thread.
    pub(crate) fn sleep(&self, limit: std::time::Duration, has_news: impl FnOnce() -> bool) {
        self.asleep.store(true, SeqCst);
        if !has_news() {
            std::thread::park_timeout(limit);
        }
        self.asleep.store(false, SeqCst);
    }
}

impl std::task::Wake for Waker {
    fn wake(self: Arc<Self>) {
        Self::wake(&self);
    }
}
