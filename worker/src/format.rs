//! serde's data model over bincode 2, byte for byte as bincode's own serde layer has it, but bounded:
//! that layer can't be told to stop at a depth or at a number of elements.
//!
//! Integers have a fixed width, because a task's arguments are mostly small and the time to branch on a
//! length costs more than the bytes saved; it also makes numbers and `Vec`s of them
//! [equal to their memory](crate::plain).
//!
//! Reading trusts nothing. A length that the input can't hold is refused before memory is asked for,
//! memory that can't be had is an error, nesting is [bounded](crate::depth), and so are elements that
//! [take no bytes](EMPTY).

use bincode::config::{Configuration, Fixint};
use bincode::de::{Decode, Decoder as _, DecoderImpl};
use bincode::enc::{Encode, Encoder as _, EncoderImpl};
use bincode::error::{DecodeError, EncodeError};
use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};
use serde::ser::{self, Serialize};

use crate::codec::Sink;
use crate::depth::{self, Depth, TooDeep};

/// How many elements that take no bytes (`()`, `[u8; 0]`, empty structs) a value may have whatever its
/// length: a length is 8 bytes and claims up to 2^64 of them. Reading so many takes 10 to 100 ms.
const EMPTY: usize = 4 << 20;

/// How many more of them each byte allows, so that the time to read a value is bounded by its length.
const EMPTY_PER_BYTE: usize = 64;

/// What serde says of a path that is no text; it says no more.
const NOT_UTF8_PATH: &str = "path contains invalid UTF-8 characters";

/// Why a value could not be written or read. Boxed, so that a result is one word.
#[derive(Debug)]
pub(crate) struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("{0}")]
    Other(String),
    #[error("{NOT_UTF8_PATH}: send it as an `OsString`")]
    Path,
    #[error(transparent)]
    Deep(#[from] TooDeep),
    #[error("it has more than {EMPTY} elements that take no bytes: send their number instead")]
    Empty,
    #[error(
        "its type leaves out the field `{0}` (`#[serde(skip_serializing_if)]`), which the reader would miss: wrap it in `procpool::SelfDescribing`"
    )]
    LeftOut(&'static str),
    #[error(
        "its type does not know its length in advance (`#[serde(flatten)]`, an iterator): wrap it in `procpool::SelfDescribing`"
    )]
    NoLength,
    #[error("its type claims {claimed} elements and has {held}")]
    WrongLength { claimed: u64, held: u64 },
    #[error(
        "its type asks the format what comes next, as a `serde_json` value and `#[serde(untagged)]`, `#[serde(tag)]` and `#[serde(flatten)]` do, and the format does not say: wrap it in `procpool::SelfDescribing`"
    )]
    NotSelfDescribing,
    #[error("{wanted} bytes were expected where {left} are left")]
    Short { wanted: u64, left: usize },
    #[error("{value} is no {what}")]
    Invalid { what: &'static str, value: u8 },
    #[error("{0:?} are no character")]
    Char([u8; 4]),
    #[error("it is no text: {0}")]
    Text(#[from] std::str::Utf8Error),
    #[error("no memory for {0} bytes")]
    Memory(usize),
}

impl<R: Into<Reason>> From<R> for Error {
    #[cold]
    fn from(reason: R) -> Self {
        Self(Box::new(reason.into()))
    }
}

/// Its words are for who knows bincode, so they are said anew.
impl From<DecodeError> for Reason {
    #[cold]
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::UnexpectedEnd { additional } => {
                Self::Other(format!("{additional} more bytes were expected at its end"))
            }
            DecodeError::InvalidBooleanValue(value) => Self::Invalid { what: "bool", value },
            DecodeError::InvalidCharEncoding(bytes) => Self::Char(bytes),
            _ => Self::Other("its bytes are no such value".to_owned()),
        }
    }
}

impl From<EncodeError> for Reason {
    #[cold]
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::OtherString(reason) => Self::Other(reason),
            _ => Self::Other("its bytes could not be written".to_owned()),
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {}

impl ser::Error for Error {
    #[cold]
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        match message.to_string() {
            message if message == NOT_UTF8_PATH => Reason::Path.into(),
            message => Reason::Other(message).into(),
        }
    }
}

impl de::Error for Error {
    #[cold]
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Reason::Other(message.to_string()).into()
    }
}

/// Counts elements that take no bytes; `bytes` are what the whole value has taken up to here.
#[inline]
fn count_empty(empty: &mut usize, bytes: usize) -> Result<(), Error> {
    *empty += 1;
    if *empty <= EMPTY || *empty - EMPTY <= bytes.saturating_mul(EMPTY_PER_BYTE) {
        return Ok(());
    }
    Err(Reason::Empty.into())
}

type Config = Configuration<bincode::config::LittleEndian, Fixint>;

fn config() -> Config {
    bincode::config::standard().with_fixed_int_encoding()
}

/// A sink, and how many bytes have gone there.
struct Writer<'a, S> {
    sink: &'a mut S,
    written: usize,
}

impl<S: Sink> bincode::enc::write::Writer for Writer<'_, S> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.written += bytes.len();
        self.sink.put(bytes);
        Ok(())
    }
}

/// Writes values to a sink.
pub(crate) struct Encoder<'a, S: Sink> {
    bincode: EncoderImpl<Writer<'a, S>, Config>,
    depth: Depth,
    /// Elements so far that took no bytes.
    empty: usize,
}

impl<'a, S: Sink> Encoder<'a, S> {
    #[inline]
    pub(crate) fn new(sink: &'a mut S) -> Self {
        let bincode = EncoderImpl::new(Writer { sink, written: 0 }, config());
        Self { bincode, depth: Depth::new(depth::ENCODE), empty: 0 }
    }

    #[inline]
    fn put(&mut self, value: &(impl Encode + ?Sized)) -> Result<(), Error> {
        Ok(value.encode(&mut self.bincode)?)
    }

    #[inline]
    fn written(&mut self) -> usize {
        self.bincode.writer().written
    }

    #[inline]
    fn compound(&mut self, claimed: usize) -> Result<Compound<'_, 'a, S>, Error> {
        self.depth.check()?;
        Ok(Compound { encoder: self, claimed: claimed as u64, held: 0 })
    }

    /// What has as many elements as it says.
    #[inline]
    fn counted(&mut self, len: Option<usize>) -> Result<Compound<'_, 'a, S>, Error> {
        let len = len.ok_or(Reason::NoLength)?;
        self.put(&(len as u64))?;
        self.compound(len)
    }
}

/// A value that has parts.
pub(crate) struct Compound<'e, 'a, S: Sink> {
    encoder: &'e mut Encoder<'a, S>,
    claimed: u64,
    held: u64,
}

impl<S: Sink> Compound<'_, '_, S> {
    #[inline]
    fn part<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let before = self.encoder.written();
        value.serialize(&mut *self.encoder)?;
        if self.encoder.written() == before {
            count_empty(&mut self.encoder.empty, before)?;
        }
        Ok(())
    }

    #[inline]
    fn end_counted(self) -> Result<(), Error> {
        let Self { claimed, held, .. } = self;
        if claimed == held { Ok(()) } else { Err(Reason::WrongLength { claimed, held }.into()) }
    }
}

macro_rules! put_values {
    ($($method:ident: $type:ty),*) => {$(
        #[inline]
        fn $method(self, value: $type) -> Result<(), Error> {
            self.put(&value)
        }
    )*};
}

impl<'e, 'a, S: Sink> ser::Serializer for &'e mut Encoder<'a, S> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Compound<'e, 'a, S>;
    type SerializeTuple = Compound<'e, 'a, S>;
    type SerializeTupleStruct = Compound<'e, 'a, S>;
    type SerializeTupleVariant = Compound<'e, 'a, S>;
    type SerializeMap = Compound<'e, 'a, S>;
    type SerializeStruct = Compound<'e, 'a, S>;
    type SerializeStructVariant = Compound<'e, 'a, S>;

    put_values!(
        serialize_bool: bool, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8],
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_u128: u128, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32,
        serialize_i64: i64, serialize_i128: i128, serialize_f32: f32, serialize_f64: f64
    );

    #[inline]
    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_u8(0)
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.depth.check()?;
        self.put(&1u8)?;
        value.serialize(self)
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), Error> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
    ) -> Result<(), Error> {
        self.serialize_u32(index)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.depth.check()?;
        value.serialize(self)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.depth.check()?;
        self.put(&index)?;
        value.serialize(self)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Compound<'e, 'a, S>, Error> {
        self.counted(len)
    }

    #[inline]
    fn serialize_tuple(self, len: usize) -> Result<Compound<'e, 'a, S>, Error> {
        self.compound(len)
    }

    #[inline]
    fn serialize_tuple_struct(
        self,
        _: &'static str,
        len: usize,
    ) -> Result<Compound<'e, 'a, S>, Error> {
        self.compound(len)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        len: usize,
    ) -> Result<Compound<'e, 'a, S>, Error> {
        self.put(&index)?;
        self.compound(len)
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Compound<'e, 'a, S>, Error> {
        self.counted(len)
    }

    #[inline]
    fn serialize_struct(self, _: &'static str, len: usize) -> Result<Compound<'e, 'a, S>, Error> {
        self.compound(len)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        len: usize,
    ) -> Result<Compound<'e, 'a, S>, Error> {
        self.put(&index)?;
        self.compound(len)
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The kinds of compound values differ in names only.
macro_rules! parts {
    ($($kind:ident: $method:ident $([$key:ident])? $(skips $skip:ident)?),*) => {$(
        impl<S: Sink> ser::$kind for Compound<'_, '_, S> {
            type Ok = ();
            type Error = Error;

            #[inline]
            fn $method<T: Serialize + ?Sized>(
                &mut self,
                $($key: &'static str,)?
                value: &T,
            ) -> Result<(), Error> {
                $(let _ = $key;)?
                self.part(value)
            }

            $(#[cold]
            fn $skip(&mut self, key: &'static str) -> Result<(), Error> {
                Err(Reason::LeftOut(key).into())
            })?

            #[inline]
            fn end(self) -> Result<(), Error> {
                Ok(())
            }
        }
    )*};
}
parts!(
    SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field,
    SerializeStruct: serialize_field [key] skips skip_field,
    SerializeStructVariant: serialize_field [key] skips skip_field
);

impl<S: Sink> ser::SerializeSeq for Compound<'_, '_, S> {
    type Ok = ();
    type Error = Error;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.held += 1;
        self.part(value)
    }

    #[inline]
    fn end(self) -> Result<(), Error> {
        self.end_counted()
    }
}

impl<S: Sink> ser::SerializeMap for Compound<'_, '_, S> {
    type Ok = ();
    type Error = Error;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.held += 1;
        self.part(key)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.part(value)
    }

    #[inline]
    fn end(self) -> Result<(), Error> {
        self.end_counted()
    }
}

/// Bytes that have not been read.
struct Reader<'de>(&'de [u8]);

impl bincode::de::read::Reader for Reader<'_> {
    #[inline]
    fn read(&mut self, to: &mut [u8]) -> Result<(), DecodeError> {
        let Some((bytes, rest)) = self.0.split_at_checked(to.len()) else {
            return Err(DecodeError::UnexpectedEnd { additional: to.len() - self.0.len() });
        };
        to.copy_from_slice(bytes);
        self.0 = rest;
        Ok(())
    }
}

/// Reads values from the front of bytes.
pub(crate) struct Decoder<'de> {
    bincode: DecoderImpl<Reader<'de>, Config, ()>,
    /// How many bytes there were.
    len: usize,
    depth: Depth,
    /// Elements so far that took no bytes.
    empty: usize,
}

impl<'de> Decoder<'de> {
    #[inline]
    pub(crate) fn new(bytes: &'de [u8]) -> Self {
        let bincode = DecoderImpl::new(Reader(bytes), config(), ());
        Self { bincode, len: bytes.len(), depth: Depth::new(depth::DECODE), empty: 0 }
    }

    /// What has not been read.
    #[inline]
    pub(crate) fn rest(&mut self) -> &'de [u8] {
        self.bincode.reader().0
    }

    /// A value of a type that takes no memory of its own.
    #[inline]
    fn take<T: Decode<()>>(&mut self) -> Result<T, Error> {
        Ok(T::decode(&mut self.bincode)?)
    }

    /// A length and as many bytes.
    #[inline]
    fn bytes(&mut self) -> Result<&'de [u8], Error> {
        let wanted = self.take::<u64>()?;
        let rest = self.rest();
        let split = usize::try_from(wanted).ok().and_then(|len| rest.split_at_checked(len));
        let (bytes, rest) = split.ok_or(Reason::Short { wanted, left: rest.len() })?;
        self.bincode.reader().0 = rest;
        Ok(bytes)
    }

    #[inline]
    fn text(&mut self) -> Result<&'de str, Error> {
        Ok(std::str::from_utf8(self.bytes()?)?)
    }

    #[inline]
    fn parts(&mut self, left: u64) -> Result<Parts<'_, 'de>, Error> {
        self.depth.check()?;
        let bytes = self.rest().len();
        Ok(Parts { decoder: self, left, bytes })
    }

    #[inline]
    fn counted(&mut self) -> Result<Parts<'_, 'de>, Error> {
        let len = self.take()?;
        self.parts(len)
    }
}

/// A copy, where there is memory for it.
#[inline]
fn owned(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).map_err(|_| Reason::Memory(bytes.len()))?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// The parts of a compound value that have not been read.
struct Parts<'d, 'de> {
    decoder: &'d mut Decoder<'de>,
    left: u64,
    /// Bytes that were left at its beginning.
    bytes: usize,
}

impl<'de> Parts<'_, 'de> {
    #[inline]
    fn part<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let before = self.decoder.rest().len();
        let value = seed.deserialize(&mut *self.decoder)?;
        if self.decoder.rest().len() == before {
            count_empty(&mut self.decoder.empty, self.decoder.len - before)?;
        }
        Ok(value)
    }

    #[inline]
    fn next<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.part(seed).map(Some)
    }

    /// No more than what the bytes that are left can hold: a visitor may ask for memory after it.
    #[inline]
    fn hint(&self) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX).min(self.bytes)
    }
}

impl<'de> de::SeqAccess<'de> for Parts<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        self.next(seed)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.hint())
    }
}

impl<'de> de::MapAccess<'de> for Parts<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.next(seed)
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        self.part(seed)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.hint())
    }
}

macro_rules! take_values {
    ($($method:ident, $visit:ident: $type:ty),*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(self.take::<$type>()?)
        }
    )*};
}

macro_rules! not_self_describing {
    ($($method:ident)*) => {$(
        #[cold]
        fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            Err(Reason::NotSelfDescribing.into())
        }
    )*};
}

impl<'de> de::Deserializer<'de> for &mut Decoder<'de> {
    type Error = Error;

    take_values!(
        deserialize_bool, visit_bool: bool, deserialize_char, visit_char: char,
        deserialize_u8, visit_u8: u8, deserialize_u16, visit_u16: u16,
        deserialize_u32, visit_u32: u32, deserialize_u64, visit_u64: u64,
        deserialize_u128, visit_u128: u128, deserialize_i8, visit_i8: i8,
        deserialize_i16, visit_i16: i16, deserialize_i32, visit_i32: i32,
        deserialize_i64, visit_i64: i64, deserialize_i128, visit_i128: i128,
        deserialize_f32, visit_f32: f32, deserialize_f64, visit_f64: f64
    );
    not_self_describing!(deserialize_any deserialize_identifier deserialize_ignored_any);

    #[inline]
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_borrowed_str(self.text()?)
    }

    #[inline]
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = owned(self.bytes()?)?;
        visitor.visit_string(String::from_utf8(text).map_err(|error| error.utf8_error())?)
    }

    #[inline]
    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_borrowed_bytes(self.bytes()?)
    }

    #[inline]
    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_byte_buf(owned(self.bytes()?)?)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.take::<u8>()? {
            0 => visitor.visit_none(),
            1 => {
                self.depth.check()?;
                visitor.visit_some(self)
            }
            value => Err(Reason::Invalid { what: "tag of an option", value }.into()),
        }
    }

    #[inline]
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    #[inline]
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.depth.check()?;
        visitor.visit_newtype_struct(self)
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(self.counted()?)
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(self.parts(len as u64)?)
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(len, visitor)
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(self.counted()?)
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(fields.len(), visitor)
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.depth.check()?;
        visitor.visit_enum(self)
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }
}

impl<'de> de::EnumAccess<'de> for &mut Decoder<'de> {
    type Error = Error;
    type Variant = Self;

    #[inline]
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let index = IntoDeserializer::<Error>::into_deserializer(self.take::<u32>()?);
        Ok((seed.deserialize(index)?, self))
    }
}

impl<'de> de::VariantAccess<'de> for &mut Decoder<'de> {
    type Error = Error;

    #[inline]
    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    #[inline]
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self)
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        de::Deserializer::deserialize_tuple(self, len, visitor)
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        de::Deserializer::deserialize_tuple(self, fields.len(), visitor)
    }
}
