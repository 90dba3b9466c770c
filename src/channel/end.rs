//! An end of a channel: its part of the shared state, and the waits for messages, for space and for the peers.

use super::error::{RecvError, SendErrorReason};
use super::log::{Cursor, Log, LogError};
use crate::ipc::eventcount::{EventCount, Probe, deadline};
use crate::ipc::handle::{File, Handle};
use crate::ipc::memory::{self, Atomics};
use crate::ipc::object::{Kind, Object, something_else};
use crate::ipc::raw_lock::LockGuard;
use crate::os::peer;
use procpool_worker::attach::{
    Attached, Attachments, FileId, NotAttachable, Received, attach_channel_end,
};
use rustix::fs::OFlags;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cell::Cell;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

/// A channel's state in shared memory.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Head {
    pub(super) sender: Cursor,
    pub(super) receiver: Cursor,
    /// Notified when a message is sent, and when a sender is dropped.
    pub(super) not_empty: CachePadded<EventCount>,
    /// Notified when a message is received, and when a receiver is dropped.
    pub(super) not_full: CachePadded<EventCount>,
    /// The maximum number of messages; `u64::MAX` if unbounded.
    pub(super) capacity: AtomicU64,
    /// How many ends of each role were dropped in an orderly way. When the count changes, the peer pipe is
    /// checked.
    pub(super) disconnects: [AtomicU32; 2],
    /// The identities of the log and of each role's socket, so that an end is not decoded from parts of two
    /// channels.
    pub(super) log: [AtomicU64; 2],
    pub(super) sockets: [[AtomicU64; 2]; 2],
    /// The number of the last message with files.
    pub(super) attached: AtomicU64,
}

// SAFETY: the type consists of atomics.
unsafe impl Atomics for Head {}

/// A value in a cache line of its own.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct CachePadded<T>(pub(super) T);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Sender = 0,
    Receiver = 1,
}

/// This process's access to one end of a channel.
#[derive(Debug)]
pub(super) struct End {
    pub(super) role: Role,
    pub(super) object: Object<Head>,
    pub(super) log: Log,
    /// A socket whose peer belongs to the channel's other role. It passes the files of messages. `drop` takes
    /// it to close it.
    pub(super) socket: Option<File>,
    /// The last value of the other role's `disconnects` at which the socket had a peer.
    pub(super) seen: AtomicU32,
    /// How many messages this end has sent.
    pub(super) sent: AtomicU32,
}

/// How long an operation may block.
#[derive(Debug, Clone, Copy)]
pub(super) enum WaitPolicy {
    None,
    Until(Instant),
    Endless,
}

/// How long a non-blocking operation waits for another process to release the lock.
const CONTENTION_LIMIT: Duration = Duration::from_millis(20);

/// A sender that never blocks checks once in so many messages whether all receivers were killed.
pub(super) const CHECK_EVERY: u32 = 1024;

/// Bytes of the number that follows a message with files.
const NUMBER: usize = size_of::<u64>();

impl End {
    pub(super) fn new(role: Role, object: Object<Head>, log: Log, socket: File) -> Arc<Self> {
        let (socket, seen, sent) = (Some(socket), AtomicU32::new(0), AtomicU32::new(0));
        Arc::new(Self { role, object, log, socket, seen, sent })
    }

    /// Returns whether no end of the other role exists in any process.
    pub(super) fn is_disconnected(&self, probe: Probe) -> bool {
        let disconnects = match self.role {
            Role::Sender => &self.head().disconnects[Role::Receiver as usize],
            Role::Receiver => &self.head().disconnects[Role::Sender as usize],
        };
        let disconnects = disconnects.load(SeqCst);
        if probe == Probe::Fast && disconnects == self.seen.load(Relaxed) {
            return false;
        }
        let is_disconnected = self.socket.as_ref().is_none_or(peer::is_hung_up);
        if !is_disconnected {
            self.seen.store(disconnects, Relaxed);
        }
        is_disconnected
    }

    pub(super) fn head(&self) -> &Head {
        self.object.head()
    }

    /// Calls `attempt` until it returns something or the policy's limit expires. The eventcount is notified
    /// when another attempt may succeed.
    pub(super) fn wait<R>(
        eventcount: &EventCount,
        policy: WaitPolicy,
        mut attempt: impl FnMut(Probe) -> Option<R>,
    ) -> Option<R> {
        match policy {
            WaitPolicy::None => attempt(Probe::Fast).or_else(|| attempt(Probe::CheckOwners)),
            WaitPolicy::Until(deadline) => eventcount.wait(Some(deadline), attempt),
            WaitPolicy::Endless => eventcount.wait(None, attempt),
        }
    }

    fn socket(&self) -> &File {
        self.socket.as_ref().expect("only `drop` takes it")
    }

    /// Sends an encoded message and the files that it refers to. Returns `None` if the channel is full.
    pub(super) fn push(
        &self,
        message: &mut Vec<u8>,
        attachments: &Attachments,
        policy: WaitPolicy,
        probe: Probe,
    ) -> Option<Result<(), SendErrorReason>> {
        let head = self.head();
        if self.is_disconnected(probe) {
            return Some(Err(SendErrorReason::Disconnected));
        }
        // A thorough probe continues under the lock, where an overwritten count is distinguished from a
        // full channel.
        if probe == Probe::Fast && head.is_full() {
            return None;
        }
        let guard = lock(&head.sender, policy)?;
        if head.is_full() {
            return head.is_overfull().then_some(Err(SendErrorReason::Corrupt));
        }
        let has_files = !attachments.is_empty();
        if has_files && let Err(error) = self.pass(message, attachments)? {
            return Some(Err(error));
        }
        let written = self.log.write(&head.sender, message, has_files);
        drop(guard);
        if has_files {
            // Another attempt passes them with another number.
            message.truncate(message.len() - NUMBER);
        }
        // The release of the lock has made the fence.
        head.not_empty.0.notify_fenced(1);
        Some(written.map_err(|error| match error {
            LogError::Corrupt => SendErrorReason::Corrupt,
            LogError::System(error) => SendErrorReason::System(error.to_string()),
        }))
    }

    /// Passes the files that a message refers to, and appends their number to it. Returns `None` if the
    /// socket is full. The caller must hold the sending side's lock.
    fn pass(
        &self,
        message: &mut Vec<u8>,
        attachments: &Attachments,
    ) -> Option<Result<(), SendErrorReason>> {
        let head = self.head();
        for _ in 0..2 {
            let number = head.attached.fetch_add(1, Relaxed);
            match peer::pass(self.socket(), number, attachments) {
                Ok(true) => {
                    message.extend_from_slice(&number.to_le_bytes());
                    return Some(Ok(()));
                }
                Ok(false) if !head.is_empty() => return None,
                // The receivers may just have made space.
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Some(Err(SendErrorReason::Disconnected));
                }
                Err(error) => return Some(Err(SendErrorReason::System(error.to_string()))),
            }
        }
        // What fills the socket belongs to no message, and no receiver would take it out.
        Some(Err(SendErrorReason::Corrupt))
    }

    /// Receives an encoded message, and the files that it refers to, if any. Returns `None` if the channel is
    /// empty.
    pub(super) fn pop(
        &self,
        message: &mut Vec<u8>,
        policy: WaitPolicy,
        probe: Probe,
    ) -> Option<Result<Option<Received>, RecvError>> {
        let head = self.head();
        let is_empty = || self.log.is_empty(&head.receiver, &head.sender);
        if is_empty() {
            // The last message may have been sent between the first two checks.
            if self.is_disconnected(probe) && is_empty() {
                return Some(Err(RecvError::Disconnected));
            }
            if is_empty() {
                return None;
            }
        }
        let guard = lock(&head.receiver, policy)?;
        let mut files = None;
        // The message stays in the log until its files are here.
        let read = self.log.read(&head.receiver, &head.sender, message, |message| {
            let number = message.split_off(message.len().saturating_sub(NUMBER));
            let number = number.try_into().map(u64::from_le_bytes).unwrap_or_default();
            files = Some(peer::peek(self.socket(), number)?);
            Ok(())
        });
        if files.as_ref().is_some_and(|files| !files.is_empty()) {
            peer::drop_packet(self.socket());
        }
        drop(guard);
        match read {
            Ok(false) => return None,
            Ok(true) if head.capacity.load(Relaxed) == u64::MAX && files.is_none() => {}
            _ => head.not_full.0.notify_fenced(1),
        }
        Some(read.map(|_| files).map_err(|error| match error {
            LogError::Corrupt => RecvError::Corrupt,
            LogError::System(error) => RecvError::System(error.to_string()),
        }))
    }

    /// Attaches this end to the value that is being encoded. Returns the handles of its files.
    pub(super) fn handles(self: &Arc<Self>) -> Result<(Handle, Handle), NotAttachable> {
        attach_channel_end(self)?;
        Ok((self.log.file.handle(self)?, self.socket().handle(self)?))
    }

    /// Encodes this end as the public type `P`.
    pub(super) fn serialize<P, S: Serializer>(
        self: &Arc<Self>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let (log, socket) = self.handles().map_err(S::Error::custom)?;
        (Kind::<P>::new(), &self.object, log, socket).serialize(serializer)
    }

    pub(super) fn deserialize<'de, P, D: Deserializer<'de>>(
        role: Role,
        deserializer: D,
    ) -> Result<Arc<Self>, D::Error> {
        type Parts<P> = (Kind<P>, Object<Head>, Handle, Handle);
        let (_, object, log, socket) = Parts::<P>::deserialize(deserializer)?;
        if !object.head().has_files(log, role, socket) {
            return Err(something_else::<P, D::Error>());
        }
        let log = log.open(OFlags::RDWR).map_err(D::Error::custom)?;
        memory::check_sparse(&log).map_err(D::Error::custom)?;
        let log = Log::of(log);
        let socket = socket.open(OFlags::RDWR).map_err(D::Error::custom)?;
        Ok(Self::new(role, object, log, socket))
    }
}

impl Attached for End {
    fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)> {
        [Some(&self.log.file), self.socket.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(File::files)
            .collect()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Closed first: a woken peer checks whether there is another end.
        drop(self.socket.take());
        let head = self.head();
        head.disconnects[self.role as usize].fetch_add(1, SeqCst);
        match self.role {
            Role::Sender => head.not_empty.0.notify(u32::MAX),
            Role::Receiver => head.not_full.0.notify(u32::MAX),
        }
    }
}

impl Head {
    /// Records the identities of the log and of the sender's and the receiver's socket.
    pub(super) fn set_files(&self, log: &File, sockets: [&File; 2]) {
        let files = [(&self.log, log)].into_iter().chain(self.sockets.iter().zip(sockets));
        for (words, file) in files {
            let FileId { device, inode } = file.identity();
            words[0].store(device, Relaxed);
            words[1].store(inode, Relaxed);
        }
    }

    fn has_files(&self, log: Handle, role: Role, socket: Handle) -> bool {
        let socket = (&self.sockets[role as usize], socket);
        [(&self.log, log), socket].into_iter().all(|(words, handle)| {
            let [device, inode] = words.each_ref().map(|word| word.load(Relaxed));
            handle.identity() == FileId { device, inode }
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sender.position() == self.receiver.position()
    }

    pub(super) fn is_full(&self) -> bool {
        let capacity = self.capacity.load(Relaxed);
        if capacity == u64::MAX {
            return false;
        }
        // An empty channel is never full, even if a count is behind.
        self.sender.count().wrapping_sub(self.receiver.count()) >= capacity && !self.is_empty()
    }

    /// Returns whether the counts are impossible for a full channel, because they were overwritten. The
    /// caller must hold the sending side's lock: otherwise messages are sent between the two loads.
    pub(super) fn is_overfull(&self) -> bool {
        let waiting = self.sender.count().wrapping_sub(self.receiver.count());
        // Each count may be behind by one message, if a process was killed.
        waiting.wrapping_add(1) > self.capacity.load(Relaxed).saturating_add(2)
    }
}

pub(super) fn lock(side: &Cursor, policy: WaitPolicy) -> Option<LockGuard<'_>> {
    match policy {
        WaitPolicy::None => side.lock.lock_timeout(CONTENTION_LIMIT),
        WaitPolicy::Until(deadline) => side.lock.lock_until(Some(deadline)),
        WaitPolicy::Endless => side.lock.lock_until(None),
    }
}

impl WaitPolicy {
    pub(super) fn limited(limit: Duration) -> Self {
        deadline(limit).map_or(Self::Endless, Self::Until)
    }
}

thread_local! {
    /// The buffer in which messages are encoded and from which they are decoded.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Calls `f` with an empty buffer. Keeps the buffer for the next call unless it has become large.
pub(super) fn with_buffer<R>(f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    const KEEP: usize = 1 << 20;
    let mut buffer = BUFFER.take();
    let result = f(&mut buffer);
    if buffer.capacity() <= KEEP {
        buffer.clear();
        BUFFER.set(buffer);
    }
    result
}
