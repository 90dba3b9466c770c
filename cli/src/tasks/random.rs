//! The computations of the tasks over seeds. Independent of tasks, so that benchmarks can measure
//! the same work.

use rand::distr::Distribution;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;

/// Named instead of `StdRng`, whose algorithm may change with any release of `rand`: a task
/// promises the same results for a seed. Nearby seeds produce unrelated streams, since SplitMix64
/// spreads them.
pub(crate) type Stream = Xoshiro256PlusPlus;

/// Returns the stream of a seed.
pub(crate) fn stream(seed: u64) -> Stream {
    Stream::seed_from_u64(seed)
}

/// The default number of points of an estimate: some milliseconds of work.
pub(crate) const ESTIMATE_POINTS: u64 = 500_000;

/// Counts the random points in the quarter circle. The same seed always produces the same count.
pub(crate) fn inside(seed: u64, points: u64) -> u64 {
    let mut random = stream(seed);
    let mut inside = 0;
    for point in 0..points {
        // Rarely: a few milliseconds pass between.
        if point % (1 << 20) == 0 && point > 0 {
            procpool::progress(point, points);
        }
        let (x, y): (f64, f64) = (random.random(), random.random());
        inside += u64::from(x * x + y * y <= 1.0);
    }
    inside
}

/// Estimates π from random points.
pub(crate) fn estimate(seed: u64, points: u64) -> f64 {
    4.0 * inside(seed, points) as f64 / points as f64
}

/// The default number of points in a cloud.
pub(crate) const CLOUD_POINTS: u64 = 10_000;

/// The default seed of a cloud.
pub(crate) const CLOUD_SEED: u64 = 123;

/// The density at the origin of a 2-D Gaussian with unit covariance.
pub(crate) const TRUE_DENSITY: f64 = 1.0 / std::f64::consts::TAU;

/// Returns points of a 2-D Gaussian with unit covariance around the origin.
pub(crate) fn gaussian(seed: u64, points: u64) -> impl Iterator<Item = [f64; 2]> {
    let mut random = stream(seed);
    (0..points).map(move |_| {
        let x = StandardNormal.sample(&mut random);
        let y = StandardNormal.sample(&mut random);
        [x, y]
    })
}

/// Counts the points in a square around the centre, border included.
pub(crate) fn count_in_window(
    points: impl Iterator<Item = [f64; 2]>,
    centre: [f64; 2],
    width: f64,
) -> u64 {
    let within = |x: f64, centre: f64| ((centre - x) / width).abs() <= 0.5;
    points.filter(|[x, y]| within(*x, centre[0]) && within(*y, centre[1])).count() as u64
}

/// Returns the density that `k` of `n` points in a square of that width stand for.
pub(crate) fn density(k: u64, n: u64, width: f64) -> f64 {
    k as f64 / n as f64 / (width * width)
}
