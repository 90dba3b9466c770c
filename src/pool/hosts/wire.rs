//! The messages between the manager and the agents.
//!
//! The first message of an agent says which build it is, and the manager answers no other. So all later
//! messages are between equal programs, and their encoding has no versions. What they say is checked all the
//! same: a message that makes no sense is the loss of its sender, never a panic.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use procpool_worker::codec;
#[cfg(feature = "sandbox")]
use procpool_worker::confinement::Confinement;
use procpool_worker::error::CodecError;
use procpool_worker::function::{FnRef, ImageId, PreloadRef};
use procpool_worker::note::{LogLevel, Progress};
use procpool_worker::protocol::split_item;
use serde::de::{DeserializeOwned, Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{DidRun, TaskErrorKind};
use crate::os::process::OutputMode;
use crate::pool::call::outcome::Failure;
use crate::pool::config::StartMethod;
use crate::pool::observe::events::EventKind;
use crate::pool::types::WorkerState;
use crate::self_describing::SelfDescribing;

/// The start of an agent's first message. It is not changed, so that any two builds can tell each other
/// apart.
const HELLO: &[u8] = b"procpool agent 1\n";

/// An agent introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The version of this crate, and the machine that it was built for.
    pub(crate) version: String,
    pub(crate) target: String,
    pub(crate) image: ImageId,
    pub(crate) host: String,
    /// Identifies the host's running system, independent of its name.
    pub(crate) boot: String,
    pub(crate) cpus: u32,
    pub(crate) memory: u64,
}

impl Hello {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let mut frame = HELLO.to_vec();
        frame.extend(codec::encode_to_vec(self)?);
        Ok(frame)
    }

    /// Reads an agent's first message. `None` if it is of another kind of program.
    pub(crate) fn decode(frame: &[u8]) -> Option<Self> {
        codec::decode(frame.strip_prefix(HELLO)?).ok()
    }

    /// Returns the build in words.
    pub(crate) fn build(&self) -> String {
        format!("procpool {} for {}, {}", self.version, self.target, self.image)
    }
}

/// A message of the manager.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToAgent {
    /// The agent belongs to the run.
    Welcome,
    /// The agent does not belong to the run.
    Reject { reason: String },
    /// A heartbeat.
    Beat,
    /// A pool begins.
    Open { run: u32, settings: Box<Settings> },
    /// Run items.
    Chunk { run: u32, chunk: Chunk },
    /// Return items that have not started.
    Steal { run: u32, items: u32 },
    /// Stop items.
    Cancel { run: u32, chunks: Vec<u64> },
    /// Keep the context of a call.
    Context { run: u32, id: u64, is_elements: bool, bytes: Blob },
    /// Drop contexts.
    DropContexts { run: u32, contexts: Vec<u64> },
    /// Stop or continue the workers.
    Suspend { run: u32, stop: bool },
    /// No more items follow; `kill` those that run.
    Close { run: u32, kill: bool },
    /// The program ends. `finalize` unless a host was lost.
    Bye { finalize: bool },
}

/// A message of an agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToManager {
    /// A heartbeat.
    Beat,
    /// A pool has workers, or can't have any.
    Opened { run: u32, error: Option<String> },
    /// Items have outcomes.
    Results { run: u32, results: Vec<ItemResults> },
    /// These items were given back, each with its next attempt.
    Stolen { run: u32, items: Vec<(ItemRange, u32)> },
    /// Events of the pool.
    Events { run: u32, events: Vec<SelfDescribing<EventKind>> },
    /// What a chunk's tasks said while they ran.
    Updates {
        run: u32,
        chunk: u64,
        values: Vec<ItemUpdate>,
        /// How many older values were dropped.
        dropped: u64,
        /// How far one of them is.
        progress: Option<(u64, Progress)>,
    },
    /// The workers of a pool.
    Workers { run: u32, workers: Vec<WorkerStatus> },
    /// A pool has ended.
    Closed { run: u32 },
    /// The agent leaves on request.
    Bye,
}

/// How a pool is built on each host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) host: String,
    /// The number of workers here, and the slot of the first.
    pub(crate) workers: u32,
    pub(crate) first_slot: u32,
    pub(crate) seed: u64,
    pub(crate) initializer: Option<InitializerCall>,
    pub(crate) start_method: StartMethod,
    /// The preload function and its encoded argument.
    pub(crate) preload: Option<(PreloadRef, Blob)>,
    pub(crate) start_timeout: Duration,
    pub(crate) env: Vec<(Blob, Blob)>,
    /// For each worker of a host.
    pub(crate) env_per_worker: Vec<Vec<(Blob, Blob)>>,
    pub(crate) current_dir: Option<Blob>,
    pub(crate) output: OutputMode,
    pub(crate) kill_grace: Duration,
    pub(crate) max_tasks: Option<u64>,
    pub(crate) max_memory: Option<u64>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) min_workers: u32,
    pub(crate) initial_workers: Option<u32>,
    pub(crate) limits: Vec<(u32, u64, u64)>,
    pub(crate) nice: i32,
    pub(crate) pin_cpus: bool,
    /// Whether the program observes events.
    pub(crate) is_observed: bool,
    /// The least urgent level of the log records that it wants.
    pub(crate) worker_logs: Option<LogLevel>,
    /// What workers may still do, and whether from after their initializer on.
    #[cfg(feature = "sandbox")]
    pub(crate) sandbox: Option<(Confinement, bool)>,
}

/// The call of an initializer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct InitializerCall {
    pub(crate) call: FnRef,
    pub(crate) argument: Blob,
    pub(crate) width: u32,
}

/// Consecutive items of one call.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Chunk {
    /// Identifies it among those of its run.
    pub(crate) id: u64,
    pub(crate) call: FnRef,
    /// The id of the first item, as the program knows it.
    pub(crate) first_id: u64,
    pub(crate) items: u32,
    pub(crate) attempt: u32,
    pub(crate) seed: u64,
    pub(crate) context: Option<u64>,
    /// The slot, as the pool of all hosts counts them, of the only worker that may run it.
    pub(crate) slot: Option<u32>,
    pub(crate) chunk_size: Option<u32>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retries: Option<u32>,
    pub(crate) label: Option<String>,
    /// Whether the caller waits for all results, and so for no single one.
    pub(crate) collects_all: bool,
    pub(crate) width: u32,
    /// Whether the arguments are the elements of one vector.
    pub(crate) is_elements: bool,
    pub(crate) arguments: Blob,
}

impl Chunk {
    /// Returns whether it is what it says, for a pool with these slots.
    pub(crate) fn is_sound(&self, slots: Range<usize>) -> bool {
        let is_bound_here = self.slot.is_none_or(|slot| slots.contains(&(slot as usize)));
        let (arguments, items) = (&self.arguments.0[..], self.items as usize);
        let has_arguments = match self.width as usize {
            _ if self.is_elements => items == 1,
            0 => {
                let mut rest = arguments;
                let mut has_next = || match split_item(rest, 0) {
                    Some((_, next)) => {
                        rest = next;
                        true
                    }
                    None => false,
                };
                (0..items).all(|_| has_next()) && rest.is_empty()
            }
            width => width.checked_mul(items) == Some(arguments.len()),
        };
        is_bound_here && items > 0 && has_arguments
    }
}

/// Some of a chunk's items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ItemRange {
    pub(crate) chunk: u64,
    /// Position of the first in the chunk.
    pub(crate) first: u64,
    pub(crate) items: u32,
}

/// Outcomes of consecutive items.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ItemResults {
    pub(crate) range: ItemRange,
    /// Slot and PID of the worker.
    pub(crate) worker: Option<(u32, u32)>,
    pub(crate) attempt: u32,
    /// How long they waited on the host.
    pub(crate) queued: Duration,
    pub(crate) content: ResultContent,
}

/// Outcomes, as [`Content`](crate::pool::call::outcome::Content).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ResultContent {
    Records {
        bytes: Blob,
        regions: Vec<Option<Blob>>,
        outputs: Vec<Blob>,
    },
    Failed {
        kind: TaskErrorKind,
        did_it_run: DidRun,
        elapsed: Duration,
        output: Blob,
        progress: Option<Progress>,
    },
}

impl From<Failure> for ResultContent {
    fn from(failure: Failure) -> Self {
        let Failure { kind, did_it_run, elapsed, output, progress } = failure;
        Self::Failed { kind, did_it_run, elapsed, output: Blob(output), progress }
    }
}

/// A value that an item has emitted.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ItemUpdate {
    /// The item's position in its chunk.
    pub(crate) item: u64,
    /// Slot and PID of the worker.
    pub(crate) worker: Option<(u32, u32)>,
    pub(crate) attempt: u32,
    pub(crate) type_name: String,
    pub(crate) bytes: Blob,
}

/// The state of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WorkerStatus {
    pub(crate) pid: u32,
    pub(crate) state: WorkerState,
    pub(crate) restarts: u64,
    pub(crate) memory: Option<u64>,
    pub(crate) cpu: Option<Duration>,
}

/// Encodes a message.
///
/// # Errors
///
/// When the message is nested too deeply, or memory is short.
pub(crate) fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, CodecError> {
    codec::encode_to_vec(message)
}

/// Decodes a message.
///
/// # Errors
///
/// If the bytes are no valid message.
pub(crate) fn decode<M: DeserializeOwned>(frame: &[u8]) -> Result<M, CodecError> {
    codec::decode(frame)
}

/// Bytes that are copied as a whole. serde takes those of a `Vec<u8>` one by one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Blob(pub(crate) Vec<u8>);

impl Blob {
    /// Returns the bytes of a path or a variable.
    pub(crate) fn of(text: impl AsRef<OsStr>) -> Self {
        Self(text.as_ref().as_bytes().to_vec())
    }

    /// Returns the path or variable.
    pub(crate) fn into_os(self) -> OsString {
        OsString::from_vec(self.0)
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Blob;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                let mut owned = Vec::new();
                owned.try_reserve_exact(bytes.len()).map_err(E::custom)?;
                owned.extend_from_slice(bytes);
                Ok(Blob(owned))
            }

            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes).map_err(D::Error::custom)
    }
}
