//! Shared by the examples that measure: the machine, and the time.

use std::time::{Duration, Instant};

use sysinfo::System;

#[allow(dead_code)] // not every example shows it
/// Describes the machine in one line.
pub(crate) fn machine() -> String {
    let system = System::new_all();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let name = system.cpus().first().map_or("", |cpu| cpu.brand().trim());
    let kernel = System::kernel_version().unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let build = if cfg!(debug_assertions) { " (debug build)" } else { "" };
    format!("{cpus} CPUs, {name}; Linux {kernel}; procpool {version}{build}")
}

/// Returns the result of `work`, and how long it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (work(), start.elapsed())
}

#[allow(dead_code)] // not every example needs it
/// Returns a time in milliseconds.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
