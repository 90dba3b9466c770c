//! The random numbers of the tasks: one stream per seed, the same on every machine and in every
//! worker.

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

/// Named here rather than `StdRng`, whose algorithm may change with any release of `rand`: the
/// results of a seed are part of what a task promises. Nearby seeds give unrelated streams (they
/// are spread by SplitMix64).
pub(super) type Stream = Xoshiro256PlusPlus;

/// The stream of that seed.
pub(super) fn stream(seed: u64) -> Stream {
    Stream::seed_from_u64(seed)
}

/// What tasks over seeds want as an input.
pub(super) const A_SEED: &str =
    "a seed, which is a whole number from 0, or a range of them such as 0..8";
