//! Encodes and decodes values.
//!
//! All values have the encoding of bincode; see [format](mod@crate::wire::format). It equals the memory of
//! numbers, of `Vec`s of numbers and of `String`s on a little-endian machine, so these are moved
//! [in bulk](crate::wire::bulk). There is no second format: element by element, the same bytes would be
//! written and read, at 1 to 8 ns each.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::shm::memcpy::{self, Sink};
use crate::wire::attach::Attachments;
use crate::wire::bulk;
use crate::wire::error::CodecError;
use crate::wire::format::{Decoder, Encoder};

/// Appends the encoding of `value` to `sink`.
///
/// # Errors
///
/// When the type's `Serialize` refuses, when the value could not be decoded again, or when it is nested
/// so deeply that its decoding could overflow a small stack. The sink may hold part of the value then.
#[inline]
pub fn encode<T: Serialize>(value: &T, sink: &mut impl Sink) -> Result<(), CodecError> {
    if bulk::encode(value, sink) {
        return Ok(());
    }
    value.serialize(&mut Encoder::new(sink)).map_err(CodecError::new::<T>)
}

/// As [`encode`], and adds the files that the value refers to to `attachments`.
///
/// # Errors
///
/// As [`encode`].
#[inline]
pub fn encode_attached<T: Serialize>(
    value: &T,
    sink: &mut impl Sink,
    attachments: &mut Attachments,
) -> Result<(), CodecError> {
    // Numbers and texts refer to none, and opening a collection costs some nanoseconds.
    if bulk::encode(value, sink) {
        return Ok(());
    }
    let encode = || value.serialize(&mut Encoder::new(sink)).map_err(CodecError::new::<T>);
    attachments.collect(encode)
}

/// Returns the encoding of `value` in a new vector.
///
/// # Errors
///
/// As [`encode`].
pub fn encode_to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::new();
    encode(value, &mut bytes)?;
    Ok(bytes)
}

/// Decodes a value that takes all of `bytes`.
///
/// # Errors
///
/// When the bytes are not such a value, claim more than they hold, or continue behind it.
#[inline]
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    // SAFETY: a slice is valid for its length.
    if let Some(value) = unsafe { bulk::decode(bytes.as_ptr(), bytes.len()) } {
        return value;
    }
    let (value, rest) = decode_prefix(bytes)?;
    match rest.len() {
        0 => Ok(value),
        n => Err(CodecError::new::<T>(format_args!("{n} bytes left over after the value"))),
    }
}

/// Decodes a value at the start of `bytes`. Returns it and the bytes behind it.
///
/// # Errors
///
/// When `bytes` does not start with such a value.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), CodecError> {
    let mut decoder = Decoder::new(bytes);
    let value = T::deserialize(&mut decoder).map_err(CodecError::new::<T>)?;
    Ok((value, decoder.rest()))
}

/// Decodes a value from memory that another process may be writing. Bulk types are copied once, to
/// their destination; all others are copied first and decoded from the copy.
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
    if let Some(value) = unsafe { bulk::decode(from, len) } {
        return value;
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| CodecError::no_memory::<T>(len))?;
    // SAFETY: as promised by the caller.
    unsafe { memcpy::append_from(&mut bytes, from, len) };
    decode(&bytes)
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
        let config = bincode::config::standard().with_fixed_int_encoding();
        bincode::serde::encode_to_vec(value, config).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(value in tree()) {
            let bytes = encode_to_vec(&value).unwrap();
            prop_assert_eq!(&bytes, &by_bincode(&value));
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

    /// An enumeration that nests as deeply as its input says.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Json {
        Null,
        Arr(Vec<Json>),
        Obj(std::collections::BTreeMap<String, Json>),
        Some(Option<Box<Json>>),
    }

    impl Json {
        fn nested(levels: usize) -> Self {
            (0..levels).fold(Self::Null, |inner, _| Self::Arr(vec![inner]))
        }
    }

    /// The encoding of `levels` nested arrays, by an encoder without a bound.
    fn nested_bytes(levels: usize) -> Vec<u8> {
        let level = [&1u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
        let mut bytes = level.repeat(levels);
        bytes.extend(0u32.to_le_bytes());
        bytes
    }

    fn with_stack<R: Send + 'static>(kib: usize, f: impl FnOnce() -> R + Send + 'static) -> R {
        std::thread::Builder::new().stack_size(kib << 10).spawn(f).unwrap().join().unwrap()
    }

    #[test]
    fn a_value_nested_too_deeply_is_an_error_on_any_stack_and_never_an_overflow() {
        for kib in [128, 256, 512, 2048, 64 << 10] {
            for levels in [1000, 6_000, 20_000, 1_000_000] {
                let decoded = with_stack(kib, move || decode::<Json>(&nested_bytes(levels)));
                let too_deep = |error: &CodecError| error.reason.contains("nested so deeply");
                assert!(levels < 6000 || decoded.as_ref().is_err_and(too_deep), "{decoded:?}");
            }
        }
        // Dropping such a value takes stack too, which is up to its type.
        with_stack(64 << 10, || {
            for levels in [6_000, 20_000] {
                let error = encode_to_vec(&Json::nested(levels)).unwrap_err();
                assert!(error.reason.contains("nested so deeply"), "{error}");
            }
        });
    }

    #[test]
    fn every_encoded_value_can_be_decoded_on_a_small_stack() {
        let deepest = (1..).find(|levels| encode_to_vec(&Json::nested(*levels)).is_err()).unwrap();
        assert!(deepest > 64, "{deepest} levels are too many");
        let levels = deepest - 1;
        let bytes = encode_to_vec(&Json::nested(levels)).unwrap();
        with_stack(512, move || assert_eq!(decode(&bytes), Ok(Json::nested(levels))));
    }

    #[test]
    #[ignore = "prints what the constants in `depth` are chosen by"]
    fn print_the_stack_that_a_level_takes() {
        let most = |fits: &dyn Fn(usize) -> bool| (1..).find(|levels| !fits(*levels)).unwrap();
        let encoded = most(&|levels| encode_to_vec(&Json::nested(levels)).is_ok());
        let decoded = most(&|levels| decode::<Json>(&nested_bytes(levels)).is_ok());
        println!("encoded: {} bytes a level", crate::wire::depth::ENCODE / encoded);
        println!("decoded: {} bytes a level", crate::wire::depth::DECODE / decoded);
    }

    #[test]
    fn elements_that_take_no_bytes_are_bounded_and_a_million_of_them_pass() {
        type Nothing = std::collections::BTreeMap<(), ()>;
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Empty {
            a: (),
            b: [u8; 0],
        }
        let claims = (1u64 << 40).to_le_bytes();
        let began = std::time::Instant::now();
        assert!(decode::<Vec<()>>(&claims).is_err());
        assert!(decode::<Vec<[(); 3]>>(&claims).is_err());
        assert!(decode::<Vec<[[[(); 32]; 32]; 32]>>(&claims).is_err());
        assert!(decode::<Vec<Empty>>(&claims).is_err());
        assert!(decode::<Nothing>(&claims).is_err());
        assert!(decode::<std::collections::HashSet<()>>(&claims).is_err());
        let many = [&1000u64.to_le_bytes()[..], &claims.repeat(1000)].concat();
        assert!(decode::<Vec<Vec<()>>>(&many).is_err());
        assert!(began.elapsed().as_secs() < 20);
        for many in [0, 1, 1_000_000] {
            let value = vec![(); many];
            assert_eq!(decode(&encode_to_vec(&value).unwrap()), Ok(value));
            let value = vec![[(); 3]; many];
            assert_eq!(decode(&encode_to_vec(&value).unwrap()), Ok(value));
        }
        let value = vec![(7u8, ()); 5 << 20];
        assert_eq!(decode(&encode_to_vec(&value).unwrap()), Ok(value));
        let error = encode_to_vec(&vec![(); 5 << 20]).unwrap_err();
        assert!(error.reason.contains("take no bytes"), "{error}");
    }

    #[test]
    fn values_that_the_format_cannot_carry_are_refused_with_the_remedy() {
        #[derive(Debug, Serialize, Deserialize)]
        #[serde(untagged)]
        enum Untagged {
            A(u8),
        }
        #[derive(Debug, Serialize, Deserialize)]
        #[serde(tag = "t")]
        enum Tagged {
            A { x: u8 },
        }
        #[derive(Debug, Serialize, Deserialize)]
        struct Flat {
            #[serde(flatten)]
            rest: std::collections::BTreeMap<String, u8>,
        }
        #[derive(Debug, Serialize, Deserialize)]
        struct Skips {
            #[serde(skip_serializing_if = "Option::is_none")]
            left_out: Option<u8>,
        }
        fn refused<T: Serialize + DeserializeOwned>(value: &T) -> String {
            let error = encode_to_vec(value).and_then(|bytes| decode::<T>(&bytes).map(drop));
            error.unwrap_err().to_string()
        }
        let all = [
            refused(&Untagged::A(1)),
            refused(&Tagged::A { x: 1 }),
            refused(&Flat { rest: [("a".into(), 1)].into() }),
            refused(&Skips { left_out: None }),
        ];
        for error in all {
            assert!(error.contains("wrap it in `procpool::SelfDescribing`"), "{error}");
            assert!(!error.contains("NotSupported") && !error.contains("Serde("), "{error}");
        }
        let path = <std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(vec![255]);
        let error = refused(&std::path::PathBuf::from(&path));
        assert!(error.contains("send it as an `OsString`"), "{error}");
        assert_eq!(decode(&encode_to_vec(&path).unwrap()), Ok(path));
        let kept = encode_to_vec(&Skips { left_out: Some(3) }).unwrap();
        assert_eq!(decode::<Skips>(&kept).unwrap().left_out, Some(3));
    }

    #[test]
    fn a_sequence_that_claims_another_length_than_it_has_is_refused() {
        struct Liar;
        impl Serialize for Liar {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeSeq as _;
                let mut seq = serializer.serialize_seq(Some(3))?;
                seq.serialize_element(&1u8)?;
                seq.end()
            }
        }
        let error = encode_to_vec(&Liar).unwrap_err();
        assert!(error.reason.contains("claims 3 elements and has 1"), "{error}");
    }

    #[test]
    fn a_types_own_error_keeps_its_message() {
        struct Refuses;
        impl Serialize for Refuses {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("not today"))
            }
        }
        assert_eq!(encode_to_vec(&Refuses).unwrap_err().reason, "not today");
    }

    #[test]
    fn an_error_names_the_type() {
        let error = decode::<Vec<u32>>(&[1, 2, 3]).unwrap_err();
        assert_eq!(error.to_string(), "`alloc::vec::Vec<u32>`: 3 bytes where 8 were expected");
        assert!(decode::<(bool,)>(&[7]).unwrap_err().to_string().starts_with("`(bool,)`: "));
    }
}
