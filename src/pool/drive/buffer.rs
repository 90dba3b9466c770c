//! Memory for encoded arguments and results, used again. A chunk of small items has a quarter of a
//! megabyte of each, and the first touch of new memory costs several times what the copy into it
//! does; the allocator gives such pieces back to the system too soon.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use procpool_worker::memcpy;

/// What is kept has at least so much room, in bytes; the allocator does well with what has less.
const LEAST: usize = 32 << 10;

/// And at most so much.
const MOST: usize = 1 << 20;

/// How many are kept: more than are on their way in a pool of a few workers, and a few megabytes in
/// all.
const KEPT: usize = 32;

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Bytes whose memory is kept for the next.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    /// An empty one with room for `bytes`.
    pub(crate) fn with_room(bytes: usize) -> Self {
        let mut buffer = if bytes >= LEAST {
            SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
        } else {
            Vec::new()
        };
        buffer.reserve_exact(bytes);
        Self(buffer)
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Self {
        let mut buffer = Self::with_room(bytes.len());
        memcpy::append(&mut buffer, bytes);
        buffer
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if (LEAST..=MOST).contains(&self.0.capacity()) {
            let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
            if spare.len() < KEPT {
                self.0.clear();
                spare.push(std::mem::take(&mut self.0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_empty_whatever_its_memory_held_before() {
        for round in 0..3u8 {
            let mut buffer = Buffer::with_room(LEAST);
            assert!(buffer.is_empty() && buffer.capacity() >= LEAST);
            buffer.resize(LEAST + usize::from(round), round);
        }
    }
}
