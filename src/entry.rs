//! The way into a process: whether it is a worker, and whether it may make pools.

use std::sync::atomic::{AtomicBool, Ordering};

use procpool_worker::protocol::{MARKER, Marker};
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
    let Ok(value) = std::env::var(MARKER) else { return };
    // SAFETY: `init` is called before the program has started a thread: it is the first line of
    // `main`, or runs even before that.
    unsafe { std::env::remove_var(MARKER) };
    match Marker::from_env(&value) {
        // SAFETY: a pool has set the marker for a copy of its own executable; the handshake compares
        // the two.
        Some(marker) => unsafe { serve::run(&marker) },
        None => {
            eprintln!("procpool: {MARKER}={value:?} was not set by this version of procpool");
            std::process::exit(2)
        }
    }
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
