//! The errors of sending and receiving.

use std::fmt;

/// The error of a value that was not sent. It returns the value.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct SendError<T> {
    /// The value that was not sent.
    pub value: T,
    /// Why it was not sent.
    pub reason: SendErrorReason,
}

/// The reasons for a [`SendError`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendErrorReason {
    /// No process has a receiver of the channel.
    #[error("the channel has no receiver")]
    Disconnected,
    /// The channel holds as many messages as its capacity allows.
    #[error("the channel is full")]
    Full,
    /// The channel remained full for the whole time limit.
    #[error("the channel remained full until the time limit")]
    TimedOut,
    /// The value could not be encoded.
    #[error("the message could not be encoded: {0}")]
    Encode(String),
    /// A process has overwritten the channel's state. Create a new channel.
    #[error("the channel's memory was overwritten by another process: create a new channel")]
    Corrupt,
    /// The operating system has no memory for the message.
    #[error("the message could not be written to shared memory: {0}")]
    System(String),
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

/// Why no message was received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The channel is empty, and no process has a sender of it.
    #[error("the channel is empty and has no sender")]
    Disconnected,
    /// The channel is empty.
    #[error("the channel is empty")]
    Empty,
    /// The channel remained empty for the whole time limit.
    #[error("the channel remained empty until the time limit")]
    TimedOut,
    /// A message was received and could not be decoded.
    #[error("the message could not be decoded: {0}")]
    Decode(String),
    /// A process has overwritten the messages in the channel. They are lost.
    #[error("the channel's memory was overwritten")]
    Corrupt,
    /// The operating system failed to read the channel's memory, or this process has no file descriptors left
    /// for a message with handles. The message stays in the channel.
    #[error("the channel could not be read: {0}")]
    System(String),
}
