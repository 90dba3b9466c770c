//! What a report keeps of each job.

use std::collections::HashMap;
use std::time::Duration;

use procpool::HostName;

use crate::format;
use crate::os::clock;
use crate::row::Row;
use crate::spill::Printed;

/// Jobs that are drawn and listed. The totals count all.
const MOST_JOBS: usize = 200_000;

/// Failures whose errors and output are listed.
pub(super) const MOST_FAILURES: usize = 1_000;

/// Bytes of a failure's output that are kept, from its end.
const OUTPUT: u64 = 4096;

/// Characters of an input that are kept.
const INPUT: usize = 200;

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    // The numbers that the page's script knows.
    Done = 0,
    Failed = 1,
    Killed = 2,
}

/// A job.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) number: u64,
    /// The index of its worker in [`Jobs::lanes`].
    pub(super) lane: usize,
    pub(super) pid: u32,
    pub(super) attempt: u32,
    /// When its last attempt started, in microseconds since the run did, and how long it took.
    pub(super) start: u64,
    pub(super) micros: u64,
    /// Peak memory in bytes, 0 if unknown.
    pub(super) memory: u64,
    pub(super) state: State,
    pub(super) input: String,
}

/// A failure.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) number: u64,
    pub(super) input: String,
    pub(super) error: String,
    pub(super) attempt: u32,
    pub(super) micros: u64,
    pub(super) output: String,
}

/// An attempt before the last one of its job.
#[derive(Debug)]
pub(super) struct Earlier {
    pub(super) job: usize,
    pub(super) start: u64,
    pub(super) micros: u64,
    pub(super) error: String,
}

/// The worker of a timeline's line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lane {
    pub(super) host: Option<HostName>,
    /// From 1.
    pub(super) worker: usize,
}

/// Totals of a worker.
#[derive(Clone, Debug, Default)]
pub(super) struct Share {
    pub(super) jobs: u64,
    pub(super) failed: u64,
    pub(super) busy: u64,
    pub(super) memory: u64,
}

/// All jobs of a run.
#[derive(Debug)]
pub(super) struct Jobs {
    began: u64,
    pub(super) jobs: Vec<Job>,
    pub(super) earlier: Vec<Earlier>,
    pub(super) failures: Vec<Failure>,
    lanes: HashMap<Lane, usize>,
    /// When each lane's last job ended.
    free: Vec<u64>,
    /// The totals of each lane.
    pub(super) shares: Vec<(Lane, Share)>,
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) killed: u64,
    pub(super) retried: u64,
    /// Whether there were more jobs than are listed.
    pub(super) is_cut: bool,
}

impl Failure {
    /// Returns how long its last attempt took.
    pub(super) fn time(&self) -> String {
        time(self.micros)
    }
}

/// Formats microseconds.
pub(super) fn time(micros: u64) -> String {
    format::duration(Duration::from_micros(micros))
}

impl Jobs {
    /// Returns an empty list for a run that starts at this time of the monotonic clock.
    pub(super) fn since(began: u64) -> Self {
        Self {
            began,
            jobs: Vec::new(),
            earlier: Vec::new(),
            failures: Vec::new(),
            lanes: HashMap::new(),
            free: Vec::new(),
            shares: Vec::new(),
            done: 0,
            failed: 0,
            killed: 0,
            retried: 0,
            is_cut: false,
        }
    }

    /// Returns the time since the run started, in microseconds.
    pub(super) fn elapsed(&self) -> u64 {
        self.micros(clock::now())
    }

    /// Returns the number of jobs that ended.
    pub(super) fn total(&self) -> u64 {
        self.done + self.failed + self.killed
    }

    pub(super) fn add(&mut self, row: &Row) {
        let state = match &row.error {
            None => State::Done,
            Some(_) if row.killed => State::Killed,
            Some(_) => State::Failed,
        };
        *match state {
            State::Done => &mut self.done,
            State::Failed => &mut self.failed,
            State::Killed => &mut self.killed,
        } += 1;
        self.retried += u64::from(row.attempt.saturating_sub(1));
        let micros = row.elapsed.as_micros() as u64;
        let memory = row.memory.unwrap_or(0);
        let input = shown(&row.input.to_text());
        if let Some(error) = row.error.as_ref().filter(|_| self.failures.len() < MOST_FAILURES) {
            self.failures.push(Failure {
                number: row.number,
                input: input.clone(),
                error: shown(error),
                attempt: row.attempt,
                micros,
                output: output_of(row),
            });
        }
        // A job that never reached a worker has none.
        if row.pid == 0 {
            return;
        }
        let lane = self.lane(row);
        let share = &mut self.shares[lane].1;
        share.jobs += 1;
        share.failed += u64::from(row.error.is_some());
        share.busy = share.busy.saturating_add(micros);
        share.memory = share.memory.max(memory);
        if self.jobs.len() >= MOST_JOBS {
            self.is_cut = true;
            return;
        }
        for attempt in &row.earlier {
            self.earlier.push(Earlier {
                job: self.jobs.len(),
                start: self.micros(attempt.began),
                micros: attempt.elapsed.as_micros() as u64,
                error: shown(&attempt.error),
            });
        }
        // The starts of a chunk's items are not known, but a worker runs one after the other.
        let start = self.micros(row.began).max(self.free[lane]);
        // What a worker says of its times may be anything.
        self.free[lane] = start.saturating_add(micros);
        self.jobs.push(Job {
            number: row.number,
            lane,
            pid: row.pid,
            attempt: row.attempt,
            start,
            micros,
            memory,
            state,
            input,
        });
    }

    fn lane(&mut self, row: &Row) -> usize {
        let lane = Lane { host: row.host, worker: row.worker_number() };
        let next = self.shares.len();
        let index = *self.lanes.entry(lane.clone()).or_insert(next);
        if index == next {
            self.shares.push((lane, Share::default()));
            self.free.push(0);
        }
        index
    }

    fn micros(&self, at: u64) -> u64 {
        at.saturating_sub(self.began) / 1000
    }
}

/// Returns text for one line of the page.
fn shown(text: &str) -> String {
    let line = format::one_line(text);
    match line.char_indices().nth(INPUT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.into_owned(),
    }
}

/// Returns the end of what a job printed.
fn output_of(row: &Row) -> String {
    let mut output = String::new();
    for printed in [&row.stdout, &row.stderr] {
        let (bytes, is_cut) = match printed {
            Printed::Here(bytes) => {
                let cut = bytes.len().saturating_sub(OUTPUT as usize);
                (bytes[cut..].to_vec(), cut > 0)
            }
            Printed::InFile(part) => part.end(OUTPUT),
            Printed::Named(_) => continue,
        };
        if is_cut {
            output.push('…');
        }
        let is_shown = |it: char| !it.is_control() || it == '\n' || it == '\t';
        let text = String::from_utf8_lossy(&bytes);
        output.extend(text.chars().map(|it| if is_shown(it) { it } else { '\u{fffd}' }));
    }
    output
}
