//! Blocks the host program's signals in the pool's threads, and names signals.

/// Calls `f` with all signals blocked. Threads that `f` starts inherit the mask: they never run a signal
/// handler of the host program, and no signal interrupts their system calls.
pub(crate) fn blocked<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: plain system calls on local data.
    let before = unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        before
    };
    let value = f();
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    value
}

/// Returns the name of a signal that ends processes by default, or `None` for other signals.
pub(crate) fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        _ => return None,
    })
}

/// Ignores SIGPIPE, as Rust does before `main`: writing to a socket without a reader is an error.
#[cfg(feature = "mpi")]
pub(crate) fn ignore_broken_pipes() {
    // SAFETY: a plain system call.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
