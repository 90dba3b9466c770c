//! Template processes: workers that are forked from a process which has run the preload function.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::{
    SOON, alone, is_alive, kill, left_behind, square, wait_until, wait_until_as_before,
};
use procpool::{
    DeathCause, Error, Event, EventKind, OutputMode, Pool, PoolBuilder, StartError, StartMethod,
    TaskErrorKind, with_state,
};

struct Table(Vec<u64>);

fn build(len: u64) -> Table {
    Table((0..len).map(square).collect())
}

fn look_up(x: u64) -> u64 {
    with_state(|table: &mut Table| table.0[x as usize]).unwrap()
}

fn template() -> PoolBuilder {
    Pool::builder().start_method(StartMethod::Template)
}

fn abort(_: ()) {
    std::process::abort();
}

fn parent_of(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(") ").next().unwrap();
    fields.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Returns the PIDs of this process's children whose command line ends with `title`.
fn children_titled(title: &str) -> Vec<u32> {
    let is_it = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument.ends_with(title.as_bytes()))
            && parent_of(*pid) == std::process::id()
            && is_alive(*pid)
    };
    let pids = std::fs::read_dir("/proc").unwrap();
    let pids = pids.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(is_it).collect()
}

/// Returns a pool's template. A worker has its title for a moment after the fork.
fn the_template(pool: &str) -> u32 {
    let title = format!("{pool}/template");
    wait_until("there is one template", || children_titled(&title).len() == 1);
    children_titled(&title)[0]
}

#[test]
fn workers_have_what_the_preload_function_built_and_are_children_of_the_pools_process() {
    let pool = Pool::builder().workers(3).preload(build, 1000).build().unwrap();
    assert_eq!(pool.map(look_up, 0..1000).unwrap(), (0..1000).map(square).collect::<Vec<_>>());
    for worker in pool.workers() {
        assert_eq!(parent_of(worker.pid), std::process::id());
    }
    // Each has a copy of its own.
    let change = |x: u64| with_state(|table: &mut Table| table.0[0] = x).unwrap();
    pool.apply(change, 7).unwrap();
    let firsts: BTreeSet<u64> =
        pool.broadcast(look_up, 0).into_iter().map(Result::unwrap).collect();
    assert!(firsts.len() <= 2 && firsts.contains(&0), "{firsts:?}");
}

#[test]
fn an_initializer_still_runs_in_each_worker_after_the_fork() {
    fn pid_of_initializer(_: ()) -> u32 {
        std::process::id()
    }
    let pool = Pool::builder().workers(2).preload(build, 10).initializer(pid_of_initializer, ());
    let pool = pool.build().unwrap();
    let pids = pool.broadcast(|()| (std::process::id(), with_state(|pid: &mut u32| *pid)), ());
    for pids in pids {
        let (own, initializer) = pids.unwrap();
        assert_eq!(Some(own), initializer);
    }
    assert_eq!(pool.apply(look_up, 3), Ok(9));
}

#[test]
fn a_forked_worker_is_a_process_like_any_other() {
    fn probe(_: ()) -> (u32, i32, i32, u64, bool) {
        let thread = std::thread::spawn(|| std::thread::current().name().is_none());
        let child = std::process::Command::new("true").status().unwrap();
        // SAFETY: plain system calls.
        let (group, tid) = unsafe { (libc::getpgrp(), libc::gettid()) };
        let lock = std::sync::Mutex::new(1u64);
        (
            std::process::id(),
            group,
            tid,
            *lock.lock().unwrap(),
            thread.join().unwrap() && child.success(),
        )
    }
    let pool = template().workers(2).name("forked").build().unwrap();
    for probed in pool.broadcast(probe, ()) {
        let (pid, group, tid, locked, is_whole) = probed.unwrap();
        assert_eq!((group, tid, locked, is_whole), (pid as i32, pid as i32, 1, true));
    }
    wait_until("it has its title", || children_titled("forked/0").len() == 1);
    the_template("forked");
}

#[test]
fn a_death_in_a_forked_worker_has_its_true_cause() {
    fn die(how: u32) {
        match how {
            0 => std::process::abort(),
            1 => std::process::exit(3),
            // SAFETY: a plain call.
            2 => unsafe {
                libc::raise(libc::SIGSEGV);
            },
            // SAFETY: a plain call.
            _ => unsafe { libc::abort() },
        }
    }
    let pool = template().workers(1).build().unwrap();
    let signaled = |signal| DeathCause::Signaled(signal, false);
    let causes = [
        signaled(libc::SIGABRT),
        DeathCause::Exited(3),
        signaled(libc::SIGSEGV),
        signaled(libc::SIGABRT),
    ];
    for (how, expected) in (0..).zip(causes) {
        match pool.apply(die, how).unwrap_err().kind() {
            TaskErrorKind::Died { cause: DeathCause::Signaled(signal, _), .. } => {
                assert_eq!(signaled(*signal), expected);
            }
            TaskErrorKind::Died { cause, .. } => assert_eq!(*cause, expected),
            other => panic!("{other}"),
        }
        assert_eq!(pool.apply(square, 5), Ok(25));
    }
}

#[test]
fn a_thousand_crashes_in_a_row_cost_a_fork_each() {
    let pool = Pool::builder().workers(2).preload(build, 100).build().unwrap();
    for _ in 0..1000 {
        assert!(pool.apply(abort, ()).is_err());
    }
    assert_eq!(pool.apply(look_up, 9), Ok(81));
    assert!(pool.stats().restarts >= 999);
}

#[test]
fn with_one_task_per_worker_each_task_has_a_fresh_process() {
    let pool = template().workers(2).max_tasks_per_worker(1).build().unwrap();
    let pids: BTreeSet<u32> =
        pool.map(|_: u32| std::process::id(), 0..200).unwrap().into_iter().collect();
    assert_eq!(pids.len(), 200);
}

#[test]
fn the_output_of_forked_workers_is_captured_per_task() {
    let pool = template().workers(2).output(OutputMode::Capture).build().unwrap();
    let reports = pool.imap(|x: u32| println!("this is {x}"), 0..20).reports();
    for (x, report) in (0..20).zip(reports) {
        assert_eq!(String::from_utf8(report.output).unwrap(), format!("this is {x}\n"));
    }
}

#[test]
fn the_environment_of_each_worker_is_set_after_the_fork() {
    let pool = template().workers(3).env("SHARED", "all");
    let pool = pool.env_per_worker(|slot| vec![("SLOT".into(), slot.to_string().into())]).build();
    let pool = pool.unwrap();
    let of = |()| (std::env::var("SHARED").unwrap(), std::env::var("SLOT").unwrap());
    for (slot, result) in pool.broadcast(of, ()).into_iter().enumerate() {
        assert_eq!(result.unwrap(), ("all".to_owned(), slot.to_string()));
    }
}

#[test]
fn forked_workers_draw_different_random_numbers() {
    let pool = template().workers(2).max_tasks_per_worker(1).build().unwrap();
    let draw = |_: u32| {
        let thread = std::thread::spawn(procpool::random_u64);
        thread.join().unwrap()
    };
    let numbers: BTreeSet<u64> = pool.map(draw, 0..50).unwrap().into_iter().collect();
    assert_eq!(numbers.len(), 50);
}

#[test]
fn threads_that_the_preload_function_leaves_behind_are_named() {
    fn leave(_: ()) {
        let thread = std::thread::Builder::new().name("left-behind".to_owned());
        let (begun, has_begun) = std::sync::mpsc::channel();
        let run = move || {
            begun.send(()).unwrap();
            std::thread::sleep(Duration::from_secs(3600));
        };
        thread.spawn(run).unwrap();
        has_begun.recv().unwrap();
    }
    match Pool::builder().workers(2).preload(leave, ()).build() {
        Err(Error::Start(StartError::Preload(why))) => {
            assert!(why.contains("left-behind"), "{why}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_preload_function_that_fails_fails_the_build_and_says_why() {
    fn panic(message: String) {
        panic!("{message}");
    }
    fn hang(_: ()) {
        std::thread::sleep(Duration::from_secs(3600));
    }
    let of = |pool: Result<Pool, Error>| match pool {
        Err(Error::Start(cause)) => cause,
        other => panic!("{other:?}"),
    };
    let cause = of(Pool::builder().preload(panic, "no words".to_owned()).build());
    assert!(matches!(&cause, StartError::Preload(why) if why.contains("no words")), "{cause}");
    let cause = of(Pool::builder().preload(abort, ()).build());
    assert!(matches!(&cause, StartError::Preload(why) if why.contains("SIGABRT")), "{cause}");
    let limit = Duration::from_millis(200);
    let cause = of(Pool::builder().preload(hang, ()).start_timeout(limit).build());
    assert_eq!(cause, StartError::TimedOut(limit));
}

#[test]
fn a_preload_function_that_closes_the_templates_socket_does_not_keep_the_build_waiting() {
    fn close_all(_: ()) {
        // SAFETY: a plain system call. What used the descriptors is not used again.
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
        std::thread::sleep(Duration::from_secs(3600));
    }
    let begun = Instant::now();
    match Pool::builder().preload(close_all, ()).start_timeout(2 * SOON).build() {
        Err(Error::Start(StartError::Preload(why))) => assert!(why.contains("SIGKILL"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() < SOON);
}

#[test]
fn a_template_that_dies_again_and_again_is_started_when_it_is_needed() {
    /// Kills this process in a while. Its forked copies do not inherit the timer.
    fn alarm(_: ()) {
        let never = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let soon = libc::timeval { tv_sec: 0, tv_usec: 300_000 };
        let timer = libc::itimerval { it_interval: never, it_value: soon };
        // SAFETY: a plain system call on local data.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
    }
    let (started, lost) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let counts = (Arc::clone(&started), Arc::clone(&lost));
    let count = move |event: &Event| match event.kind {
        EventKind::TemplateStarted { .. } => drop(counts.0.fetch_add(1, SeqCst)),
        EventKind::TemplateLost { .. } => drop(counts.1.fetch_add(1, SeqCst)),
        _ => {}
    };
    let pool = Pool::builder().workers(1).preload(alarm, ()).on_event(count).build().unwrap();
    // The first has forked a worker, and three more have not.
    wait_until("four have died", || lost.load(SeqCst) == 4);
    assert_eq!(pool.apply(square, 3), Ok(9));
    pool.join();
    assert_eq!(started.load(SeqCst), 4);
}

#[test]
fn a_template_that_is_killed_is_replaced() {
    let pool = Pool::builder().name("killed").workers(2).preload(build, 100).build().unwrap();
    for round in 0..10 {
        let template = the_template("killed");
        kill(template, libc::SIGKILL);
        // With and without workers to fork.
        if round % 2 == 0 {
            pool.workers().iter().for_each(|worker| kill(worker.pid, libc::SIGKILL));
        }
        assert_eq!(pool.apply(look_up, 9), Ok(81));
        wait_until("another template", || {
            children_titled("killed/template").iter().any(|pid| *pid != template)
        });
    }
}

#[test]
fn a_template_that_is_stopped_is_killed_and_replaced_when_it_is_needed() {
    let pool = Pool::builder().name("stopped").workers(1).preload(build, 100).build().unwrap();
    let template = the_template("stopped");
    kill(template, libc::SIGSTOP);
    kill(pool.workers()[0].pid, libc::SIGKILL);
    let begun = Instant::now();
    assert_eq!(pool.apply(look_up, 9), Ok(81));
    assert!(begun.elapsed() < SOON);
    assert!(!is_alive(template));
}

#[test]
fn a_template_that_is_killed_while_it_forks_leaves_no_worker_behind() {
    alone!("leaves_no_worker_behind");
}

#[test]
#[ignore = "counts what a whole process leaves behind"]
fn leaves_no_worker_behind() {
    let name = "forking";
    drop(template().workers(2).build().unwrap());
    let before = left_behind();
    for _ in 0..20 {
        let pool = template().name(name).workers(4).max_tasks_per_worker(1).build().unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::SeqCst) {
                    let templates = children_titled(&format!("{name}/template"));
                    templates.iter().for_each(|pid| kill(*pid, libc::SIGKILL));
                    std::thread::sleep(Duration::from_millis(7));
                }
            });
            let results: Vec<_> = pool.imap(square, 0..100).collect();
            over.store(true, std::sync::atomic::Ordering::SeqCst);
            for (x, result) in (0..).zip(results) {
                match result {
                    Ok(square) => assert_eq!(square, x * x),
                    Err(error) => {
                        let is_start = matches!(error.kind(), TaskErrorKind::Initializer { .. });
                        assert!(is_start, "{error}");
                    }
                }
            }
        });
    }
    wait_until_as_before(before);
}

#[test]
fn a_template_without_memory_for_a_fork_is_an_error_with_a_remedy() {
    fn limit(_: ()) -> Vec<u8> {
        // No further process of this user: the fork fails with EAGAIN, also for root without privileges.
        let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: plain system calls.
        unsafe {
            libc::setrlimit(libc::RLIMIT_NPROC, &limit);
            if libc::getuid() == 0 {
                libc::setuid(65_534);
            }
        }
        Vec::new()
    }
    let error = Pool::builder().workers(1).preload(limit, ()).build().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Start(StartError::Spawn(_))), "{error:?}");
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("ulimit -u"), "{text}");
}

#[test]
fn a_task_that_kills_the_template_costs_its_neighbours_nothing() {
    fn kill_template(name: String) {
        let pids = std::fs::read_dir("/proc").unwrap();
        for pid in pids.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()) {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if line.windows(name.len()).any(|part| part == name.as_bytes()) {
                kill(pid, libc::SIGKILL);
            }
        }
    }
    let pool = Pool::builder().name("victim").workers(2).preload(build, 50).build().unwrap();
    for _ in 0..5 {
        let tasks: Vec<_> = (0..20).map(|x| pool.apply_async(look_up, x)).collect();
        pool.apply(kill_template, "victim/template".to_owned()).unwrap();
        pool.workers().iter().for_each(|worker| kill(worker.pid, libc::SIGSTOP));
        pool.workers().iter().for_each(|worker| kill(worker.pid, libc::SIGCONT));
        for (x, task) in (0..).zip(tasks) {
            assert_eq!(task.get(), Ok(x * x));
        }
    }
}

#[test]
fn a_preload_function_with_start_method_spawn_is_refused() {
    let pool = Pool::builder().start_method(StartMethod::Spawn).preload(build, 1).build();
    assert!(matches!(pool, Err(Error::Option { option: "preload", .. })), "{pool:?}");
}

#[test]
fn the_workers_environment_must_fit_in_a_packet() {
    let pool =
        template().workers(1).env_per_worker(|_| vec![("LONG".into(), "x".repeat(5000).into())]);
    match pool.build() {
        Err(Error::Start(StartError::Spawn(why))) => {
            assert!(why.contains("env_per_worker"), "{why}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_template_ends_with_its_pool() {
    let pool = template().name("ending").workers(2).build().unwrap();
    the_template("ending");
    drop(pool);
    wait_until("its end", || children_titled("ending/template").is_empty());
}

#[test]
fn a_large_table_is_the_same_in_each_worker_and_takes_its_memory_once() {
    const ITEMS: u64 = 16 << 20;
    let sum =
        |_: u64| with_state(|table: &mut Table| table.0.iter().fold(0, |a, b| a ^ b)).unwrap();
    let pool = template().name("large").workers(2).preload(build, ITEMS).build().unwrap();
    let expected = (0..ITEMS).map(square).fold(0, |a, b| a ^ b);
    assert_eq!(pool.broadcast(sum, 0), [Ok(expected), Ok(expected)]);
    let share = |pid: u32| -> u64 {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let workers = pool.workers().into_iter().map(|worker| worker.pid);
    let all: u64 = workers.chain([the_template("large")]).map(share).sum();
    let table = ITEMS * 8 / 1024;
    assert!((table..table * 3 / 2).contains(&all), "{all} KiB, of which the table is {table}");
}
