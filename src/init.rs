//! [`init`], and the macros that call it before `main`.

use crate::entry;

/// Prepares this process for building pools. Must be the first line of `main`.
///
/// In a process that a pool started as a worker, it serves the pool and never returns. In every other
/// process it returns at once. Further calls have no effect.
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
/// Code before `init` runs in each worker too: files that it opens stay open, and threads that it starts
/// keep running beside the tasks. The worker closes only inherited descriptors: those without the
/// close-on-exec flag, which the standard library sets on every file that it opens. It can't tell them from
/// descriptors that C code, or crates such as rustix and libc, have opened without the flag before `init`: set it
/// there.
///
/// [`main!`](crate::main) runs before `main`. Use it in programs whose `main` starts a runtime, threads
/// or initializers of its own.
///
/// In a program with more privileges than its user (set-user-ID, set-group-ID, file capabilities),
/// `init` never turns a process into a worker, and building a pool fails with
/// [`Error::Privileged`](crate::Error::Privileged).
///
/// In a run of `mpirun` or `srun`, with the feature `mpi`, it returns on the first host only. On the others
/// it serves the pools of the first, and ends the process with the run; see
/// [`PoolBuilder::hosts`](crate::PoolBuilder::hosts).
///
/// # Exits
///
/// A worker exits with code 2 if `init` is called on a thread other than the main thread, because the
/// main thread would continue with `main`. It also exits with code 2 if another version of this crate
/// started it.
///
/// # Open files
///
/// Each worker, [`Process`](crate::Process), channel and shared value uses file descriptors, and the
/// common soft limit of 1,024 is soon reached. `init` raises this process's soft limit up to the hard
/// limit, at most to 65,536. Workers and the processes that their tasks start get the original limit,
/// because a program that calls `select` must not have descriptors above 1,023. Other children of this
/// process inherit the raised limit.
pub fn init() {
    if entry::enter() {
        #[cfg(feature = "mpi")]
        crate::pool::hosts::mpi::enter();
    }
}

/// Calls [`init`] before `main`, for programs that cannot make it the first line.
///
/// Write it once, at the top level of the program's `main.rs`. A worker serves its pool before `main`
/// is called, so no line of `main` runs in it. Use it in programs
///
/// - with an async `main`: with `#[tokio::main]`, the runtime's threads start before the first line of
///   `main`, in each worker too;
/// - that start threads, open files or read their arguments first;
/// - whose tasks start a runtime of their own, which panics inside another runtime's `block_on`.
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

/// Lets the `#[test]` functions of a test binary build pools.
///
/// A worker is a copy of the running executable, which in a test is the test harness: it would run the
/// tests instead of serving the pool. This macro calls [`init`] before the harness starts. Write it once
/// at the top level of each test binary; in a library with unit tests, write
/// `#[cfg(test)] procpool::test_support!();`. It works under `cargo test` and under nextest.
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
