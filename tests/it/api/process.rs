//! `Process`: one call in its own child process, from the start to the exit status.

use std::os::unix::process::ExitStatusExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{
    SOON, SideEffects, alone, is_alive, kill, left_behind, sleepy, square, wait_until,
    wait_until_as_before,
};
use procpool::{
    DeathCause, DidRun, Error, EventKind, Limits, OutputMode, Pool, Process, StartError,
    TaskErrorKind, sync,
};

/// Notes its PID and never returns.
fn forever(effects: SideEffects) {
    effects.note(u64::from(std::process::id()));
    std::thread::sleep(Duration::from_secs(3600));
}

/// Returns a process that is running its call.
fn running_forever() -> Process<()> {
    let effects = SideEffects::new();
    let process = Process::spawn(forever, effects.clone()).unwrap();
    wait_until("it runs", || effects.count(process.pid().into()) == 1);
    process
}

fn code<R>(process: &Process<R>) -> Option<i32> {
    process.exit_status().unwrap().code()
}

fn signal<R>(process: &Process<R>) -> Option<i32> {
    process.exit_status().unwrap().signal()
}

#[test]
fn a_process_has_its_own_pid_and_exits_with_code_0() {
    let mut process = Process::spawn(|x: u64| (square(x), std::process::id()), 7).unwrap();
    let pid = process.pid();
    assert_eq!(process.join(), Ok((49, pid)));
    assert_ne!(pid, std::process::id());
    assert!(!process.is_alive() && !is_alive(pid));
    assert_eq!((code(&process), process.pid()), (Some(0), pid));
    assert_eq!(process.join().unwrap_err().kind(), &TaskErrorKind::AlreadyTaken);
}

#[test]
fn a_large_answer_outlives_its_process() {
    let mut process = Process::spawn(|n: usize| vec![7u8; n], 16 << 20).unwrap();
    wait_until("it has ended", || !process.is_alive());
    assert_eq!(process.join(), Ok(vec![7; 16 << 20]));
}

#[test]
fn after_a_panic_its_exit_code_is_1_and_join_says_why() {
    let mut process = Process::spawn(|x: u64| assert_ne!(x, 3, "three"), 3).unwrap();
    let error = process.join().unwrap_err();
    let TaskErrorKind::Panicked { message, .. } = error.kind() else { panic!("{error}") };
    assert!(message.contains("three"), "{message}");
    assert_eq!(code(&process), Some(1));
}

#[test]
fn an_exit_in_the_middle_is_an_error_with_its_code() {
    for exit in [0, 3] {
        let call = |code| -> () { std::process::exit(code) };
        let mut process = Process::spawn(call, exit).unwrap();
        let error = process.join().unwrap_err();
        let died = TaskErrorKind::Died {
            cause: DeathCause::Exited(exit),
            last_output: None,
            last_records: Vec::new(),
        };
        assert_eq!((error.kind(), code(&process)), (&died, Some(exit)));
    }
}

#[test]
fn terminate_and_kill_end_it_by_their_signals_also_twice_and_when_it_has_ended() {
    for (end, expected) in [
        (Process::terminate as fn(&Process<()>), libc::SIGTERM),
        (Process::kill as fn(&Process<()>), libc::SIGKILL),
    ] {
        let mut process = running_forever();
        assert!(process.is_alive() && process.exit_status().is_none());
        end(&process);
        end(&process);
        let error = process.join().unwrap_err();
        let cause = DeathCause::Signaled(expected, false);
        assert_eq!(
            error.kind(),
            &TaskErrorKind::Died { cause, last_output: None, last_records: Vec::new() }
        );
        assert_eq!((error.pid(), error.did_it_run()), (Some(process.pid()), DidRun::Maybe));
        end(&process);
        assert_eq!((signal(&process), process.is_alive()), (Some(expected), false));
    }
}

#[test]
fn a_process_killed_before_its_call_is_not_started_again() {
    for _ in 0..20 {
        let effects = SideEffects::new();
        let mut process = Process::spawn(forever, effects.clone()).unwrap();
        process.kill();
        let error = process.join().unwrap_err();
        assert!(matches!(error.kind(), TaskErrorKind::Died { .. }), "{error}");
        assert!(effects.noted().iter().all(|pid| *pid == u64::from(process.pid())));
        assert_eq!(signal(&process), Some(libc::SIGKILL));
    }
}

#[test]
fn a_process_that_is_killed_or_stopped_and_killed_ends() {
    let mut process = running_forever();
    kill(process.pid(), libc::SIGSEGV);
    assert!(process.join().is_err());
    assert_eq!(signal(&process), Some(libc::SIGSEGV));
    let mut process = running_forever();
    kill(process.pid(), libc::SIGSTOP);
    process.kill();
    assert!(process.join().is_err());
}

#[test]
fn a_process_that_ignores_sigterm_is_ended_by_kill() {
    let deaf = |effects: SideEffects| {
        // SAFETY: a plain system call.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        forever(effects);
    };
    let effects = SideEffects::new();
    let mut process = Process::spawn(deaf, effects.clone()).unwrap();
    wait_until("it runs", || effects.count(process.pid().into()) == 1);
    process.terminate();
    assert!(process.join_timeout(Duration::from_millis(50)).is_none());
    assert!(process.is_alive());
    process.kill();
    assert!(process.join_timeout(SOON).unwrap().is_err());
}

#[test]
fn join_timeout_runs_out_and_can_be_called_again() {
    let wait = |effects: SideEffects| {
        while effects.count(1) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        42
    };
    let effects = SideEffects::new();
    let mut process = Process::spawn(wait, effects.clone()).unwrap();
    assert!(process.join_timeout(Duration::ZERO).is_none());
    assert!(process.join_timeout(Duration::from_millis(10)).is_none());
    effects.note(1);
    assert_eq!(process.join_timeout(Duration::MAX), Some(Ok(42)));
    assert_eq!(code(&process), Some(0));
}

#[test]
fn dropped_it_is_killed() {
    let process = running_forever();
    let pid = process.pid();
    drop(process);
    assert!(!is_alive(pid));
}

#[test]
#[allow(clippy::zombie_processes, reason = "that nobody waits for it is the point")]
fn processes_that_a_process_started_end_with_it_and_its_exit_code_is_its_own() {
    let start = |()| std::process::Command::new("sleep").arg("3600").spawn().unwrap().id();
    let mut process = Process::spawn(start, ()).unwrap();
    let grandchild = process.join().unwrap();
    assert_eq!(code(&process), Some(0));
    wait_until("it is gone", || !is_alive(grandchild));
}

#[test]
fn a_process_has_processes_and_pools_and_they_all_end_with_the_outermost() {
    fn squares(n: u64) -> Vec<u64> {
        let mut inner = Process::spawn(square, n).unwrap();
        let squares = Pool::new(2).unwrap().map(square, 0..n).unwrap();
        squares.into_iter().chain([inner.join().unwrap()]).collect()
    }
    fn nested(effects: SideEffects) {
        let process = Process::spawn(forever, effects.clone()).unwrap();
        let pool = Pool::new(1).unwrap();
        let task = pool.apply_async(forever, effects.clone());
        forever(effects);
        drop((process, task));
    }
    assert_eq!(Process::spawn(squares, 3).unwrap().join(), Ok(vec![0, 1, 4, 9]));
    let effects = SideEffects::new();
    let process = Process::spawn(nested, effects.clone()).unwrap();
    wait_until("all three run", || effects.noted().len() == 3);
    process.kill();
    wait_until("all are gone", || !effects.noted().iter().any(|pid| is_alive(*pid as u32)));
}

#[test]
fn a_process_has_the_name_environment_directory_and_limits_that_are_set() {
    let look = |()| {
        let name = std::fs::read_to_string("/proc/self/comm").unwrap();
        let dir = std::env::current_dir().unwrap();
        let files = std::fs::read_to_string("/proc/self/limits").unwrap();
        let files = files.lines().find(|line| line.starts_with("Max open files")).unwrap();
        println!("looked");
        (name, std::env::var("COLOUR").unwrap(), dir, files.split_whitespace().nth(3) == Some("99"))
    };
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::builder()
        .name("looker")
        .env("COLOUR", "blue")
        .current_dir(dir.path())
        .limits(Limits::new().open_files(99))
        .output(OutputMode::Capture)
        .spawn(look, ())
        .unwrap();
    assert_eq!(process.name(), "looker");
    let report = process.report();
    let there = dir.path().canonicalize().unwrap();
    assert_eq!(report.result, Ok(("looker\n".to_owned(), "blue".to_owned(), there, true)));
    assert_eq!((&report.output[..], report.pid()), (&b"looked\n"[..], Some(process.pid())));
}

#[test]
fn a_time_limit_ends_it() {
    let limit = Duration::from_millis(20);
    let mut process = Process::builder().timeout(limit).spawn(forever, SideEffects::new()).unwrap();
    let error = process.join().unwrap_err();
    assert_eq!(error.kind(), &TaskErrorKind::TimedOut { after: limit });
    assert_eq!(signal(&process), Some(libc::SIGKILL));
}

#[test]
fn a_process_that_cannot_start_is_an_error_of_spawn() {
    let error = Process::builder().current_dir("/does/not/exist").spawn(square, 1).unwrap_err();
    assert!(matches!(error, Error::Start(StartError::Spawn(_))), "{error}");
}

#[test]
fn the_callers_thread_checks_the_directory_of_a_process() {
    alone!("checks_a_directory_alone");
}

#[test]
#[ignore = "looks at the whole process, so it is run by itself"]
fn checks_a_directory_alone() {
    let has_supervisor = || {
        std::fs::read_dir("/proc/self/task").unwrap().any(|task| {
            let name = std::fs::read_to_string(task.unwrap().path().join("comm"));
            name.is_ok_and(|name| name.starts_with("procpool-proces"))
        })
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    for dir in [std::path::Path::new("/does/not/exist"), file.path()] {
        let error = Process::builder().current_dir(dir).spawn(square, 1).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert!(source.is_some_and(|text| text.contains(dir.to_str().unwrap())), "{error:?}");
        assert!(!has_supervisor(), "it has started for this one");
    }
    let process = Process::builder().current_dir("/").spawn(square, 3);
    assert!(has_supervisor());
    assert_eq!(process.unwrap().join(), Ok(9));
}

#[test]
fn a_hundred_processes_leave_nothing_behind() {
    alone!("many_processes_alone");
}

#[test]
#[ignore = "looks at the whole process, so it is run by itself"]
fn many_processes_alone() {
    let round = |x| {
        assert_eq!(Process::spawn(square, x).unwrap().join(), Ok(x * x));
        drop(Process::spawn(square, x).unwrap());
    };
    round(0);
    let before = left_behind();
    (0..50).for_each(round);
    wait_until_as_before(before);
}

#[test]
fn many_processes_share_one_thread_use_few_descriptors_and_do_not_delay_each_other() {
    alone!("many_at_once_alone");
}

#[test]
#[ignore = "looks at the whole process, so it is run by itself"]
fn many_at_once_alone() {
    const COUNT: usize = 200;
    let squared_when_told = |(told, x): (sync::Event, u64)| {
        assert!(told.wait_timeout(SOON), "it is never told to go on");
        square(x)
    };
    let before = left_behind();
    let mut stopped = running_forever();
    kill(stopped.pid(), libc::SIGSTOP);
    let told = sync::Event::new().unwrap();
    let spawn = |x| Process::spawn(squared_when_told, (told.clone(), x)).unwrap();
    let processes: Vec<_> = (0..COUNT as u64).map(spawn).collect();
    let [descriptors, threads, children, ..] = left_behind();
    assert!(threads <= before[1] + 2, "{threads} threads, {} before", before[1]);
    let each = (descriptors - before[0]) / COUNT;
    assert!(each <= 5, "{each} descriptors each");
    assert_eq!(children, before[2] + COUNT + 1);
    a_time_limit_ends_it();
    told.set();
    for (x, mut process) in (0..).zip(processes) {
        assert_eq!(process.join_timeout(SOON), Some(Ok(square(x))));
        assert_eq!(code(&process), Some(0));
    }
    assert!(stopped.is_alive() && stopped.join_timeout(Duration::ZERO).is_none());
    stopped.kill();
    assert!(stopped.join_timeout(SOON).unwrap().is_err());
    drop((stopped, told));
    wait_until_as_before(before);
}

#[test]
fn its_events_come_in_order_whether_or_not_it_is_joined() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&told);
    let process = Process::builder()
        .on_event(move |event| events.lock().unwrap().push(event.kind.clone()))
        .spawn(square, 3)
        .unwrap();
    let is_over = || told.lock().unwrap().iter().any(|kind| matches!(kind, EventKind::Drained));
    wait_until("it is over", is_over);
    let told = told.lock().unwrap();
    let [spawned, ready, assigned, finished, retired, drained] = &told[..] else {
        panic!("{told:?}")
    };
    assert!(matches!(spawned, EventKind::Spawned { replaces: false, .. }));
    assert!(
        matches!(ready, EventKind::Ready { .. }) && matches!(assigned, EventKind::Assigned { .. })
    );
    assert!(matches!(finished, EventKind::Finished { error: None, .. }), "{finished:?}");
    assert!(matches!(retired, EventKind::Retired { .. }), "{retired:?}");
    assert!(matches!(drained, EventKind::Drained));
    drop(process);
}

#[test]
fn a_process_is_awaited_polled_and_ended_from_another_thread() {
    let mut process = Process::spawn(sleepy, 30_000).unwrap();
    let handle = process.handle();
    std::thread::spawn(move || handle.kill()).join().unwrap();
    let mut files = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut files, Some(&limit)), Ok(1));
    assert!(matches!(process.join().unwrap_err().kind(), TaskErrorKind::Died { .. }));

    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let process = Process::spawn(sleepy, 5).unwrap();
    assert_eq!(runtime.block_on(process), Ok(5));
}
