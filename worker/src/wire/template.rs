//! The packets between a pool's supervisor and its template process, on the template's control socket.
//!
//! The template's first packet is a [`TemplateReply::Handshake`]. A [`TemplateRequest::Preload`] follows, and
//! then any number of forks. Replies come in the order of the requests.

use serde::{Deserialize, Serialize};

use crate::wire::attach::FileId;
use crate::wire::control::MAX_PACKET;
use crate::wire::function::PreloadRef;
use crate::wire::protocol::Handshake;

/// A request of the supervisor. The first packet, before the handshake, passes the liveness pipe instead.
#[derive(Debug, Serialize, Deserialize)]
pub enum TemplateRequest {
    /// Files that the preload function's argument refers to, one descriptor each.
    Attached(Vec<FileId>),
    /// Runs the preload function, and replies [`TemplateReply::Preloaded`].
    Preload {
        /// The function; `None` where the pool has none. Its encoded argument is in a region, which is passed.
        call: Option<PreloadRef>,
        /// Bytes of the argument.
        len: u64,
    },
    /// Forks a worker, and replies [`TemplateReply::Forked`]. Passes the worker's end of its control socket
    /// and, where output is captured, the capture file.
    Fork {
        /// The nonce of the worker's control socket.
        nonce: u64,
        /// The worker's title.
        title: String,
        /// Variables that are set in the worker's environment.
        env: Vec<(Vec<u8>, Vec<u8>)>,
    },
}

/// The most bytes that the title and the variables of a [`TemplateRequest::Fork`] may take.
pub const MAX_FORK: usize = MAX_PACKET - 256;

/// A reply of the template.
#[derive(Debug, Serialize, Deserialize)]
pub enum TemplateReply {
    /// The first reply.
    Handshake(Handshake),
    /// The preload function has returned, or why it can't be used.
    Preloaded(Result<(), String>),
    /// A worker was forked.
    Forked {
        /// The nonce of the request.
        nonce: u64,
        /// The worker's PID, or the error's number.
        pid: Result<u32, i32>,
    },
}
