//! Requests to a pool's supervisor, from any thread.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::sys::now;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Signal;

/// Handle on a supervisor thread.
#[derive(Debug)]
pub(crate) struct SupervisorHandle {
    pub(super) signals: Mutex<Vec<Signal>>,
    pub(super) signaled: Condvar,
    pub(super) waker: Arc<Waker>,
    /// When the supervisor next checks the time limits, in nanoseconds of the monotonic clock.
    pub(super) next_check: AtomicU64,
}

impl SupervisorHandle {
    /// Creates a handle on the supervisor that `waker` wakes.
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self {
            signals: Mutex::default(),
            signaled: Condvar::new(),
            waker,
            next_check: AtomicU64::new(u64::MAX),
        }
    }

    /// Schedules a check of the time limits at `at`, unless an earlier one is scheduled.
    pub(crate) fn schedule_check(&self, at: Instant) {
        let left = at.saturating_duration_since(Instant::now());
        let at = now().saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX));
        if self.next_check.fetch_min(at, Ordering::AcqRel) > at {
            self.wake();
        }
    }

    /// Sends a signal to all workers and their child processes. Blocks until it is sent.
    pub(crate) fn signal(&self, signal: Signal) {
        let mut signals = self.signals.lock().unwrap_or_else(PoisonError::into_inner);
        signals.push(signal);
        self.wake();
        // A pool that ends meanwhile sends nothing.
        let sent = |signals: &mut Vec<Signal>| !signals.is_empty();
        let limit = Duration::from_secs(1);
        drop(self.signaled.wait_timeout_while(signals, limit, sent));
    }

    /// Wakes the supervisor.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }
}

/// Wakes a supervisor thread through an eventfd.
#[derive(Debug)]
pub(crate) struct Waker(pub(super) OwnedFd);

impl Waker {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn wake(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Clears the eventfd. Must be called before checking for requests.
    pub(crate) fn drain_eventfd(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}
