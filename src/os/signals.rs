//! Keeping the host program's signals away from the pool's threads.

/// Calls `f`, which may start threads, with all signals blocked, so that the new threads never run
/// a signal handler of the host program, and no call of theirs is interrupted by one.
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
