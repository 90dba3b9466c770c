//! Copies results that are numbers from the lane straight into the caller's vector.
//!
//! The lane is read in place, where a worker may be writing. Each head is read once, and what it says is checked
//! before it is used. The numbers themselves may be anything.

use std::ops::Range;

use procpool_worker::record::{RECORD_HEAD, Record, TIME_RECORD};

use super::chunk::Chunk;
use super::records::Summary;
use super::report::Reporter;

impl Chunk {
    /// Copies the committed results to the job's destination: those up to `bytes` bytes, of the first `items` items.
    /// Without `all`, only if their time is recorded; otherwise the summary is of no items. Returns `None` if they
    /// have to be read as records.
    pub(super) fn write_in_place(
        &self,
        bytes: usize,
        items: u32,
        all: bool,
        reporter: &Reporter<'_>,
    ) -> Option<Summary> {
        let job = &self.batches.front()?.job;
        let destination = job.destination()?;
        let is_one_job = self.batches.iter().all(|batch| std::sync::Arc::ptr_eq(&batch.job, job));
        if !is_one_job || reporter.is_observed || self.process.capture.is_some() {
            return None;
        }
        let width = destination.width();
        let (runs, summary) = self.runs(bytes, width)?;
        if summary.items != items - self.delivered {
            return None;
        }
        if !all && summary.timed < summary.items {
            return Some(Summary::default());
        }
        let mut places = self.batches.iter().map(|batch| (batch.first, batch.items));
        let (mut first, mut left) = (0, 0);
        for mut run in runs {
            while !run.is_empty() {
                if left == 0 {
                    (first, left) = places.next()?;
                }
                let count = left.min(u32::try_from(run.len() / width).unwrap_or(u32::MAX));
                let part = run.start..run.start + count as usize * width;
                run.start = part.end;
                // SAFETY: this chunk has these items, and its lock is held. The place has as many bytes as the part.
                let is_written = unsafe {
                    destination.write(first, count, |place| {
                        self.lane.copy_results_to(part, place);
                    })
                };
                if !is_written {
                    return None;
                }
                first += u64::from(count);
                left -= count;
            }
        }
        Some(summary)
    }

    /// Returns where the numbers lie that were not read. `None` if there is anything else, or a part of a number.
    fn runs(&self, bytes: usize, width: usize) -> Option<(Vec<Range<usize>>, Summary)> {
        let (mut runs, mut summary) = (Vec::new(), Summary::default());
        let mut at = self.read;
        while at < bytes {
            let (kind, len) = Record::parse(self.lane.peek::<RECORD_HEAD>(at)?)?;
            let start = at + RECORD_HEAD;
            match kind {
                Record::Primitives => {
                    let [written] = self.lane.peek::<1>(start)?;
                    // If the worker died within a run, the rest of it is missing.
                    let end = start.checked_add(len)?.min(bytes);
                    let run = start + 1..end;
                    let is_whole = usize::from(written) == width && run.len().is_multiple_of(width);
                    if !is_whole || run.is_empty() {
                        return None;
                    }
                    let count = u32::try_from(run.len() / width).ok()?;
                    summary.items = summary.items.checked_add(count)?;
                    at = end;
                    runs.push(run);
                }
                Record::Time if start + TIME_RECORD - RECORD_HEAD <= bytes => {
                    let nanos = u64::from_le_bytes(self.lane.peek(start)?);
                    summary.nanos = summary.nanos.saturating_add(nanos);
                    summary.timed = summary.items;
                    at = start + TIME_RECORD - RECORD_HEAD;
                }
                _ => return None,
            }
        }
        summary.answers = summary.items;
        Some((runs, summary))
    }
}
