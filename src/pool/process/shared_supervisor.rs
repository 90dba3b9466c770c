//! The thread that supervises all [`Process`](crate::Process)es of this program. It starts with the first of
//! them and exits with the last, so a program without any has neither the thread nor its descriptors.
//!
//! The thread never blocks on a single process: the spawning thread sends the call, and the outcome is
//! collected when the process has ended.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::error::Error;
use crate::os::process::PerProcess;
use crate::os::signals;
use crate::pool::config::STACK;
use crate::pool::process::supervisor::{self, Supervisor};
use crate::pool::process::supervisor_handle::{SupervisorHandle, Waker};
use crate::pool::schedule::state::{self, PoolState};

/// Descriptors of a supervisor thread.
#[derive(Debug)]
pub(crate) struct SupervisorFds {
    pub(crate) waker: Arc<Waker>,
    /// The workers' end of the liveness pipe.
    pub(crate) reader: Arc<OwnedFd>,
    pub(crate) writer: OwnedFd,
}

impl SupervisorFds {
    pub(crate) fn new() -> Result<Self, Error> {
        let waker = Waker::new().map_err(Error::system("eventfd2, to wake its supervisor"))?;
        let (reader, writer) =
            std::io::pipe().map_err(Error::system("pipe2, for the liveness pipe"))?;
        let reader = Arc::new(reader.into());
        Ok(Self { waker: Arc::new(waker), reader, writer: writer.into() })
    }
}

/// The shared supervisor of all current processes.
#[derive(Debug)]
struct SharedSupervisor {
    fds: SupervisorFds,
    /// Pools that the thread does not supervise yet.
    added: Mutex<Vec<Arc<PoolState>>>,
    /// Whether no other pool will be added.
    is_over: AtomicBool,
}

impl SharedSupervisor {
    fn added(&self) -> MutexGuard<'_, Vec<Arc<PoolState>>> {
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the thread.
    fn run(&self) {
        state::mark_pool_thread();
        let mut supervisors = Vec::new();
        loop {
            self.fds.waker.drain_eventfd();
            // Read before `added`: a pool added before the end must still be supervised.
            let is_over = self.is_over.load(Ordering::Acquire);
            supervisors.extend(self.added().drain(..).map(Supervisor::new));
            let wake = supervisor::work(&mut supervisors);
            if is_over && supervisors.is_empty() {
                return;
            }
            supervisor::sleep(&mut supervisors, &self.fds.waker, wake);
        }
    }
}

/// The current supervisor, if any.
static CURRENT: PerProcess<Mutex<Option<Current>>> = PerProcess::new();

#[derive(Debug)]
struct Current {
    supervisor: Arc<SharedSupervisor>,
    members: usize,
    thread: JoinHandle<()>,
}

/// A process's membership in the shared supervisor. Dropping the last one ends the supervisor.
#[derive(Debug)]
pub(crate) struct Membership {
    of: &'static Mutex<Option<Current>>,
    supervisor: Arc<SharedSupervisor>,
}

impl Membership {
    /// Joins the supervisor, and starts it if there is none.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread or a descriptor.
    pub(crate) fn join() -> Result<Self, Error> {
        let of = CURRENT.get();
        let mut current = of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = &mut *current {
            current.members += 1;
            return Ok(Self { of, supervisor: Arc::clone(&current.supervisor) });
        }
        let (added, is_over) = (Mutex::default(), AtomicBool::new(false));
        let supervisor = Arc::new(SharedSupervisor { fds: SupervisorFds::new()?, added, is_over });
        let run = {
            let supervisor = Arc::clone(&supervisor);
            move || supervisor.run()
        };
        let thread = std::thread::Builder::new().name("procpool-process".to_owned());
        let thread = signals::blocked(|| thread.stack_size(STACK).spawn(run))
            .map_err(Error::system("a thread (clone3)"))?;
        *current = Some(Current { supervisor: Arc::clone(&supervisor), members: 1, thread });
        Ok(Self { of, supervisor })
    }

    /// Returns the workers' end of the liveness pipe.
    pub(crate) fn liveness_pipe(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.supervisor.fds.reader)
    }

    /// Returns a handle on the supervisor for a pool.
    pub(crate) fn supervisor(&self) -> SupervisorHandle {
        SupervisorHandle::new(Arc::clone(&self.supervisor.fds.waker))
    }

    /// Hands the pool's process to the supervisor, which starts and reaps it.
    pub(crate) fn supervise(&self, shared: &Arc<PoolState>) {
        shared.set_supervised(true);
        self.supervisor.added().push(Arc::clone(shared));
        self.supervisor.fds.waker.wake();
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // In a forked copy, the supervisor belongs to the original process.
        if !std::ptr::eq(self.of, CURRENT.get()) {
            return;
        }
        let mut current = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut last) = current.take() else { return };
        last.members -= 1;
        if last.members > 0 {
            *current = Some(last);
            return;
        }
        drop(current);
        last.supervisor.is_over.store(true, Ordering::Release);
        last.supervisor.fds.waker.wake();
        // A thread that pools need for shutdown must not wait. The supervisor exits by itself.
        if !state::is_pool_thread() {
            let _ = last.thread.join();
        }
    }
}
