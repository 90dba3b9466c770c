//! Inputs and results as streams: read lazily, bounded, and given up cleanly.
#![allow(clippy::unwrap_used)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use procpool::Pool;
use support::{SideEffects, alone, sleepy, square, wait_until};

procpool::test_support!();

/// An endless input that counts how far it was read.
fn counted() -> (Arc<AtomicU64>, impl Iterator<Item = u64>) {
    let read = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&read);
    let count = move |_: &u64| {
        counter.fetch_add(1, Ordering::SeqCst);
    };
    (read, (0..).inspect(count))
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn of_an_infinite_input_the_first_answers_arrive_and_a_bounded_window_is_read() {
    let pool = Pool::new(2).unwrap();
    let (read, input) = counted();
    assert_eq!(read.load(Ordering::SeqCst), 0, "nothing is read before it is asked for");
    let first: Vec<u64> = pool.imap(square, input).take(3).map(Result::unwrap).collect();
    assert_eq!(first, [0, 1, 4]);
    // A window is four chunks for each worker, and a chunk 65,536 items, as long as those are quick.
    assert!(read.load(Ordering::SeqCst) <= 2 * 4 * 65_536, "{read:?}");
    let (read, input) = counted();
    assert_eq!(pool.imap_unordered(sleepy, input.map(|_| 1)).take(10).count(), 10);
    assert!(read.load(Ordering::SeqCst) < 1000, "{read:?}");
}

#[test]
fn a_window_that_was_asked_for_is_kept() {
    for size in [1, 5] {
        let pool = Pool::builder().workers(2).window(size).build().unwrap();
        let (read, input) = counted();
        for (taken, result) in pool.imap(square, input).take(200).enumerate() {
            result.unwrap();
            let ahead = read.load(Ordering::SeqCst) - taken as u64;
            assert!(ahead <= size as u64 + 1, "{ahead} ahead, {size} allowed");
        }
    }
}

#[test]
fn an_input_that_panics_half_way_gives_its_earlier_answers_and_the_pool_stays_usable() {
    let pool = Pool::new(2).unwrap();
    let input = || (0..100u64).inspect(|x| assert!(*x < 50, "no more"));
    let mut results = pool.imap(square, input());
    for x in 0..50 {
        assert_eq!(results.next(), Some(Ok(square(x))));
    }
    assert!(catch_unwind(AssertUnwindSafe(|| results.next())).is_err());
    assert_eq!(results.next(), None);
    assert!(catch_unwind(AssertUnwindSafe(|| pool.map(square, input()))).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| pool.map_async(square, input()))).is_err());
    assert_eq!(pool.map(square, 0..100).unwrap().len(), 100);
}

#[test]
fn when_the_consumer_stops_after_one_item_close_and_join_return() {
    let pool = Pool::new(2).unwrap();
    let mut results = pool.imap(square, 0..);
    assert_eq!(results.next(), Some(Ok(0)));
    pool.close();
    pool.join();
    // What had been accepted is answered, what had not is refused, and then it ends.
    let rest: Vec<_> = results.collect();
    let answered = rest.iter().take_while(|result| result.is_ok()).count();
    assert!(rest[answered..].iter().all(Result::is_err));
    assert!(rest.len() > answered, "the end by closing is not mistaken for the input's");
}

#[test]
fn a_slow_consumer_bounds_the_memory() {
    alone("a_slow_consumer_bounds_the_memory_alone");
}

#[test]
#[ignore = "run by the one before, alone"]
fn a_slow_consumer_bounds_the_memory_alone() {
    let pool = Pool::new(2).unwrap();
    let before = resident();
    let large = |_: u64| vec![1u8; 1 << 20];
    for result in pool.imap_unordered(large, 0..).take(300) {
        assert_eq!(result.unwrap().len(), 1 << 20);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 200 << 20, "{} MiB", grown >> 20);
}

#[test]
fn dropping_an_iterator_frees_everything_and_cancels_the_rest() {
    let pool = Pool::new(2).unwrap();
    let effects = SideEffects::new();
    let task = |effects: SideEffects| {
        effects.note(0);
        std::thread::sleep(Duration::from_secs(3600));
    };
    let mut results = pool.imap(task, vec![effects.clone(); 50]);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let pool = pool.clone();
        scope.spawn(move || {
            wait_until("tasks are running", || effects.count(0) > 0);
            // Ends the wait below.
            pool.workers().iter().for_each(|worker| support::kill(worker.pid, libc::SIGKILL));
        });
        assert!(results.next().unwrap().is_err());
    });
    drop(results);
    wait_until("nothing is left", || {
        let stats = pool.stats();
        (stats.queued, stats.running) == (0, 0)
    });
    assert_eq!(pool.map(square, 0..10).unwrap().len(), 10);
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_hundred_thousand_tiny_tasks_leave_memory_flat() {
    alone("a_hundred_thousand_tiny_tasks_leave_memory_flat_alone");
}

#[test]
#[ignore = "run by the one before, alone"]
fn a_hundred_thousand_tiny_tasks_leave_memory_flat_alone() {
    let pool = Pool::new(2).unwrap();
    let run = || {
        for (x, result) in (0..100_000).zip(pool.imap(square, 0..)) {
            assert_eq!(result, Ok(square(x)));
        }
    };
    run();
    let before = resident();
    run();
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{} KiB", grown >> 10);
}

#[test]
fn a_slow_item_holds_nobody_back() {
    let pool = Pool::builder().workers(2).chunk_size(100).build().unwrap();
    let start = Instant::now();
    // One chunk has the slow items at its front; the other worker takes over what is behind them.
    let results = pool.map(sleepy, [vec![1500], vec![0; 99], vec![30; 30]].concat()).unwrap();
    assert_eq!(results.len(), 130);
    let elapsed = start.elapsed();
    assert!(elapsed < Duration::from_millis(2500), "{elapsed:?} for a slowest item of 1.5 s");
}

#[test]
fn what_is_behind_a_slow_item_among_tiny_ones_is_done_by_others() {
    const TINY: u64 = 5000;
    fn task(x: u64) -> u64 {
        if x >= TINY {
            std::thread::sleep(Duration::from_millis(10));
        }
        x
    }
    let pool = Pool::builder().workers(2).chunk_size(6000).build().unwrap();
    // The workers have found that many can be claimed at once.
    pool.map(task, 0..TINY).unwrap();
    let reports: Vec<_> = pool.imap(task, 0..TINY + 100).reports().collect();
    assert!(reports.iter().map(|report| report.result.clone().unwrap()).eq(0..TINY + 100));
    let slow = &reports[TINY as usize..];
    let first = slow.iter().filter(|report| report.worker == slow[0].worker).count();
    assert!((20..80).contains(&first), "{first} of 100 were done by one of two workers");
}

#[test]
fn a_map_that_was_to_be_short_and_is_not_is_shared_out_all_the_same() {
    fn nap(millis: u64) -> u32 {
        std::thread::sleep(Duration::from_millis(millis));
        std::process::id()
    }
    let pool = Pool::new(2).unwrap();
    // By all that is known, six take a microsecond: their caller gives all of them to one worker, and
    // stays awake for them.
    for _ in 0..3 {
        pool.map(nap, vec![0; 1000]).unwrap();
    }
    let pids = pool.map(nap, [100; 6]).unwrap();
    assert!(pids.iter().any(|pid| *pid != pids[0]), "{pids:?}");
}

#[test]
fn a_panic_among_plain_numbers_costs_its_item_alone() {
    fn task(x: u32) -> u16 {
        assert!(!x.is_multiple_of(97), "{x}");
        x as u16
    }
    let pool = Pool::new(2).unwrap();
    for _ in 0..2 {
        for (x, result) in (0u32..20_000).zip(pool.imap(task, 0..20_000)) {
            match result {
                Ok(y) => assert!(!x.is_multiple_of(97) && y == x as u16, "{x} gave {y}"),
                Err(error) => assert!(x.is_multiple_of(97), "{x}: {error}"),
            }
        }
    }
}

#[test]
fn results_arrive_while_their_chunk_still_runs() {
    let pool = Pool::builder().workers(1).chunk_size(3).build().unwrap();
    let start = Instant::now();
    let mut results = pool.imap_unordered(sleepy, [20, 20, 3000]);
    assert_eq!(results.next(), Some(Ok(20)));
    let elapsed = start.elapsed();
    assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
}
