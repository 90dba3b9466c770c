//! Handles on tasks, results and processes: waiting, polling, cancelling, awaiting.

use std::time::{Duration, Instant};

use crate::support::{SOON, Secret, sleepy};
use procpool::{Pool, TaskErrorKind, TaskOptions, Timeout, WaitFor};

#[test]
fn tasks_are_returned_in_the_order_in_which_they_complete() {
    let pool = Pool::new(2).unwrap();
    // The first worker is busy until the last of the others is done.
    let slow = pool.apply_async(sleepy, 400);
    let quick: Vec<_> = (1..5).map(|millis| pool.apply_async(sleepy, millis)).collect();
    let mut tasks = procpool::as_completed(std::iter::once(slow).chain(quick));
    assert_eq!(tasks.size_hint(), (5, Some(5)));
    let results: Vec<u64> = tasks.by_ref().map(|task| task.get().unwrap()).collect();
    assert_eq!(results, [1, 2, 3, 4, 400]);
    assert!(tasks.is_empty() && tasks.next_timeout(SOON).is_none());
}

#[test]
fn a_wait_for_tasks_ends_with_the_first_with_all_or_at_its_limit() {
    let pool = Pool::new(2).unwrap();
    let tasks = vec![pool.apply_async(sleepy, 30_000), pool.apply_async(sleepy, 1)];
    assert!(procpool::wait(&tasks, WaitFor::First, Some(SOON)));
    assert!(!procpool::wait(&tasks, WaitFor::All, Some(Duration::from_millis(20))));
    tasks[0].cancel();
    assert!(procpool::wait(&tasks, WaitFor::All, Some(SOON)));
    assert!(procpool::wait::<u64>(&[], WaitFor::All, None));
}

#[test]
fn a_task_is_cancelled_from_elsewhere_or_with_its_handle() {
    let pool = Pool::new(1).unwrap();
    let task = pool.apply_async(sleepy, 30_000);
    let canceller = task.canceller();
    std::thread::spawn(move || canceller.cancel()).join().unwrap();
    assert_eq!(task.get().unwrap_err().kind(), &TaskErrorKind::Cancelled);

    drop(pool.apply_async(sleepy, 30_000).cancel_on_drop());
    let begun = Instant::now();
    assert_eq!(pool.apply(sleepy, 1), Ok(1));
    assert!(begun.elapsed() < Duration::from_secs(20), "it waited for what nobody has");
    // A task with a callback has no other handle.
    let (send, recv) = std::sync::mpsc::channel();
    pool.apply_async(sleepy, 20).cancel_on_drop().on_done(move |result| send.send(result).unwrap());
    assert_eq!(recv.recv_timeout(SOON), Ok(Ok(20)));
}

#[test]
fn results_are_waited_for_with_a_limit() {
    let pool = Pool::new(1).unwrap();
    let mut results = pool.imap(sleepy, [1, 500]);
    assert_eq!(results.next_timeout(SOON), Ok(Some(Ok(1))));
    assert_eq!(results.next_timeout(Duration::from_millis(10)), Err(Timeout));
    assert_eq!(results.next_timeout(SOON), Ok(Some(Ok(500))));
    assert_eq!(results.next_timeout(SOON), Ok(None));
}

#[test]
fn a_context_is_shared_by_lazy_results_and_single_calls() {
    let pool = Pool::new(2).unwrap();
    let times = |factor: &u64, x: u64| factor * x;
    let products: Vec<_> =
        pool.imap_with(3, times, 0..).unwrap().take(4).map(Result::unwrap).collect();
    assert_eq!(products, [0, 3, 6, 9]);
    let mut products: Vec<_> =
        pool.imap_unordered_with(5, times, 0..100).unwrap().map(Result::unwrap).collect();
    products.sort_unstable();
    assert!(products.into_iter().eq((0..100).map(|x| 5 * x)));
    assert_eq!(pool.apply_with(7, times, 6), Ok(42));
    let error = pool.imap_with(Secret, |_: &Secret, x: u64| x, 0..3).unwrap_err();
    assert!(matches!(error.kind(), TaskErrorKind::Encode { .. }), "{error}");
}

#[test]
fn a_task_knows_its_worker() {
    let pool = Pool::builder().workers(2).name("parsers").build().unwrap();
    assert_eq!(procpool::worker(), None);
    let of = |()| procpool::worker().map(|worker| (worker.pool, worker.slot));
    let workers: Vec<_> = pool.broadcast(of, ()).into_iter().map(Result::unwrap).collect();
    assert_eq!(workers, [0, 1].map(|slot| Some(("parsers".to_owned(), slot))));
}

#[test]
fn a_task_knows_which_attempt_it_is() {
    fn third(x: u64) -> (u64, u32) {
        let attempt = procpool::worker().unwrap().attempt;
        // Also on another thread.
        let other = std::thread::spawn(|| procpool::worker().unwrap().attempt);
        assert_eq!(other.join().unwrap(), attempt);
        if x.is_multiple_of(10) && attempt < 3 {
            std::process::abort();
        }
        (x, attempt)
    }
    let pool = Pool::new(2).unwrap().with_options(TaskOptions::new().retries(2));
    let reports: Vec<_> = pool.imap(third, 0..40).reports().collect();
    for (x, report) in (0..).zip(reports) {
        let attempt = if x % 10 == 0 { 3 } else { 1 };
        assert_eq!((report.attempt, report.result), (attempt, Ok((x, attempt))));
    }
    assert_eq!(pool.apply(third, 1), Ok((1, 1)), "the worker does not keep the number");
}

#[test]
fn an_error_of_a_task_is_one_of_the_program() {
    fn run(pool: &Pool) -> Result<u64, procpool::Error> {
        Ok(pool.apply(|_: u64| panic!("no"), 1)?)
    }
    let error = run(&Pool::new(1).unwrap()).unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
}
