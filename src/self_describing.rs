//! [`SelfDescribing`]: values that the pool's own encoding cannot represent, encoded as CBOR.

use std::fmt;
use std::io::{self, Read, Write};

use procpool_worker::depth::{self, Depth};
use serde::de::{DeserializeOwned, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The maximum nesting of lists, maps and variants. The limit of `serde_json` is 128.
const LEVELS: usize = 256;

/// The maximum stack in bytes that decoding one level uses without reading a byte, and so without a check
/// of the stack. Measured: 2 KiB without optimization, in an untagged enum, whose content serde buffers and
/// decodes again.
const LEVEL: usize = 4 << 10;

/// Makes any serde type sendable.
///
/// The encoding of arguments and results contains no type information, so types whose decoding depends on
/// it are rejected: `serde_json::Value`, and types with `#[serde(untagged)]`, `#[serde(tag = "…")]`,
/// `#[serde(flatten)]` or `#[serde(skip_serializing_if = "…")]`. This wrapper encodes such a value as CBOR,
/// which contains types and field names. CBOR is slower and larger, so wrap only the values that need it.
///
/// # Limits
///
/// A value nested more than 256 levels deep is rejected; fewer levels are allowed if the stack does not
/// suffice for 256. As in JSON, `Some(None)` and `Some(())` become `None`. In an untagged, tagged or
/// flattened type, serde cannot decode `()` and integers of more than 64 bits.
///
/// ```
/// use procpool::SelfDescribing;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// #[serde(untagged)]
/// enum Answer {
///     Number(u64),
///     Text(String),
/// }
///
/// fn parse(text: String) -> SelfDescribing<Answer> {
///     SelfDescribing(match text.parse() {
///         Ok(number) => Answer::Number(number),
///         Err(_) => Answer::Text(text),
///     })
/// }
///
/// # #[allow(dead_code)]
/// fn both(pool: &procpool::Pool) -> Result<Vec<SelfDescribing<Answer>>, procpool::TaskError> {
///     pool.map(parse, ["7".to_owned(), "seven".to_owned()])
/// }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SelfDescribing<T>(pub T);

/// Bytes with a bound on the nesting of the values that are written or read.
struct Bounded<B> {
    bytes: B,
    depth: Depth,
}

impl Write for Bounded<Vec<u8>> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.depth.check().map_err(io::Error::other)?;
        self.bytes.try_reserve(bytes.len())?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Bounded<&[u8]> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.depth.check().map_err(io::Error::other)?;
        self.bytes.read(to)
    }
}

fn write<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    use ciborium::ser::Error;
    let mut to = Bounded { bytes: Vec::new(), depth: Depth::new(depth::ENCODE) };
    ciborium::into_writer(value, &mut to).map_err(|error| match error {
        Error::Io(error) => error.to_string(),
        Error::Value(reason) => reason,
    })?;
    // A value that could not be decoded is rejected by its sender.
    if to.depth.is_deep() {
        read::<IgnoredAny>(&to.bytes)?;
    }
    Ok(to.bytes)
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    use ciborium::de::Error;
    let mut from = Bounded { bytes, depth: Depth::new(depth::DECODE) };
    let levels = LEVELS.min(from.depth.left() / LEVEL);
    let value = ciborium::de::from_reader_with_recursion_limit(&mut from, levels);
    let value = value.map_err(|error| match error {
        Error::Io(error) => error.to_string(),
        Error::Syntax(at) => format!("byte {at} is not CBOR"),
        Error::Semantic(_, reason) => reason,
        Error::RecursionLimitExceeded => depth::TooDeep.to_string(),
    })?;
    match from.bytes.len() {
        0 => Ok(value),
        left => Err(format!("{left} bytes left over after the value")),
    }
}

impl<T: Serialize> Serialize for SelfDescribing<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&write(&self.0).map_err(S::Error::custom)?)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for SelfDescribing<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes<T>(std::marker::PhantomData<T>);

        impl<'de, T: DeserializeOwned> Visitor<'de> for Bytes<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value as CBOR")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<T, E> {
                read(bytes).map_err(E::custom)
            }

            /// Human-readable formats encode bytes as a list.
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<T, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = list.next_element::<u8>()? {
                    bytes.push(byte);
                }
                read(&bytes).map_err(A::Error::custom)
            }
        }

        deserializer.deserialize_bytes(Bytes(std::marker::PhantomData)).map(Self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use procpool_worker::codec;
    use std::collections::BTreeMap;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Any {
        Null,
        Bool(bool),
        Small(i64),
        Float(f64),
        Text(String),
        List(Vec<Any>),
        Map(BTreeMap<String, Any>),
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Record {
        #[serde(skip_serializing_if = "Option::is_none")]
        left_out: Option<u8>,
        kind: Kind,
        wide: (u128, i128, char),
        by_number: BTreeMap<u8, Vec<u8>>,
        #[serde(flatten)]
        rest: BTreeMap<String, Any>,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Kind {
        A { x: u8 },
        B,
    }

    fn there_and_back<T: Serialize + DeserializeOwned>(value: T) -> Result<T, String> {
        let bytes = codec::encode_to_vec(&SelfDescribing(value));
        let decoded = bytes.and_then(|bytes| codec::decode::<SelfDescribing<T>>(&bytes));
        decoded.map(|value| value.0).map_err(|error| error.to_string())
    }

    fn nested(levels: usize) -> Any {
        (0..levels).fold(Any::Null, |inner, _| Any::List(vec![inner]))
    }

    #[test]
    fn every_type_that_the_pools_encoding_rejects_round_trips() {
        let all = [
            ("null", Any::Null),
            ("bool", Any::Bool(true)),
            ("small", Any::Small(-1)),
            ("float", Any::Float(0.5)),
            ("text", Any::Text("é".repeat(5000))),
            ("list", Any::List(vec![Any::Null, Any::Map(BTreeMap::new())])),
        ];
        for kind in [Kind::A { x: 1 }, Kind::B] {
            let record = Record {
                left_out: None,
                kind,
                wide: (u128::MAX, i128::MIN, '🦀'),
                by_number: [(1, vec![2, 3])].into(),
                rest: all.clone().map(|(name, any)| (name.to_owned(), any)).into(),
            };
            assert_eq!(there_and_back(record.clone()), Ok(record));
        }
    }

    #[test]
    fn a_value_nested_too_deeply_is_rejected_and_never_overflows_the_stack() {
        for kib in [256, 512, 2048, 64 << 10] {
            let test = move || {
                for levels in [10, 60, 120, 250, 300, 1000, 3000] {
                    let deep = |error: &String| error.contains("nested so deeply");
                    // Dropping a value uses the stack too; that is the responsibility of its type.
                    if levels <= 300 || kib > 2048 {
                        let result = there_and_back(nested(levels));
                        assert!(result == Ok(nested(levels)) || result.as_ref().is_err_and(deep));
                        assert!(levels < 300 || result.is_err(), "{levels}");
                    }
                    // As sent by a worker without this bound.
                    let bytes = [&vec![0x81; levels][..], &[0xf6]].concat();
                    let decoded = read::<Any>(&bytes);
                    assert!(decoded.is_ok() || decoded.as_ref().is_err_and(deep), "{decoded:?}");
                    assert!(decoded.is_ok() || kib < 2048 || levels > 60);
                }
            };
            std::thread::Builder::new().stack_size(kib << 10).spawn(test).unwrap().join().unwrap();
        }
    }

    #[test]
    #[ignore = "prints the measurement for the constant `LEVEL`"]
    fn print_the_stack_that_a_level_uses() {
        thread_local!(static LOWEST: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) });
        #[derive(Debug, PartialEq)]
        struct Probe;
        impl<'de> Deserialize<'de> for Probe {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let here = 0u8;
                LOWEST.set(LOWEST.get().min((&raw const here).addr()));
                <()>::deserialize(deserializer).map(|()| Self)
            }
        }
        #[derive(Debug, Deserialize)]
        #[serde(untagged)]
        #[allow(dead_code)]
        enum Any {
            Probe(Probe),
            Small(i64),
            Float(f64),
            Text(String),
            List(Vec<Any>),
            Map(BTreeMap<String, Any>),
        }
        let test = || {
            let here = 0u8;
            let used = [20, 40].map(|levels| {
                let _ = read::<Any>(&[&vec![0x81; levels][..], &[1]].concat());
                (&raw const here).addr() - LOWEST.replace(usize::MAX)
            });
            println!("{} bytes a level", (used[1] - used[0]) / 20);
        };
        std::thread::Builder::new().stack_size(64 << 20).spawn(test).unwrap().join().unwrap();
    }

    #[test]
    fn nested_wrappers_share_one_bound() {
        #[derive(Serialize, Deserialize)]
        struct Onion(Vec<SelfDescribing<Onion>>);
        let onion = (0..200).fold(Onion(Vec::new()), |inner, _| Onion(vec![SelfDescribing(inner)]));
        let test = move || there_and_back(onion).map(drop);
        let result = std::thread::Builder::new().stack_size(2 << 20).spawn(test).unwrap().join();
        let error = result.unwrap().unwrap_err();
        assert!(error.contains("nested so deeply"), "{error}");
    }

    #[test]
    fn invalid_bytes_are_an_error() {
        assert!(read::<Any>(&[]).is_err());
        assert!(read::<Any>(&[0xf6, 0xf6]).unwrap_err().contains("left over"));
        for claim in [0x5b, 0x7b, 0x9b, 0xbb] {
            let bytes = [&[claim][..], &[0x7f; 8], &[0xf6]].concat();
            assert!(read::<Any>(&bytes).is_err());
        }
    }
}
