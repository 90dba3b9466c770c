//! Sleeping on a word of shared memory.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};

/// Sleeps until `word` is woken, as long as it is `value`; false if `limit` is over before.
pub(crate) fn wait(word: &AtomicU32, value: u32, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).ok();
    futex::wait(word, Flags::empty(), value, limit.as_ref()) != Err(Errno::TIMEDOUT)
}

/// Wakes up to `most` of those that sleep on `word`, in whatever process they are,
/// and says how many that were.
pub(crate) fn wake(word: &AtomicU32, most: u32) -> usize {
    // The kernel counts in signed numbers.
    futex::wake(word, Flags::empty(), most.min(i32::MAX as u32)).unwrap_or(0)
}
