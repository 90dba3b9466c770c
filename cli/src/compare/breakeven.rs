//! Break-even: the item duration from which processes pay off, in a `map` with the pool's chunk
//! sizes.

use std::hint::black_box;

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde::Serialize;

use super::machine::cores;
use super::measure::{Contender, Sample, SampleSize, seconds, take_turns};
use procpool::Pool;

/// Item durations in nanoseconds, from almost nothing to a millisecond.
const FULL: &[u64] = &[
    3, 10, 20, 30, 50, 70, 100, 200, 300, 500, 700, 1_000, 2_000, 3_000, 5_000, 7_000, 10_000,
    20_000, 50_000, 100_000, 1_000_000,
];
const QUICK: &[u64] = &[3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 100_000];

/// The ratio to threads that counts as close.
const CLOSE: f64 = 1.05;

/// The most items of a measurement.
const MAX_ITEMS: u64 = 2_000_000;

#[derive(Debug, Serialize)]
pub(super) struct BreakEven {
    /// The number of threads and processes.
    pub(super) procs: usize,
    pub(super) points: Vec<Point>,
    /// The shortest item duration, in seconds, from which processes beat the serial run.
    pub(super) beats_serial: Option<f64>,
    /// The shortest item duration from which processes are within 5 % of threads.
    pub(super) near_threads: Option<f64>,
}

/// The measurements of one item duration.
#[derive(Debug, Serialize)]
pub(super) struct Point {
    /// The measured seconds of one item.
    pub(super) item: f64,
    pub(super) items: u64,
    pub(super) serial: Sample,
    pub(super) threads: Sample,
    pub(super) processes: Sample,
    /// The speed-up over the serial run.
    pub(super) speed_up: Sample,
    /// The time relative to threads.
    pub(super) beside_threads: Sample,
}

pub(super) fn measure(size: &SampleSize) -> Result<BreakEven> {
    let procs = cores();
    let pool = Pool::new(procs).context("failed to start the pool")?;
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(procs)
        .build()
        .context("failed to start the threads")?;
    let steps_per_nano = calibrate();
    let long = size.of(0.1, 0.03);
    let mut points = Vec::new();
    for nanos in size.of(FULL, QUICK) {
        let steps = (*nanos as f64 * steps_per_nano) as u32;
        let items = ((long * 1e9 / *nanos as f64) as u64).clamp(50, MAX_ITEMS);
        points.push(point(steps, items, &pool, &threads, size.repetitions)?);
    }
    let from = |holds: fn(&Point) -> bool| {
        // From there on, not only there.
        let holding = points.iter().rev().take_while(|point| holds(point)).last();
        holding.map(|point| point.item)
    };
    let beats_serial = from(|point| point.speed_up.median > 1.0);
    let near_threads = from(|point| point.beside_threads.median <= CLOSE);
    Ok(BreakEven { procs, beats_serial, near_threads, points })
}

fn point(
    steps: u32,
    items: u64,
    pool: &Pool,
    threads: &rayon::ThreadPool,
    repetitions: usize,
) -> Result<Point> {
    let work: Vec<u32> = vec![steps; items as usize];
    let serial: Contender<'_> =
        Box::new(|| Ok(seconds(|| work.iter().copied().map(spin).collect::<Vec<_>>()).0));
    let by_threads: Contender<'_> = Box::new(|| {
        let work = || work.par_iter().copied().map(spin).collect::<Vec<_>>();
        Ok(seconds(|| threads.install(work)).0)
    });
    let by_processes: Contender<'_> = Box::new(|| {
        let (time, done) = seconds(|| pool.map(spin, work.iter().copied()));
        done?;
        Ok(time)
    });
    let [serial, threads, processes] = take_turns(repetitions, [serial, by_threads, by_processes])?;
    Ok(Point {
        item: serial.median / items as f64,
        items,
        speed_up: serial.over(&processes),
        beside_threads: processes.over(&threads),
        serial,
        threads,
        processes,
    })
}

/// An item: arithmetic that takes time proportional to `steps`, and no memory.
fn spin(steps: u32) -> u32 {
    let mut state = steps | 1;
    for _ in 0..steps {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state = black_box(state);
    }
    state
}

/// Measures how many steps take a nanosecond.
fn calibrate() -> f64 {
    const STEPS: u32 = 1_000_000;
    let fastest = (0..7).map(|_| seconds(|| spin(STEPS)).0).fold(f64::INFINITY, f64::min);
    f64::from(STEPS) / (fastest * 1e9)
}
