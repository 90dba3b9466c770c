//! Runs in a terminal: what jobs do to it, and what is seen there.

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{LIMIT, Terminal, lines_of, procpool, run, signal, state, wait, wait_until};

#[test]
fn a_job_that_wants_the_terminal_fails_with_the_remedy_and_the_others_are_done() {
    let job = "case $0 in read) read x < /dev/tty;; stty) stty -echo < /dev/tty;; esac; echo $0";
    // Also where the worker sees nothing of what jobs print.
    for more in ["", "--output null", "--retries 3 --timeout 60s"] {
        let arguments = format!("run -q -k -p 2 {more} -- sh -c '{job}' ::: read one stty two");
        let terminal = Terminal::start(&arguments);
        terminal.wait_until("it ends", |shown| shown.matches("error:").count() == 2);
        let (code, shown) = terminal.end();
        assert_eq!(code, Some(1), "{shown}");
        for (job, fails) in [("read", true), ("stty", true), ("one", false), ("two", false)] {
            let error = format!("{job}: was killed because it asked for the terminal");
            assert_eq!(shown.contains(&error), fails, "{job}: {shown}");
        }
        assert!(shown.contains("BatchMode") && shown.contains("sudo -n"), "{shown}");
    }
}

#[test]
fn with_tty_jobs_read_what_is_typed_one_after_the_other() {
    let job = "stty -echo; printf \"$0? \"; read x; stty echo; echo \"$0=$x\"; test -t 1";
    let arguments = format!("run -q --tty -- sh -c '{job}' ::: name word; stty -a > after");
    let mut terminal = Terminal::start(&arguments);
    terminal.wait_until("the first asks", |shown| shown.contains("name? "));
    terminal.press(b"ada\n");
    terminal.wait_until("the second asks", |shown| shown.contains("word? "));
    assert!(!terminal.shown().contains("ada\r\nada"), "what is typed is not shown");
    terminal.press(b"secret\n");
    terminal.wait_until("it ends", |shown| shown.contains("word=secret"));
    let after = || fs::read_to_string(terminal.dir().join("after")).unwrap_or_default();
    wait_until("the settings are noted", || after().contains(" icanon"));
    assert!(after().contains(" echo "), "{}", after());
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("name=ada") && !shown.contains("error:"), "{shown}");
}

#[test]
fn with_tty_ctrl_c_ends_the_job_and_the_run_and_a_killed_job_leaves_the_terminal_usable() {
    let job = "stty -echo; echo begun-$0; while :; do sleep 1; done";
    let mut terminal = Terminal::start(&format!("run -q --tty -- sh -c '{job}' ::: a b"));
    terminal.wait_until("the first runs", |shown| shown.contains("begun-a"));
    terminal.press(b"\x03");
    terminal.wait_until("it is said", |shown| shown.contains("a: was interrupted"));
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(130), "{shown}");
    assert!(!shown.contains("begun-b"), "{shown}");
    // Its worker is killed with it.
    let arguments = "run -q --tty -- sh -c 'stty -echo; kill -9 $PPID; sleep 100' ::: a; read x; \
                     echo got $x; stty -a > after";
    let mut terminal = Terminal::start(arguments);
    terminal.wait_until("it ends", |shown| shown.contains("a: its worker was killed"));
    terminal.press(b"typed\n");
    terminal.wait_until("the shell has the terminal", |shown| shown.contains("got typed"));
    let after = || fs::read_to_string(terminal.dir().join("after")).unwrap_or_default();
    wait_until("the settings are noted", || after().contains(" icanon"));
    assert!(after().contains(" echo "), "{}", after());
    terminal.end();
}

#[test]
fn with_pty_jobs_print_as_on_a_terminal_and_nothing_is_changed() {
    let job = "test -t 1 && test -t 2 && stty size <&1; printf 'a\\tb\\n\\033[1mc'; echo err >&2; \
               seq $0";
    for more in [&["-k"][..], &["--line-buffer", "-p1"]] {
        let arguments = [&["run", "-q", "--pty"], more, &["--", "sh", "-c", job, ":::"]].concat();
        let ended = run(&[&arguments[..], &["3", "200000"]].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let numbers = |to: u32| (1..=to).map(|it| format!("{it}\n")).collect::<String>();
        let each = |to| format!("24 80\na\tb\n\x1b[1mc{}", numbers(to));
        assert_eq!(ended.text(), each(3) + &each(200_000));
        assert_eq!(ended.stderr, "err\nerr\n");
    }
}

#[test]
fn tty_is_refused_without_a_terminal_and_for_several_jobs_at_once() {
    let refused = run(&["run", "--tty", "-p", "2", "--", "cat", ":::", "a"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("use -p 1"), "{refused:?}");
    let mut command = Command::new("setsid");
    command.args(["--wait", env!("CARGO_BIN_EXE_procpool"), "run", "--tty", "--", "true", ":::"]);
    command.arg("a").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let refused = wait(command.spawn().unwrap());
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("--tty needs a terminal"), "{refused:?}");
}

#[test]
fn a_job_that_its_user_stops_waits_to_go_on() {
    for how in [Signal::STOP, Signal::TSTP] {
        let script = "echo $$; while ! test -e go; do sleep 0.01; done; echo over";
        let arguments = ["run", "--line-buffer", "-p", "1", "--", "sh", "-c", script, ":::", "1"];
        let dir = tempfile::tempdir().unwrap();
        let mut child = procpool(&arguments).current_dir(dir.path()).spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        let job = lines.recv_timeout(LIMIT).unwrap().parse().unwrap();
        signal(job, how);
        wait_until("it is stopped", || state(job) == Some('T'));
        fs::write(dir.path().join("go"), "").unwrap();
        signal(job, Signal::CONT);
        assert_eq!(lines.recv_timeout(LIMIT).unwrap(), "over");
        let ended = wait(child);
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[test]
fn the_progress_bar_leaves_nothing_on_a_line_of_a_jobs_output() {
    let script = "while ! test -e go-$0; do sleep 0.01; done; printf out-$0";
    let terminal = Terminal::start(&format!("run -k -p 1 -- sh -c '{script}' ::: a b"));
    for (bar, job) in [("0/2", "go-a"), ("1/2", "go-b")] {
        terminal.wait_until("there is a bar", |shown| shown.contains(bar));
        fs::write(terminal.dir().join(job), "").unwrap();
    }
    terminal.wait_until("its end is shown", |shown| shown.contains("2 done"));
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(0), "{shown}");
    // What a terminal makes of it.
    let screen = drawn(&shown);
    for line in ["out-a", "out-b"] {
        assert!(screen.iter().any(|it| it == line), "{line}: {screen:?}\n{shown:?}");
    }
}

#[test]
fn the_bar_and_top_show_how_far_long_jobs_are() {
    for view in ["", "--top"] {
        // Of the many points, a percent takes a moment.
        let run = format!("run {view} -p 1 --task pi --points 3000000000 1");
        let mut terminal = Terminal::start(&run);
        terminal.wait_until("a part is done", |shown| {
            let parts = shown.match_indices(" %").map(|(at, _)| &shown[..at]);
            parts.into_iter().any(|before| before.ends_with(|last: char| last.is_ascii_digit()))
        });
        terminal.press(b"\x03");
        terminal.wait_until("it is interrupted", |shown| shown.contains("interrupted"));
        signal(terminal.pid(), Signal::KILL);
        terminal.end();
    }
}

/// The lines that a terminal shows for this, as far as what is used here goes: text, returns, line
/// feeds, and the sequences that move up, wipe out and colour.
fn drawn(shown: &str) -> Vec<String> {
    let mut lines: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column) = (0, 0);
    let mut characters = shown.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\r' => column = 0,
            '\n' => {
                row += 1;
                if row == lines.len() {
                    lines.push(Vec::new());
                }
            }
            '\x1b' => {
                characters.next(); // the bracket
                let mut number = String::new();
                let last = loop {
                    match characters.next() {
                        Some(it) if it.is_ascii_digit() || ";?".contains(it) => number.push(it),
                        last => break last,
                    }
                };
                match last {
                    Some('A') => row = row.saturating_sub(number.parse().unwrap_or(1)),
                    Some('K') if number == "2" => lines[row].clear(),
                    Some('K') => lines[row].truncate(column),
                    _ => {}
                }
            }
            character => {
                let line = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = character;
                column += 1;
            }
        }
    }
    lines.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned()).collect()
}

#[test]
fn ctrl_c_in_a_terminal_prints_one_line() {
    let script = "echo > begun; while ! test -e go; do sleep 0.01; done";
    let mut terminal = Terminal::start(&format!("run -q -p 1 -- sh -c '{script}' ::: a b c"));
    wait_until("the first job runs", || terminal.dir().join("begun").exists());
    let procpool = terminal.pid();
    terminal.press(b"\x03");
    terminal.wait_until("it says so", |shown| shown.contains("interrupted"));
    fs::write(terminal.dir().join("go"), "").unwrap();
    wait_until("it ends", || matches!(state(procpool), None | Some('Z')));
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(130), "{shown}");
    let lines: Vec<_> = shown.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "{shown:?}");
}

#[test]
fn what_is_said_of_a_run_begins_a_line_of_its_own() {
    // Without a bar, too; and on either output.
    for (prints, more) in [("printf out", "--progress never"), ("printf out >&2", "")] {
        let terminal = Terminal::start(&format!("run -p 1 {more} -- sh -c '{prints}' ::: a"));
        terminal.wait_until("its end is shown", |shown| shown.contains("retried"));
        let (code, shown) = terminal.end();
        assert_eq!(code, Some(0), "{shown}");
        let screen = drawn(&shown);
        assert!(screen[0] == "out" && screen[1].starts_with("1 job"), "{screen:?}");
    }
    let terminal =
        Terminal::start("run -q -p 1 --progress never -- sh -c 'printf out; exit 3' ::: a");
    terminal.wait_until("its error is shown", |shown| shown.contains("exited with code 3"));
    let screen = drawn(&terminal.end().1);
    assert!(screen[0] == "out" && screen[1].starts_with("error:"), "{screen:?}");
}
