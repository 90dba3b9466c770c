//! `map_with` and `map_init`: contexts and states that the items of one call share in a worker.

use crate::support::{Secret, SideEffects, is_alive, kill, wait_until};
use procpool::shared::SharedSlice;
use procpool::{Pool, Process, TaskErrorKind, TaskOptions, ValueSide};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value that notes 0 when it is encoded, the worker's PID when it is decoded, and twice the PID when it is
/// dropped there.
#[derive(Debug)]
struct Watched(SideEffects);

impl Serialize for Watched {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.note(0);
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Watched {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let effects = SideEffects::deserialize(deserializer)?;
        effects.note(std::process::id().into());
        Ok(Self(effects))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.note(2 * u64::from(std::process::id()));
    }
}

#[test]
fn a_context_is_encoded_once_and_decoded_once_in_each_worker() {
    let effects = SideEffects::new();
    let pool = Pool::builder().workers(2).chunk_size(1).build().unwrap();
    let pid = |_: &Watched, _: u64| u64::from(std::process::id());
    let pids = pool.map_with(Watched(effects.clone()), pid, 0..200).unwrap();
    assert_eq!(effects.count(0), 1);
    assert!(pids.iter().all(|pid| effects.count(*pid) == 1), "{pids:?}");
}

#[test]
fn a_context_is_dropped_in_the_workers_when_the_call_is_over() {
    let effects = SideEffects::new();
    let pool = Pool::builder().workers(2).chunk_size(1).build().unwrap();
    let pid = |_: &Watched, _: u64| u64::from(std::process::id());
    let pids = pool.map_with(Watched(effects.clone()), pid, 0..50).unwrap();
    wait_until("all are dropped", || pids.iter().all(|pid| effects.count(2 * pid) == 1));
}

#[test]
fn items_and_answers_are_as_with_map() {
    let pool = Pool::new(2).unwrap();
    let scale = |(factor, name): &(u64, String), x: u64| (name.clone(), factor * x);
    let context = (3, "triple".to_owned());
    let answers = pool.map_with(context.clone(), scale, 0..1000).unwrap();
    assert!(answers.into_iter().eq((0..1000).map(|x| ("triple".to_owned(), 3 * x))));
    assert_eq!(pool.map_with(context, scale, []), Ok(Vec::new()));
}

#[test]
fn a_large_context_arrives_whole() {
    let pool = Pool::new(2).unwrap();
    let numbers: Vec<u64> = (0..2 << 20).collect();
    let at = |numbers: &Vec<u64>, i: usize| numbers[i];
    let places = [0, 77, (2 << 20) - 1];
    assert_eq!(pool.map_with(numbers.clone(), at, places), Ok(places.map(|i| i as u64).to_vec()));
    let at = |(numbers, _): &(Vec<u64>, bool), i: usize| numbers[i];
    let context = (numbers, true);
    assert_eq!(pool.map_with(context, at, places), Ok(places.map(|i| i as u64).to_vec()));
}

/// In the first process that decodes it, tries to change the memory of the context in every way. All other
/// processes wait until that is done.
#[derive(Debug, Serialize)]
struct Vandal(SideEffects);

const NUMBERS: u64 = 100_000;
const SCRIBBLED: u64 = 1;

impl<'de> Deserialize<'de> for Vandal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let effects = SideEffects::deserialize(deserializer)?;
        let claim = std::fs::File::options().write(true).create_new(true).open(effects.file(0));
        if claim.is_ok() {
            scribble_over_memory_files();
            effects.note(SCRIBBLED);
        }
        wait_until("it is scribbled over", || effects.count(SCRIBBLED) == 1);
        Ok(Self(effects))
    }
}

/// Writes into all memory files of the context's size that this process has mapped or open, if the kernel
/// allows it.
fn scribble_over_memory_files() {
    let is_it = |len: u64| (8 * NUMBERS..8 * NUMBERS + 8192).contains(&len);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut found = 0;
    let mut paths: Vec<_> = (0..1100).map(|fd| format!("/proc/self/fd/{fd}")).collect();
    for line in maps.lines().filter(|line| line.contains("memfd:")) {
        let range = line.split_whitespace().next().unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let start = usize::from_str_radix(start, 16).unwrap();
        let len = usize::from_str_radix(end, 16).unwrap() - start;
        if !is_it(len as u64) {
            continue;
        }
        found += 1;
        paths.push(format!("/proc/self/map_files/{range}"));
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the mapping exists while the context is decoded, and all of its bytes are valid.
        unsafe {
            let start = start as *mut u8;
            if libc::mprotect(start.cast(), len, access) == 0 {
                start.add(4096).write_bytes(0xff, len - 4096);
            }
        }
    }
    assert!(found > 0, "the context is in no memory file: {maps}");
    for path in paths {
        let Ok(file) = std::fs::File::options().read(true).write(true).open(path) else { continue };
        let Ok(len) = file.metadata().map(|file| file.len()) else { continue };
        if !is_it(len) {
            continue;
        }
        let junk = vec![0xff; len as usize - 4096];
        let _ = std::os::unix::fs::FileExt::write_all_at(&file, &junk, 4096);
        let (access, fd) =
            (libc::PROT_READ | libc::PROT_WRITE, std::os::fd::AsRawFd::as_raw_fd(&file));
        // SAFETY: it creates a mapping of a file of that length.
        unsafe {
            let start =
                libc::mmap(std::ptr::null_mut(), len as usize, access, libc::MAP_SHARED, fd, 0);
            assert_eq!(start, libc::MAP_FAILED, "it can be mapped to be written");
        }
    }
}

#[test]
fn no_worker_can_change_what_another_reads_of_a_large_context() {
    let effects = SideEffects::new();
    let pool = Pool::builder().workers(2).chunk_size(1).build().unwrap();
    let numbers: Vec<u64> = (0..NUMBERS).collect();
    let check = |(Vandal(effects), numbers): &(Vandal, Vec<u64>), _: u64| {
        effects.note(std::process::id().into());
        wait_until("both have read it", || {
            effects.noted().iter().filter(|x| **x > SCRIBBLED).count() == 2
        });
        (std::process::id(), numbers.iter().copied().eq(0..NUMBERS))
    };
    let mut answers = pool.map_with((Vandal(effects), numbers), check, 0..20).unwrap();
    answers.sort_unstable();
    answers.dedup();
    assert_eq!(answers.len(), 2, "both workers have read it: {answers:?}");
    assert!(answers.iter().any(|(_, is_whole)| *is_whole), "{answers:?}");
}

#[test]
fn shared_handles_may_be_inside_of_a_context_a_broadcast_and_a_processes_argument() {
    fn at((shared, _): (SharedSlice<u64>, u8)) -> u64 {
        shared[77]
    }
    let shared = SharedSlice::new((0..100).collect::<Vec<u64>>()).unwrap();
    let pool = Pool::new(2).unwrap();
    let look = |(shared, _): &(SharedSlice<u64>, u8), i: usize| shared[i];
    let seen = pool.map_with((shared.clone(), 1), look, 0..100).unwrap();
    assert!(seen.into_iter().eq(0..100));
    assert_eq!(pool.broadcast(at, (shared.clone(), 1)), [Ok(77), Ok(77)]);
    assert_eq!(Process::spawn(at, (shared, 1)).unwrap().join(), Ok(77));
}

#[test]
fn a_replacement_worker_has_the_context_too() {
    let pool = Pool::builder().workers(2).chunk_size(3).retries(1).build().unwrap();
    let call = |(effects, factor): &(SideEffects, u64), x: u64| {
        if x % 10 == 5 && effects.count(x) == 0 {
            effects.note(x);
            std::process::abort();
        }
        factor * x
    };
    let answers = pool.map_with((SideEffects::new(), 7), call, 0..60).unwrap();
    assert!(answers.into_iter().eq((0..60).map(|x| 7 * x)));
    let other = |effects: &SideEffects, x: u64| {
        effects.note(std::process::id().into());
        x
    };
    let effects = SideEffects::new();
    let task = std::thread::scope(|scope| {
        let task = scope.spawn(|| pool.map_with(effects.clone(), other, 0..1000));
        wait_until("one has begun", || !effects.noted().is_empty());
        kill(effects.noted()[0] as u32, libc::SIGKILL);
        task.join().unwrap()
    });
    assert!(task.unwrap().into_iter().eq(0..1000));
}

#[test]
fn calls_at_the_same_time_have_their_own_contexts() {
    let pool = Pool::builder().workers(2).chunk_size(2).build().unwrap();
    std::thread::scope(|scope| {
        for factor in 1..5u64 {
            let pool = &pool;
            scope.spawn(move || {
                for _ in 0..20 {
                    let answers = pool.map_with(factor, |factor, x: u64| factor * x, 0..50);
                    assert!(answers.unwrap().into_iter().eq((0..50).map(|x| factor * x)));
                    assert_eq!(pool.apply(|x: u64| x + 1, factor), Ok(factor + 1));
                }
            });
        }
    });
}

/// Can be encoded, but not decoded.
#[derive(Debug, Serialize)]
struct Garbled(u8);

impl<'de> Deserialize<'de> for Garbled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            0 => Err(serde::de::Error::custom("not today")),
            _ => panic!("never"),
        }
    }
}

#[test]
fn a_context_that_cannot_be_decoded_is_each_items_error_and_the_workers_live() {
    let pool = Pool::new(2).unwrap();
    let before: Vec<_> = pool.workers().iter().map(|worker| worker.pid).collect();
    for (how, text) in [(0, "not today"), (1, "`Deserialize` panicked at")] {
        let error = pool.map_with(Garbled(how), |_, x: u64| x, 0..10).unwrap_err();
        let TaskErrorKind::Decode { side: ValueSide::Argument, reason } = error.kind() else {
            panic!("{error}")
        };
        assert!(["Garbled", "context", text].iter().all(|part| reason.contains(part)), "{reason}");
    }
    let stats = pool.stats();
    assert_eq!((stats.failed, stats.restarts), (20, 0));
    assert!(before.iter().all(|pid| is_alive(*pid)));
}

#[test]
fn a_context_that_cannot_be_encoded_is_the_calls_error() {
    let pool = Pool::new(1).unwrap();
    let error = pool.map_with(Secret, |_, x: u64| x, 0..10).unwrap_err();
    let TaskErrorKind::Encode { side: ValueSide::Argument, reason } = error.kind() else {
        panic!("{error}")
    };
    assert!(reason.contains("Secret") && reason.contains("it is a secret"), "{reason}");
    assert_eq!(pool.apply(|x: u64| x, 1), Ok(1));
}

/// Returns the worker, and how many items it has run before.
fn turn(state: &mut u64, _: u64) -> (u32, u64) {
    *state += 1;
    (std::process::id(), *state)
}

#[test]
fn a_state_is_created_once_in_each_worker_and_kept_for_the_call() {
    let pool = Pool::builder().workers(2).chunk_size(3).build().unwrap();
    for _ in 0..2 {
        let turns = pool.map_init(|| 0, turn, 0..100).unwrap();
        for worker in pool.workers() {
            let own = turns.iter().filter(|(pid, _)| *pid == worker.pid);
            let mut own: Vec<u64> = own.map(|(_, turn)| *turn).collect();
            own.sort_unstable();
            assert!(own.iter().copied().eq(1..=own.len() as u64), "{own:?}");
        }
        assert_eq!(turns.len(), 100);
    }
}

#[test]
fn after_a_panic_a_new_state_is_created() {
    let call = |state: &mut u64, x: u64| {
        *state += 1;
        assert_ne!(x, 4, "four");
        *state
    };
    let pool = Pool::builder().workers(1).chunk_size(10).build().unwrap();
    let error = pool.map_init(|| 0, call, 0..8).unwrap_err();
    assert_eq!(error.id(), 4);
    let note = |effects: &mut Option<SideEffects>, (at, effects_of, x): (u64, SideEffects, u64)| {
        let effects = effects.get_or_insert(effects_of);
        effects.note(x);
        assert_ne!(x, at);
    };
    let effects = SideEffects::new();
    let items = (0..3).map(|x| (1, if x == 0 { effects.clone() } else { SideEffects::new() }, x));
    assert!(pool.map_init(|| None, note, items).is_err());
    // The third item does not see the state of the first.
    assert_eq!([0, 1, 2].map(|x| effects.count(x)), [1, 1, 0]);
}

#[test]
fn an_init_that_panics_is_the_items_error_and_says_so() {
    fn init() -> u64 {
        panic!("no state today")
    }
    let pool = Pool::new(1).unwrap();
    let error = pool.map_init(init, turn, 0..3).unwrap_err();
    let TaskErrorKind::Panicked { message, location, .. } = error.kind() else { panic!("{error}") };
    assert_eq!(message, "`init` panicked: no state today");
    assert!(location.as_ref().unwrap().contains("contexts.rs"), "{location:?}");
    assert_eq!((pool.stats().failed, pool.stats().restarts), (3, 0));
}

#[test]
fn options_hold_for_calls_with_a_context() {
    let pool = Pool::builder().workers(2).build().unwrap();
    let limit = std::time::Duration::from_millis(50);
    let careful = pool.with_options(TaskOptions::new().timeout(limit).chunk_size(4));
    let slow = |slow: &u64, x: u64| {
        if x == *slow {
            std::thread::sleep(std::time::Duration::from_secs(3600));
        }
        x
    };
    let error = careful.map_with(3, slow, 0..10).unwrap_err();
    assert_eq!((error.id(), error.kind()), (3, &TaskErrorKind::TimedOut { after: limit }));
    assert_eq!((pool.stats().done, pool.stats().failed), (9, 1));
}
