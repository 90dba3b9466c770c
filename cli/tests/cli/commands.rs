//! `procpool run -- COMMAND`: any program as a job.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{LIMIT, lines_of, procpool, run, run_with_input, signal, wait, wait_until};

/// Whether there is such a process and it hasn't ended.
fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

#[test]
fn each_input_is_one_argument_whatever_is_in_it() {
    let inputs = "a b\0it's\0two\nlines\0$HOME\0 \0--help\0*";
    let arguments = ["run", "-0", "--format", "json", "--keep-order", "--", "printf", "[%s]", "{}"];
    let ended = run_with_input(&arguments, inputs.as_bytes());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let printed: String =
        ended.json().iter().map(|row| row["stdout"].as_str().unwrap().to_owned()).collect();
    let expected: String = inputs.split('\0').map(|input| format!("[{input}]")).collect();
    assert_eq!(printed, expected);
    let shell = ["run", "-0", "--keep-order", "--shell", "--", "printf [%s] {} | cat"];
    assert_eq!(run_with_input(&shell, inputs.as_bytes()).text(), expected);
}

#[test]
fn inputs_come_from_arguments_files_pipes_and_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    fs::write(&list, "x\n\ny z\n").unwrap();
    let list = list.to_str().unwrap();
    for arguments in [
        &["run", "-k", "--", "echo", ":::", "x", "y z"][..],
        &["run", "-k", "x", "y z", "--", "echo"],
        &["run", "-k", "-i", list, "--", "echo", "{}"],
    ] {
        assert_eq!(run(arguments).text(), "x\ny z\n", "{arguments:?}");
    }
    assert_eq!(run_with_input(&["run", "-k", "--", "echo"], b"x\ny z\n").text(), "x\ny z\n");
    assert_eq!(
        run(&["run", "-k", "--count", "3", "--", "echo", "{#}:{}"]).text(),
        "1:0\n2:1\n3:2\n"
    );
    let script = "echo {%} $PROCPOOL_SLOT";
    let slots = run(&["run", "-p", "2", "--gpus", "7", "--count", "20", "--", "sh", "-c", script]);
    assert!(slots.text().lines().all(|line| ["1 1", "2 2"].contains(&line)), "{slots:?}");
}

#[test]
fn what_a_job_prints_stays_together_and_on_its_own_output() {
    let script = "for i in 1 2 3 4 5; do echo $0; echo $0 >&2; done";
    let inputs: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    let mut arguments = vec!["run", "-q", "-p", "4", "--", "sh", "-c", script, ":::"];
    arguments.extend(inputs.iter().map(String::as_str));
    let ended = run(&arguments);
    for printed in [ended.text(), &ended.stderr] {
        let lines: Vec<_> = printed.lines().collect();
        assert_eq!(lines.len(), 200);
        assert!(lines.chunks(5).all(|five| five.iter().all(|line| *line == five[0])), "{printed}");
    }
    arguments.insert(1, "--keep-order");
    arguments.insert(1, "--tag");
    let expected: String = inputs.iter().map(|it| format!("{it}\t{it}\n").repeat(5)).collect();
    assert_eq!(run(&arguments).text(), expected);
}

#[test]
fn lines_are_passed_on_as_they_are_printed() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let script = format!("echo begun; read answer < {}; printf $answer", fifo.display());
    let arguments = ["run", "--line-buffer", "--tag", "--", "sh", "-c", &script, ":::", "x"];
    let mut child = procpool(&arguments).spawn().unwrap();
    let lines = lines_of(child.stdout.take().unwrap());
    assert_eq!(lines.recv_timeout(LIMIT).unwrap(), "x\tbegun");
    fs::write(fifo, "over\n").unwrap();
    assert_eq!(lines.recv_timeout(LIMIT).unwrap(), "x\tover");
    assert_eq!(wait(child).code, Some(0));
}

#[test]
fn how_a_job_ended_and_what_it_used_are_known() {
    let script = "case $0 in code) exit 7;; signal) kill -SEGV $$;; memory) \
                  exec head -c 100000000 /dev/zero | tail -c 90000000 > /dev/null;; esac";
    let arguments = [
        "run", "-k", "--format", "json", "--", "sh", "-c", script, ":::", "code", "signal",
        "memory",
    ];
    let ended = run(&arguments);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let rows = ended.json();
    let how = |row: &Value| (row["result"]["exit"].clone(), row["result"]["signal"].clone());
    assert_eq!(how(&rows[0]), (json!(7), json!(null)));
    assert_eq!(how(&rows[1]), (json!(null), json!(11)));
    assert_eq!(how(&rows[2]), (json!(0), json!(null)));
    assert_eq!(rows[0]["error"], "exited with code 7");
    assert_eq!(rows[1]["error"], "was killed by SIGSEGV");
    assert!(rows[2]["result"]["memory"].as_u64() > Some(80_000_000), "{}", rows[2]);
    assert!(rows[0]["result"]["memory"].as_u64() < Some(40_000_000), "{}", rows[0]);
    assert!(rows.iter().all(|row| row["result"]["cpu"].as_f64() < Some(60.0)), "in seconds");
}

#[test]
fn a_command_that_cannot_be_run_is_told_once_and_nothing_is_begun() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    for (command, code, remedy) in [("no-such-command", 127, "--shell"), (file, 126, "chmod +x")] {
        let ended = run(&["run", "--", command, ":::", "1", "2", "3"]);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        assert!(ended.stderr.contains(command) && ended.stderr.contains(remedy), "{ended:?}");
    }
    // Where it depends on the input, it is the job that fails.
    let ended = run(&["run", "-k", "--format", "json", "--", "{}", ":::", "true", "no-such", file]);
    let exits: Vec<_> = ended.json().iter().map(|row| row["result"]["exit"].clone()).collect();
    assert_eq!((ended.code, exits), (Some(1), vec![json!(0), json!(127), json!(126)]));
}

#[test]
fn a_job_that_takes_too_long_or_too_much_fails_alone_and_keeps_what_it_printed() {
    let script = "echo $0; case $0 in hang) sleep 1000;; stubborn) trap '' TERM; sleep 1000 & \
        wait; \
                  sleep 1000;; eat) head -c 300000000 /dev/zero | tr '\\0' x | sort > /dev/null;; esac";
    let mut arguments = vec!["run", "-k", "-p", "2", "--timeout", "400ms", "--memory", "100M"];
    arguments.extend(["--format", "json", "--", "sh", "-c", script, ":::"]);
    arguments.extend(["well", "hang", "stubborn", "eat", "well"]);
    // How fast memory is eaten depends on the machine.
    arguments[5] = "20s";
    let ate = run(&[&arguments[..arguments.len() - 5], &["eat", "well"]].concat()).json();
    assert_eq!(
        ate[0]["error"], "exceeded its memory limit of 100 MiB and was killed",
        "{}",
        ate[0]
    );
    assert!(ate[0]["result"]["memory"].as_u64() > Some(50_000_000), "{}", ate[0]);
    assert_eq!((&ate[0]["stdout"], &ate[1]["result"]["exit"]), (&json!("eat\n"), &json!(0)));
    arguments[5] = "400ms";
    arguments.retain(|argument| *argument != "eat");
    let rows = run(&arguments).json();
    let errors: Vec<_> = rows.iter().map(|row| row.get("error").is_some()).collect();
    assert_eq!(errors, [false, true, true, false]);
    for row in &rows[1..3] {
        assert_eq!(row["error"], "exceeded its time limit of 400ms and was killed", "{row}");
        assert_eq!(row["stdout"], format!("{}\n", row["input"].as_str().unwrap()));
        assert!(row["seconds"].as_f64() >= Some(0.4), "{row}");
    }
    let mut pids: Vec<_> = rows.iter().map(|row| row["pid"].as_u64().unwrap()).collect();
    pids.sort_unstable();
    pids.dedup();
    assert!(pids.len() <= 2, "no worker is lost by it: {pids:?}");
}

#[test]
fn a_time_limit_may_be_a_share_of_the_median() {
    let mut arguments = vec!["run", "-p", "1", "-k", "--timeout", "1000%", "--format", "json"];
    arguments.extend(["--", "sleep", ":::", "0.03", "0.03", "0.03", "0.03", "0.03", "100", "0.03"]);
    let rows = run(&arguments).json();
    let failed: Vec<_> = rows.iter().map(|row| row.get("error").is_some()).collect();
    assert_eq!(failed, [false, false, false, false, false, true, false], "{rows:?}");
}

#[test]
fn a_job_that_fails_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("echo x >> {}/$0; test $(wc -l < {0}/$0) -ge $0", dir.path().display());
    let arguments = [
        "run",
        "-k",
        "--summary",
        "--retries",
        "2",
        "--format",
        "json",
        "--",
        "sh",
        "-c",
        &script,
        ":::",
        "1",
        "3",
        "4",
    ];
    let ended = run(&arguments);
    let rows = ended.json();
    let attempts: Vec<_> = rows.iter().map(|row| row["attempt"].as_u64().unwrap()).collect();
    assert_eq!(attempts, [1, 3, 3]);
    assert!(rows[1].get("error").is_none() && rows[2].get("error").is_some(), "{rows:?}");
    assert!(ended.stderr.contains("2 done, 1 failed, 4 retried"), "{ended:?}");
}

#[test]
fn what_a_job_leaves_running_is_ended_before_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let left = "sleep 1000 & echo $!; setsid sh -c 'sleep 1000 & echo $!; : > started; wait' &
        until [ -e started ]; do sleep 0.01; done";
    let script = format!("cd {} && {{ {left}; }}", dir.path().display());
    let arguments = ["run", "-k", "-p", "1", "--", "sh", "-c", &script, ":::", "1"];
    let ended = run(&arguments);
    assert_eq!((ended.code, ended.text().lines().count()), (Some(0), 2), "{ended:?}");
    assert!(ended.text().lines().all(|pid| !lives(pid)), "{ended:?}");
}

#[test]
fn when_the_command_is_killed_its_jobs_are_gone() {
    let arguments = ["run", "-p", "2", "--line-buffer", "--", "sh", "-c", "echo $$; sleep 1000"];
    let arguments = [&arguments[..], &[":::", "1", "2"]].concat();
    let mut child = procpool(&arguments).spawn().unwrap();
    let lines = lines_of(child.stdout.take().unwrap());
    let pids = [lines.recv_timeout(LIMIT).unwrap(), lines.recv_timeout(LIMIT).unwrap()];
    assert!(pids.iter().all(|pid| lives(pid)));
    signal(child.id(), Signal::KILL);
    wait(child);
    wait_until("its jobs are gone", || pids.iter().all(|pid| !lives(pid)));
}

#[test]
fn too_many_failures_end_the_run() {
    let arguments = |halt, script| {
        ["run", "--summary", "-p2", "--halt", halt, "--count", "1000", "--", "sh", "-c", script]
            .map(str::to_owned)
    };
    // Jobs that take a while, so that few more begin before the failures are noticed.
    let soon = run(&arguments("soon,fail=3", "sleep 0.05; exit 1"));
    assert_eq!(soon.code, Some(1));
    assert!(soon.stderr.contains("halted: 3 of 3 jobs failed"), "{soon:?}");
    assert!(soon.stderr.matches("exited with code 1").count() < 8, "{soon:?}");
    let share = run(&arguments("soon,fail=10%", "test $0 -lt 50 || { sleep 0.05; exit 1; }"));
    let done: usize = share.stderr.matches("exited with code 1").count();
    assert!((3..20).contains(&done), "{share:?}");
    // The other one would run for ever.
    let now = run(&arguments("now,fail=1", "test $0 = 0 && exec sleep 10000; sleep 0.2; exit 1"));
    assert!(now.code == Some(1) && now.stderr.contains(" killed, 99"), "{now:?}");
}

#[test]
fn jobs_that_are_ended_with_the_run_can_clear_up_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "cd {}; trap 'echo > cleared$0; exit 1' TERM; echo > begun$0; while :; do sleep 0.01; done",
        dir.path().display()
    );
    let there = |name: &str| dir.path().join(name).exists();
    let arguments = ["run", "--summary", "-p2", "--count", "50", "--", "sh", "-c", &script];
    let mut child = procpool(&arguments).spawn().unwrap();
    wait_until("two jobs run", || there("begun0") && there("begun1"));
    let said = lines_of(child.stderr.take().unwrap());
    signal(child.id(), Signal::TERM);
    assert!(said.recv_timeout(LIMIT).unwrap().starts_with("interrupted: 2 "));
    signal(child.id(), Signal::TERM);
    assert_eq!(wait(child).code, Some(143));
    assert!(there("cleared0") && there("cleared1"));
    let said: Vec<_> = said.iter().collect();
    assert!(said.iter().any(|line| line.contains("2 killed, 48 not started")), "{said:?}");

    let arguments =
        ["run", "-q", "-p", "2", "--halt", "now,fail=1", "--count", "9", "--", "sh", "-c"];
    let script = format!(
        "test $0 != 1 || {{ while ! test -e {0}/begun0; do sleep 0.01; done; exit 1; }}; {script}",
        dir.path().display()
    );
    fs::remove_file(dir.path().join("begun0")).unwrap();
    fs::remove_file(dir.path().join("cleared0")).unwrap();
    let ended = run(&[&arguments[..], &[&script]].concat());
    assert!(ended.code == Some(1) && there("cleared0"), "{ended:?}");
    assert!(ended.stderr.contains(" inputs were not started"), "also where it's quiet: {ended:?}");
    assert!(ended.stderr.contains("error: 1: exited with code 1"), "{ended:?}");
}

#[test]
fn a_second_signal_ends_jobs_that_do_not_heed_it_and_a_third_ends_at_once() {
    for third in [false, true] {
        let script = "trap '' TERM; echo begun; while :; do sleep 0.01; done";
        let mut child = procpool(&[
            "run",
            "-p",
            "1",
            "--line-buffer",
            "--count",
            "1",
            "--",
            "sh",
            "-c",
            script,
        ])
        .spawn()
        .unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        assert_eq!(lines.recv_timeout(LIMIT).unwrap(), "begun");
        let said = lines_of(child.stderr.take().unwrap());
        for what in ["interrupted: ", "interrupted again: "] {
            signal(child.id(), Signal::TERM);
            assert!(said.recv_timeout(LIMIT).unwrap().starts_with(what));
        }
        if third {
            signal(child.id(), Signal::TERM);
        }
        assert_eq!(wait(child).code, Some(143));
    }
}

#[test]
fn pages_that_a_jobs_processes_share_count_once() {
    let script = "import os, time\nblock = b'x' * 120_000_000\n\
                  for _ in range(4):\n if os.fork() == 0: time.sleep(1); os._exit(0)\n\
                  for _ in range(4): os.wait()\n";
    let ended = run(&["run", "--memory", "300M", "--", "python3", "-c", script, ":::", "1"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_share_of_the_median_allows_a_second_more() {
    let arguments = ["run", "-q", "-p", "1", "--timeout", "100%", "--", "sleep", ":::"];
    let ended = run(&[&arguments[..], &["0", "0", "0", "0", "0.3"]].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn the_exit_code_may_count_what_failed() {
    let failed = |count| run(&["run", "-q", "--exit-count", "--count", count, "--", "false"]).code;
    assert_eq!(["0", "3", "100", "150"].map(failed), [0, 3, 100, 101].map(Some));
}

#[test]
fn a_dry_run_prints_what_can_be_typed_and_runs_nothing() {
    let dry = |more: &[&str]| {
        let ended = run(&[&["run", "--dry-run"], more].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.text().to_owned()
    };
    let inputs = [":::", "a b", "it's"];
    assert_eq!(
        dry(&[&["--", "false", "{/}"], &inputs[..]].concat()),
        "false 'a b'\nfalse 'it'\\''s'\n"
    );
    assert_eq!(dry(&[&["--shell", "--", "cat {} > x"], &inputs[..2]].concat()), "cat 'a b' > x\n");
    assert_eq!(dry(&["--task", "sqrt", "4..6"]), "sqrt 4\nsqrt 5\n");
}

#[test]
fn a_reader_that_is_gone_is_a_clean_end_line_by_line_too() {
    for more in [&[][..], &["--line-buffer"], &["--output", "inherit"]] {
        let arguments =
            [&["run", "-q", "--count", "100000000"], more, &["--", "seq", "{%}", "99999"]].concat();
        let mut child = procpool(&arguments).stdin(Stdio::null()).spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        lines.recv_timeout(LIMIT).unwrap();
        drop(lines);
        let ended = wait(child);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{more:?}");
    }
}

#[test]
fn ctrl_c_finishes_what_was_begun() {
    let mut child =
        procpool(&["run", "-p", "2", "--", "sh", "-c", "echo begun; sleep 0.3; echo done"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&b"x\n".repeat(50)).unwrap();
    let lines = lines_of(child.stdout.take().unwrap());
    lines.recv_timeout(LIMIT).unwrap();
    signal(child.id(), Signal::INT);
    let ended = wait(child);
    let printed: Vec<_> = lines.iter().collect();
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert!(printed.len() % 2 == 1 && printed.len() < 50, "{printed:?}");
    assert_eq!(printed.last().map(String::as_str), Some("done"));
    drop(stdin);
}

#[test]
fn options_that_make_no_sense_are_exit_code_2_with_the_remedy() {
    let cases: [(&[&str], &str); 11] = [
        (&["--", ":::", "x"], "no command"),
        (&["--", "echo", ":::"], "no inputs after :::"),
        (&["--task", "pi", "--", "echo"], "cannot be used with"),
        (&["--seed", "3", "--", "echo", ":::", "x"], "--seed is for tasks"),
        (&["--format", "plain"], "use table, json or csv"),
        (&["--timeout", "200%"], "such as 10s"),
        (&["--timeout", "0%", "--", "echo"], "such as 300%"),
        (&["--halt", "later,fail=1", "--", "echo"], "now,fail=1"),
        (&["--shell"], "COMMAND"),
        (&["--tag", "--output", "inherit", "--", "echo", ":::", "x"], "leave out --output"),
        (&["--resume"], "--journal"),
    ];
    for (arguments, remedy) in cases {
        let ended = run(&[&["run"], arguments].concat());
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(remedy), "{arguments:?}: {}", ended.stderr);
    }
}

#[test]
fn nothing_in_an_input_is_code_for_a_shell_whatever_is_around_it() {
    let dir = tempfile::tempdir().unwrap();
    let hostile = [
        "$(touch pwned)",
        "`touch pwned`",
        "'; touch pwned; '",
        "\"; touch pwned; \"",
        "\ntouch pwned\n",
        "'\"; touch pwned #",
        "E\ntouch pwned\n",
        "a[$(touch pwned)]",
        "\\'; touch pwned; \\'",
        "${x:-$(touch pwned)}",
        ")\ntouch pwned",
        "&& touch pwned",
        "| touch pwned",
        "*",
        "-n",
    ];
    let input = hostile.join("\0");
    let lines = [
        "printf %s {}",
        "echo 'got {}'",
        "echo \"got {}\"",
        "echo `echo {}`",
        "echo $(echo {})",
        "echo \"$(echo {})\"",
        "cat <<E\n{}\nE",
        "cat <<'E'\n{}\nE",
        "echo x # {}",
        "echo $((1 + {}))",
        "echo $'{}'",
        "echo \\{}",
        "echo ${}",
        "echo a{}b{.}{/}{//}",
        "case {} in a) echo {};; esac",
        "f() { echo {}; }; set -- 1; f 2",
        "x={}; echo $x \"$x\"",
        "cat <<< {}",
        "((x = {}))",
    ];
    for line in lines {
        let mut command = procpool(&["run", "-0", "-q", "-p", "1", "--shell", "--", line]);
        let mut child = command.current_dir(&dir).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // Where the line is refused, nobody reads it.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let ended = wait(child);
        assert!(!dir.path().join("pwned").exists(), "{line}: {ended:?}");
        if ended.code == Some(2) {
            assert!(ended.stderr.contains("move it out"), "{line}: {ended:?}");
        }
    }
    let ended = run(&["run", "--shell", "--", "f() { echo {}; }; set -- 1; f 2", ":::", "in put"]);
    assert_eq!(ended.text(), "in put\n", "{ended:?}");
}

#[test]
fn an_empty_argument_is_an_input_like_any_other() {
    let three = run(&["run", "-k", "--", "printf", "[%s]\\n", ":::", "", "a", ""]);
    assert_eq!(three.text(), "[]\n[a]\n[]\n", "{three:?}");
    let ended = run_with_input(&["run", "-k", "-0", "--", "printf", "[%s]\\n"], b"a\0\0b\0");
    assert_eq!(ended.text(), "[a]\n[]\n[b]\n", "{ended:?}");
    let ended = run_with_input(&["run", "-k", "--", "printf", "[%s]\\n"], b"a\n\nb\n");
    assert_eq!(ended.text(), "[a]\n[b]\n", "blank lines of a list are skipped: {ended:?}");
}

#[test]
fn what_was_given_is_used_or_refused_and_never_passed_over_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    fs::write(&list, "a\0b\0").unwrap();
    let list = list.to_str().unwrap();
    let cases: [(&[&str], &str); 20] = [
        (&["-i", list, "--", "echo", ":::", "X"], "--input cannot be used with"),
        (&["--count", "2", "--", "echo", ":::", "X"], "--count cannot be used with"),
        (&["-0", "--", "echo", ":::", "X"], "--null (-0) cannot be used with"),
        (&["--", "echo", ":::+", "a", ":::", "b"], "use ::: for the first"),
        (&["--", "echo", ":::", "a", "::::", "/nowhere/list"], "/nowhere/list"),
        (&["-i", list, "--", "echo", "::::", list], "two lists"),
        (&["--", "echo", ":::", "a", "::::", "-", "-"], "not two"),
        (&["--", "echo", "{2}", ":::", "a"], "several sources"),
        (&["--", "echo", "{3}", ":::", "a", ":::", "b"], "each input has 2"),
        (&["--header", ":", "--", "echo", "{y}", ":::", "x", "1"], "{x}"),
        (&["-n", "2", "--", "echo", ":::", "a", ":::", "b"], "cannot be used with several sources"),
        (&["-n", "2", "--colsep", ",", "--", "echo", ":::", "a"], "--colsep"),
        (&["-n", "2", "--task", "pi"], "--count N"),
        (&["--", "echo", "{= s/a/b/ =}", ":::", "a"], "{//}"),
        (&["-p", "+x", "--", "echo", ":::", "a"], "+1"),
        (&["-d", "ab", "--", "echo"], "single character"),
        (&["echo", "A b"], "procpool run -- echo 'A b'"),
        (&["-j", "2", "gzip", ":::", "a"], "procpool run -- gzip ::: a"),
        (&["--task", "sha256", ":::", list], "after --"),
        (&["-i", list, "5"], "--input cannot be used with"),
    ];
    for (arguments, remedy) in cases {
        let ended = run(&[&["run"], arguments].concat());
        assert_eq!((ended.code, ended.text()), (Some(2), ""), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(remedy), "{arguments:?}: {ended:?}");
    }
    let ended = run_with_input(&["run", "--count", "2", "--", "echo"], b"file\n");
    assert_eq!((ended.code, ended.text()), (Some(2), ""), "{ended:?}");
    assert!(ended.stderr.contains("-p sets the number of workers"), "{ended:?}");
    let nul = run(&["run", "-k", "-0", "-i", list, "--", "echo"]);
    assert_eq!(nul.text(), "a\nb\n", "{nul:?}");
    let awk = run(&["run", "--shell", "--", "echo {} 2 | awk '{print $1}'", ":::", "1"]);
    assert_eq!(awk.text(), "1\n", "{awk:?}");
}

#[test]
fn a_dry_run_writes_no_control_characters() {
    let input = "a\x1b[2J\x07\u{9b}\n";
    for arguments in
        [&["--", "echo"][..], &["--shell", "--", "echo {} | cat"], &["--task", "sha256"]]
    {
        let arguments = [&["run", "--dry-run", "-0"], arguments].concat();
        let ended = run_with_input(&arguments, input.as_bytes());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let line = ended.text().strip_suffix('\n').unwrap();
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(line.contains(r"$'a\033[2J\007\302\233\n'"), "{line}");
    }
}

#[test]
fn why_a_command_could_not_be_started_is_the_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let file = dir.path().join(name);
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        file.to_str().unwrap().to_owned()
    };
    // As a shell runs it.
    let script = file("script", b"echo \"got $1\"\n");
    assert_eq!(run(&["run", "--", &script, ":::", "x"]).text(), "got x\n");
    let damaged = file("damaged", b"\x7fELF\0\0\0");
    let code = |arguments: &[&str]| run(&[&["run", "-q"], arguments].concat()).code;
    assert_eq!(code(&["--", &damaged, ":::", "x", "y"]), Some(126));
    assert_eq!(code(&["--", "{}", ":::", "no-such", "true"]), Some(127));
    assert_eq!(code(&["--", "{}", ":::", "no-such", &damaged]), Some(1));
    assert_eq!(code(&["--", "{}", ":::", "no-such", "false"]), Some(1));
    // A number of failures is never taken for another end.
    assert_eq!(code(&["--exit-count", "--", "false", ":::", "x", "y"]), Some(2));
    assert_eq!(code(&["--exit-count", "--", "{}", ":::", "no-such"]), Some(1));
    assert_eq!(code(&["--exit-count", "--", ":::", "x"]), Some(255));
    assert_eq!(code(&["--exit-count", "--no-such-option"]), Some(255));
    assert_eq!(code(&["--exit-count", "--log", "/nowhere/log", "1"]), Some(255));
}

#[test]
fn no_more_workers_are_started_than_there_are_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let ended =
        run(&["run", "-p", "200", "--log", log.to_str().unwrap(), "--", "echo", ":::", "a", "b"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("\"spawned\"").count().max(log.matches("Spawned").count()), 2, "{log}");
}

#[test]
fn spellings_of_xargs_and_parallel_mean_the_same_here() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    fs::write(&list, "a\nb\nc\n").unwrap();
    let list = list.to_str().unwrap();
    let cases: [(&[&str], &str); 9] = [
        (&["-j", "1", "-a", list, "--", "echo"], "a\nb\nc\n"),
        (&["-P1", "-a", list, "-n2", "--", "echo"], "a b\nc\n"),
        (&["--jobs", "50%", "-ka", list, "-N", "2", "--", "echo", "{2}-{1}"], "b-a\n-c\n"),
        (&["-j-100", "-a", list, "-L3", "--", "echo", "<{}>"], "<a> <b> <c>\n"),
        (&["-j+0", "-k", "-a", list, "-I", "%", "--", "echo", "{}%{.}"], "{}aa\n{}bb\n{}cc\n"),
        (&["-p1", "-a", list, "-n", "2", "--shell", "--", "echo {} | rev"], "b a\nc\n"),
        (&["-p1", "--", "echo", "::::", list], "a\nb\nc\n"),
        (&["-p1", "-n2", "--dry-run", "--", "echo", "{}", ":::", "a b", "c"], "echo 'a b' c\n"),
        (&["-p1", "--count", "3", "-n2", "--", "echo"], "0 1\n2\n"),
    ];
    for (arguments, printed) in cases {
        let ended = run(&[&["run", "-q"], arguments].concat());
        assert_eq!((ended.code, ended.text()), (Some(0), printed), "{arguments:?}: {ended:?}");
    }
    let ended = run_with_input(&["run", "-qk", "-d,", "--", "printf", "[%s]"], b"a,,b\n");
    assert_eq!(ended.text(), "[a][][b\n]", "{ended:?}");
    let ended = run_with_input(&["run", "-qk", "-d", "\\t", "--", "printf", "[%s]"], b"a\tb c");
    assert_eq!(ended.text(), "[a][b c]", "{ended:?}");
    let ended = run(&["run", "--joblog", "x", "--", "echo", ":::", "a"]);
    assert!(ended.stderr.contains("hint: in place of --joblog: --journal FILE"), "{ended:?}");
}

#[test]
fn inputs_of_several_sources_and_columns_have_places_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    fs::write(&list, "x,y\n1,\"2, 3\"\n4,5\n").unwrap();
    let list = list.to_str().unwrap();
    let cases: [(&[&str], &str); 10] = [
        (&["--", "echo", ":::", "a", "b", ":::", "c", "d"], "a c\na d\nb c\nb d\n"),
        (&["--", "echo", "{2}-{1/.}", ":::", "p/a.b", ":::", "c"], "c-a\n"),
        (&["--", "echo", ":::", "a", "b", "c", ":::+", "1", "2"], "a 1\nb 2\n"),
        (&["--link", "--", "echo", ":::", "a", "b", "c", ":::", "1", "2"], "a 1\nb 2\nc 1\n"),
        (&["--", "echo", "::::", list, ":::", "z"], "x,y z\n1,\"2, 3\" z\n4,5 z\n"),
        (&["--csv", "--header", ":", "--", "echo", "{y}/{x}", "::::", list], "2, 3/1\n5/4\n"),
        (&["--colsep", ",", "--", "echo", "{2}.{1}.{3}", ":::", "1,2"], "2.1.\n"),
        (&["--header", ":", "--", "echo", "{b}{a.}", ":::", "a", "1.x", ":::", "b", "2"], "21\n"),
        (&["--header", ":", "--", "echo", "{a}", ":::", "a", "1", "2"], "1\n2\n"),
        (&["--csv", "--", "echo", "{2}-{1}", ":::", "\"a, b\",c"], "c-a, b\n"),
    ];
    for (arguments, printed) in cases {
        let ended = run(&[&["run", "-qk"], arguments].concat());
        assert_eq!((ended.code, ended.text()), (Some(0), printed), "{arguments:?}: {ended:?}");
    }
    // A record of CSV may have several lines; the rest of a run has its values in each row.
    let input = b"n,m\n\"a\nb\",1\nc,2\n";
    let csv =
        ["run", "-k", "--csv", "--header", ":", "--format", "json", "--", "printf", "%s", "{n}"];
    let rows = run_with_input(&csv, input).json();
    let shown: Vec<_> = rows.iter().map(|row| (&row["stdout"], &row["input"])).collect();
    assert_eq!(shown, [(&json!("a\nb"), &json!("a\nb 1")), (&json!("c"), &json!("c 2"))]);
}

#[test]
fn as_many_inputs_as_fit_go_to_each_command_and_none_is_lost() {
    let run = |arguments: &[&str]| run(&[&["run", "-qk"], arguments].concat());
    let packed = run(&["-p2", "-X", "--", "echo", "<{}>", ":::", "a", "b", "c", "d", "e"]);
    assert_eq!(packed.text(), "<a> <b> <c>\n<d> <e>\n", "{packed:?}");
    let once = run(&["-p1", "-m", "--", "echo", "<{}>", ":::", "a", "b", "c"]);
    assert_eq!(once.text(), "<a b c>\n", "{once:?}");
    let limited = run(&["-p1", "-X", "-n2", "--", "echo", ":::", "a", "b", "c"]);
    assert_eq!(limited.text(), "a b\nc\n", "{limited:?}");
    let numbers: String = (0..200_000).map(|number| format!("{number}\n")).collect();
    let sent = numbers.replace('\n', " ");
    for more in [&["-X"][..], &["-X", "-s", "2000000"], &["-m", "--shell"]] {
        let arguments = [&["run", "-qk", "-p2"], more, &["--", "echo"]].concat();
        let ended = run_with_input(&arguments, numbers.as_bytes());
        assert_eq!(ended.code, Some(0), "{more:?}: {}", ended.stderr);
        assert!(ended.text().replace('\n', " ") == sent, "{more:?}");
    }
    let alone = run(&["-s", "100", "--", "echo", ":::", "a"]);
    assert!(alone.code == Some(2) && alone.stderr.contains("add -X"), "{alone:?}");
}
