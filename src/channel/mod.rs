//! Channels between processes: [`unbounded`] and [`bounded`] make the two ends.
//!
//! Errors are named as in `crossbeam-channel`. A receiver's iterator returns messages that can't be decoded as
//! errors.

// This file owns the two ends; `log` has the messages, and `os::pipe` tells whether any process has the
// other end.

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

/// A channel for messages between processes, with room for any number of them.
///
/// Both ends can be cloned, used by several threads, and sent to other processes, anywhere inside an
/// argument: of a task, of an initializer, of a process. Each message is received once, by one of the
/// receivers; those of one sender arrive in the order in which it sent them.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Pool;
/// use procpool::channel::Sender;
///
/// fn produce((words, name): (Sender<String>, String)) {
///     for i in 0..3 {
///         words.send(format!("{name}{i}")).expect("it is received");
///     }
/// }
///
/// let pool = Pool::new(2)?;
/// let (sender, receiver) = procpool::channel::unbounded()?;
/// let tasks = ["a", "b"].map(|name| pool.apply_async(produce, (sender.clone(), name.to_owned())));
/// drop(sender); // from here on, the tasks alone have it
/// let mut words: Vec<String> = receiver.iter().collect::<Result<_, _>>()?;
/// words.sort();
/// assert_eq!(words, ["a0", "a1", "a2", "b0", "b1", "b2"]);
/// # Ok(())
/// # }
/// ```
///
/// # When processes die
///
/// A process that is killed while it sends or receives harms nobody else: the others go on, what it had
/// sent is received, what it was in the middle of sending never is, and a message that it was in the
/// middle of receiving goes to another.
///
/// When the last sender in any process is gone, receivers take what is left and then get
/// [`RecvError::Disconnected`]; when the last receiver is, senders get
/// [`SendErrorReason::Disconnected`]. Those who wait are told at once, or some milliseconds after a kill;
/// who sends into a channel with room may succeed a number of times before. An end that was sent to a task
/// counts as one until the task is done, also while it waits for its turn and after the task has dropped
/// it; one in an initializer's argument does as long as there is the pool.
///
/// # Limits
///
/// What waits in the channel takes memory. A message has serde's traits; it can't hold an end of a channel
/// or a handle on shared memory: those go in arguments.
///
/// # Errors
///
/// [`Error::SharedMemory`] when the system has no memory or no file descriptor for it.
pub fn unbounded<T>() -> Result<(Sender<T>, Receiver<T>), Error> {
    with_capacity(u64::MAX)
}

/// A channel with room for so many messages (at least one): who sends one more waits.
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
/// For all else, see [`unbounded`].
///
/// # Errors
///
/// As [`unbounded`].
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

/// The end of a [`unbounded`] that sends.
pub struct Sender<T> {
    end: Arc<End>,
    message: PhantomData<fn(T)>,
}

/// The end of a [`unbounded`] that receives.
pub struct Receiver<T> {
    end: Arc<End>,
    message: PhantomData<fn() -> T>,
}

/// A channel's state.
#[derive(Debug)]
#[repr(C)]
struct Head {
    sender: Side,
    receiver: Side,
    /// Rung when a message was sent, and when a sender has gone.
    arrival: Line<EventCount>,
    /// Rung when there is room for one more, and when a receiver has gone.
    room: Line<EventCount>,
    /// How many messages may wait.
    capacity: AtomicU64,
    /// How many ends of each kind have gone in good order: when that changes, it is worth a look
    /// whether there are any.
    gone: [AtomicU32; 2],
    /// Which files the log and the pipe are, so that no encoding puts together parts of several.
    log: [AtomicU64; 2],
    cord: [AtomicU64; 2],
}

// SAFETY: it is made of atomics.
unsafe impl Atomics for Head {}

/// What has a cache line of its own.
#[derive(Debug)]
#[repr(C, align(64))]
struct Line<T>(T);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Sender = 0,
    Receiver = 1,
}

/// What a process has of a channel.
#[derive(Debug)]
struct End {
    role: Role,
    object: Object<Head>,
    log: Log,
    /// An end of a pipe that the channel's other ends have the other end of; taken out to be closed.
    cord: Option<File>,
    /// How many other ends had gone when there still were some.
    seen: AtomicU32,
    /// How many messages were sent from here.
    sent: AtomicU32,
}

/// How long an operation may wait.
#[derive(Debug, Clone, Copy)]
enum WaitPolicy {
    None,
    Until(Instant),
    Endless,
}

/// How long an operation that isn't to wait waits for another process to be through with one.
const CONTENTION_LIMIT: Duration = Duration::from_millis(20);

/// How often senders that never wait look whether the receivers have been killed.
const LOOK_EVERY: u32 = 1024;

impl End {
    fn new(role: Role, object: Object<Head>, log: Log, cord: File) -> Arc<Self> {
        let (cord, seen, sent) = (Some(cord), AtomicU32::new(0), AtomicU32::new(0));
        Arc::new(Self { role, object, log, cord, seen, sent })
    }

    /// Whether there is no end of the other kind any more.
    fn is_alone(&self, look: Probe) -> bool {
        let gone = match self.role {
            Role::Sender => &self.head().gone[Role::Receiver as usize],
            Role::Receiver => &self.head().gone[Role::Sender as usize],
        };
        let gone = gone.load(SeqCst);
        if look == Probe::Fast && gone == self.seen.load(Relaxed) {
            return false;
        }
        let is_alone = self.cord.as_ref().is_none_or(is_hung_up);
        if !is_alone {
            self.seen.store(gone, Relaxed);
        }
        is_alone
    }

    fn head(&self) -> &Head {
        self.object.head()
    }

    /// Does `attempt` until it gives something, for as long as may be. The eventcount is rung when it is worth
    /// another attempt.
    fn wait<R>(
        eventcount: &EventCount,
        patience: WaitPolicy,
        mut attempt: impl FnMut(Probe) -> Option<R>,
    ) -> Option<R> {
        match patience {
            WaitPolicy::None => attempt(Probe::Fast).or_else(|| attempt(Probe::CheckOwners)),
            WaitPolicy::Until(deadline) => eventcount.wait(Some(deadline), attempt),
            WaitPolicy::Endless => eventcount.wait(None, attempt),
        }
    }

    /// Sends an encoded message; none if there is no room.
    fn push(
        &self,
        message: &[u8],
        patience: WaitPolicy,
        look: Probe,
    ) -> Option<Result<(), SendErrorReason>> {
        let head = self.head();
        if self.is_alone(look) {
            return Some(Err(SendErrorReason::Disconnected));
        }
        // A thorough look goes on to where a count that can't be is told from a channel that is full.
        if look == Probe::Fast && head.is_full() {
            return None;
        }
        let guard = lock(&head.sender, patience)?;
        if head.is_full() {
            return head.is_overfull().then_some(Err(SendErrorReason::Corrupt));
        }
        let written = self.log.write(&head.sender, message);
        drop(guard);
        head.arrival.0.notify(1);
        Some(written.map_err(|error| match error {
            LogError::Corrupt => SendErrorReason::Corrupt,
            LogError::System(error) => SendErrorReason::System(error.to_string()),
        }))
    }

    /// Receives an encoded message; none if there is none.
    fn pop(
        &self,
        message: &mut Vec<u8>,
        patience: WaitPolicy,
        look: Probe,
    ) -> Option<Result<(), RecvError>> {
        let head = self.head();
        // The last one may have been sent between the two looks.
        if head.is_empty() && self.is_alone(look) && head.is_empty() {
            return Some(Err(RecvError::Disconnected));
        }
        if head.is_empty() {
            return None;
        }
        let guard = lock(&head.receiver, patience)?;
        let read = self.log.read(&head.receiver, &head.sender, message);
        drop(guard);
        match read {
            Ok(false) => return None,
            Ok(true) if head.capacity.load(Relaxed) == u64::MAX => {}
            _ => head.room.0.notify(1),
        }
        Some(read.map(drop).map_err(|error| match error {
            LogError::Corrupt => RecvError::Corrupt,
            LogError::System(error) => RecvError::System(error.to_string()),
        }))
    }

    /// Names what the end is made of within what is being encoded.
    fn handles(self: &Arc<Self>) -> Result<(Handle, Handle), NotAttachable> {
        attach_channel_end(self)?;
        let cord = self.cord.as_ref().expect("it is taken out when the end is dropped");
        Ok((self.log.file.handle(self)?, cord.handle(self)?))
    }

    /// Encodes it as the end `P`.
    fn serialize<P, S: Serializer>(self: &Arc<Self>, serializer: S) -> Result<S::Ok, S::Error> {
        let (log, cord) = self.handles().map_err(S::Error::custom)?;
        (Kind::<P>::new(), &self.object, log, cord).serialize(serializer)
    }

    fn deserialize<'de, P, D: Deserializer<'de>>(
        role: Role,
        deserializer: D,
    ) -> Result<Arc<Self>, D::Error> {
        type Parts<P> = (Kind<P>, Object<Head>, Handle, Handle);
        let (_, object, log, cord) = Parts::<P>::deserialize(deserializer)?;
        if !object.head().has_files(log, cord) {
            return Err(something_else::<P, D::Error>());
        }
        let access = match role {
            Role::Sender => OFlags::WRONLY,
            Role::Receiver => OFlags::RDONLY,
        };
        let log = log.open(OFlags::RDWR).map_err(D::Error::custom)?;
        memory::check_endless(&log).map_err(D::Error::custom)?;
        let log = Log::of(log);
        let cord = cord.open(access).map_err(D::Error::custom)?;
        Ok(Self::new(role, object, log, cord))
    }
}

impl Attached for End {
    fn files(&self) -> Vec<(FileId, BorrowedFd<'_>)> {
        [Some(&self.log.file), self.cord.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(File::files)
            .collect()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Closed first: who is rung looks whether there is another.
        drop(self.cord.take());
        let head = self.head();
        head.gone[self.role as usize].fetch_add(1, SeqCst);
        match self.role {
            Role::Sender => head.arrival.0.notify(u32::MAX),
            Role::Receiver => head.room.0.notify(u32::MAX),
        }
    }
}

impl Head {
    fn set_files(&self, log: &File, cord: &File) {
        for (words, file) in [(&self.log, log), (&self.cord, cord)] {
            let FileId { device, inode } = file.identity();
            words[0].store(device, Relaxed);
            words[1].store(inode, Relaxed);
        }
    }

    fn has_files(&self, log: Handle, cord: Handle) -> bool {
        [(&self.log, log), (&self.cord, cord)].into_iter().all(|(words, handle)| {
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
        // An empty channel has room, also where the count is behind.
        self.sender.count().wrapping_sub(self.receiver.count()) >= capacity && !self.is_empty()
    }

    /// Whether the counts can't be those of a channel that is full: they were overwritten. To be called
    /// with the sending side's lock, without which messages come and go between the two looks.
    fn is_overfull(&self) -> bool {
        let waiting = self.sender.count().wrapping_sub(self.receiver.count());
        // Either count may be behind by the one message of a process that was killed.
        waiting.wrapping_add(1) > self.capacity.load(Relaxed).saturating_add(2)
    }
}

fn lock(side: &Side, patience: WaitPolicy) -> Option<LockGuard<'_>> {
    match patience {
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
    /// Where messages are encoded, and decoded from.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Calls `f` with an empty buffer, which is kept for the next time if it isn't large.
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
    /// Sends a message. Where the channel is bounded, waits for room.
    ///
    /// # Errors
    ///
    /// [`SendErrorReason::Disconnected`] when there is no receiver any more,
    /// [`Encode`](SendErrorReason::Encode), [`Corrupt`](SendErrorReason::Corrupt) and
    /// [`System`](SendErrorReason::System).
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.send_with(value, WaitPolicy::Endless)
    }

    /// Sends a message if there is room for it.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`SendErrorReason::Full`].
    pub fn try_send(&self, value: T) -> Result<(), SendError<T>> {
        self.send_with(value, WaitPolicy::None)
    }

    /// Sends a message, and waits for room for up to `limit`.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`SendErrorReason::TimedOut`].
    pub fn send_timeout(&self, value: T, limit: Duration) -> Result<(), SendError<T>> {
        self.send_with(value, WaitPolicy::limited(limit))
    }

    fn send_with(&self, value: T, patience: WaitPolicy) -> Result<(), SendError<T>> {
        let sent = with_buffer(|message| {
            codec::encode(&value, message)
                .map_err(|error| SendErrorReason::Encode(error.to_string()))?;
            let often = self.end.sent.fetch_add(1, Relaxed);
            let mut least = match often % LOOK_EVERY == LOOK_EVERY - 1 {
                true => Probe::CheckOwners,
                false => Probe::Fast,
            };
            let room = &self.end.head().room.0;
            let sent = End::wait(room, patience, |look| {
                let look = std::mem::replace(&mut least, Probe::Fast).max(look);
                self.end.push(message, patience, look)
            });
            sent.unwrap_or(Err(match patience {
                WaitPolicy::None => SendErrorReason::Full,
                _ => SendErrorReason::TimedOut,
            }))
        });
        sent.map_err(|reason| SendError { value, reason })
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Waits for a message.
    ///
    /// # Errors
    ///
    /// [`RecvError::Disconnected`] when there is none and no sender any more,
    /// [`Decode`](RecvError::Decode), [`Corrupt`](RecvError::Corrupt) and
    /// [`System`](RecvError::System).
    pub fn recv(&self) -> Result<T, RecvError> {
        self.recv_with(WaitPolicy::Endless)
    }

    /// Takes a message if there is one.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), and [`RecvError::Empty`].
    pub fn try_recv(&self) -> Result<T, RecvError> {
        self.recv_with(WaitPolicy::None)
    }

    /// Waits for a message for up to `limit`.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), and [`RecvError::TimedOut`].
    pub fn recv_timeout(&self, limit: Duration) -> Result<T, RecvError> {
        self.recv_with(WaitPolicy::limited(limit))
    }

    /// Returns the messages as they come, and in their place the errors of those that can't be had. Ends
    /// when there is no sender any more.
    pub fn iter(&self) -> impl Iterator<Item = Result<T, RecvError>> + '_ {
        std::iter::from_fn(|| unless_over(self.recv()))
    }

    /// As [`iter`](Self::iter), but ends where it would wait for another message.
    pub fn try_iter(&self) -> impl Iterator<Item = Result<T, RecvError>> + '_ {
        std::iter::from_fn(|| unless_over(self.try_recv()))
    }

    fn recv_with(&self, patience: WaitPolicy) -> Result<T, RecvError> {
        with_buffer(|message| {
            let arrival = &self.end.head().arrival.0;
            let received =
                End::wait(arrival, patience, |look| self.end.pop(message, patience, look));
            received.unwrap_or(Err(match patience {
                WaitPolicy::None => RecvError::Empty,
                _ => RecvError::TimedOut,
            }))?;
            codec::decode(message).map_err(|error| RecvError::Decode(error.to_string()))
        })
    }
}

/// What an iteration yields of what was received; none at its end.
fn unless_over<T>(received: Result<T, RecvError>) -> Option<Result<T, RecvError>> {
    match received {
        Err(RecvError::Disconnected | RecvError::Empty) => None,
        received => Some(received),
    }
}

/// The messages of a channel, from [`Receiver::into_iter`].
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

    /// As [`iter`](Self::iter).
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
