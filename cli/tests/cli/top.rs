//! `--top`: the live table, and that the terminal is given back whatever ends the run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::support::{Ended, children, signal, wait, wait_until};

/// What takes a terminal over, and what gives it back with its cursor.
const TAKE: &str = "\x1b[?1049h";
const GIVE: &str = "\x1b[?1049l\x1b[?25h";

/// Runs it in a terminal of its own, and writes all that it sends there to this file. The shell that
/// the terminal belongs to waits to be [told](ended) to end: with it, the kernel throws away what has
/// been written to the terminal and not been read.
fn in_terminal(arguments: &str, screen: &Path) -> Child {
    let procpool = env!("CARGO_BIN_EXE_procpool");
    let seen = seen(screen);
    let command = format!(
        "stty rows 30 cols 120; {procpool} run --top {arguments}; code=$?; \
         until test -e {}; do sleep 0.01; done; exit $code",
        seen.display()
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--flush", "--return", "--command", &command]).arg(screen);
    script.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What tells the shell that all has been seen.
fn seen(screen: &Path) -> PathBuf {
    screen.with_extension("seen")
}

/// Waits until the terminal is given back, and for the end.
fn ended(child: Child, screen: &Path) -> Ended {
    wait_until("the terminal is given back", || shown(screen).contains(GIVE));
    fs::write(seen(screen), "").unwrap();
    wait(child)
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
    wait_until("it has printed its end", || shown(&screen).contains("2 done"));
    let ended = ended(child, &screen);
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
        let shell = children(child.id())[0];
        let procpool = children(shell)[0];
        signal(procpool, signals[0]);
        if signals.len() > 1 {
            wait_until("it has heard the first", || shown(&screen).contains("interrupted"));
            signal(procpool, signals[1]);
        }
        ended(child, &screen);
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
