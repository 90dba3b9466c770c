//! `procpool isolate`: what it shows was seen, and nothing is left of it.

use std::collections::HashSet;
use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{run, wait};

const CASES: [&str; 11] = [
    "panic",
    "abort",
    "segfault",
    "stack-overflow",
    "exit",
    "leak",
    "loop",
    "global",
    "directory",
    "descriptors",
    "kill",
];

fn is_there(pid: &Value) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

#[test]
fn every_case_is_contained_and_no_process_or_core_file_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new("sh")
        .args(["-c", "ulimit -c unlimited; exec \"$0\" isolate --format json"])
        .arg(env!("CARGO_BIN_EXE_procpool"))
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let ended = wait(child.unwrap());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.starts_with("11 of 11 contained"), "{ended:?}");
    let cases = ended.json();
    assert_eq!(cases.iter().map(|case| case["case"].as_str().unwrap()).collect::<Vec<_>>(), CASES);
    for case in &cases {
        let processes = &case["processes"];
        assert_eq!(case["contained"], true, "{case}");
        assert_eq!((&processes["answers"], &processes["right"]), (&8.into(), &8.into()), "{case}");
        for pid in [&processes["pid"], &processes["new_pid"], &case["threads"]["pid"]] {
            assert!(pid.is_null() || pid.as_u64() > Some(0) && !is_there(pid), "{case}");
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no core file");
}

#[test]
fn the_cause_is_what_the_pool_reports_and_a_dead_worker_is_replaced() {
    let expected = [
        ("panic", "panicked: on purpose", false),
        ("abort", "was killed by SIGABRT", true),
        ("segfault", "was killed by SIGSEGV", true),
        ("stack-overflow", "was killed by SIGABRT", true),
        ("exit", "exited with code 0", true),
        ("leak", "ran out of memory", true),
        ("kill", "was killed by SIGKILL", true),
        ("directory", "the directory became /", false),
    ];
    let mut arguments = vec!["isolate", "--format", "json"];
    arguments.extend(expected.iter().flat_map(|(case, ..)| ["--case", case]));
    for (case, (name, happened, replaced)) in run(&arguments).json().iter().zip(expected) {
        let processes = &case["processes"];
        assert_eq!((&case["case"], &processes["happened"]), (&name.into(), &happened.into()));
        assert_eq!(processes["new_pid"].is_u64(), replaced, "{case}");
        assert_ne!(processes["new_pid"], processes["pid"]);
    }
}

#[test]
fn threads_are_seen_to_pay_for_each_other() {
    let mut arguments = vec!["isolate", "--format", "json"];
    arguments.extend(CASES.iter().flat_map(|case| ["--case", case]));
    let cases = run(&arguments).json();
    let contained: HashSet<&str> = cases
        .iter()
        .filter(|case| case["threads"]["contained"] == true)
        .map(|case| case["case"].as_str().unwrap())
        .collect();
    assert_eq!(contained, HashSet::from(["panic"]), "{cases:?}");
    let threads = |name: &str| {
        let case = cases.iter().find(|case| case["case"] == name);
        case.unwrap()["threads"].clone()
    };
    for name in ["abort", "segfault", "stack-overflow", "exit", "leak", "kill"] {
        assert_eq!(threads(name)["answers"], 0, "{}", threads(name));
    }
    assert!(threads("loop")["ended"].as_str().unwrap().contains("had to be killed"));
    assert!(threads("global")["changed"][0].as_str().unwrap().contains("the global went from"));
    assert_eq!(threads("directory")["changed"][0], "the directory became /");
}

#[test]
fn one_case_is_a_page_of_100_columns_that_ends_with_the_count() {
    let ended = run(&["isolate", "--case", "segfault", "--case", "loop"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let lines: Vec<&str> = ended.text().lines().collect();
    assert!(lines.iter().all(|line| line.chars().count() <= 100), "{}", ended.text());
    assert!(lines.iter().any(|line| line.starts_with("segfault") && line.contains("SIGSEGV")));
    assert!(lines.last().unwrap().starts_with("2 of 2 contained"), "{}", ended.text());
}

#[test]
fn a_case_that_is_not_known_is_exit_code_2_and_the_hidden_part_is_hidden() {
    let ended = run(&["isolate", "--case", "flood"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("possible values: panic, abort"), "{ended:?}");
    let help = run(&["isolate", "--help"]);
    assert!(help.text().contains("stack-overflow") && !help.text().contains("threads-child"));
}

#[test]
fn every_attack_works_without_a_sandbox_and_is_contained_in_one() {
    let ended = run(&["isolate", "--hostile", "--format", "json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.starts_with("9 of 9 attacks contained"), "{ended:?}");
    let attacks = ended.json();
    assert_eq!(attacks.len(), 9);
    for attack in &attacks {
        let name = attack["attack"].as_str().unwrap();
        // What the pool stops in any case, and what this system may forbid to all.
        let is_open = !["shrink-memory", "flood-parent", "trace-parent"].contains(&name);
        assert_eq!(attack["contained"], true, "{attack}");
        assert_eq!(attack["sandboxed"]["answers_on"], true, "{attack}");
        if is_open {
            assert_eq!(attack["without"]["succeeded"], true, "{attack}");
        }
    }
    let table = run(&["isolate", "--hostile"]);
    assert_eq!(
        table.text().lines().filter(|line| line.contains("refused:")).count(),
        7 + 1,
        "{table:?}"
    );
    assert!(table.text().contains("does not allow the system call ptrace"), "{table:?}");
}
