//! Reads a host's name, CPUs and memory.

use std::num::NonZero;

/// Returns the host's name.
pub(crate) fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Returns the id of the running system, which changes with each boot.
pub(crate) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map_or_else(|_| String::new(), |id| id.trim_end().to_owned())
}

/// Returns the number of CPUs available to this process.
pub(crate) fn cpus() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    u32::try_from(cpus).unwrap_or(u32::MAX)
}

/// Returns the size of the memory in bytes.
pub(crate) fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

/// Lets this process run on every CPU that the system allows. Undoes the binding by a launcher.
pub(crate) fn use_all_cpus() {
    let mut all = rustix::thread::CpuSet::new();
    (0..rustix::thread::CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    // Refused at worst: then it runs where it did.
    let _ = rustix::thread::sched_setaffinity(None, &all);
}
