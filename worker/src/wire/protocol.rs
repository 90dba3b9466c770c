//! The frames that travel between parent and worker, and the token that makes a process a worker.
//!
//! Parent and worker speak in lockstep: the parent sends one [`Request`] and waits for the [`Reply`]
//! that ends it ([`Reply::Progress`] may come before, as often as the worker likes, since the parent
//! is reading). Lockstep can't deadlock, and one frame in flight never fills a socket's buffer.
//!
//! A chunk's frame is self-contained: a [`Request::Chunk`], then for each span a [`Span`] and its
//! arguments, each of them a length and the encoded bytes, or, for plain numbers, the bare bytes.
//! Only what its items [share](Request::Context), if they do, has been sent before.
//! Where that would be more than one frame carries, the same bytes lie in a region which was sent
//! just before, or earlier and kept.

use serde::{Deserialize, Serialize};

use crate::attach::{Attachments, FileId};
use crate::codec;
use crate::function::{Call, Identity};
use crate::plain;

/// Changes with every change of what is said here.
pub const VERSION: u32 = 3;

/// What begins the first argument of a worker's command line; its title follows. The second one is
/// its [`Token`].
pub const TITLE: &str = "--procpool-worker=";

/// Tells a worker who has started it. It stands on the command line, which nothing that a task starts
/// inherits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Tells this start from all others, and begins each packet on the control socket.
    pub nonce: u64,
    /// The parent's PID.
    pub parent: u32,
}

impl Token {
    /// Returns it as it stands on the command line.
    pub fn to_arg(self) -> String {
        format!("{VERSION}:{:016x}:{}", self.nonce, self.parent)
    }

    /// Reads it from the command line.
    pub fn from_arg(value: &str) -> Option<Self> {
        let mut parts = value.splitn(3, ':');
        let version: u32 = parts.next()?.parse().ok()?;
        let nonce = u64::from_str_radix(parts.next()?, 16).ok()?;
        let parent = parts.next()?.parse().ok()?;
        (version == VERSION).then_some(Self { nonce, parent })
    }
}

/// The handshake's facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// [`VERSION`] of the worker.
    pub version: u32,
    /// The image that it runs.
    pub identity: Identity,
    /// Its own PID.
    pub pid: u32,
}

/// What the parent passes on the control socket.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Passed {
    /// The first: the liveness pipe, the lane, and the receiver of the parent's frames.
    Start,
    /// A region that the next frame speaks of.
    Region,
    /// What the arguments in the next frame point to, one descriptor each.
    Attached(Vec<FileId>),
}

/// How many [`FileId`]s one packet has room for, and descriptors.
pub const MAX_ATTACHED: usize = 200;

/// How a chunk is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manner {
    /// Tells this chunk from the worker's others.
    pub sequence: u32,
    /// Whether each item has a time limit, so that each must be claimed and timed by itself.
    pub limited: bool,
    /// Whether somebody waits for single results.
    pub prompt: bool,
    /// The context that its items share, if they do.
    pub context: Option<u64>,
}

/// What the parent asks.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first, without a reply: who the worker is.
    Setup(Setup),
    /// Run a chunk; what follows the request in the frame (or lies in the region that was sent
    /// before) is its body: spans, each a [head](Span::head) and arguments.
    Chunk {
        /// How many packets with [attached](Passed::Attached) descriptors were sent before it.
        attached: u32,
        /// Where its body is.
        body: Body,
        /// How it is to be run.
        manner: Manner,
    },
    /// Keep what the items of a call share; it is where a chunk's body would be. Without a reply.
    Context {
        /// Tells it from others.
        id: u64,
        /// How many packets with [attached](Passed::Attached) descriptors were sent before it.
        attached: u32,
        /// Where it is.
        body: Body,
    },
    /// Calls are over: drop what was kept for them. Without a reply.
    Forget {
        /// The ids of what was kept.
        contexts: Vec<u64>,
    },
    /// After a [`Reply::Yield`]: what was in the lane has been taken out; go on.
    Resume,
    /// Before a [`Request::Chunk`], and without a reply: what has become of kept regions.
    Regions {
        /// Of those for arguments, those that won't be spoken of again.
        gone: Vec<u32>,
        /// The same of those for results.
        results_gone: Vec<u32>,
        /// Those for results whose content has been taken.
        results_free: Vec<u32>,
    },
}

/// Bytes in a region. Those for arguments are numbered by the parent, those for results by the
/// worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Of the region.
    pub number: u32,
    /// How many bytes, from the region's start.
    pub len: u64,
    /// Whether the region was sent just before; if not, it was earlier.
    pub is_new: bool,
    /// Whether it will be spoken of again.
    pub is_kept: bool,
}

/// Where a chunk's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// In the frame, after the request.
    Frame,
    /// In a region.
    Region(Place),
    /// A span of one item in the frame, the argument's [elements](crate::plain::elements) in a region.
    Elements(Place),
}

/// Who a worker is, and what it is to do to itself before it begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Shown by `ps` and `top` as the process's name.
    pub name: String,
    /// Resources (numbered as by setrlimit) and how much of each it may use, softly and at most.
    pub limits: Vec<(u32, u64, u64)>,
    /// What is added to its niceness.
    pub nice: i32,
    /// The CPU that it is to keep to.
    pub cpu: Option<u32>,
    /// Whether standard output and standard error are a file whose growth is to be told of item by
    /// item.
    pub capture: bool,
}

/// What the worker answers, each in a packet on the control socket.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The first: who it is.
    Greeting(Greeting),
    /// A region that a result which is not committed yet speaks of; its descriptor comes with it.
    Region {
        /// The number that the worker has given it.
        number: u32,
    },
    /// To [`Request::Chunk`] or [`Request::Resume`]: nothing is left in the claim, all that was
    /// claimed is committed.
    Done {
        /// Of the chunk.
        sequence: u32,
    },
    /// The lane is full: take out what is committed, then send [`Request::Resume`].
    Yield {
        /// Of the chunk.
        sequence: u32,
    },
    /// More has been committed; nothing is waited for.
    Progress {
        /// Of the chunk.
        sequence: u32,
    },
}

/// The head of a span: items of one chunk that are calls of one function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// What to call.
    pub call: Call,
    /// How many items.
    pub items: u32,
    /// How many bytes each argument takes; 0 where each has its length before it.
    pub width: u32,
    /// How many bytes their arguments take.
    pub bytes: u64,
    /// The first item's state among those of [`seed`](crate::seed).
    pub seed: u64,
}

/// Length of a span's head in bytes.
pub const SPAN_HEAD: usize = 40;

/// Length in bytes of what stands before each argument.
pub const ITEM_HEAD: usize = size_of::<u32>();

impl Span {
    /// The head as it stands in a chunk's body, before the arguments as [`put_item`] has put them.
    pub fn head(&self) -> [u8; SPAN_HEAD] {
        let mut head = [0; SPAN_HEAD];
        head[..8].copy_from_slice(&self.call.function.to_le_bytes());
        head[8..16].copy_from_slice(&self.call.trampoline.to_le_bytes());
        head[16..20].copy_from_slice(&self.items.to_le_bytes());
        head[20..24].copy_from_slice(&self.width.to_le_bytes());
        head[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        head[32..].copy_from_slice(&self.seed.to_le_bytes());
        head
    }
}

/// How many bytes each argument of type `A` takes in a span; 0 where each has its length before it.
#[inline(always)]
pub fn item_width<A>() -> u32 {
    plain::width::<A>().unwrap_or(0) as u32
}

/// Appends one argument to a span's arguments, and what it points to to `attachments`.
///
/// # Errors
///
/// When it can't be encoded or is longer than 4 GiB; `arguments` is then as it was.
#[inline]
pub fn put_item<A: Serialize>(
    arguments: &mut Vec<u8>,
    attachments: &mut Attachments,
    argument: &A,
) -> Result<(), codec::CodecError> {
    if item_width::<A>() > 0 {
        return codec::encode(argument, arguments);
    }
    let start = arguments.len();
    arguments.extend_from_slice(&[0; ITEM_HEAD]);
    let outcome = attachments.collect(|| codec::encode(argument, arguments)).and_then(|()| {
        let len = arguments.len() - start - ITEM_HEAD;
        u32::try_from(len).map_err(|_| codec::CodecError {
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
pub fn take_span(body: &[u8]) -> Option<(Span, &[u8])> {
    let (head, rest) = body.split_at_checked(SPAN_HEAD)?;
    let word = |at: usize| head[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let call = Call { function: word(0)?, trampoline: word(8)? };
    let items = u32::from_le_bytes(*head[16..].first_chunk()?);
    let width = u32::from_le_bytes(*head[20..].first_chunk()?);
    let (bytes, seed) = (word(24)?, word(32)?);
    let fits = usize::try_from(bytes).ok()? <= rest.len();
    fits.then_some((Span { call, items, width, bytes, seed }, rest))
}

/// Splits the first argument off a span's arguments.
#[inline]
pub fn take_item(arguments: &[u8], width: u32) -> Option<(&[u8], &[u8])> {
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
        let token = Token { nonce: 7, parent: 42 };
        assert_eq!(Token::from_arg(&token.to_arg()), Some(token));
        assert_eq!(Token::from_arg("0:7:42"), None);
        assert_eq!(Token::from_arg(""), None);
    }

    proptest! {
        #[test]
        fn a_body_is_read_as_it_was_written(spans in prop::collection::vec(any::<(u64, u64, Vec<String>)>(), 0..4)) {
            let mut body = Vec::new();
            for (function, trampoline, items) in &spans {
                let mut arguments = Vec::new();
                for item in items {
                    put_item(&mut arguments, &mut Attachments::default(), item).unwrap();
                }
                let call = Call { function: *function, trampoline: *trampoline };
                let (items, bytes) = (items.len() as u32, arguments.len() as u64);
                let span = Span { call, items, width: 0, bytes, seed: *function };
                body.extend_from_slice(&span.head());
                body.extend_from_slice(&arguments);
            }
            let mut body = &body[..];
            for (function, trampoline, items) in &spans {
                let (span, rest) = take_span(body).unwrap();
                prop_assert_eq!(span.call, Call { function: *function, trampoline: *trampoline });
                prop_assert_eq!((span.items as usize, span.seed), (items.len(), *function));
                let (mut arguments, rest) = rest.split_at(span.bytes as usize);
                for item in items {
                    let (argument, rest) = take_item(arguments, 0).unwrap();
                    prop_assert_eq!(&codec::decode::<String>(argument).unwrap(), item);
                    arguments = rest;
                }
                prop_assert!(arguments.is_empty());
                body = rest;
            }
            prop_assert!(body.is_empty());
        }

        #[test]
        fn hostile_frames_are_refused_and_no_harm(frame in any::<Vec<u8>>()) {
            let _ = codec::decode::<Reply>(&frame);
            let _ = codec::decode_prefix::<Request>(&frame);
            if let Some((span, rest)) = take_span(&frame) {
                prop_assert!(span.bytes as usize <= rest.len());
            }
            if let Some((item, rest)) = take_item(&frame, 0) {
                prop_assert_eq!(item.len() + rest.len() + ITEM_HEAD, frame.len());
            }
        }
    }
}
