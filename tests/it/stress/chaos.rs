//! Workers are killed at random, and hundreds of pools end: no item is lost, none runs twice without being
//! retried, and nothing is left behind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{
    SideEffects, alone, kill, left_behind, square, wait_until, wait_until_as_before,
};
use procpool::shared::{SharedSlice, SharedValue};
use procpool::{DidRun, Pool, TaskErrorKind, TaskOptions, WorkerState};

/// Stops a killer when it is dropped, also if an assertion fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Kills a random worker every 5 ms while `work` runs. Returns the number of kills. Spares workers that are
/// starting: on a busy machine none would become ready, and the pool would rightly give up.
fn storm<T>(pool: &Pool, seed: u64, work: impl FnOnce() -> T) -> (T, u32) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut random = seed;
            let mut kills = 0;
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let mut workers = pool.workers();
                workers.retain(|it| matches!(it.state, WorkerState::Idle | WorkerState::Busy));
                if let Some(victim) = workers.get((random >> 33) as usize % workers.len().max(1)) {
                    kill(victim.pid, libc::SIGKILL);
                    kills += 1;
                }
            }
            kills
        });
        let is_over = Over(&over);
        let result = work();
        drop(is_over);
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
        let patient = pool.with_options(TaskOptions::new().retries(1000));
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
fn with_a_random_worker_killed_every_5_ms_all_handles_in_results_are_whole() {
    fn make(x: u64) -> (u64, SharedValue<u64>, SharedSlice<u64>, Vec<u8>) {
        let large = if x.is_multiple_of(10) { 300_000 } else { 0 };
        let slice = SharedSlice::new(vec![x; 100]).unwrap();
        (x, SharedValue::new(work(x)).unwrap(), slice, vec![x as u8; large])
    }
    let pool = Pool::new(4).unwrap();
    let patient = pool.with_options(TaskOptions::new().retries(1000));
    let (results, kills) = storm(&pool, 7, || patient.imap(make, 0..500).collect::<Vec<_>>());
    let (mut whole, count) = (0, results.len());
    for (expected, result) in (0..).zip(results) {
        match result {
            Ok((x, value, slice, bytes)) => {
                assert_eq!((x, value.get(), slice[99]), (expected, x * x, x));
                assert!(bytes.iter().all(|byte| *byte == x as u8));
                whole += 1;
            }
            // A task that many workers die before is given up.
            Err(error) => assert!(matches!(error.kind(), TaskErrorKind::Died { .. }), "{error}"),
        }
    }
    assert!(count == 500 && whole > 50 && kills > 20, "{whole} of {count}, {kills} kills");
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

/// A small generator of random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % most
    }
}

/// Sends junk to every socket that this process has.
fn scribble() {
    for fd in 3..1200 {
        for junk in [&b"hello, world\n"[..], b"", &[24, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]] {
            // SAFETY: a plain system call on a local buffer.
            unsafe { libc::send(fd, junk.as_ptr().cast(), junk.len(), libc::MSG_DONTWAIT) };
        }
    }
}

/// A fault that no other task may notice. Returns that it ran, if it does.
fn hostile(kind: u64) -> u64 {
    match kind {
        0 => scribble(),
        1 => std::process::abort(),
        2 => std::process::exit(3),
        3 => panic!("as it was to be"),
        4 => loop {
            std::hint::spin_loop();
        },
        // SAFETY: plain system calls. The worker's own descriptors are above 512.
        5 => drop(unsafe { libc::close_range(3, 511, 0) }),
        // SAFETY: the child only exits.
        6 if unsafe { libc::fork() } == 0 => {}
        7 => drop(std::thread::spawn(scribble)),
        // SAFETY: a plain system call.
        8 => drop(unsafe { libc::raise(libc::SIGSTOP) }),
        _ => {}
    }
    kind
}

/// Returns its argument, which may travel through shared memory in both directions.
fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

#[test]
fn in_chaos_each_item_has_exactly_one_outcome_and_nothing_is_left_behind() {
    alone!("chaos");
}

/// Runs for `CHAOS_SECONDS` seconds.
#[test]
#[ignore = "run by `in_chaos_each_item_has_exactly_one_outcome_and_nothing_is_left_behind`, alone"]
fn chaos() {
    let seconds: u64 =
        std::env::var("CHAOS_SECONDS").map_or(30, |seconds| seconds.parse().unwrap());
    let seed = procpool::random_u64();
    println!("seed {seed}");
    let (mut random, mut items, mut signals) = (Random(seed), 0, 0);
    leaves_nothing(1, None, || {
        // The second half is compared with the first.
        let deadline = Instant::now() + Duration::from_secs(seconds) / 2;
        while Instant::now() < deadline {
            let workers = 1 + random.below(16) as usize;
            let pool = Pool::builder()
                .workers(workers)
                .task_timeout(Duration::from_secs(2))
                .start_timeout(Duration::from_secs(5))
                .build();
            // Its first worker was killed or stopped.
            let Ok(pool) = pool else { continue };
            let healthy = pool.with_options(TaskOptions::new().retries(1000));
            let brief = pool.with_options(TaskOptions::new().timeout(Duration::from_millis(100)));
            let over = AtomicBool::new(false);
            // A worker lives for 160 ms on average. A pool whose workers never become ready fails.
            let pause = Duration::from_millis(160) / workers as u32;
            std::thread::scope(|scope| {
                let mut ours = Random(random.below(u64::MAX >> 33) | 1);
                let (pool, over) = (&pool, &over);
                let killer = scope.spawn(move || {
                    let mut sent = 0;
                    while !over.load(Ordering::SeqCst) {
                        std::thread::sleep(pause);
                        let workers = pool.workers();
                        let victim = workers[ours.below(workers.len() as u64) as usize].pid;
                        let signal = if ours.below(8) == 0 { libc::SIGSTOP } else { libc::SIGKILL };
                        if victim != 0 {
                            kill(victim, signal);
                            sent += 1;
                        }
                    }
                    sent
                });
                let is_over = Over(over);
                let wild: Vec<_> = (0..32).map(|x| brief.apply_async(hostile, x % 10)).collect();
                let answers = healthy.map(work, 0..1000).unwrap();
                assert!(answers.iter().copied().eq((0..1000).map(square)), "seed {seed}");
                for len in [0, 1, 40_000, 700_000] {
                    assert_eq!(healthy.apply(echo, vec![7; len]), Ok(vec![7; len]), "seed {seed}");
                }
                let lazily: Vec<u64> =
                    healthy.imap_unordered(square, 0..200).map(Result::unwrap).collect();
                assert_eq!(lazily.len(), 200, "seed {seed}");
                for mut task in wild {
                    let outcome = task.get_timeout(crate::support::SOON);
                    assert!(outcome.is_some(), "an outcome in time, seed {seed}");
                }
                drop(is_over);
                signals += killer.join().unwrap();
                items += 1000 + 4 + 200 + 32;
            });
        }
    });
    println!("{items} items, {signals} signals");
    assert!(items > 0 && signals > 0);
}

/// Calls `round` this many times. Descriptors, threads, children, temporary files and shared memory must then
/// be as after the first round.
fn leaves_nothing(rounds: usize, pool: Option<&Pool>, mut round: impl FnMut()) {
    // A worker that is being replaced has more open descriptors than a ready one.
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
    wait_until_as_before(before);
}

#[test]
fn pools_timeouts_and_crashes_by_the_hundred_leave_nothing_behind() {
    alone!("five_hundred_pools");
    alone!("five_hundred_timeouts");
    alone!("five_hundred_crashes");
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
        // With an argument in shared memory, so that it is counted too.
        assert!(pool.apply(die, vec![0; 400_000]).is_err());
        assert_eq!(pool.apply(square, 2), Ok(4));
    });
}
