//! What tasks say while they run, as it arrives: a note's parts, and the last log records of the running item.

use std::collections::VecDeque;

use procpool_worker::codec;
use procpool_worker::error::{CodecError, TransportError};
use procpool_worker::note::{LogRecord, MAX_NOTE, Note};

/// How many of a task's last log records are kept for the error of its death.
const MAX_LAST_RECORDS: usize = 10;

/// A note's parts, and where they are from.
#[derive(Debug, Default)]
pub(crate) struct PartialNote {
    bytes: Vec<u8>,
}

/// The item that a note is from, as the worker says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoteHead {
    pub(crate) sequence: u32,
    /// Counted from 1; 0 if none was running.
    pub(crate) item: u32,
    pub(crate) is_first: bool,
    pub(crate) is_last: bool,
}

impl PartialNote {
    /// Adds a part. Returns the note and the value behind it, if it was the last.
    ///
    /// # Errors
    ///
    /// When the bytes are no note, or too many.
    pub(crate) fn add(
        &mut self,
        head: NoteHead,
        part: &[u8],
    ) -> Result<Option<(Note, Vec<u8>)>, TransportError> {
        if head.is_first {
            self.bytes.clear();
        }
        if self.bytes.len() + part.len() > MAX_NOTE {
            return Err(TransportError::Malformed("a note is too long".to_owned()));
        }
        self.bytes.extend_from_slice(part);
        if !head.is_last {
            return Ok(None);
        }
        let bytes = std::mem::take(&mut self.bytes);
        let malformed = |error: CodecError| TransportError::Malformed(error.to_string());
        let (mut note, value) = codec::decode_prefix(&bytes).map_err(malformed)?;
        if let Note::Record(record) = &mut note {
            record.cut();
        }
        Ok(Some((note, value.to_vec())))
    }
}

/// The last log records of the item that runs.
#[derive(Debug, Default)]
pub(super) struct LastRecords {
    /// Counted from 1; 0 if none.
    item: u32,
    records: VecDeque<LogRecord>,
}

impl LastRecords {
    pub(super) fn add(&mut self, item: u32, record: LogRecord) {
        if self.item != item {
            (self.item, self.records) = (item, Default::default());
        }
        if self.records.len() == MAX_LAST_RECORDS {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    /// Takes the records of an item, counted from 1.
    pub(super) fn take(&mut self, item: u32) -> Vec<LogRecord> {
        if self.item == item { std::mem::take(&mut self.records).into() } else { Vec::new() }
    }
}
