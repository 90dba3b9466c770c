//! `--top`: the live table, and that the terminal is given back whatever ends the run.

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{Terminal, signal, wait};

/// What takes a terminal over, and what gives it back with its cursor.
const TAKE: &str = "\x1b[?1049h";
const GIVE: &str = "\x1b[?1049l\x1b[?25h";

#[test]
fn workers_and_inputs_are_shown_and_results_come_when_the_terminal_is_given_back() {
    let script = "while ! test -e go; do sleep 0.01; done; echo out-$0";
    let terminal = Terminal::start(&format!("run --top -p 2 -- sh -c '{script}' ::: one two"));
    terminal.wait_until("both inputs are shown", |shown| {
        ["worker", "busy", "one", "two", "0/2"].iter().all(|what| shown.contains(what))
    });
    fs::write(terminal.dir().join("go"), "").unwrap();
    terminal.wait_until("it has printed its end", |shown| shown.contains("2 done"));
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(0), "{shown}");
    let (table, after) = shown.split_once(GIVE).expect("the terminal is given back");
    assert!(table.contains(TAKE) && !table.contains("out-one"), "{table}");
    assert!(after.contains("out-one") && after.contains("out-two") && after.contains("2 done"));
    assert!(!after.contains(TAKE), "once");
}

#[test]
fn the_terminal_is_given_back_on_signals() {
    for signals in [&[Signal::QUIT][..], &[Signal::TERM, Signal::TERM]] {
        let terminal = Terminal::start("run --top -p 1 -- sleep 1000 ::: 1");
        terminal.wait_until("it is shown", |shown| shown.contains("busy"));
        let procpool = terminal.pid();
        signal(procpool, signals[0]);
        if signals.len() > 1 {
            terminal.wait_until("it has heard the first", |shown| shown.contains("interrupted"));
            signal(procpool, signals[1]);
        }
        terminal.wait_until("the terminal is given back", |shown| shown.contains(GIVE));
        let (_, shown) = terminal.end();
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
