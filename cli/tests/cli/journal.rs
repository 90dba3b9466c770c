//! `--journal`: nothing is lost, and nothing done twice, over a kill and a restart.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Ended, lines_of, procpool, run, signal, wait, wait_until};

fn lines(journal: &Path) -> Vec<Value> {
    let text = fs::read_to_string(journal).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How often each input has succeeded.
fn successes(journal: &Path) -> HashMap<String, u32> {
    let mut successes = HashMap::new();
    for line in lines(journal).iter().filter(|line| line["ok"] == true) {
        *successes.entry(line["input"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    successes
}

fn with_journal(journal: &Path, more: &[&str]) -> Ended {
    run(&[&["run", "--journal", journal.to_str().unwrap()], more].concat())
}

#[test]
fn killed_in_the_middle_and_resumed_each_job_succeeds_exactly_once() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    for task in [
        &["-p", "2", "--count", "600", "--", "true"][..],
        &["-p", "2", "--task", "pi", "--count", "600"],
    ] {
        let _ = fs::remove_file(&journal);
        let arguments =
            [&["run", "--journal", journal.to_str().unwrap(), "--resume"], task].concat();
        for part in [100, 300] {
            let mut child = procpool(&arguments).spawn().unwrap();
            let drained = lines_of(child.stdout.take().unwrap());
            let done = || fs::read(&journal).unwrap_or_default().split(|it| *it == b'\n').count();
            wait_until("some are done", || done() > part);
            signal(child.id(), Signal::KILL);
            wait(child);
            drop(drained);
        }
        // The last line may be torn.
        let before = fs::read(&journal).unwrap().iter().filter(|byte| **byte == b'\n').count();
        let ended = run(&arguments);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let successes = successes(&journal);
        assert!(before < 600 || task.contains(&"pi"), "killed in the middle: {before}");
        assert_eq!(successes.len(), 600, "none is missing");
        assert!(successes.values().all(|times| *times == 1), "each once");
        let again = run(&arguments);
        assert!(again.text().is_empty() || again.text().contains("0 tasks"), "{again:?}");
    }
}

#[test]
fn what_failed_is_tried_again_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    let flag = dir.path().join("flag");
    let script = format!("test $0 != b || test -e {}", flag.display());
    let command = ["-q", "--", "sh", "-c", &script, ":::"];
    let first = with_journal(&journal, &[&command, &["a", "b", "c"][..]].concat());
    assert_eq!((first.code, lines(&journal).len()), (Some(1), 3), "{first:?}");
    let failed = lines(&journal).into_iter().find(|line| line["ok"] == false).unwrap();
    assert_eq!((&failed["input"], &failed["result"]["exit"]), (&"b".into(), &1.into()));
    File::create(flag).unwrap();
    // What has moved or is new changes nothing about what is known.
    let inputs = ["d", "c", "b", "a"];
    let retried =
        with_journal(&journal, &[&["--retry-failed"][..], &command, &inputs[..]].concat());
    assert_eq!((retried.code, lines(&journal).len()), (Some(0), 4), "{retried:?}");
    let resumed = with_journal(&journal, &[&["--resume"][..], &command, &inputs[..]].concat());
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    let expected = ["a", "b", "c", "d"].map(|input| (input.to_owned(), 1));
    assert_eq!(successes(&journal), expected.into());
}

#[test]
fn another_command_or_option_is_another_job() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    let count = |more: &[&str]| {
        let ended = with_journal(&journal, &[&["-q", "--resume"], more].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        lines(&journal).len()
    };
    assert_eq!(count(&["--", "true", ":::", "1", "1"]), 2, "the same job twice counts twice");
    assert_eq!(count(&["--", "true", ":::", "1", "1", "1"]), 3);
    assert_eq!(count(&["--", "true", "x", ":::", "1"]), 4);
    assert_eq!(count(&["--task", "pi", "--points", "10", "1"]), 5);
    assert_eq!(count(&["--task", "pi", "--points", "20", "1"]), 6);
    assert_eq!(count(&["--task", "pi", "--points", "20", "1"]), 6);
}

#[test]
fn a_journal_is_neither_overwritten_nor_written_by_two() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    assert_eq!(with_journal(&journal, &["-q", "1"]).code, Some(0));
    let again = with_journal(&journal, &["-q", "1"]);
    assert!(again.code == Some(2) && again.stderr.contains("--resume"), "{again:?}");
    let held = File::options().append(true).open(&journal).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let beside = with_journal(&journal, &["-q", "--resume", "1"]);
    assert!(beside.code == Some(2) && beside.stderr.contains("another run"), "{beside:?}");
    drop(held);
    // A torn last line is no line.
    let mut file = File::options().append(true).open(&journal).unwrap();
    file.write_all(b"{\"key\":\"12").unwrap();
    assert_eq!(with_journal(&journal, &["-q", "--resume", "1", "2"]).code, Some(0));
    assert_eq!(lines(&journal).len(), 2);
    file.write_all(b"no journal\nat all\n").unwrap();
    let strange = with_journal(&journal, &["-q", "--resume", "1"]);
    assert!(strange.code == Some(2) && strange.stderr.contains("line 3"), "{strange:?}");
    let mut kept = String::new();
    File::open(&journal).unwrap().read_to_string(&mut kept).unwrap();
    assert!(kept.ends_with("at all\n"), "what isn't understood is left alone");
    let nowhere = with_journal(Path::new("/nowhere/journal"), &["1"]);
    assert!(nowhere.code == Some(2) && nowhere.stderr.contains("check --journal"), "{nowhere:?}");
}

#[test]
fn a_file_that_is_no_journal_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    for content in ["note\n", "note", "[1, 2]", "{}\n", "a,b\n1,2\n", "{\"key\": \"x\"}"] {
        for option in ["--resume", "--retry-failed"] {
            fs::write(&file, content).unwrap();
            let ended = with_journal(&file, &[option, "--", "echo", ":::", "a"]);
            assert_eq!((ended.code, ended.text()), (Some(2), ""), "{ended:?}");
            for part in ["line 1", file.to_str().unwrap(), "use another", "--journal"] {
                assert!(ended.stderr.contains(part), "{part}: {ended:?}");
            }
            assert_eq!(fs::read_to_string(&file).unwrap(), content);
        }
    }
    for device in ["/dev/zero", "/dev/null", dir.path().to_str().unwrap()] {
        let ended = with_journal(Path::new(device), &["--resume", "--", "echo", ":::", "a"]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains("regular file"), "{ended:?}");
    }
}

#[test]
fn an_input_list_is_never_overwritten_by_what_the_run_writes() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    let link = dir.path().join("link");
    fs::write(&list, "a\nb\n").unwrap();
    std::os::unix::fs::symlink(&list, &link).unwrap();
    let list = list.to_str().unwrap();
    for option in ["--trace", "--log", "--journal"] {
        for file in [list, link.to_str().unwrap()] {
            let ended = run(&["run", "-i", list, option, file, "--", "echo"]);
            assert_eq!((ended.code, ended.text()), (Some(2), ""), "{ended:?}");
            assert!(ended.stderr.contains(option) && ended.stderr.contains("same"), "{ended:?}");
            assert_eq!(fs::read_to_string(list).unwrap(), "a\nb\n");
        }
    }
    let new = dir.path().join("new");
    let new = new.to_str().unwrap();
    let ended = run(&["run", "--journal", new, "--trace", new, "--", "echo", ":::", "a"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("same file"), "{ended:?}");
}

#[test]
fn what_a_journal_leaves_out_is_said_and_a_dry_run_shows_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    let script = "test $0 != b";
    let tail = ["--", "sh", "-c", script, ":::", "a", "b", "c"];
    assert_eq!(with_journal(&journal, &tail).code, Some(1));
    let before = fs::read(&journal).unwrap();
    for (option, inputs) in [("--resume", "b"), ("--retry-failed", "b")] {
        let dry = with_journal(&journal, &[&["--dry-run", option], &tail[..]].concat());
        assert_eq!(dry.text(), format!("sh -c 'test $0 != b' {inputs}\n"), "{dry:?}");
        assert!(dry.stderr.contains("skipped 2 inputs"), "{dry:?}");
    }
    assert_eq!(fs::read(&journal).unwrap(), before, "a dry run writes nothing");
    let resumed = with_journal(&journal, &[&["--resume"], &tail[..]].concat());
    assert!(resumed.stderr.contains("skipped 2 inputs"), "{resumed:?}");
    // The command was corrected, so that nothing of the journal is among the jobs.
    let other = ["--retry-failed", "--", "sh", "-c", "true", ":::", "a", "b", "c"];
    let retried = with_journal(&journal, &other);
    assert_eq!(retried.code, Some(1), "{retried:?}");
    assert!(retried.stderr.contains("--resume"), "{retried:?}");
}

#[test]
fn the_results_of_a_run_that_was_killed_and_resumed_are_those_of_an_unbroken_run() {
    let dir = tempfile::tempdir().unwrap();
    let [journal, results, whole] =
        ["journal", "results", "whole"].map(|name| dir.path().join(name));
    let task = ["-q", "-p", "2", "--count", "3000", "--chunk-size", "1", "--format", "csv"];
    let unbroken = run(&[&["run", "--results", whole.to_str().unwrap()], &task[..]].concat());
    assert_eq!((unbroken.code, unbroken.text()), (Some(0), ""), "{unbroken:?}");
    let to_file = [
        "--journal",
        journal.to_str().unwrap(),
        "--resume",
        "--results",
        results.to_str().unwrap(),
    ];
    let arguments = [&["run"], &to_file[..], &task[..]].concat();
    for part in [1, 1000] {
        let child = procpool(&arguments).spawn().unwrap();
        let done = || fs::read(&journal).unwrap_or_default().split(|it| *it == b'\n').count();
        wait_until("some are done", || done() > part);
        signal(child.id(), Signal::KILL);
        wait(child);
        // What was written after the journal's last line was not synced, and may be anything.
        let mut file = File::options().append(true).open(&results).unwrap();
        file.write_all(b"torn\0\0\0").unwrap();
    }
    let ended = run(&arguments);
    assert_eq!((ended.code, ended.text()), (Some(0), ""), "{ended:?}");
    let rows = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        let columns = |line: &str| {
            let fields: Vec<_> = line.split(',').map(str::to_owned).collect();
            (fields[0].clone(), fields[5..].to_vec())
        };
        text.lines().map(columns).collect::<Vec<_>>()
    };
    assert_eq!(rows(&results), rows(&whole));
}

#[test]
fn results_that_the_journal_does_not_know_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let [journal, results, other] =
        ["journal", "results", "other"].map(|name| dir.path().join(name));
    let [results, other] = [&results, &other].map(|path| path.to_str().unwrap());
    assert_eq!(with_journal(&journal, &["-q", "--results", results, "1", "2"]).code, Some(0));
    fs::write(other, "mine\n").unwrap();
    let refused = with_journal(&journal, &["--resume", "--results", other, "1", "2", "3"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("--results"), "{refused:?}");
    assert_eq!(fs::read_to_string(other).unwrap(), "mine\n");
    let before = fs::read_to_string(results).unwrap();
    fs::write(results, &before[..10]).unwrap();
    let refused = with_journal(&journal, &["--resume", "--results", results, "1", "2", "3"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("10 bytes"), "{refused:?}");
    fs::write(results, &before).unwrap();
    let resumed = with_journal(&journal, &["-q", "--resume", "--results", results, "1", "2", "3"]);
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    let after = fs::read_to_string(results).unwrap();
    assert!(after.starts_with(&before) && after.lines().count() == before.lines().count() + 1);
    let same = run(&["run", "--results", results, "--trace", results, "1"]);
    assert!(same.code == Some(2) && same.stderr.contains("same file"), "{same:?}");
}
