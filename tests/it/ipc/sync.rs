//! Locks, semaphores, events and barriers: no process waits for a dead one, and none continues too early.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::{SOON, alone, kill, wait_until};
use procpool::channel::{Receiver, Sender, bounded, unbounded};
use procpool::shared::{SharedArray, SharedSlice, SharedValue};
use procpool::sync::Event;
use procpool::sync::{Barrier, BarrierError, Lock, Semaphore};
use procpool::{Pool, TaskErrorKind};

const NOW: Duration = Duration::ZERO;
const A_MOMENT: Duration = Duration::from_millis(20);

/// Kills this process.
fn die<T>() -> T {
    kill(std::process::id(), libc::SIGKILL);
    unreachable!("that signal can't be handled");
}

#[test]
fn counts_under_a_lock_or_by_atomics_are_exact() {
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
fn a_lock_passes_from_a_killed_owner_to_the_next_which_learns_of_it_a_thousand_times() {
    fn die_with_it((value, told): (SharedValue<u64>, SharedValue<AtomicU64>)) {
        let mut guard = value.lock();
        if let Some(pid) = guard.abandoned_by() {
            assert!(!crate::support::is_alive(pid));
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
    assert!(guard.abandoned_by().is_some());
    drop(guard);
    assert_eq!(value.lock().abandoned_by(), None);
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
    let (guard, worker) = (lock.lock(), pool.workers()[0].pid);
    assert_eq!(guard.abandoned_by(), Some(worker), "an owner that panicked is told");
    drop(guard);
    assert_eq!(lock.lock().abandoned_by(), None);
}

#[test]
fn no_more_processes_than_permits_hold_one_and_dead_processes_hold_none() {
    type Gauge = SharedArray<AtomicU64>;
    fn work((semaphore, gauge, x): (Semaphore, Gauge, u64)) {
        let _permit = semaphore.acquire();
        let now = gauge[0].fetch_add(1, SeqCst) + 1;
        gauge[1].fetch_max(now, SeqCst);
        std::thread::sleep(Duration::from_micros(100));
        // Counted down first: a permit is taken over only after its owner has died.
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
fn an_event_wakes_all_waiters() {
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
    // A participant that has finished has left and is not missed.
    assert_eq!(barrier.wait_timeout(A_MOMENT), Err(BarrierError::TimedOut));
}

#[test]
fn a_barrier_breaks_when_a_participant_dies_or_times_out_and_can_be_reset() {
    let pool = Pool::builder().workers(2).chunk_size(1).build().unwrap();
    let wait = |barrier: Barrier| {
        let outcome = barrier.wait();
        (outcome.is_ok(), outcome == Err(BarrierError::Broken))
    };
    let (broken, passed) = (Ok((false, true)), Ok((true, false)));

    // Killed during, before and after its wait.
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
fn a_shared_object_is_of_one_kind_in_arguments_results_and_messages() {
    #[derive(Debug, serde::Deserialize)]
    struct Confused(#[allow(dead_code)] Semaphore);
    impl serde::Serialize for Confused {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            Lock::new().unwrap().serialize(serializer)
        }
    }
    let pool = Pool::new(1).unwrap();
    let confused = Confused(Semaphore::new(1).unwrap());
    let error = pool.apply(|_: Confused| (), confused).unwrap_err();
    assert!(error.to_string().contains("another type"), "{error}");
    let error = pool.apply(|()| Confused(Semaphore::new(1).unwrap()), ()).unwrap_err();
    assert!(error.to_string().contains("another type"), "{error}");
    let (sender, receiver) = procpool::channel::unbounded().unwrap();
    sender.send(Confused(Semaphore::new(1).unwrap())).unwrap();
    let error = receiver.recv().unwrap_err();
    assert!(error.to_string().contains("another type"), "{error}");
}

#[test]
fn what_a_task_makes_to_wait_for_is_waited_for_by_its_caller_and_by_other_tasks() {
    type Made = (Event, Semaphore, Barrier);
    fn make((): ()) -> Made {
        (Event::new().unwrap(), Semaphore::new(1).unwrap(), Barrier::new(2).unwrap())
    }
    fn meet((event, permits, barrier): Made) -> bool {
        let _permit = permits.acquire();
        event.set();
        barrier.wait_timeout(SOON).is_ok()
    }
    let pool = Pool::builder().workers(2).chunk_size(1).build().unwrap();
    let (event, permits, barrier) = pool.apply(make, ()).unwrap();
    let task = pool.apply_async(meet, (event.clone(), permits.clone(), barrier.clone()));
    assert!(event.wait_timeout(SOON));
    assert!(permits.try_acquire().is_none());
    assert!(barrier.wait_timeout(SOON).is_ok());
    assert_eq!(task.get(), Ok(true));
    assert!(permits.acquire_timeout(SOON).is_some());
}

#[test]
fn a_barrier_breaks_when_a_participant_panics_or_aborts() {
    let pool = Pool::builder().workers(2).chunk_size(1).build().unwrap();
    let barrier = Barrier::new(2).unwrap();
    let wait = |barrier: Barrier| barrier.wait_timeout(SOON) == Err(BarrierError::Broken);
    let waits = pool.apply_async(wait, barrier.clone());
    let panics = |_barrier: Barrier| panic!("before it waits");
    let panicked: Result<(), _> = pool.apply(panics, barrier.clone());
    assert!(matches!(panicked.unwrap_err().kind(), TaskErrorKind::Panicked { .. }));
    assert_eq!(waits.get(), Ok(true));
    barrier.reset();
    let waits = pool.apply_async(wait, barrier.clone());
    barrier.abort();
    assert_eq!((waits.get(), barrier.is_broken()), (Ok(true), true));
}

#[test]
fn a_task_that_changes_its_root_does_not_take_a_lock_that_is_held() {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: changing the root needs root");
        return;
    }
    fn try_within((root, lock, permits): (std::path::PathBuf, Lock, Semaphore)) -> Option<bool> {
        if let Err(error) = std::os::unix::fs::chroot(root) {
            eprintln!("skipped: {error}");
            return None;
        }
        let had = lock.lock_timeout(A_MOMENT).is_some() || lock.try_lock().is_some();
        Some(had || permits.try_acquire().is_some())
    }
    let root = tempfile::tempdir().unwrap();
    let (lock, permits) = (Lock::new().unwrap(), Semaphore::new(1).unwrap());
    let pool = Pool::new(1).unwrap();
    let guards = (lock.lock(), permits.acquire());
    let had = pool.apply(try_within, (root.path().to_owned(), lock.clone(), permits.clone()));
    assert!(matches!(had, Ok(None | Some(false))), "{had:?}");
    drop(guards);
    assert_eq!(pool.apply(|lock: Lock| lock.try_lock().is_some(), lock.clone()), Ok(true));
}

#[test]
fn a_process_whose_first_thread_has_ended_keeps_its_lock_as_long_as_another_runs() {
    fn leave((lock, is_had): (Lock, Event)) {
        std::thread::spawn(move || {
            let _guard = lock.lock();
            is_had.set();
            std::thread::sleep(SOON);
        });
        std::thread::sleep(A_MOMENT);
        // SAFETY: it ends this thread only, and its borrows are never used again.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    let (lock, is_had) = (Lock::new().unwrap(), Event::new().unwrap());
    let pool = Pool::new(1).unwrap();
    let task = pool.apply_async(leave, (lock.clone(), is_had.clone()));
    assert!(is_had.wait_timeout(SOON));
    let pid = pool.workers()[0].pid;
    wait_until("its first thread has ended", || !crate::support::is_alive(pid));
    assert!(lock.try_lock().is_none() && lock.lock_timeout(A_MOMENT).is_none());
    kill(pid, libc::SIGKILL);
    let guard = lock.lock_timeout(SOON).expect("its owner is dead");
    assert_eq!(guard.abandoned_by(), Some(pid));
    assert!(task.get().is_err());
}

/// One or more shared objects of each kind.
macro_rules! disguises {
    ($($index:literal: $kind:ty = $make:expr),* $(,)?) => {
        /// Encoded as one kind, and decoded as another.
        struct Disguised {
            from: u8,
            to: u8,
        }

        const KINDS: u8 = [$($index),*].len() as u8;

        impl serde::Serialize for Disguised {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self.from {
                    $($index => {
                        let made: $kind = $make;
                        (self.from, self.to, made).serialize(serializer)
                    })*
                    _ => unreachable!(),
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for Disguised {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl<'de> serde::de::Visitor<'de> for Visitor {
                    type Value = Disguised;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("what is shared")
                    }

                    fn visit_seq<A: serde::de::SeqAccess<'de>>(
                        self,
                        mut parts: A,
                    ) -> Result<Disguised, A::Error> {
                        let from = parts.next_element()?.unwrap();
                        let to = parts.next_element()?.unwrap();
                        match to {
                            $($index => drop(parts.next_element::<$kind>()?.unwrap()),)*
                            _ => unreachable!(),
                        }
                        Ok(Disguised { from, to })
                    }
                }
                deserializer.deserialize_tuple(3, Visitor)
            }
        }
    };
}
thread_local! {
    /// The same objects each time, so that a worker has mapped them as their own kind.
    static ARRAY: SharedArray<u64> = SharedArray::new([1; 8]).unwrap();
    static SLICE: SharedSlice<u64> = SharedSlice::new([1; 8]).unwrap();
    static LOCK: Lock = Lock::new().unwrap();
    static ENDS: (Sender<u64>, Receiver<u64>) = unbounded().unwrap();
}
disguises! {
    0: SharedSlice<u64> = SLICE.with(Clone::clone),
    1: SharedSlice<u32> = SharedSlice::new([1]).unwrap(),
    2: SharedArray<u64> = ARRAY.with(Clone::clone),
    3: SharedArray<AtomicU64> = SharedArray::<AtomicU64>::atomic([1]).unwrap(),
    4: SharedArray<[u8; 3]> = SharedArray::new([]).unwrap(),
    5: SharedValue<u64> = SharedValue::new(1).unwrap(),
    6: SharedValue<AtomicU64> = SharedValue::<AtomicU64>::atomic(1).unwrap(),
    7: SharedValue<[u8; 3]> = SharedValue::new([1; 3]).unwrap(),
    8: Lock = LOCK.with(Clone::clone),
    9: Semaphore = Semaphore::new(1).unwrap(),
    10: Event = Event::new().unwrap(),
    11: Barrier = Barrier::new(1).unwrap(),
    12: Sender<u64> = ENDS.with(|ends| ends.0.clone()),
    13: Receiver<u64> = ENDS.with(|ends| ends.1.clone()),
    14: Receiver<u32> = bounded(1).unwrap().1,
}

#[test]
fn decoding_a_shared_object_as_another_type_is_an_error() {
    let pool = Pool::new(1).unwrap();
    for from in 0..KINDS {
        for to in 0..KINDS {
            // As its own kind first, so that the worker maps it.
            let both = vec![Disguised { from, to: from }, Disguised { from, to }];
            let outcome = pool.apply(|both: Vec<Disguised>| both.len(), both);
            match outcome {
                Ok(2) if from == to => {}
                Err(error) if from != to => {
                    assert!(error.to_string().contains("another type"), "{from} as {to}: {error}");
                    assert!(matches!(error.kind(), TaskErrorKind::Decode { .. }), "{error}");
                }
                outcome => panic!("{from} as {to}: {outcome:?}"),
            }
        }
    }
}

#[test]
fn objects_whose_memory_is_overwritten_are_errors_and_never_more() {
    alone!("overwritten_objects");
}

#[test]
#[ignore = "run by `objects_whose_memory_is_overwritten_are_errors_and_never_more`, alone"]
fn overwritten_objects() {
    const BRIEFLY: Duration = Duration::from_millis(1);
    std::thread::spawn(|| {
        std::thread::sleep(3 * SOON);
        eprintln!("it takes too long");
        std::process::exit(3);
    });
    // SplitMix64.
    let mut state = 7u64;
    let mut random = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let mut scribble = || {
        for line in std::fs::read_to_string("/proc/self/maps").unwrap().lines() {
            if !(line.contains(" rw-s ") && line.contains("memfd:procpool")) {
                continue;
            }
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16).unwrap());
            for _ in 0..1 + random() % 256 {
                let word = match random() % 8 {
                    0 => 0,
                    1 => u64::MAX,
                    2 => random() % 64,
                    3 => (random() % 4096) * 8,
                    4 => 1 << (random() % 64),
                    5 => (1 << 62) - 8 * (random() % 4),
                    6 => ((random() % 1_000_000) << 2) | (random() % 4),
                    _ => random(),
                };
                // The start of a log or of a region's directory, and the first objects after it.
                let (from, len) = if random() % 4 == 0 { (0, 1024) } else { (9_984, 4096) };
                let len = len.min((end - start).saturating_sub(from));
                if len == 0 {
                    continue;
                }
                let at = start + from + random() as usize % len / 8 * 8;
                // SAFETY: it is mapped, and other processes may write it at any time.
                unsafe { (at as *mut u64).write_volatile(word) };
            }
        }
    };
    for _ in 0..30 {
        let value = SharedValue::new(1u64).unwrap();
        let array = SharedArray::<AtomicU64>::atomic([1; 9]).unwrap();
        let (lock, semaphore) = (Lock::new().unwrap(), Semaphore::new(3).unwrap());
        let (event, barrier) = (Event::new().unwrap(), Barrier::new(2).unwrap());
        let ends = [unbounded::<Vec<u8>>().unwrap(), bounded(2).unwrap()];
        for round in 0..4 {
            scribble();
            let _ = value.lock_timeout(BRIEFLY).map(|mut value| *value += 0);
            assert_eq!(array.len(), 9);
            drop(lock.try_lock());
            drop(lock.lock_timeout(BRIEFLY));
            drop(semaphore.acquire_timeout(BRIEFLY));
            assert!(semaphore.available() <= 3);
            event.set();
            event.wait_timeout(BRIEFLY);
            scribble();
            let _ = barrier.wait_timeout(BRIEFLY);
            barrier.reset();
            for (sender, receiver) in &ends {
                let _ = sender.send_timeout(vec![1; [3, 5_000, 100_000][round % 3]], BRIEFLY);
                scribble();
                let _ = receiver.recv_timeout(BRIEFLY);
                let _ = sender.try_send(vec![2]);
                let _ = receiver.try_iter().take(10).count();
            }
        }
    }
}

#[test]
fn a_guard_waits_while_a_condition_holds_and_others_change_what_it_guards() {
    fn turns((value, mine): (SharedValue<u64>, u64)) -> u64 {
        for _ in 0..200 {
            let mut value = value.lock().wait_while(|value| *value % 2 != mine);
            *value += 1;
        }
        std::process::id().into()
    }
    let pool = Pool::new(2).unwrap();
    let value = SharedValue::new(0u64).unwrap();
    let tasks = pool.map_async(turns, [0, 1].map(|mine| (value.clone(), mine)));
    let guard = value.lock().wait_while_timeout(SOON, |value| *value < 400).unwrap();
    assert_eq!(*guard, 400);
    drop(guard);
    let pids = tasks.get().unwrap();
    assert_ne!(pids[0], pids[1]);
}

#[test]
fn a_wait_for_a_condition_ends_with_its_limit_and_learns_of_an_owner_that_died() {
    let value = SharedValue::new(1u64).unwrap();
    let begun = Instant::now();
    let guard = value.lock().wait_while_timeout(Duration::from_millis(30), |value| *value > 0);
    assert!(guard.is_err() && begun.elapsed() >= Duration::from_millis(30));
    drop(guard);

    fn die(value: SharedValue<u64>) {
        *value.lock() = 0;
        let _guard = value.lock();
        std::process::abort();
    }
    let task = Pool::new(1).unwrap();
    let died = task.apply_async(die, value.clone());
    let guard = value.lock().wait_while_timeout(SOON, |value| *value > 0).unwrap();
    drop(guard);
    assert!(died.get().is_err());
    // The process that died may have acquired the lock again by then.
    assert!(value.lock_timeout(SOON).is_some());
}
