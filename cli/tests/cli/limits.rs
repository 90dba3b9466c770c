//! What one input may take, what becomes of what tasks print, and the log.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use crate::support::{Ended, children, lines_of, procpool, run, signal, wait, wait_until};

/// Points that no machine gets through.
const ENDLESS: &str = "1000000000000000";

#[test]
fn an_input_that_takes_too_long_fails_alone() {
    let mut arguments = vec!["run", "--procs", "2", "--timeout", "300ms", "--format", "json"];
    arguments.extend(["--task", "sqrt", "4", "9", "0..50"]);
    let quick = run(&arguments);
    assert_eq!(quick.code, Some(0), "{quick:?}");
    let slow = run(&["run", "--task", "pi", "--points", ENDLESS, "--timeout", "0.2", "1", "2"]);
    assert_eq!(slow.code, Some(1), "{slow:?}");
    assert_eq!(slow.text().matches("after its time limit of 200ms").count(), 2, "{slow:?}");
}

#[test]
fn gpus_are_shared_out_among_the_workers_one_each_in_turn() {
    for (gpus, procs, expected) in [
        ("2,5", "0", vec!["2", "5"]),
        ("2,5", "3", vec!["2", "2", "5"]),
        ("2:2,5", "0", vec!["2", "2", "5"]),
    ] {
        let arguments = ["run", "--gpus", gpus, "--procs", procs, "--task", "pi"];
        let mut command = procpool(&arguments);
        command.args(["--points", ENDLESS, "1", "2", "3"]);
        let child = command.spawn().unwrap();
        let devices = || {
            let gpu = |pid| {
                let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
                let environ = String::from_utf8(environ).unwrap();
                let value = |name| environ.split('\0').find_map(|v| v.strip_prefix(name));
                assert_eq!(value("CUDA_VISIBLE_DEVICES="), value("HIP_VISIBLE_DEVICES="));
                value("CUDA_VISIBLE_DEVICES=").map(str::to_owned)
            };
            let mut devices: Vec<_> = children(child.id()).into_iter().filter_map(gpu).collect();
            devices.sort();
            devices
        };
        wait_until("each worker has its GPU", || devices() == expected);
        signal(child.id(), rustix::process::Signal::KILL);
        wait(child);
    }
    assert_eq!(run(&["run", "--gpus", "0,", "4"]).code, Some(2), "an empty one is none");
    let wrong = run(&["run", "--gpus", "0:x", "4"]);
    assert!(wrong.stderr.contains("'x' is no number of workers"), "{wrong:?}");
    let show = "echo $CUDA_VISIBLE_DEVICES";
    let command = run(&["run", "--gpus", "7", "--", "sh", "-c", show, ":::", "1", "2"]);
    assert_eq!((command.text(), command.code), ("7\n7\n", Some(0)), "{command:?}");
}

#[test]
fn an_input_is_tried_again_and_the_attempt_is_shown() {
    let mut arguments = vec!["run", "--task", "pi", "--points", ENDLESS, "--timeout", "100ms"];
    arguments.extend(["--retries", "2", "7"]);
    let table = run(&arguments);
    assert_eq!(table.code, Some(1));
    assert!(table.text().contains("(attempt 3)"), "{table:?}");
    arguments.extend(["--format", "json"]);
    assert_eq!(run(&arguments).json()[0]["attempt"], 3);
    assert!(!run(&["run"]).text().contains("attempt"), "the first one goes without saying");
}

#[test]
fn an_input_that_takes_too_much_memory_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let picture = |name: &str, side| {
        let path = dir.path().join(name);
        image::RgbImage::new(side, side).save(&path).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let (small, large) = (picture("small.png", 10), picture("large.png", 8000));
    let out = dir.path().join("out").into_os_string().into_string().unwrap();
    let mut arguments = vec!["run", "--procs", "2", "--task", "image", "--out", &out];
    arguments.extend(["--format", "json", "--memory", "64M", &small, &large, &small]);
    let ended = run(&arguments);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let rows = ended.json();
    assert!(rows[1]["error"].as_str().unwrap().contains("ran out of memory"), "{}", rows[1]);
    assert!(rows[0].get("result").is_some(), "{}", rows[0]);
}

#[test]
fn each_input_of_a_fresh_run_has_a_new_process() {
    let rows = run(&["run", "--procs", "2", "--fresh", "--format", "json", "0..50"]).json();
    let pids: HashSet<u64> = rows.iter().map(|row| row["pid"].as_u64().unwrap()).collect();
    assert_eq!((rows.len(), pids.len()), (50, 50));
    let of_a_command = run(&["run", "--fresh", "--", "true", ":::", "1"]);
    assert_eq!(of_a_command.code, Some(2));
    assert!(of_a_command.stderr.contains("--fresh is for tasks"), "{of_a_command:?}");
}

#[test]
fn a_worker_is_replaced_after_so_many_inputs() {
    let arguments = ["run", "--procs", "2", "--max-tasks", "5", "--format", "json", "0..50"];
    let rows = run(&arguments).json();
    let pids: HashSet<u64> = rows.iter().map(|row| row["pid"].as_u64().unwrap()).collect();
    assert!((rows.len(), pids.len() >= 10) == (50, true), "{pids:?}");
}

#[test]
fn workers_are_as_nice_as_they_are_told_to_be() {
    let mut arguments = vec!["run", "--procs", "1", "--nice", "7", "--log", "-"];
    arguments.extend(["--task", "pi", "--points", ENDLESS, "1"]);
    let mut child = procpool(&arguments).spawn().unwrap();
    let log = lines_of(child.stderr.take().unwrap());
    let ready = log.iter().find(|line| line.ends_with("ready")).unwrap();
    let pid: u32 = ready.split("PID ").nth(1).unwrap().split(')').next().unwrap().parse().unwrap();
    wait_until("it is nice", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().split(' ').nth(16) == Some("7")
    });
    signal(child.id(), rustix::process::Signal::KILL);
    wait(child);
}

/// Has a plot written to where standard output goes, in the worker: as good as printing it.
fn printing(dir: &Path, more: &[&str]) -> Ended {
    let out = dir.join("out");
    let _ = fs::remove_dir_all(&out);
    fs::create_dir(&out).unwrap();
    symlink("/dev/stdout", out.join(".plot_3.svg.part")).unwrap();
    let out = out.into_os_string().into_string().unwrap();
    let arguments = [
        "run", "--procs", "2", "--quiet", "--task", "plot", "--to", "svg", "--out", &out, "3", "4",
    ];
    run(&[&arguments, more].concat())
}

#[test]
fn what_a_task_prints_is_shown_with_its_result() {
    let dir = tempfile::tempdir().unwrap();
    let table = printing(dir.path(), &["--output", "capture"]);
    let lines: Vec<&str> = table.text().lines().collect();
    assert!(lines[2].contains("│ <svg") && lines.last().unwrap().contains(" 4 "), "{table:?}");

    let rows = printing(dir.path(), &["--output", "capture", "--format", "json"]).json();
    assert!(rows[0]["output"].as_str().unwrap().ends_with("</svg>\n"), "{}", rows[0]);
    assert_eq!(rows[1]["output"], "");

    let csv = printing(dir.path(), &["--output", "capture", "--format", "csv"]);
    assert!(csv.text().lines().next().unwrap().ends_with(",error,output"), "{csv:?}");
    let rows = csv.csv();
    assert!(rows[0].iter().next_back().unwrap().starts_with(b"<svg"));
    assert_eq!(rows[1].iter().next_back(), Some(&b""[..]));
}

#[test]
fn what_a_task_prints_goes_where_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let inherited = printing(dir.path(), &["--format", "json"]);
    assert!(inherited.text().contains("<svg"), "{inherited:?}");
    let nothing = printing(dir.path(), &["--format", "json", "--output", "null"]);
    assert_eq!(nothing.json().len(), 2);
    assert!(nothing.json()[0].get("output").is_none(), "{nothing:?}");
}

#[test]
fn the_log_has_a_line_of_json_for_each_event() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log").into_os_string().into_string().unwrap();
    let ended = run(&["run", "--procs", "2", "--log", &file, "0..20", "x"]);
    assert_eq!(ended.code, Some(1));
    let log = fs::read_to_string(file).unwrap();
    let events: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    assert_eq!((of("spawned").len(), of("drained").len()), (2, 1), "{log}");
    let finished = of("finished");
    let ids: HashSet<u64> = finished.iter().map(|event| event["id"].as_u64().unwrap()).collect();
    assert_eq!((finished.len(), ids.len()), (21, 21), "{log}");
    assert!(finished.iter().all(|event| event["elapsed"].as_f64() >= Some(0.0)), "{log}");
    assert!(events.iter().all(|event| event["time"].as_f64() > Some(0.0)), "in seconds: {log}");
}

#[test]
fn the_log_for_people_goes_to_standard_error() {
    let ended = run(&["run", "--procs", "1", "--log", "-", "3"]);
    assert_eq!(ended.code, Some(0));
    for what in ["spawned", "ready", "worker 1 (PID ", "finished task 1", "drained"] {
        assert!(ended.stderr.contains(what), "{what}: {}", ended.stderr);
    }
}

#[test]
fn the_log_has_what_tasks_log_and_how_far_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let picture = dir.path().join("small.png").into_os_string().into_string().unwrap();
    image::RgbImage::new(3, 2).save(&picture).unwrap();
    let out = dir.path().join("out").into_os_string().into_string().unwrap();
    let arguments = ["run", "--task", "image", "--out", &out, "--log", "-", &picture];
    let ended = run(&arguments);
    let logged = ended.stderr.lines().find(|line| line.contains("task 1: DEBUG")).unwrap();
    assert!(logged.contains("small.png") && logged.contains("width=3 height=2"), "{logged}");
    let bytes = dir.path().join("bytes").into_os_string().into_string().unwrap();
    fs::write(&bytes, vec![0; 1 << 20]).unwrap();
    let file = dir.path().join("log").into_os_string().into_string().unwrap();
    run(&["run", "--task", "sha256", "--log", &file, &bytes]);
    let log = fs::read_to_string(file).unwrap();
    let events = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let said = events.into_iter().find(|event| event["event"] == "progressed").unwrap();
    assert_eq!((&said["total"], &said["id"]), (&(1 << 20).into(), &1.into()), "{said}");
}

#[test]
fn an_input_that_is_stopped_says_how_far_it_was() {
    let mut arguments = vec!["run", "--task", "pi", "--points", "100000000000", "--timeout", "0.5"];
    arguments.extend(["--format", "json", "1"]);
    let error = run(&arguments).json()[0]["error"].as_str().unwrap().to_owned();
    assert!(error.contains(", at ") && error.ends_with(" of 100000000000"), "{error}");
}

#[test]
fn a_log_that_cannot_be_written_is_said() {
    let nowhere = run(&["run", "--log", "/nowhere/log"]);
    assert_eq!((nowhere.code, nowhere.stdout.len()), (Some(2), 0), "{nowhere:?}");
    assert!(nowhere.stderr.contains("check --log"), "{nowhere:?}");
    let full = run(&["run", "--log", "/dev/full"]);
    assert_eq!(full.code, Some(1), "the rows are there all the same: {full:?}");
    assert!(full.text().contains("6 tasks in") && full.stderr.contains("failed to write the log"));
}

#[test]
fn limits_that_make_no_sense_are_exit_code_2_with_the_remedy() {
    let cases: [(&[&str], &str); 7] = [
        (&["--timeout", "soon"], "500ms"),
        (&["--timeout", "0"], "leave it out"),
        (&["--memory", "5"], "at least 16M"),
        (&["--memory", "much"], "200M"),
        (&["--max-tasks", "0"], "--max-tasks"),
        (&["--nice", "20"], "-20..=19"),
        (&["--output", "file"], "possible values: inherit"),
    ];
    for (arguments, remedy) in cases {
        let ended = run(&[&["run"], arguments].concat());
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(remedy), "{arguments:?}: {}", ended.stderr);
    }
}
