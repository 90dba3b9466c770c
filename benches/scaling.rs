//! Pure work on one, two and more processes, beside threads and a plain loop.

#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{BenchmarkId, Criterion};
use procpool::Pool;
use rayon::prelude::*;

#[path = "../cli/src/tasks/random.rs"]
#[allow(dead_code)] // Not all of its work is measured here.
mod random;

const ESTIMATES: u64 = 64;

fn estimate(seed: u64) -> u64 {
    random::inside(seed, 100_000)
}

fn main() {
    procpool::init();
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("pi");
    group.sample_size(10);
    group.bench_function("serial", |bencher| {
        bencher.iter(|| (0..ESTIMATES).map(estimate).collect::<Vec<_>>());
    });
    for procs in [1, 2, 4] {
        let pool = Pool::new(procs).unwrap();
        group.bench_function(BenchmarkId::new("processes", procs), |bencher| {
            bencher.iter(|| pool.map(estimate, 0..ESTIMATES).unwrap());
        });
        let threads = rayon::ThreadPoolBuilder::new().num_threads(procs).build().unwrap();
        group.bench_function(BenchmarkId::new("threads", procs), |bencher| {
            bencher.iter(|| {
                threads.install(|| (0..ESTIMATES).into_par_iter().map(estimate).collect::<Vec<_>>())
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
