//! Options of commands that GNU parallel has too: where and how jobs run, and what is said about them.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::run;

#[test]
fn a_run_halts_after_so_many_successes_and_exits_with_0() {
    let script = "test $0 -lt 3 && exit 1; test $0 -eq 3 || sleep 600";
    let begun = Instant::now();
    let ended = run(&[
        "run",
        "-p",
        "2",
        "--halt",
        "now,success=1",
        "--count",
        "9",
        "--",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let said = |text| ended.stderr.contains(text);
    assert!(said("halted: 1 of ") && said(" jobs succeeded; "), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(60), "the others were killed");
    let done = run(&["run", "-p1", "--halt", "soon,done=3", "--count", "9", "--", "echo"]);
    assert_eq!(done.code, Some(0));
    assert!(done.text().starts_with("0\n1\n2\n") && done.text().lines().count() < 9, "{done:?}");
    let never = run(&["run", "-p1", "-qq", "--halt", "never", "--count", "5", "--", "false"]);
    assert_eq!((never.code, never.stderr.as_str()), (Some(1), ""));
}

#[test]
fn twice_quiet_keeps_what_jobs_print_and_says_nothing_itself() {
    let script = ["--", "sh", "-c", "echo out; echo err >&2; exit 3", ":::", "x"];
    let once = run(&[&["run", "-q"], &script[..]].concat());
    assert_eq!((once.text(), once.stderr.lines().count()), ("out\n", 2), "{once:?}");
    let twice = run(&[&["run", "-qq"], &script[..]].concat());
    assert_eq!((twice.text(), twice.stderr.as_str()), ("out\n", "err\n"), "{twice:?}");
}

#[test]
fn lines_have_the_text_that_is_given_with_its_replacement_strings() {
    for buffered in [&["-k"][..], &["--line-buffer", "-p1"]] {
        let arguments = [&["run", "--tagstring", "<{/.}:{#}>"], buffered].concat();
        let rest = ["--", "sh", "-c", "echo a; echo b >&2", ":::", "/x/one.txt", "/x/two.txt"];
        let ended = run(&[&arguments[..], &rest].concat());
        assert_eq!(ended.text(), "<one:1>\ta\n<two:2>\ta\n", "{ended:?}");
        assert_eq!(ended.stderr, "<one:1>\tb\n<two:2>\tb\n", "{ended:?}");
    }
    let both = run(&["run", "--tag", "--tagstring", "x", "--", "echo", ":::", "1"]);
    assert_eq!(both.code, Some(2));
}

#[test]
fn commands_are_printed_as_they_could_be_typed() {
    let expected = "echo 'a b'\necho c\n";
    for option in [&["-k"][..], &["--line-buffer", "-p1"], &["--output", "null", "-p1"]] {
        let ended =
            run(&[&["run", "--verbose"], option, &["--", "echo", ":::", "a b", "c"]].concat());
        assert_eq!(ended.stderr, expected, "{option:?}: {ended:?}");
    }
    let inherit = ["--output", "inherit", "-p1"];
    let ended = run(&[&["run", "--verbose"], &inherit[..], &["--", "echo", ":::", "a b"]].concat());
    assert_eq!(ended.stderr, "echo 'a b'\n");
}

#[test]
fn jobs_run_in_the_directory_that_is_given_and_their_programs_are_found_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    let script = path.join("here");
    fs::write(&script, "#!/bin/sh\npwd\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for command in [&["pwd"][..], &["./here"]] {
        let tail = [&["--"], command, &[":::", "-P"]].concat();
        let ended = run(&[&["run", "--wd", path.to_str().unwrap()], &tail[..]].concat());
        assert_eq!(ended.text(), format!("{}\n", path.display()), "{ended:?}");
    }
    let gone = run(&["run", "--wd", "/nowhere", "--", "pwd", ":::", "-P"]);
    assert_eq!(gone.code, Some(2));
    assert!(gone.stderr.contains("--wd"), "{gone:?}");
}

#[test]
fn a_shell_that_is_named_runs_the_line_with_its_own_syntax() {
    let line = "[[ {} == a* ]] && echo \"${BASH_VERSION:+bash} yes\"";
    let ended = run(&["run", "-qq", "-k", "--shell=/bin/bash", "--", line, ":::", "ab", "b"]);
    assert_eq!(ended.text(), "bash yes\n", "{ended:?}");
    // A function that bash exports is there.
    let script = format!(
        "greet() {{ echo \"hello $1\"; }}; export -f greet; {} run --shell=bash -- greet {{}} ::: you",
        env!("CARGO_BIN_EXE_procpool")
    );
    let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello you\n", "{output:?}");
    let gone = run(&["run", "--shell=/no/such", "--", "x", ":::", "1"]);
    assert!(gone.stderr.contains("/no/such") && gone.code == Some(127), "{gone:?}");
}

#[test]
fn a_job_over_its_time_gets_the_signals_that_are_given_in_turn() {
    let script =
        "trap 'echo int' INT; trap 'echo term' TERM; echo ready; while :; do sleep .01; done";
    let ended = run(&[
        "run",
        "-qq",
        "--timeout",
        "300ms",
        "--termseq",
        "INT,300,TERM,300,KILL",
        "--",
        "sh",
        "-c",
        script,
        ":::",
        "x",
    ]);
    assert_eq!((ended.text(), ended.code), ("ready\nint\nterm\n", Some(1)), "{ended:?}");
    let endless = run(&["run", "--termseq", "TERM,100", "--", "true", ":::", "x"]);
    assert!(endless.code == Some(2) && endless.stderr.contains("KILL"), "{endless:?}");
}
