//! The summary of a run: totals, each worker's share, and the most expensive jobs.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::format;
use super::journal::Before;
use super::row::Row;
use procpool::{HostName, WorkerInfo};

/// How many of the worst jobs are named, of each kind.
const WORST: usize = 3;

/// With less work, the wall time is mostly that of starting workers, and a speed-up would mean
/// nothing.
const MIN_WORK: Duration = Duration::from_millis(10);

/// The totals so far, by process.
pub(super) struct Tally {
    started: Instant,
    /// What the run did before it lost its engine.
    before: Before,
    by_process: HashMap<Process, Share>,
    total: Share,
    retried: u64,
    /// Failures that were killed with the run.
    killed: u64,
    slowest: Worst<Duration>,
    largest: Worst<u64>,
    failures: Vec<String>,
}

/// A process, on its host if there are several.
type Process = (Option<HostName>, u32);

/// The share of one process.
#[derive(Clone, Copy, Default)]
struct Share {
    worker: usize,
    tasks: u64,
    failed: u64,
    busy: Duration,
}

impl Share {
    fn note(&mut self, row: &Row) {
        self.worker = row.worker;
        self.tasks += 1;
        self.failed += u64::from(row.error.is_some());
        self.busy += row.elapsed;
    }
}

/// The jobs with the highest values, in descending order.
struct Worst<T>(Vec<(T, String)>);

impl<T: Ord + Copy> Worst<T> {
    fn note(&mut self, value: T, row: &Row) {
        if self.0.len() == WORST && self.0.last().is_some_and(|(least, _)| value <= *least) {
            return;
        }
        self.0.push((value, name(row)));
        self.0.sort_by_key(|(value, _)| Reverse(*value)); // stable: the first of equals stays first
        self.0.truncate(WORST);
    }

    fn line(&self, heading: &str, show: impl Fn(T) -> String) -> String {
        let worst: Vec<_> =
            self.0.iter().map(|(value, name)| format!("{name} ({})", show(*value))).collect();
        format!("{heading}: {}\n", worst.join(", "))
    }
}

/// Returns a job's name in the summary.
fn name(row: &Row) -> String {
    const LONGEST: usize = 40;
    let input = row.input.to_text();
    let input = format::one_line(&input);
    match input.char_indices().nth(LONGEST) {
        None => input.into_owned(),
        Some((end, _)) => format!("{}…", &input[..end]),
    }
}

impl Tally {
    /// Creates the tally of a run that started then.
    pub(super) fn since(started: Instant, before: Before) -> Self {
        Self {
            started,
            before,
            by_process: HashMap::new(),
            total: Share::default(),
            retried: 0,
            killed: 0,
            slowest: Worst(Vec::new()),
            largest: Worst(Vec::new()),
            failures: Vec::new(),
        }
    }

    pub(super) fn note(&mut self, row: &Row) {
        self.by_process.entry((row.host, row.pid)).or_default().note(row);
        self.total.note(row);
        self.retried += u64::from(row.attempt.saturating_sub(1));
        self.killed += u64::from(row.killed);
        self.slowest.note(row.elapsed, row);
        if let Some(memory) = row.memory {
            self.largest.note(memory, row);
        }
        if row.error.is_some() && self.failures.len() < WORST {
            self.failures.push(name(row));
        }
    }

    pub(super) fn failed(&self) -> u64 {
        self.total.failed
    }

    /// Formats a table of the workers.
    pub(super) fn workers(&self, workers: &[WorkerInfo]) -> String {
        let mut shares = self.by_process.clone();
        // On other hosts, what has not started yet isn't known by anything.
        for idle in workers.iter().filter(|idle| idle.pid != 0 || idle.host.is_none()) {
            let share = Share { worker: idle.slot, ..Share::default() };
            shares.entry((idle.host, idle.pid)).or_insert(share);
        }
        let memory =
            workers.iter().filter_map(|worker| Some(((worker.host, worker.pid), worker.memory?)));
        let memory: HashMap<Process, u64> = memory.collect();
        let mut lines: Vec<_> = shares.into_iter().collect();
        lines.sort_by_key(|((_, pid), share)| (share.worker, *pid));
        let hosts = lines.iter().filter_map(|((host, _), _)| *host);
        let width = hosts.map(|host| host.chars().count()).max().map(|width| width.max(6));

        let mut text =
            format!("\n{}", line(width, "host", "pid", ["tasks", "failed", "busy", "memory"]));
        for (process, share) in &lines {
            let (host, pid) = *process;
            let host = host.as_ref().map_or("", |host| host.as_str());
            text += &share.line(width, host, &named(pid), memory.get(process).copied());
        }
        let memory = Some(memory.values().sum()).filter(|sum| *sum > 0);
        text + &self.total.line(width, "", "total", memory) + "\n"
    }

    /// Formats the lines about the whole run. `noun` is `tasks` or `jobs`.
    ///
    /// `not_started` is the number of inputs that were not started, as far as known.
    pub(super) fn summary(&self, noun: &str, now: Instant, not_started: Option<&str>) -> String {
        let Share { tasks, failed, busy, .. } = self.total;
        let wall = now.duration_since(self.started);
        let noun = if tasks == 1 { noun.trim_end_matches('s') } else { noun };
        let seconds = wall.as_secs_f64().max(1e-9);
        let mut text = format!(
            "{} {noun} in {}, {} a second: {} done, {} failed, {} retried",
            format::grouped(tasks),
            format::duration(wall),
            format::rate(tasks as f64 / seconds),
            format::grouped(tasks - failed),
            format::grouped(failed - self.killed),
            format::grouped(self.retried),
        );
        if self.killed > 0 {
            text += &format!(", {} killed", format::grouped(self.killed));
        }
        if let Some(not_started) = not_started {
            text += &format!(", {not_started} not started");
        }
        text.push('\n');
        let Before { succeeded, failed: failed_before } = self.before;
        if self.before != Before::default() {
            text += &format!(
                "before it lost its engine: {} done, {} failed\n",
                format::grouped(succeeded),
                format::grouped(failed_before),
            );
        }
        if tasks < 2 {
            return text;
        }
        if busy >= MIN_WORK {
            text += &format!(
                "{} of work, {} times as fast as a serial run\n",
                format::duration(busy),
                format::factor(busy.as_secs_f64() / seconds)
            );
        }
        text += &self.slowest.line("slowest", format::duration);
        if !self.largest.0.is_empty() {
            text += &self.largest.line("most memory", format::bytes);
        }
        if failed > 0 {
            let more = failed - self.failures.len() as u64;
            let more = if more > 0 {
                format!(" and {} more", format::grouped(more))
            } else {
                String::new()
            };
            text += &format!("failed: {}{more}\n", self.failures.join(", "));
        }
        text
    }
}

impl Share {
    fn line(&self, width: Option<usize>, host: &str, name: &str, memory: Option<u64>) -> String {
        let cells = [
            &*format::grouped(self.tasks),
            &format::grouped(self.failed),
            &format::duration(self.busy),
            // The memory of a dead worker is unknown.
            &memory.map_or("-".to_owned(), format::bytes),
        ];
        line(width, host, name, cells)
    }
}

/// Formats a line, with a column for the host where it has a width.
fn line(width: Option<usize>, host: &str, name: &str, cells: [&str; 4]) -> String {
    let [tasks, failed, busy, memory] = cells;
    let host = width.map_or(String::new(), |width| format!("  {host:<width$}"));
    format!("{name:>8}{host}  {tasks:>11}  {failed:>9}  {busy:>9}  {memory:>10}\n")
}

/// A task that never reached a worker has no process.
fn named(pid: u32) -> String {
    if pid == 0 { "none".to_owned() } else { pid.to_string() }
}
