//! Pools that get another number of workers while they work.

use std::collections::HashSet;
use std::time::Duration;

use crate::support::{SOON, SideEffects, is_alive, kill, square, wait_until};
use procpool::{Error, Pool, TaskErrorKind, TaskOptions, WorkerInfo, WorkerState};

/// Notes its PID and runs until 0 is noted.
fn hold(effects: SideEffects) -> u32 {
    effects.note(std::process::id().into());
    while effects.count(0) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::process::id()
}

fn pid(_: u64) -> u32 {
    std::thread::sleep(Duration::from_micros(200));
    std::process::id()
}

fn alive(pool: &Pool) -> Vec<WorkerInfo> {
    let mut workers = pool.workers();
    workers.retain(|worker| worker.state != WorkerState::Absent && is_alive(worker.pid));
    workers
}

#[test]
fn a_pool_grows_and_shrinks_under_load_and_nothing_is_lost() {
    let pool = Pool::new(2).unwrap();
    let map = pool.map_async(pid, 0..20_000);
    let squares = pool.map_async(square, 0..200_000);
    let calls: Vec<_> = (0..500).map(|x| pool.apply_async(square, x)).collect();
    for workers in [13, 1, 5, 2, 13, 1] {
        pool.resize(workers).unwrap();
        assert_eq!(
            pool.workers().iter().filter(|it| it.slot < workers).count(),
            workers,
            "listed at once"
        );
        assert_eq!(pool.apply(square, 7), Ok(49));
        wait_until("there are as many", || alive(&pool).len() == workers);
    }
    assert_eq!(map.get().unwrap().len(), 20_000);
    assert_eq!(squares.get().unwrap(), (0..200_000).map(square).collect::<Vec<_>>());
    calls.into_iter().zip(0..).for_each(|(call, x)| assert_eq!(call.get(), Ok(x * x)));
    assert_eq!(pool.workers().len(), 1);
}

#[test]
fn as_many_tasks_run_at_once_as_the_pool_has_workers_now() {
    let pool = Pool::new(1).unwrap();
    let effects = SideEffects::new();
    let held: Vec<_> = (0..6).map(|_| pool.apply_async(hold, effects.clone())).collect();
    wait_until("one runs", || effects.noted().len() == 1);
    pool.resize(4).unwrap();
    wait_until("four run", || effects.noted().len() == 4);
    // What runs goes on, on workers that are surplus now.
    pool.resize(2).unwrap();
    assert_eq!(pool.workers().len(), 4);
    let busy: Vec<u32> = effects.noted().into_iter().map(|pid| pid as u32).collect();
    assert!(busy.iter().all(|pid| is_alive(*pid)));
    effects.note(0);
    let pids: Vec<u32> = held.into_iter().map(|task| task.get().unwrap()).collect();
    assert!(busy.iter().all(|pid| pids.contains(pid)), "{busy:?}: {pids:?}");
    wait_until("two are left", || pool.workers().len() == 2);
    wait_until("the others have exited", || busy.iter().filter(|pid| is_alive(**pid)).count() <= 2);
    let effects = SideEffects::new();
    let held: Vec<_> = (0..6).map(|_| pool.apply_async(hold, effects.clone())).collect();
    wait_until("two run", || effects.noted().len() == 2);
    assert!(pool.apply_async(square, 1).get_timeout(Duration::from_millis(50)).is_none());
    assert_eq!(effects.noted().len(), 2);
    effects.note(0);
    let pids: HashSet<u32> = held.into_iter().map(|task| task.get().unwrap()).collect();
    assert_eq!(pids.len(), 2);
}

#[test]
fn what_is_bound_to_a_worker_runs_there_though_the_pool_became_smaller() {
    let pool = Pool::new(5).unwrap();
    let effects = SideEffects::new();
    let held: Vec<_> = (0..5).map(|_| pool.apply_async(hold, effects.clone())).collect();
    wait_until("all are busy", || effects.noted().len() == 5);
    std::thread::scope(|scope| {
        let broadcast = scope.spawn(|| pool.broadcast(pid, 0));
        wait_until("a broadcast waits", || pool.stats().queued == 5);
        pool.resize(1).unwrap();
        effects.note(0);
        let pids = broadcast.join().unwrap();
        let pids: HashSet<u32> = pids.into_iter().map(Result::unwrap).collect();
        assert_eq!(pids.len(), 5);
    });
    held.into_iter().for_each(|task| assert!(task.get().is_ok()));
    wait_until("one is left", || alive(&pool).len() == 1);
    assert_eq!(pool.broadcast(pid, 0).len(), 1);
}

#[test]
fn workers_that_are_killed_while_the_pool_is_resized_lose_no_task() {
    let pool = Pool::builder().workers(3).spares(1).build().unwrap();
    let retried = TaskOptions::new().retries(100).timeout(SOON);
    let map = pool.with_options(retried).map_async(pid, 0..10_000);
    let mut random = 1u64;
    while !map.is_ready() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        pool.resize(1 + (random >> 60) as usize % 9).unwrap();
        let workers = alive(&pool);
        if let Some(victim) = workers.get((random >> 33) as usize % workers.len().max(1)) {
            kill(victim.pid, libc::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5)); // between two disturbances
    }
    assert_eq!(map.get().unwrap().len(), 10_000);
    pool.resize(2).unwrap();
    wait_until("two and a spare", || alive(&pool).len() == 3);
    let pids: Vec<u32> = alive(&pool).iter().map(|worker| worker.pid).collect();
    pool.close();
    pool.join();
    assert!(!pids.into_iter().any(is_alive));
}

#[test]
fn a_pool_that_grows_on_demand_starts_the_new_workers_when_there_is_work() {
    let pool = Pool::builder().workers(2).initial_workers(1).build().unwrap();
    pool.resize(6).unwrap();
    assert_eq!(pool.apply(square, 3), Ok(9));
    assert_eq!(alive(&pool).len(), 1);
    let effects = SideEffects::new();
    let held: Vec<_> = (0..6).map(|_| pool.apply_async(hold, effects.clone())).collect();
    wait_until("all run", || effects.noted().len() == 6);
    effects.note(0);
    held.into_iter().for_each(|task| assert!(task.get().is_ok()));
}

#[test]
fn numbers_that_cannot_be_are_refused_and_a_closed_pool_stays_as_it_is() {
    let pool = Pool::new(1).unwrap();
    for workers in [0, 4097, usize::MAX] {
        let refused = pool.resize(workers);
        assert!(matches!(refused, Err(Error::Option { option: "resize", .. })), "{refused:?}");
    }
    pool.close();
    pool.resize(8).unwrap();
    pool.join();
    let failed = pool.apply(square, 1).unwrap_err();
    assert!(matches!(failed.kind(), TaskErrorKind::Closed), "{failed}");
    pool.resize(8).unwrap();
    assert!(alive(&pool).is_empty());
}
