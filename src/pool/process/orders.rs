//! What is asked of a pool's supervisor, from any thread.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::sys::now;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Signal;

/// What the supervisor is asked for.
#[derive(Debug)]
pub(crate) struct SupervisorHandle {
    pub(super) signals: Mutex<Vec<Signal>>,
    pub(super) signaled: Condvar,
    pub(super) waker: Arc<Waker>,
    /// When the supervisor will next look at the time limits, on the monotonic clock.
    pub(super) next_look: AtomicU64,
}

impl SupervisorHandle {
    /// For a supervisor that this waker wakes.
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self {
            signals: Mutex::default(),
            signaled: Condvar::new(),
            waker,
            next_look: AtomicU64::new(u64::MAX),
        }
    }

    /// Asks for a look at the time limits at `at`, if none is planned before.
    pub(crate) fn schedule_check(&self, at: Instant) {
        let left = at.saturating_duration_since(Instant::now());
        let at = now().saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX));
        if self.next_look.fetch_min(at, Ordering::AcqRel) > at {
            self.ring();
        }
    }

    /// Sends a signal to all workers and to what they have started; returns when that is done.
    pub(crate) fn signal(&self, signal: Signal) {
        let mut signals = self.signals.lock().unwrap_or_else(PoisonError::into_inner);
        signals.push(signal);
        self.ring();
        // A pool that ends meanwhile sends nothing more.
        let sent = |signals: &mut Vec<Signal>| !signals.is_empty();
        let limit = Duration::from_secs(1);
        drop(self.signaled.wait_timeout_while(signals, limit, sent));
    }

    /// Wakes the supervisor.
    pub(crate) fn ring(&self) {
        self.waker.ring();
    }
}

/// Wakes a supervisor's thread.
#[derive(Debug)]
pub(crate) struct Waker(pub(super) OwnedFd);

impl Waker {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn ring(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Forgets that it was rung; to be called before looking for what it was rung for.
    pub(crate) fn drain_eventfd(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}
