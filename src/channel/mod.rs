//! Channels between processes. [`unbounded`] and [`bounded`] create one and return its two ends.
//!
//! Methods and errors have the names of `crossbeam-channel`'s. A receiver's iterator yields a message that
//! can't be decoded as an error.

// This file owns the two ends. `log` owns the messages, and `os::pipe` detects whether any process still
// has the other end.

mod error;
mod log;

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

use procpool_worker::attach::{Attached, FileId, NotAttachable, attach_channel_end};
use procpool_worker::codec;
use rustix::fs::OFlags;
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::error::{RecvError, SendError, SendErrorReason};
use self::log::{Log, LogError, Side};
use crate::error::Error;
use crate::os::handle::{File, Handle};
use crate::os::memory::{self, Atomics};
use crate::os::pipe::{is_hung_up, pipe};
use crate::shared::object::{Kind, Object, something_else};
use crate::sync::{EventCount, LockGuard, Probe, deadline};

/// Creates a channel between processes without a capacity limit.
///
/// Both ends can be cloned, used by several threads, and sent to other processes anywhere inside an
/// argument of a task, an initializer or a [`Process`](crate::Process). Each message is received once, by
/// one of the receivers. The messages of one sender are received in the order in which they were sent.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Pool;
/// use procpool::channel::Sender;
///
/// fn produce((words, name): (Sender<String>, String)) {
///     for i in 0..3 {
///         words.send(format!("{name}{i}")).expect("there is a receiver");
///     }
/// }
///
/// let pool = Pool::new(2)?;
/// let (sender, receiver) = procpool::channel::unbounded()?;
/// let tasks = ["a", "b"].map(|name| pool.apply_async(produce, (sender.clone(), name.to_owned())));
/// drop(sender); // now only the tasks have senders
/// let mut words: Vec<String> = receiver.iter().collect::<Result<_, _>>()?;
/// words.sort();
/// assert_eq!(words, ["a0", "a1", "a2", "b0", "b1", "b2"]);
/// # Ok(())
/// # }
/// ```
///
/// # When processes die
///
/// A process that is killed while it sends or receives does not affect the others. Messages that it has
/// sent are received; a message that it was sending is dropped; a message that it was receiving goes to
/// another receiver.
///
/// After the last sender in any process is dropped, receivers drain the channel and then get
/// [`RecvError::Disconnected`]. After the last receiver is dropped, senders get
/// [`SendErrorReason::Disconnected`]. Blocked callers are woken immediately, or within milliseconds if the
/// peer was killed. A sender may succeed a few more times before it notices.
///
/// An end passed to a task keeps the channel open until the task finishes, even while the task is queued
/// or after it drops the end. An end passed to an initializer keeps it open for the pool's lifetime.
///
/// # Limits
///
/// Messages in the channel use memory. A message must implement serde's traits. It can't contain an end of
/// a channel or a handle to shared memory; send those in arguments.
///
/// # Errors
///
/// [`Error::SharedMemory`] if memory or a file descriptor cannot be allocated.
pub fn unbounded<T>() -> Result<(Sender<T>, Receiver<T>), Error> {
    with_capacity(u64::MAX)
}

/// Creates a channel between processes that holds up to `capacity` messages, at least one. Sending blocks
/// while it is full.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::channel::SendErrorReason;
///
/// let (sender, receiver) = procpool::channel::bounded(2)?;
/// sender.send("a".to_owned())?;
/// sender.send("b".to_owned())?;
/// let refused = sender.try_send("c".to_owned()).unwrap_err();
/// assert_eq!((refused.value.as_str(), refused.reason), ("c", SendErrorReason::Full));
/// assert_eq!(receiver.recv()?, "a");
/// sender.send("c".to_owned())?;
/// # Ok(())
/// # }
/// ```
///
/// In all other respects it is like an [`unbounded`] channel.
///
/// # Errors
///
/// [`Error::SharedMemory`] if memory or a file descriptor cannot be allocated.
pub fn bounded<T>(capacity: usize) -> Result<(Sender<T>, Receiver<T>), Error> {
    with_capacity(capacity.max(1) as u64)
}

fn with_capacity<T>(capacity: u64) -> Result<(Sender<T>, Receiver<T>), Error> {
    let refused = |source| Error::SharedMemory { bytes: size_of::<Head>(), source };
    let object = Object::<Head>::new(0)?;
    object.head().capacity.store(capacity, Relaxed);
    let (read, write) = pipe().map_err(refused)?;
    let send_log = Log::new().map_err(refused)?;
    object.head().set_files(&send_log.file, &read);
    let receive_log = Log::of(send_log.file.try_clone().map_err(refused)?);
    let sender = End::new(Role::Sender, object.clone(), send_log, write);
    let receiver = End::new(Role::Receiver, object, receive_log, read);
    Ok((Sender::of(sender), Receiver::of(receiver)))
}

/// The sending end of a channel. Cloning it creates another sender of the same channel.
pub struct Sender<T> {
    end: Arc<End>,
    message: PhantomData<fn(T)>,
}

/// The receiving end of a channel. Cloning it creates another receiver of the same channel.
pub struct Receiver<T> {
    end: Arc<End>,
    message: PhantomData<fn() -> T>,
}

/// A channel's state in shared memory.
#[derive(Debug)]
#[repr(C)]
struct Head {
    sender: Side,
    receiver: Side,
    /// Notified when a message is sent, and when a sender is dropped.
    not_empty: CachePadded<EventCount>,
    /// Notified when a message is received, and when a receiver is dropped.
    not_full: CachePadded<EventCount>,
    /// The maximum number of messages; `u64::MAX` if unbounded.
    capacity: AtomicU64,
    /// How many ends of each role were dropped in an orderly way. When the count changes, the peer pipe is
    /// checked.
    disconnects: [AtomicU32; 2],
    /// The identities of the log and the pipe, so that an end is not decoded from parts of two channels.
    log: [AtomicU64; 2],
    peer_pipe: [AtomicU64; 2],
}

// SAFETY: the type consists of atomics.
unsafe impl Atomics for Head {}

/// A value in a cache line of its own.
#[derive(Debug)]
#[repr(C, align(64))]
struct CachePadded<T>(T);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Sender = 0,
    Receiver = 1,
}

/// This process's access to one end of a channel.
#[derive(Debug)]
struct End {
    role: Role,
    object: Object<Head>,
    log: Log,
    /// One end of a pipe whose other end belongs to the channel's other role. `drop` takes it to close it.
    peer_pipe: Option<File>,
    /// The last value of the other role's `disconnects` at which the pipe had another end.
    seen: AtomicU32,
    /// How many messages this end has sent.
    sent: AtomicU32,
}

/// How long an operation may block.
#[derive(Debug, Clone, Copy)]
enum WaitPolicy {
    None,
    Until(Instant),
    Endless,
}

/// How long a non-blocking operation waits for another process to release the lock.
const CONTENTION_LIMIT: Duration = Duration::from_millis(20);

/// A sender that never blocks checks once in so many messages whether all receivers were killed.
const CHECK_EVERY: u32 = 1024;

impl End {
    fn new(role: Role, object: Object<Head>, log: Log, peer_pipe: File) -> Arc<Self> {
        let (peer_pipe, seen, sent) = (Some(peer_pipe), AtomicU32::new(0), AtomicU32::new(0));
        Arc::new(Self { role, object, log, peer_pipe, seen, sent })
    }

    /// Returns whether no end of the other role exists in any process.
    fn is_alone(&self, probe: Probe) -> bool {
        let disconnects = match self.role {
            Role::Sender => &self.head().disconnects[Role::Receiver as usize],
            Role::Receiver => &self.head().disconnects[Role::Sender as usize],
        };
        let disconnects = disconnects.load(SeqCst);
        if probe == Probe::Fast && disconnects == self.seen.load(Relaxed) {
            return false;
        }
        let is_alone = self.peer_pipe.as_ref().is_none_or(is_hung_up);
        if !is_alone {
            self.seen.store(disconnects, Relaxed);
        }
        is_alone
    }

    fn head(&self) -> &Head {
        self.object.head()
    }

    /// Calls `attempt` until it returns something or the policy's limit expires. The eventcount is notified
    /// when another attempt may succeed.
    fn wait<R>(
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

    /// Sends an encoded message. Returns `None` if the channel is full.
    fn push(
        &self,
        message: &[u8],
        policy: WaitPolicy,
        probe: Probe,
    ) -> Option<Result<(), SendErrorReason>> {
        let head = self.head();
        if self.is_alone(probe) {
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
        let written = self.log.write(&head.sender, message);
        drop(guard);
        head.not_empty.0.notify(1);
        Some(written.map_err(|error| match error {
            LogError::Corrupt => SendErrorReason::Corrupt,
            LogError::System(error) => SendErrorReason::System(error.to_string()),
        }))
    }

    /// Receives an encoded message. Returns `None` if the channel is empty.
    fn pop(
        &self,
        message: &mut Vec<u8>,
        policy: WaitPolicy,
        probe: Probe,
    ) -> Option<Result<(), RecvError>> {
        let head = self.head();
        // The last message may have been sent between the first two checks.
        if head.is_empty() && self.is_alone(probe) && head.is_empty() {
            return Some(Err(RecvError::Disconnected));
        }
        if head.is_empty() {
            return None;
        }
        let guard = lock(&head.receiver, policy)?;
        let read = self.log.read(&head.receiver, &head.sender, message);
        drop(guard);
        match read {
            Ok(false) => return None,
            Ok(true) if head.capacity.load(Relaxed) == u64::MAX => {}
            _ => head.not_full.0.notify(1),
        }
        Some(read.map(drop).map_err(|error| match error {
            LogError::Corrupt => RecvError::Corrupt,
            LogError::System(error) => RecvError::System(error.to_string()),
        }))
    }

    /// Attaches this end to the argument that is being encoded. Returns the handles of its files.
    fn handles(self: &Arc<Self>) -> Result<(Handle, Handle), NotAttachable> {
        attach_channel_end(self)?;
        let peer_pipe = self.peer_pipe.as_ref().expect("only `drop` takes it");
        Ok((self.log.file.handle(self)?, peer_pipe.handle(self)?))
    }

    /// Encodes this end as the public type `P`.
    fn serialize<P, S: Serializer>(self: &Arc<Self>, serializer: S) -> Result<S::Ok, S::Error> {
        let (log, peer_pipe) = self.handles().map_err(S::Error::custom)?;
        (Kind::<P>::new(), &self.object, log, peer_pipe).serialize(serializer)
    }

    fn deserialize<'de, P, D: Deserializer<'de>>(
        role: Role,
        deserializer: D,
    ) -> Result<Arc<Self>, D::Error> {
        type Parts<P> = (Kind<P>, Object<Head>, Handle, Handle);
        let (_, object, log, peer_pipe) = Parts::<P>::deserialize(deserializer)?;
        if !object.head().has_files(log, peer_pipe) {
            return Err(something_else::<P, D::Error>());
        }
        let access = match role {
            Role::Sender => OFlags::WRONLY,
            Role::Receiver => OFlags::RDONLY,
        };
        let log = log.open(OFlags::RDWR).map_err(D::Error::custom)?;
        memory::check_endless(&log).map_err(D::Error::custom)?;
        let log = Log::of(log);
        let peer_pipe = peer_pipe.open(access).map_err(D::Error::custom)?;
        Ok(Self::new(role, object, log, peer_pipe))
    }
}

impl Attached for End {
    fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)> {
        [Some(&self.log.file), self.peer_pipe.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(File::files)
            .collect()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Closed first: a woken peer checks whether there is another end.
        drop(self.peer_pipe.take());
        let head = self.head();
        head.disconnects[self.role as usize].fetch_add(1, SeqCst);
        match self.role {
            Role::Sender => head.not_empty.0.notify(u32::MAX),
            Role::Receiver => head.not_full.0.notify(u32::MAX),
        }
    }
}

impl Head {
    fn set_files(&self, log: &File, peer_pipe: &File) {
        for (words, file) in [(&self.log, log), (&self.peer_pipe, peer_pipe)] {
            let FileId { device, inode } = file.identity();
            words[0].store(device, Relaxed);
            words[1].store(inode, Relaxed);
        }
    }

    fn has_files(&self, log: Handle, peer_pipe: Handle) -> bool {
        [(&self.log, log), (&self.peer_pipe, peer_pipe)].into_iter().all(|(words, handle)| {
            let [device, inode] = words.each_ref().map(|word| word.load(Relaxed));
            handle.identity() == FileId { device, inode }
        })
    }

    fn is_empty(&self) -> bool {
        self.sender.position() == self.receiver.position()
    }

    fn is_full(&self) -> bool {
        let capacity = self.capacity.load(Relaxed);
        if capacity == u64::MAX {
            return false;
        }
        // An empty channel is never full, even if a count is behind.
        self.sender.count().wrapping_sub(self.receiver.count()) >= capacity && !self.is_empty()
    }

    /// Returns whether the counts are impossible for a full channel, because they were overwritten. The
    /// caller must hold the sending side's lock: otherwise messages are sent between the two loads.
    fn is_overfull(&self) -> bool {
        let waiting = self.sender.count().wrapping_sub(self.receiver.count());
        // Each count may be behind by one message, if a process was killed.
        waiting.wrapping_add(1) > self.capacity.load(Relaxed).saturating_add(2)
    }
}

fn lock(side: &Side, policy: WaitPolicy) -> Option<LockGuard<'_>> {
    match policy {
        WaitPolicy::None => side.lock.lock_timeout(CONTENTION_LIMIT),
        WaitPolicy::Until(deadline) => side.lock.lock_until(Some(deadline)),
        WaitPolicy::Endless => side.lock.lock_until(None),
    }
}

impl WaitPolicy {
    fn limited(limit: Duration) -> Self {
        deadline(limit).map_or(Self::Endless, Self::Until)
    }
}

thread_local! {
    /// The buffer in which messages are encoded and from which they are decoded.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Calls `f` with an empty buffer. Keeps the buffer for the next call unless it has become large.
fn with_buffer<R>(f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    const KEEP: usize = 1 << 20;
    let mut buffer = BUFFER.take();
    let result = f(&mut buffer);
    if buffer.capacity() <= KEEP {
        buffer.clear();
        BUFFER.set(buffer);
    }
    result
}

impl<T: Serialize> Sender<T> {
    /// Sends a message. Blocks while the channel is full.
    ///
    /// # Errors
    ///
    /// The error returns the value and one of the reasons [`Disconnected`](SendErrorReason::Disconnected),
    /// [`Encode`](SendErrorReason::Encode), [`Corrupt`](SendErrorReason::Corrupt) and
    /// [`System`](SendErrorReason::System).
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.send_with(value, WaitPolicy::Endless)
    }

    /// Sends a message without blocking.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`SendErrorReason::Full`].
    pub fn try_send(&self, value: T) -> Result<(), SendError<T>> {
        self.send_with(value, WaitPolicy::None)
    }

    /// Sends a message. Blocks for up to `limit` while the channel is full.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`SendErrorReason::TimedOut`].
    pub fn send_timeout(&self, value: T, limit: Duration) -> Result<(), SendError<T>> {
        self.send_with(value, WaitPolicy::limited(limit))
    }

    fn send_with(&self, value: T, policy: WaitPolicy) -> Result<(), SendError<T>> {
        let sent = with_buffer(|message| {
            codec::encode(&value, message)
                .map_err(|error| SendErrorReason::Encode(error.to_string()))?;
            let often = self.end.sent.fetch_add(1, Relaxed);
            let mut minimum = match often % CHECK_EVERY == CHECK_EVERY - 1 {
                true => Probe::CheckOwners,
                false => Probe::Fast,
            };
            let not_full = &self.end.head().not_full.0;
            let sent = End::wait(not_full, policy, |probe| {
                let probe = std::mem::replace(&mut minimum, Probe::Fast).max(probe);
                self.end.push(message, policy, probe)
            });
            sent.unwrap_or(Err(match policy {
                WaitPolicy::None => SendErrorReason::Full,
                _ => SendErrorReason::TimedOut,
            }))
        });
        sent.map_err(|reason| SendError { value, reason })
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Receives a message. Blocks while the channel is empty.
    ///
    /// # Errors
    ///
    /// [`RecvError::Disconnected`] if the channel is empty and has no sender,
    /// [`Decode`](RecvError::Decode), [`Corrupt`](RecvError::Corrupt) and
    /// [`System`](RecvError::System).
    pub fn recv(&self) -> Result<T, RecvError> {
        self.recv_with(WaitPolicy::Endless)
    }

    /// Receives a message without blocking.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), and [`RecvError::Empty`].
    pub fn try_recv(&self) -> Result<T, RecvError> {
        self.recv_with(WaitPolicy::None)
    }

    /// Receives a message. Blocks for up to `limit` while the channel is empty.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), and [`RecvError::TimedOut`].
    pub fn recv_timeout(&self, limit: Duration) -> Result<T, RecvError> {
        self.recv_with(WaitPolicy::limited(limit))
    }

    /// Returns an iterator over the messages, which blocks while the channel is empty. It yields an error for
    /// a message that cannot be received or decoded, and ends when the channel is empty and has no sender.
    pub fn iter(&self) -> impl Iterator<Item = Result<T, RecvError>> + '_ {
        std::iter::from_fn(|| unless_over(self.recv()))
    }

    /// Returns an iterator over the messages that never blocks. It ends when the channel is empty.
    pub fn try_iter(&self) -> impl Iterator<Item = Result<T, RecvError>> + '_ {
        std::iter::from_fn(|| unless_over(self.try_recv()))
    }

    fn recv_with(&self, policy: WaitPolicy) -> Result<T, RecvError> {
        with_buffer(|message| {
            let not_empty = &self.end.head().not_empty.0;
            let received =
                End::wait(not_empty, policy, |probe| self.end.pop(message, policy, probe));
            received.unwrap_or(Err(match policy {
                WaitPolicy::None => RecvError::Empty,
                _ => RecvError::TimedOut,
            }))?;
            codec::decode(message).map_err(|error| RecvError::Decode(error.to_string()))
        })
    }
}

/// Returns what an iterator yields for `received`, or `None` at its end.
fn unless_over<T>(received: Result<T, RecvError>) -> Option<Result<T, RecvError>> {
    match received {
        Err(RecvError::Disconnected | RecvError::Empty) => None,
        received => Some(received),
    }
}

/// A blocking iterator over the messages of a channel, from [`Receiver::into_iter`].
#[derive(Debug)]
pub struct IntoIter<T>(Receiver<T>);

impl<T: DeserializeOwned> Iterator for IntoIter<T> {
    type Item = Result<T, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        unless_over(self.0.recv())
    }
}

impl<T: DeserializeOwned> IntoIterator for Receiver<T> {
    type Item = Result<T, RecvError>;
    type IntoIter = IntoIter<T>;

    /// Returns an iterator like that of [`iter`](Receiver::iter), which owns the receiver.
    fn into_iter(self) -> IntoIter<T> {
        IntoIter(self)
    }
}

macro_rules! end {
    ($End:ident) => {
        impl<T> $End<T> {
            fn of(end: Arc<End>) -> Self {
                Self { end, message: PhantomData }
            }
        }

        impl<T> Clone for $End<T> {
            fn clone(&self) -> Self {
                Self::of(Arc::clone(&self.end))
            }
        }

        impl<T> fmt::Debug for $End<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($End)).finish_non_exhaustive()
            }
        }

        impl<T> Serialize for $End<T> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.end.serialize::<Self, S>(serializer)
            }
        }

        impl<'de, T> Deserialize<'de> for $End<T> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                End::deserialize::<Self, D>(Role::$End, deserializer).map(Self::of)
            }
        }
    };
}
end!(Sender);
end!(Receiver);
