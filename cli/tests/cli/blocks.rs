//! `--pipe`: standard input in blocks, each the standard input of a job.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::support::{lines_of, procpool, run, run_with_input, wait};

fn numbers(count: u32) -> Vec<u8> {
    (0..count).map(|number| format!("{number}\n")).collect::<String>().into_bytes()
}

#[test]
fn every_byte_reaches_one_job_and_blocks_end_with_a_record() {
    let input = numbers(200_000);
    for options in [&["--block", "64K"][..], &["--block", "1"], &["-N", "7000"], &[]] {
        if options == ["--block", "1"] {
            // A job for each line.
            let few = numbers(50);
            let ended =
                run_with_input(&[&["run", "-k", "--pipe"], options, &["--", "cat"]].concat(), &few);
            assert_eq!((ended.stdout, ended.code), (few, Some(0)));
            continue;
        }
        let ended = run_with_input(
            &[&["run", "-k", "-p4", "--pipe"], options, &["--", "cat"]].concat(),
            &input,
        );
        assert!(ended.stdout == input && ended.code == Some(0), "{options:?}: {}", ended.stderr);
        let counted = run_with_input(
            &[&["run", "-k", "-p4", "--pipe"], options, &["--", "tail", "-c1"]].concat(),
            &input,
        );
        assert!(counted.stdout.iter().all(|byte| *byte == b'\n'), "{options:?}");
    }
}

#[test]
fn a_file_is_split_like_standard_input_and_an_empty_one_runs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("numbers");
    fs::write(&file, numbers(1000)).unwrap();
    let name = file.to_str().unwrap();
    let ended = run(&["run", "-k", "--pipepart", "-a", name, "-N300", "--", "wc", "-l"]);
    assert_eq!(ended.text(), "300\n300\n300\n100\n");
    let empty = run(&["run", "--pipe", "-a", "/dev/null", "--", "wc", "-l"]);
    assert_eq!((empty.text(), empty.code), ("", Some(0)));
    let gone = run(&["run", "--pipe", "-a", "/nowhere", "--", "wc", "-l"]);
    assert!(gone.code == Some(2) && gone.stderr.contains("/nowhere"), "{gone:?}");
}

#[test]
fn a_job_that_is_tried_again_reads_its_block_again() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("cat; mkdir {}/$1 && exit 1; exit 0", dir.path().display());
    let arguments = [
        "run",
        "-qq",
        "-k",
        "--retries",
        "1",
        "--pipe",
        "-N2",
        "--",
        "sh",
        "-c",
        &script,
        "sh",
        "{#}",
    ];
    let ended = run_with_input(&arguments, &numbers(6));
    assert_eq!((ended.stdout, ended.code), (numbers(6), Some(0)));
    // Also where the worker itself was lost, with the job.
    let script = "test $1 = 2 && kill -KILL $PPID; cat";
    let arguments = [
        "run",
        "-qq",
        "-k",
        "-p1",
        "--retries",
        "0",
        "--pipe",
        "-N2",
        "--",
        "sh",
        "-c",
        script,
        "sh",
        "{#}",
    ];
    let ended = run_with_input(&arguments, &numbers(6));
    assert_eq!((ended.text(), ended.code), ("0\n1\n4\n5\n", Some(1)));
}

#[test]
fn a_job_that_does_not_read_its_block_ends_and_so_does_the_run() {
    let ended = run_with_input(
        &["run", "-k", "--pipe", "--block", "64K", "--", "head", "-n1"],
        &numbers(100_000),
    );
    let firsts = ended.text().lines().count();
    assert!(ended.code == Some(0) && firsts > 5, "{ended:?}");
    // The reader of the output goes away.
    let mut command = procpool(&["run", "--pipe", "--block", "1K", "--", "cat"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || while stdin.write_all(&numbers(1000)).is_ok() {});
    assert_eq!(wait(child).code, Some(0));
    writer.join().unwrap();
}

#[test]
fn blocks_that_are_there_are_worked_on_while_more_may_come() {
    let mut command = procpool(&["run", "--pipe", "-N1", "--", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines = lines_of(child.stdout.take().unwrap());
    for line in ["one", "two", "three"] {
        writeln!(stdin, "{line}").unwrap();
        assert_eq!(lines.recv().unwrap(), line);
    }
    drop(stdin);
    assert_eq!(wait(child).code, Some(0));
}

#[test]
fn what_does_not_go_with_blocks_is_refused_and_said() {
    for (arguments, why) in [
        (&["--pipe", "--", "cat", ":::", "x"][..], "leave out :::"),
        (&["--pipe", "-X", "--", "cat"], "--pack"),
        (&["--pipe", "--journal", "j", "--", "cat"], "--journal"),
        (&["--pipe", "--dry-run", "--", "cat"], "--dry-run"),
        (&["--block", "1M", "--", "cat", ":::", "x"], "--pipe"),
        (&["--pipe", "--block", "0", "--", "cat"], "at least 1 byte"),
        (&["--pipe"], "COMMAND"),
    ] {
        let ended = run(&[&["run"], arguments].concat());
        assert!(ended.code == Some(2) && ended.stderr.contains(why), "{arguments:?}: {ended:?}");
    }
}

#[test]
fn many_workers_and_small_blocks_take_no_more_descriptors_than_there_are() {
    let script = format!(
        "ulimit -n 600; seq 20000 | {} run -q -p 100 --pipe --block 256 -- wc -l",
        env!("CARGO_BIN_EXE_procpool")
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let sum: u32 = lines.lines().map(|line| line.trim().parse::<u32>().unwrap()).sum();
    assert_eq!((sum, output.stderr.as_slice()), (20_000, &b""[..]));
}
