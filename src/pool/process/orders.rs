//! What is asked of a pool's supervisor, from any thread.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::harden::now;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Signal;

/// What the supervisor is asked for.
#[derive(Debug)]
pub(crate) struct Orders {
    pub(super) signals: Mutex<Vec<Signal>>,
    pub(super) signaled: Condvar,
    pub(super) bell: OwnedFd,
    /// When the supervisor will next look at the time limits, on the monotonic clock.
    pub(super) next_look: AtomicU64,
}

impl Orders {
    pub(crate) fn new() -> std::io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            signals: Mutex::default(),
            signaled: Condvar::new(),
            bell: eventfd(0, flags)?,
            next_look: AtomicU64::new(u64::MAX),
        })
    }

    /// Asks for a look at the time limits at `at`, if none is planned before.
    pub(crate) fn look_by(&self, at: Instant) {
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
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    pub(super) fn silence(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }
}
