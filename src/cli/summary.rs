//! What each worker did, and all of them together: the end of every run.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::humane;
use super::render::Row;
use crate::WorkerInfo;

/// What was done so far, by the process that did it.
pub(super) struct Tally {
    started: Instant,
    by_pid: HashMap<u32, Share>,
    total: Share,
}

/// What one process did.
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
        self.failed += u64::from(row.outcome.is_err());
        self.busy += row.elapsed;
    }
}

impl Tally {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), by_pid: HashMap::new(), total: Share::default() }
    }

    pub(super) fn note(&mut self, row: &Row) {
        self.by_pid.entry(row.pid).or_default().note(row);
        self.total.note(row);
    }

    pub(super) fn failed(&self) -> u64 {
        self.total.failed
    }

    /// A table of the processes that worked, or could have, and a line on the whole.
    pub(super) fn summary(&self, workers: &[WorkerInfo], now: Instant) -> String {
        let mut shares = self.by_pid.clone();
        for idle in workers {
            shares.entry(idle.pid).or_insert(Share { worker: idle.slot, ..Share::default() });
        }
        let memory: HashMap<u32, u64> =
            workers.iter().filter_map(|worker| Some((worker.pid, worker.memory?))).collect();
        let mut lines: Vec<_> = shares.into_iter().collect();
        lines.sort_by_key(|(pid, share)| (share.worker, *pid));

        let mut text = format!("\n{}", line("pid", "tasks", "failed", "busy", "memory"));
        for (pid, share) in &lines {
            text += &share.line(&named(*pid), memory.get(pid).copied());
        }
        text += &self.total.line("total", Some(memory.values().sum()).filter(|sum| *sum > 0));
        let wall = now.duration_since(self.started);
        text += &format!(
            "\n{} {} in {}, {} a second\n",
            humane::grouped(self.total.tasks),
            if self.total.tasks == 1 { "task" } else { "tasks" },
            humane::duration(wall),
            humane::rate(self.total.tasks as f64 / wall.as_secs_f64().max(1e-9)),
        );
        text
    }
}

impl Share {
    fn line(&self, name: &str, memory: Option<u64>) -> String {
        line(
            name,
            &humane::grouped(self.tasks),
            &humane::grouped(self.failed),
            &humane::duration(self.busy),
            // A worker that is gone has none.
            &memory.map_or("-".to_owned(), humane::bytes),
        )
    }
}

fn line(name: &str, tasks: &str, failed: &str, busy: &str, memory: &str) -> String {
    format!("{name:>8}  {tasks:>11}  {failed:>9}  {busy:>9}  {memory:>10}\n")
}

/// A task that never reached a worker has no process.
fn named(pid: u32) -> String {
    if pid == 0 { "none".to_owned() } else { pid.to_string() }
}
