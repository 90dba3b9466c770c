//! Starts and ends of pools, of workers with their parent, and of processes that tasks started.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::{SOON, SideEffects, is_alive, kill, sleepy, square, wait_until};
use procpool::{
    DeathCause, Error, Event, EventKind, Pool, StartError, StartMethod, TaskErrorKind, WorkerState,
};

/// How long a test waits for an event that must happen within 100 ms. It measures the time.
const PROMPT: Duration = Duration::from_millis(100);

/// A process with this in its environment stops itself at its start.
const STOPS: &str = "PROCPOOL_TEST_STOPS";

#[used]
#[unsafe(link_section = ".init_array.00100")]
static STOP: extern "C" fn() = {
    extern "C" fn stop() {
        if std::env::var_os(STOPS).is_some() {
            // SAFETY: a plain system call.
            unsafe { libc::raise(libc::SIGSTOP) };
        }
    }
    stop
};

fn forever(effects: SideEffects) {
    effects.note(u64::from(std::process::id()));
    std::thread::sleep(Duration::from_secs(3600));
}

#[test]
fn drop_ends_running_tasks() {
    let effects = SideEffects::new();
    let pool = Pool::new(2).unwrap();
    let tasks: Vec<_> = (0..4).map(|_| pool.apply_async(forever, effects.clone())).collect();
    let pids: Vec<u32> = pool.workers().iter().map(|worker| worker.pid).collect();
    wait_until("both run", || pids.iter().all(|pid| effects.count((*pid).into()) == 1));
    drop(pool);
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    for task in tasks {
        assert_eq!(task.get().unwrap_err().kind(), &TaskErrorKind::Closed);
    }
}

#[test]
fn terminate_with_ten_thousand_pending_takes_under_a_second_and_resolves_every_handle() {
    let pool = Pool::new(2).unwrap();
    let tasks: Vec<_> = (0..10_000).map(|_| pool.apply_async(sleepy, 1000)).collect();
    let waiting = pool.apply_async(sleepy, 1000);
    let waiter = std::thread::spawn(move || waiting.get());
    let start = Instant::now();
    pool.terminate();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(waiter.join().unwrap().is_err());
    for task in tasks {
        assert_eq!(task.get().unwrap_err().kind(), &TaskErrorKind::Closed);
    }
}

#[test]
fn close_join_and_terminate_may_be_called_twice_and_from_two_threads() {
    let pool = Pool::new(2).unwrap();
    let task = pool.apply_async(sleepy, 50);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                pool.close();
                pool.close();
                pool.join();
                pool.join();
                pool.terminate();
                pool.terminate();
            });
        }
    });
    assert_eq!(task.get(), Ok(50));
    assert!(pool.workers().iter().all(|worker| !is_alive(worker.pid)));
}

#[test]
fn join_is_prompt_also_where_workers_have_just_died() {
    for _ in 0..20 {
        let pool = Pool::new(2).unwrap();
        assert_eq!(pool.map(square, 0..4).unwrap().len(), 4);
        let start = Instant::now();
        pool.workers().iter().for_each(|worker| kill(worker.pid, libc::SIGKILL));
        pool.join();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}

#[test]
fn join_waits_for_all_that_was_submitted() {
    let effects = SideEffects::new();
    let pool = Pool::new(2).unwrap();
    for _ in 0..50 {
        drop(pool.apply_async(|effects: SideEffects| effects.note(0), effects.clone()));
    }
    pool.join();
    assert_eq!(effects.count(0), 50);
}

#[test]
fn a_pool_outlives_the_thread_that_built_it() {
    let pool = std::thread::spawn(|| Pool::new(2).unwrap()).join().unwrap();
    let pids: Vec<u32> = pool.workers().iter().map(|worker| worker.pid).collect();
    assert_eq!(pool.map(square, 0..100).unwrap().len(), 100);
    assert_eq!(pool.workers().iter().map(|worker| worker.pid).collect::<Vec<_>>(), pids);
}

#[test]
fn a_pool_inside_a_task_works_and_ends_with_its_worker() {
    fn nested(n: u64) -> (Vec<u64>, Vec<u32>) {
        let pool = Pool::new(2).unwrap();
        let squares = pool.map(square, 0..n).unwrap();
        let pids = pool.workers().iter().map(|worker| worker.pid).collect();
        (squares, pids)
    }
    fn nested_forever(effects: SideEffects) {
        let pool = Pool::new(1).unwrap();
        pool.apply(forever, effects).unwrap();
    }
    let pool = Pool::new(2).unwrap();
    let (squares, pids) = pool.apply(nested, 5).unwrap();
    assert_eq!(squares, [0, 1, 4, 9, 16]);
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    let effects = SideEffects::new();
    let task = pool.apply_async(nested_forever, effects.clone());
    let mut inner = None;
    wait_until("the inner task runs", || {
        inner = effects.noted().first().copied();
        inner.is_some()
    });
    pool.terminate();
    assert!(task.get().is_err());
    wait_until("the inner worker is gone", || !is_alive(inner.unwrap() as u32));
}

#[test]
fn the_host_programs_own_children_are_left_alone() {
    let mut child = Command::new("sleep").arg("3600").spawn().unwrap();
    let mut done = Command::new("true").spawn().unwrap();
    let pool = Pool::new(2).unwrap();
    assert!(pool.apply(|()| -> () { std::process::exit(1) }, ()).is_err());
    drop(pool);
    assert!(child.try_wait().unwrap().is_none());
    assert!(done.wait().unwrap().success());
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
}

/// Starts the helper program, a parent with a pool. Returns it and the PIDs that it prints.
fn parent(args: &[&str]) -> (Child, Vec<u32>) {
    // Examples are built with the tests, into a directory beside theirs.
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().with_file_name("examples").join("procpool-test-parent");
    let mut child = Command::new(program).args(args).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pids = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    (child, pids)
}

#[test]
fn when_the_parent_is_killed_workers_and_what_they_started_are_gone_within_100_ms() {
    for how in ["idle", "busy", "stopped", "newborn", "children", "process"] {
        let (mut child, pids) = parent(&[how]);
        assert!(pids.len() >= 2 && pids.iter().all(|pid| is_alive(*pid)), "{how}: {pids:?}");
        kill(child.id(), libc::SIGKILL);
        child.wait().unwrap();
        let start = Instant::now();
        wait_until("all are gone", || pids.iter().all(|pid| !is_alive(*pid)));
        assert!(start.elapsed() < PROMPT, "{how}: {:?}", start.elapsed());
    }
}

#[test]
#[allow(clippy::zombie_processes, reason = "that nobody waits for it is the point")]
fn processes_that_a_task_started_end_with_its_worker() {
    let start = |()| {
        let child = Command::new("sleep").arg("3600").spawn().unwrap();
        child.id()
    };
    let pool = Pool::new(1).unwrap();
    let grandchild = pool.apply(start, ()).unwrap();
    assert!(is_alive(grandchild), "as long as the worker lives, so does it");
    kill(pool.workers()[0].pid, libc::SIGKILL);
    wait_until("it is gone", || !is_alive(grandchild));
    let grandchild = pool.apply(start, ()).unwrap();
    pool.terminate();
    wait_until("it is gone", || !is_alive(grandchild));
}

#[test]
fn a_child_that_keeps_the_channel_open_does_not_hide_its_workers_death() {
    let fork = |()| {
        // SAFETY: the child only sleeps and exits, without running Rust code.
        unsafe {
            if libc::fork() == 0 {
                libc::sleep(3600);
                libc::_exit(0);
            }
            libc::raise(libc::SIGKILL);
        }
    };
    let pool = Pool::new(1).unwrap();
    let start = Instant::now();
    assert!(pool.apply(fork, ()).is_err());
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(pool.apply(square, 3), Ok(9));
}

#[test]
fn a_stopped_worker_does_not_keep_the_pool_from_ending() {
    let pool = Pool::new(2).unwrap();
    kill(pool.workers()[0].pid, libc::SIGSTOP);
    let start = Instant::now();
    pool.join();
    pool.terminate();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_worker_that_is_stopped_while_it_starts_does_not_keep_join_waiting() {
    let is_stopped = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    };
    let env = |slot| match slot {
        1 => vec![(STOPS.into(), "1".into())],
        _ => Vec::new(),
    };
    // Code before `init` stops the worker, which a forked one does not run.
    let pool = Pool::builder().workers(2).env_per_worker(env).start_method(StartMethod::Spawn);
    let pool = pool.build().unwrap();
    let pid = pool.workers()[1].pid;
    wait_until("the worker is stopped", || is_stopped(pid));
    assert_eq!(pool.workers()[1].state, WorkerState::Starting);
    assert_eq!(pool.apply(square, 3), Ok(9));
    let start = Instant::now();
    pool.join();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_worker_that_is_stopped_in_its_initializer_does_not_keep_join_waiting() {
    let stop = |()| {
        // SAFETY: a plain system call.
        unsafe { libc::raise(libc::SIGSTOP) };
    };
    let failed = Arc::new(AtomicBool::new(false));
    let teller = Arc::clone(&failed);
    let listen = move |event: &Event| {
        teller.fetch_or(matches!(event.kind, EventKind::StartFailed { .. }), SeqCst);
    };
    let pool = Pool::builder().workers(2).initializer(stop, ()).on_event(listen).build().unwrap();
    let start = Instant::now();
    pool.join();
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert!(!failed.load(SeqCst), "it was ended since nothing was left to do, and has not failed");
}

#[test]
fn workers_that_are_killed_while_they_start_do_not_keep_a_pool_from_being_built() {
    let spawned = AtomicU32::new(0);
    let murder = move |event: &Event| {
        if let EventKind::Spawned { pid, .. } = event.kind
            && spawned.fetch_add(1, SeqCst) < 3
        {
            kill(pid, libc::SIGKILL);
        }
    };
    let pool = Pool::builder().workers(1).on_event(murder).build().unwrap();
    assert_eq!(pool.apply(square, 3), Ok(9));

    // If all of them are, the error says so in the end.
    let murder = move |event: &Event| {
        if let EventKind::Spawned { pid, .. } = event.kind {
            kill(pid, libc::SIGKILL);
        }
    };
    match Pool::builder().workers(1).on_event(murder).build() {
        Err(Error::Start(StartError::Died(DeathCause::Signaled(libc::SIGKILL, _)))) => {}
        // One finished before it was killed.
        Ok(_) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_forgotten_init_is_an_error_and_never_a_fork_bomb() {
    let (mut child, _) = parent(&["no-init"]);
    assert!(child.wait().unwrap().success());
    let (mut child, _) = parent(&["late-init"]);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_worker_without_a_handshake_is_killed_after_the_start_timeout() {
    let hangs = |()| -> () { std::thread::sleep(Duration::from_secs(3600)) };
    let limit = Duration::from_millis(50);
    let pool =
        Pool::builder().workers(1).initializer(hangs, ()).start_timeout(limit).build().unwrap();
    let error = pool.apply(square, 1).unwrap_err();
    let TaskErrorKind::Initializer { cause, .. } = error.kind() else { panic!("{error:?}") };
    assert_eq!(cause, &StartError::TimedOut(limit));
}

#[test]
fn a_low_limit_of_open_files_is_an_error_that_names_it() {
    let (mut child, _) = parent(&["few-files"]);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_panic_costs_one_task_also_where_it_aborts() {
    let (mut child, _) = parent(&["panics"]);
    assert!(child.wait().unwrap().success());
    // `.ci/run` runs the same program built with `panic = "abort"`.
}

#[test]
fn invalid_options_are_refused_with_the_remedy() {
    let error = Pool::builder().window(0).build().unwrap_err();
    assert!(matches!(error, Error::Option { option: "window", .. }), "{error}");
    let error = Pool::builder().task_timeout(Duration::ZERO).build().unwrap_err();
    assert!(error.to_string().contains("leave it unset"), "{error}");
    let error = Pool::builder().current_dir("/does/not/exist").build().unwrap_err();
    assert!(matches!(error, Error::Start(StartError::Spawn(_))), "{error}");
}

#[test]
fn a_pool_is_drained_in_time_or_terminated_at_its_deadline() {
    let pool = Pool::new(2).unwrap();
    let tasks: Vec<_> = (0..20).map(|_| pool.apply_async(sleepy, 1)).collect();
    assert!(pool.drain(SOON));
    assert!(tasks.iter().all(|task| task.is_ready()));
    assert!(tasks.into_iter().all(|task| task.get().is_ok()));
    assert!(pool.drain(Duration::ZERO), "it is over");

    let pool = Pool::new(2).unwrap();
    let endless: Vec<_> = (0..4).map(|_| pool.apply_async(sleepy, 3_600_000)).collect();
    wait_until("two run", || pool.stats().running == 2);
    let begun = Instant::now();
    assert!(!pool.drain(Duration::from_millis(50)));
    assert!((Duration::from_millis(50)..SOON).contains(&begun.elapsed()));
    for task in endless {
        assert!(matches!(task.get().unwrap_err().kind(), TaskErrorKind::Closed));
    }
    // Time without end.
    let pool = Pool::new(1).unwrap();
    assert!(pool.drain(Duration::MAX));
}

#[test]
fn metrics_count_how_long_tasks_waited_and_ran_and_how_workers_died() {
    let pool = Pool::builder().workers(1).task_timeout(Duration::from_millis(200)).build().unwrap();
    let tasks: Vec<_> = (0..10).map(|_| pool.apply_async(sleepy, 5)).collect();
    tasks.into_iter().for_each(|task| assert!(task.get().is_ok()));
    let metrics = pool.metrics();
    assert_eq!((metrics.wait.count(), metrics.run.count()), (10, 10));
    assert!(metrics.run.quantile(0.5).unwrap() >= Duration::from_millis(5), "{metrics:?}");
    assert!(metrics.run.sum() >= Duration::from_millis(50), "{metrics:?}");
    assert_eq!((metrics.stats.done, metrics.stats.queued), (10, 0));
    assert!(metrics.argument_bytes >= 80 && metrics.result_bytes >= 80, "{metrics:?}");
    assert_eq!(metrics.workers, 1);
    assert!(metrics.memory > 1 << 20, "{metrics:?}");
    let large = vec![1_u8; 3 << 20];
    let before = pool.metrics();
    assert_eq!(pool.apply(|large: Vec<u8>| large, large.clone()), Ok(large));
    let after = pool.metrics();
    for (before, after) in
        [(before.argument_bytes, after.argument_bytes), (before.result_bytes, after.result_bytes)]
    {
        assert!((3 << 20..4 << 20).contains(&(after - before)), "{before} {after}");
    }
    assert!(pool.apply(|()| -> u8 { std::process::abort() }, ()).is_err());
    assert!(pool.apply(|()| -> u8 { std::process::exit(3) }, ()).is_err());
    assert!(pool.apply(sleepy, 3_600_000).is_err());
    wait_until("all are counted", || {
        let deaths = pool.metrics().deaths;
        (deaths.signaled, deaths.exited, deaths.timed_out) == (1, 1, 1)
    });
    assert_eq!(pool.metrics().deaths.out_of_memory, 0);
    assert_eq!(pool.apply(square, 2), Ok(4));
}

#[cfg(feature = "metrics")]
#[test]
fn metrics_reach_prometheus_through_the_crate_metrics() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new()
        .set_buckets(&[0.001, 0.004, 0.1])
        .unwrap()
        .build_recorder();
    let page = |pool: &Pool| {
        metrics::with_local_recorder(&recorder, || pool.publish_metrics());
        recorder.handle().render()
    };
    let pool = Pool::builder().workers(1).name("docs").build().unwrap();
    for _ in 0..3 {
        pool.apply(sleepy, 5).unwrap();
        page(&pool);
    }
    assert!(pool.apply(|()| -> u8 { std::process::abort() }, ()).is_err());
    wait_until("the death is counted", || pool.metrics().deaths.signaled == 1);
    wait_until("it is replaced", || pool.metrics().workers == 1);
    let page = page(&pool);
    for line in [
        "procpool_tasks_total{pool=\"docs\",outcome=\"done\"} 3",
        "procpool_tasks_total{pool=\"docs\",outcome=\"failed\"} 1",
        "procpool_worker_deaths_total{pool=\"docs\",cause=\"signaled\"} 1",
        "procpool_tasks_queued{pool=\"docs\"} 0",
        "procpool_workers{pool=\"docs\"} 1",
        "procpool_task_run_seconds_bucket{pool=\"docs\",le=\"0.004\"} 0",
        "procpool_task_run_seconds_bucket{pool=\"docs\",le=\"0.1\"} 3",
    ] {
        assert!(page.lines().any(|it| it == line), "{line} is missing:\n{page}");
    }
    let memory = page
        .lines()
        .find_map(|line| line.strip_prefix("procpool_workers_memory_bytes{pool=\"docs\"} "));
    assert!(memory.unwrap().parse::<f64>().unwrap() > 1e5, "{page}");
}
