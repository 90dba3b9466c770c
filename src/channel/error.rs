//! Why something was not sent or received.

use std::fmt;

/// Why a value was not sent; it is given back.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct SendError<T> {
    /// What was to be sent.
    pub value: T,
    /// Why it was not.
    pub reason: SendErrorReason,
}

/// The reasons for a [`SendError`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendErrorReason {
    /// There is no receiver any more, in any process.
    #[error("the channel has no receiver any more")]
    Disconnected,
    /// As many messages wait as the channel has room for.
    #[error("the channel is full")]
    Full,
    /// There was no room in time.
    #[error("the channel had no room in time")]
    TimedOut,
    /// The value could not be encoded.
    #[error("the message could not be encoded: {0}")]
    Encode(String),
    /// A process has written over the channel's state. Make a new channel.
    #[error("the channel's memory was overwritten by another process: make a new channel")]
    Corrupt,
    /// The system has no memory for it.
    #[error("the message could not be put into shared memory: {0}")]
    System(String),
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

/// Why nothing was received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// All was received, and there is no sender any more, in any process.
    #[error("the channel is empty and has no sender any more")]
    Disconnected,
    /// Nothing is there at the moment.
    #[error("the channel is empty")]
    Empty,
    /// Nothing came in time.
    #[error("nothing came through the channel in time")]
    TimedOut,
    /// A message came that could not be decoded.
    #[error("the message could not be decoded: {0}")]
    Decode(String),
    /// A process has written over what is in the channel. What was in it is lost.
    #[error("the channel's memory was overwritten")]
    Corrupt,
    /// The system would not have the channel's memory read.
    #[error("the channel could not be read: {0}")]
    System(String),
}
