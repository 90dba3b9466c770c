//! Looking at processes: the only file that knows sysinfo. What is looked at many times a second is
//! read from /proc directly.

use std::collections::HashMap;

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// What a process uses.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Resident memory in bytes.
    pub(crate) memory: u64,
    /// CPU time since it started, in milliseconds.
    pub(crate) cpu_millis: u64,
}

/// Looks at `pids`, and at nothing else: a refresh of everything costs milliseconds.
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

/// A process's resident memory in bytes.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Returns whether a process is stopped, by a signal or a debugger; false where that can't be read.
pub(crate) fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may have any characters, so what follows it is looked for from the end: proc(5).
    stat.rsplit(") ").next().is_some_and(|fields| fields.starts_with(['T', 't']))
}

/// How many processes the kernel has killed for want of memory since it started, in all cgroups.
pub(crate) fn oom_kills() -> u64 {
    let vmstat = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
    count.unwrap_or(0)
}
