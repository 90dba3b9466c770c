//! Processes that wait for each other: nobody waits for the dead, and nobody is let in too soon.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use procpool::sync::Event;
use procpool::{
    Barrier, BarrierError, Lock, Pool, Semaphore, SharedArray, SharedValue, TaskErrorKind,
};
use support::{kill, wait_until};

procpool::test_support!();

const NOW: Duration = Duration::ZERO;
const A_MOMENT: Duration = Duration::from_millis(20);

/// Kills this process.
fn die<T>() -> T {
    kill(std::process::id(), libc::SIGKILL);
    unreachable!("that signal can't be handled");
}

#[test]
fn what_is_counted_under_a_lock_or_by_atomics_is_exact() {
    type Counters =
        (SharedValue<u64>, SharedArray<[u8; 24]>, SharedValue<AtomicU64>, SharedArray<AtomicI64>);
    fn count((value, array, atomic, atomics): Counters) {
        *value.lock() += 1;
        for bytes in array.lock().iter_mut() {
            *bytes = bytes.map(|x| x.wrapping_add(1));
        }
        atomic.fetch_add(1, SeqCst);
        atomics[1].fetch_sub(1, SeqCst);
    }
    let counters: Counters = (
        SharedValue::new(5).unwrap(),
        SharedArray::new([[0; 24]; 100]).unwrap(),
        SharedValue::<AtomicU64>::atomic(7).unwrap(),
        SharedArray::<AtomicI64>::atomic([1, 2]).unwrap(),
    );
    let pool = Pool::new(4).unwrap();
    pool.map(count, vec![counters.clone(); 10_000]).unwrap();
    let (value, array, atomic, atomics) = counters;
    assert_eq!(value.get(), 10_005);
    assert_eq!(array.to_vec(), [[(10_000 % 256) as u8; 24]; 100]);
    assert_eq!(atomic.load(SeqCst), 10_007);
    assert_eq!([atomics[0].load(SeqCst), atomics[1].load(SeqCst)], [1, -9_998]);
    value.set(1);
    assert_eq!(pool.apply(|value: SharedValue<u64>| value.get(), value), Ok(1));
}

#[test]
fn a_lock_whose_owner_is_killed_a_thousand_times_is_had_by_the_next_who_is_told() {
    fn die_with_it((value, told): (SharedValue<u64>, SharedValue<AtomicU64>)) {
        let mut guard = value.lock();
        if let Some(pid) = guard.previous_owner_died() {
            assert!(!support::is_alive(pid));
            told.fetch_add(1, SeqCst);
        }
        *guard += 1;
        die()
    }
    let (value, told) =
        (SharedValue::new(0).unwrap(), SharedValue::<AtomicU64>::atomic(0).unwrap());
    let pool = Pool::builder().workers(4).chunk_size(1).build().unwrap();
    let results = pool.imap_unordered(die_with_it, vec![(value.clone(), told.clone()); 1000]);
    for result in results {
        assert!(matches!(result.unwrap_err().kind(), TaskErrorKind::Died { .. }));
    }
    let guard = value.lock();
    assert_eq!((*guard, told.load(SeqCst)), (1000, 999));
    assert!(guard.previous_owner_died().is_some());
    drop(guard);
    assert_eq!(value.lock().previous_owner_died(), None);
}

#[test]
fn a_lock_excludes_other_processes_and_other_threads() {
    let lock = Lock::new().unwrap();
    let pool = Pool::new(1).unwrap();
    let try_it = |lock: Lock| {
        let is_free = lock.try_lock().is_some();
        (is_free, lock.lock_timeout(A_MOMENT).is_some())
    };
    let guard = lock.lock();
    assert_eq!(pool.apply(try_it, lock.clone()), Ok((false, false)));
    assert!(lock.try_lock().is_none() && lock.lock_timeout(NOW).is_none());
    let waits = pool.apply_async(|lock: Lock| drop(lock.lock()), lock.clone());
    drop(guard);
    assert_eq!(waits.get(), Ok(()));
    assert_eq!(pool.apply(try_it, lock.clone()), Ok((true, true)));
    let panics = |lock: Lock| {
        let _guard = lock.lock();
        panic!("with the lock");
    };
    let panicked: Result<(), _> = pool.apply(panics, lock.clone());
    assert!(panicked.is_err());
    assert_eq!(lock.lock().previous_owner_died(), None);
}

#[test]
fn no_more_processes_have_a_permit_than_there_are_and_the_dead_have_none() {
    type Gauge = SharedArray<AtomicU64>;
    fn work((semaphore, gauge, x): (Semaphore, Gauge, u64)) {
        let _permit = semaphore.acquire();
        let now = gauge[0].fetch_add(1, SeqCst) + 1;
        gauge[1].fetch_max(now, SeqCst);
        std::thread::sleep(Duration::from_micros(100));
        // Counted down first: a permit is taken over after its owner's death, never before.
        gauge[0].fetch_sub(1, SeqCst);
        if x.is_multiple_of(20) {
            die()
        }
    }
    let semaphore = Semaphore::new(3).unwrap();
    let gauge = Gauge::atomic([0, 0]).unwrap();
    let pool = Pool::builder().workers(6).chunk_size(1).build().unwrap();
    let tasks = (0..400).map(|x| (semaphore.clone(), gauge.clone(), x));
    let died = pool.imap(work, tasks).filter(Result::is_err).count();
    assert_eq!((died, gauge[0].load(SeqCst)), (20, 0));
    assert!((1..=3).contains(&gauge[1].load(SeqCst)), "{}", gauge[1].load(SeqCst));
    assert_eq!(semaphore.available(), 3);
    let all: Vec<_> = (0..3).map(|_| semaphore.acquire()).collect();
    assert!(semaphore.try_acquire().is_none() && semaphore.acquire_timeout(A_MOMENT).is_none());
    drop(all);
    assert!(semaphore.try_acquire().is_some());
}

#[test]
fn an_event_lets_all_go_that_wait_for_it() {
    let (event, arrived) = (Event::new().unwrap(), SharedValue::<AtomicU64>::atomic(0).unwrap());
    let pool = Pool::builder().workers(4).chunk_size(1).build().unwrap();
    let wait = |(event, arrived): (Event, SharedValue<AtomicU64>)| {
        arrived.fetch_add(1, SeqCst);
        event.wait();
    };
    let tasks = pool.map_async(wait, vec![(event.clone(), arrived.clone()); 4]);
    wait_until("all four wait", || arrived.load(SeqCst) == 4);
    assert!(!event.is_set() && !tasks.is_ready() && !event.wait_timeout(A_MOMENT));
    event.set();
    tasks.get().unwrap();
    assert!(event.is_set() && event.wait_timeout(NOW));
    event.clear();
    assert!(!event.is_set());
}

#[test]
fn a_barrier_of_eight_is_passed_a_thousand_times_by_all_together() {
    const ROUNDS: u64 = 1000;
    fn walk((barrier, rounds, me): (Barrier, SharedArray<AtomicU64>, usize)) -> u64 {
        let mut led = 0;
        for round in 1..=ROUNDS {
            rounds[me].store(round, SeqCst);
            led += u64::from(barrier.wait().unwrap());
            let is_here = |other: &AtomicU64| (round..=round + 1).contains(&other.load(SeqCst));
            assert!(rounds.iter().all(is_here), "{rounds:?} in round {round}");
        }
        led
    }
    let (barrier, rounds) = (Barrier::new(8).unwrap(), SharedArray::atomic([0; 8]).unwrap());
    let pool = Pool::builder().workers(8).chunk_size(1).build().unwrap();
    let walkers = (0..8).map(|me| (barrier.clone(), rounds.clone(), me));
    let led = pool.map(walk, walkers).unwrap();
    assert_eq!(led.iter().sum::<u64>(), ROUNDS);
    // Who has come to the end has left: nobody is missed.
    assert_eq!(barrier.wait_timeout(A_MOMENT), Err(BarrierError::TimedOut));
}

#[test]
fn a_barrier_breaks_when_a_participant_dies_or_gives_up_and_can_be_made_whole() {
    let pool = Pool::builder().workers(2).chunk_size(1).build().unwrap();
    let wait = |barrier: Barrier| {
        let outcome = barrier.wait();
        (outcome.is_ok(), outcome == Err(BarrierError::Broken))
    };
    let (broken, passed) = (Ok((false, true)), Ok((true, false)));

    // Killed while it waits; before it waits; after it has.
    let barrier = Barrier::new(3).unwrap();
    let come = SharedValue::<AtomicU64>::atomic(0).unwrap();
    let come_and_wait = |(barrier, come): (Barrier, SharedValue<AtomicU64>)| {
        come.fetch_add(1, SeqCst);
        let outcome = barrier.wait();
        (outcome.is_ok(), outcome == Err(BarrierError::Broken))
    };
    let waits = [(); 2].map(|()| pool.apply_async(come_and_wait, (barrier.clone(), come.clone())));
    wait_until("both have come", || come.load(SeqCst) == 2);
    kill(pool.workers()[0].pid, libc::SIGKILL);
    let [first, second] = waits.map(|task| task.get());
    assert!([&first, &second].iter().any(|result| **result == broken), "{first:?}, {second:?}");
    assert_eq!(barrier.wait(), Err(BarrierError::Broken));

    barrier.reset();
    assert!(!barrier.is_broken());
    let waits = pool.apply_async(wait, barrier.clone());
    assert!(pool.apply(|_barrier: Barrier| die::<()>(), barrier.clone()).is_err());
    assert_eq!(waits.get(), broken);

    barrier.reset();
    let waits = [(); 2].map(|()| pool.apply_async(wait, barrier.clone()));
    assert!(barrier.wait().is_ok());
    assert_eq!(waits.map(|task| task.get()), [passed.clone(), passed]);

    let waits = pool.apply_async(wait, barrier.clone());
    assert_eq!(barrier.wait_timeout(A_MOMENT), Err(BarrierError::TimedOut));
    assert_eq!(waits.get(), broken);
    assert!(barrier.is_broken());

    barrier.reset();
    let waits = pool.apply_async(wait, barrier.clone());
    wait_until("it is sent away", || {
        barrier.reset();
        waits.is_ready()
    });
    assert_eq!(waits.get(), broken);
}

#[test]
fn what_is_shared_is_of_one_kind_and_goes_through_arguments_alone() {
    #[derive(serde::Deserialize)]
    struct Confused(#[allow(dead_code)] Semaphore);
    impl serde::Serialize for Confused {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            Lock::new().unwrap().serialize(serializer)
        }
    }
    let pool = Pool::new(1).unwrap();
    let confused = Confused(Semaphore::new(1).unwrap());
    let error = pool.apply(|_: Confused| (), confused).unwrap_err();
    assert!(error.to_string().contains("something else"), "{error}");
    let error = pool.apply(|()| Event::new().unwrap(), ()).unwrap_err();
    assert!(error.to_string().contains("only be sent in an argument"), "{error}");
}
