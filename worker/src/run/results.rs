//! Writes the outcomes of items into the lane and commits them. An outcome that does not fit waits
//! until the parent has emptied the lane, or travels in a region.

use std::io::Write as _;

use serde::Serialize;

use super::chunk_run::{ChunkRun, Stage};
use super::fork_guard;
use super::panics::PanicReport;
use crate::shm::lane::CAPACITY;
use crate::shm::record::{RECORD_HEAD, Record, TIME_RECORD};
use crate::shm::sys::{now, output_len};
use crate::wire::attach::Attachments;
use crate::wire::error::TransportError;
use crate::wire::protocol::{PassedResult, Reply, Request};
use crate::wire::{bulk, codec};

/// Bytes kept free at the lane's end, so that an item's time, its output length and a region's
/// reference always fit.
const TRAILER_RESERVE: usize = RECORD_HEAD + 2 * TIME_RECORD;

/// The longest payload that fits into an empty lane.
const LONGEST: usize = CAPACITY - RECORD_HEAD - TRAILER_RESERVE;

impl ChunkRun<'_> {
    /// Writes the item's result and commits it.
    #[inline]
    pub(super) fn finish<R: Serialize>(&mut self, result: &R) {
        if let Some(width) = bulk::fixed_width::<R>().filter(|_| !self.capture) {
            return self.finish_primitive(result, width);
        }
        let at = self.progress.bytes as usize;
        if let Some(bytes) = bulk::as_raw_bytes(result)
            && bytes.len() > CAPACITY
        {
            return self.finish_in_region(bytes, true);
        }
        // A lane without space for a head is flushed first.
        if at + RECORD_HEAD + TRAILER_RESERVE > CAPACITY {
            return self.finish_large(result);
        }
        let mut attachments = Attachments::default();
        let mut writer = self.lane.writer(at + RECORD_HEAD, TRAILER_RESERVE);
        match codec::encode_attached(result, &mut writer, &mut attachments) {
            Ok(()) if !attachments.is_empty() => {
                let bytes = writer.into_bytes();
                self.finish_attached(&bytes, &attachments);
            }
            Ok(()) => match writer.finish() {
                Ok(end) => self.commit(Record::Value, end),
                Err(spilled) => self.finish_spilled(&spilled),
            },
            Err(error) => self.finish_text(Record::Unencodable, &error.to_string()),
        }
    }

    /// Writes a primitive into the block's open record and commits it. Not used where output is
    /// captured: that adds a record after each item.
    #[inline]
    fn finish_primitive<R: Serialize>(&mut self, primitive: &R, width: usize) {
        if self.open_record.is_none() {
            self.open_record(self.claimed.len() + 1, width);
        }
        let at = self.progress.bytes as usize;
        let mut writer = self.lane.writer(at, 0);
        // Encoding a primitive can't fail, and the open record has space for it.
        let _ = codec::encode(primitive, &mut writer);
        self.progress.bytes += width as u32;
        self.progress.items += 1;
        self.commit_item();
    }

    /// Opens a record for the results of `items` items, which are primitives.
    pub(super) fn open_record(&mut self, items: usize, width: usize) {
        let len = 1 + items * width;
        if self.progress.bytes as usize + RECORD_HEAD + len + TRAILER_RESERVE > CAPACITY {
            self.flush();
        }
        let at = self.progress.bytes as usize;
        self.lane.write(at, &Record::Primitives.head(len));
        self.lane.write(at + RECORD_HEAD, &[width as u8]);
        self.progress.bytes += RECORD_HEAD as u32 + 1;
        self.open_record = Some(at);
    }

    /// Closes the open record of primitives: corrects its length, or removes it if it is empty.
    pub(super) fn close_record(&mut self) {
        if let Some(at) = self.open_record.take() {
            let len = self.progress.bytes as usize - at - RECORD_HEAD;
            if len == 1 {
                // Its first item panicked: it holds only the width.
                self.progress.bytes = at as u32;
                return;
            }
            self.lane.write(at, &Record::Primitives.head(len));
        }
    }

    #[cold]
    fn finish_large<R: Serialize>(&mut self, result: &R) {
        let (mut bytes, mut attachments) = (Vec::new(), Attachments::default());
        match codec::encode_attached(result, &mut bytes, &mut attachments) {
            Ok(()) if !attachments.is_empty() => self.finish_attached(&bytes, &attachments),
            Ok(()) => self.finish_spilled(&bytes),
            Err(error) => self.finish_text(Record::Unencodable, &error.to_string()),
        }
    }

    /// Commits a result that did not fit: after a flush, or in a region.
    #[cold]
    fn finish_spilled(&mut self, bytes: &[u8]) {
        if bytes.len() <= LONGEST {
            self.flush();
            return self.finish_bytes(Record::Value, bytes);
        }
        self.finish_in_region(bytes, false);
    }

    /// Commits a result that travels in a region, as raw bytes or encoded.
    #[cold]
    fn finish_in_region(&mut self, bytes: &[u8], is_raw: bool) {
        self.finish_passed(bytes, is_raw, None);
    }

    /// Commits a result that refers to files.
    #[cold]
    fn finish_attached(&mut self, bytes: &[u8], attachments: &Attachments) {
        match self.channels.attach(attachments) {
            Ok(number) => self.finish_passed(bytes, false, Some(number)),
            Err(error) => self.finish_not_passed("the files of the result", error),
        }
    }

    /// Commits a result of which a part is passed on the control socket: its files, which were passed just
    /// before, and the bytes themselves if they do not fit.
    fn finish_passed(&mut self, bytes: &[u8], is_raw: bool, attached: Option<u32>) {
        let head =
            |region| codec::encode_to_vec(&PassedResult { region, attached }).unwrap_or_default();
        let mut payload = head(None);
        if !is_raw && payload.len() + bytes.len() <= LONGEST && attached.is_some() {
            payload.extend_from_slice(bytes);
        } else {
            match self.regions.store_result(bytes, self.channels) {
                Ok(slice) => payload = head(Some((slice, is_raw))),
                Err(error) => {
                    let what = format!("the result of {} bytes", bytes.len());
                    return self.finish_not_passed(&what, error);
                }
            }
        }
        self.finish_bytes(Record::Passed, &payload);
        // The parent then holds what was passed for one result at a time, and no other is on its way.
        self.flush();
    }

    /// Commits the error of a result that the system refuses to pass.
    fn finish_not_passed(&mut self, what: &str, error: TransportError) {
        match error {
            TransportError::PeerGone => self.error = Some(TransportError::PeerGone),
            error => {
                let text = format!("{what} could not be passed to the parent: {error}");
                self.finish_text(Record::Unencodable, &text);
            }
        }
    }

    pub(super) fn finish_text(&mut self, kind: Record, text: &str) {
        self.finish_bytes(kind, text.as_bytes());
    }

    /// Commits the outcome of an item that panicked.
    #[cold]
    pub(super) fn finish_panicked(&mut self, report: PanicReport) {
        fork_guard::exit_if_forked();
        self.sync_progress();
        let text =
            |type_name: &str, part: &str| format!("`{type_name}`: {}", report.prefixed(part));
        let (argument, result) = self.types;
        match self.stage {
            // Dropping the result panicked, after the commit: the panic has no receiver.
            Stage::Between => {}
            Stage::Decoding => {
                self.finish_text(Record::Undecodable, &text(argument, "`Deserialize`"))
            }
            Stage::Encoding => self.finish_text(Record::Unencodable, &text(result, "`Serialize`")),
            Stage::Calling => {
                let bytes = codec::encode_to_vec(&report).unwrap_or_default();
                self.finish_bytes(Record::Panicked, &bytes);
            }
        }
    }

    /// Writes a record and commits its item. Cuts a payload that is longer than an empty lane.
    fn finish_bytes(&mut self, kind: Record, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(LONGEST)];
        self.has_failures |= !matches!(kind, Record::Value | Record::Passed);
        self.close_record();
        if self.progress.bytes as usize + RECORD_HEAD + bytes.len() + TRAILER_RESERVE > CAPACITY {
            self.flush();
        }
        let start = self.progress.bytes as usize + RECORD_HEAD;
        self.lane.write(start, bytes);
        self.commit(kind, start + bytes.len());
    }

    /// Commits the item whose payload ends at `end`.
    #[inline]
    fn commit(&mut self, kind: Record, end: usize) {
        let at = self.progress.bytes as usize;
        self.lane.write(at, &kind.head(end - at - RECORD_HEAD));
        self.progress.bytes = end as u32;
        self.progress.items += 1;
        self.commit_item();
    }

    /// Commits the last finished item, and with the last item of a block the block's trailer.
    #[inline]
    fn commit_item(&mut self) {
        // The type's `Serialize` may have forked, too.
        fork_guard::exit_if_forked();
        if self.lane.unclaim_requested() {
            self.unclaim();
        }
        if self.claimed.is_empty() {
            self.close_record();
            return self.commit_block();
        }
        self.lane.commit(self.progress);
        self.stage = Stage::Between;
    }

    /// Commits a block's last item together with the time that the block took.
    pub(super) fn commit_block(&mut self) {
        // Output must be visible when the results are. If printing blocks, the delay counts for the
        // last item: it is no silence after it.
        let _ = std::io::stdout().flush();
        let now = now();
        let took = now.saturating_sub(self.block_start);
        if self.capture {
            self.write_u64(Record::Output, output_len());
        }
        self.write_u64(Record::Time, took);
        self.lane.commit(self.progress);
        self.stage = Stage::Between;
        if self.end_block(now, took) {
            self.last_reply = now;
            let sent = self.channels.reply(&Reply::Progress { sequence: self.sequence });
            self.error = self.error.take().or(sent.err());
        }
    }

    fn write_u64(&mut self, kind: Record, number: u64) {
        let at = self.progress.bytes as usize;
        self.lane.write(at, &kind.head(size_of::<u64>()));
        self.lane.write(at + RECORD_HEAD, &number.to_le_bytes());
        self.progress.bytes += TIME_RECORD as u32;
    }

    /// Blocks until the parent has consumed the committed results.
    fn flush(&mut self) {
        if self.progress.bytes == 0 || self.error.is_some() {
            return;
        }
        let resumed = self
            .channels
            .reply(&Reply::LaneFull { sequence: self.sequence })
            .and_then(|()| self.channels.recv())
            .and_then(|frame| match codec::decode::<Request>(&frame) {
                Ok(Request::Resume) => Ok(()),
                _ => Err(TransportError::Malformed("expected to be resumed".to_owned())),
            });
        self.error = resumed.err();
        self.progress.bytes = 0;
        self.last_reply = now();
        if self.stage == Stage::Between {
            self.block_start = self.last_reply;
        }
    }
}
