//! Channels between processes. [`unbounded`] and [`bounded`] create one and return its two ends.
//!
//! Methods and errors have the names of `crossbeam-channel`'s. A receiver's iterator yields a message that
//! can't be decoded as an error.

// This file owns the two ends. `log` owns the messages. `os::peer` passes the files that messages refer to, and
// detects whether any process still has the other end.

mod end;
mod error;
mod log;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

use procpool_worker::attach::Attachments;
use procpool_worker::codec;
use procpool_worker::protocol::MAX_FILES;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::end::{CHECK_EVERY, End, Head, Role, WaitPolicy, with_buffer};
pub use self::error::{RecvError, SendError, SendErrorReason};
use self::log::Log;
use crate::error::Error;
use crate::ipc::eventcount::Probe;
use crate::ipc::object::Object;
use crate::os::peer::socket_pair;

/// Creates a channel between processes without a capacity limit.
///
/// Both ends can be cloned, used by several threads, and sent to other processes anywhere inside an
/// argument of a task, an initializer or a [`Process`](crate::Process), inside a result, or inside a message
/// of a channel. Each message is received once, by
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
/// or after it drops the end. An end passed to an initializer keeps it open for the pool's lifetime. An end
/// in a result or in a message keeps it open while the result or the message waits to be taken.
///
/// # Limits
///
/// Messages in the channel use memory. A message must implement serde's traits.
///
/// A message may contain ends of channels, and handles to shared memory, locks and open files. Up to about
/// 200 such messages wait in a channel, also in an unbounded one: then it is full. A message may refer to up
/// to 200 open files. Few of them are needed: thousands of small values share one.
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
    let (send_socket, receive_socket) = socket_pair().map_err(refused)?;
    let send_log = Log::new().map_err(refused)?;
    object.head().set_files(&send_log.file, [&send_socket, &receive_socket]);
    let receive_log = Log::of(send_log.file.try_clone().map_err(refused)?);
    let sender = End::new(Role::Sender, object.clone(), send_log, send_socket);
    let receiver = End::new(Role::Receiver, object, receive_log, receive_socket);
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
            let mut attachments = Attachments::default();
            codec::encode_attached(&value, message, &mut attachments)
                .map_err(|error| SendErrorReason::Encode(error.to_string()))?;
            check_files(&attachments)?;
            let often = self.end.sent.fetch_add(1, Relaxed);
            let mut minimum = match often % CHECK_EVERY == CHECK_EVERY - 1 {
                true => Probe::CheckOwners,
                false => Probe::Fast,
            };
            let not_full = &self.end.head().not_full.0;
            let sent = End::wait(not_full, policy, |probe| {
                let probe = std::mem::replace(&mut minimum, Probe::Fast).max(probe);
                self.end.push(message, &attachments, policy, probe)
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
        std::iter::from_fn(|| until_disconnected(self.recv()))
    }

    /// Returns an iterator over the messages that never blocks. It ends when the channel is empty.
    pub fn try_iter(&self) -> impl Iterator<Item = Result<T, RecvError>> + '_ {
        std::iter::from_fn(|| until_disconnected(self.try_recv()))
    }

    fn recv_with(&self, policy: WaitPolicy) -> Result<T, RecvError> {
        with_buffer(|message| {
            let not_empty = &self.end.head().not_empty.0;
            let received =
                End::wait(not_empty, policy, |probe| self.end.pop(message, policy, probe));
            let files = received.unwrap_or(Err(match policy {
                WaitPolicy::None => RecvError::Empty,
                _ => RecvError::TimedOut,
            }))?;
            let decode = || codec::decode(message);
            let decoded = match files {
                None => decode(),
                Some(files) => files.decode(decode),
            };
            decoded.map_err(|error| RecvError::Decode(error.to_string()))
        })
    }
}

/// Refuses a message that refers to more files than can be passed with it.
fn check_files(attachments: &Attachments) -> Result<(), SendErrorReason> {
    if attachments.is_empty() {
        return Ok(());
    }
    let files = attachments.files().len();
    if files <= MAX_FILES {
        return Ok(());
    }
    Err(SendErrorReason::Encode(format!(
        "it refers to {files} open files, and a message may refer to {MAX_FILES}: send several"
    )))
}

/// Returns what an iterator yields for `received`, or `None` at its end.
fn until_disconnected<T>(received: Result<T, RecvError>) -> Option<Result<T, RecvError>> {
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
        until_disconnected(self.0.recv())
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
