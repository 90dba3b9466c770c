//! Resource use and state of processes. This is the only file that uses sysinfo. Values that are sampled
//! many times a second are read from /proc directly.

use std::collections::HashMap;

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// The resource use of a process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Resident memory in bytes.
    pub(crate) memory: u64,
    /// CPU time since its start in milliseconds.
    pub(crate) cpu_millis: u64,
}

/// Returns the resource use of `pids`. It refreshes nothing else, because a full refresh costs milliseconds.
pub(crate) fn usage(pids: &[u32]) -> HashMap<u32, Usage> {
    let pids: Vec<Pid> = pids.iter().map(|pid| Pid::from_u32(*pid)).collect();
    let mut system = System::new();
    let fields = ProcessRefreshKind::nothing().with_memory().with_cpu().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), true, fields);
    let usage = |pid: &Pid| {
        let process = system.process(*pid)?;
        let usage = Usage { memory: process.memory(), cpu_millis: process.accumulated_cpu_time() };
        Some((pid.as_u32(), usage))
    };
    pids.iter().filter_map(usage).collect()
}

/// Returns a process's resident memory in bytes.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Returns whether a process is stopped by a signal or a debugger; false if that cannot be read.
pub(crate) fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may contain any characters, so the search for its end starts at the line's end: proc(5).
    stat.rsplit(") ").next().is_some_and(|fields| fields.starts_with(['T', 't']))
}

/// Returns how many processes the kernel has killed for lack of memory since boot, in all cgroups.
pub(crate) fn oom_kills() -> u64 {
    let vmstat = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
    count.unwrap_or(0)
}
