//! Parses what a worker has written to its lane, after it was copied out: a sequence of records, one per
//! item's outcome, interleaved with the time that the preceding items took.
//!
//! The bytes may come from a corrupted worker. [`validate`] checks their structure once, on entry. Payloads
//! are checked when they are decoded.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use procpool_worker::error::CodecError;
use procpool_worker::protocol::PassedResult;
use procpool_worker::record::{RECORD_HEAD, Record};
use procpool_worker::{bulk, codec, memcpy};

use crate::pool::drive::buffer::Buffer;
use crate::pool::drive::parcel::Parcel;

/// Outcomes of consecutive items, as the worker wrote them.
#[derive(Debug, Default)]
pub(crate) struct Records {
    bytes: Buffer,
    at: usize,
    /// One for each [`Record::Passed`], in order.
    parcels: VecDeque<Parcel>,
    /// One for each [`Record::Output`], in order.
    outputs: VecDeque<Vec<u8>>,
    /// The run of numbers being read: its remaining bytes, and the width of each number.
    run: Range<usize>,
    width: usize,
    /// Items until the next time record, and the time of each.
    timed: u32,
    each: Duration,
}

/// An item's outcome, undecoded.
#[derive(Debug)]
pub(crate) struct RawOutcome<'a> {
    pub(crate) kind: Record,
    pub(crate) payload: &'a [u8],
    pub(crate) parcel: Option<Parcel>,
    pub(crate) elapsed: Duration,
    /// Captured output.
    pub(crate) output: Vec<u8>,
}

/// A piece of [`Records`], from [`Records::next_piece`].
#[derive(Debug)]
pub(crate) enum Piece<'a> {
    /// Values that are primitives of this width.
    Numbers {
        bytes: &'a [u8],
        width: usize,
        elapsed: Duration,
    },
    One(RawOutcome<'a>),
}

/// Summary of records, from [`validate`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Number of outcomes.
    pub(crate) items: u32,
    /// Number of values among them.
    pub(crate) answers: u32,
    /// Number of values of which a part was passed on the control socket.
    pub(crate) passed: u32,
    /// Number of timed items, and their total time in nanoseconds.
    pub(crate) timed: u32,
    pub(crate) nanos: u64,
}

/// Splits the first record off `bytes`.
fn split(bytes: &[u8]) -> Option<(Record, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<RECORD_HEAD>()?;
    let (kind, len) = Record::parse(*head)?;
    // If the worker died within a run of numbers, the rest of the run is missing.
    let len = if kind == Record::Primitives { len.min(rest.len()) } else { len };
    let (payload, rest) = rest.split_at_checked(len)?;
    Some((kind, payload, rest))
}

/// Returns the width of a run's numbers, and their bytes.
fn numbers(payload: &[u8]) -> Option<(usize, &[u8])> {
    let (width, numbers) = payload.split_first()?;
    let width = usize::from(*width);
    (width > 0 && !numbers.is_empty() && numbers.len().is_multiple_of(width))
        .then_some((width, numbers))
}

fn number(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_le_bytes)
}

/// Returns the number of outcomes in a record.
fn outcomes(kind: Record, payload: &[u8]) -> Option<u32> {
    Some(match kind {
        Record::Time | Record::Output => {
            number(payload)?;
            0
        }
        Record::Primitives => {
            let (width, numbers) = numbers(payload)?;
            u32::try_from(numbers.len() / width).ok()?
        }
        Record::Value
        | Record::Passed
        | Record::Panicked
        | Record::Undecodable
        | Record::Unencodable => 1,
    })
}

/// Checks that `bytes` are valid records, and counts them.
pub(crate) fn validate(mut bytes: &[u8]) -> Option<Summary> {
    let mut summary = Summary::default();
    while !bytes.is_empty() {
        let (kind, payload, rest) = split(bytes)?;
        bytes = rest;
        let items = outcomes(kind, payload)?;
        summary.items = summary.items.checked_add(items)?;
        match kind {
            Record::Time => {
                summary.timed = summary.items;
                summary.nanos = summary.nanos.saturating_add(number(payload)?);
            }
            Record::Passed => {
                summary.passed += 1;
                summary.answers += 1;
            }
            Record::Value | Record::Primitives => summary.answers += items,
            Record::Panicked | Record::Undecodable | Record::Unencodable | Record::Output => {}
        }
    }
    Some(summary)
}

/// Returns what was passed with the results. `None` if a record of it is invalid.
pub(crate) fn passed_results(mut bytes: &[u8]) -> Option<Vec<PassedResult>> {
    let mut passed = Vec::new();
    while let Some((kind, payload, rest)) = split(bytes) {
        bytes = rest;
        if kind == Record::Passed {
            passed.push(passed_result(payload)?.0);
        }
    }
    Some(passed)
}

/// Returns what was passed with a result, and the encoded result if no region holds it.
pub(crate) fn passed_result(payload: &[u8]) -> Option<(PassedResult, &[u8])> {
    codec::decode_prefix(payload).ok()
}

/// Returns the end offset of each item's captured output.
pub(crate) fn output_ends(mut bytes: &[u8]) -> Vec<u64> {
    let mut ends = Vec::new();
    while let Some((kind, payload, rest)) = split(bytes) {
        bytes = rest;
        if kind == Record::Output {
            ends.extend(number(payload));
        }
    }
    ends
}

impl Records {
    /// Returns the memory that it takes up in bytes. `None` if it has regions or files.
    pub(crate) fn size(&self) -> Option<usize> {
        let outputs: usize = self.outputs.iter().map(Vec::len).sum();
        self.parcels.is_empty().then(|| self.bytes.len() + outputs)
    }

    /// Creates records from bytes that passed [`validate`].
    pub(crate) fn new(
        bytes: Buffer,
        parcels: VecDeque<Parcel>,
        outputs: VecDeque<Vec<u8>>,
    ) -> Self {
        Self { bytes, parcels, outputs, ..Self::default() }
    }

    /// Returns bytes, parcels and outputs of the `items` that are left, as [`new`](Self::new) takes them.
    pub(crate) fn into_parts(
        mut self,
        items: u32,
    ) -> (Buffer, VecDeque<Parcel>, VecDeque<Vec<u8>>) {
        if self.at > 0 {
            self = self.split_front(items);
        }
        (self.bytes, self.parcels, self.outputs)
    }

    /// Returns the next item's outcome.
    pub(crate) fn next(&mut self) -> Option<RawOutcome<'_>> {
        Some(match self.next_piece(1)? {
            Piece::One(raw) => raw,
            Piece::Numbers { bytes, elapsed, .. } => RawOutcome {
                kind: Record::Value,
                payload: bytes,
                parcel: None,
                elapsed,
                output: Vec::new(),
            },
        })
    }

    /// Returns the next item's outcome, or those of up to `most` items at once if they are numbers.
    pub(crate) fn next_piece(&mut self, most: u32) -> Option<Piece<'_>> {
        while self.run.is_empty() {
            let (kind, payload, rest) = split(&self.bytes[self.at..])?;
            let (len, next) = (payload.len(), self.bytes.len() - rest.len());
            if outcomes(kind, payload)? == 0 {
                self.at = next;
                self.timed = 0;
                continue;
            }
            if self.timed == 0 {
                self.look_ahead();
            }
            self.at = next;
            if kind == Record::Primitives {
                self.width = usize::from(self.bytes[next - len]);
                self.run = next - len + 1..next;
                continue;
            }
            let rest = &self.bytes[next..];
            let has_output = matches!(split(rest), Some((Record::Output, ..)));
            self.timed = self.timed.saturating_sub(1);
            let parcel = if kind == Record::Passed { self.parcels.pop_front() } else { None };
            let output = if has_output { self.outputs.pop_front() } else { None };
            return Some(Piece::One(RawOutcome {
                kind,
                payload: &self.bytes[next - len..next],
                parcel,
                elapsed: self.each,
                output: output.unwrap_or_default(),
            }));
        }
        let count = (self.run.len() / self.width).min(most as usize);
        let start = self.run.start;
        self.run.start += count * self.width;
        self.timed = self.timed.saturating_sub(count as u32);
        let bytes = &self.bytes[start..self.run.start];
        Some(Piece::Numbers { bytes, width: self.width, elapsed: self.each })
    }

    /// Appends up to `most` values to `results` at once, if the next ones are numbers of the width of `R`.
    /// Returns how many, or the error if memory is short.
    pub(crate) fn drain_numbers<R>(
        &mut self,
        most: u32,
        results: &mut Vec<R>,
    ) -> Option<Result<u32, CodecError>> {
        let wanted = bulk::fixed_width::<R>()?;
        if self.run.is_empty() {
            let (kind, payload, _) = split(&self.bytes[self.at..])?;
            if kind == Record::Time {
                self.at += RECORD_HEAD + payload.len();
                self.timed = 0;
            }
            let (kind, payload, _) = split(&self.bytes[self.at..])?;
            if kind != Record::Primitives || payload.first() != Some(&(wanted as u8)) {
                return None;
            }
        }
        match self.next_piece(most)? {
            Piece::Numbers { bytes, width, .. } if width == wanted => {
                let taken = (bytes.len() / width) as u32;
                Some(bulk::decode_all(results, bytes).map(|()| taken))
            }
            _ => None,
        }
    }

    /// Finds the next time record, whose time the items before it share equally.
    fn look_ahead(&mut self) {
        let mut rest = &self.bytes[self.at..];
        let mut items = 0;
        self.each = Duration::ZERO;
        while let Some((kind, payload, next)) = split(rest) {
            if kind == Record::Time {
                let nanos = number(payload).unwrap_or(0);
                self.each = Duration::from_nanos(nanos / u64::from(items).max(1));
                break;
            }
            items += outcomes(kind, payload).unwrap_or(0);
            rest = next;
        }
        self.timed = items;
    }

    /// Splits off the first `items` as separate records.
    pub(crate) fn split_front(&mut self, mut items: u32) -> Self {
        // A number and its time take at most this much, and all numbers at most what is left.
        const MAX_RECORD: usize = 32;
        let left = self.bytes.len().saturating_sub(self.at) + MAX_RECORD;
        let capacity = left.min(MAX_RECORD.saturating_mul(items as usize));
        let mut front = Self { bytes: Buffer::with_capacity(capacity), ..Self::default() };
        while items > 0 {
            let Some(piece) = self.next_piece(items) else { break };
            let (taken, elapsed) = match piece {
                Piece::Numbers { bytes, width, elapsed } => {
                    put(&mut front.bytes, Record::Primitives, &[&[width as u8], bytes]);
                    ((bytes.len() / width) as u32, elapsed)
                }
                Piece::One(raw) => {
                    put(&mut front.bytes, raw.kind, &[raw.payload]);
                    front.parcels.extend(raw.parcel);
                    if !raw.output.is_empty() {
                        put(&mut front.bytes, Record::Output, &[&0u64.to_le_bytes()]);
                        front.outputs.push_back(raw.output);
                    }
                    (1, raw.elapsed)
                }
            };
            let nanos = elapsed.as_nanos() as u64 * u64::from(taken);
            put(&mut front.bytes, Record::Time, &[&nanos.to_le_bytes()]);
            items -= taken;
        }
        front
    }
}

fn put(bytes: &mut Vec<u8>, kind: Record, payload: &[&[u8]]) {
    let len = payload.iter().map(|part| part.len()).sum();
    bytes.extend_from_slice(&kind.head(len));
    payload.iter().for_each(|part| memcpy::append(bytes, part));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pool::call::outcome::read_hostile;
    use proptest::prelude::*;

    #[test]
    fn a_blocks_time_is_shared_by_its_items() {
        let mut bytes = Vec::new();
        put(&mut bytes, Record::Value, &[b"one"]);
        put(&mut bytes, Record::Panicked, &[b"two"]);
        put(&mut bytes, Record::Time, &[&3000u64.to_le_bytes()]);
        put(&mut bytes, Record::Value, &[b"three"]);
        let expected = Summary { items: 3, answers: 2, passed: 0, timed: 2, nanos: 3000 };
        assert_eq!(validate(&bytes), Some(expected));
        let mut records = Records::new(bytes[..].into(), VecDeque::new(), VecDeque::new());
        let mut front = records.split_front(1);
        let first = front.next().unwrap();
        assert_eq!((first.payload, first.elapsed), (&b"one"[..], Duration::from_nanos(1500)));
        assert!(front.next().is_none());
        let second = records.next().unwrap();
        assert_eq!((second.kind, second.payload), (Record::Panicked, &b"two"[..]));
        assert_eq!(second.elapsed, Duration::from_nanos(1500));
        let third = records.next().unwrap();
        assert_eq!((third.payload, third.elapsed), (&b"three"[..], Duration::ZERO));
        assert!(records.next().is_none());
    }

    #[test]
    fn a_run_of_numbers_can_be_read_singly_or_at_once_and_may_be_truncated() {
        let mut bytes = Vec::new();
        put(&mut bytes, Record::Primitives, &[&[2], &[1, 0, 2, 0, 3, 0]]);
        put(&mut bytes, Record::Time, &[&600u64.to_le_bytes()]);
        put(&mut bytes, Record::Primitives, &[&[2], &[4, 0, 5, 0, 6, 0]]);
        bytes.truncate(bytes.len() - 2);
        let expected = Summary { items: 5, answers: 5, passed: 0, timed: 3, nanos: 600 };
        assert_eq!(validate(&bytes), Some(expected));
        let mut records = Records::new(bytes[..].into(), VecDeque::new(), VecDeque::new());
        let mut front = records.split_front(2);
        assert_eq!(front.next().unwrap().payload, [1, 0]);
        let second = front.next().unwrap();
        assert_eq!((second.payload, second.elapsed), (&[2, 0][..], Duration::from_nanos(200)));
        assert!(front.next().is_none());
        let third = records.next().unwrap();
        assert_eq!((third.payload, third.elapsed), (&[3, 0][..], Duration::from_nanos(200)));
        let Some(Piece::Numbers { bytes: rest, width: 2, .. }) = records.next_piece(9) else {
            panic!("numbers")
        };
        assert_eq!(rest, [4, 0, 5, 0]);
        assert!(records.next().is_none());
        bytes.pop();
        assert_eq!(validate(&bytes), None, "half a number is invalid");
    }

    #[test]
    fn the_fuzzers_seeds_are_read_without_harm() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/worker_output");
        let mut read = 0;
        for seed in std::fs::read_dir(seeds).unwrap() {
            let seed = std::fs::read(seed.unwrap().path()).unwrap();
            (0..=seed.len()).for_each(|len| read_hostile(&seed[..len]));
            read += 1;
        }
        assert!(read > 4, "{read} seeds");
    }

    proptest! {
        #[test]
        fn bytes_that_look_like_records_are_read_without_harm(
            records in prop::collection::vec((0u32..8, any::<Vec<u8>>(), -2i32..3), 0..12)
        ) {
            let mut bytes = Vec::new();
            for (kind, payload, lie) in records {
                let len = (payload.len() as u32).saturating_add_signed(lie);
                bytes.extend_from_slice(&(len << 3 | kind).to_le_bytes());
                bytes.extend_from_slice(&payload);
            }
            read_hostile(&bytes);
        }

        #[test]
        fn hostile_bytes_are_refused_or_read_to_the_end(bytes in any::<Vec<u8>>()) {
            let summary = validate(&bytes);
            let mut records = Records::new(bytes[..].into(), VecDeque::new(), VecDeque::new());
            let mut items = 0;
            while records.next().is_some() {
                items += 1;
            }
            if let Some(summary) = summary {
                prop_assert_eq!(summary.items, items);
            }
        }
    }
}
