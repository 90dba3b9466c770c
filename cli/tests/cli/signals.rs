//! Ctrl-C, SIGTERM and SIGHUP end a run, Ctrl-Z stops it for a while: real signals to the real
//! command.

use std::collections::HashSet;
use std::fs;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{LIMIT, children, lines_of, procpool, signal, state, wait, wait_until};

/// A long run of short tasks.
const LONG: [&str; 8] = [
    "run",
    "--procs=2",
    "--task=pi",
    "--points=20000",
    "--format=csv",
    "--quiet",
    "--count",
    "9999999",
];

/// A run whose only task never ends.
const ENDLESS: [&str; 6] =
    ["run", "--procs=2", "--task=pi", "--points=1000000000000000", "--format=csv", "1"];

/// CPU time that a process has used in user space, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    after_name.split(' ').nth(11).and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}

fn are_gone(pids: &[u32]) -> bool {
    pids.iter().all(|pid| matches!(state(*pid), None | Some('Z' | 'X')))
}

#[test]
fn a_signal_to_end_finishes_what_was_begun_and_says_so() {
    for (which, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut child = procpool(&LONG).spawn().unwrap();
        let rows = lines_of(child.stdout.take().unwrap());
        assert!(rows.recv_timeout(LIMIT).unwrap().starts_with("id,"));
        rows.recv_timeout(LIMIT).unwrap();
        let workers = children(child.id());
        signal(child.id(), which);
        let ended = wait(child);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        assert!(ended.stderr.starts_with("interrupted: "), "{ended:?}");
        // What was cancelled before it was begun leaves a gap, and what was running behind it comes.
        let mut ids = HashSet::new();
        for row in rows {
            let id: u64 = row.split(',').next().unwrap().parse().unwrap();
            assert!(row.ends_with(','), "answered: {row}");
            assert!(ids.insert(id), "once: {row}");
        }
        assert!(ids.len() < 5_000_000, "no more was begun");
        assert!(workers.len() == 2 && are_gone(&workers), "{workers:?}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second, code) in [
        (Signal::INT, Signal::INT, 130),
        (Signal::TERM, Signal::INT, 130),
        (Signal::INT, Signal::TERM, 143),
    ] {
        let mut child = procpool(&ENDLESS).spawn().unwrap();
        let rows = lines_of(child.stdout.take().unwrap());
        rows.recv_timeout(LIMIT).unwrap(); // the header: it's running
        wait_until("its worker is there", || children(child.id()).len() == 1);
        let workers = children(child.id());
        // More than a worker takes to start: what has not begun would be cancelled by the first signal.
        wait_until("the task runs", || workers.iter().any(|pid| ticks(*pid) > 10));
        let said = lines_of(child.stderr.take().unwrap());
        signal(child.id(), first);
        assert!(said.recv_timeout(LIMIT).unwrap().starts_with("interrupted: "));
        assert_eq!(
            state(child.id()).map(|state| state != 'Z'),
            Some(true),
            "it waits for the task"
        );
        signal(child.id(), second);
        assert_eq!(wait(child).code, Some(code));
        wait_until("the workers are gone", || are_gone(&workers));
    }
}

#[test]
fn a_hangup_that_was_ignored_is_ignored() {
    // As `nohup` does it.
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_procpool")])
        .args(["run", "--procs=2", "--format=csv", "--quiet", "--input=-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take();
    let rows = lines_of(child.stdout.take().unwrap());
    rows.recv_timeout(LIMIT).unwrap(); // the header: it's running
    signal(child.id(), Signal::HUP);
    drop(stdin);
    let ended = wait(child);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_terminal_that_is_gone_does_not_hide_why_it_ended() {
    let mut child = procpool(&LONG).spawn().unwrap();
    let rows = lines_of(child.stdout.take().unwrap());
    rows.recv_timeout(LIMIT).unwrap();
    drop(child.stderr.take());
    signal(child.id(), Signal::HUP);
    drop(rows);
    let code = wait(child).code;
    // Whichever it notices first: the reader that is gone, or the signal.
    assert!(matches!(code, Some(129 | 0)), "{code:?}");
}

#[test]
fn ctrl_z_stops_the_workers_too_and_fg_lets_all_go_on() {
    let arguments = [
        "run",
        "--procs=2",
        "--task=pi",
        "--points=200000",
        "--format=csv",
        "--quiet",
        "--count",
        "300",
    ];
    let mut child = procpool(&arguments).spawn().unwrap();
    let rows = lines_of(child.stdout.take().unwrap());
    for _ in 0..3 {
        rows.recv_timeout(LIMIT).unwrap();
    }
    for _ in 0..2 {
        wait_until("both workers are there", || children(child.id()).len() == 2);
        let all = [vec![child.id()], children(child.id())].concat();
        signal(child.id(), Signal::TSTP);
        wait_until("all are stopped", || all.iter().all(|pid| state(*pid) == Some('T')));
        signal(child.id(), Signal::CONT);
        wait_until("all go on", || all.iter().all(|pid| state(*pid) != Some('T')));
    }
    let ended = wait(child);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert_eq!(rows.iter().count(), 300 + 1 - 3);
}
