//! Where inputs come from, and that they stream.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::thread;

use crate::support::{LIMIT, lines_of, procpool, run, run_with_input, wait};

#[test]
fn lines_of_a_file_a_pipe_and_arguments_are_inputs_alike() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    fs::write(&list, "3\n\n4\r\n  \n0..2\n5").unwrap();
    let list = list.to_str().unwrap();
    let results = |ended: crate::support::Ended| {
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.json().iter().map(|row| row["result"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    let expected = [9, 16, 0, 1, 25];
    assert_eq!(results(run(&["run", "--format", "json", "--input", list])), expected);
    assert_eq!(results(run(&["run", "--format", "json", "3", "4", "0..2", "5"])), expected);
    let stdin = fs::read(list).unwrap();
    let piped = run_with_input(&["run", "--format", "json", "--input", "-"], &stdin);
    assert_eq!(results(piped), expected);
    let from_file = procpool(&["run", "--format", "json", "--input", "-"])
        .stdin(fs::File::open(list).unwrap())
        .spawn();
    assert_eq!(results(wait(from_file.unwrap())), expected);
}

#[test]
fn files_are_read_from_a_pipe_without_being_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "one two\n").unwrap();
    let list = format!("{}\n", file.display());
    let ended =
        run_with_input(&["run", "--task", "wordcount", "--format", "json"], list.as_bytes());
    assert_eq!(ended.json()[0]["result"]["words"], 2);
    let nothing = run_with_input(&["run", "--task", "wordcount", "--format", "json"], b"");
    assert_eq!((nothing.code, nothing.text()), (Some(0), ""));
}

#[test]
fn a_pipe_that_nobody_writes_to_or_closes_does_not_hang_a_task_with_defaults() {
    let mut child = procpool(&["run", "--quiet"]).stdin(Stdio::piped()).spawn().unwrap();
    let held_open = child.stdin.take();
    let ended = wait(child);
    drop(held_open);
    assert_eq!((ended.code, ended.text().lines().count()), (Some(0), 7), "{ended:?}");
}

#[test]
fn results_of_a_slow_pipe_come_before_its_next_line() {
    for more in [&[][..], &["--unordered"]] {
        let arguments =
            [&["run", "--procs", "2", "--format", "csv", "--input", "-"], more].concat();
        let mut child = procpool(&arguments).stdin(Stdio::piped()).spawn().unwrap();
        let rows = lines_of(child.stdout.take().unwrap());
        let mut stdin = child.stdin.take().unwrap();
        assert!(rows.recv_timeout(LIMIT).unwrap().starts_with("id,pid"));
        for x in 1..=20 {
            writeln!(stdin, "{x}").unwrap();
            // Nothing more is written until the result is there.
            let row = rows.recv_timeout(LIMIT).expect("the result of a line that was written");
            assert!(row.ends_with(&format!(",{x},{},", x * x)), "{row}");
        }
        drop(stdin);
        assert_eq!(wait(child).code, Some(0));
    }
}

#[test]
fn a_long_input_is_never_in_memory_at_once() {
    const LINES: usize = 100_000;
    const LENGTH: usize = 1000;
    const MAX_KIB: u64 = 60 * 1024;
    let arguments = ["run", "--procs", "2", "--quiet", "--format", "csv", "--input", "-"];
    let mut child = procpool(&arguments).stdin(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut stdin = child.stdin.take().unwrap();
    let rows = lines_of(child.stdout.take().unwrap());
    let writer = thread::spawn(move || {
        for x in 0..LINES {
            stdin.write_all(format!("{x:0LENGTH$}\n").as_bytes()).unwrap();
        }
        stdin
    });
    for _ in 0..=LINES {
        rows.recv_timeout(LIMIT).unwrap(); // the header and each result
    }
    // It has handled it all and still waits for more.
    let stdin = writer.join().unwrap();
    let status = fs::read_to_string(status).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let most: u64 = most.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(most < MAX_KIB, "{most} KiB for {} KiB of input", LINES * LENGTH / 1024);
    drop(stdin);
    assert_eq!(wait(child).code, Some(0));
}

#[test]
fn any_name_that_a_file_can_have_is_an_input() {
    let dir = tempfile::tempdir().unwrap();
    let names: [&[u8]; 6] =
        [b"a b", b"c,d", b"\"e\"", b"it's", "ü→".as_bytes(), b"not\xfftext\xfe"];
    let mut list = Vec::new();
    let mut arguments = vec![OsStr::new("run").to_owned(), "--task=wordcount".into()];
    arguments.push("--format=csv".into());
    let mut paths = Vec::new();
    for name in names {
        let path = dir.path().join(OsStr::from_bytes(name));
        fs::write(&path, name).unwrap();
        list.extend_from_slice(path.as_os_str().as_bytes());
        list.push(b'\n');
        arguments.push(path.clone().into());
        paths.push(path);
    }
    let piped = run_with_input(&["run", "--task=wordcount", "--format=csv"], &list);
    for ended in [run(&arguments), piped] {
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let rows = ended.csv();
        assert_eq!(rows.len(), names.len());
        for ((row, name), path) in rows.iter().zip(names).zip(&paths) {
            assert_eq!(&row[5], path.as_os_str().as_bytes());
            assert_eq!(&row[8], name.len().to_string().as_bytes());
        }
    }
    // In a table one name is one line, whatever it would do to a terminal.
    let newline = dir.path().join("two\nlines\x1b[2J");
    fs::write(&newline, "").unwrap();
    let table =
        run(&[OsStr::new("run"), "-q".as_ref(), "--task=sha256".as_ref(), newline.as_ref()]);
    assert_eq!(table.text().lines().count(), 2, "{}", table.text());
    assert!(table.text().contains("two\\nlines\\u{1b}[2J"));
}

#[test]
fn the_size_of_chunks_changes_nothing_that_can_be_seen() {
    for size in ["1", "7", "1000", "100000"] {
        let ended = run(&["run", "--procs=2", "--format=csv", "--chunk-size", size, "0..1000"]);
        let xs: Vec<_> = ended.csv().iter().map(|row| row[6].to_vec()).collect();
        let squares: Vec<_> = (0..1000_u32).map(|x| (x * x).to_string().into_bytes()).collect();
        assert_eq!(xs, squares, "chunks of {size}");
    }
}

#[test]
fn shuffled_inputs_are_all_there_in_another_order() {
    for arguments in
        [&["--count", "200", "--", "echo"][..], &["-N", "7", "--count", "200", "--", "echo"]]
    {
        let shuffled = run(&[&["run", "-k", "--shuf"], arguments].concat());
        let ordered = run(&[&["run", "-k"], arguments].concat());
        let numbers = |text: &str| text.split_whitespace().map(|it| it.parse().unwrap()).collect();
        let mut all: Vec<u32> = numbers(shuffled.text());
        assert_ne!(all, numbers(ordered.text()), "200 numbers are in order once in 10^375 times");
        all.sort_unstable();
        assert_eq!(all, (0..200).collect::<Vec<_>>());
    }
    let task = run(&["run", "--shuf", "--format", "json", "0..100"]).json();
    let mut inputs: Vec<u64> =
        task.iter().map(|row| row["input"].as_str().unwrap().parse().unwrap()).collect();
    inputs.sort_unstable();
    assert_eq!(inputs, (0..100).collect::<Vec<_>>());
}
