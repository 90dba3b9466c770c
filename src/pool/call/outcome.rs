//! Outcomes of items, as delivered and decoded.

use std::time::Duration;

use procpool_worker::note::Progress;
use procpool_worker::panics::PanicReport;
use procpool_worker::record::Record;
use procpool_worker::{bulk, codec};
use serde::de::DeserializeOwned;

use crate::error::{DidRun, TaskError, TaskErrorKind, ValueSide};
use crate::pool::call::contain::catch_deserialize;
use crate::pool::drive::parcel::Parcel;
use crate::pool::drive::records::{self, RawOutcome, Records};
use crate::pool::types::Report;
use crate::worker_ref::WorkerRef;

/// Outcomes of consecutive items, as delivered.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// Number of the first item.
    pub(crate) first: u64,
    pub(crate) items: u32,
    pub(crate) provenance: Provenance,
    pub(crate) content: Content,
}

/// Which worker and attempt an outcome is from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Provenance {
    pub(crate) worker: Option<WorkerRef>,
    pub(crate) attempt: u32,
    /// Time between queueing and sending to the worker.
    pub(crate) queued: Duration,
}

impl Provenance {
    /// No worker was involved.
    pub(crate) const NONE: Self = Self { worker: None, attempt: 0, queued: Duration::ZERO };
}

#[derive(Debug)]
pub(crate) enum Content {
    /// Records as the worker wrote them.
    Records(Records),
    /// Values that were written to the job's [`Destination`](crate::pool::drive::destination::Destination).
    Written,
    /// All items failed alike.
    Failed(Failure),
}

/// Why items failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) kind: TaskErrorKind,
    pub(crate) did_it_run: DidRun,
    pub(crate) elapsed: Duration,
    /// Captured output.
    pub(crate) output: Vec<u8>,
    /// How far it was, if it has said so.
    pub(crate) progress: Option<Progress>,
}

impl Failure {
    /// A failure of items that never started.
    pub(crate) fn unstarted(kind: TaskErrorKind) -> Self {
        let (elapsed, output) = (Duration::ZERO, Vec::new());
        Self { kind, did_it_run: DidRun::No, elapsed, output, progress: None }
    }
}

/// An item's outcome; see [`Report`].
#[derive(Debug)]
pub(crate) struct Outcome<R> {
    pub(crate) number: u64,
    pub(crate) elapsed: Duration,
    pub(crate) output: Vec<u8>,
    pub(crate) result: Result<R, TaskError>,
}

impl<R> Report<R> {
    pub(crate) fn new(outcome: Outcome<R>, provenance: Provenance, offset: u64) -> Self {
        Self {
            id: offset + outcome.number,
            worker: provenance.worker,
            attempt: provenance.attempt,
            queued: provenance.queued,
            elapsed: outcome.elapsed,
            output: outcome.output,
            result: outcome.result,
        }
    }
}

impl Delivery {
    /// Returns about how many bytes of memory it takes up. Regions and files take up more than memory, and count
    /// as more than there is.
    pub(crate) fn size(&self) -> usize {
        const MORE_THAN_MEMORY: usize = 1 << 40;
        size_of::<Self>()
            + match &self.content {
                Content::Records(records) => records.size().unwrap_or(MORE_THAN_MEMORY),
                Content::Failed(failure) => failure.output.len(),
                Content::Written => 0,
            }
    }

    /// Decodes the next item's outcome.
    pub(crate) fn next<R: DeserializeOwned>(&mut self, offset: u64) -> Option<Outcome<R>> {
        if self.items == 0 {
            return None;
        }
        let number = self.first;
        self.first += 1;
        self.items -= 1;
        let provenance = self.provenance;
        let fail = |kind, did_it_run| Self::error(offset, provenance, number, kind, did_it_run);
        let missing =
            |kind: TaskErrorKind| (Err(fail(kind, DidRun::Yes)), Duration::ZERO, Vec::new());
        let (result, elapsed, output) = match &mut self.content {
            Content::Failed(Failure { kind, did_it_run, elapsed, output, progress }) => {
                let error = fail(kind.clone(), *did_it_run).with_progress(*progress);
                (Err(error), *elapsed, std::mem::take(output))
            }
            Content::Records(records) => match records.next() {
                Some(mut raw) => {
                    let (elapsed, output) = (raw.elapsed, std::mem::take(&mut raw.output));
                    let result = decode(raw).map_err(|(kind, did_it_run)| fail(kind, did_it_run));
                    (result, elapsed, output)
                }
                // Unreachable: a delivery has one record per item.
                None => missing(decode_error("is missing".to_owned())),
            },
            // Unreachable: who sets a destination does not ask here.
            Content::Written => missing(decode_error("is elsewhere".to_owned())),
        };
        Some(Outcome { number, elapsed, output, result })
    }

    fn error(
        offset: u64,
        provenance: Provenance,
        number: u64,
        kind: TaskErrorKind,
        did_it_run: DidRun,
    ) -> TaskError {
        TaskError::new(kind, offset + number, provenance.worker, provenance.attempt, did_it_run)
    }
}

impl Delivery {
    /// Appends all values to `results`, up to the first failure.
    pub(crate) fn drain<R: DeserializeOwned>(
        mut self,
        offset: u64,
        results: &mut Vec<R>,
    ) -> Result<(), TaskError> {
        while self.items > 0 {
            let (number, provenance) = (self.first, self.provenance);
            let fail = |kind| Self::error(offset, provenance, number, kind, DidRun::Yes);
            if let Content::Records(records) = &mut self.content
                && let Some(drained) = records.drain_numbers(self.items, results)
            {
                let taken = drained.map_err(|error| fail(decode_error(error.to_string())))?;
                self.first += u64::from(taken);
                self.items -= taken;
            } else if let Some(outcome) = self.next(offset) {
                let result = outcome.result?;
                results.try_reserve(1).map_err(|_| {
                    fail(decode_error(format!("no memory for {} results", results.len() + 1)))
                })?;
                results.push(result);
            }
        }
        Ok(())
    }
}

fn decode_error(reason: String) -> TaskErrorKind {
    TaskErrorKind::Decode { side: ValueSide::Result, reason }
}

fn decode<R: DeserializeOwned>(mut raw: RawOutcome<'_>) -> Result<R, (TaskErrorKind, DidRun)> {
    let decoded = match (raw.kind, raw.parcel.take()) {
        (Record::Value, _) => catch_deserialize(|| codec::decode(raw.payload)),
        (Record::Passed, Some(Parcel::Arrived { region, files })) => {
            let Some((head, encoded)) = records::passed_result(raw.payload) else {
                return Err((decode_error("is missing".to_owned()), DidRun::Yes));
            };
            let is_raw = head.region.is_some_and(|(_, is_raw)| is_raw);
            files.decode(|| {
                catch_deserialize(|| match &region {
                    None => codec::decode(encoded),
                    // SAFETY: the region is mapped for its length for as long as it lives.
                    Some(region) if is_raw => unsafe {
                        bulk::from_raw_bytes(region.as_ptr(), region.len(), |_| ())
                    },
                    // SAFETY: as above.
                    Some(region) => unsafe { codec::decode_shared(region.as_ptr(), region.len()) },
                })
            })
        }
        (Record::Passed, Some(Parcel::Lost(why))) => {
            return Err((decode_error(why.to_owned()), DidRun::Yes));
        }
        // Other kinds never occur as single values.
        _ => {
            return Err(
                failure(raw).unwrap_or((decode_error("is missing".to_owned()), DidRun::Yes))
            );
        }
    };
    decoded.map_err(|reason| (decode_error(reason), DidRun::Yes))
}

/// Returns the failure, unless the outcome is a value.
pub(crate) fn failure(raw: RawOutcome<'_>) -> Option<(TaskErrorKind, DidRun)> {
    let text = || String::from_utf8_lossy(raw.payload).into_owned();
    Some(match raw.kind {
        Record::Value | Record::Primitives | Record::Passed | Record::Time | Record::Output => {
            return None;
        }
        Record::Panicked => {
            // A report that exceeded the lane is truncated and can't be decoded.
            let report = codec::decode(raw.payload).unwrap_or_else(|_| PanicReport {
                message: text(),
                location: None,
                backtrace: String::new(),
            });
            let PanicReport { message, location, backtrace } = report;
            (TaskErrorKind::Panicked { message, location, backtrace }, DidRun::Yes)
        }
        Record::Unencodable => {
            (TaskErrorKind::Encode { side: ValueSide::Result, reason: text() }, DidRun::Yes)
        }
        Record::Undecodable => {
            (TaskErrorKind::Decode { side: ValueSide::Argument, reason: text() }, DidRun::No)
        }
    })
}

/// Processes bytes from a worker in every way that the parent does: as a frame, and as lane content. Used for
/// fuzzing; a test of `records` runs the same seeds.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_hostile(bytes: &[u8]) {
    use std::collections::VecDeque;

    use procpool_worker::codec;
    use procpool_worker::protocol::Reply;

    let _ = codec::decode::<Reply>(bytes);
    let _ = (records::output_ends(bytes), records::passed_results(bytes));
    let Some(summary) = records::validate(bytes) else { return };
    let all = || Records::new(bytes.into(), VecDeque::new(), VecDeque::new());
    let mut rest = all();
    let mut front = rest.split_front(summary.items / 2);
    let count = |records: &mut Records| std::iter::from_fn(|| records.next().map(drop)).count();
    assert_eq!(count(&mut front) + count(&mut rest), summary.items as usize);
    let delivery = || {
        let content = Content::Records(all());
        Delivery { first: 0, items: summary.items, provenance: Provenance::NONE, content }
    };
    fn read<R: serde::de::DeserializeOwned>(mut delivery: Delivery, items: u32) {
        let count = std::iter::from_fn(|| delivery.next::<R>(0).map(drop)).count();
        assert_eq!(count, items as usize);
    }
    read::<u64>(delivery(), summary.items);
    read::<(String, Option<Vec<u8>>)>(delivery(), summary.items);
    read::<std::collections::BTreeMap<u8, Vec<char>>>(delivery(), summary.items);
    let _ = delivery().drain::<u16>(0, &mut Vec::new());
    let _ = delivery().drain::<f64>(0, &mut Vec::new());
    let _ = delivery().drain::<Vec<u32>>(0, &mut Vec::new());
}
