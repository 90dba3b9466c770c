//! What jobs print and memory is not to hold: ranges of files that workers have passed here.
//!
//! The other side, and why it is so, is in `tasks::command::spill`. A range is read in blocks when
//! it is its turn to be shown, and taken out of its file when it has been.

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
use crate::tasks::command::spill::{NOTICE, Notice, PAGE};
use crate::tasks::command::{self, Range};

/// How much is read at a time; a multiple of three, for base64.
const BLOCK: usize = 3 << 16;

/// The files of all workers.
#[derive(Clone)]
pub(super) struct Spills(Arc<Mutex<HashMap<u64, Worker>>>);

/// The files of one.
struct Worker {
    files: [Arc<File>; 2],
    /// How many ranges were announced and not asked for yet.
    awaited: i64,
    /// It has ended, and nothing more will be announced.
    gone: bool,
}

impl Spills {
    /// Listens from a thread of its own to the workers, which are to know this name.
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
                // A worker that nobody hears says so of the job whose output it can't keep.
                let _ = thread::Builder::new()
                    .name("spill".into())
                    .spawn(move || spills.hear(&worker, &*announce));
            }
        };
        let thread = thread::Builder::new().name("spills".into());
        thread.spawn(listen).context("failed to start a thread")?;
        Ok((spills, name))
    }

    /// Hears a worker until it's gone.
    fn hear(&self, mut from: &UnixStream, announce: &dyn Fn(LiveOutput)) {
        let ours = rustix::net::sockopt::socket_peercred(from)
            .is_ok_and(|peer| peer.uid == rustix::process::geteuid());
        if !ours {
            return;
        }
        let Ok((key, files)) = accept(from) else { return };
        self.lock().insert(key, Worker { files, awaited: 0, gone: false });
        let mut bytes = [0; NOTICE];
        let mut heard = from.write_all(&[1]);
        let mut ends: Arc<AtomicU64> = Arc::default();
        while heard.is_ok() {
            heard = from.read_exact(&mut bytes);
            match Notice::from_bytes(&bytes).filter(|_| heard.is_ok()) {
                Some(Notice::Runs { id, start }) => {
                    let file = self.lock().get(&key).map(|worker| Arc::clone(&worker.files[0]));
                    if let Some(file) = file {
                        let end = Arc::new(AtomicU64::new(u64::MAX));
                        ends = Arc::clone(&end);
                        announce(LiveOutput { id, file, start, end, shown: 0 });
                    }
                    // The job's result must not be seen before this is.
                    heard = from.write_all(&[1]);
                }
                Some(Notice::Ends { end }) => {
                    ends.store(end, Ordering::Release);
                    heard = from.write_all(&[1]);
                }
                Some(Notice::Ranges { count }) => self.change(key, |worker| {
                    worker.awaited += i64::try_from(count).unwrap_or(0);
                }),
                Some(Notice::Files { .. }) | None => break,
            }
        }
        self.change(key, |worker| worker.gone = true);
    }

    /// The range that a result names; none if the worker never passed its files.
    pub(super) fn find(&self, range: Range) -> Option<Printed> {
        let file = self.lock().get(&range.key).map(|worker| worker.files.get(range.which).cloned());
        self.change(range.key, |worker| worker.awaited -= 1);
        let Range { start, length, .. } = range;
        Some(Printed::InFile(Arc::new(Part { file: file??, start, length })))
    }

    /// Changes what is known of a worker, and forgets it where nothing more is to come.
    fn change(&self, key: u64, change: impl FnOnce(&mut Worker)) {
        let mut workers = self.lock();
        let Some(worker) = workers.get_mut(&key) else { return };
        change(worker);
        if worker.gone && worker.awaited <= 0 {
            workers.remove(&key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Worker>> {
        // No code of others runs under the lock: what was left by a panic is whole.
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

/// What a job printed to one of its outputs.
#[derive(Clone, Debug)]
pub(super) enum Printed {
    /// This.
    Here(Vec<u8>),
    /// What stands there.
    InFile(Arc<Part>),
    /// What is to be [found](Spills::find).
    Named(Range),
}

impl Default for Printed {
    fn default() -> Self {
        Self::Here(Vec::new())
    }
}

impl Printed {
    /// Leaves out the first bytes of what is in a file, which were shown before.
    pub(super) fn skip(&mut self, shown: u64) {
        // Nobody else has the part of a row that was not shown yet.
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

/// A part of a file, which nobody but this has a use for.
#[derive(Debug)]
pub(super) struct Part {
    file: Arc<File>,
    start: u64,
    length: u64,
}

impl Drop for Part {
    fn drop(&mut self) {
        free(&self.file, self.start, self.start + self.length);
    }
}

/// Gives the file system back what is in a part of a file, where it can: whole pages, of which the
/// first may begin with what was given back before.
fn free(file: &File, start: u64, end: u64) {
    let (start, end) = (start / PAGE * PAGE, end / PAGE * PAGE);
    if start < end {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = fallocate(file, hole, start, end - start);
    }
}

/// In what form bytes are written.
#[derive(Clone, Debug)]
pub(super) enum Encoding {
    /// As they are.
    Raw,
    /// Each line after this.
    Tagged(Vec<u8>),
    /// Within a string of JSON; what isn't UTF-8 shows as U+FFFD.
    Json,
    /// In base64.
    Base64,
    /// Within a quoted field of CSV.
    Csv,
    /// Lines below a row of a table.
    Table,
}

impl Part {
    /// How many bytes it has.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Its last byte.
    pub(super) fn last(&self) -> Option<u8> {
        let mut last = [0];
        let at = (self.start + self.length).checked_sub(1)?;
        self.file.read_exact_at(&mut last, at).ok()?;
        Some(last[0])
    }

    /// Hands over all of it in blocks.
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

    /// Writes all of it.
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

/// What stands before each line below a row of a table.
pub(super) const TABLE_INDENT: &str = "         │ ";

/// Text as it stands within a string of JSON.
pub(super) fn json(text: &str, to: &mut Vec<u8>) {
    let start = to.len();
    if serde_json::to_writer(&mut *to, text).is_ok() {
        // Without the quotes around it.
        to.pop();
        to.remove(start);
    }
}

/// Bytes in base64, filled up at the end.
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

/// Text out of blocks, between which a character may be cut.
#[derive(Default)]
struct Decoder {
    begun: Vec<u8>,
}

impl Decoder {
    /// Hands over text, and whether it's what the bytes say.
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

/// Copies a part of a file as it is, without the bytes coming by here where that's possible and safe.
pub(super) fn copy(
    from: &File,
    start: u64,
    end: u64,
    to: &mut (impl Write + AsFd),
) -> io::Result<()> {
    to.flush()?;
    let mut at = start;
    // To a pipe or a socket, the kernel would send the file's own memory, which is freed, and so
    // overwritten by zeros, before the reader has come to it.
    let kind = rustix::fs::fstat(&*to).map(|to| FileType::from_raw_mode(to.st_mode));
    let mut sends = matches!(kind, Ok(FileType::RegularFile | FileType::CharacterDevice));
    let mut block = Vec::new();
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        if sends {
            match sendfile(&*to, from, Some(&mut at), left.min(8 << 20)) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                // Not every kind of output can be sent to, nor one that is appended to.
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

/// A job's output that is shown while the job runs.
#[derive(Debug)]
pub(super) struct LiveOutput {
    pub(super) id: u64,
    file: Arc<File>,
    start: u64,
    /// Where it ends, once that is known.
    end: Arc<AtomicU64>,
    /// How much of it was shown.
    pub(super) shown: u64,
}

impl LiveOutput {
    /// Shows what has come since; whether there was any.
    pub(super) fn follow(&mut self, to: &mut (impl Write + AsFd)) -> io::Result<bool> {
        let at = self.start + self.shown;
        // In this order: when the file has something of the worker's next job, the end is known.
        let length = self.file.metadata()?.len();
        let end = length.min(self.end.load(Ordering::Acquire));
        if end <= at {
            return Ok(false);
        }
        // Not for so long that nothing else is heard of.
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
