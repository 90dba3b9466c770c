//! Plain types: numbers, `Vec`s of numbers, and `String`s, whose encoding equals their memory on a
//! little-endian machine, so that they can be moved in bulk. This file owns all knowledge of which
//! those are; [`codec`](crate::codec) falls back to bincode for everything else, and the format is
//! the same either way.
//!
//! Which of them a type is, is known after monomorphisation: no test is left at run time.

use std::any::TypeId;

use crate::codec::{CodecError, Sink};
use crate::copy;
use crate::room::Room;

/// A number whose encoding equals its memory. Every bit pattern of such a type is a value, which is
/// why `bool` and `char` are not among them.
trait Number: Copy {}

/// Runs one of three blocks if `$T` is a type whose encoding equals its memory: a number, a `Vec`
/// of numbers (both with `$N` standing for the number's type), or a `String`. Which of them it is
/// is known after monomorphisation, so no test is left at run time.
macro_rules! if_plain {
    ($T:ty, $N:ident, number $number:block vector $vector:block text $text:block) => {
        if cfg!(all(target_endian = "little", target_pointer_width = "64")) {
            let id = typeid::of::<$T>();
            if_plain!(@each id, $N, $number, $vector,
                u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);
            if id == TypeId::of::<String>() $text
        }
    };
    (@each $id:ident, $N:ident, $number:block, $vector:block, $($type:ty)*) => {$({
        #[allow(dead_code)]
        type $N = $type;
        if $id == TypeId::of::<$type>() $number
        if $id == TypeId::of::<Vec<$type>>() $vector
    })*};
}

macro_rules! numbers { ($($type:ty)*) => {$( impl Number for $type {} )*} }
numbers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);

/// How many bytes each value of `T` takes, where that is the same for all: a plain number's width.
#[inline(always)]
pub fn width<T>() -> Option<usize> {
    if_plain!(T, N, number { return Some(size_of::<N>()); } vector {} text {});
    None
}

/// Reads plain numbers that stand one after the other to the end of `to`.
///
/// # Errors
///
/// When `T` is no plain number, the bytes are not a whole number of them, or there is no memory for
/// them. Nothing is done then.
#[inline(always)]
pub fn extend_numbers<T>(to: &mut Vec<T>, bytes: &[u8]) -> Result<(), CodecError> {
    let len = bytes.len();
    let Some(width) = width::<T>().filter(|width| len.is_multiple_of(*width)) else {
        return Err(CodecError::new::<T>(format_args!("{len} bytes are no numbers of its type")));
    };
    let count = len / width;
    to.try_reserve(count).map_err(|_| CodecError::no_memory::<T>(len))?;
    // SAFETY: room for `count` values of `width` bytes, which is the size of `T`, has just been
    // made, and any bytes are a plain number.
    unsafe {
        let end = to.as_mut_ptr().add(to.len());
        copy::copy(bytes.as_ptr(), end.cast(), bytes.len());
        to.set_len(to.len() + count);
    }
    Ok(())
}

/// Appends the encodings of up to `most` items that are plain numbers; gives how many there were. If
/// `items` panics, those before are appended. Of items that are no plain numbers, none is taken.
#[inline]
pub fn put_all<T>(to: &mut Vec<u8>, items: &mut impl Iterator<Item = T>, most: usize) -> usize {
    /// Makes what has been written a part of the vector, whatever way this ends.
    struct Written<'a> {
        to: &'a mut Vec<u8>,
        len: usize,
    }
    impl Drop for Written<'_> {
        fn drop(&mut self) {
            // SAFETY: so many bytes have been written, in room that was made for them.
            unsafe { self.to.set_len(self.len) };
        }
    }
    let Some(width) = width::<T>() else { return 0 };
    to.reserve(most.saturating_mul(width));
    let start = to.len();
    let mut written = Written { to, len: start };
    items.take(most).for_each(|item| {
        // SAFETY: there is room for `most` items after the start; an item is a plain number, whose
        // encoding is its memory.
        unsafe { written.to.as_mut_ptr().add(written.len).cast::<T>().write_unaligned(item) };
        written.len += width;
    });
    (written.len - start) / width
}

/// The elements of a large vector of plain numbers (or of a string) as they lie in memory, so that
/// they can be moved without being copied into an encoding first.
pub fn elements<T>(value: &T) -> Option<&[u8]> {
    if_plain!(T, N,
        number {}
        vector { return Some(bytes_of(cast_ref::<T, Vec<N>>(value))); }
        text { return Some(cast_ref::<T, String>(value).as_bytes()); }
    );
    None
}

/// A value's [elements], moved out of it: they can be kept and read without it.
pub struct Elements(Box<dyn AsBytes + Send + Sync>);

trait AsBytes {
    fn bytes(&self) -> &[u8];
}

impl<N: Number> AsBytes for Vec<N> {
    fn bytes(&self) -> &[u8] {
        bytes_of(self)
    }
}

impl AsBytes for String {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Elements {
    /// Moves the elements out of `value`, if it has more than so many bytes of them.
    ///
    /// # Errors
    ///
    /// The value, if it has not.
    pub fn of<T>(value: T, least: usize) -> Result<Self, T> {
        if elements(&value).is_none_or(|elements| elements.len() <= least) {
            return Err(value);
        }
        if_plain!(T, N,
            number {}
            vector { return Ok(Self(Box::new(uncast::<T, Vec<N>>(value)))); }
            text { return Ok(Self(Box::new(uncast::<T, String>(value)))); }
        );
        Err(value)
    }

    /// Returns the elements as they lie in memory.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl std::fmt::Debug for Elements {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Elements({} bytes)", self.as_bytes().len())
    }
}

/// Makes a value of what [`elements`] gave. The memory may be written by another process meanwhile.
///
/// # Errors
///
/// When `T` has no such elements, the bytes are not a whole number of them, or there is no memory for
/// them.
///
/// # Safety
///
/// `from` is valid for reads of `len` bytes.
pub unsafe fn from_elements<T>(from: *const u8, len: usize) -> Result<T, CodecError> {
    if_plain!(T, N,
        number {}
        vector {
            if len.is_multiple_of(size_of::<N>()) {
                // SAFETY: as promised by the caller.
                let elements = unsafe { copy_elements::<T, N>(from, len / size_of::<N>()) };
                return elements.map(cast::<Vec<N>, T>);
            }
        }
        text {
            // SAFETY: as promised by the caller.
            let bytes = unsafe { copy_elements::<T, u8>(from, len) }?;
            return String::from_utf8(bytes).map(cast::<String, T>).map_err(CodecError::new::<T>);
        }
    );
    Err(CodecError::new::<T>(format_args!("{len} bytes are not its elements")))
}

/// Appends `value` in bulk if its type allows that.
#[inline(always)]
pub(crate) fn put<T>(value: &T, sink: &mut impl Sink) -> bool {
    if_plain!(T, N,
        number {
            sink.put(bytes_of(std::slice::from_ref(cast_ref::<T, N>(value))));
            return true;
        }
        vector {
            let elements = cast_ref::<T, Vec<N>>(value);
            sink.put(&(elements.len() as u64).to_le_bytes());
            sink.put(bytes_of(elements));
            return true;
        }
        text {
            let text = cast_ref::<T, String>(value);
            sink.put(&(text.len() as u64).to_le_bytes());
            sink.put(text.as_bytes());
            return true;
        }
    );
    false
}

/// Reads a value in bulk if its type allows that.
///
/// # Safety
///
/// `from` is valid for reads of `len` bytes, which another process may be writing meanwhile.
#[inline(always)]
pub(crate) unsafe fn take<T>(from: *const u8, len: usize) -> Option<Result<T, CodecError>> {
    if_plain!(T, N,
        number {
            let wanted = size_of::<N>();
            if len != wanted {
                let reason = format_args!("{len} bytes where {wanted} were expected");
                return Some(Err(CodecError::new::<T>(reason)));
            }
            // SAFETY: `from` holds the number's bytes, by the caller's promise, and any bytes are one.
            let number = unsafe { from.cast::<N>().read_unaligned() };
            return Some(Ok(cast::<N, T>(number)));
        }
        vector {
            // SAFETY: as promised by the caller.
            let elements = unsafe { take_elements::<T, N>(from, len) };
            return Some(elements.map(cast::<Vec<N>, T>));
        }
        text {
            // SAFETY: as promised by the caller.
            let text = unsafe { take_elements::<T, u8>(from, len) }
                .and_then(|bytes| String::from_utf8(bytes).map_err(CodecError::new::<T>));
            return Some(text.map(cast::<String, T>));
        }
    );
    None
}

/// Reads a length and as many numbers, which must take up all of `len`; `T` is named in the error.
///
/// # Safety
///
/// `from` is valid for reads of `len` bytes.
unsafe fn take_elements<T, N: Number>(from: *const u8, len: usize) -> Result<Vec<N>, CodecError> {
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
    unsafe { copy_elements::<T, N>(from.add(HEAD), body / width) }
}

/// Copies numbers; `T` is named in the error.
///
/// # Safety
///
/// `count` numbers' bytes can be read at `from`.
unsafe fn copy_elements<T, N: Number>(from: *const u8, count: usize) -> Result<Vec<N>, CodecError> {
    /// So much at once that the copy is not slowed down by being made in parts.
    const PART: usize = 2 << 20;
    let bytes = count.saturating_mul(size_of::<N>());
    let (mut elements, mut room) =
        Room::try_new::<N>(count).ok_or_else(|| CodecError::no_memory::<T>(bytes))?;
    while elements.len() < count {
        let (done, width) = (elements.len(), size_of::<N>());
        let part = (count - done).min(PART / width);
        room.prepare(&mut elements, part);
        // SAFETY: the vector was allocated for `count` numbers, and any bytes are numbers.
        unsafe {
            let to = elements.as_mut_ptr().add(done).cast();
            copy::copy(from.add(done * width), to, part * width);
            elements.set_len(done + part);
        }
    }
    Ok(elements)
}

fn bytes_of<N: Number>(numbers: &[N]) -> &[u8] {
    // SAFETY: numbers have no padding, so all of the slice's bytes are initialised.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// A reference to a `T`, which must be a `U`, as such.
#[inline(always)]
fn cast_ref<T, U: 'static>(value: &T) -> &U {
    assert!(typeid::of::<T>() == TypeId::of::<U>());
    // SAFETY: a reference to a type, as a reference to the same type.
    unsafe { &*std::ptr::from_ref(value).cast() }
}

/// A `T`, which must be a `U`, as such.
fn uncast<T, U: 'static>(value: T) -> U {
    assert!(typeid::of::<T>() == TypeId::of::<U>());
    let value = std::mem::ManuallyDrop::new(value);
    // SAFETY: one type, and `value` is neither used nor dropped after this.
    unsafe { std::mem::transmute_copy(&*value) }
}

/// A `U`, which must be a `T`, as such.
#[inline(always)]
fn cast<U: 'static, T>(value: U) -> T {
    assert!(typeid::of::<T>() == TypeId::of::<U>());
    let value = std::mem::ManuallyDrop::new(value);
    // SAFETY: one type, and `value` is neither used nor dropped after this.
    unsafe { std::mem::transmute_copy(&*value) }
}
