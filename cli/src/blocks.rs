//! `--pipe`: standard input in blocks, each the standard input of one job.
//!
//! A block ends where a record ends. It is an unnamed file in memory, sealed, and a job's worker gets its
//! descriptor: no process waits for another to read, a job that is tried again reads it again, and nothing is
//! copied once more.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use procpool::shared::SharedFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Bytes of all blocks that may wait or be at work, unless each worker needs more.
const AHEAD: usize = 32 << 20;

/// Descriptors that are left to the rest of the process.
const FDS_LEFT: usize = 64;

/// Bytes that are read at once where records are counted.
const READ: usize = 64 << 10;

/// How the input is split.
#[derive(Clone, Debug)]
pub(super) struct BlockRules {
    /// The bytes of a block. A record that is longer is a block of its own.
    pub(super) size: usize,
    /// What a record ends with, and what the next starts with; nothing for anywhere.
    pub(super) end: Vec<u8>,
    pub(super) start: Vec<u8>,
    /// The number of records of a block, instead of its size.
    pub(super) records: Option<usize>,
}

impl BlockRules {
    /// What stands between two records, and where the first of them ends in it.
    fn separator(&self) -> (Vec<u8>, usize) {
        ([&self.end[..], &self.start[..]].concat(), self.end.len())
    }
}

/// Returns where records end in `text`, from this place on. The end of the text does not count.
fn ends<'a>(
    text: &'a [u8],
    from: usize,
    separator: &'a [u8],
    end: usize,
) -> impl DoubleEndedIterator<Item = usize> + 'a {
    let last = (text.len() + 1).saturating_sub(separator.len());
    (from..last.max(from))
        .filter(move |at| text[*at] == separator[0] && text[*at..].starts_with(separator))
        .map(move |at| at + end)
        // A start of a record at the start of the text ends none.
        .filter(|at| *at > 0)
}

/// Reads blocks.
pub(super) struct Blocks {
    reader: Box<dyn Read + Send>,
    rules: BlockRules,
    /// What was read and is in no block yet.
    rest: Vec<u8>,
    is_over: bool,
    /// Records of the next block that were counted, and up to where.
    counted: usize,
    scanned: usize,
    number: i64,
    files: BlockFiles,
}

/// The files of blocks that were read and have no job yet, in their order.
#[derive(Clone)]
pub(super) struct BlockFiles {
    files: Arc<Mutex<VecDeque<SharedFd>>>,
    /// The bytes of a block.
    size: usize,
}

impl BlockFiles {
    /// Returns how many blocks may be read before the results of the first are there. Each takes a
    /// descriptor: called when the workers have theirs.
    pub(super) fn ahead(&self, workers: usize) -> usize {
        let wanted = (AHEAD / self.size.max(1)).clamp(2 * workers, 16 * workers.max(4));
        wanted.min(free_fds().saturating_sub(FDS_LEFT)).max(1)
    }

    /// Takes the file of the next block.
    pub(super) fn take(&self) -> Option<SharedFd> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn put(&self, file: SharedFd) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).push_back(file);
    }
}

/// Returns how many descriptors this process may still open, as far as it can tell.
fn free_fds() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    limit.saturating_sub(open)
}

impl Blocks {
    pub(super) fn new(reader: Box<dyn Read + Send>, rules: BlockRules) -> Self {
        let files = BlockFiles { files: Arc::default(), size: rules.size };
        let (rest, is_over) = (Vec::new(), false);
        Self { reader, rules, rest, is_over, counted: 0, scanned: 0, number: 0, files }
    }

    /// Returns the files of the blocks that are read.
    pub(super) fn files(&self) -> BlockFiles {
        self.files.clone()
    }

    /// Reads the next block into a file. Returns its number, from 1.
    ///
    /// # Errors
    ///
    /// When the input can't be read, or the system has no memory for a file.
    pub(super) fn next(&mut self) -> io::Result<Option<i64>> {
        let Some(length) = self.fill()? else { return Ok(None) };
        let file = in_memory(&self.rest[..length])?;
        self.rest.drain(..length);
        self.files.put(file.into());
        self.number += 1;
        Ok(Some(self.number))
    }

    /// Reads until there is a block. Returns its length.
    fn fill(&mut self) -> io::Result<Option<usize>> {
        let size = self.rules.size;
        let mut wanted = size;
        (self.counted, self.scanned) = (0, 0);
        loop {
            let is_enough = self.rest.len() >= wanted || self.is_over && self.rest.len() > size;
            let found = match self.rules.records {
                Some(records) => self.count(records),
                None if is_enough => self.last_end(),
                None => None,
            };
            if found.is_some() {
                return Ok(found);
            }
            if self.is_over {
                let length = self.rest.len();
                return Ok((length > 0).then_some(length));
            }
            // A record is longer than a block.
            if self.rest.len() >= wanted {
                wanted = 2 * self.rest.len();
            }
            match self.rules.records {
                // Records that are there are a block, even if more are slow to come.
                Some(_) => self.read_some()?,
                None => {
                    let missing = (wanted - self.rest.len()) as u64;
                    let read = self.reader.by_ref().take(missing).read_to_end(&mut self.rest)?;
                    self.is_over = (read as u64) < missing;
                }
            }
        }
    }

    /// Reads what is there.
    fn read_some(&mut self) -> io::Result<()> {
        let before = self.rest.len();
        self.rest.resize(before + READ, 0);
        let read = loop {
            match self.reader.read(&mut self.rest[before..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.rest.truncate(before + read.as_ref().map_or(0, |read| *read));
        self.is_over = read? == 0;
        Ok(())
    }

    /// Returns where the last record ends that is there.
    fn last_end(&self) -> Option<usize> {
        let (separator, end) = self.rules.separator();
        if separator.is_empty() {
            return Some(self.rules.size.min(self.rest.len()));
        }
        ends(&self.rest, 0, &separator, end).next_back()
    }

    /// Counts records further. Returns where the last of `records` ends, if they are there.
    fn count(&mut self, records: usize) -> Option<usize> {
        let (separator, end) = self.rules.separator();
        if separator.is_empty() {
            return None;
        }
        let mut last = None;
        for found in ends(&self.rest, self.scanned, &separator, end) {
            self.counted += 1;
            if self.counted == records {
                last = Some(found);
                break;
            }
        }
        self.scanned = (self.rest.len() + 1).saturating_sub(separator.len());
        last
    }
}

/// Returns a sealed file in memory with this content.
fn in_memory(content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = std::fs::File::from(memfd_create("procpool-block", flags)?);
    file.write_all(content)?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::FileExt;

    fn blocks(text: &str, rules: BlockRules) -> Vec<String> {
        let mut blocks =
            Blocks::new(Box::new(io::Cursor::new(text.to_owned().into_bytes())), rules);
        let mut all = Vec::new();
        while let Some(number) = blocks.next().unwrap() {
            let file = std::fs::File::from(blocks.files().take().unwrap().into_owned().unwrap());
            let mut content = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut content, 0).unwrap();
            all.push(String::from_utf8(content).unwrap());
            assert_eq!(number, all.len() as i64);
        }
        assert_eq!(all.concat(), text, "nothing is lost");
        all
    }

    fn lines(size: usize) -> BlockRules {
        BlockRules { size, end: b"\n".to_vec(), start: Vec::new(), records: None }
    }

    #[test]
    fn a_block_ends_with_a_record_and_a_long_record_is_one() {
        assert_eq!(blocks("a\nb\nc\n", lines(4)), ["a\nb\n", "c\n"]);
        assert_eq!(blocks("a\nb\nc", lines(4)), ["a\nb\n", "c"]);
        assert_eq!(
            blocks("a\nlonger than a block\nc\n", lines(4)),
            ["a\n", "longer than a block\nc\n"]
        );
        assert_eq!(blocks("", lines(4)), [""; 0]);
        assert_eq!(blocks("no end", lines(2)), ["no end"]);
    }

    #[test]
    fn records_may_be_counted_begin_with_a_text_or_end_anywhere() {
        let counted = BlockRules { records: Some(2), ..lines(1) };
        assert_eq!(blocks("a\nb\nc\nd\ne", counted), ["a\nb\n", "c\nd\n", "e"]);
        let started = BlockRules { end: Vec::new(), start: b">".to_vec(), ..lines(5) };
        assert_eq!(blocks(">a\n>b\n>c\n", started), [">a\n", ">b\n", ">c\n"]);
        let both = BlockRules { start: b"#".to_vec(), records: Some(1), ..lines(1) };
        assert_eq!(blocks("#a\nx\n#b\n", both), ["#a\nx\n", "#b\n"]);
        let anywhere = BlockRules { end: Vec::new(), ..lines(3) };
        assert_eq!(blocks("abcdefgh", anywhere), ["abc", "def", "gh"]);
    }

    #[test]
    fn a_block_cannot_be_changed() {
        let file = std::fs::File::from(in_memory(b"text").unwrap());
        assert!(file.write_at(b"x", 0).is_err() && file.set_len(1).is_err());
    }
}
