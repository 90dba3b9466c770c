//! Reusable buffers for encoded arguments and results. A chunk of small items uses a quarter of a megabyte of
//! each. Touching new memory costs several times the copy into it, and the allocator returns blocks of that
//! size to the system too soon.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use procpool_worker::memcpy;

use crate::os::process::PerProcess;

/// Minimum capacity of kept buffers, in bytes. The allocator handles smaller ones well.
const MIN_REUSED: usize = 32 << 10;

/// Maximum capacity of kept buffers, in bytes.
const MAX_REUSED: usize = 1 << 20;

/// Number of buffers kept: more than are in use in a pool of a few workers, and a few megabytes in total.
const MAX_FREE: usize = 32;

/// Not shared with a forked copy, in which the lock might be held forever.
static FREE: PerProcess<Mutex<Vec<Vec<u8>>>> = PerProcess::new();

/// A byte buffer whose memory is kept for reuse.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    /// Creates an empty buffer with capacity for `bytes`.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        let mut buffer = if bytes >= MIN_REUSED {
            FREE.get().lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
        } else {
            Vec::new()
        };
        buffer.reserve_exact(bytes);
        Self(buffer)
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Self {
        let mut buffer = Self::with_capacity(bytes.len());
        memcpy::append(&mut buffer, bytes);
        buffer
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
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
        if (MIN_REUSED..=MAX_REUSED).contains(&self.0.capacity()) {
            let mut free = FREE.get().lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < MAX_FREE {
                self.0.clear();
                free.push(std::mem::take(&mut self.0));
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
            let mut buffer = Buffer::with_capacity(MIN_REUSED);
            assert!(buffer.is_empty() && buffer.capacity() >= MIN_REUSED);
            buffer.resize(MIN_REUSED + usize::from(round), round);
        }
    }
}
