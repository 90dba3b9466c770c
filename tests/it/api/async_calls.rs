//! Async programs: back-pressure, streams, updates and the pool's end, under each kind of runtime.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use procpool::{Pool, QueueFull, TaskErrorKind, sync};

use crate::support::{SOON, kill, sleepy, square, wait_until};

/// Runs a future on this thread, without a runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut future = pin!(future);
    let deadline = Instant::now() + SOON;
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park_timeout(deadline - Instant::now()),
        }
        assert!(Instant::now() < deadline, "it is never ready");
    }
}

/// Everything that an async program does with a pool. 200 calls, of which at most 4 wait in the queue; some crash.
async fn all_of_it() {
    fn work(x: u64) -> u64 {
        if x % 50 == 13 {
            std::process::abort();
        }
        procpool::emit(&x).unwrap();
        x * x
    }
    let pool = Pool::builder().workers(2).max_queued(4).build().unwrap();
    let mut tasks = Vec::new();
    for x in 0..200 {
        let task = pool.reserve().await.unwrap().apply_async(work, x);
        // A worker that dies gives back those that it had taken and not started: at most 4 each.
        assert!(pool.stats().queued <= 4 + 2 * 4, "{:?}", pool.stats());
        tasks.push(task);
    }
    for (x, task) in (0..).zip(tasks) {
        let said: Vec<_> = task.updates::<u64>().into_stream().map(Result::unwrap).collect().await;
        match task.await {
            Ok(result) => assert_eq!((result, said[0].value, said.len()), (x * x, x, 1)),
            Err(error) => assert!(x % 50 == 13 && said.is_empty(), "{error}"),
        }
    }
    let squares: Vec<_> =
        pool.imap(square, 0..500).into_stream().map(Result::unwrap).collect().await;
    assert_eq!(squares, (0..500).map(square).collect::<Vec<_>>());
    // A dropped future cancels its task where asked.
    let hangs = pool.apply_async(sleepy, 3_600_000).cancel_on_drop();
    wait_until("it runs", || pool.stats().running == 1);
    drop(hangs);
    assert!(pool.join_async().await);
    let refused = pool.reserve().await.unwrap_err();
    assert_eq!(refused.kind(), &TaskErrorKind::Closed);
}

#[test]
fn a_plain_block_on_runs_all_of_it() {
    block_on(all_of_it());
}

#[test]
fn tokio_with_one_thread_runs_all_of_it() {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(all_of_it());
}

#[test]
fn tokio_with_several_threads_runs_all_of_it() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let all: Vec<_> = (0..2).map(|_| tokio::spawn(all_of_it())).collect();
        for one in all {
            one.await.unwrap();
        }
    });
}

#[test]
fn smol_runs_all_of_it() {
    smol::block_on(async {
        let spawned = smol::spawn(all_of_it());
        all_of_it().await;
        spawned.await;
    });
}

/// Fills the worker of a pool, and `queued` places of its queue.
fn fill(pool: &Pool, queued: usize) -> (sync::Event, Vec<procpool::Task<()>>) {
    fn wait(gate: sync::Event) {
        assert!(gate.wait_timeout(SOON), "it is never told to go on");
    }
    let gate = sync::Event::new().unwrap();
    let mut tasks = vec![pool.apply_async(wait, gate.clone())];
    wait_until("it runs", || pool.stats().running == 1);
    let place = || pool.try_apply_async(wait, gate.clone()).expect("there is room");
    tasks.extend((0..queued).map(|_| place()));
    (gate, tasks)
}

#[test]
fn a_full_queue_gives_the_argument_back_and_takes_more_when_a_worker_takes_some() {
    let pool = Pool::builder().workers(1).max_queued(3).build().unwrap();
    let (gate, tasks) = fill(&pool, 3);
    let refused = pool.try_apply_async(|text: String| text.len(), "four".to_owned());
    assert!(matches!(refused, Err(QueueFull(text)) if text == "four"));
    // Other calls are not bounded, and are not counted.
    let others: Vec<_> = (0..10).map(|x| pool.apply_async(square, x)).collect();
    gate.set();
    tasks.into_iter().for_each(|task| task.get().unwrap());
    assert_eq!(others.len(), others.into_iter().filter_map(|task| task.get().ok()).count());
    let again: Vec<_> = (0..3).filter_map(|x| pool.try_apply_async(square, x).ok()).collect();
    assert_eq!(again.len(), 3);
}

#[test]
fn bytes_bound_the_queue_too() {
    let pool = Pool::builder().workers(1).max_queued_bytes(1 << 20).build().unwrap();
    let (gate, _tasks) = fill(&pool, 0);
    let len = |bytes: Vec<u8>| bytes.len();
    let large = || vec![0; 600 << 10];
    let first = pool.try_apply_async(len, large()).unwrap();
    let second = pool.try_apply_async(len, large()).unwrap();
    assert!(pool.try_apply_async(len, large()).is_err());
    gate.set();
    assert_eq!((first.get(), second.get()), (Ok(600 << 10), Ok(600 << 10)));
    assert_eq!(pool.try_apply_async(len, large()).unwrap().get(), Ok(600 << 10));
}

#[test]
fn whoever_waits_for_room_gets_it_in_order_and_a_dropped_wait_takes_none() {
    let pool = Pool::builder().workers(1).max_queued(1).build().unwrap();
    let (gate, mut tasks) = fill(&pool, 1);
    let noop = &mut Context::from_waker(Waker::noop());
    let mut waits: Vec<_> = (0..4).map(|_| Box::pin(pool.reserve())).collect();
    assert!(waits.iter_mut().all(|wait| wait.as_mut().poll(noop).is_pending()));
    // The second does not want it any more, and the first gives its place back unused.
    drop(waits.remove(1));
    gate.set();
    tasks.remove(0).get().unwrap();
    wait_until("the first has it", || {
        matches!(waits[0].as_mut().poll(noop), Poll::Ready(Ok(_permit)))
    });
    tasks.remove(0).get().unwrap();
    let third = block_on(waits.remove(1)).unwrap();
    drop(third);
    assert_eq!(block_on(waits.remove(1)).unwrap().apply_async(square, 3).get(), Ok(9));
}

#[test]
fn cancelled_failed_and_lost_calls_give_their_places_back() {
    let pool = Pool::builder().workers(1).max_queued(2).build().unwrap();
    for round in 0..20 {
        let (gate, mut tasks) = fill(&pool, 2);
        assert!(pool.try_apply_async(square, 1).is_err());
        match round % 4 {
            0 => tasks.iter().skip(1).for_each(procpool::Task::cancel),
            1 => pool.cancel_queued(),
            2 => kill(pool.workers()[0].pid, libc::SIGKILL),
            _ => {
                // One whose argument can't be encoded never gets into the queue.
                gate.set();
                tasks.remove(1).get().unwrap();
                let secret = pool.reserve();
                let task = block_on(secret)
                    .unwrap()
                    .apply_async(|_: crate::support::Secret| (), crate::support::Secret);
                assert!(matches!(task.get().unwrap_err().kind(), TaskErrorKind::Encode { .. }));
            }
        }
        gate.set();
        tasks.into_iter().for_each(|task| drop(task.get()));
    }
    let all: Vec<_> = (0..2).map(|x| pool.try_apply_async(square, x)).collect();
    assert!(all.iter().all(Result::is_ok), "every place is free");
}

#[test]
fn the_end_of_the_pool_ends_the_waits_for_room() {
    let pool = Pool::builder().workers(1).max_queued(1).build().unwrap();
    let (_gate, _tasks) = fill(&pool, 1);
    let waits = pool.reserve();
    let other = pool.clone();
    let ends = thread::spawn(move || other.terminate());
    assert_eq!(block_on(waits).unwrap_err().kind(), &TaskErrorKind::Closed);
    ends.join().unwrap();
    let late = pool.try_apply_async(square, 1).unwrap().get();
    assert_eq!(late.unwrap_err().kind(), &TaskErrorKind::Closed);
}

#[test]
fn a_drain_that_takes_too_long_is_cut_off_also_if_nobody_awaits_it() {
    let pool = Pool::new(2).unwrap();
    let done = pool.apply_async(square, 3);
    let hangs = pool.apply_async(sleepy, 3_600_000);
    let drain = pool.drain_async(Duration::from_millis(200));
    let refused = pool.apply(square, 1).unwrap_err();
    assert_eq!(refused.kind(), &TaskErrorKind::Closed);
    assert!(!block_on(drain));
    assert_eq!((done.get(), hangs.get().unwrap_err().kind()), (Ok(9), &TaskErrorKind::Closed));

    let pool = Pool::new(1).unwrap();
    let hangs = pool.apply_async(sleepy, 3_600_000);
    drop(pool.drain_async(Duration::from_millis(50)));
    assert_eq!(hangs.get().unwrap_err().kind(), &TaskErrorKind::Closed);
}

#[test]
fn a_wait_for_the_end_does_not_keep_the_pool_alive() {
    let pool = Pool::new(1).unwrap();
    let hangs = pool.apply_async(sleepy, 3_600_000);
    let end = pool.join_async();
    drop(pool);
    assert_eq!(hangs.get().unwrap_err().kind(), &TaskErrorKind::Closed);
    assert!(!block_on(end), "it was terminated");
}

#[test]
fn a_waker_that_panics_harms_nothing() {
    struct Bomb;
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("a waker of the test");
        }
    }
    let pool = Pool::builder().workers(1).max_queued(1).build().unwrap();
    let (gate, tasks) = fill(&pool, 1);
    let mut wait = pool.reserve();
    let waker = Arc::new(Bomb).into();
    assert!(Pin::new(&mut wait).poll(&mut Context::from_waker(&waker)).is_pending());
    gate.set();
    tasks.into_iter().for_each(|task| task.get().unwrap());
    assert_eq!(block_on(wait).unwrap().apply_async(square, 2).get(), Ok(4));
}
