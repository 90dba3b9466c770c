//! Arguments and results of any size.
#![allow(clippy::unwrap_used)]

mod support;

use procpool::Pool;
use support::{SideEffects, alone, kill, wait_until};

procpool::test_support!();

fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect()
}

/// Bytes of shared memory that this process has mapped.
fn mapped_shared() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let size = |line: &str| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        Some(u64::from_str_radix(to, 16).ok()? - u64::from_str_radix(from, 16).ok()?)
    };
    maps.lines().filter(|line| line.contains("memfd:")).filter_map(size).sum()
}

#[test]
fn any_size_passes_both_ways() {
    // The sizes around which the way of travelling changes: the frame's, the lane's, one fragment's.
    let edges = [192 << 10, 212_960, 252 << 10, 256 << 10].into_iter();
    let around = edges.flat_map(|edge: usize| (edge - 130)..(edge + 10)).step_by(7);
    let sizes: Vec<usize> = [0, 1, 2, 4095, 4096, 16 << 20].into_iter().chain(around).collect();
    let pool = Pool::new(2).unwrap();
    for result in pool.imap(echo, sizes.iter().map(|size| pattern(*size))).zip(&sizes) {
        let (bytes, size) = result;
        assert!(bytes.unwrap() == pattern(*size), "{size} bytes");
    }
    for size in [0, 1, 212_960, 1 << 20] {
        assert!(pool.apply(echo, pattern(size)).unwrap() == pattern(size), "{size} bytes");
    }
}

#[test]
fn results_above_a_mebibyte_pass() {
    let pool = Pool::new(2).unwrap();
    for size in [(1 << 20) + 1, 100 << 20] {
        let bytes = pool.apply(pattern, size).unwrap();
        assert!(bytes == pattern(size), "{size} bytes");
    }
}

#[test]
fn a_gibibyte_passes_as_argument_and_as_result() {
    const LEN: usize = 1 << 30;
    let pool = Pool::new(1).unwrap();
    let check = |bytes: Vec<u8>| (bytes.len(), bytes[0], bytes[LEN / 2], bytes[LEN - 1]);
    let make = |len: usize| {
        let mut bytes = vec![0u8; len];
        (bytes[0], bytes[len / 2], bytes[len - 1]) = (1, 2, 3);
        bytes
    };
    assert_eq!(pool.apply(check, make(LEN)).unwrap(), (LEN, 1, 2, 3));
    let bytes = pool.apply(make, LEN).unwrap();
    assert_eq!(check(bytes), (LEN, 1, 2, 3));
}

#[test]
fn large_arguments_and_results_at_once_do_not_deadlock() {
    let pool = Pool::builder().workers(3).chunk_size(4).build().unwrap();
    let inputs = || (0..48).map(|i| pattern(i * 40_000));
    let results = pool.map(echo, inputs()).unwrap();
    assert!(results.into_iter().eq(inputs()));
    let tasks: Vec<_> = inputs().map(|input| pool.apply_async(echo, input)).collect();
    assert!(tasks.into_iter().map(|task| task.get().unwrap()).eq(inputs()));
}

#[test]
fn memory_that_is_used_again_carries_each_value_and_no_other() {
    let pool = Pool::builder().workers(2).retries(1).build().unwrap();
    let input = |round: usize| pattern((1 << 20) - 50_000 * (round % 5) + round);
    for round in 0..8 {
        let tasks: Vec<_> = (0..3).map(|i| pool.apply_async(echo, input(round + i))).collect();
        if round % 4 == 1 {
            kill(pool.workers()[round / 4 % 2].pid, libc::SIGKILL);
        }
        for (i, task) in tasks.into_iter().enumerate() {
            assert!(task.get().unwrap() == input(round + i), "{round}, {i}");
        }
    }
}

#[test]
fn functions_with_results_of_all_widths_share_chunks() {
    let pool = Pool::new(2).unwrap();
    for _ in 0..3 {
        let bytes: Vec<_> = (0..3000u32).map(|x| pool.apply_async(|x| x as u8, x)).collect();
        let mixed: Vec<_> = (0..3000u32)
            .map(|x| (pool.apply_async(u64::from, x), pool.apply_async(|x: u32| x as u16, x)))
            .collect();
        let text: Vec<_> =
            (0..300u32).map(|x| pool.apply_async(|x: u32| x.to_string(), x)).collect();
        assert!(
            bytes.into_iter().map(|task| task.get().unwrap()).eq((0..3000u32).map(|x| x as u8))
        );
        for (x, (wide, narrow)) in (0u32..).zip(mixed) {
            assert_eq!((wide.get().unwrap(), narrow.get().unwrap()), (u64::from(x), x as u16));
        }
        for (x, text) in text.into_iter().enumerate() {
            assert_eq!(text.get().unwrap(), x.to_string());
        }
    }
}

#[test]
fn structured_data_passes() {
    type Nested = std::collections::BTreeMap<String, Vec<Option<(i8, f64, char)>>>;
    let pool = Pool::new(1).unwrap();
    let value: Nested = (0..500)
        .map(|i| (format!("key {i}"), vec![None, Some((i as i8, f64::from(i), 'ß'))]))
        .collect();
    assert_eq!(pool.apply(|value: Nested| value, value.clone()).unwrap(), value);
    let numbers: Vec<f64> = (0..100_000).map(f64::from).collect();
    assert_eq!(pool.apply(|numbers: Vec<f64>| numbers, numbers.clone()).unwrap(), numbers);
}

#[test]
fn shared_memory_is_freed_when_either_side_is_done_or_killed() {
    alone("shared_memory_is_freed_when_either_side_is_done_or_killed_alone");
}

#[test]
#[ignore = "run by the one before, alone"]
fn shared_memory_is_freed_when_either_side_is_done_or_killed_alone() {
    let pool = Pool::new(1).unwrap();
    pool.apply(echo, pattern(1000)).unwrap();
    let before = mapped_shared();
    assert!(before > 0, "the lane");
    for _ in 0..3 {
        pool.apply(echo, pattern(8 << 20)).unwrap();
    }
    let effects = SideEffects::new();
    let task = pool.apply_async(
        |(effects, bytes): (SideEffects, Vec<u8>)| {
            effects.note(0);
            std::thread::sleep(std::time::Duration::from_secs(3600));
            bytes
        },
        (effects.clone(), pattern(8 << 20)),
    );
    wait_until("the task runs", || effects.count(0) == 1);
    kill(pool.workers()[0].pid, libc::SIGKILL);
    assert!(task.get().is_err());
    pool.apply(echo, pattern(1000)).unwrap();
    // What is kept for the next large value is bounded, and does not grow.
    wait_until("it is freed", || mapped_shared() <= before);
    pool.terminate();
    drop(pool);
    wait_until("the lane is freed", || mapped_shared() == 0);
}
