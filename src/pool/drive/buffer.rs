//! Reusable buffers for encoded arguments and results. A chunk of small items uses a quarter of a megabyte of
//! each. Touching new memory costs several times the copy into it, and the allocator returns blocks of that
//! size to the system too soon.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use procpool_worker::memcpy;

use crate::os::process::PerProcess;

/// Minimum capacity of kept buffers, in bytes. The allocator handles smaller ones well.
const LEAST: usize = 32 << 10;

/// Maximum capacity of kept buffers, in bytes.
const MOST: usize = 1 << 20;

/// Number of buffers kept: more than are in use in a pool of a few workers, and a few megabytes in total.
const KEPT: usize = 32;

/// Not shared with a forked copy, in which the lock might be held for ever.
static SPARE: PerProcess<Mutex<Vec<Vec<u8>>>> = PerProcess::new();

/// A byte buffer whose memory is kept for reuse.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    /// Creates an empty buffer with capacity for `bytes`.
    pub(crate) fn with_room(bytes: usize) -> Self {
        let mut buffer = if bytes >= LEAST {
            SPARE.get().lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
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
            let mut spare = SPARE.get().lock().unwrap_or_else(PoisonError::into_inner);
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
