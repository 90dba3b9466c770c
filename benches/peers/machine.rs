//! The machine of the measurements, and the versions of the contenders.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::peers::Peers;

const LOCK: &str = include_str!("../../Cargo.lock");

#[derive(Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    pub(crate) versions: Vec<(String, String)>,
    /// The load average of the minute before the run.
    pub(crate) load: String,
}

impl Machine {
    pub(crate) fn detect(peers: &Peers) -> Self {
        let mut versions = vec![("procpool".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
        let mut add = |name: &str, version: Option<String>| {
            versions.extend(version.map(|version| (name.to_owned(), version)));
        };
        add("procspawn", locked("procspawn", "1."));
        add("rayon", locked("rayon", "1."));
        add("ipc-channel", locked("ipc-channel", "0.23"));
        add("Python", peers.mp_pool.as_ref().map(|python| python.version.clone()));
        add("rustc", rustc());
        Self {
            cpu: cpu(),
            cores: peers.cores,
            memory_gib: meminfo("MemTotal:") as f64 / 1048576.0,
            kernel: read("/proc/sys/kernel/osrelease"),
            versions,
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

/// Returns the share of the cores that this process gets if it wants all of them. Below 1, other programs run
/// too, and rows about pure work mean little.
pub(crate) fn share_of_cores(cores: usize) -> f64 {
    const LONG: Duration = Duration::from_millis(100);
    let before = cpu_seconds();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| while start.elapsed() < LONG {});
        }
    });
    (cpu_seconds() - before) / (start.elapsed().as_secs_f64() * cores as f64)
}

/// Returns the CPU seconds of this process, over all threads.
pub(crate) fn cpu_seconds() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that may be written.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Returns the available memory in bytes.
pub(crate) fn available_memory() -> u64 {
    meminfo("MemAvailable:") * 1024
}

/// Returns a line of /proc/meminfo in KiB.
fn meminfo(name: &str) -> u64 {
    let text = read("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn cpu() -> String {
    let text = read("/proc/cpuinfo");
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.to_owned())
}

fn rustc() -> Option<String> {
    let output = Command::new("rustc").arg("--version").output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.split(' ').nth(1)?.to_owned())
}

/// Returns the version of a package in the lock file.
fn locked(package: &str, starts: &str) -> Option<String> {
    let name = format!("name = \"{package}\"");
    let mut lines = LOCK.lines();
    while lines.any(|line| line == name) {
        let version = lines.next()?.strip_prefix("version = \"")?.strip_suffix('"')?;
        if version.starts_with(starts) {
            return Some(version.to_owned());
        }
    }
    None
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
