//! Resource use and children of processes, read from /proc.

/// The resource use of a process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Resident memory in bytes.
    pub(crate) memory: u64,
    /// CPU time since it started, in milliseconds.
    pub(crate) cpu_millis: u64,
}

/// Returns the resident memory of a process in bytes.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Returns the proportional set size of a process in bytes: a shared page counts in part for each
/// process.
pub(crate) fn proportional(pid: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Returns how many processes of this machine run, could run, or wait for a disk.
pub(crate) fn runnable() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let count = |name: &str| -> Option<u64> {
        stat.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
    };
    Some(count("procs_running ")? + count("procs_blocked ").unwrap_or(0))
}

/// Returns the memory of this machine in bytes that programs can get without swapping.
pub(crate) fn available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Returns the PIDs of a process's children.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let of_thread = |thread: std::fs::DirEntry| {
        std::fs::read_to_string(thread.path().join("children")).unwrap_or_default()
    };
    let pids: Vec<String> = threads.flatten().map(of_thread).collect();
    pids.iter().flat_map(|pids| pids.split(' ')).filter_map(|pid| pid.parse().ok()).collect()
}

/// Returns the PIDs of a process's descendants.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut found = children(pid);
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children(*pid));
        next += 1;
    }
    found
}

/// Returns the numbers that the kernel tells of a process, from its parent on: proc(5). None if it has ended.
fn numbers_of(pid: u32) -> Vec<i64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may contain any character, so the search starts at the end. The state follows it.
    let fields = stat.trim_end().rsplit(") ").next().unwrap_or_default().split(' ').skip(1);
    // The last ones may be addresses, which are larger.
    fields.map_while(|number| number.parse().ok()).collect()
}

/// Returns whether a process descends from another.
pub(crate) fn descends(pid: u32, ancestor: u32) -> bool {
    let mut current = pid;
    while current > 1 {
        current = numbers_of(current).first().map_or(0, |parent| *parent as u32);
        if current == ancestor {
            return true;
        }
    }
    false
}

/// Returns the resource use of a process with its descendants, including those that have ended.
pub(crate) fn family(pid: u32) -> Usage {
    let ticks = rustix::param::clock_ticks_per_second();
    let mut usage = Usage::default();
    for pid in std::iter::once(pid).chain(descendants(pid)) {
        usage.memory += resident(pid).unwrap_or(0);
        let times: i64 = numbers_of(pid).get(10..14).unwrap_or_default().iter().sum();
        usage.cpu_millis += times.max(0).cast_unsigned() * 1000 / ticks.max(1);
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_descends_from_those_that_started_it_and_from_no_other() {
        let own = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("sleep");
        assert!(descends(child.id(), own));
        assert!(!descends(own, child.id()));
        assert!(!descends(own, own));
        let _ = child.kill();
        let _ = child.wait();
        assert!(!descends(child.id(), own), "it has ended");
    }
}
