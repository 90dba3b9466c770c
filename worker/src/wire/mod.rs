//! What parent and worker say to each other, from values to packets.

pub mod attach;
#[allow(unsafe_code)] // Moves primitives as the bytes that they are.
pub mod bulk;
#[allow(unsafe_code)] // Decodes from memory that another process may be writing.
pub mod codec;
#[cfg(feature = "sandbox")]
pub mod confinement;
pub mod control;
pub mod depth;
pub mod error;
mod format;
#[allow(unsafe_code)] // Reads the image's headers.
pub mod function;
pub mod note;
pub mod passed;
pub mod protocol;
pub mod template;
#[allow(unsafe_code)] // Takes over the descriptors of ipc-channel's sockets.
pub mod transport;
