//! What a worker returns for one input: a few values, and the columns that show them.

use serde::{Deserialize, Serialize};

use super::bytes::Bytes;

/// The result of a task: one value per column.
pub(crate) type Output = Vec<Value>;

/// One value of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Value {
    /// A whole number; wide enough for the square of any `i64`.
    Whole(i128),
    /// A measured or computed number.
    Real(f64),
    /// A digest, or the name of a file.
    Text(Bytes),
    /// No value.
    Missing,
}

/// The heading and layout of a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    /// The heading, and the field's name in JSON and CSV.
    pub(crate) name: &'static str,
    /// The format of the value in a table.
    pub(crate) kind: Kind,
    /// The width in a table, in characters. Rows stream, so widths cannot be measured first. 0
    /// means any width; such a column comes last.
    pub(crate) width: usize,
}

/// The format of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Numbers, right-aligned; reals with all their digits.
    Number,
    /// Reals with this many decimals, right-aligned.
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
