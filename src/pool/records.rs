//! Reading what a worker has written into its lane, after it was copied out: a sequence of records,
//! each the outcome of one item, with now and then the time that those before it took.
//!
//! The bytes may come from a worker that has gone wild. [`survey`] checks their structure once, where
//! they enter; what a payload means is only found out where it is decoded.

use std::collections::VecDeque;
use std::time::Duration;

use procpool_worker::lane::{RECORD_HEAD, Record};
use procpool_worker::transport::Region;

/// The outcomes of consecutive items, as their worker wrote them.
#[derive(Debug, Default)]
pub(crate) struct Records {
    bytes: Vec<u8>,
    at: usize,
    /// One for each [`Record::Region`], in order.
    regions: VecDeque<Region>,
    /// One for each [`Record::Output`], in order.
    outputs: VecDeque<Vec<u8>>,
    /// Items until the next time record, and what each of them took.
    timed: u32,
    each: Duration,
}

/// One item's outcome, undecoded.
#[derive(Debug)]
pub(crate) struct RawOutcome<'a> {
    pub(crate) kind: Record,
    pub(crate) payload: &'a [u8],
    pub(crate) region: Option<Region>,
    pub(crate) elapsed: Duration,
    /// What it printed, where that is captured.
    pub(crate) output: Vec<u8>,
}

/// What [`survey`] finds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Outcomes.
    pub(crate) items: u32,
    /// Those of them that are answers.
    pub(crate) answers: u32,
    /// Those of them that came in a region.
    pub(crate) regions: u32,
    /// Items that are timed, and how long they took in nanoseconds.
    pub(crate) timed: u32,
    pub(crate) nanos: u64,
}

/// Splits the first record off `bytes`.
fn split(bytes: &[u8]) -> Option<(Record, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<RECORD_HEAD>()?;
    let (kind, len) = Record::parse(*head)?;
    let (payload, rest) = rest.split_at_checked(len)?;
    Some((kind, payload, rest))
}

fn number(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_le_bytes)
}

/// Checks that `bytes` are records, and counts them.
pub(crate) fn survey(mut bytes: &[u8]) -> Option<Survey> {
    let mut survey = Survey::default();
    while !bytes.is_empty() {
        let (kind, payload, rest) = split(bytes)?;
        bytes = rest;
        match kind {
            Record::Time => {
                survey.timed = survey.items;
                survey.nanos = survey.nanos.saturating_add(number(payload)?);
                continue;
            }
            Record::Output => {
                number(payload)?;
                continue;
            }
            Record::Region => {
                survey.regions += 1;
                survey.answers += 1;
            }
            Record::Value => survey.answers += 1,
            Record::Panicked | Record::Undecodable | Record::Unencodable => {}
        }
        survey.items += 1;
    }
    Some(survey)
}

/// Where each item's output ends, of those that tell it.
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
    /// Of bytes that [`survey`] has passed.
    pub(crate) fn new(
        bytes: Vec<u8>,
        regions: VecDeque<Region>,
        outputs: VecDeque<Vec<u8>>,
    ) -> Self {
        Self { bytes, regions, outputs, ..Self::default() }
    }

    /// The next item's outcome.
    pub(crate) fn next(&mut self) -> Option<RawOutcome<'_>> {
        loop {
            let (kind, payload, rest) = split(&self.bytes[self.at..])?;
            let (len, next) = (payload.len(), self.bytes.len() - rest.len());
            if !kind.is_outcome() {
                self.at = next;
                self.timed = 0;
                continue;
            }
            let has_output = matches!(split(rest), Some((Record::Output, ..)));
            if self.timed == 0 {
                self.look_ahead();
            }
            self.timed = self.timed.saturating_sub(1);
            self.at = next;
            let region = (kind == Record::Region).then(|| self.regions.pop_front()).flatten();
            let output = if has_output { self.outputs.pop_front() } else { None };
            let (elapsed, output) = (self.each, output.unwrap_or_default());
            let payload = &self.bytes[next - len..next];
            return Some(RawOutcome { kind, payload, region, elapsed, output });
        }
    }

    /// Finds the next time record, whose time is shared by the items before it.
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
            items += u32::from(kind.is_outcome());
            rest = next;
        }
        self.timed = items;
    }

    /// Takes the first `items` off, as records of their own.
    pub(crate) fn split_front(&mut self, items: u32) -> Self {
        let mut front = Self::default();
        for _ in 0..items {
            let Some(raw) = self.next() else { break };
            let (kind, elapsed) = (raw.kind, raw.elapsed);
            front.bytes.extend_from_slice(&kind.head(raw.payload.len()));
            front.bytes.extend_from_slice(raw.payload);
            front.regions.extend(raw.region);
            if !raw.output.is_empty() {
                front.bytes.extend_from_slice(&Record::Output.head(size_of::<u64>()));
                front.bytes.extend_from_slice(&[0; size_of::<u64>()]);
                front.outputs.push_back(raw.output);
            }
            front.bytes.extend_from_slice(&Record::Time.head(size_of::<u64>()));
            front.bytes.extend_from_slice(&(elapsed.as_nanos() as u64).to_le_bytes());
        }
        front
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn push(bytes: &mut Vec<u8>, kind: Record, payload: &[u8]) {
        bytes.extend_from_slice(&kind.head(payload.len()));
        bytes.extend_from_slice(payload);
    }

    #[test]
    fn a_blocks_time_is_shared_by_its_items() {
        let mut bytes = Vec::new();
        push(&mut bytes, Record::Value, b"one");
        push(&mut bytes, Record::Panicked, b"two");
        push(&mut bytes, Record::Time, &3000u64.to_le_bytes());
        push(&mut bytes, Record::Value, b"three");
        let expected = Survey { items: 3, answers: 2, regions: 0, timed: 2, nanos: 3000 };
        assert_eq!(survey(&bytes), Some(expected));
        let mut records = Records::new(bytes, VecDeque::new(), VecDeque::new());
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

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_or_read_to_the_end(bytes in any::<Vec<u8>>()) {
            let surveyed = survey(&bytes);
            let mut records = Records::new(bytes, VecDeque::new(), VecDeque::new());
            let mut items = 0;
            while records.next().is_some() {
                items += 1;
            }
            if let Some(surveyed) = surveyed {
                prop_assert_eq!(surveyed.items, items);
            }
        }
    }
}
