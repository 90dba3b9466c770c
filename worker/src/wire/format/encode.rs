//! The [`Serializer`](ser::Serializer) of the format.

use bincode::enc::{Encode, Encoder as _, EncoderImpl};
use bincode::error::EncodeError;
use serde::ser::{self, Serialize};

use super::config::{Config, config, count_empty};
use super::error::{Error, Reason};
use crate::shm::memcpy::Sink;
use crate::wire::depth::{self, Depth};

/// A sink, and the number of bytes written to it.
struct Writer<'a, S> {
    sink: &'a mut S,
    written: usize,
}

impl<S: Sink> bincode::enc::write::Writer for Writer<'_, S> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.written += bytes.len();
        self.sink.put_slice(bytes);
        Ok(())
    }
}

/// Encodes values into a sink.
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
    fn encode(&mut self, value: &(impl Encode + ?Sized)) -> Result<(), Error> {
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

    /// Encodes a length and starts a compound value of that many elements.
    #[inline]
    fn counted(&mut self, len: Option<usize>) -> Result<Compound<'_, 'a, S>, Error> {
        let len = len.ok_or(Reason::NoLength)?;
        self.encode(&(len as u64))?;
        self.compound(len)
    }
}

/// A compound value that is being encoded.
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

macro_rules! encode_values {
    ($($method:ident: $type:ty),*) => {$(
        #[inline]
        fn $method(self, value: $type) -> Result<(), Error> {
            self.encode(&value)
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

    encode_values!(
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
        self.encode(&1u8)?;
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
        self.encode(&index)?;
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
        self.encode(&index)?;
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
        self.encode(&index)?;
        self.compound(len)
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The kinds of compound values differ only in the names of their methods.
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
