//! Changes to a run while it runs: SIGUSR1 and SIGUSR2, as xargs has them, and the keys of `--top`.

use std::collections::HashSet;

use rustix::process::Signal;

use crate::os::program;
use procpool::{Pool, WorkerState};

/// A change that the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// One worker more.
    More,
    /// One worker fewer.
    Fewer,
    /// Stops the workers and their jobs, or lets them go on.
    Pause,
    /// Sends a signal to the job of the worker with this PID.
    Signal { pid: u32, signal: Signal },
}

/// What the run was changed to.
#[derive(Debug)]
pub(super) struct Control {
    /// How many workers run jobs at once.
    workers: usize,
    pub(super) is_paused: bool,
}

impl Control {
    pub(super) fn of(pool: &Pool) -> Self {
        Self { workers: pool.workers().len(), is_paused: false }
    }

    /// Returns how many workers run jobs at once.
    pub(super) fn workers(&self) -> usize {
        self.workers
    }

    /// Lets a paused run go on, which otherwise could not end.
    pub(super) fn resume(&mut self, pool: &Pool) {
        if std::mem::take(&mut self.is_paused) {
            pool.resume();
        }
    }

    /// Changes the run. Returns what to say about it.
    pub(super) fn change(
        &mut self,
        change: Change,
        pool: &Pool,
        is_command: bool,
    ) -> Option<String> {
        match change {
            Change::More => Some(self.resize(self.workers + 1, pool)),
            Change::Fewer if self.workers == 1 => Some("1 worker is the least".to_owned()),
            Change::Fewer => Some(self.resize(self.workers - 1, pool)),
            Change::Pause => {
                self.is_paused = !self.is_paused;
                if self.is_paused {
                    pool.suspend();
                } else {
                    pool.resume();
                }
                None
            }
            Change::Signal { pid, signal } => {
                // It may have ended since it was shown, and the number be another's.
                let is_busy = |state| state == WorkerState::Busy;
                if pool.workers().iter().any(|worker| worker.pid == pid && is_busy(worker.state)) {
                    signal_job(pid, signal, is_command);
                }
                None
            }
        }
    }

    fn resize(&mut self, workers: usize, pool: &Pool) -> String {
        match pool.resize(workers) {
            Ok(()) => {
                self.workers = workers;
                format!("{workers} worker{} from now on", if workers == 1 { "" } else { "s" })
            }
            Err(error) => format!("the number of workers stays {}: {error}", self.workers),
        }
    }
}

/// Sends a signal to the processes of a job. The work of a built-in task is in the worker itself.
fn signal_job(worker: u32, signal: Signal, is_command: bool) {
    if is_command {
        program::signal_descendants_of(worker, signal, &mut HashSet::new());
    } else if let Some(pid) = rustix::process::Pid::from_raw(worker.cast_signed()) {
        let _ = rustix::process::kill_process(pid, Signal::KILL); // it may just have ended
    }
}
