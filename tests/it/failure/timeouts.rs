//! Time limits and cancellation.

use std::time::{Duration, Instant};

use crate::support::{SOON, SideEffects, sleepy, square, wait_until};
use procpool::{DidRun, Pool, TaskErrorKind, TaskOptions};

const LIMIT: Duration = Duration::from_millis(100);

fn spin(effects: SideEffects) {
    effects.note(0);
    while std::hint::black_box(true) {}
}

#[test]
fn a_time_limit_holds_for_each_item_even_inside_a_chunk() {
    let pool = Pool::builder().workers(2).chunk_size(20).task_timeout(LIMIT).build().unwrap();
    // Each chunk takes longer than the limit, but only one item does.
    let input: Vec<u64> = (0..40).map(|x| if x == 5 { 60_000 } else { 10 }).collect();
    let reports: Vec<_> = pool.imap(sleepy, input.clone()).reports().collect();
    for (x, report) in reports.iter().enumerate() {
        assert_eq!(report.id, x as u64);
        if x == 5 {
            let error = report.result.as_ref().unwrap_err();
            assert_eq!(error.kind(), &TaskErrorKind::TimedOut { after: LIMIT });
            assert_eq!(error.did_it_run(), DidRun::Maybe);
            assert!(report.elapsed >= LIMIT, "{:?}", report.elapsed);
        } else {
            assert_eq!(report.result, Ok(10), "item {x}");
        }
    }
}

#[test]
fn the_worker_is_killed_soon_after_the_limit() {
    let pool = Pool::builder().workers(1).task_timeout(LIMIT).build().unwrap();
    // The best of several, because the machine may be busy.
    let overrun = |_| {
        let report =
            pool.apply_async(|()| std::thread::sleep(Duration::from_secs(60)), ()).report();
        assert!(report.result.is_err());
        report.elapsed - LIMIT
    };
    let least = (0..5).map(overrun).min().unwrap();
    assert!(least < Duration::from_millis(10), "{least:?} over the limit");
}

#[test]
fn a_loop_that_ignores_sigterm_dies() {
    fn stubborn(effects: SideEffects) {
        // SAFETY: a plain system call.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        spin(effects);
    }
    for grace in [Duration::ZERO, Duration::from_millis(30)] {
        let pool =
            Pool::builder().workers(1).kill_grace(grace).task_timeout(LIMIT).build().unwrap();
        let start = Instant::now();
        let error = pool.apply(stubborn, SideEffects::new()).unwrap_err();
        assert_eq!(error.kind(), &TaskErrorKind::TimedOut { after: LIMIT });
        assert!(start.elapsed() >= LIMIT + grace);
        assert_eq!(pool.apply(square, 2), Ok(4));
    }
}

#[test]
fn with_a_grace_the_task_gets_sigterm_before_sigkill() {
    fn asked(effects: SideEffects) {
        // SAFETY: only one worker uses it, and the handler only writes to an open file.
        static FD: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(-1);
        extern "C" fn handler(_: i32) {
            let fd = FD.load(std::sync::atomic::Ordering::SeqCst);
            // SAFETY: it is async-signal-safe.
            unsafe {
                libc::write(fd, c"x".as_ptr().cast(), 1);
                libc::_exit(0);
            }
        }
        let file = std::fs::File::create(effects.file(7)).unwrap();
        FD.store(std::os::fd::AsRawFd::as_raw_fd(&file), std::sync::atomic::Ordering::SeqCst);
        // SAFETY: the handler is async-signal-safe.
        unsafe { libc::signal(libc::SIGTERM, handler as extern "C" fn(i32) as libc::sighandler_t) };
        std::thread::sleep(Duration::from_secs(60));
    }
    let effects = SideEffects::new();
    let pool = Pool::builder()
        .workers(1)
        .kill_grace(Duration::from_secs(10))
        .task_timeout(LIMIT)
        .build()
        .unwrap();
    let error = pool.apply(asked, effects.clone()).unwrap_err();
    assert_eq!(error.kind(), &TaskErrorKind::TimedOut { after: LIMIT });
    assert_eq!(effects.count(7), 1);
}

#[test]
fn a_timeout_is_retried_if_retries_are_set() {
    let effects = SideEffects::new();
    let pool = Pool::new(1).unwrap().with_options(TaskOptions::new().timeout(LIMIT).retries(2));
    let report = pool.apply_async(spin, effects.clone()).report();
    assert!(report.result.is_err());
    assert_eq!((report.attempt, effects.count(0)), (3, 3));
}

#[test]
fn a_result_that_races_its_timeout_has_exactly_one_outcome() {
    let limit = Duration::from_millis(20);
    let pool = Pool::builder().workers(4).task_timeout(limit).build().unwrap();
    let reports: Vec<_> = pool.imap_unordered(sleepy, [20; 200]).reports().collect();
    let mut ids: Vec<u64> = reports.iter().map(|report| report.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..200).collect::<Vec<_>>());
    for report in reports {
        match report.result {
            Ok(answer) => assert_eq!(answer, 20),
            Err(error) => assert_eq!(error.kind(), &TaskErrorKind::TimedOut { after: limit }),
        }
    }
    let stats = pool.stats();
    assert_eq!(stats.done + stats.failed, 200);
}

#[test]
fn a_queued_a_running_and_a_finished_task_can_be_cancelled() {
    let effects = SideEffects::new();
    let pool = Pool::new(1).unwrap();
    let mut finished = pool.apply_async(square, 3);
    assert_eq!(finished.get_timeout(crate::support::SOON), Some(Ok(9)));
    finished.cancel();
    let running = pool.apply_async(spin, effects.clone());
    let queued = pool.apply_async(spin, effects.clone());
    let next = pool.apply_async(square, 4);
    wait_until("the first runs", || effects.count(0) == 1);
    queued.cancel();
    let error = queued.get().unwrap_err();
    assert_eq!((error.kind(), error.did_it_run()), (&TaskErrorKind::Cancelled, DidRun::No));
    assert!(!running.is_ready());
    running.cancel();
    let error = running.get().unwrap_err();
    assert_eq!((error.kind(), error.did_it_run()), (&TaskErrorKind::Cancelled, DidRun::Maybe));
    assert_eq!(next.get(), Ok(16));
    assert_eq!(effects.count(0), 1, "what was cancelled in the queue never ran");
    let many = pool.map_async(spin, vec![effects.clone(); 100]);
    wait_until("one of many runs", || effects.count(0) == 2);
    many.cancel();
    assert_eq!(many.get().unwrap_err().kind(), &TaskErrorKind::Cancelled);
    assert_eq!(effects.count(0), 2);
}

#[test]
fn while_a_pool_is_suspended_its_limits_do_not_run() {
    let pool = Pool::builder().workers(1).task_timeout(Duration::from_millis(300)).build().unwrap();
    let effects = SideEffects::new();
    fn task(effects: SideEffects) -> u64 {
        effects.note(0);
        let start = Instant::now();
        let mut steps = 0;
        while steps < 10 {
            steps += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
        u64::try_from(start.elapsed().as_millis()).unwrap()
    }
    let task = pool.apply_async(task, effects.clone());
    wait_until("it runs", || effects.count(0) == 1);
    pool.suspend();
    // The passing of time is tested here.
    std::thread::sleep(Duration::from_millis(600));
    assert!(!task.is_ready());
    pool.resume();
    assert!(task.get().unwrap() >= 500);
}

#[test]
fn a_usually_short_task_that_takes_long_delays_no_other() {
    const CROWD: u64 = 16;
    /// Returns when all participants have arrived, or at once without any.
    fn meet((effects, crowd, x): (SideEffects, u64, u64)) -> bool {
        if crowd == 0 {
            return true;
        }
        effects.note(x);
        wait_until("they meet", || effects.noted().len() as u64 == crowd);
        true
    }
    let effects = SideEffects::new();
    // With a limit, items are claimed one by one.
    let pool = Pool::builder().workers(CROWD as usize).task_timeout(SOON).build().unwrap();
    // Makes the function known as one whose calls are not worth a worker each.
    for _ in 0..2 {
        let calls = (0..5000).map(|x| (effects.clone(), 0, x));
        assert!(pool.imap_unordered(meet, calls).all(|met| met.unwrap()));
    }
    // These calls are: they only end if all of them run at the same time.
    let calls = (0..CROWD).map(|x| pool.apply_async(meet, (effects.clone(), CROWD, x)));
    let calls: Vec<_> = calls.collect();
    assert!(calls.into_iter().all(|call| call.get().unwrap()));
}
