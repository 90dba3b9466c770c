//! The start of a pool by its size, beside the start of an idle copy of this program.

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;

use criterion::{BatchSize, BenchmarkId, Criterion};
use procpool::Pool;

/// Set in a copy of this program that must exit at once.
const COPY: &str = "PROCPOOL_BENCH_COPY";

fn identity(x: u64) -> u64 {
    x
}

fn main() {
    procpool::init();
    if std::env::var_os(COPY).is_some() {
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("start");
    group.bench_function("a copy of oneself", |bencher| {
        bencher.iter(|| Command::new("/proc/self/exe").env(COPY, "1").status().unwrap());
    });
    group.bench_function("a thread", |bencher| {
        bencher.iter(|| std::thread::spawn(|| identity(1)).join().unwrap());
    });
    for workers in [1, 2, 8] {
        let start = |()| {
            let pool = Pool::new(workers).unwrap();
            pool.apply(identity, 1).unwrap();
            pool // whose end is not timed
        };
        group.bench_function(BenchmarkId::new("pool and first answer", workers), |bencher| {
            bencher.iter_batched(|| (), start, BatchSize::PerIteration);
        });
    }
    group.finish();
    criterion.final_summary();
}
