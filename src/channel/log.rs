//! The messages of a channel: a log in a sparse anonymous file. Senders append at its tail, receivers read
//! at its head, and only the range between them uses memory.
//!
//! ```text
//!            freed           head                    tail
//!   ───────────┼───────────────┼───────────────────────┼──────────────►
//!     (a hole) │    received   │  sent, not received   │  (not there yet)
//! ```
//!
//! The file is mapped one window at a time. A record is a header of one word, which encodes the kind, the
//! length and whether the message refers to files, followed by the message. A record lies within one window; if the rest of a window is too short, it is
//! skipped. A large message bypasses the mappings and has windows of its own.
//!
//! One process at a time sends and one receives, concurrently. Each side has a [lock](RawLock) and a
//! [position](Cursor). A record takes effect when the position is moved past it, which is one store. So a
//! killed process leaves nothing to repair: a record that it was writing is overwritten, and a record that
//! it was reading is read by another process.
//!
//! The content of the log is not trusted: each header is checked against its window and the log.

use std::io;
use std::ops::Range;
use std::sync::atomic::{self, Ordering::*};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::atomic::AtomicU64;
use crate::ipc::handle::File;
use crate::ipc::memory::{self, Atomics, Mapping};
use crate::ipc::raw_lock::RawLock;

/// The size in bytes of the part of the file that is mapped, and freed, at a time. The system calls for it
/// are negligible among the thousands of messages that it holds, and it is small enough for a channel with
/// few messages.
const WINDOW: u64 = 256 << 10;

/// Messages of more bytes bypass the mappings: copying them costs more than the system calls.
const LARGE: usize = 64 << 10;

/// Size of a record's header in bytes. Records start at multiples of it.
const HEAD: u64 = 8;

/// The state of one side of a log. Only the holder of its lock changes it.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Cursor {
    pub(super) lock: RawLock,
    /// Where the next record will be written or read.
    position: AtomicU64,
    /// How many messages have been sent or received.
    count: AtomicU64,
    /// The next values of `position` and `count`. If a process is killed between the stores of the two, the
    /// next holder of the lock takes the count from here.
    next_position: AtomicU64,
    next_count: AtomicU64,
    /// The position before which the file has been freed.
    freed: AtomicU64,
}

// SAFETY: the type consists of atomics.
unsafe impl Atomics for Cursor {}

impl Cursor {
    pub(super) fn position(&self) -> u64 {
        self.position.load(Acquire)
    }

    /// Returns how many messages have been sent or received. The count is behind by one if a process was
    /// killed right after it moved the position, until another process takes the lock.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Acquire)
    }

    /// Completes an update that a killed holder of the lock left incomplete. The caller must hold the lock.
    fn recover(&self) {
        if self.position.load(Relaxed) == self.next_position.load(Relaxed) {
            let count = self.next_count.load(Relaxed);
            if self.count.load(Relaxed) != count {
                self.count.store(count, Release);
            }
        }
    }

    /// Moves past one message. The release of the lock, which the caller holds, orders this before the notification
    /// of those who wait for it.
    fn advance(&self, position: u64) {
        let count = self.count.load(Relaxed).wrapping_add(1);
        self.next_position.store(position, Release);
        self.next_count.store(count, Release);
        self.position.store(position, Release);
        self.count.store(count, Release);
    }
}

/// This process's access to a log.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) file: File,
    /// The window of the next write, and that of the next read.
    write: Mutex<Option<Window>>,
    read: Mutex<Option<Window>>,
    /// Where the sender was when this process last looked. Looking for each message would move the sender's cache
    /// line between the CPUs each time.
    seen_tail: atomic::AtomicU64,
}

#[derive(Debug)]
struct Window {
    start: u64,
    mapping: Mapping,
}

/// A record's header.
enum Record {
    /// A message of this many bytes follows.
    Here(usize),
    /// A message of this many bytes starts at the next window.
    Large(u64),
    /// The rest of the window is unused.
    Skip,
}

impl Record {
    const KIND: u64 = 3;

    /// Set in the header of a message that refers to files.
    const HAS_FILES: u64 = 4;

    fn to_word(&self, has_files: bool) -> u64 {
        let flag = if has_files { Self::HAS_FILES } else { 0 };
        flag | match self {
            Self::Here(len) => (*len as u64) << 3 | 1,
            Self::Large(len) => len << 3 | 2,
            Self::Skip => 3,
        }
    }

    fn from_word(word: u64) -> Option<Self> {
        let len = word >> 3;
        match word & Self::KIND {
            1 => Some(Self::Here(len as usize)),
            2 => Some(Self::Large(len)),
            3 => Some(Self::Skip),
            _ => None,
        }
    }
}

/// Why a message could not be written or read.
#[derive(Debug)]
pub(super) enum LogError {
    /// The log or its state was overwritten.
    Corrupt,
    System(io::Error),
}

impl From<io::Error> for LogError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl Log {
    pub(super) fn new() -> io::Result<Self> {
        memory::sparse().map(Self::of)
    }

    pub(super) fn of(file: File) -> Self {
        let seen_tail = atomic::AtomicU64::new(0);
        Self { file, write: Mutex::new(None), read: Mutex::new(None), seen_tail }
    }

    /// Appends a message, which may be marked as one that refers to files. The caller must hold the sending
    /// side's lock.
    pub(super) fn write(
        &self,
        tail: &Cursor,
        message: &[u8],
        has_files: bool,
    ) -> Result<(), LogError> {
        tail.recover();
        let mut position = tail.position();
        // Any process that has the channel can overwrite the position.
        if !is_valid(position) || message.len() as u64 > memory::SPARSE_LEN - position {
            return Err(LogError::Corrupt);
        }
        if message.len() > LARGE {
            let body = window_after(position);
            memory::write_at(&self.file, message, body)?;
            self.put_head(position, Record::Large(message.len() as u64).to_word(has_files))?;
            tail.advance(window_after(body + message.len() as u64 - 1));
            return Ok(());
        }
        let len = HEAD + message.len() as u64;
        if position % WINDOW + len > WINDOW {
            self.put_head(position, Record::Skip.to_word(false))?;
            position = window_after(position);
        }
        let mut window = lock(&self.write);
        let window = Window::at(&mut window, &self.file, position, true)?;
        window.put(position + HEAD, message);
        let record = Record::Here(message.len());
        window.head(position).store(record.to_word(has_files), Relaxed);
        tail.advance(position + len.next_multiple_of(HEAD));
        Ok(())
    }

    fn put_head(&self, position: u64, word: u64) -> io::Result<()> {
        let mut window = lock(&self.write);
        let window = Window::at(&mut window, &self.file, position, true)?;
        window.head(position).store(word, Relaxed);
        Ok(())
    }

    /// Moves the next message into `message`. Returns false if there is none. Calls `accept` with a message
    /// that refers to files; if that fails, the message stays in the log. The caller must hold the receiving
    /// side's lock.
    pub(super) fn read(
        &self,
        head: &Cursor,
        tail: &Cursor,
        message: &mut Vec<u8>,
        accept: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> Result<bool, LogError> {
        head.recover();
        let mut position = head.position();
        let end = self.end(position, tail);
        if position == end {
            return Ok(false);
        }
        match self.read_record(&mut position, end, message) {
            Ok(has_files) => {
                if has_files {
                    accept(message)?;
                }
                head.advance(position);
            }
            Err(LogError::Corrupt) => {
                // The start of the next record is unknown.
                head.advance(end);
                return Err(LogError::Corrupt);
            }
            Err(error) => return Err(error),
        }
        self.free(head, position);
        Ok(true)
    }

    /// Returns whether no message is at `head`.
    pub(super) fn is_empty(&self, head: &Cursor, tail: &Cursor) -> bool {
        let position = head.position();
        self.end(position, tail) == position
    }

    /// Returns a position up to which there are messages from `position` on; that itself if there are none.
    fn end(&self, position: u64, tail: &Cursor) -> u64 {
        let seen = self.seen_tail.load(Acquire);
        if position < seen {
            return seen;
        }
        let end = tail.position();
        // A release, and an acquire above: another thread that reads this has what the sender wrote before.
        self.seen_tail.store(end, Release);
        end
    }

    /// Reads the record at `position`, and moves `position` past it. Returns whether it refers to files.
    fn read_record(
        &self,
        position: &mut u64,
        end: u64,
        message: &mut Vec<u8>,
    ) -> Result<bool, LogError> {
        let mut window = lock(&self.read);
        loop {
            if *position >= end || !is_valid(*position) || !is_valid(end) {
                return Err(LogError::Corrupt);
            }
            let window = Window::at(&mut window, &self.file, *position, false)?;
            let left = WINDOW - *position % WINDOW - HEAD;
            let word = window.head(*position).load(Relaxed);
            let has_files = word & Record::HAS_FILES != 0;
            match Record::from_word(word).ok_or(LogError::Corrupt)? {
                Record::Skip => *position = window_after(*position),
                Record::Here(len) if len as u64 <= left => {
                    window.take(*position + HEAD, len, message);
                    *position += (HEAD + len as u64).next_multiple_of(HEAD);
                    return Ok(has_files);
                }
                Record::Large(len) if len > 0 && len <= end - *position => {
                    let body = window_after(*position);
                    // The length is untrusted: no more memory is allocated than the file uses.
                    let next = window_after(body + len - 1);
                    if next > end || len > memory::allocated(&self.file)? {
                        return Err(LogError::Corrupt);
                    }
                    memory::read_at(&self.file, message, body, len)?;
                    *position = next;
                    return Ok(has_files);
                }
                _ => return Err(LogError::Corrupt),
            }
        }
    }

    /// Frees the windows before the one that is being read.
    fn free(&self, head: &Cursor, position: u64) {
        let (freed, start) = (head.freed.load(Relaxed), position - position % WINDOW);
        if freed < start {
            // A failure is retried with the next window.
            if memory::punch(&self.file, freed..start).is_ok() {
                head.freed.store(start, Release);
            }
        }
    }
}

impl Window {
    /// Returns the window that contains `position`, and maps it if necessary. Allocates its memory if it is
    /// `writable`.
    fn at<'a>(
        current: &'a mut Option<Self>,
        file: &File,
        position: u64,
        writable: bool,
    ) -> io::Result<&'a mut Self> {
        let start = position - position % WINDOW;
        if current.as_ref().is_none_or(|window| window.start != start) {
            let range: Range<u64> = start..start + WINDOW;
            if writable {
                memory::reserve(file, range.clone())?;
            }
            let mapping = Mapping::new(file, range, true)?;
            *current = Some(Self { start, mapping });
        }
        current.as_mut().ok_or_else(|| io::Error::other("just mapped"))
    }

    /// Returns the header word at `position`.
    fn head(&self, position: u64) -> &atomic::AtomicU64 {
        let offset = (position % WINDOW) as usize;
        // SAFETY: it lies in the window, which is mapped as long as `self`, and is aligned: positions are
        // multiples of eight, which is checked when one is read.
        unsafe { atomic::AtomicU64::from_ptr(self.mapping.start().add(offset).cast()) }
    }

    /// Copies a message into the window, in which it must fit.
    fn put(&mut self, position: u64, message: &[u8]) {
        let offset = (position % WINDOW) as usize;
        assert!(offset + message.len() <= WINDOW as usize);
        // SAFETY: the range lies in the window, and the message outside of it.
        unsafe {
            let to = self.mapping.start().add(offset);
            std::ptr::copy_nonoverlapping(message.as_ptr(), to, message.len());
        }
    }

    /// Copies a message out of the window, in which it must lie.
    fn take(&self, position: u64, len: usize, message: &mut Vec<u8>) {
        message.clear();
        if len == 0 {
            return;
        }
        let offset = (position % WINDOW) as usize;
        assert!(offset + len <= WINDOW as usize);
        message.reserve(len);
        // SAFETY: the range lies in the window, and `message` has reserved space for it. Other processes may
        // write there at any time, so it is copied without creating a reference.
        unsafe {
            let from = self.mapping.start().add(offset);
            std::ptr::copy_nonoverlapping(from, message.as_mut_ptr(), len);
            message.set_len(len);
        }
    }
}

/// Returns whether a record may start or end at `position`.
fn is_valid(position: u64) -> bool {
    position.is_multiple_of(HEAD) && position <= memory::SPARSE_LEN
}

/// Returns the start of the window after the one that contains `position`.
fn window_after(position: u64) -> u64 {
    position - position % WINDOW + WINDOW
}

fn lock(window: &Mutex<Option<Window>>) -> MutexGuard<'_, Option<Window>> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Models the positions with the code itself. The messages are cells, and each side is one thread, because
/// its lock excludes others. Kills, the file and the capacity are not modelled.
#[cfg(all(test, loom))]
mod loom_model {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread::{spawn, yield_now};

    use super::*;

    #[derive(Default)]
    struct Model {
        sender: Cursor,
        receiver: Cursor,
        messages: [UnsafeCell<u64>; 2],
    }

    #[test]
    fn what_lies_before_the_senders_position_is_written_whole_and_counted_once() {
        loom::model(|| {
            let model = Arc::new(Model::default());
            let sender = spawn({
                let model = Arc::clone(&model);
                move || {
                    for message in 0..2 {
                        model.sender.recover();
                        let position = model.sender.position();
                        // SAFETY: loom fails the test if the receiver reads it meanwhile.
                        model.messages[message].with_mut(|cell| unsafe { *cell = position + 1 });
                        model.sender.advance(position + HEAD);
                    }
                }
            });
            let mut received = 0;
            while received < 2 {
                model.receiver.recover();
                let (position, end) = (model.receiver.position(), model.sender.position());
                assert!(position <= end && end <= 2 * HEAD);
                if position == end {
                    yield_now();
                    continue;
                }
                // SAFETY: loom fails the test if the sender writes it meanwhile.
                model.messages[received].with(|cell| assert_eq!(unsafe { *cell }, position + 1));
                model.receiver.advance(position + HEAD);
                received += 1;
            }
            sender.join().unwrap();
            assert_eq!((model.sender.count(), model.receiver.count()), (2, 2));
        });
    }
}
