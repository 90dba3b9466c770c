//! Process start: whether this process is a worker, and whether it may build pools.
//! [`init`](crate::init) is the public way in.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use procpool_worker::protocol::{SpawnToken, TITLE};
use procpool_worker::{serve, template_process};

static INITIALIZED: AtomicBool = AtomicBool::new(false);

/// Serves the pool if this process is a worker; then it never returns. Returns whether this is the first
/// call, in a process that may build pools.
pub(crate) fn enter() -> bool {
    let first = !INITIALIZED.swap(true, Ordering::SeqCst);
    if !first || is_privileged() {
        return false;
    }
    let mut arguments = command_line().into_iter().skip(1);
    let is_worker = |title: &OsString| title.as_encoded_bytes().starts_with(TITLE.as_bytes());
    if !arguments.next().is_some_and(|title| is_worker(&title)) {
        raise_open_files();
        return true;
    }
    if rustix::thread::gettid() != rustix::process::getpid() {
        eprintln!(
            "procpool worker: init() was called on a thread other than the main thread, so the worker would continue with `main`: make it the first line of `main`, or add `procpool::main!();` at the top level"
        );
        std::process::exit(2);
    }
    let token = arguments.next().and_then(|token| SpawnToken::from_arg(&token.to_string_lossy()));
    match token {
        // SAFETY: a pool started this process, a copy of its own executable, with the token. The
        // handshake compares the two images.
        Some(token) if token.is_template => unsafe { template_process::run(token) },
        // SAFETY: as above.
        Some(token) => unsafe { serve::run(token) },
        // Continuing as the program could build pools, whose workers would do the same.
        None => {
            eprintln!(
                "procpool: arguments that start with {TITLE} are reserved for workers, and this process was not started by this version of procpool"
            );
            std::process::exit(2)
        }
    }
}

/// Returns up to three arguments of the command line. Some C libraries do not pass it to Rust before
/// `main`.
fn command_line() -> Vec<OsString> {
    let known: Vec<OsString> = std::env::args_os().take(3).collect();
    if !known.is_empty() {
        return known;
    }
    let line = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    let arguments = line.split(|byte| *byte == 0).take(3);
    arguments.map(|argument| OsString::from_vec(argument.to_vec())).collect()
}

pub(crate) fn is_initialized() -> bool {
    INITIALIZED.load(Ordering::SeqCst)
}

/// Returns whether this program has more privileges than the user who started it. That user sets its
/// arguments and environment, and could control a privileged worker.
pub(crate) fn is_privileged() -> bool {
    // SAFETY: reads a value of the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Returns the file that this code is mapped from and the executable, if they differ. They differ in a
/// library that another program loaded, and in a program started through the dynamic loader. A copy of
/// that executable would not be a worker and might do anything. Returns `None` if `/proc` cannot tell.
pub(crate) fn foreign_image() -> Option<(PathBuf, PathBuf)> {
    static FOREIGN: OnceLock<Option<(PathBuf, PathBuf)>> = OnceLock::new();
    let find = || {
        let executable = std::fs::read_link("/proc/self/exe").ok()?;
        let inode = std::fs::metadata("/proc/self/exe").ok()?.ino();
        let maps = std::fs::read("/proc/self/maps").ok()?;
        let here = (enter as fn() -> bool as *const ()).addr();
        for line in maps.split(|byte| *byte == b'\n') {
            // Range, permissions, offset, device, inode, spaces, path.
            let mut fields = line.splitn(6, |byte| *byte == b' ');
            let range = str::from_utf8(fields.next()?).ok()?;
            let (start, end) = range.split_once('-')?;
            let parse = |address| usize::from_str_radix(address, 16).ok();
            if !(parse(start)?..parse(end)?).contains(&here) {
                continue;
            }
            let mapped: u64 = str::from_utf8(fields.nth(3)?).ok()?.parse().ok()?;
            let path = PathBuf::from(OsStr::from_bytes(fields.next()?.trim_ascii_start()));
            // Some file systems report different inode numbers in the two places.
            let is_foreign = mapped != 0 && mapped != inode && path != executable;
            return is_foreign.then_some((path, executable));
        }
        None
    };
    FOREIGN.get_or_init(find).clone()
}

/// The highest soft limit of open files that [`init`](crate::init) sets: more than any pool needs. With a higher one,
/// programs that close every possible descriptor become slow, and some systems have a hard limit of a
/// billion.
const MAX_OPEN_FILES: u64 = 65_536;

/// The soft and hard limits of open files at the start of the program, if [`init`](crate::init) raised them.
static STARTED_WITH: OnceLock<(u64, u64)> = OnceLock::new();

/// Returns this process's soft and hard limits of open files, or `None` if the system call fails.
pub(crate) fn open_files() -> Option<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to a local.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    read.then_some((limit.rlim_cur, limit.rlim_max))
}

/// Raises the soft limit of open files as [`init`](crate::init) documents.
fn raise_open_files() {
    let Some((soft, hard)) = open_files() else { return };
    let limit = libc::rlimit { rlim_cur: hard.min(MAX_OPEN_FILES), rlim_max: hard };
    // SAFETY: a plain system call on local data. If it is refused, the limit stays unchanged.
    if limit.rlim_cur > soft && unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } == 0 {
        let _ = STARTED_WITH.set((soft, hard));
    }
}

/// Returns the soft and hard limits of open files for workers, if they differ from this process's. If the
/// program has changed the soft limit since [`init`](crate::init), workers inherit that limit.
pub(crate) fn open_files_of_workers() -> Option<(u64, u64)> {
    let (soft, hard) = *STARTED_WITH.get()?;
    let (now, hard_now) = open_files()?;
    (now == hard.min(MAX_OPEN_FILES)).then_some((soft, hard_now))
}
