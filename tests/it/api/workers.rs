//! Per-worker features: broadcasts, environment, random numbers.

use std::collections::HashSet;
use std::time::Duration;

use crate::support::{Secret, SideEffects, is_alive, kill, sleepy, wait_until};
use procpool::{DeathCause, Pool, Process, TaskError, TaskErrorKind, ValueSide, WorkerState};

fn pid<A>(_: A) -> u32 {
    std::process::id()
}

fn pids(pool: &Pool) -> Vec<u32> {
    pool.workers().iter().map(|worker| worker.pid).collect()
}

fn unwrap(results: Vec<Result<u32, TaskError>>) -> Vec<u32> {
    results.into_iter().map(Result::unwrap).collect()
}

#[test]
fn broadcast_calls_every_worker_once_in_the_order_of_slots() {
    for workers in [1, 2, 5] {
        let pool = Pool::new(workers).unwrap();
        for _ in 0..20 {
            assert_eq!(unwrap(pool.broadcast(pid::<()>, ())), pids(&pool));
        }
        assert_eq!(pool.map(pid::<u64>, 0..10).unwrap().len(), 10);
        assert_eq!(pool.stats().done, 20 * workers as u64 + 10);
    }
}

#[test]
fn a_large_argument_of_a_broadcast_reaches_every_worker() {
    let pool = Pool::new(3).unwrap();
    let sum = |numbers: Vec<u64>| numbers.iter().sum::<u64>();
    for n in [10u64, 1 << 20] {
        let results = pool.broadcast(sum, (0..n).collect());
        assert_eq!(results, vec![Ok(n * (n - 1) / 2); 3]);
    }
}

#[test]
fn broadcast_waits_for_busy_workers_and_no_other_runs_their_part() {
    fn wait(effects: SideEffects) {
        effects.note(std::process::id().into());
        while effects.count(0) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let pool = Pool::new(2).unwrap();
    let effects = SideEffects::new();
    let busy = pool.apply_async(wait, effects.clone());
    wait_until("one is busy", || !effects.noted().is_empty());
    std::thread::scope(|scope| {
        let broadcast = scope.spawn(|| pool.broadcast(pid::<()>, ()));
        wait_until("the other has done its part", || pool.stats().done == 1);
        assert_eq!(pool.map(|x: u64| x, 0..100).unwrap().len(), 100);
        assert!(!broadcast.is_finished());
        effects.note(0);
        assert_eq!(unwrap(broadcast.join().unwrap()), pids(&pool));
    });
    assert_eq!(busy.get(), Ok(()));
}

#[test]
fn a_worker_that_dies_in_a_broadcast_is_one_error_and_is_replaced() {
    let die = |first: u32| {
        if std::process::id() == first {
            std::process::exit(3);
        }
    };
    let pool = Pool::new(3).unwrap();
    let before = pids(&pool);
    let results = pool.broadcast(die, before[1]);
    let error = results[1].as_ref().unwrap_err();
    let died = TaskErrorKind::Died {
        cause: DeathCause::Exited(3),
        last_output: None,
        last_records: Vec::new(),
    };
    assert_eq!((error.kind(), error.id(), error.pid()), (&died, 1, Some(before[1])));
    assert!(results[0].is_ok() && results[2].is_ok());
    let after = unwrap(pool.broadcast(pid::<()>, ()));
    assert_eq!([before[0], before[2]], [after[0], after[2]]);
    assert_ne!(before[1], after[1]);
}

#[test]
fn replacements_of_killed_idle_workers_run_the_next_tasks() {
    let pool = Pool::new(3).unwrap();
    for _ in 0..10 {
        let before = pids(&pool);
        before.iter().for_each(|pid| kill(*pid, libc::SIGKILL));
        let after = unwrap(pool.broadcast(pid::<()>, ()));
        assert!(after.iter().all(|pid| !before.contains(pid) && is_alive(*pid)));
    }
}

#[test]
fn retired_workers_are_started_for_a_broadcast() {
    let idle = Duration::from_millis(5);
    let pool = Pool::builder().workers(3).idle_timeout(idle).min_workers(1).build().unwrap();
    for _ in 0..5 {
        let absent = |pool: &Pool| {
            let workers = pool.workers();
            workers.iter().filter(|worker| worker.state == WorkerState::Absent).count()
        };
        wait_until("two are gone", || absent(&pool) == 2);
        let mut pids = unwrap(pool.broadcast(pid::<()>, ()));
        pids.sort_unstable();
        pids.dedup();
        assert_eq!(pids.len(), 3);
    }
}

#[test]
fn a_broadcast_that_cannot_be_sent_or_is_too_late_is_each_workers_error() {
    let pool = Pool::new(3).unwrap();
    let results = pool.broadcast(pid::<Secret>, Secret);
    assert_eq!(results.len(), 3);
    for (id, result) in (0..).zip(results) {
        let error = result.unwrap_err();
        assert_eq!(error.id(), id);
        assert!(matches!(error.kind(), TaskErrorKind::Encode { side: ValueSide::Argument, .. }));
    }
    pool.close();
    let results = pool.broadcast(pid::<()>, ());
    assert_eq!(results.len(), 3);
    for result in results {
        assert_eq!(result.unwrap_err().kind(), &TaskErrorKind::Closed);
    }
}

#[test]
fn a_worker_that_does_not_become_ready_fails_its_own_part_of_a_broadcast() {
    let init = |()| assert_ne!(std::env::var("SLOT").unwrap(), "1", "never ready");
    let pool = Pool::builder()
        .workers(2)
        .env_per_worker(|slot| vec![("SLOT".into(), slot.to_string().into())])
        .initializer(init, ())
        .build()
        .unwrap();
    let results = pool.broadcast(pid::<()>, ());
    assert!(results[0].is_ok());
    let error = results[1].as_ref().unwrap_err();
    assert!(matches!(error.kind(), TaskErrorKind::Initializer { .. }), "{error}");
    assert!(error.to_string().contains("never ready"), "{error}");
}

#[test]
fn a_broadcast_ends_with_its_pool() {
    let pool = Pool::new(2).unwrap();
    let busy = [3_600_000; 2].map(|millis| pool.apply_async(sleepy, millis));
    wait_until("both are busy", || pool.stats().running == 2);
    std::thread::scope(|scope| {
        let broadcast = scope.spawn(|| pool.broadcast(pid::<()>, ()));
        wait_until("it waits", || pool.stats().queued == 2);
        pool.terminate();
        assert!(broadcast.join().unwrap().iter().all(Result::is_err));
    });
    drop(busy);
}

/// Returns three numbers of the task's stream.
fn draw<A>(_: A) -> [u64; 3] {
    [(); 3].map(|()| procpool::random_u64())
}

/// Returns the numbers of tasks of all kinds, in the order of the calls.
fn draws(pool: &Pool) -> Vec<[u64; 3]> {
    let mut draws = pool.map(draw::<u64>, 0..500).unwrap();
    draws.extend((0..10).map(|x| pool.apply(draw::<u64>, x).unwrap()));
    let tasks: Vec<_> = (0..100).map(|x| pool.apply_async(draw::<u64>, x)).collect();
    draws.extend(tasks.into_iter().map(|task| task.get().unwrap()));
    draws.extend(pool.imap(draw::<String>, [(); 20].map(|()| "x".to_owned())).map(Result::unwrap));
    draws.extend(pool.map_with(1, |_: &u64, x: u64| draw(x), 0..20).unwrap());
    draws.extend(pool.broadcast(draw::<()>, ()).into_iter().take(1).map(Result::unwrap));
    draws
}

#[test]
fn each_task_has_its_own_random_numbers_and_a_seed_repeats_them_in_any_worker() {
    let pool = |workers, chunk_size| {
        Pool::builder().workers(workers).chunk_size(chunk_size).seed(7).build().unwrap()
    };
    let once = draws(&pool(1, 1));
    assert_eq!(draws(&pool(4, 1)), once);
    assert_eq!(draws(&pool(2, 64)), once);
    let mut numbers: Vec<u64> = once.into_iter().flatten().collect();
    let drawn = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), drawn, "all differ");
    let other = draws(&Pool::builder().workers(2).seed(8).build().unwrap());
    assert!(other.iter().flatten().all(|number| numbers.binary_search(number).is_err()));
}

#[test]
fn a_retried_task_draws_the_same_numbers() {
    let once = |(effects, x): (SideEffects, u64)| {
        if x == 5 && effects.count(x) == 0 {
            effects.note(x);
            std::process::abort();
        }
        draw(x)
    };
    let builder = || Pool::builder().workers(2).seed(7).retries(1);
    let (calm, retried) = (SideEffects::new(), SideEffects::new());
    calm.note(5);
    let draws = |effects: &SideEffects| {
        builder().build().unwrap().map(once, (0..20).map(|x| (effects.clone(), x))).unwrap()
    };
    assert_eq!(draws(&calm), draws(&retried));
}

#[test]
fn initializers_and_processes_draw_from_the_seed_and_never_the_same_numbers() {
    let builder = || Pool::builder().workers(2).seed(7).initializer(draw::<()>, ());
    let look = |()| procpool::with_state(|numbers: &mut [u64; 3]| *numbers).unwrap();
    let drawn = builder().build().unwrap().broadcast(look, ());
    assert_ne!(drawn[0], drawn[1]);
    assert_eq!(builder().build().unwrap().broadcast(look, ()), drawn);
    let process = |seed| Process::builder().seed(seed).spawn(draw::<()>, ()).unwrap().join();
    assert_eq!(process(1), process(1));
    assert_ne!(process(1), process(2));
    let in_a_thread = |()| std::thread::spawn(procpool::random_u64).join().unwrap();
    let pool = Pool::new(2).unwrap();
    let drawn: HashSet<u64> = pool.map(in_a_thread, [(); 20]).unwrap().into_iter().collect();
    assert_eq!(drawn.len(), 20);
    assert_ne!(procpool::random_u64(), procpool::random_u64());
}

#[test]
fn inner_thread_pools_get_their_workers_share_unless_it_is_set() {
    let var = |name: String| std::env::var(name).unwrap_or_default();
    let cpus = std::thread::available_parallelism().unwrap().get();
    for workers in [2, 2 * cpus] {
        let pool = Pool::builder().workers(workers).env("MKL_NUM_THREADS", "13").build().unwrap();
        let share = (cpus / workers).max(1).to_string();
        for name in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"] {
            let expected = std::env::var(name).unwrap_or_else(|_| share.clone());
            assert_eq!(pool.apply(var, name.to_owned()), Ok(expected), "{name}");
        }
        assert_eq!(pool.apply(var, "MKL_NUM_THREADS".to_owned()), Ok("13".to_owned()));
    }
    // A pool does not change variables that are set. A `Process` has all CPUs, which its own pools divide.
    fn inner(name: String) -> String {
        Pool::new(2).unwrap().apply(|name| std::env::var(name).unwrap(), name).unwrap()
    }
    let name = "OMP_NUM_THREADS";
    let mut process = Process::builder().env(name, "5").spawn(inner, name.to_owned()).unwrap();
    assert_eq!(process.join(), Ok("5".to_owned()));
    let expected = std::env::var(name).unwrap_or_else(|_| (cpus / 2).max(1).to_string());
    assert_eq!(Process::spawn(inner, name.to_owned()).unwrap().join(), Ok(expected));
}
