//! A task fails, or a worker dies: no other task is affected, and the error says what happened to which item.

use std::time::{Duration, Instant};

use crate::support::{SOON, SideEffects, kill, square, wait_until};
use procpool::channel::{Receiver, Sender, unbounded};
use procpool::shared::{SharedFd, SharedValue};
use procpool::{
    DeathCause, DidRun, Pool, StartError, TaskError, TaskErrorKind, TaskOptions, ValueSide,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

fn died(error: &TaskError) -> DeathCause {
    match error.kind() {
        TaskErrorKind::Died { cause, .. } => *cause,
        other => panic!("expected a death, got {other:?}"),
    }
}

fn signaled(error: &TaskError) -> i32 {
    match died(error) {
        DeathCause::Signaled(signal, _) => signal,
        other => panic!("expected a signal, got {other:?}"),
    }
}

#[test]
fn a_crash_in_the_middle_of_a_chunk_costs_exactly_the_item_that_was_running() {
    fn task((dir, x): (SideEffects, u64)) -> u64 {
        dir.note(x);
        if x == 500 {
            std::process::abort();
        }
        x
    }
    let effects = SideEffects::new();
    let pool = Pool::builder().workers(2).chunk_size(1000).build().unwrap();
    let reports: Vec<_> =
        pool.imap(task, (0..1000).map(|x| (effects.clone(), x))).reports().collect();
    assert_eq!(reports.len(), 1000);
    for (x, report) in reports.iter().enumerate() {
        assert_eq!(report.id, x as u64);
        match &report.result {
            Ok(value) => assert_eq!(*value, x as u64),
            Err(error) => {
                assert_eq!((x, error.id()), (500, 500));
                assert_eq!(signaled(error), libc::SIGABRT);
                assert_eq!(error.did_it_run(), DidRun::Maybe);
                assert_eq!(error.pid(), report.pid());
            }
        }
    }
    assert_eq!(reports.iter().filter(|report| report.result.is_err()).count(), 1);
    assert!((0..1000).all(|x| effects.count(x) == 1), "no item ran twice, none was left out");
}

#[test]
fn a_panic_is_reported_with_message_location_and_backtrace_and_the_worker_continues() {
    fn task(x: u32) -> u32 {
        assert!(x != 3, "three is {x}");
        x
    }
    let pool = Pool::builder().workers(1).env("RUST_BACKTRACE", "1").build().unwrap();
    let before = pool.apply(|()| std::process::id(), ()).unwrap();
    let error = pool.map(task, 0..10).unwrap_err();
    let TaskErrorKind::Panicked { message, location, backtrace } = error.kind() else {
        panic!("{error:?}")
    };
    assert_eq!(message, "three is 3");
    assert!(location.as_ref().unwrap().contains("tests/it/failure/faults.rs:"), "{location:?}");
    assert!(backtrace.contains("faults::"), "{backtrace}");
    assert_eq!((error.id(), error.did_it_run()), (3, DidRun::Yes));
    assert_eq!(pool.apply(|()| std::process::id(), ()).unwrap(), before);
}

#[test]
fn without_rust_backtrace_a_panic_costs_no_backtrace() {
    let off = |name: &str| Pool::builder().workers(1).env(name, "0");
    let pool = off("RUST_BACKTRACE").env("RUST_LIB_BACKTRACE", "0").build().unwrap();
    let memory = |()| std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = |statm: String| statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
    let before = pages(pool.apply(memory, ()).unwrap());
    let error = pool.apply(|()| -> () { panic!("it") }, ()).unwrap_err();
    let TaskErrorKind::Panicked { backtrace, .. } = error.kind() else { panic!("{error:?}") };
    assert_eq!(backtrace, "");
    let after = pages(pool.apply(memory, ()).unwrap());
    assert!(after < before + 2048, "{before} pages, then {after}");
}

#[test]
fn a_panic_with_any_payload_is_a_panic() {
    let pool = Pool::new(1).unwrap();
    let error = pool.apply(|()| -> u8 { std::panic::panic_any(7_u8) }, ()).unwrap_err();
    assert!(matches!(error.kind(), TaskErrorKind::Panicked { .. }), "{error}");
    let resumed = |()| -> u8 { std::panic::resume_unwind(Box::new("quiet")) };
    let error = pool.apply(resumed, ()).unwrap_err();
    assert!(error.to_string().contains("quiet"), "{error}");
}

#[test]
fn exit_in_a_task_names_its_code_and_never_hangs() {
    let pool = Pool::new(2).unwrap();
    for code in [0, 3] {
        let error = pool.apply(|code| -> () { std::process::exit(code) }, code).unwrap_err();
        assert_eq!(died(&error), DeathCause::Exited(code));
        assert!(error.to_string().contains(&format!("exited with code {code} while running it")));
        assert_eq!(pool.apply(square, 4), Ok(16));
    }
}

#[test]
fn a_signal_costs_one_task_and_is_named() {
    let pool = Pool::new(2).unwrap();
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGBUS] {
        let raise = |signal| {
            // SAFETY: a plain system call.
            unsafe { libc::raise(signal) };
        };
        let error = pool.apply(raise, signal).unwrap_err();
        assert_eq!(signaled(&error), signal);
    }
    let segfault = |address: usize| {
        // SAFETY: none. It is meant to crash.
        unsafe { std::ptr::write_volatile(address as *mut u8, 1) }
    };
    assert_eq!(signaled(&pool.apply(segfault, 8).unwrap_err()), libc::SIGSEGV);
    assert_eq!(
        signaled(&pool.apply(|()| -> () { std::process::abort() }, ()).unwrap_err()),
        libc::SIGABRT
    );
    assert_eq!(pool.map(square, 0..10).unwrap().len(), 10);
    // The other worker may have done all of it before the last replacement starts.
    wait_until("five are replaced", || pool.stats().restarts == 5);
}

#[test]
fn a_heap_that_the_c_library_finds_damaged_ends_the_worker_also_beside_other_threads() {
    let damage = |_: ()| {
        // With another thread, the C library takes the lock of the heap, and aborts while it has it.
        std::thread::spawn(std::thread::park);
        // SAFETY: none. It is meant to crash.
        unsafe {
            let (block, _after) = (libc::malloc(2000), libc::malloc(2000));
            libc::free(block);
            libc::free(block);
        }
    };
    let pool = Pool::builder().workers(1).task_timeout(SOON).build().unwrap();
    assert_eq!(signaled(&pool.apply(damage, ()).unwrap_err()), libc::SIGABRT);
    assert_eq!(pool.apply(square, 3), Ok(9));
}

#[test]
fn a_stack_overflow_costs_one_task() {
    fn deep(n: u64) -> u64 {
        let here = std::hint::black_box([n; 100]);
        if n == u64::MAX { 0 } else { deep(n + 1) + here[7] }
    }
    let pool = Pool::new(1).unwrap();
    let signal = signaled(&pool.apply(deep, 0).unwrap_err());
    // A test's worker starts before `main`, where Rust's handler of stack overflows is not installed yet.
    assert!([libc::SIGABRT, libc::SIGSEGV].contains(&signal), "signal {signal}");
    assert_eq!(pool.apply(square, 3), Ok(9));
}

#[test]
fn an_idle_worker_that_is_killed_is_replaced_without_an_error() {
    let pool = Pool::new(2).unwrap();
    assert_eq!(pool.map(square, 0..10).unwrap().len(), 10);
    let before: Vec<u32> = pool.workers().iter().map(|worker| worker.pid).collect();
    kill(before[0], libc::SIGKILL);
    wait_until("the worker is replaced", || pool.workers()[0].pid != before[0]);
    assert_eq!(pool.workers()[1].pid, before[1]);
    assert_eq!(pool.map(square, 0..10).unwrap().len(), 10);
    assert_eq!((pool.stats().failed, pool.stats().restarts), (0, 1));
}

#[test]
fn when_all_idle_workers_are_killed_at_once_the_next_task_still_answers() {
    let pool = Pool::new(4).unwrap();
    for round in 0..5 {
        for worker in pool.workers() {
            kill(worker.pid, libc::SIGKILL);
        }
        assert_eq!(pool.apply(square, round), Ok(round * round));
        assert_eq!(pool.map(square, 0..20).unwrap().len(), 20);
    }
}

#[test]
fn a_worker_killed_while_it_is_sent_a_huge_argument_costs_that_task_only() {
    let pool = Pool::new(2).unwrap();
    let huge = vec![7u8; 64 << 20];
    let tasks: Vec<_> =
        (0..4).map(|_| pool.apply_async(|bytes: Vec<u8>| bytes.len(), huge.clone())).collect();
    let victim = pool.workers()[0].pid;
    kill(victim, libc::SIGKILL);
    let answers: Vec<_> = tasks.into_iter().map(|task| task.get()).collect();
    let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(failed.len() <= 1, "{failed:?}");
    assert!(failed.iter().all(|error| error.pid() == Some(victim)));
    assert_eq!(pool.apply(|bytes: Vec<u8>| bytes.len(), huge).unwrap(), 64 << 20);
}

#[test]
fn committed_results_are_delivered_although_the_worker_dies() {
    fn task(x: u64) -> u64 {
        if x == 2 {
            // The first two are committed, and this one never ends.
            std::thread::sleep(Duration::from_secs(3600));
        }
        x
    }
    let pool = Pool::builder().workers(1).chunk_size(3).build().unwrap();
    let killer = {
        let pool = pool.clone();
        std::thread::spawn(move || {
            wait_until("the first two are delivered", || {
                pool.stats().done >= 2 || {
                    // The parent learns of them only when the worker dies.
                    std::thread::sleep(Duration::from_millis(300));
                    true
                }
            });
            kill(pool.workers()[0].pid, libc::SIGKILL);
        })
    };
    let results: Vec<_> = pool.imap(task, 0..3).collect();
    killer.join().unwrap();
    assert_eq!((&results[0], &results[1]), (&Ok(0), &Ok(1)));
    assert_eq!(signaled(results[2].as_ref().unwrap_err()), libc::SIGKILL);
}

/// Fails in `Serialize` or `Deserialize`, in the parent or in a worker, as configured.
#[derive(Debug, Clone, PartialEq)]
struct Awkward {
    fail: Fail,
    at_home: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Fail {
    Encode,
    EncodePanic,
    Decode,
    DecodePanic,
    Never,
}

impl Awkward {
    /// Fails in every process but this one.
    fn elsewhere(fail: Fail) -> Self {
        Self { fail, at_home: std::process::id() }
    }
}

impl Serialize for Awkward {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.fail {
            Fail::Encode => Err(serde::ser::Error::custom("would rather not")),
            Fail::EncodePanic => panic!("no encoding"),
            fail => (fail, self.at_home).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Awkward {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (fail, at_home) = Deserialize::deserialize(deserializer)?;
        match fail {
            Fail::Decode if at_home != std::process::id() => {
                Err(serde::de::Error::custom("would rather not"))
            }
            Fail::DecodePanic if at_home != std::process::id() => panic!("no decoding"),
            fail => Ok(Self { fail, at_home }),
        }
    }
}

#[test]
fn a_value_that_cannot_be_encoded_or_decoded_fails_its_task_and_the_stream_stays_in_step() {
    let pool = Pool::builder().workers(1).chunk_size(8).build().unwrap();
    let pid = pool.workers()[0].pid;
    let fails = [
        Fail::Never,
        Fail::Encode,
        Fail::EncodePanic,
        Fail::Never,
        Fail::Decode,
        Fail::DecodePanic,
        Fail::Never,
    ];
    let results: Vec<_> = pool.imap(|_: Awkward| 1, fails.map(Awkward::elsewhere)).collect();
    for (id, (fail, result)) in fails.into_iter().zip(&results).enumerate() {
        let text = match (fail, result.as_ref().map_err(TaskError::kind)) {
            (Fail::Never, Ok(1)) => continue,
            (Fail::Encode | Fail::EncodePanic, Err(TaskErrorKind::Encode { side, reason })) => {
                assert_eq!(*side, ValueSide::Argument);
                reason
            }
            (Fail::Decode | Fail::DecodePanic, Err(TaskErrorKind::Decode { side, reason })) => {
                assert_eq!(*side, ValueSide::Argument);
                reason
            }
            other => panic!("{id}: {other:?}"),
        };
        assert!(text.contains("Awkward"), "{id}: {text}");
        let error = result.as_ref().unwrap_err();
        assert_eq!((error.id(), error.did_it_run()), (id as u64, DidRun::No));
    }
    let make = |fail| Awkward::elsewhere(fail);
    let results: Vec<_> = pool.imap(make, fails).collect();
    for (id, (fail, result)) in fails.into_iter().zip(&results).enumerate() {
        match (fail, result.as_ref().map_err(TaskError::kind)) {
            (Fail::Never, Ok(_)) => continue,
            (Fail::Encode | Fail::EncodePanic, Err(TaskErrorKind::Encode { side, .. })) => {
                assert_eq!(*side, ValueSide::Result);
            }
            (Fail::Decode | Fail::DecodePanic, Err(TaskErrorKind::Decode { side, .. })) => {
                assert_eq!(*side, ValueSide::Result);
            }
            other => panic!("{id}: {other:?}"),
        }
        assert_eq!(result.as_ref().unwrap_err().did_it_run(), DidRun::Yes);
    }
    assert_eq!(pool.workers()[0].pid, pid, "no worker was lost");
}

#[test]
fn a_task_may_close_all_low_file_descriptors() {
    let close = |()| {
        // SAFETY: plain system calls. The owners of the descriptors find them closed.
        (0..256).filter(|fd| unsafe { libc::close(*fd) } <= 0).count()
    };
    let pool = Pool::new(2).unwrap();
    assert_eq!(pool.apply(close, ()), Ok(256), "it was committed before the channel was missed");
    assert_eq!(pool.map(square, 0..100).unwrap().len(), 100);
}

#[test]
fn a_program_that_a_task_starts_inherits_none_of_its_descriptors() {
    type Handles = (SharedValue<u8>, Sender<u8>, Receiver<u8>, SharedFd);
    fn list(_handles: Handles) -> Vec<i32> {
        let _own = std::fs::File::open("/dev/null").unwrap();
        let mut command = std::process::Command::new("ls");
        let listed = command.arg("/proc/self/fd").output().unwrap().stdout;
        String::from_utf8(listed).unwrap().lines().map(|fd| fd.parse().unwrap()).collect()
    }
    let (sender, receiver) = unbounded().unwrap();
    let file = SharedFd::from(std::fs::File::open("/dev/null").unwrap());
    let handles = (SharedValue::new(1).unwrap(), sender, receiver, file);
    // The fourth descriptor is that of the listed directory.
    assert_eq!(Pool::new(1).unwrap().apply(list, handles).unwrap(), [0, 1, 2, 3]);
}

#[test]
fn a_task_may_print_megabytes_without_a_newline() {
    let pool = Pool::builder().workers(1).output(procpool::OutputMode::Null).build().unwrap();
    let print = |()| {
        use std::io::Write;
        std::io::stdout().write_all(&vec![b'x'; 4 << 20]).is_ok()
    };
    assert_eq!(pool.apply(print, ()), Ok(true));
}

#[test]
fn a_task_may_leave_a_thread_and_change_directory_environment_and_signals() {
    let pool = Pool::new(1).unwrap();
    let change = |()| {
        std::thread::spawn(|| std::thread::sleep(Duration::from_secs(3600)));
        std::env::set_current_dir("/").unwrap();
        // SAFETY: plain system calls on local data.
        unsafe {
            let mut all = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
        }
    };
    assert_eq!(pool.apply(change, ()), Ok(()));
    assert_eq!(pool.apply(square, 2), Ok(4));
    let start = Instant::now();
    pool.join();
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_initializer_that_always_fails_is_one_error_for_every_pending_task() {
    let panics = |()| -> () { panic!("no such model") };
    let pool = Pool::builder().workers(2).initializer(panics, ()).build().unwrap();
    let tasks: Vec<_> = (0..100).map(|x| pool.apply_async(square, x)).collect();
    for task in tasks {
        let error = task.get().unwrap_err();
        let TaskErrorKind::Initializer { cause, attempts } = error.kind() else {
            panic!("{error:?}")
        };
        assert!(cause.to_string().contains("no such model"), "{cause}");
        assert!(*attempts < 20, "{attempts} attempts");
        assert_eq!(error.did_it_run(), DidRun::No);
    }
    assert!(pool.stats().restarts < 40, "{:?}", pool.stats());
    assert!(pool.apply(square, 1).is_err(), "later tasks get new attempts, and the same error");
}

#[test]
fn a_worker_that_dies_in_the_initializer_is_named_with_its_cause() {
    let exits = |()| -> () { std::process::exit(9) };
    let pool = Pool::builder().workers(1).initializer(exits, ()).build().unwrap();
    let error = pool.apply(square, 1).unwrap_err();
    let TaskErrorKind::Initializer { cause: StartError::Initializer(cause), .. } = error.kind()
    else {
        panic!("{error:?}")
    };
    assert_eq!(cause, "the worker exited with code 9");
}

#[test]
fn a_pool_whose_initializer_fails_one_time_in_three_heals() {
    fn flaky(effects: SideEffects) {
        effects.note(0);
        assert!(effects.count(0) % 3 != 1, "this time not");
    }
    let effects = SideEffects::new();
    let pool = Pool::builder().workers(3).initializer(flaky, effects.clone()).build().unwrap();
    for round in 0..4 {
        assert_eq!(pool.map(square, 0..100).unwrap().len(), 100, "round {round}");
        for worker in pool.workers() {
            kill(worker.pid, libc::SIGKILL);
        }
    }
    assert_eq!(pool.map(square, 0..100).unwrap().len(), 100);
}

#[test]
fn a_task_that_kills_every_worker_fails_after_its_retries() {
    fn task((effects, x): (SideEffects, u64)) -> u64 {
        if x == 13 {
            effects.note(x);
            std::process::abort();
        }
        x
    }
    let effects = SideEffects::new();
    let pool = Pool::new(2).unwrap().with_options(TaskOptions::new().retries(3));
    let results: Vec<_> =
        pool.imap(task, (0..50).map(|x| (effects.clone(), x))).reports().collect();
    for report in &results {
        match &report.result {
            Ok(x) => assert_eq!(*x, report.id),
            Err(error) => assert_eq!((error.id(), error.attempt()), (13, 4)),
        }
    }
    assert!(results[13].result.is_err());
    assert_eq!((results[13].attempt, effects.count(13)), (4, 4));
    assert_eq!((pool.stats().failed, pool.stats().retried), (1, 3));
}

#[test]
fn a_function_of_another_shared_object_is_refused_before_anything_is_sent() {
    // SAFETY: it is never called here, and in a worker only if the check fails.
    let foreign: fn(i32) -> i32 = unsafe {
        std::mem::transmute::<unsafe extern "C" fn(i32) -> i32, fn(i32) -> i32>(libc::abs)
    };
    let pool = Pool::new(1).unwrap();
    let error = pool.apply(foreign, -1).unwrap_err();
    assert!(matches!(error.kind(), TaskErrorKind::Function { .. }), "{error:?}");
    assert!(error.to_string().contains("another shared object"), "{error}");
    assert!(pool.map(foreign, [1, 2]).is_err());
}
