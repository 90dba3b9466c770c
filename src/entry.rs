//! The way into a process: whether it is a worker, and whether it may make pools.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicBool, Ordering};

use procpool_worker::protocol::{TITLE, Token};
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
pub fn init() {
    let first = !INITIALIZED.swap(true, Ordering::SeqCst);
    if !first {
        return;
    }
    let mut arguments = command_line().into_iter().skip(1);
    let is_worker = |title: &OsString| title.as_encoded_bytes().starts_with(TITLE.as_bytes());
    if !arguments.next().is_some_and(|title| is_worker(&title)) {
        return;
    }
    let token = arguments.next().and_then(|token| Token::from_arg(&token.to_string_lossy()));
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
