//! Bulk types: primitives, `Vec`s of primitives, and `String`s. Their encoding equals their memory on a
//! little-endian machine, so they are copied instead of encoded element by element. This file alone
//! knows which types those are. [`codec`](crate::wire::codec) uses bincode for all others; the format is
//! the same either way.
//!
//! The kind of a type is known at monomorphisation: no test remains at run time.

use std::any::TypeId;

use crate::shm::memcpy::{self, Sink};
use crate::shm::prefault::Prefault;
use crate::wire::error::CodecError;

/// A number whose encoding equals its memory. Every bit pattern is a valid value, which excludes `bool`
/// and `char`.
trait Primitive: Copy {}

/// Runs one of three blocks if `$T` is a bulk type: a primitive, a `Vec` of primitives (`$N` is the
/// primitive's type in both), or a `String`.
macro_rules! if_bulk {
    ($T:ty, $N:ident, primitive $primitive:block vector $vector:block text $text:block) => {
        if cfg!(all(target_endian = "little", target_pointer_width = "64")) {
            let id = typeid::of::<$T>();
            if_bulk!(@each id, $N, $primitive, $vector,
                u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);
            if id == TypeId::of::<String>() $text
        }
    };
    (@each $id:ident, $N:ident, $primitive:block, $vector:block, $($type:ty)*) => {$({
        #[allow(dead_code)]
        type $N = $type;
        if $id == TypeId::of::<$type>() $primitive
        if $id == TypeId::of::<Vec<$type>>() $vector
    })*};
}

macro_rules! primitives { ($($type:ty)*) => {$( impl Primitive for $type {} )*} }
primitives!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);

/// Returns the number of bytes of every `T`, if `T` is a primitive.
#[inline(always)]
pub fn fixed_width<T>() -> Option<usize> {
    if_bulk!(T, N, primitive { return Some(size_of::<N>()); } vector {} text {});
    None
}

/// Decodes consecutive primitives and appends them to `to`.
///
/// # Errors
///
/// When `T` is not a primitive, `bytes` is not a whole number of them, or memory is refused. `to` is
/// unchanged then.
#[inline(always)]
pub fn decode_all<T>(to: &mut Vec<T>, bytes: &[u8]) -> Result<(), CodecError> {
    let len = bytes.len();
    let Some(width) = fixed_width::<T>().filter(|width| len.is_multiple_of(*width)) else {
        return Err(CodecError::new::<T>(format_args!(
            "{len} bytes are not a whole number of values"
        )));
    };
    let count = len / width;
    to.try_reserve(count).map_err(|_| CodecError::no_memory::<T>(len))?;
    // SAFETY: `try_reserve` has made space for `count` values of `width` bytes, the size of `T`. Any
    // bytes are a valid primitive.
    unsafe {
        let end = to.as_mut_ptr().add(to.len());
        memcpy::copy(bytes.as_ptr(), end.cast(), bytes.len());
        to.set_len(to.len() + count);
    }
    Ok(())
}

/// Appends the encodings of up to `most` items, if they are primitives. Returns how many were appended,
/// which is 0 for other types. If `items` panics, the items before are appended.
#[inline]
pub fn encode_all<T>(to: &mut Vec<u8>, items: &mut impl Iterator<Item = T>, most: usize) -> usize {
    /// Sets the vector's length to what was written, also during a panic.
    struct Written<'a> {
        to: &'a mut Vec<u8>,
        len: usize,
    }
    impl Drop for Written<'_> {
        fn drop(&mut self) {
            // SAFETY: `len` bytes have been written, within the reserved capacity.
            unsafe { self.to.set_len(self.len) };
        }
    }
    let Some(width) = fixed_width::<T>() else { return 0 };
    to.reserve(most.saturating_mul(width));
    let start = to.len();
    // A copy: what is written through it could be the vector's own pointer, as far as the compiler knows, which
    // would load it anew for each item and use no vector instructions.
    let base = to.as_mut_ptr();
    let mut written = Written { to, len: start };
    items.take(most).for_each(|item| {
        // SAFETY: `reserve` has made space for `most` items, and nothing else uses the vector meanwhile. An item is
        // a primitive, whose encoding is its memory.
        unsafe { base.add(written.len).cast::<T>().write_unaligned(item) };
        written.len += width;
    });
    (written.len - start) / width
}

/// Returns the memory of a vector of primitives or of a string, which can be copied without an encoding.
pub fn as_raw_bytes<T>(value: &T) -> Option<&[u8]> {
    if_bulk!(T, N,
        primitive {}
        vector { return Some(bytes_of(as_concrete::<T, Vec<N>>(value))); }
        text { return Some(as_concrete::<T, String>(value).as_bytes()); }
    );
    None
}

/// A value's [raw bytes](as_raw_bytes), owned.
pub struct RawBytes(Box<dyn AsBytes + Send + Sync>);

trait AsBytes {
    fn bytes(&self) -> &[u8];
}

impl<N: Primitive> AsBytes for Vec<N> {
    fn bytes(&self) -> &[u8] {
        bytes_of(self)
    }
}

impl AsBytes for String {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl RawBytes {
    /// Takes `value` as raw bytes, if it has more than `least` of them.
    ///
    /// # Errors
    ///
    /// Returns the value if it has not.
    pub fn of<T>(value: T, least: usize) -> Result<Self, T> {
        if as_raw_bytes(&value).is_none_or(|bytes| bytes.len() <= least) {
            return Err(value);
        }
        if_bulk!(T, N,
            primitive {}
            vector { return Ok(Self(Box::new(into_concrete::<T, Vec<N>>(value)))); }
            text { return Ok(Self(Box::new(into_concrete::<T, String>(value)))); }
        );
        Err(value)
    }

    /// Returns the raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl std::fmt::Debug for RawBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RawBytes({} bytes)", self.as_bytes().len())
    }
}

/// Creates a value from its [raw bytes](as_raw_bytes). Another process may be writing the memory. Calls `wait` before
/// it reads a part, with the number of bytes up to its end.
///
/// # Errors
///
/// When `T` has no raw bytes, `len` does not fit the type, or memory is refused.
///
/// # Safety
///
/// `from` is valid for reads of `len` bytes.
pub unsafe fn from_raw_bytes<T>(
    from: *const u8,
    len: usize,
    wait: impl Fn(usize),
) -> Result<T, CodecError> {
    if_bulk!(T, N,
        primitive {}
        vector {
            if len.is_multiple_of(size_of::<N>()) {
                // SAFETY: as promised by the caller.
                let elements = unsafe { copy_elements::<T, N>(from, len / size_of::<N>(), &wait) };
                return elements.map(into_generic::<Vec<N>, T>);
            }
        }
        text {
            // SAFETY: as promised by the caller.
            let bytes = unsafe { copy_elements::<T, u8>(from, len, &wait) }?;
            return String::from_utf8(bytes).map(into_generic::<String, T>).map_err(CodecError::new::<T>);
        }
    );
    Err(CodecError::new::<T>(format_args!("{len} bytes do not fit the type")))
}

/// Appends the encoding of `value` if it is a bulk type. Returns whether it is.
#[inline(always)]
pub(crate) fn encode<T>(value: &T, sink: &mut impl Sink) -> bool {
    if_bulk!(T, N,
        primitive {
            sink.put_slice(bytes_of(std::slice::from_ref(as_concrete::<T, N>(value))));
            return true;
        }
        vector {
            let elements = as_concrete::<T, Vec<N>>(value);
            sink.put_slice(&(elements.len() as u64).to_le_bytes());
            sink.put_slice(bytes_of(elements));
            return true;
        }
        text {
            let text = as_concrete::<T, String>(value);
            sink.put_slice(&(text.len() as u64).to_le_bytes());
            sink.put_slice(text.as_bytes());
            return true;
        }
    );
    false
}

/// Decodes a value if it is a bulk type.
///
/// # Safety
///
/// `from` is valid for reads of `len` bytes, which another process may be writing meanwhile.
#[inline(always)]
pub(crate) unsafe fn decode<T>(from: *const u8, len: usize) -> Option<Result<T, CodecError>> {
    if_bulk!(T, N,
        primitive {
            let wanted = size_of::<N>();
            if len != wanted {
                let reason = format_args!("{len} bytes where {wanted} were expected");
                return Some(Err(CodecError::new::<T>(reason)));
            }
            // SAFETY: by the caller's promise, `from` holds the primitive's bytes. Any bytes are valid.
            let number = unsafe { from.cast::<N>().read_unaligned() };
            return Some(Ok(into_generic::<N, T>(number)));
        }
        vector {
            // SAFETY: as promised by the caller.
            let elements = unsafe { decode_elements::<T, N>(from, len) };
            return Some(elements.map(into_generic::<Vec<N>, T>));
        }
        text {
            // SAFETY: as promised by the caller.
            let text = unsafe { decode_elements::<T, u8>(from, len) }
                .and_then(|bytes| String::from_utf8(bytes).map_err(CodecError::new::<T>));
            return Some(text.map(into_generic::<String, T>));
        }
    );
    None
}

/// Decodes a length and that many primitives, which take all of `len`. An error names `T`.
///
/// # Safety
///
/// `from` is valid for reads of `len` bytes.
unsafe fn decode_elements<T, N: Primitive>(
    from: *const u8,
    len: usize,
) -> Result<Vec<N>, CodecError> {
    const HEAD: usize = size_of::<u64>();
    if len < HEAD {
        let reason = format_args!("{len} bytes where {HEAD} were expected");
        return Err(CodecError::new::<T>(reason));
    }
    let (body, width) = (len - HEAD, size_of::<N>());
    // SAFETY: the eight bytes are inside `len`.
    let claimed = u64::from_le(unsafe { from.cast::<u64>().read_unaligned() });
    if u64::try_from(body / width) != Ok(claimed) || body % width != 0 {
        let reason =
            format_args!("claims {claimed} elements of {width} bytes, but {body} bytes follow");
        return Err(CodecError::new::<T>(reason));
    }
    // SAFETY: `body` bytes follow the head.
    unsafe { copy_elements::<T, N>(from.add(HEAD), body / width, &|_| ()) }
}

/// Copies primitives, after `wait` for each part of them. An error names `T`.
///
/// # Safety
///
/// `from` is valid for reads of `count` primitives.
unsafe fn copy_elements<T, N: Primitive>(
    from: *const u8,
    count: usize,
    wait: &impl Fn(usize),
) -> Result<Vec<N>, CodecError> {
    /// Large enough that copying in parts is not slower.
    const PART: usize = 2 << 20;
    let bytes = count.saturating_mul(size_of::<N>());
    let (mut elements, mut prefault) =
        Prefault::try_new::<N>(count).ok_or_else(|| CodecError::no_memory::<T>(bytes))?;
    while elements.len() < count {
        let (done, width) = (elements.len(), size_of::<N>());
        let part = (count - done).min(PART / width);
        prefault.ensure(&mut elements, part);
        wait((done + part) * width);
        // SAFETY: the vector was allocated for `count` primitives, and any bytes are valid ones.
        unsafe {
            let to = elements.as_mut_ptr().add(done).cast();
            memcpy::copy(from.add(done * width), to, part * width);
            elements.set_len(done + part);
        }
    }
    Ok(elements)
}

fn bytes_of<N: Primitive>(numbers: &[N]) -> &[u8] {
    // SAFETY: primitives have no padding, so all bytes of the slice are initialised.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// Returns a reference to a `T`, which must be a `U`, as one to a `U`.
#[inline(always)]
fn as_concrete<T, U: 'static>(value: &T) -> &U {
    assert!(typeid::of::<T>() == TypeId::of::<U>());
    // SAFETY: both are the same type.
    unsafe { &*std::ptr::from_ref(value).cast() }
}

/// Returns a `T`, which must be a `U`, as a `U`.
fn into_concrete<T, U: 'static>(value: T) -> U {
    assert!(typeid::of::<T>() == TypeId::of::<U>());
    let value = std::mem::ManuallyDrop::new(value);
    // SAFETY: both are the same type. `value` is neither used nor dropped after this.
    unsafe { std::mem::transmute_copy(&*value) }
}

/// Returns a `U`, which must be a `T`, as a `T`.
#[inline(always)]
fn into_generic<U: 'static, T>(value: U) -> T {
    assert!(typeid::of::<T>() == TypeId::of::<U>());
    let value = std::mem::ManuallyDrop::new(value);
    // SAFETY: both are the same type. `value` is neither used nor dropped after this.
    unsafe { std::mem::transmute_copy(&*value) }
}
