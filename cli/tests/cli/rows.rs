//! What is shown of each result, in each format, and the summary.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{LIMIT, lines_of, procpool, run, wait};

#[test]
fn without_any_argument_it_shows_six_squares_of_six_processes_in_order() {
    let ended = run(&["run", "--procs", "6"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines: Vec<Vec<&str>> =
        ended.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["id", "pid", "time", "x", "result"]);
    let mut pids = HashSet::new();
    for x in 0..6_usize {
        let line = &lines[x + 1];
        assert_eq!(line[0], (x + 1).to_string());
        pids.insert(line[1].parse::<u32>().unwrap());
        assert_eq!(line[line.len() - 2..], [x.to_string(), (x * x).to_string()]);
    }
    assert_eq!(pids.len(), 6, "{}", ended.text());
    assert!(ended.text().contains("times as fast as a serial run"), "{}", ended.text());
}

#[test]
fn without_any_argument_the_order_of_completion_is_another_and_one_process_does_all() {
    let xs = |arguments: &[&str]| -> (Vec<String>, HashSet<u64>) {
        let ended = run(&[&["run", "--format", "json"], arguments].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let rows = ended.json();
        let pids = rows.iter().map(|row| row["pid"].as_u64().unwrap()).collect();
        (rows.iter().map(|row| row["input"].as_str().unwrap().to_owned()).collect(), pids)
    };
    let (unordered, pids) = xs(&["--procs", "6", "--unordered"]);
    // All six start at once, and the last is done long before the first.
    let place = |x: &str| unordered.iter().position(|it| it == x).unwrap();
    assert!(place("5") < place("0"), "{unordered:?}");
    assert_eq!(pids.len(), 6);
    let (serial, pids) = xs(&["--procs", "1"]);
    assert_eq!(serial, ["0", "1", "2", "3", "4", "5"]);
    assert_eq!(pids.len(), 1);
}

#[test]
fn a_run_of_little_work_claims_no_speed_up() {
    let ended = run(&["run", "--procs", "4", "0..6"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.text().contains("times as fast"), "of so little work: {}", ended.text());
}

#[test]
fn columns_stand_under_their_headings() {
    let ended = run(&["run", "--quiet", "0..12", "-7"]);
    let widths: HashSet<usize> = ended.text().lines().map(|line| line.chars().count()).collect();
    assert_eq!(widths.len(), 1, "{}", ended.text());
}

#[test]
fn each_row_has_the_pid_of_one_of_the_workers() {
    let arguments =
        ["run", "--summary", "-p4", "--task", "pi", "--count", "64", "--format", "json"];
    let ended = run(&arguments);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let rows = ended.json();
    let pids: HashSet<u64> = rows.iter().map(|row| row["pid"].as_u64().unwrap()).collect();
    assert!((1..=4).contains(&pids.len()), "{pids:?}");
    for pid in pids {
        assert!(ended.stderr.contains(&pid.to_string()), "the summary knows {pid}");
    }
}

#[test]
fn rows_come_in_the_order_of_the_inputs() {
    let ended = run(&["run", "--procs", "3", "--format", "csv", "0..5000"]);
    for (x, row) in ended.csv().iter().enumerate() {
        assert_eq!(&row[0], (x + 1).to_string().as_bytes());
        assert_eq!(&row[5], x.to_string().as_bytes());
        assert_eq!(&row[6], (x * x).to_string().as_bytes());
    }
    assert_eq!(ended.csv().len(), 5000);
}

#[test]
fn unordered_rows_come_each_exactly_once() {
    let ended = run(&["run", "--procs", "3", "--format", "csv", "--unordered", "0..5000"]);
    let mut seen = HashSet::new();
    for row in &ended.csv() {
        let x: u64 = std::str::from_utf8(&row[5]).unwrap().parse().unwrap();
        assert_eq!(&row[0], (x + 1).to_string().as_bytes());
        assert_eq!(&row[6], (x * x).to_string().as_bytes());
        assert!(seen.insert(x));
    }
    assert_eq!(seen.len(), 5000);
}

#[test]
fn a_result_has_an_id_a_pid_a_time_and_an_attempt() {
    let ended = run(&["run", "--procs", "1", "--format", "json", "3"]);
    let rows = ended.json();
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!((&row["id"], &row["worker"], &row["attempt"]), (&1.into(), &1.into(), &1.into()));
    assert_eq!((&row["input"], &row["result"]), (&"3".into(), &9.into()));
    assert!(row["seconds"].as_f64().unwrap() >= 0.0);
}

#[test]
fn the_summary_belongs_to_the_table_and_not_between_rows_for_a_program() {
    let table = run(&["run", "--procs", "2"]);
    assert!(table.text().contains("6 tasks in") && table.stderr.is_empty(), "{table:?}");
    assert!(table.text().contains("memory"));
    for format in ["json", "csv"] {
        let rows = run(&["run", "--procs", "2", "--summary", "--format", format]);
        assert!(rows.stderr.contains("6 tasks in"), "{rows:?}");
        assert!(!rows.text().contains("tasks"), "{rows:?}");
        // It is left out where standard error is no terminal.
        let rows = run(&["run", "--procs", "2", "--format", format]);
        assert!(rows.stderr.is_empty(), "{rows:?}");
    }
}

#[test]
fn quiet_leaves_the_rows_alone() {
    for (format, lines) in [("table", 7), ("json", 6), ("csv", 7)] {
        let ended = run(&["run", "--procs", "2", "--quiet", "--format", format]);
        assert_eq!(ended.text().lines().count(), lines, "{ended:?}");
        assert!(ended.stderr.is_empty(), "{ended:?}");
    }
}

#[test]
fn the_number_of_workers_is_chosen_by_option_then_by_environment() {
    let workers = |arguments: &[&str], environment: &str| {
        let mut command = procpool(arguments);
        let ended = wait(command.env("PROCPOOL_PROCS", environment).spawn().unwrap());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        // Between the headings and the total, a line for each worker.
        let summary = ended.text().lines().skip_while(|line| !line.contains("memory"));
        summary.skip(1).take_while(|line| !line.contains("total")).count()
    };
    assert_eq!(workers(&["run"], "3"), 3);
    assert_eq!(workers(&["run", "--procs", "2"], "3"), 2);
    assert!(workers(&["run"], "") >= 1);
}

#[test]
fn the_list_of_tasks_names_them_all_in_every_format() {
    let names = ["square", "sqrt", "pi", "parzen", "sha256", "wordcount", "image", "plot"];
    let json = run(&["tasks", "--format", "json"]).json();
    assert_eq!(json.iter().map(|task| task["name"].as_str().unwrap()).collect::<Vec<_>>(), names);
    assert_eq!(run(&["tasks", "--format", "csv"]).csv().len(), names.len());
    let table = run(&["tasks"]);
    assert!(names.iter().all(|name| table.text().contains(name)), "{}", table.text());
}

#[test]
fn help_shows_examples_and_exit_codes() {
    let help = run(&["run", "--help"]);
    assert_eq!(help.code, Some(0));
    for part in ["Examples:", "Exit codes:", "--procs", "[env: PROCPOOL_PROCS=]"] {
        assert!(help.text().contains(part), "{part}");
    }
    assert_eq!(run(&["--version"]).text(), concat!("procpool ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn inputs_and_workers_have_the_same_numbers_from_1_wherever_they_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    let [journal, log, trace] = ["journal", "log", "trace"].map(path);
    let command = ["--", "sh", "-c", "echo $0 {#} {%}", "{}"];
    let first = ["run", "-q", "--journal", &journal, "1"];
    assert_eq!(run(&[&first[..], &command].concat()).code, Some(0));
    // One input is left out, and has its number all the same; the others come by a pipe, of which each
    // burst is a stream of its own.
    let mut again = vec!["run", "-q", "-p", "2", "--journal", &journal, "--resume"];
    again.extend(["--log", &log, "--trace", &trace, "--format", "json"]);
    again.extend(command);
    let mut child = procpool(&again).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let rows = lines_of(child.stdout.take().unwrap());
    let mut shown = Vec::new();
    for (inputs, jobs) in [("1\n2\n3\n", 2), ("4\n5\n", 2)] {
        stdin.write_all(inputs.as_bytes()).unwrap();
        for _ in 0..jobs {
            let row = rows.recv_timeout(LIMIT).unwrap();
            shown.push(serde_json::from_str::<Value>(&row).unwrap());
        }
    }
    drop(stdin);
    assert_eq!(wait(child).code, Some(0));
    let mut seen = HashSet::new();
    for row in &shown {
        let said = format!("{} {} {}\n", row["input"].as_str().unwrap(), row["id"], row["worker"]);
        assert_eq!(row["stdout"], said);
        assert_eq!(row["id"].to_string(), row["input"].as_str().unwrap());
        seen.insert((row["id"].as_u64().unwrap(), row["worker"].as_u64().unwrap()));
    }
    assert_eq!(seen.len(), 4);
    let log = fs::read_to_string(log).unwrap();
    let events = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let numbers = |event: &Value| (event["id"].as_u64().unwrap(), event["slot"].as_u64().unwrap());
    let finished = events.filter(|event| event["event"] == "finished");
    assert_eq!(finished.map(|event| numbers(&event)).collect::<HashSet<_>>(), seen, "{log}");
    let trace: Vec<Value> = serde_json::from_slice(&fs::read(trace).unwrap()).unwrap();
    let jobs = trace.iter().filter(|entry| entry["cat"] == "done");
    let numbers = |job: &Value| (job["args"]["id"].as_u64().unwrap(), job["tid"].as_u64().unwrap());
    assert_eq!(jobs.map(numbers).collect::<HashSet<_>>(), seen, "{trace:?}");
}
