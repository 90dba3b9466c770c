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

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::args::JournalArgs;
use super::exit::Usage;
use super::key::JobKey;
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
}

/// The fields that are read back.
#[derive(Deserialize)]
struct Known {
    key: String,
    ok: bool,
}

/// A line of the journal.
#[derive(Serialize)]
struct Line<'a> {
    key: String,
    ok: bool,
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
    ) -> Result<Option<(Self, History)>> {
        let Some(path) = &args.journal else { return Ok(None) };
        refuse_other_than_file(path)?;
        let options = File::options().read(true).append(true).create(true).open(path);
        let file = options.map_err(|error| open_error(path, &error))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(open_error(path, &"another run is writing it"));
        }
        let (history, whole, length) = History::of(&file, path, args)?;
        if whole < length {
            // Later lines must not be appended to a torn one.
            file.set_len(whole).map_err(|error| open_error(path, &error))?;
        }
        sync_directory(path);
        let journal = Self { file, path: path.clone(), columns, lines: Vec::new() };
        Ok(Some((journal, history)))
    }

    /// Reads the history without opening the journal for writing, for a dry run.
    pub(super) fn history(args: &JournalArgs) -> Result<Option<History>> {
        let Some(path) = &args.journal else { return Ok(None) };
        refuse_other_than_file(path)?;
        match File::open(path) {
            Ok(file) => History::of(&file, path, args).map(|(history, ..)| Some(history)),
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
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            input: row.input.to_text(),
            attempt: row.attempt,
            seconds: row.elapsed.as_secs_f64(),
            result: Answer::of(row, self.columns),
            error: row.error.as_deref(),
        };
        serde_json::to_writer(&mut self.lines, &line)?;
        self.lines.push(b'\n');
        Ok(())
    }

    /// Returns when all added jobs are on disk.
    pub(super) fn sync(&mut self) -> Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.lines).and_then(|()| self.file.sync_data());
        self.lines.clear();
        written.with_context(|| format!("failed to write the journal {:?}", self.path))
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

/// How each line starts. A zero stands for any hexadecimal digit.
const HEAD: &[u8] = b"{\"key\":\"00000000000000000000000000000000\",\"ok\":";

/// Whether a crash can have left this: the start of a line, and zeros where the rest never reached
/// the disk.
fn is_torn(line: &[u8]) -> bool {
    let line = match line.strip_suffix(b"\n") {
        // A complete line is not torn, whatever its content.
        Some(line) if !line.contains(&0) => return false,
        Some(line) => line,
        None => line,
    };
    let written = line.len() - line.iter().rev().take_while(|byte| **byte == 0).count();
    line[..written].iter().zip(HEAD).all(|(byte, expected)| match expected {
        b'0' => byte.is_ascii_hexdigit(),
        expected => byte == expected,
    })
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
    counts: Arc<Counts>,
}

/// Inputs that the journal has skipped so far, and those it has not.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) skipped: AtomicU64,
    pub(super) not_skipped: AtomicU64,
}

impl History {
    /// Reads a journal. Also returns the length of its complete lines, and of the file.
    fn of(file: &File, path: &Path, args: &JournalArgs) -> Result<(Self, u64, u64)> {
        let mut history = Self { only_failed: args.retry_failed, ..Self::default() };
        let length = file.metadata().map_err(|error| open_error(path, &error))?.len();
        if length > 0 && !args.resume && !args.retry_failed {
            let remedy =
                "it belongs to an earlier run: continue it with --resume, or use another file";
            return Err(open_error(path, &remedy));
        }
        let whole =
            history.read(file).map_err(|error| open_error(path, &format_args!("{error:#}")))?;
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

    /// Reads a journal. Returns the length of its complete lines.
    fn read(&mut self, mut file: &File) -> Result<u64> {
        file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::new(file);
        let (mut whole, mut number) = (0, 0);
        let mut line = Vec::new();
        loop {
            line.clear();
            number += 1;
            // Of a file that is not a journal, only the start is read.
            let start = reader.fill_buf()?;
            if !is_torn(&start[..HEAD.len().min(start.len())]) {
                anyhow::bail!(not_an_entry(number, whole));
            }
            let length = reader.read_until(b'\n', &mut line)? as u64;
            if length == 0 {
                return Ok(whole);
            }
            let is_last = line.last() != Some(&b'\n') || reader.fill_buf()?.is_empty();
            let known: Known = match serde_json::from_slice(&line) {
                Ok(known) if line.last() == Some(&b'\n') => known,
                _ if is_last && is_torn(&line) => return Ok(whole),
                _ => anyhow::bail!(not_an_entry(number, whole)),
            };
            let key = u128::from_str_radix(&known.key, 16).map(JobKey);
            self.note(key.with_context(|| not_an_entry(number, whole))?, known.ok);
            whole += length;
        }
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
        skips
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
            History::default().read(&File::open(&path).unwrap())
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
}
