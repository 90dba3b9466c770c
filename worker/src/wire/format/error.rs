//! Why a value could not be encoded or decoded, with the remedy.

use bincode::error::{DecodeError, EncodeError};
use serde::{de, ser};

use crate::wire::depth::TooDeep;

/// How many elements that take no bytes (`()`, `[u8; 0]`, empty structs) a value of any length may have.
/// A length is 8 bytes and can claim 2^64 of them. Decoding this many takes 10 to 100 ms.
pub(super) const MAX_EMPTY: usize = 4 << 20;

/// serde's message for a path that is not UTF-8. serde has no error kind for it.
const NOT_UTF8_PATH: &str = "path contains invalid UTF-8 characters";

/// Why a value could not be encoded or decoded. Boxed, so that a result is one word.
#[derive(Debug)]
pub(crate) struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
pub(super) enum Reason {
    #[error("{0}")]
    Other(String),
    #[error("{NOT_UTF8_PATH}: send it as an `OsString`")]
    Path,
    #[error(transparent)]
    Deep(#[from] TooDeep),
    #[error("more than {MAX_EMPTY} of its elements take no bytes: send their number instead")]
    Empty,
    #[error(
        "its type skips the field `{0}` (`#[serde(skip_serializing_if)]`), which decoding would miss: wrap it in `procpool::SelfDescribing`"
    )]
    LeftOut(&'static str),
    #[error(
        "its type does not know its length in advance (`#[serde(flatten)]`, an iterator): wrap it in `procpool::SelfDescribing`"
    )]
    NoLength,
    #[error("its type claims {claimed} elements and has {held}")]
    WrongLength { claimed: u64, held: u64 },
    #[error(
        "its type needs a self-describing format, as `serde_json` values, `#[serde(untagged)]`, `#[serde(tag)]` and `#[serde(flatten)]` do: wrap it in `procpool::SelfDescribing`"
    )]
    NotSelfDescribing,
    #[error("expected {wanted} bytes, {left} are left")]
    Short { wanted: u64, left: usize },
    #[error("invalid {what}: {value}")]
    Invalid { what: &'static str, value: u8 },
    #[error("invalid char: {0:?}")]
    Char([u8; 4]),
    #[error("not UTF-8: {0}")]
    Text(#[from] std::str::Utf8Error),
    #[error("failed to allocate {0} bytes")]
    Memory(usize),
}

impl<R: Into<Reason>> From<R> for Error {
    #[cold]
    fn from(reason: R) -> Self {
        Self(Box::new(reason.into()))
    }
}

/// bincode's messages address its own users, so they are replaced.
impl From<DecodeError> for Reason {
    #[cold]
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::UnexpectedEnd { additional } => {
                Self::Other(format!("expected {additional} more bytes at the end"))
            }
            DecodeError::InvalidBooleanValue(value) => Self::Invalid { what: "bool", value },
            DecodeError::InvalidCharEncoding(bytes) => Self::Char(bytes),
            _ => Self::Other("the bytes are not such a value".to_owned()),
        }
    }
}

impl From<EncodeError> for Reason {
    #[cold]
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::OtherString(reason) => Self::Other(reason),
            _ => Self::Other("failed to encode it".to_owned()),
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {}

impl ser::Error for Error {
    #[cold]
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        match message.to_string() {
            message if message == NOT_UTF8_PATH => Reason::Path.into(),
            message => Reason::Other(message).into(),
        }
    }
}

impl de::Error for Error {
    #[cold]
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Reason::Other(message.to_string()).into()
    }
}
