//! `--trace`: when each worker did what, in the trace event format of Chrome, which Perfetto
//! (ui.perfetto.dev) opens and `procpool timeline` draws.
//!
//! A slot is a track. Jobs and starts of workers are slices on it, lost and retired workers are
//! instants. Whatever is in the file is whole at any time, also when the run is killed: each time
//! that something is written, the end of the list is written after it, and overwritten the next.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::os::clock;
use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::exit::Usage;
use super::numbers::{Numbering, Numbers};
use super::row::Row;
use crate::tasks::command::FailedAttempt;
use procpool::{Event, EventKind};

/// How much is gathered at most before it's written.
const PAGE: usize = 64 * 1024;

/// What ends the list.
const END: &[u8] = b"\n]\n";

/// One event, as it stands in the file. Times are in microseconds.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Entry {
    pub(super) name: String,
    #[serde(default)]
    pub(super) cat: String,
    /// X: a slice, i: an instant, M: a name of something.
    pub(super) ph: String,
    #[serde(default)]
    pub(super) ts: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dur: Option<f64>,
    pub(super) pid: u32,
    #[serde(default)]
    pub(super) tid: usize,
    /// How far an instant is drawn: over its track.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    s: Option<char>,
    #[serde(default)]
    pub(super) args: Details,
}

/// What is shown of an event that was chosen.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Details {
    /// Of an event that names something: the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    /// The worker's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    /// In bytes, the most at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// A trace that is being written.
#[derive(Clone)]
pub(super) struct Trace(Arc<Mutex<State>>);

struct State {
    file: File,
    path: PathBuf,
    /// When the trace began, on the monotonic clock in nanoseconds.
    began: u64,
    /// What isn't written yet, and where in the file it belongs.
    page: Vec<u8>,
    at: u64,
    /// By their numbers, which count from 1.
    slots: Vec<Slot>,
    numbering: Numbering,
    /// Attempts that were lost with their workers, by the number of the job, until that has ended:
    /// then they have a name.
    lost: HashMap<u64, Vec<Attempt>>,
    /// Jobs that have ended before it was told of all their lost attempts: how many those are.
    awaited: HashMap<u64, (String, u32)>,
    /// What went wrong first; after that, no more is written.
    error: Option<io::Error>,
}

/// An attempt at a job.
struct Attempt {
    slot: usize,
    pid: u32,
    attempt: u32,
    /// When it began and how long it took, in microseconds.
    ts: f64,
    dur: f64,
    memory: Option<u64>,
    error: Option<String>,
}

/// What is known of a track.
#[derive(Clone, Default)]
struct Slot {
    named: bool,
    /// When its worker was started, in microseconds, as long as it isn't ready.
    started: Option<f64>,
    /// Where its last slice ends. Jobs that were sent together are known by how long each took, and
    /// follow each other.
    free: f64,
}

impl Trace {
    /// A new file, or an old one emptied. The pool is to be made right after that.
    pub(super) fn create(path: &Path, numbers: Numbers) -> Result<Self> {
        let file = File::create(path).map_err(|error| {
            Usage::error(format!("failed to write the trace to {path:?}: {error}; check --trace"))
        })?;
        let mut state = State {
            file,
            path: path.to_owned(),
            began: clock::now(),
            page: b"[\n".to_vec(),
            at: 0,
            slots: Vec::new(),
            numbering: Numbering::new(numbers),
            lost: HashMap::new(),
            awaited: HashMap::new(),
            error: None,
        };
        state.name("process_name", 0, "procpool".to_owned());
        state.write();
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    /// What has happened to a worker.
    pub(super) fn note(&self, event: &Event) {
        let mut state = self.state();
        let event = state.numbering.of(event);
        let ts = micros(event.time);
        match &event.kind {
            EventKind::Spawned { slot, .. } => {
                state.slot(*slot).started = Some(ts);
                // What ran there has ended before.
                let lost = state.lost.values_mut().flatten().filter(|lost| lost.slot == *slot);
                lost.for_each(|lost| lost.dur = lost.dur.min((ts - lost.ts).max(0.0)));
            }
            EventKind::Retried { slot, pid, id, attempt, elapsed, error } => {
                let dur = micros(*elapsed);
                let (slot, pid, attempt, ts) = (*slot, *pid, *attempt, (ts - dur).max(0.0));
                let error = Some(error.clone());
                let lost = Attempt { slot, pid, attempt, ts, dur, memory: None, error };
                match state.awaited.get_mut(id) {
                    None => state.lost.entry(*id).or_default().push(lost),
                    Some((name, left)) => {
                        let name = name.clone();
                        *left -= 1;
                        if *left == 0 {
                            state.awaited.remove(id);
                        }
                        state.attempt(&name, *id, lost);
                    }
                }
            }
            EventKind::Ready { slot, pid } => {
                let Some(started) = state.slot(*slot).started.take() else { return };
                let dur = Some(ts - started);
                let args = Details { pid: Some(*pid), ..Details::default() };
                let name = format!("start of PID {pid}");
                state.put(
                    *slot,
                    Entry { name, cat: "start".into(), ts: started, dur, args, ..slice() },
                );
            }
            EventKind::StartFailed { slot, cause, .. } => {
                state.slot(*slot).started = None;
                state.instant(*slot, ts, "start failed", None, Some(cause));
            }
            EventKind::Lost { slot, pid, cause } => {
                state.instant(*slot, ts, "lost", Some(*pid), Some(cause));
            }
            EventKind::Retired { slot, pid } => {
                state.instant(*slot, ts, "retired", Some(*pid), None);
            }
            _ => return,
        }
        state.write();
    }

    /// A job that has ended: a slice for each of its attempts that is known.
    pub(super) fn row(&self, row: &Row) {
        let mut state = self.state();
        let name = row.input.to_text();
        // The earlier attempts are the worker's last ones, before the last one of all; those before
        // were lost.
        let first = row.attempt.saturating_sub(u32::try_from(row.earlier.len()).unwrap_or(0));
        let lost = state.lost.remove(&row.number).unwrap_or_default();
        let left = first.saturating_sub(1).saturating_sub(u32::try_from(lost.len()).unwrap_or(0));
        if left > 0 {
            state.awaited.insert(row.number, (name.clone().into_owned(), left));
        }
        for lost in lost {
            state.attempt(&name, row.number, lost);
        }
        for (attempt, earlier) in (first..).zip(&row.earlier) {
            let FailedAttempt { began, elapsed, ref error } = *earlier;
            state.answered(row, attempt, began, elapsed, Some(error));
        }
        state.answered(row, row.attempt, row.began, row.elapsed, row.error.as_ref());
        if state.page.len() > PAGE {
            state.write();
        }
    }

    /// Writes what was gathered.
    pub(super) fn flush(&self) {
        self.state().write();
    }

    /// Writes what is left; what went wrong is said here.
    pub(super) fn close(&self) -> Result<(), String> {
        let mut state = self.state();
        state.write();
        match state.error.take() {
            None => Ok(()),
            Some(error) => Err(format!("failed to write the trace to {:?}: {error}", state.path)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn slice() -> Entry {
    Entry { ph: "X".to_owned(), ..Entry::default() }
}

impl State {
    fn slot(&mut self, slot: usize) -> &mut Slot {
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, Slot::default());
        }
        if !self.slots[slot].named {
            self.slots[slot].named = true;
            self.name("thread_name", slot, format!("worker {slot}"));
        }
        &mut self.slots[slot]
    }

    /// Names a track, or all of them together.
    fn name(&mut self, what: &str, slot: usize, name: String) {
        let args = Details { name: Some(name), ..Details::default() };
        let named = Entry { name: what.to_owned(), ph: "M".to_owned(), args, ..Entry::default() };
        self.put(slot, named);
    }

    fn instant(
        &mut self,
        slot: usize,
        ts: f64,
        name: &str,
        pid: Option<u32>,
        error: Option<&String>,
    ) {
        let args = Details { pid, error: error.cloned(), ..Details::default() };
        let name = name.to_owned();
        let (cat, ph, s) = ("worker".to_owned(), "i".to_owned(), Some('t'));
        self.put(slot, Entry { name, cat, ph, ts, s, args, ..Entry::default() });
    }

    /// A slice for an attempt whose worker has lived on.
    fn answered(
        &mut self,
        row: &Row,
        attempt: u32,
        began: u64,
        elapsed: Duration,
        error: Option<&String>,
    ) {
        let slot = row.worker_number();
        let began = began.saturating_sub(self.began) as f64 / 1e3;
        let (ts, dur) = (began.max(self.slot(slot).free), micros(elapsed));
        self.slot(slot).free = ts + dur;
        let memory = row.memory.filter(|_| attempt == row.attempt);
        let error = error.cloned();
        let it = Attempt { slot, pid: row.pid, attempt, ts, dur, memory, error };
        self.attempt(&row.input.to_text(), row.number, it);
    }

    /// A slice for an attempt at a job.
    fn attempt(&mut self, name: &str, number: u64, it: Attempt) {
        let entry = Entry {
            name: name.to_owned(),
            cat: if it.error.is_some() { "failed" } else { "done" }.to_owned(),
            ts: it.ts,
            dur: Some(it.dur),
            args: Details {
                id: Some(number),
                pid: Some(it.pid),
                attempt: Some(it.attempt),
                memory: it.memory,
                error: it.error,
                name: None,
            },
            ..slice()
        };
        self.slot(it.slot);
        self.put(it.slot, entry);
    }

    fn put(&mut self, slot: usize, entry: Entry) {
        if self.at > 0 || self.page.len() > 2 {
            self.page.extend_from_slice(b",\n");
        }
        let start = self.page.len();
        let entry = Entry { pid: 1, tid: slot, ..entry };
        if serde_json::to_writer(&mut self.page, &entry).is_err() {
            // It can't fail: all is plain data, and the page is memory.
            self.page.truncate(start);
            self.page.extend_from_slice(b"{}");
        }
    }

    /// Writes what was gathered, and the end of the list after it.
    fn write(&mut self) {
        if self.error.is_some() || self.page.is_empty() {
            return;
        }
        let length = self.page.len() as u64;
        self.page.extend_from_slice(END);
        match self.file.write_all_at(&self.page, self.at) {
            Ok(()) => self.at += length,
            Err(error) => self.error = Some(error),
        }
        self.page.clear();
    }
}
