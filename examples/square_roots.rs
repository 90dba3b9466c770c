//! When processes pay off. It depends on what an item costs, and on the machine.
//!
//! A square root takes nanoseconds. To send a number to a worker and to receive its root takes longer than to
//! compute the root in the parent. So the pool is slower than the serial loop for ten thousand roots and for
//! five million, however many processes there are. A root by 100 steps costs about as much as its way to a
//! worker and back: whether the pool is faster depends on the machine. A root by 10,000 steps costs far more,
//! and the pool is faster by about the number of CPUs.
//!
//! `procpool compare --only break-even` finds the duration of an item from which processes are faster. On the
//! machine of the output below, with two CPUs and in a debug build, that is one to three
//! microseconds per item.
//!
//! ```text
//! $ cargo run --example square_roots
//! roots of 10..10000: serial 190.9µs, pool 4.1ms
//! roots of 10..5000000: serial 96.8ms, pool 464.5ms
//! roots by 100 steps of 10..100000: serial 142.8ms, pool 185.7ms
//! roots by 10000 steps of 10..5000: serial 703.8ms, pool 379.8ms
//! ```

use std::ops::Range;
use std::time::Instant;

use procpool::Pool;

fn root(x: f64) -> f64 {
    x.sqrt()
}

/// Computes a root by Newton's method, with far more steps than necessary.
fn root_by_steps<const STEPS: u32>(x: f64) -> f64 {
    (0..STEPS).fold(x, |guess, _| (guess + x / guess) / 2.0)
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
    compare(&pool, "roots by 100 steps", root_by_steps::<100>, 10..100_000)?;
    compare(&pool, "roots by 10000 steps", root_by_steps::<10_000>, 10..5_000)?;
    Ok(())
}
