//! Making a fresh process a safe worker: it dies with its parent, and takes with it whatever its
//! tasks have started; it holds no file descriptor by accident; no terminal stops it.
//!
//! The setting-up is done here, by the worker itself, and not between fork and exec: with anything
//! to do there the parent could not use `posix_spawn`, whose cost doesn't grow with its memory.
//!
//! # Dying with the parent
//!
//! Two cords, since each alone can fail:
//!
//! - The worker's standard input is a pipe whose other end only the parent holds (one for all of a
//!   pool's workers). The parent has asked the kernel to send the worker's process group SIGKILL
//!   when that end closes (`F_SETSIG`, `F_SETOWN`, `O_ASYNC`; fcntl(2)). That reaches busy and
//!   stopped workers, those that were stopped before they came here, and what their tasks have
//!   started, at the moment of the parent's death, and needs nobody alive to do it. All that is done
//!   about it here is to keep it.
//! - The parent's death signal (`PR_SET_PDEATHSIG`) kills the group too, through a handler. It is
//!   for a parent that has been forked without exec, so that its copy holds the pipe open. The
//!   signal can't be SIGKILL: that could end the worker, and with it the first cord, before the
//!   pipe is closed, and what its tasks have started would live on.
//!
//! A worker that sees its channel close before either is pulled exits by itself; it then takes its
//! group with it ([`leave_with_group`]).

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use rustix::process::{Pid, Signal};

use crate::lane::{Lane, Note};
use crate::protocol::Setup;

/// Nothing on Linux sends it, and by default it ends the process.
const PARENT_DIED: libc::c_int = libc::SIGSTKFLT;

/// Descriptors that must survive a task which closes all the low ones are put above these.
const HIGH_FD: i32 = 512;

/// Prepares this process, which has just started. `parent` is who started it.
///
/// # Errors
///
/// When the parent is already gone, or the system refuses what can't be done without.
pub fn harden(parent: u32) -> io::Result<()> {
    close_strays();
    reset_signals();
    let death = Signal::from_named_raw(PARENT_DIED);
    rustix::process::set_parent_process_death_signal(death)?;
    hold_cord()?;
    // A parent that died before the signal was set is not announced by it.
    if rustix::process::getppid().map(Pid::as_raw_pid) != i32::try_from(parent).ok() {
        return Err(io::Error::other("the parent is gone"));
    }
    Ok(())
}

/// Closes what was inherited by accident: the parent's other threads open files at any time, and
/// not all of them are closed by exec.
fn close_strays() {
    // SAFETY: nothing in this process has opened a file yet that it will use: this is the first
    // that runs in it.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// A process inherits which signals are blocked and ignored, and Rust's runtime has not set SIGPIPE
/// where a worker is entered before main.
fn reset_signals() {
    // SAFETY: plain system calls on local data; the handler only makes a system call itself, which
    // is allowed in one.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        // A worker is in a process group of its own, in the background: a terminal that is set to
        // stop background output would stop it at its first line.
        libc::signal(libc::SIGTTOU, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        // A worker is asked to end by it, also where the program has been told to ignore it.
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
        let handler = parent_died as extern "C" fn(libc::c_int);
        libc::signal(PARENT_DIED, handler as libc::sighandler_t);
        libc::atexit(at_exit);
    }
}

extern "C" fn parent_died(_signal: libc::c_int) {
    // SAFETY: kill is allowed in a signal handler. Zero is the own process group.
    unsafe { libc::kill(0, libc::SIGKILL) };
}

/// Keeps the cord that standard input is where no task closes it, then makes standard input empty.
fn hold_cord() -> io::Result<()> {
    // A low limit of open files may leave no room up there; then it goes to where there is some.
    let cord = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), HIGH_FD)
        .or_else(|_| rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3))?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    // It is held until the process ends.
    std::mem::forget(cord);
    Ok(())
}

/// Whether the worker ends because the parent's channel has.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// Has this process take its group with it when it exits. A parent that dies closes the channel, as
/// one that lets a worker go does; the worker may then be gone before either cord is pulled, and
/// what its tasks have started would live on.
pub fn leave_with_group() {
    LEAVING.store(true, Ordering::Release);
}

/// Registered before anything else, so that it runs after all that others have registered.
extern "C" fn at_exit() {
    if !LEAVING.load(Ordering::Acquire) {
        return;
    }
    // SAFETY: plain system calls.
    unsafe {
        // Out of the group first, so that the process still ends by its own exit code; in another's
        // group, the death signal must end nobody but itself.
        libc::signal(PARENT_DIED, libc::SIG_DFL);
        let parents = libc::getpgid(libc::getppid());
        if parents > 0 && libc::setpgid(0, parents) == 0 {
            libc::kill(-libc::getpid(), libc::SIGKILL);
        } else {
            parent_died(0);
        }
    }
}

/// Does to this process what its pool asks for.
///
/// # Errors
///
/// When the system refuses one of them.
pub fn apply(setup: &Setup) -> io::Result<()> {
    set_name(&setup.name);
    // The kernel is to take a worker before the program that can replace it. A worker may be more
    // willing than its parent, not less, so this is allowed; where it isn't, nothing is lost.
    let _ = std::fs::read_to_string("/proc/self/oom_score_adj").map(|own| {
        let score = own.trim().parse().unwrap_or(0).max(OOM_SCORE);
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
    });
    for (resource, soft, hard) in &setup.limits {
        let limit = libc::rlimit { rlim_cur: *soft, rlim_max: *hard };
        // SAFETY: a plain system call on local data.
        if unsafe { libc::setrlimit(*resource, &limit) } != 0 {
            return Err(io::Error::last_os_error());
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

/// How willing a worker is to be killed when the system is out of memory (`oom_score_adj`, of up to
/// 1000).
const OOM_SCORE: i32 = 500;

/// Where [`note_abort`] leaves its note.
static NOTE: AtomicPtr<u64> = AtomicPtr::new(std::ptr::null_mut());

/// Has an abort that follows on refused memory noted in the lane, from where the parent can tell it
/// from other aborts. `lane` must never be unmapped.
pub fn note_refused_memory(lane: &Lane) {
    NOTE.store(lane.note_word(), Ordering::Release);
    let handler = note_abort as extern "C" fn(libc::c_int);
    // SAFETY: a plain system call; what the handler does is allowed in one.
    unsafe { libc::signal(libc::SIGABRT, handler as libc::sighandler_t) };
}

/// Runs on the thread that aborts. A refused allocation leaves its trace in that thread's errno: all
/// that Rust and C++ do between that and the abort is to print a line. After this has returned,
/// `abort` goes on.
extern "C" fn note_abort(_signal: libc::c_int) {
    let note = NOTE.load(Ordering::Acquire);
    // SAFETY: errno is the thread's own; the word lies in the lane, which is never unmapped.
    unsafe {
        if *libc::__errno_location() == libc::ENOMEM && !note.is_null() {
            AtomicU64::from_ptr(note).store(Note::OutOfMemory as u64, Ordering::Release);
        }
    }
}

/// How much this process has printed into the file that its output is captured in. Flushes what
/// Rust and C have buffered.
pub fn printed() -> u64 {
    let _ = std::io::stdout().flush();
    // SAFETY: flushes C's own streams.
    unsafe { libc::fflush(std::ptr::null_mut()) };
    rustix::fs::fstat(std::io::stdout()).map_or(0, |file| file.st_size.cast_unsigned())
}

/// Nanoseconds of the monotonic clock, which is one for all processes.
pub fn now() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds of CPU time that this thread has had.
pub(crate) fn cpu_time() -> u64 {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock(which: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a local.
    unsafe { libc::clock_gettime(which, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Asks for a large page behind the memory of that size, which nobody has touched. It is a wish; where
/// it isn't granted, nothing is lost.
pub(crate) fn prefer_huge_page(start: *mut u8, bytes: usize) {
    // SAFETY: advice on memory changes nothing that can be read.
    unsafe { libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE) };
}

/// Has the kernel put pages behind memory that is about to be filled, all at once.
///
/// It is a wish, which kernels before 5.14 don't know.
pub(crate) fn populate(start: *mut u8, bytes: usize) {
    // SAFETY: what the memory holds stays as it is.
    unsafe { libc::madvise(start.cast(), bytes, libc::MADV_POPULATE_WRITE) };
}

/// Gives the memory behind a shared mapping back to the system, for all who have it mapped.
pub(crate) fn discard(start: *const u8, bytes: usize) {
    if bytes > 0 {
        // SAFETY: the mapping stays; whoever reads it from now on reads zeroes, and what is in a
        // shared region may be anything at any time.
        unsafe { libc::madvise(start.cast_mut().cast(), bytes, libc::MADV_REMOVE) };
    }
}

/// The addresses of this thread's stack, where the C library knows them.
pub(crate) fn stack() -> Option<std::ops::Range<usize>> {
    thread_local! {
        // For the main thread, the C library reads `/proc/self/maps`.
        static STACK: Option<(usize, usize)> = ask();
    }
    fn ask() -> Option<(usize, usize)> {
        let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
        let (mut start, mut size) = (std::ptr::null_mut(), 0);
        // SAFETY: the attributes are initialised where the first call returns zero, and only then
        // read and destroyed; the rest is written to locals.
        unsafe {
            if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
                return None;
            }
            let got = libc::pthread_attr_getstack(attributes.as_ptr(), &mut start, &mut size);
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
            (got == 0).then_some((start.addr(), start.addr().checked_add(size)?))
        }
    }
    STACK.try_with(|stack| stack.map(|(start, end)| start..end)).ok().flatten()
}

/// Names this thread, which is the process's main one, so that `ps` and `top` show it.
fn set_name(name: &str) {
    let name: Vec<u8> = name.bytes().filter(|byte| *byte != 0).take(15).collect();
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
}
