//! Random streams. What a task draws depends on the pool's seed and on the task, and not on the worker,
//! the chunk or the attempt.
//!
//! The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
//! OOPSLA 2014): a state that advances by [`GAMMA`], and [`finalize`], which turns a state into a number.
//! The items of a call have successive states; the number made from an item's state is the start of the
//! item's own stream. A span carries its first item's state, and the lane tells which item runs. So an
//! item that draws nothing costs nothing.

use std::cell::Cell;

use crate::shm::lane::Words;
use crate::shm::sys::entropy;

/// The increment of a state: 2^64 divided by the golden ratio.
pub const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns the number that a state stands for.
pub fn finalize(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// Returns the state `steps` after `state`.
pub fn advance(state: u64, steps: u64) -> u64 {
    state.wrapping_add(GAMMA.wrapping_mul(steps))
}

/// The span that runs on this thread.
#[derive(Clone, Copy)]
struct Running {
    lane: &'static Words,
    /// Its first item, counted through the chunk, and that item's state.
    first: u32,
    state: u64,
    /// The item that drew last, and how many numbers it has drawn.
    drawn: (u32, u64),
}

thread_local! {
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
}

/// Makes a span the one that runs on this thread.
pub(crate) fn begin_span(lane: &'static Words, first: u32, state: u64) {
    RUNNING.set(Some(Running { lane, first, state, drawn: (first, 0) }));
}

/// Ends the span that runs on this thread.
pub(crate) fn end_span() {
    RUNNING.set(None);
}

/// Returns the next number of the running task's stream, or an unpredictable one if no task runs.
pub fn next() -> u64 {
    let Some(mut running) = RUNNING.get() else { return entropy() };
    let item = running.lane.started().saturating_sub(1);
    let drawn = if running.drawn.0 == item { running.drawn.1 + 1 } else { 1 };
    running.drawn = (item, drawn);
    RUNNING.set(Some(running));
    let own = finalize(advance(running.state, item.saturating_sub(running.first).into()));
    finalize(advance(own, drawn))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_splitmix64() {
        // As printed by its authors' C program for the seed 1234567.
        let expected =
            [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431];
        assert_eq!([1, 2, 3, 4].map(|steps| finalize(advance(1_234_567, steps))), expected);
    }
}
