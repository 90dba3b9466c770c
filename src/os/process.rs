//! Starting, watching and killing one worker process.
//!
//! A process is held by its pidfd, so that a signal can't reach another that got its number, and
//! its death can be waited for together with anything else. Only our own children are ever waited
//! for: the host program has children of its own.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use procpool_worker::protocol::{SpawnToken, TITLE};
use procpool_worker::sys;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
    pidfd_send_signal, waitid,
};

use crate::error::DeathCause;

/// `fcntl`'s command that chooses the signal; libc has no name for it here.
const F_SETSIG: libc::c_int = 10;

/// Where a worker's standard output and standard error go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OutputMode {
    /// To where the parent's go.
    #[default]
    Inherit,
    /// To nowhere.
    Null,
    /// Into the report of the task that was running, each apart from its neighbours'
    /// ([`Report::output`](crate::Report::output)).
    Capture,
}

/// Has `f` called in each copy of this process that fork makes. It may do no more than a signal
/// handler.
pub(crate) fn after_fork(f: extern "C" fn()) {
    // SAFETY: a plain call; the function is there as long as the process is.
    unsafe { libc::pthread_atfork(None, None, Some(f)) };
}

/// A static of which each process has its own: in a copy that fork makes, the threads that hold its locks
/// are missing.
pub(crate) struct PerProcess<T>(AtomicPtr<(u32, T)>);

impl<T: Default + Send + Sync> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// Returns this process's value, which is made the first time.
    pub(crate) fn get(&'static self) -> &'static T {
        loop {
            let (known, pid) = (self.0.load(Acquire), sys::own_pid());
            // SAFETY: null, or a value that was leaked below.
            if let Some((owner, value)) = unsafe { known.as_ref() }
                && *owner == pid
            {
                return value;
            }
            let fresh = Box::into_raw(Box::new((pid, T::default())));
            if self.0.compare_exchange(known, fresh, AcqRel, Acquire).is_err() {
                // SAFETY: made just now, and no other thread has seen it.
                drop(unsafe { Box::from_raw(fresh) });
            }
        }
    }
}

/// How a worker process is started.
#[derive(Debug)]
pub(crate) struct Launch {
    /// What is set in its environment.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Where it starts.
    pub(crate) current_dir: Option<PathBuf>,
    /// Where it prints.
    pub(crate) output: OutputMode,
    /// The other end of this pipe is held by this process alone; see `liveness` in `procpool-worker`.
    pub(crate) cord: Arc<OwnedFd>,
}

impl Launch {
    /// Opens the liveness pipe anew for one worker: which process group is to be signalled is a property
    /// of the open file.
    pub(crate) fn open_cord(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = format!("/proc/self/fd/{}", self.cord.as_raw_fd());
        Ok(rustix::fs::open(path, flags, Mode::empty())?)
    }
}

/// The error of a system call that may have been refused by a filter (seccomp) or a security module:
/// names the call and what needs it.
pub(crate) fn explain(call: &str, purpose: &str, error: io::Error) -> io::Error {
    // These say by themselves what is missing, and have remedies of their own.
    if let Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN) = error.raw_os_error() {
        return error;
    }
    let remedy = crate::error::remedy(&error);
    io::Error::new(error.kind(), format!("{call} (to {purpose}): {error}{remedy}"))
}

/// Has the kernel kill a process's group when the cord's other end is closed. It is done here and not
/// by the child, which may be stopped before it has come to do anything.
fn tie(cord: &OwnedFd, pid: Pid) -> io::Result<()> {
    let fd = cord.as_raw_fd();
    // SAFETY: plain system calls on a descriptor that is open.
    let tied = unsafe {
        libc::fcntl(fd, libc::F_SETOWN, -pid.as_raw_pid()) != -1
            && libc::fcntl(fd, F_SETSIG, libc::SIGKILL) != -1
            && libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK | libc::O_ASYNC) != -1
    };
    if tied { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Launch {
    /// Says of what no process has come: its directory, or which calls start one.
    fn explain(&self, error: io::Error) -> io::Error {
        let unusable = |dir: &&PathBuf| std::fs::read_dir(dir).is_err();
        if let Some(dir) = self.current_dir.as_ref().filter(unusable) {
            let text = format!("the directory {} (`current_dir`): {error}", dir.display());
            return io::Error::new(error.kind(), text);
        }
        explain("clone3, clone, setpgid, execve", "start a process", error)
    }
}

/// A child process.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// Starts a copy of this program, with the worker's end of its control socket as standard input
    /// and `cord` as its liveness pipe. The calling thread must outlive it: its end is announced to
    /// the child as the parent's death.
    pub(crate) fn start(
        launch: &Launch,
        env: impl IntoIterator<Item = (OsString, OsString)>,
        title: &str,
        token: SpawnToken,
        control: OwnedFd,
        cord: &OwnedFd,
        capture: Option<&OwnedFd>,
    ) -> io::Result<Self> {
        // This process's own file, even if another has been put in its place since.
        let mut command = Command::new("/proc/self/exe");
        if let Some(name) = std::env::args_os().next() {
            command.arg0(name);
        }
        command
            .arg(format!("{TITLE}{title}"))
            .arg(token.to_arg())
            .envs(launch.env.iter().map(|(name, value)| (name, value)))
            .envs(env)
            .stdin(Stdio::from(control))
            // Its own process group, so that what its tasks start can be killed with it.
            .process_group(0);
        if let Some(dir) = &launch.current_dir {
            command.current_dir(dir);
        }
        match (launch.output, capture) {
            (_, Some(file)) => {
                command.stdout(Stdio::from(file.try_clone()?)).stderr(file.try_clone()?);
            }
            (OutputMode::Null, None) => {
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
            (OutputMode::Inherit | OutputMode::Capture, None) => {}
        }
        // No `pre_exec`: with one, std forks, which beside a parent of 1 GiB takes 46 ms.
        let child = command.spawn().map_err(|error| launch.explain(error))?;
        let pid = Pid::from_child(&child);
        let tied = tie(cord, pid)
            .map_err(|error| explain("fcntl", "have a worker end with this process", error));
        let watched = || {
            pidfd_open(pid, PidfdFlags::empty())
                .map_err(|error| explain("pidfd_open", "watch a worker", error.into()))
        };
        match tied.and_then(|()| watched()) {
            Ok(pidfd) => Ok(Self { pid, pidfd }),
            Err(error) => {
                // It can't be watched, so it must not live. It has not been waited for, so the
                // number is still its own.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
                Err(error)
            }
        }
    }

    /// Watches a child that was started in another way.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of(child: &std::process::Child) -> io::Result<Self> {
        let pid = Pid::from_child(child);
        Ok(Self { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())? })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_pid().cast_unsigned()
    }

    /// Becomes readable when the process has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether the process has ended; it is not reaped by that.
    pub(crate) fn has_ended(&self) -> bool {
        let ask = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), ask) {
            Ok(ended) => ended.is_some(),
            Err(rustix::io::Errno::INTR) => false,
            // Another part of this program has reaped it, or this is refused too.
            Err(_) => rustix::process::test_kill_process(self.pid).is_err(),
        }
    }

    /// Sends a signal, if the process still exists.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Sends a signal to the process and to what it has started. It must not have been waited for,
    /// or its number may be another's.
    pub(crate) fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }

    /// Kills the process itself. What it has started is killed by [`reap`](Self::reap).
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Kills what the process has left behind in its group, and collects how it ended. The process
    /// must have ended.
    pub(crate) fn reap(&self) -> DeathCause {
        // Before it is waited for: until then no other group can have its number.
        let _ = kill_process_group(self.pid, Signal::KILL);
        // One that is being traced is its tracer's to collect until that lets go: it does nothing more,
        // and isn't waited for.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Err(rustix::io::Errno::INTR) => {}
                status => break status,
            }
        };
        let Ok(Some(status)) = status else { return DeathCause::Unknown };
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => DeathCause::Exited(code),
            (None, Some(signal)) => DeathCause::Signaled(signal, status.dumped()),
            (None, None) => DeathCause::Unknown,
        }
    }
}

/// A file in memory that output is captured in, shared with the process whose output it is.
#[derive(Debug)]
pub(crate) struct CaptureFile(OwnedFd);

impl CaptureFile {
    pub(crate) fn new() -> io::Result<Self> {
        let file = rustix::fs::memfd_create(c"procpool-output", MemfdFlags::CLOEXEC)?;
        // So that it can be emptied here while it is written there.
        rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
        Ok(Self(file))
    }

    pub(crate) fn file(&self) -> &OwnedFd {
        &self.0
    }

    /// Forgets what has been written.
    pub(crate) fn clear(&self) {
        let _ = rustix::fs::ftruncate(&self.0, 0);
    }

    /// How much has been written.
    pub(crate) fn len(&self) -> u64 {
        rustix::fs::fstat(&self.0).map_or(0, |file| file.st_size.cast_unsigned())
    }

    /// What was written there, as far as it exists. A task may give the file any length: no more is read
    /// than there is memory behind it, and nothing where this process has no room for that.
    pub(crate) fn read(&self, range: Range<u64>) -> Vec<u8> {
        let backed = rustix::fs::fstat(&self.0)
            .map_or(0, |file| file.st_size.min(file.st_blocks.saturating_mul(512)).cast_unsigned());
        let len = range.end.min(self.len()).saturating_sub(range.start).min(backed);
        let len = usize::try_from(len).unwrap_or(0);
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(len).is_err() {
            return bytes;
        }
        bytes.resize(len, 0);
        let mut read = 0;
        while read < bytes.len() {
            match rustix::io::pread(&self.0, &mut bytes[read..], range.start + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        bytes.truncate(read);
        bytes
    }
}
