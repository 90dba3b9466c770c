//! Why a value could not be encoded or decoded, and why a frame could not be sent or received.

use std::io;

/// Why a value could not be encoded or decoded. Names its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{type_name}`: {reason}")]
pub struct CodecError {
    /// The type's name, as rustc prints it.
    pub type_name: &'static str,
    /// The reason, with the remedy where there is one.
    pub reason: String,
}

impl CodecError {
    pub(crate) fn new<T: ?Sized>(reason: impl ToString) -> Self {
        Self { type_name: std::any::type_name::<T>(), reason: reason.to_string() }
    }

    #[cold]
    pub(crate) fn no_memory<T: ?Sized>(bytes: usize) -> Self {
        Self::new::<T>(format_args!("failed to allocate {bytes} bytes"))
    }
}

/// Why a frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No process holds the other end any more.
    #[error("the other process has closed the channel")]
    PeerGone,
    /// What arrived violates the protocol.
    #[error("the other process violated the protocol: {0}")]
    Malformed(String),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl TransportError {
    /// Maps the error codes of a dead peer to [`PeerGone`](Self::PeerGone).
    pub(crate) fn from_io(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected => Self::PeerGone,
            _ => Self::Io(error),
        }
    }

    pub(crate) fn is_interrupt(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::Interrupted)
    }
}
