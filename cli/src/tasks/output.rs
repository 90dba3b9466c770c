//! What comes back from a worker for one input: a few values, and the columns they are shown in.

use serde::{Deserialize, Serialize};

use super::bytes::Bytes;

/// The answer of a task: one value for each of its columns.
pub(crate) type Output = Vec<Value>;

/// One value of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Value {
    /// A count, or any whole number; wide enough for the square of any `i64`.
    Whole(i128),
    /// A measured or computed number.
    Real(f64),
    /// A digest, or the name of a file.
    Text(Bytes),
    /// There is none here.
    Missing,
}

/// How a value is headed and laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    /// The heading; in JSON and CSV the name of the field.
    pub(crate) name: &'static str,
    /// How the value is written in a table.
    pub(crate) kind: Kind,
    /// How many characters it takes in a table. A stream can't be measured beforehand, so this is
    /// fixed; 0 is as many as it likes, and such a column stands behind all others.
    pub(crate) width: usize,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Numbers, right-aligned; reals with all the digits they have.
    Number,
    /// Reals with that many decimals, right-aligned.
    Fixed(usize),
    /// Text, left-aligned.
    Text,
}

impl Column {
    pub(super) const fn number(name: &'static str, width: usize) -> Self {
        Self { name, kind: Kind::Number, width }
    }

    pub(super) const fn fixed(name: &'static str, width: usize, decimals: usize) -> Self {
        Self { name, kind: Kind::Fixed(decimals), width }
    }

    pub(super) const fn text(name: &'static str, width: usize) -> Self {
        Self { name, kind: Kind::Text, width }
    }

    /// The input of a task over files.
    pub(super) const FILE: Self = Self::text("file", 0);

    /// The input of a command.
    pub(crate) const COMMAND_INPUT: Self = Self::text("input", 0);
}

macro_rules! whole {
    ($($type:ty),*) => {$(
        impl From<$type> for Value {
            fn from(number: $type) -> Self {
                Self::Whole(number.into())
            }
        }
    )*};
}
whole!(u32, u64, i64, i128);

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

impl From<Bytes> for Value {
    fn from(text: Bytes) -> Self {
        Self::Text(text)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into_bytes().into())
    }
}

impl From<std::path::PathBuf> for Value {
    fn from(path: std::path::PathBuf) -> Self {
        Self::Text(path.into())
    }
}
