//! What jobs print where there is a lot of it, and outputs that can't be written.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{LIMIT, children, lines_of, procpool, run, signal, wait, wait_until};

/// More than memory is to hold of all that is in flight.
const LOTS: &str = "100000000";

/// The most resident memory that a process had, in bytes.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[test]
fn what_a_job_prints_never_sits_in_memory_whole_and_arrives_whole() {
    for more in [&[][..], &["-k", "--retries", "1"], &["--format", "csv"], &["--tag"]] {
        let arguments = [&["run", "-q", "-p", "2"], more, &["--", "head", "-c", LOTS]].concat();
        let inputs = [":::", "/dev/zero", "/dev/zero"];
        let mut child = procpool(&[&arguments, &inputs[..]].concat()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (mut zeros, mut most) = (0, 0);
        let (mut block, nothing) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        loop {
            let length = stdout.read(&mut block).unwrap();
            if length == 0 {
                break;
            }
            // What else there is are some bytes of the format, at the ends of blocks that a job wrote.
            zeros += if block[..length] == nothing[..length] {
                length
            } else {
                block[..length].iter().filter(|byte| **byte == 0).count()
            };
            for pid in [vec![child.id()], children(child.id())].concat() {
                most = most.max(peak(pid));
            }
        }
        assert_eq!(wait(child).code, Some(0), "{more:?}");
        assert_eq!(zeros, 200_000_000, "{more:?}");
        assert!(most < 64 << 20, "{more:?}: {most} bytes");
    }
}

#[test]
fn a_lot_of_output_is_the_same_in_every_format() {
    let script = "yes 'é \"x\"' | head -n 100000; yes err | head -n 100000 >&2";
    let arguments = |format| {
        let arguments = ["run", "-q", "-k", "--format", format, "--", "sh", "-c", script, ":::"];
        run(&[&arguments[..], &["1", "2"]].concat())
    };
    let (out, err) = ("é \"x\"\n".repeat(100_000), "err\n".repeat(100_000));
    let json = arguments("json").json();
    assert_eq!(json.len(), 2);
    for row in json {
        assert!(row["stdout"] == out.as_str() && row["stderr"] == err.as_str());
        assert!(row.get("stdout_base64").is_none());
    }
    for row in arguments("csv").csv() {
        let fields: Vec<_> = row.iter().collect();
        let [.., stdout, stderr] = fields[..] else { panic!() };
        assert!(stdout == out.as_bytes() && stderr == err.as_bytes());
    }
    let plain = arguments("plain");
    assert!(plain.text() == out.repeat(2) && plain.stderr == err.repeat(2));
    let table = arguments("table");
    assert_eq!(table.text().matches("│ é \"x\"\n").count(), 200_000);
    assert_eq!(table.text().matches("│ err\n").count(), 200_000);
}

#[test]
fn bytes_that_are_no_text_can_be_had_back_from_json() {
    for (script, start) in
        [("printf 'a\\377b'", "Yf9i"), ("yes $(printf '\\377') | head -c 99999", "/wr/")]
    {
        let rows =
            run(&["run", "-q", "--format", "json", "--", "sh", "-c", script, ":::", "1"]).json();
        assert!(rows[0]["stdout_base64"].as_str().unwrap().starts_with(start), "{script}");
        assert!(rows[0]["stdout"].as_str().unwrap().contains('\u{fffd}'), "{script}");
    }
}

#[test]
fn a_job_that_prints_without_end_is_seen_while_it_runs_and_ends_with_its_reader() {
    for more in [&[][..], &["-k"]] {
        let arguments = [&["run", "-q"], more, &["--", "yes", ":::", "a"]].concat();
        let mut child = procpool(&arguments).spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        assert_eq!(lines.recv_timeout(LIMIT).unwrap(), "a");
        let workers = children(child.id());
        drop(lines);
        let ended = wait(child);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{more:?}");
        wait_until("its workers are gone", || {
            workers
                .iter()
                .all(|pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty())
        });
    }
}

#[test]
fn rows_that_come_while_a_job_is_shown_follow_it_whole() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "cd {}; case $0 in 1) yes long | head -n 50000; mkdir 1; while ! test -e 2; do sleep 0.01; \
         done; sleep 0.2; echo end;; 2) while ! test -e 1; do sleep 0.01; done; echo 2; mkdir 2;; \
         *) yes $0 | head -n 50000;; esac",
        dir.path().display()
    );
    let ended =
        run(&["run", "-q", "-p", "2", "--", "sh", "-c", &script, ":::", "1", "2", "3", "4"]);
    let lines: Vec<_> = ended.text().lines().collect();
    assert_eq!(lines.len(), 150_002);
    // Each job's lines stay together.
    let mut jobs: Vec<_> = lines.chunk_by(|one, other| one == other).map(|job| job[0]).collect();
    assert_eq!(jobs.len(), 5, "{jobs:?}");
    let end = jobs.iter().position(|line| *line == "end").unwrap();
    assert_eq!(jobs[end - 1], "long", "{jobs:?}");
    jobs.sort_unstable();
    assert_eq!(jobs, ["2", "3", "4", "end", "long"]);
}

#[test]
fn no_file_is_left_behind_by_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = procpool(&[
        "run",
        "-q",
        "-p",
        "2",
        "--",
        "sh",
        "-c",
        "head -c 300000 /dev/zero; sleep 1000",
    ]);
    command.args([":::", "1", "2"]).env("TMPDIR", dir.path());
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 100_000]).unwrap();
    let workers = children(child.id());
    signal(workers[0], Signal::KILL);
    signal(child.id(), Signal::KILL);
    wait(child);
    let kept: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
    let spilled = kept.iter().filter(|entry| entry.metadata().is_ok_and(|it| it.is_file()));
    assert_eq!(spilled.count(), 0, "{kept:?}");
}

#[test]
fn a_job_whose_output_cannot_be_kept_fails_alone_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    fs::create_dir(&gone).unwrap();
    let script =
        format!("rm -rf {}; test $0 = 2 || head -c 300000 /dev/zero; echo $0", gone.display());
    let mut command =
        procpool(&["run", "-k", "-p", "1", "--", "sh", "-c", &script, ":::", "1", "2"]);
    let ended = wait(command.env("TMPDIR", &gone).spawn().unwrap());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("failed to store its output") && ended.stderr.contains("set TMPDIR"),
        "{ended:?}"
    );
    assert!(ended.text().ends_with("2\n"), "{ended:?}");
}

#[test]
fn a_full_disk_ends_the_run_with_a_message_and_a_closed_pipe_without() {
    for more in [&[][..], &["--line-buffer"], &["--format", "json"], &["--tag"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let arguments = [&["run", "--count", "1000"], more, &["--", "echo"]].concat();
        let ended = wait(procpool(&arguments).stdout(full).spawn().unwrap());
        assert_eq!(ended.code, Some(1), "{more:?}: {ended:?}");
        assert!(ended.stderr.contains("No space left on device"), "{more:?}: {ended:?}");
    }
}

#[test]
fn an_error_output_that_cannot_be_written_ends_nothing() {
    for more in [&[][..], &["--line-buffer"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let arguments =
            [&["run", "--count", "20"], more, &["--", "sh", "-c", "echo $0; echo $0 >&2"]].concat();
        let ended = wait(procpool(&arguments).stderr(full).spawn().unwrap());
        assert_eq!(
            (ended.code, ended.text().lines().count()),
            (Some(0), 20),
            "{more:?}: {ended:?}"
        );
    }
}

#[test]
fn a_tag_is_one_field_of_one_line() {
    for more in [&[][..], &["--line-buffer"]] {
        let arguments =
            [&["run", "-q", "--tag"], more, &["--", "echo", "x", "#{}", ":::", "a\nb\u{1b}[2J"]]
                .concat();
        let ended = run(&arguments);
        assert!(ended.text().starts_with("a\\nb\\u{1b}[2J\tx #a\n"), "{more:?}: {ended:?}");
    }
}

#[test]
fn an_error_line_shows_a_long_input_in_part() {
    let long = "x".repeat(100_000);
    let ended = run(&["run", "-q", "--", "false", ":::", &long]);
    assert!(
        ended.stderr.contains("bytes …") && ended.stderr.len() < 1000,
        "{}",
        ended.stderr.len()
    );
}

#[test]
fn a_job_that_prints_without_end_is_held_to_its_limit() {
    for more in [&["--line-buffer"][..], &["--format", "csv"]] {
        let mut arguments = vec!["run", "-q", "--timeout", "1s"];
        arguments.extend(more);
        arguments.extend(["--", "yes", ":::", "a"]);
        let begun = Instant::now();
        let child =
            procpool(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let ended = wait(child);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{more:?}");
        if more[0] == "--line-buffer" {
            assert!(ended.stderr.contains("exceeded its time limit of 1s"), "{ended:?}");
        }
    }
}

#[test]
fn how_a_job_ended_is_known_where_the_end_of_children_is_ignored() {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "trap '' CHLD; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_procpool")]);
    command.args(["run", "-q", "--format", "json", "--", "sh", "-c", "exit 3", ":::", "1"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(wait(child).json()[0]["error"], "exited with code 3");
}

#[test]
fn jobs_have_the_signals_of_terminals_and_children_by_default() {
    let arguments = ["run", "-q", "--", "grep", "-E", "SigIgn|SigBlk", "/proc/self/status"];
    let mut command = procpool(&[&arguments[..], &[":::", "-s"]].concat());
    // The C library hides the first two real-time signals, which are its own: `trap` can't name them.
    let ignore = || {
        // As the kernel has it: what is done, flags, something to return by, and a mask.
        let action = [libc::SIG_IGN as u64, 0, 0, 0];
        for signal in [libc::SIGCHLD, libc::SIGTTIN, libc::SIGTTOU, 32, 33] {
            // SAFETY: the kernel reads the action and installs no handler.
            let ignored = unsafe {
                libc::syscall(
                    libc::SYS_rt_sigaction,
                    signal,
                    action.as_ptr(),
                    std::ptr::null::<u64>(),
                    8,
                )
            };
            assert_eq!(ignored, 0);
        }
        Ok(())
    };
    // SAFETY: it makes system calls only.
    unsafe { command.pre_exec(ignore) };
    let ended = wait(command.spawn().unwrap());
    assert_eq!(ended.text().lines().count(), 2, "{ended:?}");
    for line in ended.text().lines() {
        let mask = u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap();
        let named = [libc::SIGTTIN, libc::SIGTTOU, libc::SIGCHLD, libc::SIGTERM, 32, 33];
        assert!(named.iter().all(|signal| mask & (1 << (signal - 1)) == 0), "{line}");
    }
}

#[test]
fn each_job_has_a_directory_with_what_it_printed_and_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let results = format!("{}/new/", dir.path().display());
    let script = "echo \"out $0\"; echo err >&2; test \"$0\" != ../b || { head -c 300000 /dev/zero; exit 3; }";
    let arguments = ["run", "-qq", "-k", "--results", &results, "--", "sh", "-c", script, ":::"];
    let ended = run(&[&arguments[..], &["a", "../b"]].concat());
    assert!(ended.text().starts_with("out a\nout ../b\n") && ended.code == Some(1));
    let read = |name: &str| std::fs::read(format!("{results}{name}")).unwrap();
    assert_eq!(read("000001-a/stdout"), b"out a\n");
    assert_eq!(read("000001-a/stderr"), b"err\n");
    // Names stay in the directory, and long output is all there.
    assert_eq!(read("000002-.._b/stdout").len(), "out ../b\n".len() + 300_000);
    let meta: serde_json::Value = serde_json::from_slice(&read("000002-.._b/meta.json")).unwrap();
    assert_eq!((&meta["input"], &meta["result"]["exit"]), (&"../b".into(), &3.into()), "{meta}");
    assert!(meta["error"].as_str().unwrap().contains("code 3") && meta.get("stdout").is_none());
    let again = run(&[&arguments[..], &["c"]].concat());
    assert_eq!((again.code, read("000001-c/stdout").as_slice()), (Some(0), &b"out c\n"[..]));
    assert_eq!(read("000001-a/stdout"), b"out a\n", "what was there stays");
    let full = run(&["run", "--results", "/proc/none/", "--", "true", ":::", "x"]);
    assert!(full.code == Some(2) && full.stderr.contains("--results"), "{full:?}");
}

#[test]
fn a_job_whose_files_cannot_be_written_is_not_done_according_to_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let [results, journal] = ["results/", "journal"].map(|name| dir.path().join(name));
    std::fs::create_dir(&results).unwrap();
    std::fs::write(results.join("000002-b"), "in the way").unwrap();
    let [to, by] = [&results, &journal].map(|path| path.to_str().unwrap());
    let run_with = |extra: &[&str]| {
        let arguments = ["run", "-q", "-p1", "--results", to, "--journal", by];
        run(&[&arguments[..], extra, &["--", "echo", ":::", "a", "b", "c"]].concat())
    };
    let ended = run_with(&[]);
    assert!(ended.code == Some(1) && ended.stderr.contains("000002-b"), "{ended:?}");
    std::fs::remove_file(results.join("000002-b")).unwrap();
    let resumed = run_with(&["--resume"]);
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    let read = |name: &str| std::fs::read(results.join(name).join("stdout")).unwrap();
    assert_eq!(["000001-a", "000002-b", "000003-c"].map(read), [b"a\n", b"b\n", b"c\n"]);
}
