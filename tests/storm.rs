//! Workers killed at random while they work, and many ends in a row: nothing is lost, nothing runs
//! twice that must not, nothing is left behind.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use procpool::{DidRun, Pool, TaskErrorKind, TaskOptions, WorkerState};
use support::{SideEffects, alone, kill, left_behind, square, wait_until};

procpool::test_support!();

/// Kills a random worker every 5 ms while `work` runs; gives how many that were.
fn storm<T>(pool: &Pool, seed: u64, work: impl FnOnce() -> T) -> (T, u32) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut random = seed;
            let mut kills = 0;
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let workers = pool.workers();
                let victim = workers[(random >> 33) as usize % workers.len()].pid;
                kill(victim, libc::SIGKILL);
                kills += 1;
            }
            kills
        });
        let result = work();
        over.store(true, Ordering::SeqCst);
        (result, killer.join().unwrap())
    })
}

/// Takes about 100 µs.
fn work(x: u64) -> u64 {
    let start = Instant::now();
    while start.elapsed() < Duration::from_micros(100) {
        std::hint::spin_loop();
    }
    x * x
}

#[test]
fn with_a_random_worker_killed_every_5_ms_all_answers_of_10_000_tasks_are_exact() {
    let expected: Vec<u64> = (0..10_000).map(square).collect();
    let mut kills = 0;
    for round in 0..10 {
        let pool = Pool::new(4).unwrap();
        let patient = pool.with(TaskOptions::new().retries(1000));
        let (answers, killed) = storm(&pool, round, || match round % 3 {
            0 => patient.map(work, 0..10_000).unwrap(),
            1 => patient.imap(work, 0..10_000).map(Result::unwrap).collect(),
            _ => {
                let tasks: Vec<_> = (0..10_000).map(|x| patient.apply_async(work, x)).collect();
                tasks.into_iter().map(|task| task.get().unwrap()).collect()
            }
        });
        assert!(answers == expected, "round {round}");
        kills += killed;
    }
    assert!(kills > 100, "{kills} kills");
}

#[test]
fn without_retries_each_task_runs_at_most_once_whatever_is_killed() {
    fn noting((effects, x): (SideEffects, u64)) -> u64 {
        effects.note(x);
        work(x)
    }
    let effects = SideEffects::new();
    let pool = Pool::new(4).unwrap();
    let (results, _) = storm(&pool, 99, || {
        pool.imap(noting, (0..2000).map(|x| (effects.clone(), x))).collect::<Vec<_>>()
    });
    for (x, result) in (0..).zip(results) {
        let runs = effects.count(x);
        match result {
            Ok(answer) => assert_eq!((answer, runs), (x * x, 1)),
            Err(error) => {
                assert!(matches!(error.kind(), TaskErrorKind::Died { .. }), "{error}");
                assert!(runs <= 1, "task {x} ran {runs} times");
                assert_eq!(error.did_it_run(), DidRun::Maybe);
            }
        }
    }
}

/// Does `round` so many times; descriptors, threads, children, temporary files and shared memory
/// are then as they were after the first.
fn leaves_nothing(rounds: usize, pool: Option<&Pool>, mut round: impl FnMut()) {
    // A worker that is just being replaced has more open than one that is ready.
    let settle = || {
        let is_idle = |worker: &procpool::WorkerInfo| worker.state == WorkerState::Idle;
        wait_until("all workers are ready", || {
            pool.is_none_or(|pool| pool.workers().iter().all(is_idle))
        });
    };
    round();
    settle();
    let before = left_behind();
    for _ in 0..rounds {
        round();
    }
    settle();
    // A thread that has been joined may still be listed for a moment, before as well as after.
    let is_back = || left_behind().iter().zip(before).all(|(after, before)| *after <= before);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !is_back() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(is_back(), "{:?} after {before:?}", left_behind());
}

#[test]
fn pools_timeouts_and_crashes_by_the_hundred_leave_nothing_behind() {
    alone("five_hundred_pools");
    alone("five_hundred_timeouts");
    alone("five_hundred_crashes");
}

#[test]
#[ignore = "run by `pools_timeouts_and_crashes_by_the_hundred_leave_nothing_behind`, alone"]
fn five_hundred_pools() {
    leaves_nothing(500, None, || {
        let pool = Pool::new(2).unwrap();
        assert_eq!(pool.apply(square, 2), Ok(4));
        assert!(pool.apply(|()| -> () { std::process::exit(1) }, ()).is_err());
    });
}

#[test]
#[ignore = "run by `pools_timeouts_and_crashes_by_the_hundred_leave_nothing_behind`, alone"]
fn five_hundred_timeouts() {
    let pool = Pool::builder().workers(2).task_timeout(Duration::from_millis(2)).build().unwrap();
    leaves_nothing(500, Some(&pool), || {
        let hang = |()| std::thread::sleep(Duration::from_secs(3600));
        assert!(pool.apply(hang, ()).is_err());
    });
}

#[test]
#[ignore = "run by `pools_timeouts_and_crashes_by_the_hundred_leave_nothing_behind`, alone"]
fn five_hundred_crashes() {
    let pool = Pool::new(2).unwrap();
    leaves_nothing(500, Some(&pool), || {
        let die = |bytes: Vec<u8>| -> Vec<u8> {
            if bytes.len() > 1 { std::process::exit(1) } else { bytes }
        };
        // One with an argument in shared memory, so that such are counted too.
        assert!(pool.apply(die, vec![0; 400_000]).is_err());
        assert_eq!(pool.apply(square, 2), Ok(4));
    });
}
