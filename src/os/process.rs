//! Starts, watches, kills and reaps one worker process.
//!
//! A process is identified by its pidfd, so that a signal cannot reach another process with a reused PID,
//! and so that its end can be polled together with other events. Only children of this module are reaped:
//! the host program has children of its own.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use procpool_worker::protocol::{SpawnToken, TITLE};
use procpool_worker::sys;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
    pidfd_send_signal, waitid,
};

use serde::{Deserialize, Serialize};

use crate::error::DeathCause;

/// The command of `fcntl` that sets the signal. libc does not define it for this target.
const F_SETSIG: libc::c_int = 10;

/// The destination of a worker's standard output and standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum OutputMode {
    /// The parent's standard output and standard error.
    #[default]
    Inherit,
    /// Discards all output.
    Null,
    /// Captures the output of each task in its report, in
    /// [`Report::output`](crate::Report::output).
    Capture,
}

/// Registers `f` to be called in each forked copy of this process. It may call only async-signal-safe
/// functions.
pub(crate) fn after_fork(f: extern "C" fn()) {
    // SAFETY: a plain call with a function that exists as long as the process.
    unsafe { libc::pthread_atfork(None, None, Some(f)) };
}

/// Registers `f` to be called when this process exits by `exit`, or at the end of `main`.
#[cfg(feature = "mpi")]
pub(crate) fn at_exit(f: extern "C" fn()) {
    // SAFETY: a plain call with a function that exists as long as the process.
    unsafe { libc::atexit(f) };
}

/// Ends this process at once. Runs nothing that was registered for its end.
#[cfg(feature = "mpi")]
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: a plain system call.
    unsafe { libc::_exit(code) }
}

/// A static that a forked copy of the process does not share: in the copy, the threads that hold its locks
/// do not exist.
pub(crate) struct PerProcess<T>(AtomicPtr<(u32, T)>);

impl<T: Default + Send + Sync> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// Returns this process's value, and creates it at the first call.
    pub(crate) fn get(&'static self) -> &'static T {
        loop {
            let (known, pid) = (self.0.load(Acquire), sys::own_pid());
            // SAFETY: the pointer is null or points to a value that was leaked below.
            if let Some((owner, value)) = unsafe { known.as_ref() }
                && *owner == pid
            {
                return value;
            }
            let fresh = Box::into_raw(Box::new((pid, T::default())));
            if self.0.compare_exchange(known, fresh, AcqRel, Acquire).is_err() {
                // SAFETY: it was created just above and has not been published.
                drop(unsafe { Box::from_raw(fresh) });
            }
        }
    }
}

/// Returns how many files this process may have open.
pub(crate) fn open_files_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX)
}

/// How a worker process is started.
#[derive(Debug)]
pub(crate) struct Launch {
    /// The variables that are set in its environment.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// The variables that are removed from it.
    pub(crate) removed_env: Vec<OsString>,
    /// Its working directory, if not the parent's.
    pub(crate) current_dir: Option<PathBuf>,
    /// The destination of its output.
    pub(crate) output: OutputMode,
    /// The read end of the liveness pipe. Only this process has its write end; see `liveness` in
    /// `procpool-worker`.
    pub(crate) liveness_pipe: Arc<OwnedFd>,
}

impl Launch {
    /// Reopens the liveness pipe for one worker, because the process group to signal is a property of the
    /// open file.
    pub(crate) fn open_liveness_pipe(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = format!("/proc/self/fd/{}", self.liveness_pipe.as_raw_fd());
        Ok(rustix::fs::open(path, flags, Mode::empty())?)
    }
}

/// Adds to the error of a system call its name, its purpose and, if a filter (seccomp) or a security module
/// may have refused it, the remedy.
pub(crate) fn explain(call: &str, purpose: &str, error: io::Error) -> io::Error {
    // These errors name what is missing and have remedies of their own.
    if let Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN) = error.raw_os_error() {
        return error;
    }
    let remedy = crate::error::remedy(&error);
    io::Error::new(error.kind(), format!("{call} (to {purpose}): {error}{remedy}"))
}

/// Makes the kernel kill a process's group when the write end of its liveness pipe is closed. Done by the
/// parent, because the child may be stopped before it runs any code.
fn arm_liveness_pipe(liveness_pipe: &OwnedFd, pid: Pid) -> io::Result<()> {
    let fd = liveness_pipe.as_raw_fd();
    // SAFETY: plain system calls on an open descriptor.
    let armed = unsafe {
        libc::fcntl(fd, libc::F_SETOWN, -pid.as_raw_pid()) != -1
            && libc::fcntl(fd, F_SETSIG, libc::SIGKILL) != -1
            && libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK | libc::O_ASYNC) != -1
    };
    if armed { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Checks that a process can have this working directory. Blocks as long as the file system does, for example
/// if the server of a network file system is gone.
pub(crate) fn check_directory(dir: &Path) -> io::Result<()> {
    match std::fs::metadata(dir.join(".")) {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = format!("the directory {} (`current_dir`): {error}", dir.display());
            Err(io::Error::new(error.kind(), text))
        }
    }
}

impl Launch {
    /// Adds to the error of a failed start the unusable directory or the system calls that start a process.
    fn explain(&self, error: io::Error) -> io::Error {
        let unusable = self.current_dir.as_deref().map(check_directory).and_then(Result::err);
        if let Some(unusable) = unusable {
            return unusable;
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
    /// Starts a copy of this program, with the worker's end of its control socket as standard input and
    /// `liveness_pipe`. The calling thread must outlive the child, which receives the end of the thread as its
    /// parent's death.
    pub(crate) fn start(
        launch: &Launch,
        env: impl IntoIterator<Item = (OsString, OsString)>,
        title: &str,
        token: SpawnToken,
        control: OwnedFd,
        liveness_pipe: &OwnedFd,
        capture: Option<&OwnedFd>,
    ) -> io::Result<Self> {
        // This process's own executable, even if its file has been replaced.
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
            // A process group of its own, so that processes that its tasks start can be killed with it.
            .process_group(0);
        for name in &launch.removed_env {
            command.env_remove(name);
        }
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
        // No `pre_exec`: with it, std forks, which takes 46 ms in a parent of 1 GiB.
        let child = command.spawn().map_err(|error| launch.explain(error))?;
        Self::watch(Pid::from_child(&child), liveness_pipe)
    }

    /// Takes over a child that a template has forked. Moves it to a process group of its own.
    pub(crate) fn adopt(pid: u32, liveness_pipe: &OwnedFd) -> io::Result<Self> {
        let not_ours = || io::Error::other(format!("PID {pid} is not a child of this process"));
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(not_ours)?;
        rustix::process::setpgid(Some(pid), Some(pid)).map_err(|error| match error {
            // Of a process that is no child.
            Errno::SRCH => not_ours(),
            error => explain("setpgid", "start a process", error.into()),
        })?;
        Self::watch(pid, liveness_pipe)
    }

    /// Arms a started process's liveness pipe and opens its pidfd.
    fn watch(pid: Pid, liveness_pipe: &OwnedFd) -> io::Result<Self> {
        let armed = arm_liveness_pipe(liveness_pipe, pid)
            .map_err(|error| explain("fcntl", "end a worker with this process", error));
        let watched = || {
            pidfd_open(pid, PidfdFlags::empty())
                .map_err(|error| explain("pidfd_open", "watch a worker", error.into()))
        };
        match armed.and_then(|()| watched()) {
            Ok(pidfd) => Ok(Self { pid, pidfd }),
            Err(error) => {
                // A child that cannot be watched must not live. It has not been reaped, so its PID cannot
                // have been reused.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
                Err(error)
            }
        }
    }

    /// Reaps the children that have ended in a process group, which was killed. Returns whether none is left.
    pub(crate) fn reap_group(group: u32) -> bool {
        let Some(group) = i32::try_from(group).ok().and_then(Pid::from_raw) else { return true };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        loop {
            match waitid(WaitId::Pgid(Some(group)), options) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Watches a child that was started elsewhere.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of(child: &std::process::Child) -> io::Result<Self> {
        let pid = Pid::from_child(child);
        Ok(Self { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())? })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_pid().cast_unsigned()
    }

    /// Returns the pidfd, which becomes readable when the process ends.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Returns whether the process has ended, without reaping it.
    pub(crate) fn has_ended(&self) -> bool {
        let ask = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), ask) {
            Ok(ended) => ended.is_some(),
            Err(Errno::INTR) => false,
            // Another part of this program has reaped it, or the call is refused.
            Err(_) => rustix::process::test_kill_process(self.pid).is_err(),
        }
    }

    /// Sends a signal if the process still exists.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Sends a signal to the process group. The process must not have been reaped: otherwise its PID may have
    /// been reused.
    pub(crate) fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }

    /// Kills the process itself. [`reap`](Self::reap) kills the rest of its group.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Kills the rest of the process's group, reaps the process and returns how it ended. The process must
    /// have ended.
    pub(crate) fn reap(&self) -> DeathCause {
        // Before the process is reaped: until then, no other group can have its PID.
        let _ = kill_process_group(self.pid, Signal::KILL);
        // A traced process cannot be reaped until its tracer detaches. It runs no more code, so this does not
        // wait for it.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Err(Errno::INTR) => {}
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

/// A file in memory that captures the output of a process, which shares it.
#[derive(Debug)]
pub(crate) struct CaptureFile(OwnedFd);

impl CaptureFile {
    pub(crate) fn new() -> io::Result<Self> {
        let file = rustix::fs::memfd_create(c"procpool-output", MemfdFlags::CLOEXEC)?;
        // Lets this process truncate the file while the other one writes it.
        rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
        Ok(Self(file))
    }

    pub(crate) fn file(&self) -> &OwnedFd {
        &self.0
    }

    /// Discards the captured output.
    pub(crate) fn clear(&self) {
        let _ = rustix::fs::ftruncate(&self.0, 0);
    }

    /// Returns the size of the captured output in bytes.
    pub(crate) fn len(&self) -> u64 {
        rustix::fs::fstat(&self.0).map_or(0, |file| file.st_size.cast_unsigned())
    }

    /// Returns the part of `range` that exists. A task may set any file size, so at most the allocated size
    /// is read. Returns nothing if memory for it cannot be allocated.
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
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        bytes.truncate(read);
        bytes
    }
}
