//! Output of jobs that exceeds memory: ranges of files that workers have passed here.
//!
//! `tasks::command::spill` has the other side and the reasons. A range is read block by block when
//! it is shown, and then freed in its file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use rand::RngExt;
use rustix::fs::{FallocateFlags, FileType, fallocate, sendfile};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::format;
pub(super) use crate::tasks::command::spill::PAGE;
use crate::tasks::command::spill::{NOTICE, Notice};
use crate::tasks::command::{self, Range};

/// The size of a read; a multiple of three, for base64.
const BLOCK: usize = 3 << 16;

/// The files of all workers.
#[derive(Clone)]
pub(super) struct Spills(Arc<Mutex<HashMap<u64, Worker>>>);

/// The files of a worker.
struct Worker {
    files: [Arc<File>; 2],
    /// Ranges that were announced and not found yet.
    awaited: i64,
    /// Whether the worker has ended, so that nothing more will be announced.
    has_ended: bool,
}

impl Spills {
    /// Listens to the workers on a thread of its own. Returns the name of the socket for them.
    pub(super) fn listen(
        announce: impl Fn(LiveOutput) + Send + Sync + 'static,
    ) -> Result<(Self, Vec<u8>)> {
        let name = format!("procpool-{:032x}", rand::rng().random::<u128>()).into_bytes();
        let listener = SocketAddr::from_abstract_name(&name)
            .and_then(|address| UnixListener::bind_addr(&address))
            .context("failed to create the socket for job output")?;
        let spills = Self(Arc::default());
        let listening = spills.clone();
        let announce = Arc::new(announce);
        let listen = move || {
            for worker in listener.incoming() {
                let Ok(worker) = worker else { continue };
                let (spills, announce) = (listening.clone(), Arc::clone(&announce));
                // A worker that gets no answer reports the failure with its job.
                let _ = thread::Builder::new()
                    .name("spill".into())
                    .spawn(move || spills.receive(&worker, &*announce));
            }
        };
        let thread = thread::Builder::new().name("spills".into());
        thread.spawn(listen).context("failed to start a thread")?;
        Ok((spills, name))
    }

    /// Receives a worker's notices until it ends.
    fn receive(&self, mut from: &UnixStream, announce: &dyn Fn(LiveOutput)) {
        let ours = rustix::net::sockopt::socket_peercred(from)
            .is_ok_and(|peer| peer.uid == rustix::process::geteuid());
        if !ours {
            return;
        }
        let Ok((key, files)) = accept(from) else { return };
        self.lock().insert(key, Worker { files, awaited: 0, has_ended: false });
        let mut bytes = [0; NOTICE];
        let mut received = from.write_all(&[1]);
        let mut ends = [const { None::<Arc<AtomicU64>> }; 2];
        while received.is_ok() {
            received = from.read_exact(&mut bytes);
            match Notice::from_bytes(&bytes).filter(|_| received.is_ok()) {
                Some(Notice::Runs { which, id, start }) => {
                    let file = self.lock().get(&key).map(|worker| Arc::clone(&worker.files[which]));
                    if let Some(file) = file {
                        let end = Arc::new(AtomicU64::new(u64::MAX));
                        ends[which] = Some(Arc::clone(&end));
                        announce(LiveOutput { id, which, file, start, end, shown: 0 });
                    }
                    // Acknowledged afterwards: this must come before the job's result.
                    received = from.write_all(&[1]);
                }
                Some(Notice::Ends { which, end }) => {
                    ends[which].iter().for_each(|known| known.store(end, Ordering::Release));
                    received = from.write_all(&[1]);
                }
                Some(Notice::Ranges { count }) => self.change(key, |worker| {
                    worker.awaited += i64::try_from(count).unwrap_or(0);
                }),
                Some(Notice::Files { .. }) | None => break,
            }
        }
        self.change(key, |worker| worker.has_ended = true);
    }

    /// Resolves a range of a result. Returns none if the worker never passed its files.
    pub(super) fn find(&self, range: Range) -> Option<Printed> {
        let file = self.lock().get(&range.key).map(|worker| worker.files.get(range.which).cloned());
        self.change(range.key, |worker| worker.awaited -= 1);
        let Range { start, length, .. } = range;
        Some(Printed::InFile(Arc::new(Part { file: file??, start, length })))
    }

    /// Updates a worker's entry, and removes it when nothing more can follow.
    fn change(&self, key: u64, change: impl FnOnce(&mut Worker)) {
        let mut workers = self.lock();
        let Some(worker) = workers.get_mut(&key) else { return };
        change(worker);
        if worker.has_ended && worker.awaited <= 0 {
            workers.remove(&key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Worker>> {
        // No foreign code runs under the lock, so a panic cannot leave the entries inconsistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the first notice of a worker, with its files.
fn accept(from: &UnixStream) -> io::Result<(u64, [Arc<File>; 2])> {
    let mut bytes = [0; NOTICE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let read = recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let mut files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds.map(File::from).map(Arc::new)),
        _ => None,
    });
    let mut files = files.by_ref().flatten();
    match (Notice::from_bytes(&bytes), files.next(), files.next()) {
        (Some(Notice::Files { key }), Some(out), Some(err)) if read.bytes == NOTICE => {
            Ok((key, [out, err]))
        }
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

/// Output of a job on one stream.
#[derive(Clone, Debug)]
pub(super) enum Printed {
    /// In memory.
    Here(Vec<u8>),
    /// In a file.
    InFile(Arc<Part>),
    /// In a file that is not [resolved](Spills::find) yet.
    Named(Range),
}

impl Default for Printed {
    fn default() -> Self {
        Self::Here(Vec::new())
    }
}

impl Printed {
    /// Skips the first bytes in a file, which were shown before.
    pub(super) fn skip(&mut self, shown: u64) {
        // Nothing else references the part of a row that was not shown.
        if let Self::InFile(part) = self
            && let Some(part) = Arc::get_mut(part)
        {
            let shown = shown.min(part.length);
            part.start += shown;
            part.length -= shown;
        }
    }
}

impl From<command::Printed> for Printed {
    fn from(printed: command::Printed) -> Self {
        match printed {
            command::Printed::Here(bytes) => Self::Here(bytes.into_vec()),
            command::Printed::InFile(range) => Self::Named(range),
        }
    }
}

/// A part of a file, owned by this.
#[derive(Debug)]
pub(super) struct Part {
    file: Arc<File>,
    start: u64,
    length: u64,
}

impl Part {
    /// Copies it to a file.
    pub(super) fn copy_to(&self, to: &mut File) -> io::Result<()> {
        copy(&self.file, self.start, self.start + self.length, to)
    }

    /// Returns the last bytes, at most this many, and whether there are more.
    pub(super) fn end(&self, most: u64) -> (Vec<u8>, bool) {
        let length = self.length.min(most);
        let mut bytes = vec![0; length as usize];
        let at = self.start + self.length - length;
        match self.file.read_exact_at(&mut bytes, at) {
            Ok(()) => (bytes, length < self.length),
            Err(_) => (Vec::new(), true),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        free(&self.file, self.start, self.start + self.length);
    }
}

/// Frees a part of a file, where the file system can: whole pages, of which the first may already
/// be partly freed.
pub(super) fn free(file: &File, start: u64, end: u64) {
    let (start, end) = (start / PAGE * PAGE, end / PAGE * PAGE);
    if start < end {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = fallocate(file, hole, start, end - start);
    }
}

/// How bytes are encoded for the output.
#[derive(Clone, Debug)]
pub(super) enum Encoding {
    /// Unchanged.
    Raw,
    /// With this prefix on each line.
    Tagged(Vec<u8>),
    /// In a JSON string; what is not UTF-8 becomes U+FFFD.
    Json,
    /// In base64.
    Base64,
    /// In a quoted CSV field.
    Csv,
    /// As lines below a table's row.
    Table,
}

impl Part {
    /// Returns the length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Returns the last byte.
    pub(super) fn last(&self) -> Option<u8> {
        let mut last = [0];
        let at = (self.start + self.length).checked_sub(1)?;
        self.file.read_exact_at(&mut last, at).ok()?;
        Some(last[0])
    }

    /// Passes all of it to `to` in blocks.
    fn blocks(&self, mut to: impl FnMut(&[u8], bool) -> io::Result<()>) -> io::Result<()> {
        let mut block = vec![0; BLOCK];
        let mut read = 0;
        while read < self.length {
            let length = BLOCK.min(usize::try_from(self.length - read).unwrap_or(BLOCK));
            self.file.read_exact_at(&mut block[..length], self.start + read)?;
            read += length as u64;
            to(&block[..length], read == self.length)?;
        }
        Ok(())
    }

    /// Whether all of it is UTF-8.
    pub(super) fn is_text(&self) -> io::Result<bool> {
        let mut is_text = true;
        let mut decoder = Decoder::default();
        self.blocks(|block, last| {
            decoder.decode(block, last, |_, valid| is_text &= valid);
            Ok(())
        })?;
        Ok(is_text)
    }

    /// Writes all of it in this encoding.
    pub(super) fn write(&self, form: &Encoding, to: &mut (impl Write + AsFd)) -> io::Result<()> {
        let mut decoder = Decoder::default();
        let mut text = Vec::new();
        let mut at_start = true;
        match form {
            Encoding::Raw => return copy(&self.file, self.start, self.start + self.length, to),
            Encoding::Tagged(_)
            | Encoding::Json
            | Encoding::Base64
            | Encoding::Csv
            | Encoding::Table => {}
        }
        self.blocks(|block, last| {
            text.clear();
            match form {
                Encoding::Raw => {}
                Encoding::Tagged(tag) => {
                    for line in block.split_inclusive(|byte| *byte == b'\n') {
                        if at_start {
                            text.extend_from_slice(tag);
                        }
                        text.extend_from_slice(line);
                        at_start = line.ends_with(b"\n");
                    }
                }
                Encoding::Json => decoder.decode(block, last, |part, _| json(part, &mut text)),
                Encoding::Base64 => base64(block, &mut text),
                Encoding::Csv => {
                    for part in block.split_inclusive(|byte| *byte == b'"') {
                        text.extend_from_slice(part);
                        if part.ends_with(b"\"") {
                            text.push(b'"');
                        }
                    }
                }
                Encoding::Table => decoder.decode(block, last, |part, _| {
                    for line in part.split_inclusive('\n') {
                        if at_start {
                            text.extend_from_slice(TABLE_INDENT.as_bytes());
                        }
                        at_start = line.ends_with('\n');
                        let line = line.strip_suffix('\n').unwrap_or(line);
                        text.extend_from_slice(format::one_line(line).as_bytes());
                        if at_start {
                            text.push(b'\n');
                        }
                    }
                }),
            }
            to.write_all(&text)
        })?;
        if matches!(form, Encoding::Table) && !at_start {
            to.write_all(b"\n")?;
        }
        to.flush()
    }
}

/// The prefix of each line below a table's row.
pub(super) const TABLE_INDENT: &str = "         │ ";

/// Appends text as the inside of a JSON string.
pub(super) fn json(text: &str, to: &mut Vec<u8>) {
    let start = to.len();
    if serde_json::to_writer(&mut *to, text).is_ok() {
        // Without the quotes around it.
        to.pop();
        to.remove(start);
    }
}

/// Appends bytes in base64, padded at the end.
pub(super) fn base64(bytes: &[u8], to: &mut Vec<u8>) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for three in bytes.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(bits);
        for digit in 0..4 {
            let used = digit <= three.len();
            let value = (bits >> (18 - 6 * digit)) & 63;
            to.push(if used { DIGITS[value as usize] } else { b'=' });
        }
    }
}

/// Decodes blocks that may cut characters.
#[derive(Default)]
struct Decoder {
    begun: Vec<u8>,
}

impl Decoder {
    /// Passes text to `to`, and whether the bytes were valid.
    fn decode(&mut self, block: &[u8], last: bool, mut to: impl FnMut(&str, bool)) {
        self.begun.extend_from_slice(block);
        let mut rest = self.begun.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    to(text, true);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    to(&String::from_utf8_lossy(valid), true);
                    let Some(length) = error.error_len().or(last.then_some(after.len())) else {
                        rest = after;
                        break;
                    };
                    to("\u{fffd}", false);
                    rest = &after[length..];
                }
            }
        }
        self.begun = rest.to_vec();
    }
}

/// Copies a part of a file, in the kernel where that is possible and safe.
pub(super) fn copy(
    from: &File,
    start: u64,
    end: u64,
    to: &mut (impl Write + AsFd),
) -> io::Result<()> {
    to.flush()?;
    let mut at = start;
    // To a pipe or a socket, `sendfile` would pass the file's own pages. They are freed, and so
    // overwritten by zeros, before the reader gets to them.
    let kind = rustix::fs::fstat(&*to).map(|to| FileType::from_raw_mode(to.st_mode));
    let mut sends = matches!(kind, Ok(FileType::RegularFile | FileType::CharacterDevice));
    let mut block = Vec::new();
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        if sends {
            match sendfile(&*to, from, Some(&mut at), left.min(8 << 20)) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                // `sendfile` does not support every output, nor one opened for appending.
                Err(Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::AGAIN) => sends = false,
                Err(error) => return Err(error.into()),
            }
        } else {
            block.resize(BLOCK, 0);
            let length = left.min(BLOCK);
            from.read_exact_at(&mut block[..length], at)?;
            to.write_all(&block[..length])?;
            at += length as u64;
        }
    }
    to.flush()
}

/// The output of a running job, shown while it runs.
#[derive(Debug)]
pub(super) struct LiveOutput {
    pub(super) id: u64,
    /// The stream: 0 for standard output, 1 for standard error.
    pub(super) which: usize,
    file: Arc<File>,
    start: u64,
    /// The end of the output, once known.
    end: Arc<AtomicU64>,
    /// Bytes that were shown.
    pub(super) shown: u64,
}

impl LiveOutput {
    /// Returns the last bytes of the output so far, at most this many.
    pub(super) fn tail(&self, most: u64) -> io::Result<Vec<u8>> {
        // In this order, as in `follow`.
        let length = self.file.metadata()?.len();
        let end = length.min(self.end.load(Ordering::Acquire)).max(self.start);
        let start = self.start.max(end.saturating_sub(most));
        let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes)
    }

    /// Shows new output. Returns whether there was any.
    pub(super) fn follow(&mut self, to: &mut (impl Write + AsFd)) -> io::Result<bool> {
        let at = self.start + self.shown;
        // In this order: once the file has output of the next job, the end is known.
        let length = self.file.metadata()?.len();
        let end = length.min(self.end.load(Ordering::Acquire));
        if end <= at {
            return Ok(false);
        }
        // Bounded, so that other events are processed in between.
        let end = end.min(at + (64 << 20));
        copy(&self.file, at, end, to)?;
        free(&self.file, at, end);
        self.shown = end - self.start;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Seek, SeekFrom};

    fn written(bytes: &[u8], form: &Encoding) -> Vec<u8> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 5).unwrap();
        let part = Part { file: Arc::new(file), start: 5, length: bytes.len() as u64 };
        let mut to = tempfile::tempfile().unwrap();
        part.write(form, &mut to).unwrap();
        to.seek(SeekFrom::Start(0)).unwrap();
        let mut text = Vec::new();
        to.read_to_end(&mut text).unwrap();
        text
    }

    #[test]
    fn a_part_is_written_in_every_form_as_if_it_were_in_memory() {
        // Longer than a block, with a character and a line across its end.
        let text = "aé\"\n\u{1b}".repeat(BLOCK / 3);
        let bytes = text.as_bytes();
        assert_eq!(written(bytes, &Encoding::Raw), bytes);
        let tagged = command::tagged(b"x\t", bytes);
        assert_eq!(written(bytes, &Encoding::Tagged(b"x\t".to_vec())), tagged);
        let json = [b"\"", written(bytes, &Encoding::Json).as_slice(), b"\""].concat();
        assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), text);
        let csv = [b"\"", written(bytes, &Encoding::Csv).as_slice(), b"\""].concat();
        let mut reader = ::csv::ReaderBuilder::new().has_headers(false).from_reader(csv.as_slice());
        assert_eq!(&reader.byte_records().next().unwrap().unwrap()[0], bytes);
        let table = String::from_utf8(written(bytes, &Encoding::Table)).unwrap();
        assert_eq!(table.lines().count(), text.lines().count());
        assert!(table.lines().nth(1).unwrap().ends_with("│ \\u{1b}aé\""), "{:?}", &table[..80]);
    }

    #[test]
    fn bytes_that_are_no_text_are_all_there_in_base64() {
        let encoded = |bytes: &[u8]| {
            let mut text = Vec::new();
            base64(bytes, &mut text);
            String::from_utf8(text).unwrap()
        };
        let cases =
            ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|it| encoded(it.as_bytes()));
        assert_eq!(cases, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
        let bytes = vec![0xff; BLOCK + 1];
        assert_eq!(written(&bytes, &Encoding::Base64), encoded(&bytes).into_bytes());
    }

    #[test]
    fn text_is_told_from_other_bytes_also_where_a_character_is_cut() {
        let is_text = |bytes: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            let part = Part { file: Arc::new(file), start: 0, length: bytes.len() as u64 };
            part.is_text().unwrap()
        };
        assert!(is_text(&["x".repeat(BLOCK - 1), "é".to_owned()].concat().into_bytes()));
        assert!(!is_text("é".as_bytes().split_last().unwrap().1));
        assert!(!is_text(b"a\xffb"));
    }
}
