//! Values to bytes and back: the only file that knows bincode.
//!
//! The format is bincode 2 with fixed-width little-endian integers. Fixed width, because a task's
//! arguments are mostly small and the time to branch on a length costs more than the bytes saved;
//! it also makes the format of plain numbers, `Vec`s of them, byte strings and `String`s equal to
//! their memory on a little-endian machine, so that those are moved in bulk without a
//! second format existing: bincode would write and read the very same bytes, only one element at a
//! time (about 8 ns each).
//!
//! Decoding trusts nothing: a length that the input cannot hold is refused before memory is asked
//! for, and bytes left over are an error.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{copy, plain};

/// Where encoded bytes go.
pub trait Sink {
    /// Appends `bytes`.
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        copy::append(self, bytes);
    }
}

/// Why a value could not be encoded or decoded; names its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{type_name}`: {reason}")]
pub struct CodecError {
    /// The type as rustc prints it.
    pub type_name: &'static str,
    /// What was wrong with it.
    pub reason: String,
}

impl CodecError {
    pub(crate) fn new<T: ?Sized>(reason: impl ToString) -> Self {
        Self { type_name: std::any::type_name::<T>(), reason: reason.to_string() }
    }
}

/// Appends the encoding of `value` to `sink`.
///
/// # Errors
///
/// When the value's own `Serialize` refuses. The sink may hold part of the value then.
#[inline]
pub fn encode<T: Serialize>(value: &T, sink: &mut impl Sink) -> Result<(), CodecError> {
    if plain::put(value, sink) {
        return Ok(());
    }
    bincode::serde::encode_into_writer(value, Writer(sink), config::<0>().with_no_limit())
        .map_err(|error| CodecError::new::<T>(error))
}

/// The encoding of `value` in a new vector.
///
/// # Errors
///
/// As [`encode`].
pub fn encode_to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::new();
    encode(value, &mut bytes)?;
    Ok(bytes)
}

/// Reads a value that takes up all of `bytes`.
///
/// # Errors
///
/// When the bytes are not such a value, claim more than they hold, or something is left over.
#[inline]
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    // SAFETY: a slice is valid for its length.
    if let Some(value) = unsafe { plain::take(bytes.as_ptr(), bytes.len()) } {
        return value;
    }
    let (value, rest) = decode_prefix(bytes)?;
    match rest.len() {
        0 => Ok(value),
        n => Err(CodecError::new::<T>(format_args!("{n} bytes left over after the value"))),
    }
}

/// Reads a value from the front of `bytes` and gives what follows it.
///
/// # Errors
///
/// When the front of `bytes` is not such a value.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), CodecError> {
    // bincode takes its limit as a constant and checks it before it allocates, so the next of a
    // few steps above the input's length bounds what a poisoned length can make it ask for.
    const SMALL: usize = 64 << 10;
    const MEDIUM: usize = 16 << 20;
    const LARGE: usize = 4 << 30;
    let decoded = match bytes.len() {
        n if n <= SMALL => bincode::serde::decode_from_slice(bytes, config::<{ 2 * SMALL }>()),
        n if n <= MEDIUM => bincode::serde::decode_from_slice(bytes, config::<{ 2 * MEDIUM }>()),
        n if n <= LARGE => bincode::serde::decode_from_slice(bytes, config::<{ 2 * LARGE }>()),
        _ => bincode::serde::decode_from_slice(bytes, config::<{ usize::MAX }>()),
    };
    let (value, used) = decoded.map_err(|error| CodecError::new::<T>(error))?;
    Ok((value, &bytes[used..]))
}

/// Reads a value out of memory that another process may still write: bulk types are copied once,
/// straight to where they are wanted, everything else is copied first and decoded from the copy.
///
/// # Errors
///
/// As [`decode`].
///
/// # Safety
///
/// `from` is valid for reads of `len` bytes.
pub unsafe fn decode_shared<T: DeserializeOwned>(
    from: *const u8,
    len: usize,
) -> Result<T, CodecError> {
    // SAFETY: as promised by the caller.
    if let Some(value) = unsafe { plain::take(from, len) } {
        return value;
    }
    let mut bytes = Vec::new();
    // SAFETY: as promised by the caller.
    unsafe { copy::append_from(&mut bytes, from, len) };
    decode(&bytes)
}

fn config<const LIMIT: usize>() -> Configuration<LittleEndian, Fixint, Limit<LIMIT>> {
    bincode::config::standard().with_fixed_int_encoding().with_limit::<LIMIT>()
}

struct Writer<'a, S>(&'a mut S);

impl<S: Sink> bincode::enc::write::Writer for Writer<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.put(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Tree {
        Leaf(Option<i32>, String),
        Pair(Box<Tree>, Box<Tree>),
        Map(std::collections::BTreeMap<u16, Vec<bool>>),
        Record { name: char, unit: () },
    }

    fn tree() -> impl Strategy<Value = Tree> {
        let leaf = prop_oneof![
            (any::<Option<i32>>(), ".{0,8}").prop_map(|(a, b)| Tree::Leaf(a, b)),
            any::<std::collections::BTreeMap<u16, Vec<bool>>>().prop_map(Tree::Map),
            any::<char>().prop_map(|name| Tree::Record { name, unit: () }),
        ];
        leaf.prop_recursive(4, 16, 2, |inner| {
            (inner.clone(), inner).prop_map(|(a, b)| Tree::Pair(Box::new(a), Box::new(b)))
        })
    }

    fn by_bincode<T: Serialize>(value: &T) -> Vec<u8> {
        bincode::serde::encode_to_vec(value, config::<0>().with_no_limit()).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(value in tree()) {
            let bytes = encode_to_vec(&value).unwrap();
            prop_assert_eq!(decode::<Tree>(&bytes).unwrap(), value);
        }

        #[test]
        fn bulk_types_have_bincodes_own_format(
            bytes in any::<Vec<u8>>(), shorts in any::<Vec<i16>>(), floats in any::<Vec<f32>>(),
            words in any::<Vec<usize>>(), wide in any::<Vec<u128>>(), text in ".*", number in any::<i64>(),
        ) {
            macro_rules! check { ($($value:ident: $type:ty),*) => {$(
                let encoded = encode_to_vec(&$value).unwrap();
                prop_assert_eq!(&encoded, &by_bincode(&$value));
                prop_assert_eq!(encode_to_vec(&decode::<$type>(&encoded).unwrap()).unwrap(), encoded);
            )*} }
            check!(bytes: Vec<u8>, shorts: Vec<i16>, floats: Vec<f32>, words: Vec<usize>,
                   wide: Vec<u128>, text: String, number: i64);
        }

        #[test]
        fn a_cut_or_longer_input_is_an_error(value in tree(), cut in any::<prop::sample::Index>()) {
            let mut bytes = encode_to_vec(&value).unwrap();
            prop_assert!(decode::<Tree>(&bytes[..cut.index(bytes.len())]).is_err());
            bytes.push(0);
            prop_assert!(decode::<Tree>(&bytes).is_err());
        }

        #[test]
        fn any_bytes_at_all_decode_or_fail(bytes in any::<Vec<u8>>()) {
            let _ = decode::<Tree>(&bytes);
            let _ = decode::<Vec<String>>(&bytes);
            let _ = decode::<Vec<u64>>(&bytes);
            let _ = decode::<String>(&bytes);
            let _ = decode::<(u8, Option<Vec<u8>>)>(&bytes);
        }
    }

    #[test]
    fn a_length_that_the_input_cannot_hold_is_refused_before_allocating() {
        let poisoned = (u64::MAX / 2).to_le_bytes();
        assert!(decode::<Vec<u8>>(&poisoned).is_err());
        assert!(decode::<String>(&poisoned).is_err());
        assert!(decode::<(Vec<u8>,)>(&poisoned).is_err());
        assert!(decode::<(String, u8)>(&poisoned).is_err());
        assert!(decode::<Vec<(u64, String)>>(&poisoned).is_err());
        let length_wraps = (u64::MAX / 8 + 2).to_le_bytes();
        assert!(decode::<Vec<u64>>(&length_wraps).is_err());
    }

    #[test]
    fn an_error_names_the_type() {
        let error = decode::<Vec<u32>>(&[1, 2, 3]).unwrap_err();
        assert_eq!(error.to_string(), "`alloc::vec::Vec<u32>`: 3 bytes where 8 were expected");
        assert!(decode::<(bool,)>(&[7]).unwrap_err().to_string().starts_with("`(bool,)`: "));
    }
}
