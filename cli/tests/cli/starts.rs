//! When jobs start, and when a run ends by itself.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{LIMIT, procpool, run, signal, wait, wait_until};

/// The times in nanoseconds that jobs have printed, in order.
fn times(text: &str) -> Vec<u64> {
    let mut times: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    times.sort_unstable();
    times
}

fn gaps(times: &[u64]) -> Vec<Duration> {
    times.windows(2).map(|two| Duration::from_nanos(two[1] - two[0])).collect()
}

#[test]
fn starts_are_a_delay_apart_however_many_workers_there_are() {
    // A job says the time a while after its start, at most as long as a program takes to start.
    let arguments = ["run", "-q", "-p", "4", "--delay", "300ms", "--", "sh", "-c"];
    let begun = Instant::now();
    let ended = run(&[&arguments[..], &["date +%s%N; : {}", ":::", "a", "b", "c", "d"]].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    assert_eq!(times(ended.text()).len(), 4);
    let retried = ["run", "-q", "--delay", "300ms", "--retries", "1", "--", "false", ":::", "x"];
    let begun = Instant::now();
    assert_eq!(run(&retried).code, Some(1));
    assert!(begun.elapsed() >= Duration::from_millis(300), "a retry is a start too");
}

#[test]
fn jobs_are_held_while_the_machine_has_no_room_and_not_longer() {
    for room in [["--load", "1000000"], ["--memfree", "16M"], ["--load", "100000%"]] {
        let ended = run(&[&["run", "-qk"], &room[..], &["--", "echo", ":::", "a", "b"]].concat());
        assert_eq!((ended.code, ended.text()), (Some(0), "a\nb\n"), "{ended:?}");
    }
    // Something that always runs.
    let mut busy = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    for room in [["--load", "0.5"], ["--memfree", "1000000T"]] {
        let limit = ["run", "-q", "-p1", "--timeout", "1ms", "--deadline", "700ms"];
        let ended = run(&[&limit[..], &room, &["--", "echo", ":::", "a", "b"]].concat());
        assert_eq!((ended.code, ended.text()), (Some(1), ""), "{ended:?}");
        assert!(ended.stderr.contains("2 inputs were not started"), "{ended:?}");
    }
    busy.kill().unwrap();
    busy.wait().unwrap();
}

#[test]
fn a_job_that_is_held_is_not_started_after_an_interruption() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let journal = dir.path().join("journal");
    let mut arguments = vec!["run", "--summary", "-p2", "--memfree", "1000000T", "--log"];
    arguments.extend([log.to_str().unwrap(), "--journal", journal.to_str().unwrap()]);
    arguments.extend(["--", "echo", ":::", "a", "b", "c"]);
    let child = procpool(&arguments).spawn().unwrap();
    let is_ready = || fs::read_to_string(&log).is_ok_and(|log| log.contains("\"ready\""));
    wait_until("there is a worker", is_ready);
    signal(child.id(), Signal::INT);
    let ended = wait(child);
    assert_eq!((ended.code, ended.text()), (Some(130), ""), "{ended:?}");
    assert!(ended.stderr.contains("3 not started"), "{ended:?}");
    // None of them counts as tried.
    let journal = fs::read_to_string(journal).unwrap();
    assert!(!journal.contains("\"ok\""), "{journal}");
}

#[test]
fn retries_wait_twice_as_long_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let starts = dir.path().join("starts");
    let script = format!("date +%s%N >> {}; exit 1", starts.display());
    let arguments = ["run", "-q", "--retries", "2", "--retry-delay", "400ms", "--", "sh", "-c"];
    let ended = run(&[&arguments[..], &[&script, ":::", "x"]].concat());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let times = times(&fs::read_to_string(&starts).unwrap());
    let gaps = gaps(&times);
    assert_eq!(gaps.len(), 2);
    // From the end of an attempt, and at least the half of it.
    assert!(gaps[0] >= Duration::from_millis(190), "{gaps:?}");
    assert!(gaps[1] >= Duration::from_millis(390), "{gaps:?}");
    let without = run(&["run", "--retry-delay", "1s", "--", "true", ":::", "x"]);
    assert!(without.stderr.contains("add --retries N"), "{without:?}");
}

#[test]
fn at_its_deadline_a_run_ends_with_the_jobs_that_run() {
    let begun = Instant::now();
    let ended =
        run(&["run", "-q", "-p", "1", "--deadline", "500ms", "--", "sleep", ":::", "900", "901"]);
    assert_eq!((ended.code, ended.text()), (Some(1), ""), "{ended:?}");
    for said in ["the deadline has passed: 1 running", "error: 900: ", "1 inputs were not started"]
    {
        assert!(ended.stderr.contains(said), "{said}: {ended:?}");
    }
    let arguments =
        ["run", "-q", "--task", "pi", "--points", "99999999999999", "--deadline", "300ms"];
    assert_eq!(run(&[&arguments[..], &["1", "2"]].concat()).code, Some(1));
    assert!(begun.elapsed() < LIMIT / 2, "{:?}", begun.elapsed());
    let in_time = run(&["run", "-q", "--deadline", "1d", "--", "echo", ":::", "x"]);
    assert_eq!((in_time.code, in_time.text()), (Some(0), "x\n"), "{in_time:?}");
    let refused = run(&["run", "--delay", "1s", "--task", "pi"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
}
