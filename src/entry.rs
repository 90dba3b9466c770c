//! The way into a process: whether it is a worker, and whether it may make pools.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use procpool_worker::protocol::{SpawnToken, TITLE};
use procpool_worker::serve;

static INITIALIZED: AtomicBool = AtomicBool::new(false);

/// Makes this process able to have pools. Must be the first line of `main`.
///
/// In a process that a pool has started as a worker, it serves the pool and never returns. In any
/// other it returns at once; calling it again does nothing.
///
/// ```no_run
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procpool::init();
///     let pool = procpool::Pool::new(4)?;
///     println!("{:?}", pool.map(|x: u32| x * x, 0..5)?);
///     Ok(())
/// }
/// ```
///
/// What the program has done before `init` is done in each worker too: files that it has opened stay
/// open there, and threads that it has started run on beside the tasks. The worker closes only those
/// descriptors that it has inherited: the ones without the close-on-exec flag, which is set on every
/// file that Rust opens. It must be the main thread that calls `init`: on another one, a worker would
/// go on with `main`, so there it ends with an error.
///
/// [`main!`](crate::main) enters before `main`, where nothing has been done yet: for programs whose
/// `main` starts a runtime, or that have initializers of their own.
///
/// In a program that has more privileges than its user (set-user-ID, set-group-ID, file
/// capabilities), `init` never makes a process a worker, and a pool is
/// [`Error::Privileged`](crate::Error::Privileged).
///
/// # Open files
///
/// Each worker, [`Process`](crate::Process), channel, and shared value takes file descriptors, and the
/// limit that a shell sets (1,024) is soon reached. So `init` raises this process's soft limit of open
/// files as far as the hard limit allows, up to 65,536. Workers get the limit that the program was
/// started with, and so does what their tasks start: a program that calls `select` must not have
/// descriptors above 1,023. What the program itself starts inherits the raised limit.
pub fn init() {
    let first = !INITIALIZED.swap(true, Ordering::SeqCst);
    if !first {
        return;
    }
    if is_privileged() {
        return;
    }
    let mut arguments = command_line().into_iter().skip(1);
    let is_worker = |title: &OsString| title.as_encoded_bytes().starts_with(TITLE.as_bytes());
    if !arguments.next().is_some_and(|title| is_worker(&title)) {
        raise_open_files();
        return;
    }
    if rustix::thread::gettid() != rustix::process::getpid() {
        eprintln!(
            "procpool worker: init() was called on another thread than the main one, where a worker would go on with `main`: make it the first line of `main`, or add `procpool::main!();` at the top level"
        );
        std::process::exit(2);
    }
    let token = arguments.next().and_then(|token| SpawnToken::from_arg(&token.to_string_lossy()));
    match token {
        // SAFETY: a pool has started this process, a copy of its own executable, with the token; the
        // handshake compares the two.
        Some(token) => unsafe { serve::run(token) },
        // Going on as a program could start pools, and those workers again.
        None => {
            eprintln!(
                "procpool: {TITLE}… is for workers, and this one was not started by this version of procpool"
            );
            std::process::exit(2)
        }
    }
}

/// Returns the command line. Before `main`, some C libraries have not told Rust of it.
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

/// Whether this program has more privileges than the user who started it. That user chooses its
/// arguments and environment, and could drive a worker that has them.
pub(crate) fn is_privileged() -> bool {
    // SAFETY: reads a value that the kernel has left to the process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// The file that this code is mapped from, and the executable, where they are two: in a library that
/// another program has loaded, and in a program that was started by way of the dynamic loader. A copy
/// of that executable would not be a worker, and might do anything. None where it can't be known.
pub(crate) fn foreign_image() -> Option<(PathBuf, PathBuf)> {
    static FOREIGN: OnceLock<Option<(PathBuf, PathBuf)>> = OnceLock::new();
    let find = || {
        let executable = std::fs::read_link("/proc/self/exe").ok()?;
        let inode = std::fs::metadata("/proc/self/exe").ok()?.ino();
        let maps = std::fs::read("/proc/self/maps").ok()?;
        let here = (init as fn() as *const ()).addr();
        for line in maps.split(|byte| *byte == b'\n') {
            // Range, permissions, offset, device, inode, and the path behind any number of spaces.
            let mut fields = line.splitn(6, |byte| *byte == b' ');
            let range = str::from_utf8(fields.next()?).ok()?;
            let (start, end) = range.split_once('-')?;
            let parse = |address| usize::from_str_radix(address, 16).ok();
            if !(parse(start)?..parse(end)?).contains(&here) {
                continue;
            }
            let mapped: u64 = str::from_utf8(fields.nth(3)?).ok()?.parse().ok()?;
            let path = PathBuf::from(OsStr::from_bytes(fields.next()?.trim_ascii_start()));
            // Some file systems show one number here and another there.
            let is_foreign = mapped != 0 && mapped != inode && path != executable;
            return is_foreign.then_some((path, executable));
        }
        None
    };
    FOREIGN.get_or_init(find).clone()
}

/// More open files than any pool needs. Beyond it, programs that close or visit each possible number
/// become slow, and some systems have a hard limit of a thousand million.
const MOST_OPEN_FILES: u64 = 65_536;

/// The limits of open files that the program was started with, where [`init`] has raised them.
static STARTED_WITH: OnceLock<(u64, u64)> = OnceLock::new();

/// This process's limits of open files, soft and hard; none where the system refuses to say.
pub(crate) fn open_files() -> Option<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to a local.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    read.then_some((limit.rlim_cur, limit.rlim_max))
}

/// Raises the soft limit of open files, as [`init`] says.
fn raise_open_files() {
    let Some((soft, hard)) = open_files() else { return };
    let limit = libc::rlimit { rlim_cur: hard.min(MOST_OPEN_FILES), rlim_max: hard };
    // SAFETY: a plain system call on local data. Where it is refused, the limit stays as it is.
    if limit.rlim_cur > soft && unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } == 0 {
        let _ = STARTED_WITH.set((soft, hard));
    }
}

/// The limits of open files, soft and hard, that a worker is to have, if they are not this process's.
/// Where the program has set another soft limit since, that one is meant.
pub(crate) fn open_files_of_workers() -> Option<(u64, u64)> {
    let (soft, hard) = *STARTED_WITH.get()?;
    let (now, hard_now) = open_files()?;
    (now == hard.min(MOST_OPEN_FILES)).then_some((soft, hard_now))
}

/// Enters before `main`: what [`init`] does, for a program that can't make it the first line.
///
/// Once at the top level of the program's `main.rs`. A process that is started as a worker serves before
/// `main` is called, so no line of `main` runs there. It is for programs
///
/// - whose `main` is an async one: with `#[tokio::main]`, the runtime's threads run before the first
///   line, in each worker too;
/// - that start threads, open files or read their arguments first;
/// - whose tasks start a runtime of their own, which inside of another runtime's `block_on` is a panic.
///
/// ```
/// procpool::main!();
///
/// fn main() -> Result<(), procpool::Error> {
///     let pool = procpool::Pool::new(2)?;
///     assert_eq!(pool.apply(|x: u32| x * x, 7), Ok(49));
///     Ok(())
/// }
/// ```
#[macro_export]
macro_rules! main {
    () => {
        $crate::test_support!();
    };
}

/// Lets the `#[test]` functions of a test binary make pools.
///
/// A worker is a copy of the running executable, which in a test is the test harness: it would run
/// the tests instead of serving. This macro, once at the top level of each test binary (in a
/// library with unit tests: `#[cfg(test)] procpool::test_support!();`), calls [`init`] before the
/// harness starts. It works under `cargo test` and under nextest.
///
/// ```
/// procpool::test_support!();
///
/// fn squares() {
///     let pool = procpool::Pool::new(2).unwrap();
///     assert_eq!(pool.apply(|x: u32| x * x, 7), Ok(49));
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! test_support {
    () => {
        const _: () = {
            extern "C" fn procpool_init() {
                $crate::init();
            }
            #[used]
            #[allow(unsafe_code)]
            #[unsafe(link_section = ".init_array")]
            static PROCPOOL_INIT: extern "C" fn() = procpool_init;
        };
    };
}
