//! A misbehaving worker, for tests and the fuzzer. The reply path is real (control socket, lane, chunk,
//! process); the worker's side follows a script of bytes.
//!
//! [`talk`] decodes the bytes into steps and checks the guarantee of [`exchange::run`]: whatever a worker
//! writes, sends or omits, each item has exactly one outcome, in bounded time, without a panic. The process
//! is `cat`: it can be stopped and killed, and does nothing by itself.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::attach::{Attachments, FileId};
use procpool_worker::codec;
use procpool_worker::control::{Control, MAX_PACKET};
use procpool_worker::function::{FnRef, ImageId};
use procpool_worker::lane::{CAPACITY, LANE_BYTES, ParentLane};
use procpool_worker::note::{Note, Progress};
use procpool_worker::protocol::{
    Handshake, PassedResult, RegionSlice, Reply, Setup, VERSION, encode_item,
};
use procpool_worker::record::{RECORD_HEAD, TIME_RECORD};
use procpool_worker::region::Region;
use procpool_worker::transport;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::Signal;

use crate::error::TaskErrorKind;
use crate::os::process::{CaptureFile, Child};
use crate::pool::call::job::Job;
use crate::pool::call::outcome::{Content, Delivery, Failure, Provenance};
use crate::pool::drive::chunk::{self, Chunk, Running};
use crate::pool::drive::destination::Numbers;
use crate::pool::drive::exchange;
use crate::pool::drive::regions::Regions;
use crate::pool::observe::events::Deferred;
use crate::pool::observe::events::Observers;
use crate::pool::options::TaskOptions;
use crate::pool::process::worker::{KillReason, PendingWorker, Process};
use crate::pool::schedule::batch::Batch;
use crate::pool::schedule::counters::Counters;

/// Upper limit of a talk's duration, also on a busy machine. The longest silence takes two seconds.
const DEADLINE: Duration = Duration::from_secs(30);

/// Time limit of items that have one.
const LIMIT: Duration = Duration::from_millis(20);

const NONCE: u64 = 0x1234_5678_9abc_def0;

/// Offsets of the lane's words, each in its own cache line.
const CLAIM: u64 = 0;
const COMMITTED: u64 = 64;
const STARTED: u64 = 128;
const BEGUN: u64 = 136;
const WORDS: [u64; 8] = [CLAIM, COMMITTED, STARTED, BEGUN, 144, 192, 256, 320];

/// Offset of the results.
const RESULTS: usize = LANE_BYTES - CAPACITY;

/// The script: bytes that define the worker's steps. Past the end, all bytes are zero.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// Returns a number, often a boundary value.
    fn number(&mut self, items: u32, bytes: u32) -> u32 {
        match self.byte() {
            small @ 0..64 => small.into(),
            64 => items,
            65 => items.wrapping_sub(1),
            66 => items.wrapping_add(1),
            67 => bytes,
            68 => bytes.wrapping_sub(1),
            69 => bytes.wrapping_add(1),
            70 => CAPACITY as u32,
            71 => CAPACITY as u32 + 1,
            72 => LANE_BYTES as u32,
            73 => i32::MAX as u32,
            74 => u32::MAX - 1,
            75 => u32::MAX,
            other => u32::from(other) << 10 | u32::from(self.byte()),
        }
    }
}

/// State shared by several threads.
struct Session {
    process: Arc<Process>,
    running: Running,
    jobs: Vec<Arc<Job>>,
    /// Stolen batches, for other workers to run.
    taken: Mutex<Vec<Batch>>,
    /// Number of the running chunk, and its original item count.
    sequence: AtomicU32,
    items: AtomicU32,
    /// No chunk follows.
    is_over: AtomicBool,
}

impl Session {
    fn running(&self) -> MutexGuard<'_, Option<Chunk>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `take` on the running chunk and keeps the stolen batches.
    fn take(&self, take: impl FnOnce(&mut Chunk) -> Vec<Batch>) {
        let taken = self.running().as_mut().map(take).unwrap_or_default();
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).extend(taken);
    }
}

/// The worker's side.
struct Liar<'a> {
    session: &'a Session,
    script: Script<'a>,
    control: Option<Control>,
    /// Receives the parent's frames.
    frames: Option<OwnedFd>,
    /// Whether its sockets stay open after its death, held by a process that a task has started.
    is_held: bool,
    lane: OwnedFd,
    capture: Option<OwnedFd>,
    /// What a correct worker would have committed of this chunk.
    sequence: u32,
    done: u32,
    bytes: u32,
}

impl Liar<'_> {
    /// Runs the script, then ends as it defines.
    fn run(mut self) {
        let ending = self.script.byte();
        while let Some(step) = self.script.next() {
            if self.session.is_over.load(SeqCst) {
                return;
            }
            self.step(step);
        }
        match ending % 8 {
            // Sends nothing more: only its stopped state shows it.
            0 => self.session.process.child.signal(Signal::STOP),
            1 => {
                self.control = None;
                self.session.process.child.kill();
            }
            // Is silent: the longest case.
            2 | 6 if ending >= 240 => {}
            3 => self.finish(true),
            4 => self.finish(false),
            _ => self.session.process.child.kill(),
        }
        // An item without a time limit may run forever.
        let is_limited = self.session.jobs.iter().all(|job| job.options.timeout.is_some());
        if !is_limited && !matches!(ending % 8, 3 | 4) {
            self.session.process.child.kill();
        }
        while !self.session.is_over.load(SeqCst) {
            match ending % 8 {
                3 => self.finish(true),
                4 => self.finish(false),
                // Requests that its empty lane be emptied, forever.
                6 if ending >= 240 => {
                    self.catch_up();
                    self.reply(&Reply::LaneFull { sequence: self.sequence }, &[]);
                    self.read();
                }
                _ => {}
            }
            if self.session.process.death().is_some() && !self.is_held {
                (self.control, self.frames) = (None, None);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Finishes the chunk and reports it.
    fn finish(&mut self, honest: bool) {
        self.catch_up();
        let items = self.session.items.load(SeqCst);
        while honest && self.done < items && self.bytes as usize + 64 < CAPACITY {
            self.answer();
        }
        self.reply(&Reply::Done { sequence: self.sequence }, &[]);
    }

    /// Starts the next chunk, if there is one.
    fn catch_up(&mut self) {
        let sequence = self.session.sequence.load(SeqCst);
        if sequence != self.sequence {
            (self.sequence, self.done, self.bytes) = (sequence, 0, 0);
        }
    }

    fn step(&mut self, step: u8) {
        self.catch_up();
        let items = self.session.items.load(SeqCst);
        match step % 26 {
            0 => {
                let at = WORDS[usize::from(self.script.byte()) % WORDS.len()];
                let low = self.script.number(items, self.bytes);
                let high = self.script.number(items, self.bytes);
                self.word(at, low, high);
            }
            1 | 2 => self.answer(),
            3 => {
                let len = self.script.byte();
                let bytes = self.script.bytes(len.into());
                self.write(bytes);
            }
            4 => {
                let (kind, len) = (self.script.byte(), self.script.byte());
                let payload = self.script.bytes(usize::from(len % 64));
                let claimed = match len / 64 {
                    0..=2 => payload.len() as u32,
                    _ => self.script.number(items, self.bytes),
                };
                self.record(u32::from(kind % 8), claimed, payload);
                if self.script.byte().is_multiple_of(2) {
                    self.done = self.done.wrapping_add(1);
                    self.commit(0);
                }
            }
            5 => {
                let nanos = u64::from(self.script.number(items, self.bytes));
                self.record(5, 8, &nanos.to_le_bytes());
            }
            6 => {
                let slice = RegionSlice {
                    number: u32::from(self.script.byte() % 4),
                    len: self.script.number(items, self.bytes).into(),
                    is_new: self.script.byte().is_multiple_of(2),
                    is_cached: true,
                };
                let mut payload = Vec::new();
                let is_elements = self.script.byte().is_multiple_of(2);
                let head = PassedResult { region: Some((slice, is_elements)), attached: None };
                if codec::encode(&head, &mut payload).is_ok() {
                    self.record(4, payload.len() as u32, &payload);
                    self.done = self.done.wrapping_add(1);
                    self.commit(0);
                }
            }
            7 => {
                let (width, count) = (self.script.byte() % 17, self.script.byte() % 17);
                let mut payload = vec![width];
                let len = usize::from(width) * usize::from(count);
                payload.extend_from_slice(self.script.bytes(len));
                self.record(7, payload.len() as u32, &payload);
                self.done = self.done.wrapping_add(count.into());
                self.commit(0);
            }
            8 | 9 => {
                let reply = self.any_reply();
                self.reply(&reply, &[]);
            }
            10 | 11 => {
                let reply = Reply::Region { number: u32::from(self.script.byte() % 4) };
                let file = self.any_file();
                let files = file.as_ref().map(AsFd::as_fd);
                self.reply(&reply, files.as_slice());
            }
            12 => {
                let (nonce, len) = (self.script.byte(), usize::from(self.script.byte()) * 20);
                let mut packet = self.script.bytes(len).to_vec();
                packet.resize(len, nonce);
                if nonce.is_multiple_of(2) {
                    packet.splice(0..0, NONCE.to_le_bytes());
                }
                self.send(&packet, &[]);
            }
            13 => {
                let count = usize::from(self.script.byte()).clamp(2, 250);
                let reply = self.any_reply();
                if let Ok((reader, _)) = std::io::pipe() {
                    let files: Vec<_> = std::iter::repeat_n(reader.as_fd(), count).collect();
                    self.reply(&reply, &files);
                }
            }
            14 => self.send(&[], &[]),
            15 => {
                self.finish(true);
                self.await_parent();
            }
            16 => {
                let most = u32::from(self.script.byte() % 8) + 1;
                self.session.take(|chunk| chunk.steal(most));
            }
            17 => {
                let job = usize::from(self.script.byte()) % self.session.jobs.len();
                let job = &self.session.jobs[job];
                job.cancelled.store(true, SeqCst);
                self.session.take(|chunk| chunk.cancel(|batch| Arc::ptr_eq(&batch.job, job)));
            }
            18 => self.await_parent(),
            19 => self.read(),
            20 => {
                // In sequence, whether or not the parent resumes it.
                for _ in 0..=self.script.byte() {
                    if self.session.is_over.load(SeqCst) {
                        return;
                    }
                    self.reply(&Reply::LaneFull { sequence: self.sequence }, &[]);
                    self.await_parent();
                }
                self.bytes = 0;
            }
            21 => {
                let len = self.script.number(items, self.bytes);
                if let Some(file) = &self.capture {
                    let _ = rustix::fs::ftruncate(file, u64::from(len) << 20);
                }
                self.record(6, 8, &(u64::from(len) << 20).to_le_bytes());
                self.commit(0);
            }
            22 => match self.script.byte() % 8 {
                0 => self.control = None,
                1 => self.frames = None,
                2 => self.session.process.child.kill(),
                3 => self.session.process.child.signal(Signal::STOP),
                4 => self.session.process.child.signal(Signal::CONT),
                5 | 6 => self.note(),
                _ => {}
            },
            23 => {
                let number = self.script.number(items, self.bytes);
                self.commit(number);
            }
            24 => {
                let (number, named, passed) =
                    (self.script.byte() % 4, self.script.byte() % 16, self.script.byte());
                let passed = if passed.is_multiple_of(2) { named } else { passed % 16 };
                let Ok((reader, _)) = std::io::pipe() else { return };
                let Ok(id) = FileId::of(&reader) else { return };
                let files = vec![id; usize::from(named)];
                let descriptors = vec![reader.as_fd(); usize::from(passed)];
                self.reply(&Reply::Attached { number: number.into(), files }, &descriptors);
            }
            _ => {
                let number = u32::from(self.script.byte() % 4);
                let head = PassedResult { region: None, attached: Some(number) };
                let mut payload = Vec::new();
                if codec::encode(&head, &mut payload).is_ok() {
                    payload.extend_from_slice(&u64::from(self.done).to_le_bytes());
                    self.record(4, payload.len() as u32, &payload);
                    self.done = self.done.wrapping_add(1);
                    self.commit(0);
                }
            }
        }
    }

    /// Sends a note, or a part of one, or something else.
    fn note(&mut self) {
        let (kind, parts) = (self.script.byte(), self.script.byte());
        let number = u64::from(self.script.number(self.done, self.bytes));
        let len = usize::from(self.script.byte());
        let value = self.script.bytes(len).to_vec();
        let note = match kind % 4 {
            0 => Note::Progress(Progress { done: number, total: Some(number / 2) }),
            1 | 2 => Note::Value { type_name: String::from_utf8_lossy(&value).into_owned() },
            _ => Note::Progress(Progress { done: u64::MAX, total: None }),
        };
        let reply = Reply::Note {
            sequence: self.sequence.wrapping_add(u32::from(kind / 128)),
            item: self.done.wrapping_add(u32::from(parts / 64)),
            is_first: parts % 4 != 1,
            is_last: parts % 8 > 1,
        };
        let mut packet = NONCE.to_le_bytes().to_vec();
        if codec::encode(&reply, &mut packet).is_ok() {
            // Half of them start with a note as it is.
            if parts % 16 < 8 {
                packet.extend(codec::encode_to_vec(&note).unwrap_or_default());
            }
            packet.extend_from_slice(&value);
            self.send(&packet, &[]);
        }
    }

    /// Returns one item's result correctly.
    fn answer(&mut self) {
        self.word(STARTED, self.done.wrapping_add(1), 0);
        let value = u64::from(self.done).to_le_bytes();
        self.record(0, 8, &value);
        self.record(5, 8, &100u64.to_le_bytes());
        self.done = self.done.wrapping_add(1);
        self.commit(0);
    }

    /// Commits what was written, and `more` bytes beyond.
    fn commit(&mut self, more: u32) {
        self.word(COMMITTED, self.done, self.bytes.wrapping_add(more));
    }

    fn word(&self, at: u64, low: u32, high: u32) {
        let word = u64::from(high) << 32 | u64::from(low);
        // `started` has half of its word, and `begun` the next one.
        let bytes = word.to_ne_bytes();
        let len = if at == STARTED { 4 } else { 8 };
        let _ = rustix::io::pwrite(&self.lane, &bytes[..len], at);
    }

    fn write(&mut self, bytes: &[u8]) {
        let at = self.bytes as usize % CAPACITY;
        let len = bytes.len().min(CAPACITY - at);
        let _ = rustix::io::pwrite(&self.lane, &bytes[..len], (RESULTS + at) as u64);
        self.bytes = self.bytes.wrapping_add(len as u32);
    }

    fn record(&mut self, kind: u32, len: u32, payload: &[u8]) {
        const { assert!(RECORD_HEAD == 4 && TIME_RECORD == 12) };
        self.write(&(len << 3 | kind).to_le_bytes());
        self.write(payload);
    }

    fn any_reply(&mut self) -> Reply {
        let sequence = match self.script.byte() {
            lie @ 240.. => self.sequence.wrapping_add(u32::from(lie)),
            _ => self.sequence,
        };
        match self.script.byte() % 8 {
            0 | 1 => Reply::Done { sequence },
            2 => Reply::LaneFull { sequence },
            3 => Reply::Region { number: sequence },
            4 => Reply::Handshake(handshake_of(self.session.process.pid())),
            _ => Reply::Progress { sequence },
        }
    }

    /// Returns a region, or a file that isn't one.
    fn any_file(&mut self) -> Option<OwnedFd> {
        let of_region = |len, populated| {
            let region = Region::new(len, populated).ok()?;
            region.descriptor()?.try_clone_to_owned().ok()
        };
        match self.script.byte() % 12 {
            0 => of_region(0, 0),
            1 => of_region(1, 1),
            2 | 3 => of_region(4096, 4096),
            4 => of_region(100_000, 100_000),
            5 => of_region(1 << 20, 1 << 20),
            6 => of_region(1 << 30, 4096),
            7 => of_region(1 << 45, 0),
            8 => {
                let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
                let file = rustix::fs::memfd_create("liar", flags).ok()?;
                rustix::fs::ftruncate(&file, 4096).ok()?;
                rustix::fs::fcntl_add_seals(&file, SealFlags::GROW).ok()?;
                Some(file)
            }
            9 => Some(std::io::pipe().ok()?.0.into()),
            10 => self.lane.try_clone().ok(),
            _ => None,
        }
    }

    fn reply(&self, reply: &Reply, files: &[BorrowedFd<'_>]) {
        let mut packet = NONCE.to_le_bytes().to_vec();
        if codec::encode(reply, &mut packet).is_ok() {
            self.send(&packet, files);
        }
    }

    /// Sends a packet unchanged; drops it if the socket is full.
    fn send(&self, packet: &[u8], files: &[BorrowedFd<'_>]) {
        let Some(control) = &self.control else { return };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(250))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(files));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let _ = rustix::net::sendmsg(control, &[IoSlice::new(packet)], &mut ancillary, flags);
    }

    /// Waits for the parent to read what was sent. On a busy machine each wait takes milliseconds.
    fn await_parent(&self) {
        for _ in 0..3 {
            std::thread::yield_now();
        }
    }

    /// Reads what the parent has sent, if anything.
    fn read(&self) {
        let mut packet = [0; MAX_PACKET];
        for socket in
            [self.frames.as_ref().map(AsFd::as_fd), self.control.as_ref().map(AsFd::as_fd)]
        {
            let flags = rustix::net::RecvFlags::DONTWAIT;
            while let Some(socket) = socket
                && rustix::net::recv(socket, &mut packet[..], flags).is_ok_and(|(len, _)| len > 0)
            {
            }
        }
    }
}

fn handshake_of(pid: u32) -> Handshake {
    Handshake { version: VERSION, identity: ImageId::own(), pid }
}

/// Does the supervisor's work for one process until it has ended: limits, silence, and reaping.
///
/// # Panics
///
/// If the memory of an argument is free while the process that reads it may live.
fn supervise(session: &Session, regions: &Regions) {
    let process = &session.process;
    let check = || {
        let running = session.running();
        let is_first = session.sequence.load(SeqCst) <= 1;
        assert!(!(is_first && running.is_some() && regions.has_free_argument()));
    };
    loop {
        let mut pidfd = [PollFd::from_borrowed_fd(process.child.pidfd(), PollFlags::IN)];
        let limit = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        if matches!(poll(&mut pidfd, Some(&limit)), Ok(1..)) {
            break;
        }
        session.take(|chunk| chunk.enforce().0);
        check();
        if process.kill_at().is_some_and(|at| at <= Instant::now()) {
            process.kill(KillReason::Retired);
        }
        if session.is_over.load(SeqCst) {
            process.child.kill();
        }
    }
    check();
    process.set_ended();
    let cause = process.child.reap();
    process.publish_exit(cause);
}

/// Creates the items of a chunk: a run of items from each job.
fn plan(jobs: &[Arc<Job>], script: &mut Script<'_>) -> VecDeque<Batch> {
    jobs.iter()
        .map(|job| {
            let (items, len) = match script.byte() % 16 {
                // An item sent through a region.
                15 => (1, 100_000),
                14 => (200, 1),
                few => (u32::from(few % 5) + 1, 8),
            };
            let (mut arguments, mut attachments) = (Vec::new(), Attachments::default());
            for _ in 0..items {
                let text = "x".repeat(len);
                encode_item(&mut arguments, &mut attachments, &text).expect("a text is encoded");
            }
            let first = job.reserve(items.into());
            Batch::new(Arc::clone(job), first, items, 0, &arguments, attachments)
        })
        .collect()
}

/// Settles returned batches, like the worker that runs them next.
fn settle<'a>(batches: impl IntoIterator<Item = &'a Batch>) {
    for batch in batches {
        let content = Content::Failed(Failure::unstarted(TaskErrorKind::Cancelled));
        let (first, items) = (batch.first, batch.items);
        let delivery = Delivery { first, items, provenance: Provenance::NONE, content };
        let is_first = batch.job.deliver(delivery, &mut Deferred::default());
        assert!(is_first, "items from {first} on were settled before");
    }
}

/// Decodes the deliveries. Returns the numbers of their items.
fn read(job: &Job, choice: u8) -> Vec<u64> {
    fn count<R: serde::de::DeserializeOwned>(mut delivery: Delivery, job: &Job) {
        let items = delivery.items;
        let count = std::iter::from_fn(|| delivery.next::<R>(job.offset).map(drop)).count();
        assert_eq!(count, items as usize, "a delivery has one outcome per item");
    }
    let mut numbers = Vec::new();
    while let Some(delivery) = job.take_delivery() {
        numbers.extend(delivery.first..delivery.first + u64::from(delivery.items));
        match choice % 6 {
            0 => count::<u64>(delivery, job),
            1 => count::<String>(delivery, job),
            2 => count::<Vec<u32>>(delivery, job),
            3 => count::<Vec<Vec<()>>>(delivery, job),
            4 => drop(delivery.drain::<u64>(job.offset, &mut Vec::new())),
            _ => drop(delivery.drain::<Vec<u8>>(job.offset, &mut Vec::new())),
        }
    }
    numbers
}

/// Ends the helper threads, also if an assertion fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Runs the script on a worker and checks the outcomes of the items. Returns whether the worker was kept.
///
/// # Panics
///
/// If an item has no outcome or several, if something else panics, or if it takes too long.
pub(crate) fn talk(bytes: &[u8]) -> bool {
    let (sender, receiver) = channel();
    let owned = bytes.to_vec();
    std::thread::spawn(move || {
        let _ = sender.send(talk_to_the_end(&owned));
    });
    match receiver.recv_timeout(DEADLINE) {
        Ok(is_kept) => is_kept,
        Err(RecvTimeoutError::Timeout) => panic!("it hangs: {bytes:?}"),
        Err(RecvTimeoutError::Disconnected) => panic!("it panicked: {bytes:?}"),
    }
}

#[allow(clippy::zombie_processes)] // `supervise` waits for it by its pidfd.
fn talk_to_the_end(bytes: &[u8]) -> bool {
    let mut script = Script(bytes);
    let (setting, decoding) = (script.byte(), script.byte());
    let timeout = (setting & 1 == 0).then_some(LIMIT);
    let jobs: Vec<Arc<Job>> = (0..=(setting >> 1 & 3).min(2))
        .map(|_| {
            let options = TaskOptions { timeout, ..TaskOptions::default() };
            Job::new(Ok(FnRef::NOWHERE), options, Arc::default(), 0, None, 0)
        })
        .collect();
    let plans: Vec<_> = (0..=setting >> 3 & 3).map(|_| plan(&jobs, &mut script)).collect();
    let entered: Vec<u64> = (jobs.iter())
        .map(|job| {
            let of_job = |batch: &&Batch| Arc::ptr_eq(&batch.job, job);
            plans.iter().flatten().filter(of_job).map(|batch| u64::from(batch.items)).sum()
        })
        .collect();
    // Their results go to memory of the caller, if they are numbers; not all have a place.
    let memory: Vec<_> = (jobs.iter().zip(&entered))
        .filter(|_| setting & 128 != 0)
        .filter_map(|(job, items)| {
            let numbers = Numbers::<u64>::new(1 + *items as usize * 3 / 4)?;
            job.set_destination(Arc::clone(numbers.destination()));
            Some(numbers)
        })
        .collect();
    let capture = (setting & 32 != 0).then(|| CaptureFile::new().expect("a file for output"));
    let grace = if setting & 64 == 0 { Duration::ZERO } else { Duration::from_millis(5) };

    let (ours, theirs) = Control::pair().expect("sockets");
    let (requests, frames) = transport::frame_channel().expect("a channel");
    let region = Region::new(LANE_BYTES, LANE_BYTES).expect("memory");
    let passed = region.descriptor().expect("it was just made");
    let passed = passed.try_clone_to_owned().expect("a descriptor");
    let captured = capture.as_ref().map(|file| file.file().try_clone().expect("a descriptor"));
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
    let mut started = command.spawn().expect("`cat` starts");
    // `cat` exits when this end is closed, also if this process is killed.
    let _input = started.stdin.take();
    let child = Child::of(&started).expect("a pidfd");
    let process = Process::new(0, None, 1, child, Control::new(ours, NONCE), capture, grace);
    let lane = Arc::new(ParentLane::new(region).expect("it has a lane's size"));

    let session = Session {
        process: Arc::clone(&process),
        running: Mutex::default(),
        jobs,
        taken: Mutex::default(),
        sequence: AtomicU32::new(0),
        items: AtomicU32::new(0),
        is_over: AtomicBool::new(false),
    };
    let liar = Liar {
        session: &session,
        script,
        control: Some(Control::new(theirs, NONCE)),
        frames: Some(frames),
        is_held: setting & 128 != 0,
        lane: passed,
        capture: captured,
        sequence: 0,
        done: 0,
        bytes: 0,
    };
    liar.reply(&Reply::Handshake(handshake_of(process.pid())), &[]);
    let counters = Counters::new(1);
    let mut numbers: Vec<Vec<u64>> = vec![Vec::new(); session.jobs.len()];
    let mut read_all = || {
        for (numbers, job) in numbers.iter_mut().zip(&session.jobs) {
            numbers.extend(read(job, decoding));
        }
    };
    let regions = Arc::default();
    let is_kept = std::thread::scope(|scope| {
        scope.spawn(|| supervise(&session, &regions));
        let is_over = Over(&session.is_over);
        let pending = PendingWorker { process, lane, requests };
        let mut worker = pending
            .handshake(Setup::default(), &regions, &Observers::new("liar", Vec::new()))
            .expect("the handshake succeeds");
        let (mut liar, mut is_lost) = (Some(liar), false);
        for (sequence, batches) in (1..).zip(plans) {
            if is_lost {
                settle(&batches);
                continue;
            }
            session.items.store(batches.iter().map(|batch| batch.items).sum(), SeqCst);
            *session.running() = Some(Chunk::new(&worker, batches));
            session.sequence.store(sequence, SeqCst);
            if let Some(liar) = liar.take() {
                scope.spawn(|| liar.run());
            }
            let limit = chunk::inline_limit(usize::MAX);
            let ran = exchange::run(&mut worker, &session.running, limit, &counters, None, None);
            if let Err(loss) = ran {
                settle(loss.running_item.iter().chain(&loss.rest));
                is_lost = true;
            }
            read_all();
        }
        drop(memory);
        worker.retire();
        drop(is_over);
        !is_lost
    });
    settle(&*session.taken.lock().unwrap_or_else(PoisonError::into_inner));
    read_all();
    for ((mut numbers, job), entered) in numbers.into_iter().zip(&session.jobs).zip(entered) {
        numbers.sort_unstable();
        assert_eq!(numbers, (0..entered).collect::<Vec<_>>(), "each item has one outcome");
        assert!(job.is_done());
    }
    is_kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_worker_may_say_anything_and_each_item_has_one_outcome() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/return_path");
        let seeds: Vec<_> = std::fs::read_dir(seeds)
            .unwrap()
            .map(|seed| std::fs::read(seed.unwrap().path()).unwrap())
            .collect();
        assert!(seeds.len() >= 30, "{} seeds", seeds.len());
        // They spend most of their time waiting for silent workers.
        std::thread::scope(|scope| {
            seeds.iter().for_each(|seed| drop(scope.spawn(|| talk(seed))));
        });
    }

    #[test]
    fn the_memory_of_an_argument_is_no_other_calls_before_its_worker_is_done_or_dead() {
        // One chunk of one large argument, with and without a limit. Then the lane is full, a reply makes no
        // sense, the worker is killed, is stopped, or closes its socket.
        for limit in [0, 1] {
            for step in
                [&[20, 0][..], &[9, 250, 0], &[22, 2], &[22, 3], &[22, 0], &[10, 1, 9], &[15]]
            {
                let mut script = vec![limit, 1, 15, 0];
                script.extend_from_slice(step);
                let _ = talk(&script);
            }
        }
    }

    #[test]
    fn a_result_that_is_committed_before_its_parts_are_received_waits_for_them() {
        // One chunk of two items without a limit. The first one's result is committed, then the parent reads
        // a reply that was sent before the result's parts, and then they come.
        let script = |result: &[u8], parts: &[u8]| {
            let mut script = vec![1, 0, 1, 3];
            script.extend_from_slice(result);
            script.extend_from_slice(&[5, 10, 23, 0, 8, 0, 5]);
            script.resize(script.len() + 200, 18);
            script.extend_from_slice(parts);
            script
        };
        // A region of 4,096 bytes, and a file.
        let (region, file) =
            (script(&[6, 1, 8, 0, 1], &[10, 1, 2]), script(&[25, 1], &[24, 1, 1, 0]));
        for script in [region, file] {
            for _ in 0..20 {
                assert!(talk(&script), "it is taken for a violation of the protocol");
            }
            let mut without = script;
            without.truncate(without.len() - 4);
            assert!(!talk(&without), "its parts never come");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_worker_may_say_anything_at_random(
            script in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let _ = talk(&script);
        }
    }

    /// Runs for `LIAR_SECONDS` seconds.
    #[test]
    #[ignore = "runs for LIAR_SECONDS seconds"]
    fn a_worker_may_say_anything_for_as_long_as_it_likes() {
        let seconds = std::env::var("LIAR_SECONDS").map_or(30, |text| text.parse().unwrap());
        let mut random = std::env::var("LIAR_SEED")
            .map_or_else(|_| procpool_worker::sys::entropy(), |text| text.parse().unwrap());
        println!("seed {random}");
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut below = |most: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % most
        };
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let (mut talks, before) = (0, open());
        while Instant::now() < deadline {
            let scripts: Vec<Vec<u8>> =
                (0..8).map(|_| (0..below(300)).map(|_| below(256) as u8).collect()).collect();
            std::thread::scope(|scope| {
                scripts.iter().for_each(|script| drop(scope.spawn(|| talk(script))));
            });
            talks += scripts.len();
            if talks % 1000 == 0 {
                println!("{talks} talks");
            }
        }
        println!("{talks} talks");
        // A thread that has just ended may hold descriptors for a moment.
        let deadline = Instant::now() + DEADLINE;
        while open() > before && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(open() <= before, "descriptors leaked: {} after {before}", open());
    }
}
