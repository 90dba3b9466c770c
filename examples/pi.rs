//! Estimates π by the Monte Carlo method: π/4 of random points in a square lie in the circle. Each task
//! draws its points from a seed of its own, so the pool and the serial run return the same estimate.
//!
//! ```text
//! $ cargo run --release --example pi
//! serial          π ≈ 3.14083  72.5ms
//! by 4 processes  π ≈ 3.14083  44.2ms
//! ```

use std::time::Instant;

use procpool::Pool;

const POINTS: u64 = 10_000_000;
const SEEDS: u64 = 16;

/// Returns how many of a seed's points lie in the circle.
fn hits(seed: u64) -> u64 {
    let mut state = seed;
    let mut random = || {
        // SplitMix64, scaled to 0..1.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let is_hit = |_: &u64| random().powi(2) + random().powi(2) < 1.0;
    (0..POINTS / SEEDS).filter(is_hit).count() as u64
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let pool = Pool::new(4)?;
    let pi = |hits: u64| 4.0 * hits as f64 / POINTS as f64;

    let start = Instant::now();
    let serial = pi((0..SEEDS).map(hits).sum());
    println!("serial          π ≈ {serial:.5}  {:.1?}", start.elapsed());

    let start = Instant::now();
    let parallel = pi(pool.map(hits, 0..SEEDS)?.iter().sum());
    println!("by 4 processes  π ≈ {parallel:.5}  {:.1?}", start.elapsed());

    assert_eq!(serial, parallel);
    assert!((parallel - std::f64::consts::PI).abs() < 0.002, "that is no π");
    Ok(())
}
