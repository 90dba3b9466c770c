//! Turns a fresh process into a safe worker: no inherited descriptors, no inherited signal state,
//! the limits and the name that the pool asks for.
//!
//! The worker does this itself, after exec. Work between fork and exec would rule out
//! `posix_spawn`, whose cost does not grow with the parent's memory.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::liveness;
use crate::shm::sys::move_high;
use crate::wire::protocol::{Setup, TITLE};

/// Sets up this process, which `parent` has just started.
///
/// # Errors
///
/// When the parent is already gone, or the system refuses something indispensable.
pub(super) fn prepare(parent: u32) -> io::Result<()> {
    close_inherited();
    reset_signals();
    liveness::arm(parent)
}

/// Closes descriptors that leaked through exec: the parent's other threads open files at any time,
/// and exec does not close all of them.
///
/// A leaked descriptor has no close-on-exec flag. Files opened since exec have one, because Rust sets
/// it on every file; the program may have opened some before this point, and its threads may still.
/// A descriptor that C code has opened in this process without the flag is mistaken for a leaked one.
fn close_inherited() {
    for fd in inherited() {
        // SAFETY: nothing in this process owns an inherited descriptor: the parent passes only the
        // standard three.
        unsafe { libc::close(fd) };
    }
}

/// Returns the descriptors above the standard three that exec did not close.
fn inherited() -> Vec<libc::c_int> {
    // SAFETY: reads the flags of a descriptor, if there is one of that number.
    let is_inherited = |fd: &libc::c_int| match unsafe { libc::fcntl(*fd, libc::F_GETFD) } {
        -1 => false,
        flags => flags & libc::FD_CLOEXEC == 0,
    };
    match std::fs::read_dir("/proc/self/fd") {
        Ok(open) => open
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|fd| *fd > libc::STDERR_FILENO && is_inherited(fd))
            .collect(),
        // Without /proc, or when no descriptor is left to read it.
        Err(_) => {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: writes to a local, which keeps its value if the call is refused.
            unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
            // 4 ms at the most.
            let end = limit.rlim_max.min(65_536) as libc::c_int;
            (libc::STDERR_FILENO + 1..end).filter(is_inherited).collect()
        }
    }
}

/// Resets the signal mask and the dispositions, which a process inherits. Rust's runtime has not set
/// SIGPIPE yet in a worker that is entered before main.
fn reset_signals() {
    // SAFETY: plain system calls on local data.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        // A worker runs in a background process group. A terminal with `tostop` would stop it at its
        // first line of output.
        libc::signal(libc::SIGTTOU, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        // The pool terminates workers with SIGTERM, also when the program inherited it as ignored.
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
    }
}

/// Takes over the control socket, which is standard input, and replaces standard input by
/// `/dev/null`.
///
/// # Errors
///
/// When standard input is not a socket of the parent: another process has started this one.
pub(super) fn take_control_socket(parent: u32) -> io::Result<OwnedFd> {
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map(move_high)?;
    // The kernel knows who created the socket. A process of another user must not run its calls here,
    // which it could try through `sudo` with a command line of its own.
    let peer = rustix::net::sockopt::socket_peercred(&control);
    let is_parents = peer.is_ok_and(|peer| {
        peer.pid.as_raw_pid().cast_unsigned() == parent && peer.uid == rustix::process::geteuid()
    });
    if !is_parents {
        return Err(io::Error::other("standard input is not a socket of the parent"));
    }
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(control)
}

/// Applies the pool's settings to this process.
///
/// # Errors
///
/// When the system refuses one of them.
pub(super) fn apply(setup: &Setup) -> io::Result<()> {
    set_name(&setup.name);
    raise_oom_score();
    for (resource, soft, hard) in &setup.limits {
        let limit = libc::rlimit { rlim_cur: *soft, rlim_max: *hard };
        // SAFETY: a plain system call on local data.
        if unsafe { libc::setrlimit(*resource, &limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if *resource == libc::RLIMIT_FSIZE {
            // Writing beyond it is an error then.
            // SAFETY: a plain system call; no handler is installed.
            unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        }
    }
    if setup.nice != 0 {
        rustix::process::nice(setup.nice)?;
    }
    if let Some(cpu) = setup.cpu {
        let mut cpus = rustix::thread::CpuSet::new();
        cpus.set(cpu as usize);
        rustix::thread::sched_setaffinity(None, &cpus)?;
    }
    Ok(())
}

/// Makes the OOM killer choose this process before the program that can replace it. Workers inherit the score
/// from their template. A process may raise its own score, not lower it. A refusal costs nothing.
pub(super) fn raise_oom_score() {
    static IS_RAISED: AtomicBool = AtomicBool::new(false);
    if IS_RAISED.swap(true, Ordering::Relaxed) {
        return;
    }
    let _ = std::fs::read_to_string("/proc/self/oom_score_adj").map(|own| {
        let score = own.trim().parse().unwrap_or(0).max(OOM_SCORE);
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
    });
}

/// Returns the addresses of this process's command line, as the kernel knows them: arguments one after the other,
/// each with a zero at its end. A copy of the process has them too.
fn command_line() -> Option<(usize, usize)> {
    static COMMAND_LINE: OnceLock<Option<(usize, usize)>> = OnceLock::new();
    *COMMAND_LINE.get_or_init(|| {
        /// The index of `arg_start` among the fields after the name, as proc_pid_stat(5) counts them.
        const ARG_START: usize = 48 - 3;
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(ARG_START);
        let mut address = || fields.next()?.parse::<usize>().ok().filter(|address| *address > 0);
        Some((address()?, address()?))
    })
}

/// Finds the command line before the first [`set_title`], which copies of the process call.
pub(super) fn find_title() {
    command_line();
}

/// Replaces the title on this process's command line, as `ps` shows it, by one that is not longer. Does nothing
/// where the system doesn't tell where the command line is.
pub(super) fn set_title(title: &str) {
    let Some((start, end)) = command_line() else { return };
    // SAFETY: the kernel put the command line there, into memory of this process that nothing frees. This process
    // has one thread, and Rust's runtime copies what it returns from there.
    let line =
        unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end.saturating_sub(start)) };
    let Some(first) = line.iter().position(|byte| *byte == 0) else { return };
    let argument = &mut line[first + 1..];
    let Some(end) = argument.iter().position(|byte| *byte == 0) else { return };
    let Some(room) = argument[..end].strip_prefix(TITLE.as_bytes()).map(<[u8]>::len) else {
        return;
    };
    if title.len() <= room && !title.contains('\0') {
        let shown = &mut argument[TITLE.len()..end];
        shown.fill(0);
        shown[..title.len()].copy_from_slice(title.as_bytes());
    }
}

/// A worker's `oom_score_adj`, of up to 1000.
const OOM_SCORE: i32 = 500;

/// Names this thread, the process's main one, as `ps` and `top` show it.
fn set_name(name: &str) {
    let name: Vec<u8> = name.bytes().filter(|byte| *byte != 0).take(15).collect();
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
}

/// Whether the kernel says that this process has one thread. It does not where a filter of system calls is in force: the
/// filter might end the process.
fn is_alone() -> bool {
    // SAFETY: plain system calls. A process of one thread shares its memory with nobody, so that the second changes
    // nothing; in one with more threads, it fails.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP) == 0 && libc::unshare(libc::CLONE_VM) == 0 }
}

/// Returns the names of this process's threads but this one, which must be the main one.
///
/// # Errors
///
/// That `/proc` can't be read, and there may be others.
pub(super) fn other_threads() -> io::Result<Vec<String>> {
    let threads = match std::fs::read_dir("/proc/self/task") {
        Ok(threads) => threads,
        Err(_) if is_alone() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let own = std::process::id().to_string();
    let mut others = Vec::new();
    for thread in threads {
        let thread = thread?;
        if thread.file_name().to_str().is_none_or(|id| id != own) {
            match std::fs::read_to_string(thread.path().join("comm")) {
                Ok(name) => others.push(name.trim_end().to_owned()),
                // It has ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => others.push(thread.file_name().to_string_lossy().into_owned()),
            }
        }
    }
    Ok(others)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    /// Makes the kernel refuse a system call to this thread from now on.
    fn refuse(call: libc::c_long) {
        let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let refused = libc::SECCOMP_RET_ERRNO | libc::EACCES as u32;
        let mut filter = [
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call as u32),
            statement(libc::BPF_RET | libc::BPF_K, 0, 0, refused),
            statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the kernel copies the filter.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            let mode = libc::SECCOMP_MODE_FILTER;
            assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &program, 0, 0), 0);
        }
    }

    #[test]
    fn inherited_descriptors_are_found_also_without_proc() {
        let own = File::open("/dev/null").unwrap();
        let passed_on = File::open("/dev/null").unwrap();
        // SAFETY: a plain system call on a descriptor that is open.
        assert_eq!(unsafe { libc::fcntl(passed_on.as_raw_fd(), libc::F_SETFD, 0) }, 0);
        let test = move || {
            for is_there in [true, false] {
                if !is_there {
                    refuse(libc::SYS_openat);
                    assert!(std::fs::read_dir("/proc/self/fd").is_err());
                }
                let inherited = inherited();
                assert!(inherited.contains(&passed_on.as_raw_fd()), "{inherited:?}");
                assert!(!inherited.contains(&own.as_raw_fd()), "{inherited:?}");
            }
        };
        // The filter is for the thread alone.
        std::thread::spawn(test).join().unwrap();
    }
}
