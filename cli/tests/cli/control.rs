//! What a user changes while a run runs: by signals, and by the keys of the live table.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use crate::support::{Terminal, children, procpool, signal, state, wait, wait_until};

/// A job that notes that it has begun, and waits for the file `go`.
const HELD: &str = "touch began-$0; echo here-is-$0; until test -e go; do sleep 0.01; done";

fn begun(dir: &Path) -> usize {
    let files = fs::read_dir(dir).unwrap().map(|it| it.unwrap().file_name());
    files.filter(|name| name.to_string_lossy().starts_with("began-")).count()
}

#[test]
fn sigusr1_adds_a_worker_and_sigusr2_takes_one_away() {
    for is_piped in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut arguments = vec!["run", "-p1", "--summary", "--", "sh", "-c", HELD, "{}"];
        if !is_piped {
            arguments.extend([":::", "1", "2", "3", "4", "5"]);
        }
        let mut command = procpool(&arguments);
        command.current_dir(&dir);
        command.stdin(if is_piped { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().unwrap();
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(b"1\n2\n3\n4\n5\n").unwrap();
        }
        wait_until("one has begun", || begun(dir.path()) == 1);
        signal(child.id(), Signal::USR1);
        wait_until("two have begun", || begun(dir.path()) == 2);
        signal(child.id(), Signal::USR1);
        wait_until("three have begun", || begun(dir.path()) == 3);
        wait_until("there are three workers", || children(child.id()).len() == 3);
        // The jobs of the workers that are too many now end first.
        signal(child.id(), Signal::USR2);
        signal(child.id(), Signal::USR2);
        fs::write(dir.path().join("go"), "").unwrap();
        let ended = wait(child);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stderr.contains("3 workers from now on"), "{ended:?}");
        assert!(ended.stderr.contains("5 done"), "{ended:?}");
        assert_eq!(begun(dir.path()), 5);
    }
}

#[test]
fn one_worker_is_the_least() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = procpool(&["run", "-p1", "--", "sh", "-c", HELD, ":::", "1"]);
    let child = command.current_dir(&dir).spawn().unwrap();
    wait_until("it has begun", || begun(dir.path()) == 1);
    signal(child.id(), Signal::USR2);
    fs::write(dir.path().join("go"), "").unwrap();
    let ended = wait(child);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn keys_change_the_run_and_the_terminal_is_as_it_was() {
    let command = "run --top -p 1 -- sh -c '".to_owned()
        + HELD
        + "' {} ::: 1 2 3 4 5; code=$?; stty -a > after; (exit $code)";
    let mut terminal = Terminal::start(&command);
    let dir = terminal.dir().to_owned();
    wait_until("one has begun", || begun(&dir) == 1);
    terminal.wait_until("the keys are named", |shown| shown.contains("enter output"));
    terminal.press(b"+");
    wait_until("two have begun", || begun(&dir) == 2);
    let workers = children(terminal.pid());
    let jobs: Vec<u32> = workers.iter().map(|pid| children(*pid)[0]).collect();
    terminal.press(b"p");
    wait_until("all are stopped", || workers.iter().all(|pid| state(*pid) == Some('T')));
    terminal.press(b"p");
    wait_until("all go on", || workers.iter().all(|pid| state(*pid) != Some('T')));
    // The output of the first worker's job, which is the first one.
    terminal.press(b"\x1b[B\r");
    terminal.wait_until("its output is shown", |shown| shown.contains("here-is-"));
    terminal.press(b"x");
    wait_until("the next has begun", || begun(&dir) == 3);
    assert_eq!(jobs.iter().filter(|pid| state(**pid).is_some()).count(), 1, "the other goes on");
    fs::write(dir.join("go"), "").unwrap();
    terminal.wait_until("it has ended", |shown| shown.contains("1 failed"));
    let after = || fs::read_to_string(dir.join("after")).unwrap_or_default();
    wait_until("the settings are noted", || after().contains(" icanon"));
    assert!(after().contains(" echo "), "{}", after());
    assert_eq!(begun(&dir), 5);
    let (_, shown) = terminal.end();
    assert!(shown.contains("SIGTERM"), "{shown}");
}

#[test]
fn a_paused_run_goes_on_to_its_end_when_it_is_interrupted() {
    let mut terminal =
        Terminal::start("run --top -p 1 -- sh -c 'touch began-$0; sleep 0.3' ::: 1 2");
    let dir = terminal.dir().to_owned();
    wait_until("one has begun", || begun(&dir) == 1);
    terminal.wait_until("the keys are named", |shown| shown.contains("enter output"));
    let workers = children(terminal.pid());
    terminal.press(b"p");
    wait_until("it is stopped", || workers.iter().all(|pid| state(*pid) == Some('T')));
    signal(terminal.pid(), Signal::TERM);
    terminal.wait_until("it ends", |shown| shown.contains("1 done"));
    assert_eq!(terminal.end().0, Some(143));
}
