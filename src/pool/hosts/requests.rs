//! Requests of the program's threads to the manager, and its answers.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::sys;

use super::link::{Link, Waker};
use super::remote::Run;
use super::wire::Settings;
use super::{BEAT, IDLE_PAUSE};
use crate::error::Error;
use crate::pool::schedule::state::PoolState;
use crate::worker_ref::HostName;

/// How long the agents may take to send their goodbyes at the end of the program.
pub(super) const LEAVE_LIMIT: Duration = Duration::from_secs(3);

static MANAGER: OnceLock<Handle> = OnceLock::new();

/// How the program's threads reach the manager.
#[derive(Debug)]
pub(super) struct Handle {
    requests: Mutex<Vec<Request>>,
    pub(super) waker: Waker,
    /// The process whose thread it is: a copy made by `fork` has none.
    owner: u32,
    has_ended: AtomicBool,
}

/// A request of the program.
#[derive(Debug)]
pub(super) enum Request {
    /// Open a pool on every host.
    Open { plan: Box<Plan>, reply: SyncSender<Result<Opened, Error>> },
    /// The pool is built, and the manager serves it.
    Attach { link: Arc<Link>, shared: Arc<PoolState> },
    /// The pool couldn't be built.
    Abandon { run: u32 },
    /// The program ends.
    Leave { reply: SyncSender<()> },
}

/// The pool that is to be opened.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// For each host, with its own name, slots and number of workers filled in.
    pub(crate) settings: Settings,
    /// The number of workers for each host; 0 for as many as it has CPUs.
    pub(crate) workers: usize,
    /// The number of workers for hosts with these names.
    pub(crate) workers_on: Vec<(String, usize)>,
}

/// A pool that is open on other hosts.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) link: Arc<Link>,
    pub(crate) own: HostName,
    /// The number of workers on this host, and on all.
    pub(crate) local: usize,
    pub(crate) workers: usize,
}

impl Plan {
    /// Returns how many workers a host gets.
    pub(super) fn workers_of(&self, name: &str, cpus: usize) -> usize {
        let host = name.split('#').next().unwrap_or(name);
        let is_it = |(of, _): &&(String, usize)| of == name || of == host;
        match self.workers_on.iter().rev().find(is_it).map_or(self.workers, |(_, count)| *count) {
            0 => cpus.max(1),
            count => count,
        }
    }
}

/// Opens a pool on the other hosts. `None` if this program runs on one.
pub(crate) fn open(plan: Plan) -> Result<Option<Opened>, Error> {
    /// How much longer than its own limit the manager may take.
    const SLACK: Duration = Duration::from_secs(10);
    let Some(handle) = handle() else { return Ok(None) };
    let limit = plan.settings.start_timeout.saturating_add(SLACK);
    let deadline = Instant::now().checked_add(limit);
    let (reply, opened) = sync_channel(1);
    handle.request(Request::Open { plan: Box::new(plan), reply });
    loop {
        match opened.recv_timeout(BEAT) {
            Ok(opened) => return opened.map(Some),
            Err(RecvTimeoutError::Timeout)
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) =>
            {
                let reason = "MPI did not start within the start timeout: is there a firewall between the hosts?";
                return Err(Error::Hosts { reason: reason.to_owned() });
            }
            Err(RecvTimeoutError::Timeout) if !handle.has_ended.load(SeqCst) => {}
            Err(_) => {
                let reason = "the thread that reaches them has ended".to_owned();
                return Err(Error::Hosts { reason });
            }
        }
    }
}

/// Serves a pool that was opened.
pub(crate) fn attach(link: &Arc<Link>, shared: &Arc<PoolState>) {
    if let Some(handle) = handle() {
        let (link, shared) = (Arc::clone(link), Arc::clone(shared));
        handle.request(Request::Attach { link, shared });
        if handle.has_ended.load(SeqCst) {
            handle.release_pools();
        }
    }
}

/// Closes a pool that was opened and not attached.
pub(crate) fn abandon(run: u32) {
    if let Some(handle) = handle() {
        handle.request(Request::Abandon { run });
    }
}

/// Leaves the agents, at the end of the process. Does not wait long.
pub(crate) fn leave() {
    if let Some(handle) = handle().filter(|handle| !handle.has_ended.load(SeqCst)) {
        let (reply, left) = sync_channel(1);
        handle.request(Request::Leave { reply });
        let _ = left.recv_timeout(2 * LEAVE_LIMIT);
    }
}

#[cfg(test)]
thread_local! {
    /// The manager of the test on this thread.
    pub(super) static OF_TEST: std::cell::Cell<Option<&'static Handle>> = const { std::cell::Cell::new(None) };
}

fn handle() -> Option<&'static Handle> {
    #[cfg(test)]
    if let Some(handle) = OF_TEST.get() {
        return Some(handle);
    }
    MANAGER.get().filter(|handle| handle.owner == sys::own_pid())
}

impl Handle {
    pub(super) fn of_this_thread() -> Self {
        let waker = Waker::of_this_thread();
        let has_ended = AtomicBool::new(false);
        Self { requests: Mutex::default(), waker, owner: sys::own_pid(), has_ended }
    }

    fn request(&self, request: Request) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        self.waker.wake();
    }

    pub(super) fn take(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that the manager has ended. Pools that it won't serve may end.
    pub(super) fn end(&self) {
        self.has_ended.store(true, SeqCst);
        self.release_pools();
    }

    fn release_pools(&self) {
        for request in self.take() {
            if let Request::Attach { link, shared } = request {
                drop(Run::new(link, shared, Vec::new()));
            }
        }
    }

    pub(super) fn has_requests(&self) -> bool {
        !self.requests.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// Registers the current thread as the manager.
pub(super) fn register() -> &'static Handle {
    MANAGER.get_or_init(Handle::of_this_thread)
}

/// Answers every request in place of a manager whose engine didn't start.
pub(super) fn reject_all(handle: &'static Handle, reason: &str) {
    loop {
        for request in handle.take() {
            match request {
                Request::Open { reply, .. } => {
                    let _ = reply.send(Err(Error::Hosts { reason: reason.to_owned() }));
                }
                Request::Leave { reply } => {
                    let _ = reply.send(());
                    return;
                }
                // Nothing was opened.
                Request::Attach { .. } | Request::Abandon { .. } => {}
            }
        }
        handle.waker.sleep(IDLE_PAUSE, || handle.has_requests());
    }
}
