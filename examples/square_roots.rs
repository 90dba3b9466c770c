//! When processes pay off: a square root is so cheap that sending a number and its root costs more than
//! computing it, however many there are. A hundred steps of work per number cost about as much as sending
//! it and its result, so the gain depends on the number of CPUs. The output on two CPUs:
//!
//! ```text
//! $ cargo run --release --example square_roots
//! roots of 10..10000: serial 64.4µs, pool 1.5ms
//! roots of 10..5000000: serial 80.9ms, pool 183.9ms
//! roots by 100 steps of 10..100000: serial 57.9ms, pool 43.1ms
//! ```

use std::ops::Range;
use std::time::Instant;

use procpool::Pool;

fn root(x: f64) -> f64 {
    x.sqrt()
}

/// Computes a root by Newton's method, with far more steps than necessary.
fn root_by_steps(x: f64) -> f64 {
    (0..100).fold(x, |guess, _| (guess + x / guess) / 2.0)
}

/// Returns the sum of all roots from 1 to `n`, by the Euler–Maclaurin formula.
fn sum_to(n: f64) -> f64 {
    n.powf(1.5) * 2.0 / 3.0 + n.sqrt() / 2.0 - 0.207_886_224_977_354_57 + n.powf(-0.5) / 24.0
}

fn compare(
    pool: &Pool,
    what: &str,
    f: fn(f64) -> f64,
    numbers: Range<u32>,
) -> Result<(), procpool::TaskError> {
    let start = Instant::now();
    let serial: Vec<f64> = numbers.clone().map(f64::from).map(f).collect();
    let alone = start.elapsed();
    let start = Instant::now();
    let parallel = pool.map(f, numbers.clone().map(f64::from))?;
    println!("{what} of {numbers:?}: serial {alone:.1?}, pool {:.1?}", start.elapsed());
    assert_eq!(serial, parallel);
    let known =
        sum_to(f64::from(numbers.end - 1)) - (1..10).map(f64::from).map(f64::sqrt).sum::<f64>();
    assert!((parallel.iter().sum::<f64>() / known - 1.0).abs() < 1e-9, "those are no roots");
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procpool::init();
    let pool = Pool::new(0)?;
    compare(&pool, "roots", root, 10..10_000)?;
    compare(&pool, "roots", root, 10..5_000_000)?;
    compare(&pool, "roots by 100 steps", root_by_steps, 10..100_000)?;
    Ok(())
}
