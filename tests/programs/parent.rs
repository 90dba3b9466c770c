//! A parent with a pool, for the tests of what happens when it ends or is set up wrongly. Prints the
//! PIDs of its workers and of what they started, then waits to be killed.

use std::process::Command;
use std::time::Duration;

use procpool::{Error, Event, EventKind, Pool, Process, StartError, StartMethod, WorkerState};

fn main() {
    let how = std::env::args().nth(1).unwrap_or_default();
    match how.as_str() {
        // A worker that gets here instead of serving would build a pool of its own.
        "no-init" => {
            assert!(matches!(Pool::new(2), Err(Error::NotInitialized)));
            assert!(matches!(Process::spawn(|()| (), ()), Err(Error::NotInitialized)));
            return println!();
        }
        // A program that reads its arguments before it becomes a worker.
        "late-init" => {
            procpool::init();
            let error = Pool::builder().workers(2).env("LATE", "1").build().map(drop);
            let Err(Error::Start(StartError::Died(_))) = &error else { panic!("{error:?}") };
            let text = error.map_or_else(|error| chain(&error), |()| String::new());
            assert!(text.contains("exited with code 2 before the handshake"), "{text}");
            assert!(text.contains("first line of main"), "{text}");
            return println!();
        }
        worker if worker.starts_with("--procpool-worker") && std::env::var_os("LATE").is_some() => {
            std::process::exit(2);
        }
        worker if worker.starts_with("--procpool-worker") && std::env::var_os("STOP").is_some() => {
            // SAFETY: a plain system call.
            unsafe { libc::raise(libc::SIGSTOP) };
        }
        _ => procpool::init(),
    }
    if how == "newborn" {
        return newborn();
    }
    if how == "few-files" {
        few_files();
        return println!();
    }
    if how == "panics" {
        panics();
        return println!();
    }
    let pool = Pool::new(2).expect("a pool");
    // One that is stopped or loses its parent before it has reported is not what is tested here.
    while pool.workers().iter().any(|worker| worker.state != WorkerState::Idle) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut pids: Vec<u32> = pool.workers().iter().map(|worker| worker.pid).collect();
    let forever = |()| std::thread::sleep(Duration::from_secs(3600));
    match how.as_str() {
        "busy" => {
            let spin = |()| -> () { while std::hint::black_box(true) {} };
            drop([pool.apply_async(spin, ()), pool.apply_async(forever, ())]);
        }
        "stopped" => {
            for pid in &pids {
                // SAFETY: a plain system call.
                unsafe { libc::kill(pid.cast_signed(), libc::SIGSTOP) };
            }
        }
        "children" => {
            let start = |()| {
                let sleeping = Command::new("sleep").arg("3600").spawn();
                sleeping.map_or(0, |child| child.id())
            };
            pids.push(pool.apply(start, ()).expect("a child"));
        }
        "process" => {
            let process = Process::spawn(forever, ()).expect("a process");
            pids.push(process.pid());
            std::mem::forget(process);
        }
        _ => drop(pool.map(|x: u32| x, 0..10)),
    }
    println!("{}", pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    std::thread::sleep(Duration::from_secs(3600));
}

/// Its workers are stopped before they have done anything.
fn newborn() {
    let (sender, spawned) = std::sync::mpsc::channel();
    let tell = move |event: &Event| {
        if let EventKind::Spawned { pid, .. } = event.kind {
            let _ = sender.send(pid);
        }
    };
    // A template would be stopped too, and fork none.
    let builder = Pool::builder().start_method(StartMethod::Spawn).workers(2).env("STOP", "1");
    std::thread::spawn(move || builder.on_event(tell).build());
    let pids: Vec<u32> = spawned.iter().take(2).collect();
    let is_stopped = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| stat.contains(") T "))
    };
    while !pids.iter().all(is_stopped) {
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{}", pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    std::thread::sleep(Duration::from_secs(3600));
}

/// With too few descriptors for all of its workers, a pool says so.
fn few_files() {
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: a plain system call on local data.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let error = Pool::new(64).map(drop);
    let Err(error) = error else { panic!("64 workers with 64 descriptors") };
    let text = error.to_string();
    assert!(text.contains("64 workers") && text.contains("ulimit -n"), "{text}");
    let pool = Pool::new(3).expect("three workers with 64 descriptors");
    assert_eq!(pool.map(|x: u32| x, 0..3).expect("answers"), [0, 1, 2]);
}

/// A panic costs one task and says what it was, also where it ends the process that it happens in.
fn panics() {
    let pool = Pool::new(2).expect("a pool");
    let results: Vec<_> = pool
        .imap(
            |x: u32| {
                assert!(x != 5, "five is {x}");
                x
            },
            0..100,
        )
        .collect();
    for (x, result) in (0..).zip(results) {
        match result {
            Ok(answer) => assert_eq!(answer, x),
            Err(error) => {
                assert_eq!((x, error.id()), (5, 5));
                let text = error.to_string();
                assert!(text.contains("parent.rs:") && text.contains("five is 5"), "{text}");
            }
        }
    }
    let restarts = pool.stats().restarts;
    assert_eq!(restarts, u64::from(cfg!(panic = "abort")), "a worker is lost only by an abort");
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
