//! `--trace` and `procpool timeline`: when each worker did what.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{LIMIT, lines_of, procpool, run, signal, wait, wait_until};

fn entries(trace: &Path) -> Vec<Value> {
    serde_json::from_slice(&fs::read(trace).unwrap()).unwrap()
}

#[test]
fn a_trace_has_a_track_for_each_worker_with_its_jobs_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.json");
    let file = trace.to_str().unwrap();
    let script = "test $0 != kill || kill -KILL $PPID; sleep 0.0$0";
    let mut arguments =
        vec!["run", "-q", "-p", "2", "--trace", file, "--", "sh", "-c", script, ":::"];
    arguments.extend(["1", "2", "kill", "3", "no<&>", "4"]);
    assert_eq!(run(&arguments).code, Some(1));
    let entries = entries(&trace);
    let of = |category: &'static str| entries.iter().filter(move |entry| entry["cat"] == category);
    assert_eq!((of("done").count(), of("failed").count()), (4, 2), "{entries:#?}");
    assert!(of("start").count() >= 2 && of("worker").any(|entry| entry["name"] == "lost"));
    for tid in [1, 2] {
        let is_on = |entry: &&Value| entry["tid"] == tid && entry["ph"] == "X";
        let mut slices: Vec<_> = entries
            .iter()
            .filter(is_on)
            .map(|it| (it["ts"].as_f64().unwrap(), it["dur"].as_f64().unwrap()))
            .collect();
        slices.sort_by(|one, other| one.0.total_cmp(&other.0));
        assert!(slices.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0 + 1.0), "{slices:?}");
    }
    let svg = run(&["timeline", file]);
    assert_eq!(svg.code, Some(0), "{svg:?}");
    assert!(svg.text().starts_with("<svg ") && svg.text().ends_with("</svg>\n"), "{svg:?}");
    for what in ["worker 1<", "worker 2<", "no&lt;&amp;&gt;", "SIGKILL", "start of PID"] {
        assert!(svg.text().contains(what), "{what}: {}", svg.text());
    }
    let picture = dir.path().join("picture.svg");
    let written = run(&["timeline", file, "--out", picture.to_str().unwrap()]);
    assert_eq!((written.code, written.text()), (Some(0), ""));
    assert_eq!(fs::read_to_string(picture).unwrap(), svg.text());
}

#[test]
fn tasks_have_their_slices_too() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.json");
    let arguments = ["run", "-q", "-p", "2", "--trace", trace.to_str().unwrap(), "0..5000", "x"];
    assert_eq!(run(&arguments).code, Some(1));
    let entries = entries(&trace);
    let count = |category| entries.iter().filter(|entry| entry["cat"] == category).count();
    assert_eq!((count("done"), count("failed")), (5000, 1));
    let svg = run(&["timeline", trace.to_str().unwrap()]);
    assert!(svg.text().len() < 400_000, "what is too narrow to be seen is drawn together");
}

#[test]
fn a_trace_is_whole_whatever_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    for ending in [Signal::KILL, Signal::INT] {
        let trace = dir.path().join(format!("{ending:?}.json"));
        let arguments = [
            "run",
            "-p",
            "2",
            "--trace",
            trace.to_str().unwrap(),
            "--count",
            "1000000",
            "--",
            "echo",
        ];
        let mut child = procpool(&arguments).spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        lines.recv_timeout(LIMIT).unwrap();
        wait_until("there are jobs", || fs::metadata(&trace).is_ok_and(|it| it.len() > 5000));
        signal(child.id(), ending);
        wait(child);
        assert!(entries(&trace).iter().any(|entry| entry["cat"] == "done"));
    }
}

#[test]
fn what_is_no_trace_is_refused() {
    let ended = run(&["timeline", "/etc/passwd"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("run --trace"), "{ended:?}");
    let ended = run(&["run", "--trace", "/nowhere/trace"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("check --trace"), "{ended:?}");
}

#[test]
fn each_attempt_has_its_slice_also_one_that_was_lost_with_its_worker() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.json");
    let file = trace.to_str().unwrap();
    // Of a built-in task, all attempts that fail are lost with the worker; of a command, that is so
    // where the worker is killed, and the others are the worker's own.
    let task = ["run", "-q", "-p", "1", "--trace", file, "--retries", "2", "--timeout", "100ms"];
    let task = [&task[..], &["--task", "pi", "--points", "1000000000000000", "7"]].concat();
    let script = format!(
        "cd {}; echo >> count; sleep 0.1; case $(wc -l < count) in 1) kill -KILL $PPID; sleep 9;; \
         2) exit 3;; esac",
        dir.path().display()
    );
    let command = ["run", "-q", "-p", "1", "--trace", file, "--retries", "2", "--", "sh", "-c"];
    let command = [&command[..], &[&script, ":::", "7"]].concat();
    for (arguments, code) in [(&task, 1), (&command, 0)] {
        assert_eq!(run(arguments).code, Some(code), "{arguments:?}");
        let entries = entries(&trace);
        let is_attempt = |entry: &&Value| entry["cat"] == "failed" || entry["cat"] == "done";
        let mut slices: Vec<_> = entries.iter().filter(is_attempt).collect();
        slices.sort_by_key(|slice| slice["args"]["attempt"].as_u64());
        let attempts: Vec<_> = slices.iter().map(|slice| &slice["args"]["attempt"]).collect();
        assert_eq!(attempts, [1, 2, 3], "{entries:#?}");
        let end = |slice: &Value| slice["ts"].as_f64().unwrap() + slice["dur"].as_f64().unwrap();
        assert!(slices.windows(2).all(|two| end(two[0]) <= two[1]["ts"].as_f64().unwrap() + 1.0));
        for slice in slices {
            assert!(slice["name"] == "7" && slice["args"]["id"] == 1, "{slice}");
            assert!(slice["dur"].as_f64() > Some(90e3), "as long as it ran: {slice}");
        }
    }
}
