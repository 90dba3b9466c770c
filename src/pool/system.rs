//! Checks, before a pool starts, that the program and the system allow it.

use std::ffi::OsString;
use std::num::NonZero;

use procpool_worker::transport;

use crate::entry;
use crate::error::Error;
use crate::pool::drive::chunk::inline_limit;
use crate::pool::process::preparation;

/// File descriptors that a pool needs for itself, or temporarily while a worker starts.
const SPARE_FDS: u64 = 12;

/// Checks that this program can have workers.
pub(super) fn check_program() -> Result<(), Error> {
    if entry::is_privileged() {
        return Err(Error::Privileged);
    }
    if let Some((library, executable)) = entry::foreign_image() {
        return Err(Error::Library { library, executable });
    }
    match entry::is_initialized() {
        true => Ok(()),
        false => Err(Error::NotInitialized),
    }
}

/// Checks that the system allows `workers` workers. Returns the largest payload sent inline in a frame.
pub(super) fn check_system(workers: usize) -> Result<usize, Error> {
    check_open_files(workers)?;
    let frame = transport::max_frame().map_err(|error| Error::System {
        what: "a socket",
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(inline_limit(frame))
}

/// Checks the file descriptor limit up front. Otherwise it would be hit in the middle of a handshake.
fn check_open_files(workers: usize) -> Result<(), Error> {
    let limit = entry::open_files().map(|(soft, _)| soft);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
    let needed = open + preparation::FDS_PER_WORKER * workers as u64 + SPARE_FDS;
    match limit {
        Some(limit) if needed > limit => Err(Error::OpenFiles { workers, needed, limit }),
        _ => Ok(()),
    }
}

/// Environment variables that limit libraries' thread pools to a worker's share of the CPUs, except those
/// that are already set.
pub(super) fn share_of_cpus(workers: usize) -> Vec<(OsString, OsString)> {
    const VARIABLES: [&str; 7] = [
        "RAYON_NUM_THREADS",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
    ];
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = (cpus / workers).max(1).to_string();
    // A single worker has all CPUs and needs no limit.
    let is_open = |name: &&str| workers > 1 && std::env::var_os(name).is_none();
    VARIABLES.into_iter().filter(is_open).map(|name| (name.into(), share.clone().into())).collect()
}

/// Returns the CPUs that this process may run on.
pub(super) fn allowed_cpus() -> Vec<u32> {
    let allowed = rustix::thread::sched_getaffinity(None);
    let cpus = 0..rustix::thread::CpuSet::MAX_CPU;
    allowed.map_or_else(
        |_| Vec::new(),
        |allowed| cpus.filter(|cpu| allowed.is_set(*cpu)).map(|cpu| cpu as u32).collect(),
    )
}
