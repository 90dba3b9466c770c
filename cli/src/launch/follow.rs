//! Follows the journal of a launched run: its end, its lost hosts, and how far its results are
//! written. Shows the results up to there.
//!
//! Results beyond that position belong to jobs that don't count yet. If the run loses its engine,
//! those jobs run again, and the next launch overwrites their results. So each row is shown once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::record::{End, Known};
use crate::spill;

/// The size of a read.
const BLOCK: usize = 256 << 10;

/// The file of what was shown is freed in parts of this size.
const FREED: u64 = 16 << 20;

/// The state of a followed journal.
pub(super) struct Follower {
    journal: Option<File>,
    /// The bytes that were read.
    at: u64,
    /// The last lines that were read, of which the last isn't complete.
    rest: Vec<u8>,
    /// Where the lines end that count: a run that goes on cuts the journal there.
    counted: u64,
    out: Copied,
    err: Copied,
    /// The time at which each host's loss was detected.
    pub(super) lost: BTreeMap<String, Instant>,
    pub(super) end: Option<End>,
}

/// A file of which a part was shown.
struct Copied {
    file: Option<File>,
    shown: u64,
    /// How far it may be shown.
    until: u64,
    freed: u64,
}

impl Follower {
    /// Follows a journal from here on. Results go to `out` and `err`, unless the run has a file of
    /// its own for them.
    pub(super) fn new(since: u64, out: Option<File>, err: File) -> Self {
        let copied = |file| Copied { file, shown: 0, until: 0, freed: 0 };
        Self {
            journal: None,
            at: since,
            rest: Vec::new(),
            counted: since,
            out: copied(out),
            err: copied(Some(err)),
            lost: BTreeMap::new(),
            end: None,
        }
    }

    /// Prepares for the next launch, which cuts the journal where its lines no longer count.
    pub(super) fn start_again(&mut self) {
        self.lost.clear();
        self.end = None;
        self.at = self.counted;
        self.rest.clear();
        self.journal = None;
    }

    /// Reads the journal's new lines. Returns whether there were any.
    pub(super) fn read(&mut self, path: &Path) -> Result<bool> {
        let failed = || format!("failed to follow the journal {path:?}");
        let file = match &self.journal {
            Some(file) => file,
            None => match File::open(path) {
                Ok(file) => self.journal.insert(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error).with_context(failed),
            },
        };
        let mut block = vec![0; BLOCK];
        let mut some = false;
        loop {
            let length = file.read_at(&mut block, self.at).with_context(failed)?;
            if length == 0 {
                break;
            }
            self.at += length as u64;
            self.rest.extend_from_slice(&block[..length]);
        }
        let complete = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut read = self.at - self.rest.len() as u64;
        let lines: Vec<u8> = self.rest.drain(..complete).collect();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            some = true;
            read += line.len() as u64;
            // A line that isn't understood is for the run to report, which reads the journal too.
            let known: Known = serde_json::from_slice(line).unwrap_or_default();
            if let Some(shown) = known.shown {
                self.out.until = shown.out;
                self.err.until = shown.err;
                self.counted = read;
            }
            if let Some(lost) = known.lost {
                self.lost.entry(lost.host).or_insert_with(Instant::now);
            }
            self.end = known.end.or(self.end);
        }
        Ok(some)
    }

    /// Shows the results that count and were not shown. Fails if standard output is gone.
    pub(super) fn show(&mut self) -> io::Result<()> {
        self.out.copy(rustix::stdio::stdout())?;
        let _ = self.err.copy(rustix::stdio::stderr()); // a closed standard error is no failure
        Ok(())
    }
}

impl Copied {
    fn copy(&mut self, to: BorrowedFd<'_>) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut block = vec![0; BLOCK];
        while self.shown < self.until {
            let most = usize::try_from(self.until - self.shown).unwrap_or(BLOCK).min(BLOCK);
            let length = file.read_at(&mut block[..most], self.shown)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Unbuffered(to).write_all(&block[..length])?;
            self.shown += length as u64;
            if self.shown - self.freed >= FREED {
                spill::free(file, self.freed, self.shown);
                self.freed = self.shown / spill::PAGE * spill::PAGE;
            }
        }
        Ok(())
    }
}

/// A descriptor that is written to without a buffer, and waited for where it is non-blocking.
struct Unbuffered<'a>(BorrowedFd<'a>);

impl Write for Unbuffered<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(self.0, bytes) {
                Err(Errno::AGAIN) => {
                    poll(&mut [PollFd::new(&self.0.as_fd(), PollFlags::OUT)], None)?;
                }
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn results_are_shown_as_far_as_their_jobs_count() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal");
        let job = format!("{{\"key\":\"{:032x}\",\"ok\":true,\"pending\":true}}\n", 1);
        let shown = |out: u64| format!("{{\"shown\":{{\"out\":{out},\"err\":0}}}}\n");
        let before = "an earlier run\n";
        let file = dir.path().join("out");
        fs::write(&file, "one\ntwo\nthree\n").unwrap();
        let since = before.len() as u64;
        let mut follower =
            Follower::new(since, Some(File::open(&file).unwrap()), File::open(&file).unwrap());
        assert!(!follower.read(&journal).unwrap(), "there is none yet");
        let first = [before, &job, &shown(4), &job].concat();
        fs::write(&journal, &first).unwrap();
        assert!(follower.read(&journal).unwrap());
        assert_eq!(follower.out.until, 4);
        assert_eq!(follower.counted, (first.len() - job.len()) as u64);
        // Half of a line.
        let more = [&first, &shown(8)[..9]].concat();
        fs::write(&journal, &more).unwrap();
        assert!(!follower.read(&journal).unwrap());
        assert_eq!(follower.out.until, 4);
        // The engine is lost, and the next launch has cut the journal.
        follower.start_again();
        let lost = "{\"lost\":{\"host\":\"n2\",\"reason\":\"silent\"}}\n";
        let end = "{\"end\":{\"exit\":1,\"succeeded\":2,\"failed\":1,\"not_started\":0}}\n";
        let cut = &first[..first.len() - job.len()];
        fs::write(&journal, [cut, lost, &job, &shown(14), end].concat()).unwrap();
        assert!(follower.read(&journal).unwrap());
        assert_eq!(follower.out.until, 14);
        assert!(follower.lost.contains_key("n2"));
        assert_eq!(follower.end.map(|end| (end.exit, end.failed)), Some((1, 1)));
    }
}
