//! The configuration of bincode, and the limit on elements that take no bytes, which bincode lacks.

use bincode::config::{Configuration, Fixint};

use super::error::{Error, MAX_EMPTY, Reason};

/// How many more of them each byte allows, so that the time to decode a value is bounded by its length.
const EMPTY_PER_BYTE: usize = 64;

/// Counts an element that takes no bytes. `bytes` is the length of the whole value so far.
#[inline]
pub(super) fn count_empty(empty: &mut usize, bytes: usize) -> Result<(), Error> {
    *empty += 1;
    if *empty <= MAX_EMPTY || *empty - MAX_EMPTY <= bytes.saturating_mul(EMPTY_PER_BYTE) {
        return Ok(());
    }
    Err(Reason::Empty.into())
}

pub(super) type Config = Configuration<bincode::config::LittleEndian, Fixint>;

pub(super) fn config() -> Config {
    bincode::config::standard().with_fixed_int_encoding()
}
