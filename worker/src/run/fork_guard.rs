//! Ends copies of the worker that a task has forked.
//!
//! A forked process that returns from the task would serve its parent's channel. Two processes must
//! never serve one channel: the lane and the reply belong to the worker.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::shm::sys;

/// The PID of the worker; zero in every other process.
static WORKER_PID: AtomicU32 = AtomicU32::new(0);

/// Records that this process is the worker.
pub(crate) fn set_worker_pid() {
    WORKER_PID.store(sys::own_pid(), Ordering::Relaxed);
}

/// Distinguishes the worker from its forked copies, without a system call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ForkGuard {
    page: Option<&'static AtomicU32>,
    /// The worker's PID; zero where there is none.
    pid: u32,
}

impl ForkGuard {
    #[inline]
    pub(crate) fn new() -> Self {
        Self { page: sys::pid_page(), pid: WORKER_PID.load(Ordering::Relaxed) }
    }

    /// Ends this process if it is a forked copy of the worker. Buffered output is not flushed: the
    /// worker writes it.
    #[inline]
    pub(crate) fn exit_if_forked(self) {
        let pid = self.page.map_or_else(std::process::id, |page| page.load(Ordering::Relaxed));
        if self.pid != 0 && pid != self.pid {
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) };
        }
    }
}

/// Whether this process is a forked copy of the worker.
pub(crate) fn is_forked() -> bool {
    let pid = WORKER_PID.load(Ordering::Relaxed);
    pid != 0 && pid != sys::own_pid()
}

/// Ends this process if it is a forked copy of the worker; see [`ForkGuard::exit_if_forked`].
#[inline]
pub(crate) fn exit_if_forked() {
    ForkGuard::new().exit_if_forked();
}
