//! Ends the worker with its parent, and the processes that its tasks have started with the worker.
//!
//! Two mechanisms, because each alone can fail:
//!
//! - **The liveness pipe.** The worker holds the read end of a pipe; only the parent holds the write
//!   end, one for all workers of a pool. The parent passes the read end in the first packet on the
//!   control socket, which holds it from before the process starts. The parent has asked the kernel to
//!   send SIGKILL to the worker's process group when the write end closes (`F_SETSIG`, `F_SETOWN`,
//!   `O_ASYNC`; fcntl(2)). The signal reaches busy and stopped workers, workers that were stopped
//!   before this code ran, and their tasks' processes, at the moment of the parent's death. It needs
//!   no living process to send it.
//! - **The parent-death signal** (`PR_SET_PDEATHSIG`), whose handler kills the group too. It covers a
//!   parent that was forked without exec, whose copy holds the pipe open. The signal can't be SIGKILL:
//!   that could end the worker, and with it the first mechanism, before the pipe is closed, and the
//!   tasks' processes would survive.
//!
//! A worker that sees its channel close first exits by itself and kills its group
//! ([`kill_group_on_exit`]).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal};

/// The parent-death signal. Nothing on Linux sends it otherwise, and its default ends the process.
const PARENT_DIED: libc::c_int = libc::SIGSTKFLT;

/// Arms the parent-death signal, and registers what runs at exit.
///
/// # Errors
///
/// When the parent is already gone, or the system refuses.
pub(super) fn arm(parent: u32) -> io::Result<()> {
    // SAFETY: plain system calls. The handler only makes a system call that is allowed in one.
    unsafe {
        let handler = parent_died as extern "C" fn(libc::c_int);
        libc::signal(PARENT_DIED, handler as libc::sighandler_t);
        libc::atexit(at_exit);
    }
    watch(parent)
}

/// Arms the parent-death signal in a process that has its handler: [`arm`] was called in the one that forked it.
///
/// # Errors
///
/// As [`arm`].
pub(super) fn watch(parent: u32) -> io::Result<()> {
    let death = Signal::from_named_raw(PARENT_DIED);
    rustix::process::set_parent_process_death_signal(death).map_err(|error| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("prctl (to end with the parent): {error}"))
    })?;
    // The signal does not report a parent that died before it was armed.
    if rustix::process::getppid().map(Pid::as_raw_pid) != i32::try_from(parent).ok() {
        return Err(io::Error::other("the parent is gone"));
    }
    Ok(())
}

extern "C" fn parent_died(_signal: libc::c_int) {
    // SAFETY: kill is allowed in a signal handler. Zero is the process's own group.
    unsafe { libc::kill(0, libc::SIGKILL) };
}

/// Holds the liveness pipe for the process's lifetime.
pub(super) fn hold_pipe(pipe: OwnedFd) {
    std::mem::forget(pipe);
}

/// Whether the worker exits because the parent closed the channel.
static IS_LEAVING: AtomicBool = AtomicBool::new(false);

/// Makes this process kill its group when it exits. A dying parent closes the channel, as one that
/// retires a worker does; the worker may then exit before either mechanism fires, and its tasks'
/// processes would survive.
pub(super) fn kill_group_on_exit() {
    IS_LEAVING.store(true, Ordering::Release);
}

/// Registered before all others, so that it runs after them.
extern "C" fn at_exit() {
    if !IS_LEAVING.load(Ordering::Acquire) {
        return;
    }
    // SAFETY: plain system calls.
    unsafe {
        // This process leaves the group first, so that it still ends with its own exit code. In
        // another's group, the parent-death signal must end nothing but this process.
        libc::signal(PARENT_DIED, libc::SIG_DFL);
        let parents = libc::getpgid(libc::getppid());
        if parents > 0 && libc::setpgid(0, parents) == 0 {
            libc::kill(-libc::getpid(), libc::SIGKILL);
        } else {
            move_to_childs_group();
        }
    }
}

/// Moves this process to the group of a short-lived child, and kills its own group. Used where the
/// parent's group can't be joined: it is in another session, or outside of this PID namespace. A group
/// leader can't create another group for itself, but it can join its child's.
fn move_to_childs_group() {
    // SAFETY: plain system calls. The child makes no others.
    unsafe {
        let own = libc::getpid();
        let child = libc::fork();
        if child == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            while libc::getppid() == own {
                libc::pause();
            }
            libc::_exit(0);
        }
        if child < 0 {
            return parent_died(0);
        }
        if libc::setpgid(child, child) == 0 && libc::setpgid(0, child) == 0 {
            libc::kill(-own, libc::SIGKILL);
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        } else {
            parent_died(0);
        }
    }
}
