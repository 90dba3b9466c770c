//! `--journal`: the outcome of each job, in a file that survives a crash and a power cut.
//!
//! Each finished job appends a line, and is shown only when its line is on disk. Jobs that finish
//! during a sync share the next one, so the disk delays nothing but the display. At worst the last
//! line is torn; it is dropped when the file is opened again. Only the start of a line that this
//! file could have written counts as torn. A file with anything else is refused and not changed.
//!
//! A job is identified by its content: the task with its options, or the command line, and the
//! input. Inputs may be reordered, added and removed between runs. A job that occurs twice counts
//! twice.
//!
//! Where the results go to a file of their own, a job counts only with the line `shown` that
//! follows it and says how long the file is then: a run that goes on cuts the file there. So a row
//! is never missing and never there twice. A run that spans hosts adds a line for each lost host,
//! and one for its end.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use super::args::JournalArgs;
use super::exit::Usage;
use super::key::JobKey;
use super::record::{End, Known, LostHost, Note, Shown};
use super::render::Answer;
use super::row::Row;
use crate::tasks::Column;

/// A journal that is being written.
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    columns: &'static [Column],
    /// Lines that are not written yet.
    lines: Vec<u8>,
    manner: JournalManner,
}

/// How a journal is written.
#[derive(Clone, Debug, Default)]
pub(super) struct JournalManner {
    /// Whether jobs count only with a later line `shown`.
    pub(super) pending: bool,
    /// Where the lines of this run start, if the run goes on after it has lost its engine: the jobs
    /// there are done, also those that failed.
    pub(super) since: Option<u64>,
    /// Whether the file need not survive a power cut: it ends with the run anyway.
    pub(super) is_private: bool,
}

/// A line of the journal.
#[derive(Serialize)]
struct Line<'a> {
    key: String,
    ok: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pending: bool,
    /// When the job ended, in seconds since 1970.
    time: f64,
    input: std::borrow::Cow<'a, str>,
    attempt: u32,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Answer<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl Journal {
    /// Opens the journal, and returns the history of earlier runs.
    pub(super) fn open(
        args: &JournalArgs,
        columns: &'static [Column],
        manner: JournalManner,
    ) -> Result<Option<(Self, History)>> {
        let Some(path) = &args.journal else { return Ok(None) };
        refuse_other_than_file(path)?;
        let options = File::options().read(true).append(true).create(true).open(path);
        let file = options.map_err(|error| open_error(path, &error))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(open_error(path, &"another run is writing it"));
        }
        let (history, whole, length) = History::of(&file, path, args, manner.since)?;
        if whole < length {
            // Later lines must not be appended to a torn one, nor count with jobs that were not
            // shown.
            file.set_len(whole).map_err(|error| open_error(path, &error))?;
        }
        if !manner.is_private {
            sync_directory(path);
        }
        let journal = Self { file, path: path.clone(), columns, lines: Vec::new(), manner };
        Ok(Some((journal, history)))
    }

    /// Reads the history without opening the journal for writing, for a dry run.
    pub(super) fn history(args: &JournalArgs) -> Result<Option<History>> {
        let Some(path) = &args.journal else { return Ok(None) };
        refuse_other_than_file(path)?;
        match File::open(path) {
            Ok(file) => History::of(&file, path, args, None).map(|(history, ..)| Some(history)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Ok(Some(History { only_failed: args.retry_failed, ..History::default() }))
            }
            Err(error) => Err(open_error(path, &error)),
        }
    }

    /// Adds a finished job.
    pub(super) fn note(&mut self, row: &Row) -> Result<()> {
        let Some(JobKey(key)) = row.key else { return Ok(()) };
        let line = Line {
            key: format!("{key:032x}"),
            ok: row.error.is_none(),
            pending: self.manner.pending,
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            input: row.input.to_text(),
            attempt: row.attempt,
            seconds: row.elapsed.as_secs_f64(),
            result: Answer::of(row, self.columns),
            error: row.error.as_deref(),
        };
        self.put(&line)
    }

    /// Whether jobs count only when they are shown.
    pub(super) fn is_pending(&self) -> bool {
        self.manner.pending
    }

    /// Whether all that was added is written.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Adds how far the results are written, so that the jobs before count.
    pub(super) fn note_shown(&mut self, shown: &Shown) -> Result<()> {
        self.put(&Note::Shown(shown))
    }

    /// Adds a lost host.
    pub(super) fn note_lost(&mut self, lost: &LostHost) -> Result<()> {
        self.put(&Note::Lost(lost))?;
        self.sync()
    }

    /// Adds the end of the run, and how far the results are written.
    pub(super) fn note_end(&mut self, end: End, shown: Option<&Shown>) -> Result<()> {
        if let Some(shown) = shown {
            self.put(&Note::Shown(shown))?;
        }
        self.put(&Note::End(end))?;
        self.sync()
    }

    fn put(&mut self, line: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.lines, line)?;
        self.lines.push(b'\n');
        Ok(())
    }

    /// Returns when all added jobs are on disk.
    pub(super) fn sync(&mut self) -> Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let written = self
            .file
            .write_all(&self.lines)
            .and_then(|()| if self.manner.is_private { Ok(()) } else { self.file.sync_data() });
        self.lines.clear();
        written.with_context(|| format!("failed to write the journal {:?}", self.path))
    }
}

/// Returns the length of the lines of a journal that count, with which the next run begins; 0
/// without a journal.
pub(super) fn counted(args: &JournalArgs) -> Result<u64> {
    let Some(path) = &args.journal else { return Ok(0) };
    refuse_other_than_file(path)?;
    match File::open(path) {
        Ok(file) => History::of(&file, path, args, None).map(|(_, whole, _)| whole),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(open_error(path, &error)),
    }
}

fn open_error(path: &Path, why: &dyn std::fmt::Display) -> anyhow::Error {
    Usage::error(format!("failed to open the journal {path:?}: {why}; check --journal"))
}

/// Refuses what is not a regular file: opening or reading it could block forever.
fn refuse_other_than_file(path: &Path) -> Result<()> {
    match path.metadata() {
        Ok(metadata) if !metadata.is_file() => Err(open_error(path, &"it isn't a regular file")),
        _ => Ok(()),
    }
}

/// How lines start. A zero stands for any hexadecimal digit.
const HEADS: [&[u8]; 4] = [
    b"{\"key\":\"00000000000000000000000000000000\",\"ok\":",
    b"{\"shown\":{\"out\":",
    b"{\"lost\":{\"host\":",
    b"{\"end\":{\"exit\":",
];

/// Whether this is how a line starts, or part of it and zeros.
fn is_start(line: &[u8]) -> bool {
    let written = line.len() - line.iter().rev().take_while(|byte| **byte == 0).count();
    HEADS.iter().any(|head| {
        line[..written].iter().zip(*head).all(|(byte, expected)| match expected {
            b'0' => byte.is_ascii_hexdigit(),
            expected => byte == expected,
        })
    })
}

/// Whether a crash can have left this: the start of a line, and zeros where the rest never reached
/// the disk.
fn is_torn(line: &[u8]) -> bool {
    let line = match line.strip_suffix(b"\n") {
        // A complete line is not torn, whatever its content.
        Some(line) if !line.contains(&0) => return false,
        Some(line) => line,
        None => line,
    };
    is_start(line)
}

/// Formats the error for a line that is not a journal entry.
fn not_an_entry(number: u64, whole: u64) -> String {
    format!(
        "line {number} is not a journal entry; the file was not changed: use another file, or, \
         if a crash damaged its end, keep the lines before with 'truncate -s {whole}'"
    )
}

/// Syncs the directory, so that a new file's name survives a power cut.
fn sync_directory(path: &Path) {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = File::open(dir.unwrap_or(Path::new(".")));
    let _ = dir.and_then(|dir| dir.sync_all()); // not every file system can
}

/// What earlier runs did.
#[derive(Debug, Default)]
pub(super) struct History {
    /// How often each job succeeded.
    succeeded: HashMap<JobKey, u32>,
    /// How often each job failed without a later success.
    failed: HashMap<JobKey, u32>,
    /// Whether to run only failed jobs.
    only_failed: bool,
    /// How often this run has done each job before it lost its engine.
    done: HashMap<JobKey, u32>,
    /// How many of these jobs succeeded and failed.
    before: Before,
    /// How far each file of results is written.
    shown: Vec<Shown>,
    counts: Arc<Counts>,
}

/// What a run has done before it lost its engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Before {
    pub(super) succeeded: u64,
    pub(super) failed: u64,
}

/// Inputs that the journal has skipped so far, and those it has not.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) skipped: AtomicU64,
    pub(super) not_skipped: AtomicU64,
}

impl History {
    /// Reads a journal. Also returns the length of the lines that count, and of the file.
    fn of(
        file: &File,
        path: &Path,
        args: &JournalArgs,
        since: Option<u64>,
    ) -> Result<(Self, u64, u64)> {
        let mut history = Self { only_failed: args.retry_failed, ..Self::default() };
        let length = file.metadata().map_err(|error| open_error(path, &error))?.len();
        if length.min(since.unwrap_or(u64::MAX)) > 0 && !args.resume && !args.retry_failed {
            let remedy =
                "it belongs to an earlier run: continue it with --resume, or use another file";
            return Err(open_error(path, &remedy));
        }
        let whole = history
            .read(file, since)
            .map_err(|error| open_error(path, &format_args!("{error:#}")))?;
        Ok((history, whole, length))
    }

    /// Returns the counters, which stay valid after the history has moved.
    pub(super) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Returns the number of jobs that failed without a later success.
    pub(super) fn failed(&self) -> u64 {
        self.failed.values().copied().map(u64::from).sum()
    }

    /// Returns what this run has done before it lost its engine.
    pub(super) fn before(&self) -> Before {
        self.before
    }

    /// Returns how far this file of results is written; none if the journal doesn't say.
    pub(super) fn shown(&self, file: Option<&str>) -> Option<&Shown> {
        self.shown.iter().find(|shown| shown.file.as_deref() == file)
    }

    /// Reads a journal. Returns the length of the lines that count.
    fn read(&mut self, mut file: &File, since: Option<u64>) -> Result<u64> {
        file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::new(file);
        let (mut whole, mut number) = (0, 0);
        // Jobs that wait for the line that says that they were shown, and where the first one is.
        let mut pending: Vec<(JobKey, bool, bool)> = Vec::new();
        let mut counted = None;
        let mut line = Vec::new();
        loop {
            line.clear();
            number += 1;
            // Of a file that is not a journal, only the start is read.
            let start = reader.fill_buf()?;
            let start = &start[..HEADS[0].len().min(start.len())];
            if !is_start(start.strip_suffix(b"\n").unwrap_or(start)) {
                anyhow::bail!(not_an_entry(number, whole));
            }
            let length = reader.read_until(b'\n', &mut line)? as u64;
            if length == 0 {
                return Ok(counted.unwrap_or(whole));
            }
            let is_last = line.last() != Some(&b'\n') || reader.fill_buf()?.is_empty();
            let known: Known = match serde_json::from_slice(&line) {
                Ok(known) if line.last() == Some(&b'\n') => known,
                _ if is_last && is_torn(&line) => return Ok(counted.unwrap_or(whole)),
                _ => anyhow::bail!(not_an_entry(number, whole)),
            };
            let is_own = since.is_some_and(|since| whole >= since);
            if let Some(key) = &known.key {
                let key = u128::from_str_radix(key, 16).map(JobKey);
                let key = key.with_context(|| not_an_entry(number, whole))?;
                if known.pending {
                    counted.get_or_insert(whole);
                    pending.push((key, known.ok, is_own));
                } else {
                    self.count(key, known.ok, is_own);
                }
            } else if let Some(mut shown) = known.shown {
                counted = None;
                for (key, ok, is_own) in pending.drain(..) {
                    self.count(key, ok, is_own);
                }
                if !is_own {
                    shown.err = 0; // that file has ended with its run
                }
                if is_own || shown.file.is_some() {
                    self.shown.retain(|other| other.file != shown.file);
                    self.shown.push(shown);
                }
            } else if known.lost.is_none() && known.end.is_none() {
                anyhow::bail!(not_an_entry(number, whole));
            }
            whole += length;
        }
    }

    fn count(&mut self, key: JobKey, ok: bool, is_own: bool) {
        if !is_own {
            return self.note(key, ok);
        }
        *self.done.entry(key).or_default() += 1;
        *(if ok { &mut self.before.succeeded } else { &mut self.before.failed }) += 1;
    }

    fn note(&mut self, key: JobKey, ok: bool) {
        if !ok {
            *self.failed.entry(key).or_default() += 1;
            return;
        }
        *self.succeeded.entry(key).or_default() += 1;
        if let Some(failed) = self.failed.get_mut(&key) {
            *failed = failed.saturating_sub(1);
        }
    }

    /// Whether to skip a job. Each completion skips it once.
    pub(super) fn skips(&mut self, key: JobKey) -> bool {
        let counted = if self.only_failed { &mut self.failed } else { &mut self.succeeded };
        let left = counted.get_mut(&key).filter(|left| **left > 0);
        let found = left.map(|left| *left -= 1).is_some();
        let skips = found != self.only_failed;
        let Counts { skipped, not_skipped } = &*self.counts;
        if skips { skipped } else { not_skipped }.fetch_add(1, Ordering::Relaxed);
        // After that, so that each input is treated as in the run's first launch.
        skips || self.is_done(key)
    }

    /// Whether this run has done a job before it lost its engine. Each completion counts once.
    fn is_done(&mut self, key: JobKey) -> bool {
        let left = self.done.get_mut(&key).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(name: &str) -> JobKey {
        JobKey::of([name.as_bytes()])
    }

    #[test]
    fn what_has_succeeded_is_left_out_as_often_as_it_has() {
        let mut history = History::default();
        for (name, ok) in [("a", true), ("b", false), ("a", true), ("c", false), ("c", true)] {
            history.note(key(name), ok);
        }
        let skipped = ["a", "b", "a", "c", "a", "d"].map(|name| history.skips(key(name)));
        assert_eq!(skipped, [true, false, true, true, false, false]);
    }

    #[test]
    fn only_what_has_failed_since_is_tried_again() {
        let mut history = History { only_failed: true, ..History::default() };
        for (name, ok) in [("a", true), ("b", false), ("c", false), ("c", true)] {
            history.note(key(name), ok);
        }
        let skipped = ["a", "b", "b", "c", "d"].map(|name| history.skips(key(name)));
        assert_eq!(skipped, [true, false, true, true, true]);
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_any_other_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let line = |name: &str| format!("{{\"key\":\"{:032x}\",\"ok\":true}}\n", key(name).0);
        let read = |content: String| {
            std::fs::write(&path, content).unwrap();
            History::default().read(&File::open(&path).unwrap(), None)
        };
        let two = line("a") + &line("b");
        let length = two.len() as u64;
        assert_eq!(read(two.clone()).unwrap(), length);
        for torn in 1..line("c").len() {
            assert_eq!(read(two.clone() + &line("c")[..torn]).unwrap(), length, "{torn}");
        }
        assert_eq!(read(two.clone() + "\0\0\0\n").unwrap(), length);
        assert_eq!(read(two.clone() + "\0\0\0").unwrap(), length);
        assert_eq!(read(two.clone() + "{\"key\":\"12\0\0").unwrap(), length);
        assert_eq!(read(two.clone() + &line("c")[..50] + "\0\0}\n").unwrap(), length);
        for not_an_entry in ["what?\n", "{}", "{\n", "x", "{\"key\": 1}", "note", "\0\0x\n"] {
            let error = read(two.clone() + not_an_entry).unwrap_err().to_string();
            assert!(error.contains("line 3"), "{not_an_entry}: {error}");
            assert!(error.contains(&format!("truncate -s {length}'")), "{error}");
            assert!(read(not_an_entry.to_owned()).is_err(), "{not_an_entry}");
        }
        let error = read(line("a") + "what?\n" + &line("b")).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert_eq!(read(String::new()).unwrap(), 0);
    }

    fn journal_of(lines: &[&str]) -> (tempfile::TempDir, File, u64) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let text = lines.concat();
        std::fs::write(&path, &text).unwrap();
        (dir, File::open(path).unwrap(), text.len() as u64)
    }

    fn job(name: &str, ok: bool, pending: &str) -> String {
        format!("{{\"key\":\"{:032x}\",\"ok\":{ok}{pending}}}\n", key(name).0)
    }

    const PENDING: &str = ",\"pending\":true";

    #[test]
    fn a_job_that_waits_to_be_shown_counts_only_with_the_line_that_says_so() {
        let [a, b, c] = ["a", "b", "c"].map(|name| job(name, true, PENDING));
        let shown = "{\"shown\":{\"out\":7,\"err\":3}}\n";
        let lost = "{\"lost\":{\"host\":\"n3\",\"reason\":\"is silent\"}}\n";
        let end = "{\"end\":{\"exit\":0,\"succeeded\":2,\"failed\":0,\"not_started\":0}}\n";
        let (_dir, file, _) = journal_of(&[&a, &b, shown, lost, &c, lost]);
        let mut history = History::default();
        let whole = history.read(&file, None).unwrap();
        assert_eq!(whole, (a.len() + b.len() + shown.len() + lost.len()) as u64);
        assert_eq!(["a", "b", "c"].map(|it| history.skips(key(it))), [true, true, false]);
        assert_eq!(history.shown(None), None, "that file has ended with its run");
        let mut own = History::default();
        own.read(&file, Some(0)).unwrap();
        assert_eq!(own.shown(None).map(|shown| (shown.out, shown.err)), Some((7, 3)));
        assert_eq!(own.shown(Some("file")), None);

        let (_dir, file, length) = journal_of(&[&a, shown, end]);
        assert_eq!(History::default().read(&file, None).unwrap(), length);
        for torn in 1..shown.len() {
            let (_dir, file, _) = journal_of(&[&a, shown, &b, &shown[..torn]]);
            let whole = History::default().read(&file, None).unwrap();
            assert_eq!(whole, (a.len() + shown.len()) as u64, "{torn}");
        }
    }

    #[test]
    fn a_run_that_goes_on_does_nothing_again_that_it_has_done() {
        let earlier = [job("a", false, ""), job("b", true, "")].concat();
        let own = [job("c", false, ""), job("a", true, "")].concat();
        let (_dir, file, _) = journal_of(&[&earlier, &own]);
        let read = |only_failed| {
            let mut history = History { only_failed, ..History::default() };
            history.read(&file, Some(earlier.len() as u64)).unwrap();
            history
        };
        let mut resumed = read(false);
        assert_eq!(resumed.before(), Before { succeeded: 1, failed: 1 });
        let skipped = ["a", "b", "c", "d", "a"].map(|it| resumed.skips(key(it)));
        assert_eq!(skipped, [true, true, true, false, false]);
        let counts = resumed.counts();
        assert_eq!(counts.skipped.load(Ordering::Relaxed), 1, "only what an earlier run did");
        let mut retried = read(true);
        assert_eq!(["a", "b", "a"].map(|it| retried.skips(key(it))), [true; 3]);
    }

    #[test]
    fn a_journal_from_before_there_were_hosts_is_read_as_before() {
        let (_dir, file, length) =
            journal_of(&[&job("a", true, ",\"time\":1.5"), &job("b", false, "")]);
        let mut history = History::default();
        assert_eq!(history.read(&file, None).unwrap(), length);
        assert_eq!(["a", "b"].map(|name| history.skips(key(name))), [true, false]);
        assert!(history.shown.is_empty());
    }
}
