//! The monotonic clock, which all processes share.

use rustix::time::{ClockId, clock_gettime};

/// Returns the time in nanoseconds.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}
