//! How many workers a pool has: those that start with their work, and those that stand by.

use std::collections::HashSet;
use std::time::Duration;

use crate::support::{SOON, SideEffects, is_alive, kill, square, wait_until};
use procpool::{Error, Pool, StartMethod, TaskErrorKind, WorkerState, with_state};

/// Notes its PID and runs until 0 is noted.
fn hold(effects: SideEffects) -> u32 {
    effects.note(std::process::id().into());
    while effects.count(0) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::process::id()
}

fn pid<A>(_: A) -> u32 {
    std::process::id()
}

fn abort(_: ()) {
    std::process::abort();
}

fn started(pool: &Pool) -> usize {
    pool.workers().iter().filter(|worker| worker.state != WorkerState::Absent).count()
}

fn idle(pool: &Pool) -> usize {
    pool.workers().iter().filter(|worker| worker.state == WorkerState::Idle).count()
}

#[test]
fn workers_start_as_tasks_are_queued_and_no_more_than_there_is_work_for() {
    let pool = Pool::builder().workers(50).initial_workers(1).build().unwrap();
    assert_eq!(started(&pool), 1);
    assert_eq!(pool.apply(square, 3), Ok(9));
    assert_eq!(started(&pool), 1, "one call needs one worker");
    let effects = SideEffects::new();
    let held: Vec<_> = (0..3).map(|_| pool.apply_async(hold, effects.clone())).collect();
    wait_until("all three run", || effects.noted().len() == 3);
    assert_eq!(started(&pool), 3);
    effects.note(0);
    let pids: HashSet<u32> = held.into_iter().map(|task| task.get().unwrap()).collect();
    assert_eq!(pids.len(), 3);
}

#[test]
fn a_map_of_few_items_starts_as_many_workers() {
    let pool = Pool::builder().workers(50).initial_workers(1).build().unwrap();
    let effects = SideEffects::new();
    std::thread::scope(|scope| {
        let map = scope.spawn(|| pool.map(hold, vec![effects.clone(); 5]).unwrap());
        wait_until("all five run", || effects.noted().len() == 5);
        assert_eq!(started(&pool), 5);
        effects.note(0);
        let pids: HashSet<u32> = map.join().unwrap().into_iter().collect();
        assert_eq!(pids.len(), 5);
    });
}

#[test]
fn a_pool_grows_and_shrinks_with_its_work() {
    let pool = Pool::builder()
        .workers(8)
        .initial_workers(2)
        .min_workers(2)
        .idle_timeout(Duration::from_millis(20))
        .build()
        .unwrap();
    for _ in 0..3 {
        let effects = SideEffects::new();
        let held: Vec<_> = (0..8).map(|_| pool.apply_async(hold, effects.clone())).collect();
        wait_until("all run", || effects.noted().len() == 8);
        effects.note(0);
        held.into_iter().for_each(|task| assert!(task.get().is_ok()));
        wait_until("two are left", || started(&pool) == 2);
    }
    let mut pids = pool.broadcast(pid::<()>, ());
    assert_eq!(pids.len(), 8, "a broadcast starts them all");
    pids.retain(Result::is_ok);
    assert_eq!(pids.len(), 8);
}

#[test]
fn a_worker_that_cannot_start_fails_the_build_and_later_ones_fail_no_task() {
    fn fail_unless_first(_: ()) {
        assert_eq!(procpool::worker().unwrap().slot, 0, "only the first");
    }
    let pool = Pool::builder().workers(4).initial_workers(1).initializer(fail_unless_first, ());
    let pool = pool.build().unwrap();
    assert_eq!(pool.map(square, 0..1000).unwrap().len(), 1000);
    pool.terminate();
    pool.join();
    let refused = Pool::builder().workers(4).initial_workers(0).build();
    assert!(matches!(refused, Err(Error::Option { option: "initial_workers", .. })));
}

#[test]
fn a_spare_takes_the_place_of_a_worker_that_dies_and_its_replacement_stands_by() {
    /// Blocks from when 1 is noted until 2 is.
    fn initialize(effects: SideEffects) {
        while effects.count(1) > effects.count(2) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    for method in [StartMethod::Spawn, StartMethod::Template] {
        let effects = SideEffects::new();
        let pool = Pool::builder().workers(1).spares(1).start_method(method);
        let pool = pool.initializer(initialize, effects.clone()).build().unwrap();
        let mut dead = HashSet::new();
        for _ in 0..5 {
            wait_until("both are ready", || idle(&pool) == 2);
            let before: Vec<u32> = pool.workers().iter().map(|worker| worker.pid).collect();
            effects.note(1);
            let died = pool.apply(abort, ()).unwrap_err();
            assert!(matches!(died.kind(), TaskErrorKind::Died { .. }), "{died}");
            dead.insert(died.worker().unwrap().pid);
            // No other can answer: a replacement is not ready before this.
            let next = pool.apply(pid::<()>, ()).unwrap();
            assert!(before.contains(&next) && !dead.contains(&next), "{next}: {before:?}");
            effects.note(2);
        }
        assert_eq!(dead.len(), 5);
    }
}

#[test]
fn no_more_tasks_run_at_once_than_there_are_workers_without_the_spares() {
    let pool = Pool::builder().workers(2).spares(3).build().unwrap();
    wait_until("all are ready", || idle(&pool) == 5);
    let effects = SideEffects::new();
    let held: Vec<_> = (0..6).map(|_| pool.apply_async(hold, effects.clone())).collect();
    wait_until("two run", || effects.noted().len() == 2);
    // A broadcast reaches those that stand by too.
    let busy: HashSet<u32> = effects.noted().into_iter().map(|pid| pid as u32).collect();
    std::thread::scope(|scope| {
        let broadcast = scope.spawn(|| pool.broadcast(pid::<()>, ()));
        wait_until("three have done their part", || pool.stats().done == 3);
        assert_eq!(effects.noted().len(), 2);
        // A worker that is killed makes room for one more, which stood by.
        kill(*busy.iter().next().unwrap(), libc::SIGKILL);
        wait_until("another runs", || effects.noted().len() == 3);
        effects.note(0);
        assert_eq!(broadcast.join().unwrap().into_iter().filter(Result::is_ok).count(), 5);
    });
    let ends: Vec<_> = held.into_iter().map(|task| task.get()).collect();
    assert_eq!(ends.iter().filter(|end| end.is_err()).count(), 1, "{ends:?}");
}

#[test]
fn spares_are_initialized_and_stand_by_for_workers_that_retire() {
    fn initialize(_: ()) -> u32 {
        std::process::id()
    }
    fn own(_: u32) -> (u32, u32) {
        (std::process::id(), with_state(|pid: &mut u32| *pid).unwrap())
    }
    let pool = Pool::builder().workers(2).spares(2).max_tasks_per_worker(1);
    let pool = pool.initializer(initialize, ()).build().unwrap();
    let all = pool.map(own, 0..200).unwrap();
    assert!(all.iter().all(|(process, initialized)| process == initialized));
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 200, "a process for each");
}

#[test]
fn spares_that_are_killed_while_they_stand_by_are_replaced_and_none_is_left() {
    let mut seen = Vec::new();
    let pool = Pool::builder().workers(1).spares(2).build().unwrap();
    for _ in 0..5 {
        wait_until("all are ready", || idle(&pool) == 3);
        let pids: Vec<u32> = pool.workers().iter().map(|worker| worker.pid).collect();
        pids.iter().for_each(|pid| kill(*pid, libc::SIGKILL));
        wait_until("they are gone", || pids.iter().all(|pid| !is_alive(*pid)));
        assert_eq!(pool.apply(square, 4), Ok(16));
        seen.extend(pids);
    }
    seen.extend(pool.workers().iter().map(|worker| worker.pid));
    pool.close();
    pool.join();
    assert!(seen.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn spares_are_refused_where_a_worker_has_a_device_of_its_own() {
    let devices = Pool::builder().env_per_worker(|_| Vec::new()).spares(1).build();
    let pinned = Pool::builder().pin_cpus(true).spares(1).build();
    for refused in [devices, pinned, Pool::builder().spares(100_000).build()] {
        assert!(matches!(refused, Err(Error::Option { option: "spares", .. })), "{refused:?}");
    }
}

#[test]
fn a_slow_first_item_does_not_stop_the_others_of_an_imap() {
    /// The first waits for the last.
    fn run((effects, item): (SideEffects, u64)) -> u64 {
        if item == 0 {
            wait_until("the last has run", || effects.count(1) > 0);
        } else if item == 20_000 {
            effects.note(1);
        }
        item
    }
    let pool = Pool::builder().workers(2).task_timeout(SOON).build().unwrap();
    let effects = SideEffects::new();
    let items = (0..=20_000).map(|item| (effects.clone(), item));
    let results = pool.imap(run, items).collect::<Result<Vec<_>, _>>().unwrap();
    assert_eq!(results, (0..=20_000).collect::<Vec<_>>());
}
