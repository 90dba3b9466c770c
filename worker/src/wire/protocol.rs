//! The frames between parent and worker, and the token that makes a process a worker.
//!
//! Parent and worker speak in lockstep: the parent sends one [`Request`] and waits for the [`Reply`] that
//! ends it. Any number of [`Reply::Progress`] and [`Reply::Note`] may come before, because the parent is reading. Lockstep
//! can't deadlock, and one frame in flight never fills a socket's buffer.
//!
//! A chunk's frame is self-contained: a [`Request::Chunk`], then for each span a [`Span`] and its
//! arguments. An argument is a length and the encoded bytes, or only the bytes of a primitive. Only the
//! items' [context](Request::Context), if they have one, was sent before. Bytes that exceed one frame lie
//! in a region instead, which was sent just before, or earlier and cached.

use serde::{Deserialize, Serialize};

use crate::wire::attach::{Attachments, FileId};
#[cfg(feature = "sandbox")]
use crate::wire::confinement::Confinement;
use crate::wire::error::CodecError;
use crate::wire::function::{FnRef, ImageId};
use crate::wire::note::LogLevel;
use crate::wire::{bulk, codec};

/// The version of the protocol. It changes with every change of this file.
pub const VERSION: u32 = 6;

/// The start of the first argument on a worker's command line, before the worker's title. The second
/// argument is its [`SpawnToken`].
pub const TITLE: &str = "--procpool-worker=";

/// Tells a worker which start it belongs to. It is on the command line, which the processes that a task
/// starts don't inherit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpawnToken {
    /// Distinguishes this start from all others, and starts each packet on the control socket.
    pub nonce: u64,
    /// The parent's PID.
    pub parent: u32,
    /// Whether the process is a [template](crate::wire::template), not a worker.
    pub is_template: bool,
}

impl SpawnToken {
    /// Formats the token for the command line.
    pub fn to_arg(self) -> String {
        let kind = if self.is_template { ":template" } else { "" };
        format!("{VERSION}:{:016x}:{}{kind}", self.nonce, self.parent)
    }

    /// Parses the token from the command line.
    pub fn from_arg(value: &str) -> Option<Self> {
        let mut parts = value.splitn(4, ':');
        let version: u32 = parts.next()?.parse().ok()?;
        let nonce = u64::from_str_radix(parts.next()?, 16).ok()?;
        let parent = parts.next()?.parse().ok()?;
        let is_template = match parts.next() {
            None => false,
            Some("template") => true,
            Some(_) => return None,
        };
        (version == VERSION).then_some(Self { nonce, parent, is_template })
    }
}

/// What a worker reports about itself in the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshake {
    /// The worker's [`VERSION`].
    pub version: u32,
    /// The image that the worker runs.
    pub identity: ImageId,
    /// The worker's PID, as it sees itself.
    pub pid: u32,
}

/// A packet that the parent passes on the control socket.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Passed {
    /// The first packet, with the liveness pipe, the lane, and the receiver of the parent's frames.
    Start,
    /// A region that the next frame refers to.
    Region,
    /// The files that the arguments in the next frame refer to, one descriptor each.
    Attached(Vec<FileId>),
}

/// The most [`FileId`]s, and descriptors, in one packet.
pub const MAX_ATTACHED: usize = 200;

/// The most files that one result, or one message of a channel, may refer to. A parent has to hold as many
/// descriptors for a result that nobody has taken yet.
pub const MAX_FILES: usize = MAX_ATTACHED;

/// How a chunk is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkOptions {
    /// Distinguishes this chunk from the worker's others.
    pub sequence: u32,
    /// Whether each item has a time limit, so that it must be claimed and timed alone.
    pub limited: bool,
    /// Whether the caller waits for single results.
    pub prompt: bool,
    /// The items' context, if they have one.
    pub context: Option<u64>,
}

/// A request of the parent.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first request: the worker's settings. Has no reply.
    Setup(Setup),
    /// Runs a chunk. The body is spans, each a [head](Span::head) and arguments. It follows the request in
    /// the frame, or lies in a region.
    Chunk {
        /// How many packets with [attached](Passed::Attached) descriptors were sent before it.
        attached: u32,
        /// Where the body is.
        body: Body,
        /// How the chunk is run.
        options: ChunkOptions,
    },
    /// Keeps a call's context, which is sent as a chunk's body would be. Has no reply.
    Context {
        /// Distinguishes this context from others.
        id: u64,
        /// How many packets with [attached](Passed::Attached) descriptors were sent before it.
        attached: u32,
        /// Where the context is.
        body: Body,
    },
    /// Drops the contexts of calls that have ended. Has no reply.
    DropContexts {
        /// The ids of the contexts.
        contexts: Vec<u64>,
    },
    /// Continues after a [`Reply::LaneFull`]: the results are consumed.
    Resume,
    /// Updates the cached regions. Sent before a [`Request::Chunk`]. Has no reply.
    Regions {
        /// Regions for arguments that will not be used again.
        gone: Vec<u32>,
        /// Regions for results that will not be used again.
        results_gone: Vec<u32>,
        /// Regions for results whose content is consumed.
        results_free: Vec<u32>,
    },
    /// Confines the worker. Answered by [`Reply::Confined`].
    #[cfg(feature = "sandbox")]
    Confine(Confinement),
}

/// Bytes at the start of a region. The parent numbers regions for arguments, the worker those for
/// results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionSlice {
    /// The region's number.
    pub number: u32,
    /// How many bytes.
    pub len: u64,
    /// Whether the region was sent just before, instead of earlier.
    pub is_new: bool,
    /// Whether the region will be used again.
    pub is_cached: bool,
}

/// The start of the record of a result of which a part was passed on the control socket. The encoded
/// result follows, unless a region holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedResult {
    /// The region that holds the result, and whether it holds the value's
    /// [raw bytes](crate::wire::bulk::as_raw_bytes) instead of its encoding.
    pub region: Option<(RegionSlice, bool)>,
    /// The number of the [`Reply::Attached`] with the files that the result refers to, if there are any.
    pub attached: Option<u32>,
}

/// Where a chunk's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// In the frame, after the request.
    Frame,
    /// In a region.
    Region(RegionSlice),
    /// A span of one item in the frame, whose argument's
    /// [raw bytes](crate::wire::bulk::as_raw_bytes) are in a region, as far as the
    /// [lane](crate::shm::lane::Words::set_argument) says.
    RawBytes(RegionSlice),
}

/// The settings of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The process's name, as `ps` and `top` show it.
    pub name: String,
    /// The name of its pool.
    pub pool: String,
    /// Its slot in the pool, from 0.
    pub slot: u32,
    /// Its host, if the pool spans several.
    pub host: Option<String>,
    /// Resources, numbered as by setrlimit, each with its soft and its hard limit.
    pub limits: Vec<(u32, u64, u64)>,
    /// The increment of the nice value.
    pub nice: i32,
    /// The CPU to which the worker is pinned.
    pub cpu: Option<u32>,
    /// Whether standard output and standard error are a capture file, whose length is recorded after each
    /// item.
    pub capture: bool,
    /// The least urgent level of log records that are sent; `None` for no records.
    pub logs: Option<LogLevel>,
    /// Whether the parent reads notes while a task runs.
    pub has_outbox: bool,
}

/// A reply of the worker, in a packet on the control socket.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The first reply.
    Handshake(Handshake),
    /// Passes a region that a result which is not committed yet refers to.
    Region {
        /// The region's number, assigned by the worker.
        number: u32,
    },
    /// Passes the files that a result which is not committed yet refers to, one descriptor each.
    Attached {
        /// The number that the worker has given to this reply. The next one replaces it.
        number: u32,
        /// At most [`MAX_FILES`].
        files: Vec<FileId>,
    },
    /// Ends a [`Request::Chunk`] or [`Request::Resume`]: no unclaimed items are left, and all claimed items
    /// are committed.
    Done {
        /// The chunk.
        sequence: u32,
    },
    /// The lane is full. The parent must consume the results and send [`Request::Resume`].
    LaneFull {
        /// The chunk.
        sequence: u32,
    },
    /// Results were committed. The worker does not wait for a request.
    Progress {
        /// The chunk.
        sequence: u32,
    },
    /// A part of a [note](crate::wire::note), which follows the reply in the packet. The worker does not wait.
    Note {
        /// The chunk that was running, or ran last.
        sequence: u32,
        /// The item that was running, counted from 1 in the chunk; 0 if none was.
        item: u32,
        /// Whether this is the note's first part. What was sent of an earlier one is void then.
        is_first: bool,
        /// Whether this is the note's last part.
        is_last: bool,
    },
    /// The worker is confined; or why not.
    #[cfg(feature = "sandbox")]
    Confined(Result<(), String>),
}

/// A span's head. A span is the items of a chunk that call one function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The function to call.
    pub function: FnRef,
    /// How many items.
    pub items: u32,
    /// Bytes per argument; 0 where each has its length before it.
    pub width: u32,
    /// Bytes of all arguments.
    pub bytes: u64,
    /// The first item's state in the random streams; see [`seed`](crate::run::seed).
    pub seed: u64,
    /// The attempt number of all items, from 1.
    pub attempt: u32,
}

/// Length of a span's head in bytes.
pub const SPAN_HEAD: usize = 44;

/// Length in bytes of an argument's own length.
pub const ITEM_HEAD: usize = size_of::<u32>();

impl Span {
    /// Returns the head as it stands in a chunk's body, before the arguments.
    pub fn head(&self) -> [u8; SPAN_HEAD] {
        let mut head = [0; SPAN_HEAD];
        head[..8].copy_from_slice(&self.function.function.to_le_bytes());
        head[8..16].copy_from_slice(&self.function.trampoline.to_le_bytes());
        head[16..20].copy_from_slice(&self.items.to_le_bytes());
        head[20..24].copy_from_slice(&self.width.to_le_bytes());
        head[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        head[32..40].copy_from_slice(&self.seed.to_le_bytes());
        head[40..].copy_from_slice(&self.attempt.to_le_bytes());
        head
    }
}

/// Returns the bytes per argument of type `A` in a span; 0 where each has its length before it.
#[inline(always)]
pub fn item_width<A>() -> u32 {
    bulk::fixed_width::<A>().unwrap_or(0) as u32
}

/// Appends one argument to a span's arguments, and the files it refers to to `attachments`.
///
/// # Errors
///
/// When it can't be encoded or is longer than 4 GiB. `arguments` is unchanged then.
#[inline]
pub fn encode_item<A: Serialize>(
    arguments: &mut Vec<u8>,
    attachments: &mut Attachments,
    argument: &A,
) -> Result<(), CodecError> {
    if item_width::<A>() > 0 {
        return codec::encode(argument, arguments);
    }
    let start = arguments.len();
    arguments.extend_from_slice(&[0; ITEM_HEAD]);
    let outcome = codec::encode_attached(argument, arguments, attachments).and_then(|()| {
        let len = arguments.len() - start - ITEM_HEAD;
        u32::try_from(len).map_err(|_| CodecError {
            type_name: std::any::type_name::<A>(),
            reason: format!("{len} bytes encoded; one argument may take up to {} bytes", u32::MAX),
        })
    });
    match outcome {
        Ok(len) => arguments[start..start + ITEM_HEAD].copy_from_slice(&len.to_le_bytes()),
        Err(_) => arguments.truncate(start),
    }
    outcome.map(drop)
}

/// Splits the first span's head off a body.
pub fn split_span(body: &[u8]) -> Option<(Span, &[u8])> {
    let (head, rest) = body.split_at_checked(SPAN_HEAD)?;
    let word = |at: usize| head[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let function = FnRef { function: word(0)?, trampoline: word(8)? };
    let half = |at: usize| head[at..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let (items, width, attempt) = (half(16)?, half(20)?, half(40)?);
    let (bytes, seed) = (word(24)?, word(32)?);
    let fits = usize::try_from(bytes).ok()? <= rest.len();
    fits.then_some((Span { function, items, width, bytes, seed, attempt }, rest))
}

/// Splits the first argument off a span's arguments.
#[inline]
pub fn split_item(arguments: &[u8], width: u32) -> Option<(&[u8], &[u8])> {
    if width > 0 {
        return arguments.split_at_checked(width as usize);
    }
    let (head, rest) = arguments.split_first_chunk::<ITEM_HEAD>()?;
    rest.split_at_checked(u32::from_le_bytes(*head) as usize)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_is_read_as_it_was_written() {
        for is_template in [false, true] {
            let token = SpawnToken { nonce: 7, parent: 42, is_template };
            assert_eq!(SpawnToken::from_arg(&token.to_arg()), Some(token));
        }
        assert_eq!(SpawnToken::from_arg("0:7:42"), None);
        assert_eq!(SpawnToken::from_arg(""), None);
    }

    proptest! {
        #[test]
        fn a_body_is_read_as_it_was_written(spans in prop::collection::vec(any::<(u64, u64, Vec<String>)>(), 0..4)) {
            let mut body = Vec::new();
            for (function, trampoline, items) in &spans {
                let mut arguments = Vec::new();
                for item in items {
                    encode_item(&mut arguments, &mut Attachments::default(), item).unwrap();
                }
                let reference = FnRef { function: *function, trampoline: *trampoline };
                let (items, bytes) = (items.len() as u32, arguments.len() as u64);
                let (seed, attempt) = (*function, *trampoline as u32);
                let span = Span { function: reference, items, width: 0, bytes, seed, attempt };
                body.extend_from_slice(&span.head());
                body.extend_from_slice(&arguments);
            }
            let mut body = &body[..];
            for (function, trampoline, items) in &spans {
                let (span, rest) = split_span(body).unwrap();
                prop_assert_eq!(span.function, FnRef { function: *function, trampoline: *trampoline });
                prop_assert_eq!((span.items as usize, span.seed), (items.len(), *function));
                prop_assert_eq!(span.attempt, *trampoline as u32);
                let (mut arguments, rest) = rest.split_at(span.bytes as usize);
                for item in items {
                    let (argument, rest) = split_item(arguments, 0).unwrap();
                    prop_assert_eq!(&codec::decode::<String>(argument).unwrap(), item);
                    arguments = rest;
                }
                prop_assert!(arguments.is_empty());
                body = rest;
            }
            prop_assert!(body.is_empty());
        }

        #[test]
        fn hostile_frames_are_refused_and_harmless(frame in any::<Vec<u8>>()) {
            let _ = codec::decode::<Reply>(&frame);
            let _ = codec::decode_prefix::<Request>(&frame);
            if let Some((span, rest)) = split_span(&frame) {
                prop_assert!(span.bytes as usize <= rest.len());
            }
            if let Some((item, rest)) = split_item(&frame, 0) {
                prop_assert_eq!(item.len() + rest.len() + ITEM_HEAD, frame.len());
            }
        }
    }
}
