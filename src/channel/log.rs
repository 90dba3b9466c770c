//! The messages of a channel: a log in a sparse anonymous file, written at its end and read from its
//! beginning, of which only what lies between takes memory.
//!
//! ```text
//!            freed           head                    tail
//!   ───────────┼───────────────┼───────────────────────┼──────────────►
//!     (a hole) │    received   │  sent, not received   │  (not there yet)
//! ```
//!
//! The file is mapped a window at a time. A record is a head of one word, which says what it is and how
//! long, and the message. It lies within one window; what is left of a window that is too short is
//! skipped. A message that is large goes around the mappings, into windows of its own.
//!
//! One process at a time sends, one receives, and both at the same time: each side has a
//! [lock](RawLock) and a [position](Side). Nothing counts before the position has been moved over it,
//! which is one store, so whoever is killed in the middle leaves nothing to be mended: what it was
//! writing is overwritten, what it was reading is read by another.
//!
//! What other processes write is not trusted: each head is checked to lie within its window and the log.

use std::io;
use std::ops::Range;
use std::sync::atomic::{self, Ordering::*};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::atomic::AtomicU64;
use crate::os::handle::File;
use crate::os::memory::{self, Atomics, Mapping};
use crate::sync::RawLock;

/// How much of the file is mapped, and freed, at a time: enough that the calls for it don't count among
/// the thousands of messages that it holds, little enough for a channel that is hardly used.
const WINDOW: u64 = 256 << 10;

/// From how many bytes on a message goes around the mappings: copying it costs more than the calls.
const LARGE: usize = 64 << 10;

/// Length of a record's head. Records begin at multiples of it.
const HEAD: u64 = 8;

/// One side's part of a log's state, changed by who has its lock.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Side {
    pub(super) lock: RawLock,
    /// Where the next record is to be written, or read.
    position: AtomicU64,
    /// How many messages have been.
    count: AtomicU64,
    /// What position and count are about to be: who is killed between moving the one and the other
    /// leaves here what the count is.
    next_position: AtomicU64,
    next_count: AtomicU64,
    /// Up to where the file has been freed.
    freed: AtomicU64,
}

// SAFETY: it is made of atomics.
unsafe impl Atomics for Side {}

impl Side {
    pub(super) fn position(&self) -> u64 {
        self.position.load(Acquire)
    }

    /// How many messages; may be behind by one, if who moved the position was killed right then, until
    /// the next one has the lock.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Acquire)
    }

    /// Completes what who had the lock before may not have. To be called with the lock.
    fn recover(&self) {
        if self.position.load(Relaxed) == self.next_position.load(Relaxed) {
            let count = self.next_count.load(Relaxed);
            if self.count.load(Relaxed) != count {
                self.count.store(count, Release);
            }
        }
    }

    /// Moves on by one message.
    fn advance(&self, position: u64) {
        let count = self.count.load(Relaxed).wrapping_add(1);
        self.next_position.store(position, Release);
        self.next_count.store(count, Release);
        self.position.store(position, SeqCst);
        self.count.store(count, SeqCst);
    }
}

/// This process's access to a log.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) file: File,
    /// The window in which is written, and the one in which is read.
    write: Mutex<Option<Window>>,
    read: Mutex<Option<Window>>,
}

#[derive(Debug)]
struct Window {
    start: u64,
    mapping: Mapping,
}

/// What a record is.
enum Record {
    /// A message of so many bytes, after the head.
    Here(usize),
    /// A message of so many bytes, from the next window on.
    Large(u64),
    /// The rest of the window is empty.
    Skip,
}

impl Record {
    const KIND: u64 = 3;

    fn to_word(&self) -> u64 {
        match self {
            Self::Here(len) => (*len as u64) << 2 | 1,
            Self::Large(len) => len << 2 | 2,
            Self::Skip => 3,
        }
    }

    fn from_word(word: u64) -> Option<Self> {
        let len = word >> 2;
        match word & Self::KIND {
            1 => Some(Self::Here(len as usize)),
            2 => Some(Self::Large(len)),
            3 => Some(Self::Skip),
            _ => None,
        }
    }
}

/// Why nothing could be written or read.
#[derive(Debug)]
pub(super) enum LogError {
    /// What is in the log, or its state, is not what was written there.
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
        memory::endless().map(Self::of)
    }

    pub(super) fn of(file: File) -> Self {
        Self { file, write: Mutex::new(None), read: Mutex::new(None) }
    }

    /// Appends a message. To be called with the sending side's lock.
    pub(super) fn write(&self, tail: &Side, message: &[u8]) -> Result<(), LogError> {
        tail.recover();
        let mut position = tail.position();
        // The position comes from memory that any process that has the channel can write.
        if !is_valid(position) || message.len() as u64 > memory::ENDLESS - position {
            return Err(LogError::Corrupt);
        }
        if message.len() > LARGE {
            let body = window_after(position);
            memory::write_at(&self.file, message, body)?;
            self.put_head(position, &Record::Large(message.len() as u64))?;
            tail.advance(window_after(body + message.len() as u64 - 1));
            return Ok(());
        }
        let len = HEAD + message.len() as u64;
        if position % WINDOW + len > WINDOW {
            self.put_head(position, &Record::Skip)?;
            position = window_after(position);
        }
        let mut window = lock(&self.write);
        let window = Window::at(&mut window, &self.file, position, true)?;
        window.put(position + HEAD, message);
        window.head(position).store(Record::Here(message.len()).to_word(), Relaxed);
        tail.advance(position + len.next_multiple_of(HEAD));
        Ok(())
    }

    fn put_head(&self, position: u64, record: &Record) -> io::Result<()> {
        let mut window = lock(&self.write);
        let window = Window::at(&mut window, &self.file, position, true)?;
        window.head(position).store(record.to_word(), Relaxed);
        Ok(())
    }

    /// Takes the next message into `message`; false if there is none. To be called with the receiving
    /// side's lock.
    pub(super) fn read(
        &self,
        head: &Side,
        tail: &Side,
        message: &mut Vec<u8>,
    ) -> Result<bool, LogError> {
        head.recover();
        let (mut position, end) = (head.position(), tail.position());
        if position == end {
            return Ok(false);
        }
        match self.read_record(&mut position, end, message) {
            Ok(()) => head.advance(position),
            Err(LogError::Corrupt) => {
                // There is no telling where the next one would begin.
                head.advance(end);
                return Err(LogError::Corrupt);
            }
            Err(error) => return Err(error),
        }
        self.free(head, position);
        Ok(true)
    }

    /// Reads the record at `position`, and moves that after it.
    fn read_record(
        &self,
        position: &mut u64,
        end: u64,
        message: &mut Vec<u8>,
    ) -> Result<(), LogError> {
        let mut window = lock(&self.read);
        loop {
            if *position >= end || !is_valid(*position) || !is_valid(end) {
                return Err(LogError::Corrupt);
            }
            let window = Window::at(&mut window, &self.file, *position, false)?;
            let left = WINDOW - *position % WINDOW - HEAD;
            let record = Record::from_word(window.head(*position).load(Relaxed));
            match record.ok_or(LogError::Corrupt)? {
                Record::Skip => *position = window_after(*position),
                Record::Here(len) if len as u64 <= left => {
                    window.take(*position + HEAD, len, message);
                    *position += (HEAD + len as u64).next_multiple_of(HEAD);
                    return Ok(());
                }
                Record::Large(len) if len > 0 && len <= end - *position => {
                    let body = window_after(*position);
                    // No memory is asked for that the sender has not taken: the length is a claim.
                    let next = window_after(body + len - 1);
                    if next > end || len > memory::allocated(&self.file)? {
                        return Err(LogError::Corrupt);
                    }
                    memory::read_at(&self.file, message, body, len)?;
                    *position = next;
                    return Ok(());
                }
                _ => return Err(LogError::Corrupt),
            }
        }
    }

    /// Gives the memory back of the windows before the one that is being read.
    fn free(&self, head: &Side, position: u64) {
        let (freed, start) = (head.freed.load(Relaxed), position - position % WINDOW);
        if freed < start {
            // If it can't be, it is tried again with the next window.
            if memory::punch(&self.file, freed..start).is_ok() {
                head.freed.store(start, Release);
            }
        }
    }
}

impl Window {
    /// The window that holds `position`, mapped if it isn't yet; to write there, with its memory.
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

    /// The word at `position`.
    fn head(&self, position: u64) -> &atomic::AtomicU64 {
        let offset = (position % WINDOW) as usize;
        // SAFETY: it lies in the window, which is mapped as long as `self`, at a multiple of eight
        // bytes: positions are, as is checked where one was read.
        unsafe { atomic::AtomicU64::from_ptr(self.mapping.start().add(offset).cast()) }
    }

    /// Writes a message that fits into the window.
    fn put(&mut self, position: u64, message: &[u8]) {
        let offset = (position % WINDOW) as usize;
        assert!(offset + message.len() <= WINDOW as usize);
        // SAFETY: it lies in the window, and the message elsewhere.
        unsafe {
            let to = self.mapping.start().add(offset);
            std::ptr::copy_nonoverlapping(message.as_ptr(), to, message.len());
        }
    }

    /// Reads a message that lies in the window.
    fn take(&self, position: u64, len: usize, message: &mut Vec<u8>) {
        message.clear();
        if len == 0 {
            return;
        }
        let offset = (position % WINDOW) as usize;
        assert!(offset + len <= WINDOW as usize);
        message.reserve(len);
        // SAFETY: it lies in the window, and there is room for it. Others may write there at any
        // time, so it is copied and no reference is made.
        unsafe {
            let from = self.mapping.start().add(offset);
            std::ptr::copy_nonoverlapping(from, message.as_mut_ptr(), len);
            message.set_len(len);
        }
    }
}

/// Whether a record may begin or end at `position`.
fn is_valid(position: u64) -> bool {
    position.is_multiple_of(HEAD) && position <= memory::ENDLESS
}

/// Where the window after the one that holds `position` begins.
fn window_after(position: u64) -> u64 {
    position - position % WINDOW + WINDOW
}

fn lock(window: &Mutex<Option<Window>>) -> MutexGuard<'_, Option<Window>> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The positions, on the code itself; what they lead to are cells here, and each side is one thread: that
/// it is one at a time is its lock's promise. Kills are not modelled, nor what happens to the file, nor
/// the bound on how many messages wait.
#[cfg(all(test, loom))]
mod loom_model {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread::{spawn, yield_now};

    use super::*;

    #[derive(Default)]
    struct Model {
        sender: Side,
        receiver: Side,
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
