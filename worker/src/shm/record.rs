//! Records: how the outcomes of items lie in a lane.
//!
//! A record is one word, the [head](Record::head), and a payload.

use super::lane::LANE_BYTES;

/// Size of a record's head: one word, with the kind in the low bits and the payload's length above.
pub const RECORD_HEAD: usize = size_of::<u32>();

/// Size of a [`Record::Time`] or [`Record::Output`].
pub const TIME_RECORD: usize = RECORD_HEAD + size_of::<u64>();

const KIND_BITS: u32 = 3;

/// The kind of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Record {
    /// An item's encoded result.
    Value = 0,
    /// An item's panic: an encoded [`PanicReport`](crate::run::panics::PanicReport).
    Panicked = 1,
    /// The reason why an item's argument could not be decoded, as text.
    Undecodable = 2,
    /// The reason why an item's result could not be encoded, as text.
    Unencodable = 3,
    /// An item's result that is too large for the lane and travels in a region, or that refers to files:
    /// an encoded [`PassedResult`](crate::wire::protocol::PassedResult), and the encoded result if it is in
    /// no region.
    Passed = 4,
    /// How long the items since the last such record took together, in nanoseconds. Not an outcome.
    Time = 5,
    /// The results of a block of items that return primitives: their width in one byte, then the
    /// results without heads. The head gives the length of the complete block; a worker that died in it
    /// may have written less.
    Primitives = 7,
    /// Where the preceding item's output ends in the capture file. Not an outcome.
    Output = 6,
}

impl Record {
    /// Parses a head into the kind and the payload's length.
    pub fn parse(head: [u8; RECORD_HEAD]) -> Option<(Self, usize)> {
        let head = u32::from_le_bytes(head);
        let kind = match head & ((1 << KIND_BITS) - 1) {
            0 => Self::Value,
            1 => Self::Panicked,
            2 => Self::Undecodable,
            3 => Self::Unencodable,
            4 => Self::Passed,
            5 => Self::Time,
            6 => Self::Output,
            7 => Self::Primitives,
            _ => return None,
        };
        Some((kind, (head >> KIND_BITS) as usize))
    }
    /// Returns the head of a record with a payload of `len` bytes, which is shorter than a lane.
    /// A record's head. A payload in a lane is always shorter than the lane.
    pub fn head(self, len: usize) -> [u8; RECORD_HEAD] {
        debug_assert!(len <= LANE_BYTES);
        ((len as u32) << KIND_BITS | self as u32).to_le_bytes()
    }
    /// Returns whether the record is the outcome of an item, or of a block of items.
    /// Whether the record is the outcome of an item.
    pub fn is_outcome(self) -> bool {
        !matches!(self, Self::Time | Self::Output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_of_any_bytes_is_parsed_or_refused() {
        assert!(Record::parse(u32::MAX.to_le_bytes()).is_some_and(|(_, len)| len > LANE_BYTES));
        let head = Record::Value.head(LANE_BYTES);
        assert_eq!(Record::parse(head), Some((Record::Value, LANE_BYTES)));
    }
}
