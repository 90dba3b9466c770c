//! Exit codes, errors, closed pipes, Ctrl-C.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use rustix::process::Signal;

use crate::support::{LIMIT, lines_of, procpool, run, run_with_input, signal, wait};

#[test]
fn an_input_that_fails_is_a_row_and_exit_code_1_and_the_others_are_done() {
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().join("there");
    fs::write(&there, "abc").unwrap();
    let (there, missing) = (there.to_str().unwrap(), dir.path().join("missing"));
    let missing = missing.to_str().unwrap();
    let inputs = [there, missing, dir.path().to_str().unwrap(), there];
    let arguments = [&["run", "--task", "sha256", "--format", "json"], &inputs[..]].concat();
    let ended = run(&arguments);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let rows = ended.json();
    for row in [&rows[0], &rows[3]] {
        assert!(row["result"].as_str().unwrap().starts_with("ba7816bf"), "{row}");
    }
    let error = rows[1]["error"].as_str().unwrap();
    assert!(error.contains(missing) && error.contains("check the name"), "{error}");
    assert!(rows[2]["error"].as_str().unwrap().contains("find DIR -type f"), "{}", rows[2]);
    assert!(rows.iter().all(|row| row["pid"].as_u64() > Some(0)), "who failed is known too");
}

#[test]
fn a_start_method_that_is_none_is_refused_with_those_that_are() {
    for (method, code) in [("template", 0), ("spawn", 0), ("", 0), ("tempalte", 1)] {
        let mut command = procpool(&["run", "3"]);
        command.env("PROCPOOL_START_METHOD", method);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let ended = wait(command.spawn().unwrap());
        assert_eq!(ended.code, Some(code), "{method}: {ended:?}");
        let is_named =
            ended.stderr.contains("tempalte") && ended.stderr.contains("spawn or template");
        assert_eq!(is_named, code != 0, "{ended:?}");
    }
}

#[test]
fn the_summary_counts_what_failed() {
    let ended = run(&["run", "1", "two", "3", "four"]);
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.text().matches("error: ").count(), 2, "{}", ended.text());
    let total = ended.text().lines().find(|line| line.contains("total")).unwrap();
    assert_eq!(total.split_whitespace().collect::<Vec<_>>()[..3], ["total", "4", "2"]);
}

#[test]
fn arguments_that_make_no_sense_are_exit_code_2_with_the_remedy() {
    let cases: [(&[&str], &str); 12] = [
        (&[], "Usage"),
        (&["walk"], "unrecognized subcommand"),
        (&["run", "--task", "nothing"], "possible values: square"),
        (&["run", "--procs", "many"], "--procs"),
        (&["run", "--chunk-size", "0"], "--chunk-size"),
        (&["run", "--format", "xml"], "possible values: plain"),
        (&["run", "--task", "plot"], "--out DIR"),
        (
            &["run", "--task", "plot", "--out", "d", "--to", "jpeg"],
            "--to pdf or --to png or --to svg",
        ),
        (&["run", "--task", "sha256", "--points", "3", "x"], "leave it out"),
        (&["run", "--input", "/nowhere/list"], "check --input"),
        (&["run", "--input", "list", "5"], "cannot be used with"),
        (&["run", "--count", "5", "5"], "cannot be used with"),
    ];
    for (arguments, remedy) in cases {
        let ended = run(arguments);
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(remedy), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stdout.is_empty(), "{arguments:?}: {ended:?}");
    }
}

#[test]
fn a_pool_that_cannot_be_made_is_exit_code_1_with_its_reason() {
    let ended = run(&["run", "--procs", "1000000", "0..2000000"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.starts_with("error: ") && ended.stderr.contains("1000000"), "{ended:?}");
}

#[test]
fn a_closed_pipe_is_a_clean_end() {
    for format in ["table", "json", "csv"] {
        let arguments = ["run", "--procs", "2", "--format", format, "0..100000000"];
        let mut child = procpool(&arguments).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert!(!first.is_empty());
        let ended = wait(child); // the reader is gone, as after `| head -1`
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{format}");
    }
}

#[test]
fn a_closed_pipe_ends_a_run_that_waits_for_its_input_too() {
    let arguments = ["run", "--procs", "2", "--format", "csv", "--input", "-"];
    let mut child = procpool(&arguments).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut rows = BufReader::new(child.stdout.take().unwrap());
    writeln!(stdin, "1").unwrap();
    rows.read_line(&mut String::new()).unwrap();
    rows.read_line(&mut String::new()).unwrap();
    drop(rows);
    writeln!(stdin, "2").unwrap(); // its result meets the closed pipe; the input stays open
    assert_eq!(wait(child).code, Some(0));
    drop(stdin);
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let ended = wait(procpool(&["run"]).stdout(full).spawn().unwrap());
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("failed to write the results"), "{}", ended.stderr);
}

#[test]
fn a_closed_standard_error_harms_nothing() {
    let mut command = procpool(&["run", "--task", "square", "--format", "json", "x"]);
    let mut child = command.spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(wait(child).code, Some(1));
}

#[test]
fn ctrl_c_ends_a_run_with_exit_code_130_one_line_and_the_rows_that_are_done() {
    let arguments =
        ["run", "--summary", "--procs", "2", "--task", "pi", "--format", "csv", "0..100000000"];
    let mut child = procpool(&arguments).spawn().unwrap();
    let rows = lines_of(child.stdout.take().unwrap());
    for _ in 0..3 {
        rows.recv_timeout(LIMIT).unwrap();
    }
    signal(child.id(), Signal::INT);
    let ended = wait(child);
    assert_eq!(ended.code, Some(130), "{ended:?}");
    let said: Vec<_> = ended.stderr.lines().filter(|line| line.contains("interrupted")).collect();
    assert_eq!(said.len(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("tasks in"), "with a summary: {}", ended.stderr);
    assert!(rows.iter().all(|row| row.ends_with(',')), "no row is torn or an error");
}

#[test]
fn ctrl_c_ends_a_run_that_waits_for_its_input() {
    let arguments = ["run", "--procs", "2", "--format", "csv", "--input", "-"];
    let mut child = procpool(&arguments).stdin(Stdio::piped()).spawn().unwrap();
    let held_open = child.stdin.take().unwrap();
    let rows = lines_of(child.stdout.take().unwrap());
    rows.recv_timeout(LIMIT).unwrap(); // the header: it's running
    signal(child.id(), Signal::INT);
    assert_eq!(wait(child).code, Some(130));
    drop(held_open);
}

#[test]
fn an_input_list_that_breaks_off_is_said_and_exit_code_1() {
    // A directory can be opened as standard input, and fails when it's read.
    let directory = File::open("/").unwrap();
    let command = &mut procpool(&["run", "--format", "csv", "--input", "-"]);
    let ended = wait(command.stdin(directory).spawn().unwrap());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("failed to read standard input"), "{}", ended.stderr);
}

#[test]
fn numbers_may_be_negative_and_ranges_backwards_are_refused_by_name() {
    let ended = run(&["run", "--format", "json", "-3", "5..0"]);
    assert_eq!(ended.code, Some(1));
    let rows = ended.json();
    assert_eq!(rows[0]["result"], 9);
    assert!(rows[1]["error"].as_str().unwrap().contains("\"5..0\""), "{}", rows[1]);
    let nothing = run_with_input(&["run", "--format", "json", "7..7"], b"");
    assert_eq!((nothing.code, nothing.text()), (Some(0), ""));
}
