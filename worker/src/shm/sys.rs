//! Questions to the operating system that have no better home: the PID, the clocks, the thread's
//! stack, memory advice, moving descriptors.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;

/// Descriptors at and above this number survive a task that closes all the low ones.
pub const HIGH_FD: i32 = 512;

/// Moves a descriptor above [`HIGH_FD`]. It stays where it is if the limit of open files leaves no
/// space there.
pub(crate) fn move_high(descriptor: OwnedFd) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(&descriptor, HIGH_FD).unwrap_or(descriptor)
}

/// Adds the system call's name to its error.
pub(crate) fn with_call_name<T>(call: &str, outcome: rustix::io::Result<T>) -> io::Result<T> {
    outcome.map_err(|errno| {
        let error = io::Error::from(errno);
        match errno {
            // The callers explain these themselves, by their number.
            Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::NOMEM => error,
            _ => io::Error::new(error.kind(), format!("{call}: {error}")),
        }
    })
}

/// Returns an unpredictable number.
pub fn entropy() -> u64 {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_ne_bytes(bytes),
        // Forked copies of a process share the keys of `RandomState`, not their PID.
        _ => RandomState::new().hash_one((std::process::id(), now())),
    }
}

/// Holds this process's PID on a page that the kernel clears in a copy of the process, even in one
/// made by a raw `clone`, which runs no `fork` handler.
static PID_PAGE: OnceLock<Option<&'static AtomicU32>> = OnceLock::new();

/// Returns the page of [`PID_PAGE`], if the kernel supports it. Zero until [`own_pid`] has run.
pub(crate) fn pid_page() -> Option<&'static AtomicU32> {
    *PID_PAGE.get_or_init(|| {
        let (read_write, private) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping of a page, which is never unmapped and holds nothing but the PID. Nothing
        // is written to it unless the kernel clears it in a copy.
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

/// Returns this process's PID, without a system call where it is cached.
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

/// Flushes what Rust and C have buffered, and returns the size of the file that captures this
/// process's output.
pub(crate) fn output_len() -> u64 {
    let _ = std::io::stdout().flush();
    flush_c_streams();
    rustix::fs::fstat(std::io::stdout()).map_or(0, |file| file.st_size.cast_unsigned())
}

/// Flushes what C has buffered.
pub(crate) fn flush_c_streams() {
    // SAFETY: flushes C's own streams.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// Returns nanoseconds of `CLOCK_MONOTONIC`, which is one clock for all processes.
pub fn now() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// Returns nanoseconds of CPU time of this thread.
pub(crate) fn cpu_time() -> u64 {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock(which: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a local.
    unsafe { libc::clock_gettime(which, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Asks for a huge page behind untouched memory of that size. The kernel may ignore it.
pub(crate) fn prefer_huge_page(start: *mut u8, bytes: usize) {
    // SAFETY: advice on memory changes nothing that can be read.
    unsafe { libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE) };
}

/// Makes the kernel allocate pages behind memory that is about to be filled, in one call. Kernels before
/// 5.14 ignore it.
pub(crate) fn populate(start: *mut u8, bytes: usize) {
    // SAFETY: the memory's content does not change.
    unsafe { libc::madvise(start.cast(), bytes, libc::MADV_POPULATE_WRITE) };
}

/// Returns the addresses of this thread's stack, where the C library knows them.
pub(crate) fn stack_bounds() -> Option<std::ops::Range<usize>> {
    thread_local! {
        // For the main thread, the C library reads `/proc/self/maps`.
        static STACK: Option<(usize, usize)> = query();
    }
    fn query() -> Option<(usize, usize)> {
        let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
        let (mut start, mut size) = (std::ptr::null_mut(), 0);
        // SAFETY: the attributes are initialised where the first call returns zero, and only then read
        // and destroyed. The rest is written to locals.
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
