//! Running other programs from inside of a worker, and knowing how each ended and what it used.
//!
//! A program that a worker starts stays in the worker's process group, so that it dies with the
//! parent as the worker does (`procpool_worker::harden`). What it leaves behind comes to the worker,
//! which has itself made the reaper of its descendants, and is ended before the next one starts:
//! also what has made a session or a process group of its own.

use std::collections::HashSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, kill_process, pidfd_open, waitid,
};

use super::observe;

/// A program that was started and has not been waited for.
#[derive(Debug)]
pub(crate) struct Program {
    pid: Pid,
}

/// How a program ended, and what it used.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// CPU time of it and of those of its children that it waited for.
    pub(crate) cpu: Duration,
    /// The most resident memory in bytes that it, or one of those, had at a time. The kernel counts
    /// from before the program was loaded, so it's never less than the worker's own.
    pub(crate) memory: u64,
}

/// Has what programs leave behind come to this process.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(getpid()))?)
}

/// Sets the close-on-exec flag on all descriptors but the standard three.
fn close_all_on_exec() -> io::Result<()> {
    let flag = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
    // SAFETY: it changes a flag of descriptors, and none of them is closed.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, flag) } == 0 {
        return Ok(());
    }
    // Before Linux 5.11 there is no such flag, and a filter may refuse the call.
    close_each_on_exec()
}

/// Sets the flag on one descriptor after the other.
fn close_each_on_exec() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<libc::c_int>().ok()) else {
            continue;
        };
        // SAFETY: as above. One that another thread has closed meanwhile needs no flag.
        let set = fd < 3 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != -1;
        let error = io::Error::last_os_error();
        if !set && error.raw_os_error() != Some(libc::EBADF) {
            return Err(io::Error::new(error.kind(), format!("fcntl (F_SETFD): {error}")));
        }
    }
    Ok(())
}

/// Has the end of a child be known, whatever this process has inherited: with SIGCHLD ignored, nobody
/// could know how one ended.
pub(crate) fn default_child_signal() {
    // SAFETY: a plain system call; no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Has the signals that concern children and terminals do what they do by default, whatever this
/// process has inherited: a program would inherit it. Output to a terminal still doesn't stop this process, since the signal
/// for it is blocked, but for the moment in which a program starts.
pub(crate) fn default_signals() {
    default_child_signal();
    block_output_signal(true);
    // SAFETY: plain system calls on local data; no handler is installed.
    unsafe {
        libc::signal(libc::SIGTTIN, libc::SIG_DFL);
        libc::signal(libc::SIGTTOU, libc::SIG_DFL);
    }
}

/// Blocks the signal that output to a terminal may send, or lets it through.
fn block_output_signal(block: bool) {
    let how = if block { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    // SAFETY: plain system calls on local data.
    unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        libc::sigaddset(&mut signals, libc::SIGTTOU);
        libc::pthread_sigmask(how, &signals, std::ptr::null_mut());
    }
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        // Not all that this process has open is closed by exec of itself, and a program that
        // inherited the worker's channel would keep it open.
        close_all_on_exec()?;
        // No `pre_exec`: without it, std spawns in a way whose cost doesn't grow with memory.
        // It inherits which signals are blocked.
        block_output_signal(false);
        let child = command.spawn();
        block_output_signal(true);
        Ok(Self { pid: Pid::from_child(&child?) })
    }

    /// Becomes readable when the program has ended.
    pub(crate) fn pidfd(&self) -> io::Result<OwnedFd> {
        Ok(pidfd_open(self.pid, PidfdFlags::empty())?)
    }

    /// Waits for the end.
    pub(crate) fn wait(self) -> io::Result<Ended> {
        loop {
            match collect(self.pid.as_raw_pid(), 0) {
                Ok(Some(ended)) => return Ok(ended),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Collects how a child of this process ended, or any (-1). Nobody else waits for them.
fn collect(pid: i32, flags: i32) -> io::Result<Option<Ended>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: writes to locals.
    match unsafe { libc::wait4(pid, &mut status, flags, usage.as_mut_ptr()) } {
        -1 => return Err(io::Error::last_os_error()),
        0 => return Ok(None),
        _ => {}
    }
    // SAFETY: any bytes are one, and the kernel has filled it in.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| {
        Duration::from_micros((time.tv_sec * 1_000_000 + time.tv_usec).cast_unsigned())
    };
    Ok(Some(Ended {
        status: ExitStatus::from_raw(status),
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        memory: usage.ru_maxrss.cast_unsigned() * 1024,
    }))
}

/// Sleeps until one of these can be read or its other end is closed, or for so long; says which.
pub(crate) fn poll_readable<const N: usize>(
    files: [Option<BorrowedFd<'_>>; N],
    limit: Option<Duration>,
) -> [bool; N] {
    let limit = limit.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let mut polled: Vec<_> =
        files.iter().flatten().map(|file| PollFd::from_borrowed_fd(*file, PollFlags::IN)).collect();
    if poll(&mut polled, limit.as_ref()).is_err() {
        return [false; N];
    }
    let mut polled = polled.iter();
    files.map(|file| {
        file.is_some() && polled.next().is_some_and(|polled| !polled.revents().is_empty())
    })
}

/// Whether this process's standard output is a pipe that nobody reads any more.
pub(crate) fn is_unread() -> bool {
    let stdout = io::stdout();
    let mut polled = [PollFd::new(&stdout, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().contains(PollFlags::ERR)
}

/// Sends a signal to all that this process has started and that is still there.
pub(crate) fn signal_descendants(signal: Signal) {
    signal_descendants_of(std::process::id(), signal, &mut HashSet::new());
}

/// Sends a signal to all that a process has started and that is still there, but for those which are
/// known already.
pub(crate) fn signal_descendants_of(process: u32, signal: Signal, known: &mut HashSet<u32>) {
    for pid in observe::descendants(process) {
        if known.insert(pid) {
            signal_one(pid, signal);
        }
    }
}

fn signal_one(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// Ends all that a program has left behind, waits for it, and adds what it used. The program itself
/// has been waited for.
pub(crate) fn end_left_behind(ended: &mut Ended) {
    loop {
        match collect(-1, libc::WNOHANG) {
            Ok(Some(left)) => {
                ended.cpu += left.cpu;
                ended.memory = ended.memory.max(left.memory);
            }
            Ok(None) => {
                // Each of those that end leaves its own children to this process, for the next turn.
                let left = observe::children(std::process::id());
                let killed = left.into_iter().filter(|pid| signal_one(*pid, Signal::KILL)).count();
                if killed == 0 {
                    // One that has become another user's, and can only be left alone.
                    return;
                }
                let has_ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                let _ = waitid(WaitId::All, has_ended);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Nothing is left.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn no_descriptor_is_passed_on_also_where_close_range_has_no_such_flag() {
        let file = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: plain system calls on a descriptor that is open.
        let flags = unsafe {
            assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0), 0);
            close_each_on_exec().unwrap();
            libc::fcntl(file.as_raw_fd(), libc::F_GETFD)
        };
        assert_eq!(flags, libc::FD_CLOEXEC);
    }
}
