//! The cost of a call beside threads: a round trip, many calls at once, and many items in a `map`.

#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::sync::mpsc::sync_channel;

use criterion::{BatchSize, Criterion, Throughput};
use procpool::Pool;
use rayon::prelude::*;

const CALLS: u64 = 1_000;
const ITEMS: u64 = 100_000;

fn identity(x: u64) -> u64 {
    x
}

fn round_trip(criterion: &mut Criterion, pool: &Pool) {
    let mut group = criterion.benchmark_group("round trip");
    group.bench_function("apply", |bencher| bencher.iter(|| pool.apply(identity, 1).unwrap()));
    group.bench_function("apply_async and get", |bencher| {
        bencher.iter(|| pool.apply_async(identity, 1).get().unwrap());
    });
    group.bench_function("rayon", |bencher| {
        bencher.iter(|| {
            let (to, from) = sync_channel(1);
            rayon::spawn(move || to.send(identity(1)).unwrap());
            from.recv().unwrap()
        });
    });
    group.finish();
}

fn many(criterion: &mut Criterion, pool: &Pool) {
    let mut group = criterion.benchmark_group("many");
    group.throughput(Throughput::Elements(CALLS));
    group.bench_function("apply_async", |bencher| {
        bencher.iter_batched(
            || Vec::with_capacity(CALLS as usize),
            |mut tasks| {
                tasks.extend((0..CALLS).map(|x| pool.apply_async(identity, x)));
                tasks.into_iter().map(|task| task.get().unwrap()).sum::<u64>()
            },
            BatchSize::LargeInput,
        );
    });
    group.throughput(Throughput::Elements(ITEMS));
    group.bench_function("map", |bencher| {
        bencher.iter(|| pool.map(identity, 0..ITEMS).unwrap());
    });
    group.bench_function("imap_unordered", |bencher| {
        let sum = || pool.imap_unordered(identity, 0..ITEMS).map(Result::unwrap).sum::<u64>();
        bencher.iter(sum);
    });
    group.bench_function("rayon", |bencher| {
        bencher.iter(|| black_box(0..ITEMS).into_par_iter().map(identity).collect::<Vec<_>>());
    });
    group.finish();
}

fn main() {
    procpool::init();
    let mut criterion = Criterion::default().configure_from_args();
    let pool = Pool::new(0).unwrap();
    round_trip(&mut criterion, &pool);
    many(&mut criterion, &pool);
    criterion.final_summary();
}
