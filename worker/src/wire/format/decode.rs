//! The [`Deserializer`](de::Deserializer) of the format.

use bincode::de::{Decode, Decoder as _, DecoderImpl};
use bincode::error::DecodeError;
use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};

use super::config::{Config, config, count_empty};
use super::error::{Error, Reason};
use crate::wire::depth::{self, Depth};

/// The bytes that are not decoded yet.
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

/// Decodes values from the start of a byte slice.
pub(crate) struct Decoder<'de> {
    bincode: DecoderImpl<Reader<'de>, Config, ()>,
    /// The length of the input.
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

    /// Returns the bytes that are not decoded yet.
    #[inline]
    pub(crate) fn rest(&mut self) -> &'de [u8] {
        self.bincode.reader().0
    }

    /// Decodes a value of a type without heap memory.
    #[inline]
    fn decode<T: Decode<()>>(&mut self) -> Result<T, Error> {
        Ok(T::decode(&mut self.bincode)?)
    }

    /// Decodes a length and returns that many bytes.
    #[inline]
    fn bytes(&mut self) -> Result<&'de [u8], Error> {
        let wanted = self.decode::<u64>()?;
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
        let len = self.decode()?;
        self.parts(len)
    }
}

/// Copies `bytes`, or returns an error if the memory is refused.
#[inline]
fn owned(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).map_err(|_| Reason::Memory(bytes.len()))?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// The parts of a compound value that are not decoded yet.
struct Parts<'d, 'de> {
    decoder: &'d mut Decoder<'de>,
    left: u64,
    /// Bytes that were left at its start.
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

    /// Returns a capacity that the remaining bytes can fill at most: a visitor may allocate it.
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

macro_rules! decode_values {
    ($($method:ident, $visit:ident: $type:ty),*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(self.decode::<$type>()?)
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

    decode_values!(
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
        match self.decode::<u8>()? {
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
        let index = IntoDeserializer::<Error>::into_deserializer(self.decode::<u32>()?);
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
