//! What processes share: memory that is in one place however many have it.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use procpool::shared::{SharedSlice, SharedValue};
use procpool::sync::Lock;
use procpool::{Pool, TaskErrorKind, TaskOptions, ValueSide};
use support::{alone, kill, wait_until};

procpool::test_support!();

/// The lines `field` (in KiB) of a process's mappings of shared memory of just this size.
fn mappings(pid: u32, bytes: usize, field: &str) -> Vec<usize> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut found = Vec::new();
    let mut is_ours = false;
    for line in maps.lines() {
        let (name, value) = line.split_once(':').unwrap();
        let value = value.trim_end_matches("kB").trim().parse::<usize>();
        if line.contains(" rw-s ") || line.contains(" r--p ") {
            is_ours = line.contains("memfd:procpool");
        } else if name == "Size" {
            is_ours &= value == Ok(bytes / 1024);
        }
        if is_ours && name == field {
            found.push(value.unwrap());
        }
    }
    found
}

fn sum((numbers, from): (SharedSlice<u64>, usize)) -> u64 {
    numbers[from..].iter().sum()
}

#[test]
fn a_shared_slice_is_read_by_tasks_wherever_it_is_in_their_argument() {
    let numbers = SharedSlice::new([1, 2, 3]).unwrap();
    let pool = Pool::new(2).unwrap();
    assert_eq!(
        pool.apply(|numbers: SharedSlice<u64>| numbers.to_vec(), numbers.clone()).unwrap(),
        [1, 2, 3]
    );
    assert_eq!(pool.apply(sum, (numbers.clone(), 1)), Ok(5));
    let many = (0..1000).map(|i| (numbers.clone(), i % 3));
    assert_eq!(pool.map(sum, many).unwrap()[..4], [6, 5, 3, 6]);
    let nested = |all: Vec<Option<SharedSlice<u64>>>| all.into_iter().flatten().map(|n| n[2]).sum();
    let argument = vec![Some(numbers.clone()), None, Some(numbers.clone())];
    assert_eq!(pool.apply(nested, argument), Ok(6u64));
    assert_eq!(pool.apply_async(sum, (numbers, 2)).get(), Ok(3));
}

#[test]
fn a_shared_slice_is_written_in_place_once() {
    let squares = SharedSlice::build(1000, |squares: &mut [u32]| {
        assert!(squares.iter().all(|x| *x == 0));
        (0..).zip(squares).for_each(|(x, square)| *square = x * x);
    });
    let squares = squares.unwrap();
    assert_eq!((squares.len(), squares[999]), (1000, 998_001));
    let empty = SharedSlice::<f64>::new([]).unwrap();
    assert!(empty.is_empty());
    let pool = Pool::new(1).unwrap();
    assert_eq!(pool.apply(|empty: SharedSlice<f64>| empty.len(), empty), Ok(0));
    assert!(SharedSlice::<u64>::build(usize::MAX / 2, |_| ()).is_err());
}

#[test]
fn a_shared_slice_can_be_kept_by_an_initializer_and_reaches_each_new_worker() {
    let numbers = SharedSlice::new([4, 5, 6]).unwrap();
    let pool = Pool::builder().workers(2).retries(1);
    let pool = pool.initializer(|numbers: SharedSlice<u64>| numbers, numbers).build().unwrap();
    let total = |()| procpool::with_state(|numbers: &mut SharedSlice<u64>| numbers.iter().sum());
    for worker in pool.workers() {
        assert_eq!(pool.apply(total, ()), Ok(Some(15u64)));
        kill(worker.pid, libc::SIGKILL);
    }
    assert_eq!(pool.apply(total, ()), Ok(Some(15)));
}

#[test]
fn a_worker_passes_a_shared_slice_on_to_workers_of_its_own() {
    fn in_turn((numbers, depth): (SharedSlice<u64>, u32)) -> u64 {
        if depth == 0 {
            return numbers.iter().sum();
        }
        Pool::new(1).unwrap().apply(in_turn, (numbers, depth - 1)).unwrap()
    }
    let numbers = SharedSlice::new([7, 8, 9]).unwrap();
    assert_eq!(Pool::new(1).unwrap().apply(in_turn, (numbers, 2)), Ok(24));
}

#[test]
fn a_task_that_is_run_again_finds_what_it_was_given() {
    let marker = tempfile::NamedTempFile::new().unwrap();
    fn die_once((numbers, marker): (SharedSlice<u64>, std::path::PathBuf)) -> u64 {
        if fs::remove_file(marker).is_ok() {
            std::process::abort();
        }
        numbers.iter().sum()
    }
    let pool = Pool::new(1).unwrap().with_options(TaskOptions::new().retries(1));
    let task = {
        let numbers = SharedSlice::new([1, 2]).unwrap();
        pool.apply_async(die_once, (numbers, marker.path().to_owned()))
    };
    assert_eq!(task.get(), Ok(3));
}

#[test]
fn a_shared_slice_costs_its_memory_once_however_many_workers_read_it() {
    const BYTES: usize = 64 << 20;
    let numbers = SharedSlice::build(BYTES / 8, |numbers: &mut [u64]| numbers.fill(1)).unwrap();
    let pool = Pool::new(4).unwrap();
    let total = |numbers: SharedSlice<u64>| numbers.iter().sum();
    // Each of the workers holds it until all four have read it.
    let meet = support::SideEffects::new();
    let read = |(numbers, meet, me): (SharedSlice<u64>, support::SideEffects, u64)| {
        let total: u64 = numbers.iter().sum();
        meet.note(me);
        wait_until("the others have read", || meet.noted().len() >= 5);
        total
    };
    let tasks: Vec<_> =
        (0..4).map(|i| pool.apply_async(read, (numbers.clone(), meet.clone(), i))).collect();
    wait_until("all four have read", || meet.noted().len() == 4);
    let pids = pool.workers().into_iter().map(|worker| worker.pid);
    let everyone: Vec<u32> = pids.chain([std::process::id()]).collect();
    let sum_of =
        |field| everyone.iter().flat_map(|pid| mappings(*pid, BYTES, field)).sum::<usize>();
    let (mapped, proportional) = (sum_of("Rss"), sum_of("Pss"));
    meet.note(4);
    for task in tasks {
        assert_eq!(task.get(), Ok(BYTES as u64 / 8));
    }
    assert!(mapped >= 4 * BYTES / 1024, "{mapped} KiB are seen");
    assert!(proportional <= BYTES / 1024 + 4 * 4, "{proportional} KiB are used");
    assert_eq!(pool.apply(total, numbers), Ok(BYTES as u64 / 8));
}

#[test]
fn a_shared_slice_that_nobody_uses_any_more_is_freed() {
    const BYTES: usize = 3 << 20;
    let pool = Pool::new(2).unwrap();
    let numbers = SharedSlice::new(vec![1u64; BYTES / 8]).unwrap();
    let sums = pool.map(sum, (0..100).map(|_| (numbers.clone(), 0))).unwrap();
    assert_eq!(sums, [BYTES as u64 / 8; 100]);
    let pids: Vec<u32> = pool.workers().into_iter().map(|worker| worker.pid).collect();
    assert_eq!(mappings(std::process::id(), BYTES, "Size").len(), 1);
    drop(numbers);
    wait_until("the workers let go of it", || {
        pids.iter().all(|pid| mappings(*pid, BYTES, "Size").is_empty())
    });
    assert_eq!(mappings(std::process::id(), BYTES, "Size").len(), 0);
}

#[test]
fn what_cannot_keep_a_shared_slice_alive_refuses_it_and_says_where_it_belongs() {
    let pool = Pool::new(1).unwrap();
    let make = |()| SharedSlice::new([1u8]).unwrap();
    let error = pool.apply(make, ()).map(|_| ()).unwrap_err();
    let TaskErrorKind::Encode { side: ValueSide::Result, reason } = error.kind() else {
        panic!("{error}")
    };
    assert!(reason.contains("only be sent in an argument"), "{reason}");
}

#[test]
fn a_shared_slice_cannot_be_written_by_anybody() {
    let numbers = SharedSlice::new([1u64; 512]).unwrap();
    let pool = Pool::new(1).unwrap();
    let overwrite = |numbers: SharedSlice<u64>| {
        // SAFETY: none; that is the point.
        unsafe { numbers.as_ptr().cast_mut().write_volatile(2) }
    };
    let error = pool.apply(overwrite, numbers.clone()).unwrap_err();
    assert!(matches!(error.kind(), TaskErrorKind::Died { .. }), "{error}");
    assert_eq!(numbers[0], 1);
}

#[test]
fn five_thousand_values_and_locks_need_few_descriptors() {
    alone("five_thousand_of_each");
}

#[test]
#[ignore = "run by `five_thousand_values_and_locks_need_few_descriptors`, alone"]
fn five_thousand_of_each() {
    let limit = libc::rlimit { rlim_cur: 1024, rlim_max: 1024 };
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let both: Vec<_> =
        (0..5000).map(|x| (SharedValue::new(x).unwrap(), Lock::new().unwrap())).collect();
    let pool = Pool::new(2).unwrap();
    let add = |(value, lock): (SharedValue<u64>, Lock)| {
        let _guard = lock.lock();
        *value.lock() += 1;
        // Made in a worker, and of no concern to others.
        *SharedValue::new(7u64).unwrap().lock()
    };
    let made = pool.map(add, both.iter().step_by(10).cloned()).unwrap();
    assert_eq!(made, [7; 500]);
    for (x, (value, _)) in (0..).zip(&both) {
        assert_eq!(value.get(), x + u64::from(x % 10 == 0));
    }
}
