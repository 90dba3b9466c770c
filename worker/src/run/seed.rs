//! Random streams: what a task draws depends on the pool's seed and on which task it is, and not on
//! which worker runs it, in which chunk, or at which attempt.
//!
//! Everything is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
//! OOPSLA 2014): a state that goes on by [`GAMMA`], and [`mix`], which makes a number of it. The items
//! of a call have successive states; the number made of an item's is the state that its own stream
//! starts from. A span says its first item's state; which of them runs is known from the lane, so that
//! an item that draws nothing costs nothing.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};

use crate::lane::Words;

/// How a state goes on: 2^64 divided by the golden ratio.
pub const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The number that is made of a state.
pub fn mix(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// The state that follows after `steps`.
pub fn after(state: u64, steps: u64) -> u64 {
    state.wrapping_add(GAMMA.wrapping_mul(steps))
}

/// A number that nobody has drawn before, for whoever has no seed.
pub fn fresh() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The span that runs on this thread.
#[derive(Clone, Copy)]
struct Running {
    lane: &'static Words,
    /// Its first item, counted through the chunk, and that one's state.
    first: u32,
    state: u64,
    /// The item that has drawn last, and how many numbers.
    drawn: (u32, u64),
}

thread_local! {
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
}

/// From now on a span runs.
pub(crate) fn enter(lane: &'static Words, first: u32, state: u64) {
    RUNNING.set(Some(Running { lane, first, state, drawn: (first, 0) }));
}

/// No span runs any more.
pub(crate) fn leave() {
    RUNNING.set(None);
}

/// The next number of the running task's stream; a fresh one where no task runs.
pub fn next() -> u64 {
    let Some(mut running) = RUNNING.get() else { return fresh() };
    let item = running.lane.started().saturating_sub(1);
    let drawn = if running.drawn.0 == item { running.drawn.1 + 1 } else { 1 };
    running.drawn = (item, drawn);
    RUNNING.set(Some(running));
    let own = mix(after(running.state, item.saturating_sub(running.first).into()));
    mix(after(own, drawn))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_splitmix64() {
        // As printed by its authors' C program for the seed 1234567.
        let expected =
            [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431];
        assert_eq!([1, 2, 3, 4].map(|steps| mix(after(1_234_567, steps))), expected);
    }
}
