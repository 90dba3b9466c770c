//! Resource limits, replacement and output of workers, and the events about them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{SideEffects, is_alive, kill, sleepy, square, wait_until};
use procpool::{DeathCause, EventKind, Limits, OutputMode, Pool, TaskErrorKind};

fn cause(error: &procpool::TaskError) -> DeathCause {
    match error.kind() {
        TaskErrorKind::Died { cause, .. } => *cause,
        other => panic!("{other:?}"),
    }
}

/// Allocates memory without end, in steps of 1 MiB.
fn leak(_: u64) -> u64 {
    let mut kept = Vec::new();
    loop {
        kept.push(vec![1u8; 1 << 20]);
        if kept.len().is_multiple_of(16) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_worker_over_its_memory_is_killed_and_its_task_is_out_of_memory() {
    let pool = Pool::builder().workers(2).max_memory_per_worker(200 << 20).build().unwrap();
    let good = pool.map_async(square, 0..1000);
    assert_eq!(cause(&pool.apply(leak, 0).unwrap_err()), DeathCause::OutOfMemory);
    assert_eq!(good.get().unwrap().len(), 1000);
    assert_eq!(pool.apply(square, 3), Ok(9));
}

#[test]
fn a_failed_allocation_is_distinguished_from_other_aborts() {
    let limits = Limits::new().address_space(1 << 30);
    let pool = Pool::builder().workers(1).limits(limits).output(OutputMode::Null).build().unwrap();
    assert_eq!(cause(&pool.apply(leak, 0).unwrap_err()), DeathCause::OutOfMemory);
    let huge = |()| Vec::<u8>::with_capacity(1 << 40).len();
    assert_eq!(cause(&pool.apply(huge, ()).unwrap_err()), DeathCause::OutOfMemory);
    let on_a_thread = |()| std::thread::spawn(|| vec![1u8; 1 << 40].len()).join().map_err(drop);
    assert_eq!(cause(&pool.apply(on_a_thread, ()).unwrap_err()), DeathCause::OutOfMemory);
    let abort = |()| -> () { std::process::abort() };
    // It has survived a refused allocation, and errno still says so.
    let later = |()| -> () {
        let refused = Vec::<u8>::new().try_reserve(1 << 40);
        // SAFETY: errno belongs to the thread.
        unsafe { *libc::__errno_location() = libc::ENOMEM };
        assert!(refused.is_err());
        std::process::abort()
    };
    // Sent from outside, while errno says that memory was refused.
    let killed = |()| -> () {
        // SAFETY: errno belongs to the thread, and the rest are plain system calls.
        unsafe {
            *libc::__errno_location() = libc::ENOMEM;
            libc::raise(libc::SIGABRT);
            libc::signal(libc::SIGABRT, libc::SIG_DFL);
            libc::raise(libc::SIGABRT);
        }
    };
    for other in [abort, later, killed] {
        let cause = cause(&pool.apply(other, ()).unwrap_err());
        assert!(matches!(cause, DeathCause::Signaled(libc::SIGABRT, _)), "{cause:?}");
    }
}

#[test]
fn a_cpp_bad_alloc_is_out_of_memory() {
    /// Runs C++'s `operator new` as a thread, in which its exception is not caught. Returns false without C++.
    fn new(bytes: usize) -> bool {
        type Start = extern "C" fn(*mut libc::c_void) -> *mut libc::c_void;
        // SAFETY: `operator new` takes a size and returns a pointer, in the registers of the argument and the
        // result of a thread's function.
        unsafe {
            let library =
                libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
            let new = libc::dlsym(library, c"_Znwm".as_ptr());
            if library.is_null() || new.is_null() {
                return false;
            }
            let new = std::mem::transmute::<*mut libc::c_void, Start>(new);
            let mut thread = std::mem::zeroed();
            let argument = bytes as *mut libc::c_void;
            libc::pthread_create(&mut thread, std::ptr::null(), new, argument);
            libc::pthread_join(thread, std::ptr::null_mut());
        }
        true
    }
    let pool = Pool::builder().workers(1).output(OutputMode::Null).build().unwrap();
    if pool.apply(new, 16) == Ok(false) {
        eprintln!("left out: there is no C++ library");
        return;
    }
    assert_eq!(cause(&pool.apply(new, 1 << 60).unwrap_err()), DeathCause::OutOfMemory);
}

#[test]
fn a_worker_retires_after_its_tasks_and_never_runs_more() {
    let pool = Pool::builder().workers(2).max_tasks_per_worker(10).build().unwrap();
    let pid = |x: u64| (x, std::process::id());
    let reports: Vec<_> = pool.imap(pid, 0..200).reports().collect();
    let mut tasks: HashMap<u32, u64> = HashMap::new();
    for (x, report) in reports.iter().enumerate() {
        let (answer, pid) = *report.result.as_ref().unwrap();
        assert_eq!((answer, pid), (x as u64, report.pid().unwrap()));
        *tasks.entry(pid).or_default() += 1;
    }
    assert!(tasks.values().all(|tasks| *tasks <= 10), "{tasks:?}");
    assert!(tasks.len() >= 20, "{tasks:?}");
    assert_eq!(pool.stats().failed, 0);
}

#[test]
fn idle_workers_end_and_start_again_when_there_is_work() {
    let pool = Pool::builder()
        .workers(4)
        .idle_timeout(Duration::from_millis(20))
        .min_workers(1)
        .build()
        .unwrap();
    let live = |pool: &Pool| pool.workers().iter().filter(|worker| is_alive(worker.pid)).count();
    assert_eq!(pool.map(sleepy, [5; 40]).unwrap().len(), 40);
    wait_until("all but one have gone", || live(&pool) == 1);
    let pids: HashSet<u32> =
        pool.imap(sleepy, [50; 20]).reports().map(|report| report.pid().unwrap()).collect();
    assert!(pids.len() > 1, "{pids:?}");
    wait_until("they go again", || live(&pool) == 1);
    assert_eq!(pool.stats().failed, 0);
    pool.join();
}

#[test]
fn limits_niceness_and_cpus_are_set_in_the_worker() {
    let limits = Limits::new().open_files(99).core_size(0).cpu_time(Duration::from_secs(77));
    let pool = Pool::builder().workers(2).limits(limits).nice(5).pin_cpus(true).build().unwrap();
    let look = |()| {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let nice: i32 =
            stat.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap().parse().unwrap();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let cpus = status.lines().find(|line| line.starts_with("Cpus_allowed_list")).unwrap();
        let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        (nice, limits, cpus.to_owned(), score.trim().parse::<i32>().unwrap())
    };
    let (own_nice, _, _, own_score) = look(());
    let (nice, limits, cpus, score) = pool.apply(look, ()).unwrap();
    assert_eq!(nice, (own_nice + 5).min(19));
    let line = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("Max open files").contains(" 99 "), "{limits}");
    assert!(line("Max core file size").contains(" 0 "), "{limits}");
    assert!(line("Max cpu time").contains(" 77 "), "{limits}");
    assert!(cpus.rsplit('\t').next().unwrap().parse::<u32>().is_ok(), "one CPU: {cpus}");
    assert!(score > own_score, "the kernel takes a worker first");
}

#[test]
fn a_worker_over_its_cpu_time_is_ended_by_the_kernel() {
    let limits = Limits::new().cpu_time(Duration::from_secs(1));
    let pool = Pool::builder().workers(1).limits(limits).build().unwrap();
    let spin = |()| -> () { while std::hint::black_box(true) {} };
    let cause = cause(&pool.apply(spin, ()).unwrap_err());
    assert!(matches!(cause, DeathCause::Signaled(libc::SIGXCPU, _)), "{cause:?}");
}

#[test]
fn the_output_of_a_task_in_any_language_is_in_its_report() {
    fn print(x: u64) -> u64 {
        println!("rust {x}");
        // SAFETY: the format matches its argument, and null stands for all streams.
        unsafe {
            libc::printf(c"c %d\n".as_ptr(), x as libc::c_int);
            libc::fflush(std::ptr::null_mut());
        }
        let program = std::process::Command::new("echo").arg(format!("program {x}")).status();
        assert!(program.unwrap().success());
        eprint!("no newline {x}");
        x
    }
    let pool = Pool::builder().workers(2).output(OutputMode::Capture).build().unwrap();
    for (x, report) in pool.imap(print, 0..30).reports().enumerate() {
        let text = String::from_utf8(report.output).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        let mut expected = [
            format!("rust {x}"),
            format!("c {x}"),
            format!("program {x}"),
            format!("no newline {x}"),
        ];
        expected.sort_unstable();
        assert_eq!(lines, expected);
    }
    assert_eq!(pool.apply_async(square, 3).report().output, b"", "nobody else's is added");
    let megabytes = |()| print!("{}", "x".repeat(5 << 20));
    assert_eq!(pool.apply_async(megabytes, ()).report().output.len(), 5 << 20);
}

#[test]
fn the_last_lines_of_a_worker_that_dies_come_with_the_error() {
    let pool = Pool::builder().workers(1).output(OutputMode::Capture).build().unwrap();
    let die = |()| -> () {
        for line in 0..100 {
            eprintln!("line {line}");
        }
        std::process::abort()
    };
    let error = pool.apply(die, ()).unwrap_err();
    let TaskErrorKind::Died { last_output: Some(last), .. } = error.kind() else {
        panic!("{error:?}")
    };
    assert!(last.ends_with("line 99") && !last.contains("line 50"), "{last}");
    assert!(error.to_string().contains("line 99"), "{error}");
}

#[test]
fn the_death_of_a_process_that_a_task_has_forked_says_nothing_of_the_worker() {
    let forks = |also_aborts: bool| {
        // SAFETY: the copy ends by the abort.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                drop(Vec::<u8>::with_capacity(isize::MAX as usize));
            }
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
        if also_aborts {
            std::process::abort();
        }
    };
    let pool = Pool::builder().workers(1).output(OutputMode::Null).build().unwrap();
    let aborted = cause(&pool.apply(forks, true).unwrap_err());
    assert!(matches!(aborted, DeathCause::Signaled(libc::SIGABRT, _)), "{aborted:?}");
    assert_eq!(pool.apply(forks, false), Ok(()));
    let killed = |()| {
        // SAFETY: a plain system call.
        unsafe { libc::raise(libc::SIGKILL) };
    };
    let killed = cause(&pool.apply(killed, ()).unwrap_err());
    assert!(matches!(killed, DeathCause::Signaled(libc::SIGKILL, _)), "{killed:?}");
}

#[test]
fn an_event_has_the_start_of_a_long_error_and_the_task_the_whole() {
    let events: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&events);
    let note = move |event: &procpool::Event| {
        if let EventKind::Finished { error: Some(error), .. } = &event.kind {
            seen.lock().unwrap().push(error.clone());
        }
    };
    let pool = Pool::builder().workers(1).on_event(note).output(OutputMode::Null).build().unwrap();
    let error = pool.apply(|n: usize| -> () { panic!("{}", "ä".repeat(n)) }, 50_000).unwrap_err();
    assert!(error.to_string().len() > 100_000);
    wait_until("it is seen", || !events.lock().unwrap().is_empty());
    let text = events.lock().unwrap()[0].clone();
    assert!(text.len() < 2_000 && text.ends_with("ä… (cut)"), "{text}");
}

#[test]
fn events_report_what_happens_to_workers_and_tasks() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = Arc::clone(&told);
    let pool = Pool::builder()
        .workers(1)
        .retries(1)
        .on_event(move |event| teller.lock().unwrap().push(event.clone()))
        .on_event(|_| panic!("a listener that panics"))
        .build()
        .unwrap();
    let effects = SideEffects::new();
    fn once((effects, x): (SideEffects, u64)) -> u64 {
        effects.note(x);
        if x == 1 && effects.count(x) == 1 {
            std::process::exit(4);
        }
        assert!(x != 2, "two");
        x
    }
    let results: Vec<_> = pool.imap(once, (0..3).map(|x| (effects.clone(), x))).collect();
    assert!(results[0].is_ok() && results[1].is_ok() && results[2].is_err());
    kill(pool.workers()[0].pid, libc::SIGKILL);
    wait_until("it is replaced", || pool.stats().restarts == 2);
    pool.join();
    let events = told.lock().unwrap();
    let names: Vec<&str> = events
        .iter()
        .filter(|event| !matches!(event.kind, EventKind::TemplateStarted { .. }))
        .map(|event| match &event.kind {
            EventKind::Spawned { replaces: false, .. } => "spawned",
            EventKind::Spawned { .. } => "respawned",
            EventKind::Ready { .. } => "ready",
            EventKind::Assigned { .. } => "assigned",
            EventKind::Finished { error: None, .. } => "answered",
            EventKind::Finished { .. } => "failed",
            EventKind::Retried { .. } => "retried",
            EventKind::Lost { .. } => "lost",
            EventKind::Retired { .. } => "retired",
            EventKind::Drained => "drained",
            _ => "other",
        })
        .collect();
    let count = |name: &str| names.iter().filter(|other| **other == name).count();
    assert_eq!(names[0], "spawned");
    assert_eq!((count("spawned"), count("respawned"), count("lost")), (1, 2, 2), "{names:?}");
    assert_eq!((count("answered"), count("failed"), count("retried")), (2, 1, 1), "{names:?}");
    assert_eq!((count("retired"), count("drained")), (1, 1), "{names:?}");
    assert!(events.windows(2).all(|pair| pair[0].time <= pair[1].time), "in order");
    assert!(events.iter().any(|event| event.to_string().contains("exited with code 4")));
}

#[test]
fn without_failures_the_output_of_a_task_is_not_in_the_next_report() {
    let pool = Pool::new(1).unwrap();
    static CHANGED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let change = |()| CHANGED.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(pool.apply(change, ()), Ok(0));
    assert_eq!(pool.apply(change, ()), Ok(1), "in the worker it stays");
    assert_eq!(CHANGED.load(std::sync::atomic::Ordering::SeqCst), 0, "here nothing has changed");
}

#[test]
fn a_slow_callback_learns_how_many_events_it_missed() {
    const TASKS: u64 = 100_000;
    let (sender, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let seen: Arc<Mutex<Vec<EventKind>>> = Arc::default();
    let notes = Arc::clone(&seen);
    let listen = move |event: &procpool::Event| {
        // Blocks the callback until all tasks are done.
        let _ = released.lock().unwrap().recv();
        notes.lock().unwrap().push(event.kind.clone());
    };
    let pool = Pool::builder().workers(2).on_event(listen).build().unwrap();
    pool.map(square, 0..TASKS).unwrap();
    drop(sender);
    pool.join();
    let seen = seen.lock().unwrap();
    let finished = seen.iter().filter(|kind| matches!(kind, EventKind::Finished { .. })).count();
    let missed = seen.iter().map(|kind| match kind {
        EventKind::Lagged { events } => *events,
        _ => 0,
    });
    let missed: u64 = missed.sum();
    assert!(missed > 0 && finished < TASKS as usize, "{finished} finished, {missed} missed");
    assert!(finished as u64 + missed >= TASKS, "{finished} finished, {missed} missed");
    assert_eq!(seen.last(), Some(&EventKind::Drained));
}
