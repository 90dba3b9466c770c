//! Inputs and results as iterators and streams: lazy, bounded, and cancelled when dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::support::{SideEffects, alone, sleepy, square, wait_until};
use futures_util::StreamExt;
use procpool::Pool;

/// An endless input that counts how far it was read.
fn counted() -> (Arc<AtomicU64>, impl Iterator<Item = u64>) {
    let read = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&read);
    let count = move |_: &u64| {
        counter.fetch_add(1, Ordering::SeqCst);
    };
    (read, (0..).inspect(count))
}

/// Returns the resident memory of this process in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn an_infinite_input_is_read_a_bounded_window_ahead() {
    let pool = Pool::new(2).unwrap();
    let (read, input) = counted();
    assert_eq!(read.load(Ordering::SeqCst), 0, "nothing is read before it is asked for");
    let first: Vec<u64> = pool.imap(square, input).take(3).map(Result::unwrap).collect();
    assert_eq!(first, [0, 1, 4]);
    // A window is four chunks per worker, and a chunk of fast items has up to 65,536.
    assert!(read.load(Ordering::SeqCst) <= 2 * 4 * 65_536, "{read:?}");
    let (read, input) = counted();
    assert_eq!(pool.imap_unordered(sleepy, input.map(|_| 1)).take(10).count(), 10);
    assert!(read.load(Ordering::SeqCst) < 1000, "{read:?}");
}

#[test]
fn a_window_that_is_set_is_kept() {
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
fn an_input_that_panics_yields_the_earlier_results_and_the_pool_stays_usable() {
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
    // Submitted items return results, the others fail, and then the iterator ends.
    let rest: Vec<_> = results.collect();
    let answered = rest.iter().take_while(|result| result.is_ok()).count();
    assert!(rest[answered..].iter().all(Result::is_err));
    assert!(rest.len() > answered, "the end by closing is not mistaken for the input's");
}

#[test]
fn a_slow_consumer_bounds_the_memory() {
    alone!("a_slow_consumer_bounds_the_memory_alone");
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
            pool.workers()
                .iter()
                .for_each(|worker| crate::support::kill(worker.pid, libc::SIGKILL));
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
    alone!("a_hundred_thousand_tiny_tasks_leave_memory_flat_alone");
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
fn a_slow_item_delays_no_other() {
    let pool = Pool::builder().workers(2).chunk_size(100).build().unwrap();
    let start = Instant::now();
    // One chunk starts with the slow items. The other worker steals the items behind them.
    let results = pool.map(sleepy, [vec![1500], vec![0; 99], vec![30; 30]].concat()).unwrap();
    assert_eq!(results.len(), 130);
    let elapsed = start.elapsed();
    assert!(elapsed < Duration::from_millis(2500), "{elapsed:?} for a slowest item of 1.5 s");
}

#[test]
fn items_behind_a_slow_one_are_stolen_by_other_workers() {
    const TINY: u64 = 5000;
    fn task(x: u64) -> u64 {
        if x >= TINY {
            std::thread::sleep(Duration::from_millis(10));
        }
        x
    }
    let pool = Pool::builder().workers(2).chunk_size(6000).build().unwrap();
    // The workers have learned to claim many items at once.
    pool.map(task, 0..TINY).unwrap();
    let reports: Vec<_> = pool.imap(task, 0..TINY + 100).reports().collect();
    assert!(reports.iter().map(|report| report.result.clone().unwrap()).eq(0..TINY + 100));
    let slow = &reports[TINY as usize..];
    let first = slow.iter().filter(|report| report.worker == slow[0].worker).count();
    assert!((20..80).contains(&first), "{first} of 100 were done by one of two workers");
}

#[test]
fn a_map_that_takes_longer_than_measured_before_is_spread_over_workers() {
    fn nap(millis: u64) -> u32 {
        std::thread::sleep(Duration::from_millis(millis));
        std::process::id()
    }
    let pool = Pool::new(2).unwrap();
    // By the measured cost, six items take a microsecond: the caller sends all of them to one worker and spins
    // for the reply.
    for _ in 0..3 {
        pool.map(nap, vec![0; 1000]).unwrap();
    }
    let pids = pool.map(nap, [100; 6]).unwrap();
    assert!(pids.iter().any(|pid| *pid != pids[0]), "{pids:?}");
}

#[test]
fn a_panic_among_plain_numbers_costs_one_item() {
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

/// Polls a future on this thread, which sleeps until it is woken: a runtime without a reactor.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let deadline = Instant::now() + crate::support::SOON;
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let left = deadline.checked_duration_since(Instant::now()).expect("nothing has woken it");
        std::thread::park_timeout(left);
    }
}

#[test]
fn a_stream_yields_what_the_iterator_does_under_any_executor() {
    let pool = Pool::new(2).unwrap();
    let count = async {
        let in_order: Vec<u64> =
            pool.imap(square, 0..5000).into_stream().map(Result::unwrap).collect().await;
        assert!(in_order.into_iter().eq((0..5000).map(square)));
        let mut any_order: Vec<u64> =
            pool.imap_unordered(square, 0..500).into_stream().map(Result::unwrap).collect().await;
        any_order.sort_unstable();
        assert!(any_order.into_iter().eq((0..500).map(square)));
        // The input is infinite, and there are errors among the results.
        let odd = |x: u64| {
            assert!(!x.is_multiple_of(2));
            x
        };
        let mut results = pool.imap(odd, 0..).into_stream();
        for x in 0u64..50 {
            let result = results.next().await.unwrap();
            assert_eq!(result.is_ok(), !x.is_multiple_of(2), "{x}");
        }
        pool.imap(square, 0..0).into_stream().count().await
    };
    assert_eq!(block_on(count), 0);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let results = pool.imap(sleepy, [3, 2, 1]).into_stream();
    // Polled on a thread of the runtime, and moved between polls.
    let task = runtime.spawn(async move { results.map(Result::unwrap).collect::<Vec<_>>().await });
    assert_eq!(runtime.block_on(task).unwrap(), [3, 2, 1]);
}

#[test]
fn a_stream_of_reports_has_their_ids_and_an_input_that_panics_does_so_in_its_turn() {
    let pool = Pool::new(2).unwrap();
    let input = (0..100u64).inspect(|x| assert!(*x < 50, "no more"));
    let mut reports = pool.imap(square, input).reports().into_stream();
    block_on(async {
        for x in 0..50 {
            let report = reports.next().await.unwrap();
            assert_eq!((report.id, report.attempt, report.result), (x, 1, Ok(square(x))));
        }
    });
    assert!(catch_unwind(AssertUnwindSafe(|| block_on(reports.next()))).is_err());
    assert!(block_on(reports.next()).is_none());
}

#[test]
fn a_stream_that_is_dropped_cancels_the_rest() {
    let pool = Pool::new(2).unwrap();
    let effects = SideEffects::new();
    let task = |(effects, x): (SideEffects, u64)| {
        effects.note(x);
        if x > 0 {
            std::thread::sleep(Duration::from_secs(3600));
        }
    };
    let input = (0..50).map(|x| (effects.clone(), x));
    let mut results = pool.imap_unordered(task, input).into_stream();
    assert_eq!(block_on(results.next()), Some(Ok(())));
    wait_until("one of the others runs", || effects.noted().len() > 1);
    // Dropped while it is awaited, as in a `select!`.
    let mut next = results.next();
    let is_pending = std::future::poll_fn(|context| {
        Poll::Ready(std::pin::Pin::new(&mut next).poll(context).is_pending())
    });
    assert!(block_on(is_pending));
    drop(results);
    wait_until("nothing is left", || {
        let stats = pool.stats();
        (stats.queued, stats.running) == (0, 0)
    });
    assert_eq!(block_on(pool.imap(square, 0..10).into_stream().count()), 10);
}

#[test]
fn a_stream_of_a_pool_that_is_terminated_ends_with_errors() {
    let pool = Pool::new(1).unwrap();
    let forever = |_: u64| std::thread::sleep(Duration::from_secs(3600));
    let results = pool.imap(forever, 0..3).into_stream();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("it runs", || pool.stats().running > 0);
            pool.terminate();
        });
        let results: Vec<_> = block_on(results.collect());
        assert!(!results.is_empty() && results.iter().all(Result::is_err), "{results:?}");
    });
}
