//! serde's data model over bincode 2, byte for byte like bincode's own serde layer, but with limits that
//! the latter lacks: on nesting, and on the number of elements that take no bytes.
//!
//! Integers have a fixed width. A task's arguments are mostly small, and branching on a length costs more
//! time than the saved bytes. It also makes numbers and `Vec`s of them
//! [equal to their memory](crate::wire::bulk).
//!
//! Decoding trusts nothing. A length that exceeds the input is refused before memory is allocated, a
//! refused allocation is an error, and both nesting ([`depth`](crate::wire::depth)) and
//! [elements that take no bytes](error::MAX_EMPTY) are limited.

mod config;
mod decode;
mod encode;
mod error;

pub(crate) use self::decode::Decoder;
pub(crate) use self::encode::Encoder;
