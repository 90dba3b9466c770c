//! The round trip of a payload by size and type, beside a copy of it in memory.

#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use procpool::Pool;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn identity<T>(x: T) -> T {
    x
}

/// Sends `content` to a worker and back.
fn travel<T: Serialize + DeserializeOwned + Clone>(
    criterion: &mut Criterion,
    pool: &Pool,
    name: &str,
    bytes: usize,
    content: &T,
) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(bytes as u64)).sample_size(10);
    group.bench_function(BenchmarkId::from_parameter(bytes), |bencher| {
        bencher.iter_batched(
            || content.clone(),
            |content| pool.apply(identity::<T>, content).unwrap(),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn main() {
    procpool::init();
    let mut criterion = Criterion::default().configure_from_args();
    let pool = Pool::new(1).unwrap();
    for bytes in [4 << 10, 256 << 10, 4 << 20, 64 << 20] {
        let content: Vec<u8> = (0..bytes).map(|place| place as u8).collect();
        travel(&mut criterion, &pool, "Vec<u8>", bytes, &content);
        let mut group = criterion.benchmark_group("memcpy");
        group.throughput(Throughput::Bytes(bytes as u64)).sample_size(10);
        group.bench_function(BenchmarkId::from_parameter(bytes), |bencher| {
            bencher.iter_batched(|| (), |()| content.clone(), BatchSize::PerIteration);
        });
        group.finish();
    }
    let bytes = 4 << 20;
    let numbers: Vec<f64> = (0..bytes / 8).map(|place| place as f64).collect();
    travel(&mut criterion, &pool, "Vec<f64>", bytes, &numbers);
    let pairs: Vec<(u32, u32)> = (0..bytes as u32 / 8).map(|place| (place, !place)).collect();
    travel(&mut criterion, &pool, "Vec<(u32, u32)>", bytes, &pairs);
    let words: Vec<String> = (0..bytes / 16).map(|place| format!("{place:08}")).collect();
    travel(&mut criterion, &pool, "Vec<String>", bytes, &words);
    criterion.final_summary();
}
