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
//! - The worker holds the read end of a pipe whose other end only the parent holds (one for all of a
//!   pool's workers). The parent passes it in the first packet on the control socket, where it is
//!   held from before the process starts. It has asked the kernel to send the worker's process group
//!   SIGKILL when its own end closes (`F_SETSIG`, `F_SETOWN`, `O_ASYNC`; fcntl(2)). That reaches
//!   busy and stopped workers, those that were stopped before they came here, and what their tasks
//!   have started, at the moment of the parent's death, and needs no living process to do it.
//! - The parent's death signal (`PR_SET_PDEATHSIG`) kills the group too, through a handler. It is
//!   for a parent that has been forked without exec, so that its copy holds the pipe open. The
//!   signal can't be SIGKILL: that could end the worker, and with it the first cord, before the
//!   pipe is closed, and what its tasks have started would live on.
//!
//! A worker that sees its channel close before either is pulled exits by itself; it then takes its
//! group with it ([`leave_with_group`]).

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::process::{Pid, Signal};

use crate::attach::HIGH_FD;
use crate::lane::{Note, Words};
use crate::protocol::Setup;

/// Nothing on Linux sends it, and by default it ends the process.
const PARENT_DIED: libc::c_int = libc::SIGSTKFLT;

/// Prepares this process, which has just started. `parent` is who started it.
///
/// # Errors
///
/// When the parent is already gone, or the system refuses what can't be done without.
pub(crate) fn harden(parent: u32) -> io::Result<()> {
    close_strays();
    reset_signals();
    let death = Signal::from_named_raw(PARENT_DIED);
    rustix::process::set_parent_process_death_signal(death).map_err(|error| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("prctl (to end with the parent): {error}"))
    })?;
    // A parent that died before the signal was set is not announced by it.
    if rustix::process::getppid().map(Pid::as_raw_pid) != i32::try_from(parent).ok() {
        return Err(io::Error::other("the parent is gone"));
    }
    Ok(())
}

/// Closes what was inherited by accident: the parent's other threads open files at any time, and
/// not all of them are closed by exec.
///
/// What exec has let through has no close-on-exec flag, and what was opened since has one: Rust sets
/// it on every file. The program may have opened some before it got here, and its threads go on
/// doing so. A descriptor that C code has opened in this process without the flag is taken for an
/// inherited one.
fn close_strays() {
    for fd in inherited() {
        // SAFETY: nothing in this process owns a descriptor that it has inherited: the parent keeps
        // none open for a worker but the standard three.
        unsafe { libc::close(fd) };
    }
}

/// The descriptors above the standard three that exec has let through.
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
        // Without /proc, or with no descriptor left to read it.
        Err(_) => {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: writes to a local, which stays as it is where the call is refused.
            unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
            // 4 ms at the most.
            let end = limit.rlim_max.min(65_536) as libc::c_int;
            (libc::STDERR_FILENO + 1..end).filter(is_inherited).collect()
        }
    }
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

/// Moves a descriptor to where no task closes it by mistake. A low limit of open files may leave no
/// room up there; then it stays where it is.
pub(crate) fn move_high(descriptor: OwnedFd) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(&descriptor, HIGH_FD).unwrap_or(descriptor)
}

/// Takes over the control socket, which is standard input; standard input is empty from then on.
///
/// # Errors
///
/// When it is no socket of the parent's: somebody else has started this process.
pub(crate) fn take_control_socket(parent: u32) -> io::Result<OwnedFd> {
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map(move_high)?;
    // Who made the socket, as the kernel knows it: a process of another user must not have its calls
    // run here, as could be tried through `sudo` with a command line of its own.
    let peer = rustix::net::sockopt::socket_peercred(&control);
    let is_parents = peer.is_ok_and(|peer| {
        peer.pid.as_raw_pid().cast_unsigned() == parent && peer.uid == rustix::process::geteuid()
    });
    if !is_parents {
        return Err(io::Error::other(
            "standard input is no socket of the process that has started it",
        ));
    }
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(control)
}

/// Keeps the liveness pipe for as long as the process lives.
pub(crate) fn hold_liveness_pipe(pipe: OwnedFd) {
    std::mem::forget(pipe);
}

/// Whether the worker ends because the parent's channel has.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// Has this process take its group with it when it exits. A parent that dies closes the channel, as
/// one that lets a worker go does; the worker may then be gone before either cord is pulled, and
/// what its tasks have started would live on.
pub(crate) fn leave_with_group() {
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
            leave_for_a_group_of_its_own();
        }
    }
}

/// The parent's group can't be joined where it is in another session, or outside of this PID
/// namespace. A process that leads a group can't make another one for itself, but a child's it can
/// join.
fn leave_for_a_group_of_its_own() {
    // SAFETY: plain system calls; the child makes nothing else.
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

/// Holds this process's PID on a page that the kernel empties in a copy of the process, also in one
/// made by a raw `clone`, of which no handler of `fork` hears.
static PID_PAGE: OnceLock<Option<&'static AtomicU32>> = OnceLock::new();

fn pid_page() -> Option<&'static AtomicU32> {
    *PID_PAGE.get_or_init(|| {
        let (read_write, private) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping of a page, which is never unmapped and holds nothing but the number. Where
        // the kernel would not empty it in a copy, nothing is written to it.
        unsafe {
            let page = libc::mmap(std::ptr::null_mut(), PAGE, read_write, private, -1, 0);
            let is_emptied =
                page != libc::MAP_FAILED && libc::madvise(page, PAGE, libc::MADV_WIPEONFORK) == 0;
            is_emptied.then(|| AtomicU32::from_ptr(page.cast()))
        }
    })
}

/// At least what the kernel maps for one number.
const PAGE: usize = 4096;

/// This process's PID, without a system call where it is known.
#[inline]
pub fn own_pid() -> u32 {
    let Some(page) = pid_page() else { return std::process::id() };
    match page.load(Ordering::Relaxed) {
        0 => {
            page.store(std::process::id(), Ordering::Relaxed);
            std::process::id()
        }
        pid => pid,
    }
}

/// The process that serves as a worker; zero before there is one.
static SERVING: AtomicU32 = AtomicU32::new(0);

/// Notes that it is this process that serves.
pub(crate) fn begin_serving() {
    SERVING.store(own_pid(), Ordering::Relaxed);
}

/// How a worker is told from a copy that a task has made of it by forking.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Serving {
    page: Option<&'static AtomicU32>,
    /// The worker's PID; zero where there is none.
    pid: u32,
}

#[inline]
pub(crate) fn serving() -> Serving {
    Serving { page: pid_page(), pid: SERVING.load(Ordering::Relaxed) }
}

impl Serving {
    /// Ends a process that a task has forked and that has returned from the task: the channel, the
    /// lane and the answer are its parent's, and two processes must never serve one channel. What is
    /// buffered for output is its parent's to write.
    #[inline]
    pub(crate) fn end_copy(self) {
        let pid = self.page.map_or_else(std::process::id, |page| page.load(Ordering::Relaxed));
        if self.pid != 0 && pid != self.pid {
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) };
        }
    }
}

/// Ends a copy of the worker, as [`Serving::end_copy`].
#[inline]
pub(crate) fn end_copy() {
    serving().end_copy();
}

/// Does to this process what its pool asks for.
///
/// # Errors
///
/// When the system refuses one of them.
pub(crate) fn apply(setup: &Setup) -> io::Result<()> {
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
static LANE: OnceLock<&'static Words> = OnceLock::new();

/// Has an abort that follows on refused memory noted in the lane, from where the parent can tell it
/// from other aborts.
///
/// errno doesn't tell: it keeps ENOMEM long after a refusal that the task has got over, and printing the
/// last words may change it. What
/// aborts is known by the aborting thread's stack, where Rust's allocation error handler is, or, in
/// C++, by the exception that is being thrown. A C program's `abort` after `malloc` has failed can't be
/// told from another, and is not noted.
pub(crate) fn note_refused_memory(lane: &'static Words) {
    let _ = LANE.set(lane);
    let handler = note_abort as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void);
    // SAFETY: plain system calls on local data; see the handler for what it does.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGABRT, &action, std::ptr::null_mut());
    }
}

/// Runs on the thread that aborts; after it has returned, `abort` goes on. What it does is more than a
/// signal handler may do at any time, so it does it only where this thread itself has called `abort`,
/// and not on the small stack on which a stack overflow is reported.
extern "C" fn note_abort(_signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: plain system calls that write to a local; the kernel passes a handler that asks for it a
    // valid `info`, which a signal that was sent by a process has with a PID.
    let is_suspect = unsafe {
        let mut stack: libc::stack_t = std::mem::zeroed();
        libc::sigaltstack(std::ptr::null(), &mut stack) == 0
            && stack.ss_flags & libc::SS_ONSTACK == 0
            && (*info).si_code == libc::SI_TKILL
            && (*info).si_pid() == libc::getpid()
    };
    if is_suspect
        && let Some(lane) = LANE.get()
        && (rust_was_refused() || cpp_was_refused())
    {
        lane.leave_note(Note::OutOfMemory);
    }
}

/// Whether [`std::alloc::handle_alloc_error`] is among this thread's callers.
fn rust_was_refused() -> bool {
    /// What stands between it and the signal handler is some ten functions.
    const DEEPEST: usize = 64;

    #[repr(C)]
    struct Context([u8; 0]);

    // Of the library that unwinds panics, whose interface is the same on all of Linux's platforms.
    unsafe extern "C" {
        fn _Unwind_Backtrace(
            visit: extern "C" fn(*mut Context, *mut c_void) -> libc::c_int,
            data: *mut c_void,
        ) -> libc::c_int;
        fn _Unwind_GetIP(context: *mut Context) -> usize;
        fn _Unwind_FindEnclosingFunction(address: *mut c_void) -> *mut c_void;
    }

    struct Walk {
        depth: usize,
        is_found: bool,
    }

    extern "C" fn visit(context: *mut Context, data: *mut c_void) -> libc::c_int {
        const GO_ON: libc::c_int = 0;
        const STOP: libc::c_int = 4;
        // SAFETY: `data` is the walk that is passed below, and `context` is valid during the call. The
        // address is that of an instruction before the one to return to, so within the caller.
        unsafe {
            let walk = &mut *data.cast::<Walk>();
            walk.depth += 1;
            let address = _Unwind_GetIP(context).wrapping_sub(1);
            let function = _Unwind_FindEnclosingFunction(address as *mut c_void);
            let handler = std::alloc::handle_alloc_error as fn(std::alloc::Layout) -> !;
            walk.is_found = function.addr() == (handler as *const ()).addr();
            if walk.is_found || walk.depth == DEEPEST { STOP } else { GO_ON }
        }
    }

    let mut walk = Walk { depth: 0, is_found: false };
    // SAFETY: the function that is called back has the type that is asked for.
    unsafe { _Unwind_Backtrace(visit, (&raw mut walk).cast()) };
    walk.is_found
}

/// Whether this thread ends for a C++ exception `std::bad_alloc`.
fn cpp_was_refused() -> bool {
    /// A `std::type_info` as the platforms' C++ ABI lays it out.
    #[repr(C)]
    struct TypeInfo {
        vtable: *const c_void,
        name: *const libc::c_char,
    }
    // SAFETY: where there is a C++ library, this is its function, of the ABI's type, which returns null
    // or a type that is never freed.
    unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"__cxa_current_exception_type".as_ptr());
        if symbol.is_null() {
            return false;
        }
        let current =
            std::mem::transmute::<*mut c_void, extern "C" fn() -> *const TypeInfo>(symbol);
        let exception = current();
        !exception.is_null() && std::ffi::CStr::from_ptr((*exception).name) == c"St9bad_alloc"
    }
}

/// How much this process has printed into the file that its output is captured in. Flushes what
/// Rust and C have buffered.
pub(crate) fn printed() -> u64 {
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    /// Has the kernel refuse a system call to this thread from now on.
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
    fn what_is_inherited_is_found_also_without_proc() {
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
