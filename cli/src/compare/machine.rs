//! The machine of the measurements.

use std::fs;
use std::time::{Duration, Instant};

use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    /// The number of available cores.
    pub(super) cores: usize,
    pub(super) memory: u64,
    pub(super) kernel: String,
    pub(super) procpool: &'static str,
    /// The load average over the minute before.
    pub(super) load: String,
    /// The share of the cores that was free before and after each part.
    pub(super) share_of_cores: Vec<f64>,
}

impl Machine {
    pub(super) fn detect() -> Self {
        Self {
            cpu: cpu(&read("/proc/cpuinfo")),
            cores: cores(),
            memory: memory(&read("/proc/meminfo")),
            kernel: read("/proc/sys/kernel/osrelease"),
            procpool: env!("CARGO_PKG_VERSION"),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            share_of_cores: vec![share_of_cores()],
        }
    }

    /// Samples the free share again.
    pub(super) fn refresh(&mut self) {
        self.share_of_cores.push(share_of_cores());
    }

    /// Describes a machine that other programs used, if they did.
    pub(super) fn busy(&self) -> Option<String> {
        /// A quiet machine also has clocks and daemons.
        const QUIET: f64 = 0.95;
        let least = self.share_of_cores.iter().copied().fold(1.0, f64::min);
        let busy = least < QUIET;
        busy.then(|| {
            format!("the machine was shared: {:.0} % of the cores were free", least * 100.0)
        })
    }

    /// Describes the machine in one line.
    pub(super) fn describe(&self) -> String {
        format!(
            "{}, {} cores, {}; Linux {}; procpool {}; load before the run {}",
            self.cpu,
            self.cores,
            crate::format::bytes(self.memory),
            self.kernel,
            self.procpool,
            self.load
        )
    }
}

/// Measures the share of the cores that this process gets if it wants all of them. Below 1,
/// measurements of pure work mean little.
fn share_of_cores() -> f64 {
    const LONG: Duration = Duration::from_millis(200);
    let cores = cores();
    let (before, start) = (cpu_seconds(), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| while start.elapsed() < LONG {});
        }
    });
    (cpu_seconds() - before) / (start.elapsed().as_secs_f64() * cores as f64)
}

/// Returns the CPU seconds of this process, over all threads.
fn cpu_seconds() -> f64 {
    let ticks = || -> Option<u64> {
        let stat = read("/proc/self/stat");
        // After the name in parentheses, which may contain anything, utime and stime are the 12th
        // and 13th.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    ticks().unwrap_or(0) as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Returns the number of available cores.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the name of the CPU. Some architectures have none there.
fn cpu(cpuinfo: &str) -> String {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

fn memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_named_where_it_has_a_name() {
        assert_eq!(cpu("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"), "Some CPU @ 2 GHz");
        assert_eq!(cpu("processor\t: 0\n"), std::env::consts::ARCH);
        assert_eq!(memory("MemTotal:       16 kB\nMemFree: 1 kB\n"), 16384);
    }
}
