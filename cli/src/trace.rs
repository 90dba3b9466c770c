//! `--trace`: a timeline in Chrome's trace event format, which Perfetto (ui.perfetto.dev) opens and
//! `procpool timeline` draws.
//!
//! Each slot is a track. Jobs and worker starts are slices; lost and retired workers are instants.
//! The file is valid at any time, even if the run is killed: each write ends with the end of the
//! list, which the next write overwrites.

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
use procpool::{Event, EventKind, HostName};

/// The most bytes that are buffered.
const PAGE: usize = 64 * 1024;

/// The end of the list.
const END: &[u8] = b"\n]\n";

/// One event of the file. Times are in microseconds.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Entry {
    pub(super) name: String,
    #[serde(default)]
    pub(super) cat: String,
    /// X: a slice, i: an instant, M: a name.
    pub(super) ph: String,
    #[serde(default)]
    pub(super) ts: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dur: Option<f64>,
    pub(super) pid: u32,
    #[serde(default)]
    pub(super) tid: usize,
    /// The scope of an instant: its track.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    s: Option<char>,
    #[serde(default)]
    pub(super) args: Details,
}

/// The details of a selected event.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Details {
    /// The name, in an event that names something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    /// The PID of the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    /// Peak memory in bytes.
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
    /// The start of the trace: nanoseconds on the monotonic clock.
    began: u64,
    /// Text that is not written yet, and its offset in the file.
    page: Vec<u8>,
    at: u64,
    /// The tracks, by their numbers from 1.
    slots: Vec<Slot>,
    /// The hosts, if there are several. Each is a process of the trace, and a slot a thread of it.
    hosts: Vec<HostName>,
    numbering: Numbering,
    /// Attempts that were lost with their workers, by the number of the job. They get a name when
    /// the job ends.
    lost: HashMap<u64, Vec<Attempt>>,
    /// Ended jobs whose lost attempts are not all known yet, and how many are missing.
    awaited: HashMap<u64, (String, u32)>,
    /// The first error. Nothing is written after it.
    error: Option<io::Error>,
}

/// An attempt of a job.
struct Attempt {
    slot: usize,
    pid: u32,
    attempt: u32,
    /// Its start and duration, in microseconds.
    ts: f64,
    dur: f64,
    memory: Option<u64>,
    error: Option<String>,
}

/// The state of a track.
#[derive(Clone, Default)]
struct Slot {
    named: bool,
    host: Option<HostName>,
    /// When its worker started, in microseconds, until it is ready.
    started: Option<f64>,
    /// The end of its last slice. Jobs of a chunk are known by their durations and follow each
    /// other.
    free: f64,
}

impl Trace {
    /// Creates or truncates a file. The pool must be built right after it.
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
            hosts: Vec::new(),
            numbering: Numbering::new(numbers),
            lost: HashMap::new(),
            awaited: HashMap::new(),
            error: None,
        };
        state.name("process_name", 0, "procpool".to_owned());
        state.write();
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    /// Records an event of a worker.
    pub(super) fn note(&self, event: &Event) {
        let mut state = self.state();
        let event = state.numbering.of(event);
        let ts = micros(event.time);
        if let Some(slot) = slot_of(&event.kind) {
            state.place(slot, event.host);
        }
        match &event.kind {
            EventKind::Spawned { slot, .. } => {
                state.slot(*slot).started = Some(ts);
                // The attempt there ended earlier.
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
            EventKind::HostLost { reason } => {
                let is_there = |(_, slot): &(usize, &Slot)| slot.named && slot.host == event.host;
                let slots = state.slots.iter().enumerate().filter(is_there);
                for slot in slots.map(|(number, _)| number).collect::<Vec<_>>() {
                    state.slots[slot].started = None;
                    state.instant(slot, ts, "host lost", None, Some(reason));
                }
            }
            _ => return,
        }
        state.write();
    }

    /// Records a finished job: a slice for each known attempt.
    pub(super) fn row(&self, row: &Row) {
        let mut state = self.state();
        if row.pid != 0 {
            state.place(row.worker_number(), row.host);
        }
        let name = row.input.to_text();
        // `earlier` has the attempts of the last worker. Those before them were lost.
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

    /// Writes the buffer.
    pub(super) fn flush(&self) {
        self.state().write();
    }

    /// Writes the buffer, and returns the first error.
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

/// Returns the slot of the worker that an event is about.
fn slot_of(kind: &EventKind) -> Option<usize> {
    match kind {
        EventKind::Spawned { slot, .. }
        | EventKind::Ready { slot, .. }
        | EventKind::StartFailed { slot, .. }
        | EventKind::Retried { slot, .. }
        | EventKind::Lost { slot, .. }
        | EventKind::Retired { slot, .. } => Some(*slot),
        _ => None,
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
            let host = self.slots[slot].host.map_or(String::new(), |host| format!("{host} "));
            self.name("thread_name", slot, format!("{host}worker {slot}"));
        }
        &mut self.slots[slot]
    }

    /// Records the host of a slot.
    fn place(&mut self, slot: usize, host: Option<HostName>) {
        if host.is_none() || self.slots.get(slot).is_some_and(|slot| slot.host.is_some()) {
            return;
        }
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, Slot::default());
        }
        self.slots[slot].host = host;
        let Some(host) = host.filter(|host| !self.hosts.contains(host)) else { return };
        self.hosts.push(host);
        self.name("process_name", slot, host.to_string());
    }

    /// Names a track, or the process.
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

    /// Adds a slice for an attempt that its worker survived.
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

    /// Adds a slice for an attempt.
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
        let host = self.slots.get(slot).and_then(|slot| slot.host);
        let host = host.and_then(|host| self.hosts.iter().position(|other| *other == host));
        // 1 is the run itself, and where all is on one machine.
        let pid = host.map_or(1, |host| host as u32 + 2);
        let entry = Entry { pid, tid: slot, ..entry };
        if serde_json::to_writer(&mut self.page, &entry).is_err() {
            // Cannot fail: all is plain data in memory.
            self.page.truncate(start);
            self.page.extend_from_slice(b"{}");
        }
    }

    /// Writes the buffer and the end of the list.
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
