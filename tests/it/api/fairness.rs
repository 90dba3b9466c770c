//! Callers of one pool share its workers.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{SideEffects, sleepy, square, wait_until};
use procpool::{Pool, TaskOptions};

/// Runs once 0 is noted. Returns when that was, and its number.
fn note((effects, number): (SideEffects, u64)) -> (u128, u64) {
    wait_until("it may go on", || effects.count(0) > 0);
    (SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos(), number)
}

#[test]
fn a_call_beside_a_large_map_waits_for_a_chunk_and_not_for_the_map() {
    let pool = Pool::new(2).unwrap();
    let map = pool.map_async(sleepy, std::iter::repeat_n(2, 5000));
    wait_until("it runs", || pool.stats().done > 10);
    for x in 0..20 {
        assert_eq!(pool.apply(square, x), Ok(x * x));
        assert_eq!(pool.map(square, 0..3), Ok(vec![0, 1, 4]));
    }
    assert!(!map.is_ready(), "5 s of work are not over");
    map.cancel();
}

#[test]
fn two_maps_go_on_side_by_side() {
    let pool = Pool::new(2).unwrap();
    let long = pool.map_async(sleepy, std::iter::repeat_n(2, 5000));
    wait_until("it runs", || pool.stats().done > 10);
    let short = pool.map(sleepy, std::iter::repeat_n(1, 100)).unwrap();
    assert_eq!(short.len(), 100);
    assert!(!long.is_ready());
    long.cancel();
}

#[test]
fn a_map_goes_on_beside_endless_single_calls() {
    let pool = Pool::new(2).unwrap();
    let calls: Vec<_> = (0..3000).map(|_| pool.apply_async(sleepy, 2)).collect();
    let map = pool.map(sleepy, std::iter::repeat_n(1, 100)).unwrap();
    assert_eq!(map.len(), 100);
    assert!(calls.iter().any(|call| !call.is_ready()), "6 s of work are not over");
    pool.cancel_queued();
}

#[test]
fn tasks_of_a_higher_priority_start_first() {
    let pool = Pool::builder().workers(1).chunk_size(1).build().unwrap();
    let effects = SideEffects::new();
    let with = |priority| pool.with_options(TaskOptions::new().priority(priority));
    let first = pool.apply_async(note, (effects.clone(), 100));
    wait_until("it runs", || pool.stats().running == 1);
    let low = with(-3).map_async(note, (30..33).map(|number| (effects.clone(), number)));
    let usual = pool.apply_async(note, (effects.clone(), 20));
    let high = with(9).map_async(note, (10..13).map(|number| (effects.clone(), number)));
    let single = with(9).apply_async(note, (effects.clone(), 13));
    effects.note(0);
    let singles = [first, usual, single].map(|task| task.get().unwrap());
    let all = [high.get().unwrap(), low.get().unwrap()].concat();
    let mut order: Vec<_> = all.into_iter().chain(singles).collect();
    order.sort_unstable();
    let order: Vec<u64> = order.into_iter().map(|(_, number)| number).collect();
    let mut urgent = order[1..5].to_vec();
    urgent.sort_unstable();
    assert_eq!((order[0], urgent), (100, vec![10, 11, 12, 13]));
    assert_eq!(order[5..], [20, 30, 31, 32]);
}

#[test]
fn tasks_of_a_low_priority_run_when_there_is_nothing_else() {
    let pool = Pool::new(2).unwrap();
    let low = pool.with_options(TaskOptions::new().priority(i32::MIN));
    assert_eq!(low.map(square, 0..1000).unwrap().len(), 1000);
    assert_eq!(low.apply(square, 5), Ok(25));
}
