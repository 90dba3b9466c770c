//! `--top`: the live table, and that the terminal is given back whatever ends the run.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::support::{children, signal, wait, wait_until};

/// What takes a terminal over, and what gives it back with its cursor.
const TAKE: &str = "\x1b[?1049h";
const GIVE: &str = "\x1b[?1049l\x1b[?25h";

/// Runs it in a terminal of its own, and writes all that it sends there to this file.
fn in_terminal(arguments: &str, screen: &Path) -> Child {
    let procpool = env!("CARGO_BIN_EXE_procpool");
    let command = format!("stty rows 30 cols 120; exec {procpool} run --top {arguments}");
    let mut script = Command::new("script");
    script.args(["--quiet", "--flush", "--return", "--command", &command]).arg(screen);
    script.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn shown(screen: &Path) -> String {
    String::from_utf8_lossy(&fs::read(screen).unwrap_or_default()).into_owned()
}

#[test]
fn workers_and_inputs_are_shown_and_results_come_when_the_terminal_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let screen = dir.path().join("screen");
    let wait_for = dir.path().join("go");
    let script =
        format!("while ! test -e {}; do sleep 0.01; done; echo out-$0", wait_for.display());
    let child = in_terminal(&format!("-p 2 -- sh -c '{script}' ::: one two"), &screen);
    wait_until("both inputs are shown", || {
        let shown = shown(&screen);
        ["worker", "busy", "one", "two", "0/2"].iter().all(|what| shown.contains(what))
    });
    fs::write(wait_for, "").unwrap();
    let ended = wait(child);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let shown = shown(&screen);
    let (table, after) = shown.split_once(GIVE).expect("the terminal is given back");
    assert!(table.contains(TAKE) && !table.contains("out-one"), "{table}");
    assert!(after.contains("out-one") && after.contains("out-two") && after.contains("2 done"));
    assert!(!after.contains(TAKE), "once");
}

#[test]
fn the_terminal_is_given_back_on_signals() {
    let dir = tempfile::tempdir().unwrap();
    for (name, signals) in [("one", &[Signal::QUIT][..]), ("two", &[Signal::TERM, Signal::TERM])] {
        let screen = dir.path().join(name);
        let child = in_terminal("-p 1 -- sleep 1000 ::: 1", &screen);
        wait_until("it is shown", || shown(&screen).contains("busy"));
        let procpool = children(child.id())[0];
        signal(procpool, signals[0]);
        if signals.len() > 1 {
            wait_until("it has heard the first", || shown(&screen).contains("interrupted"));
            signal(procpool, signals[1]);
        }
        wait(child);
        let shown = shown(&screen);
        assert_eq!((shown.matches(TAKE).count(), shown.matches(GIVE).count()), (1, 1), "{shown}");
    }
}

#[test]
fn without_a_terminal_it_is_refused_with_the_remedy() {
    let mut command = Command::new("setsid");
    command.args(["--wait", env!("CARGO_BIN_EXE_procpool"), "run", "--top"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ended = wait(command.spawn().unwrap());
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("needs a terminal") && ended.stderr.contains("leave it out"));
}
