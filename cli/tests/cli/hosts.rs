//! Runs on hosts: launching, judging by the journal's end, launching again. The launcher is a script
//! that starts the run on this machine alone, and then does to it what the test is about. Real
//! hosts are in `tests/hosts/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Ended, children, lines_of, procpool, run, signal, state, wait, wait_until};

/// What stands for mpirun: `script` with the number of the launch in `$n`, and the run as `"$@"`.
struct Fake {
    dir: TempDir,
    script: String,
}

const KILL: &str = r#""$@" & while [ "$(cat ran 2> /dev/null | wc -l)" -lt "$enough" ]; do sleep 0.01; done
    kill -KILL $!; wait; exit 0"#;

impl Fake {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        let program = format!(
            r#"#!/bin/sh
            [ "$1" != --version ] || {{ echo 'mpirun (Open MPI) 4.1.4'; exit; }}
            cd {dir} || exit
            n=$(($(cat launches 2> /dev/null || echo 0) + 1)); echo $n > launches
            echo "$@" >> arguments
            while [ "$1" != {exe} ]; do shift; done
            {script}
            "#,
            dir = dir.path().display(),
            exe = env!("CARGO_BIN_EXE_procpool"),
        );
        let path = dir.path().join("mpirun");
        fs::write(&path, program).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self { dir, script: script.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A run with these words. Each of its jobs adds a line to the file `ran`.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = procpool(&[&["run", "--hosts", "localhost"], words].concat());
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.dir.path().display()));
        command.env("TMPDIR", self.path("tmp")).current_dir(&self.dir).process_group_of_its_own();
        for name in ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_JOB_NODELIST"] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, words: &[&str]) -> Ended {
        let ended = wait(self.command(words).spawn().unwrap());
        self.has_left_nothing();
        ended
    }

    fn launches(&self) -> u32 {
        let launches = fs::read_to_string(self.path("launches")).unwrap();
        launches.trim().parse().unwrap()
    }

    /// What each launch was started with.
    fn arguments(&self) -> Vec<String> {
        let arguments = fs::read_to_string(self.path("arguments")).unwrap();
        arguments.lines().map(str::to_owned).collect()
    }

    /// How often jobs have run.
    fn ran(&self) -> usize {
        fs::read_to_string(self.path("ran")).unwrap_or_default().lines().count()
    }

    #[track_caller]
    fn has_left_nothing(&self) {
        let left: Vec<_> = fs::read_dir(self.path("tmp")).unwrap().flatten().collect();
        assert!(left.is_empty(), "{}: {left:?}", self.script);
        let exe = fs::canonicalize(env!("CARGO_BIN_EXE_procpool")).unwrap();
        wait_until("no process is left", || {
            !fs::read_dir("/proc").unwrap().flatten().any(|process| {
                let is_it = |file| fs::read_link(process.path().join(file));
                is_it("exe").is_ok_and(|it| it == exe)
                    && is_it("cwd").is_ok_and(|it| it.starts_with(self.dir.path()))
            })
        });
    }
}

trait OwnGroup {
    fn process_group_of_its_own(&mut self) -> &mut Self;
}

impl OwnGroup for Command {
    fn process_group_of_its_own(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}

/// A job that says its input, and that it has run.
const JOB: [&str; 5] = ["--", "sh", "-c", "echo $0 >> ran; echo out $0; echo err $0 >&2", "{}"];

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn expected(prefix: &str, count: u32) -> Vec<String> {
    let mut lines: Vec<_> = (0..count).map(|it| format!("{prefix}{it}")).collect();
    lines.sort();
    lines
}

fn end(journal: &Path) -> Option<Value> {
    let text = fs::read_to_string(journal).unwrap();
    let last: Value = serde_json::from_str(text.lines().last()?).unwrap();
    last.get("end").cloned()
}

#[test]
fn a_run_is_judged_by_its_end_and_not_by_the_launchers() {
    for script in [r#""$@"; exit 7"#, r#""$@"; exit 0"#, r#""$@"; exec sleep 600"#] {
        let fake = Fake::new(script);
        let begun = Instant::now();
        let ended =
            fake.run(&[&["--summary", "--count", "20", "--journal", "journal"], &JOB[..]].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(60), "the launcher was not waited for");
        assert_eq!(sorted(ended.text()), expected("out ", 20));
        assert!(ended.stderr.contains("20 jobs") && ended.stderr.contains("err 7"), "{ended:?}");
        let end = end(&fake.path("journal")).unwrap();
        assert_eq!(
            (&end["exit"], &end["succeeded"], &end["failed"]),
            (&0.into(), &20.into(), &0.into())
        );
        let failing =
            ["--quiet", "--journal", "other", "--", "test", "{}", "=", "a", ":::", "a", "b"];
        let ended = fake.run(&failing);
        assert_eq!(ended.code, Some(1), "{ended:?}");
    }
}

#[test]
fn a_run_that_has_lost_its_engine_goes_on_and_shows_each_result_once() {
    let script = format!("enough=$((n * 30)); [ $n -lt 3 ] || {{ \"$@\"; exit; }}; {KILL}");
    for more in [&["--journal", "journal"][..], &[], &["--keep-order"], &["--results", "results"]] {
        let fake = Fake::new(&script);
        let words = [&["-p", "2", "--count", "200"], more, &JOB[..]].concat();
        let ended = fake.run(&words);
        assert_eq!((ended.code, fake.launches()), (Some(0), 3), "{ended:?}");
        let results = match more {
            ["--results", _] => fs::read_to_string(fake.path("results")).unwrap(),
            _ => ended.text().to_owned(),
        };
        assert_eq!(sorted(&results), expected("out ", 200), "{more:?}");
        if more == ["--keep-order"] {
            let lines: Vec<_> = results.lines().map(str::to_owned).collect();
            let in_order: Vec<_> = (0..200).map(|it| format!("out {it}")).collect();
            assert_eq!(lines, in_order);
        }
        let errors: Vec<_> = ended.stderr.lines().filter(|line| line.starts_with("err ")).collect();
        assert_eq!(errors.len(), 200, "{more:?}");
        assert!(ended.stderr.contains("restart 2 of 2"), "{ended:?}");
        assert!(fake.ran() < 300, "what was done is not done again: {}", fake.ran());
    }
}

#[test]
fn rows_have_one_header_and_failed_jobs_one_row_over_a_loss() {
    let script = format!("enough=30; [ $n -lt 2 ] || {{ \"$@\"; exit; }}; {KILL}");
    let fake = Fake::new(&script);
    let job = ["--", "sh", "-c", "echo $0 >> ran; exit $(($0 % 2))", "{}"];
    let ended =
        fake.run(&[&["--summary", "-p2", "--count", "100", "--format", "csv"], &job[..]].concat());
    assert_eq!((ended.code, fake.launches()), (Some(1), 2), "{ended:?}");
    let rows = ended.csv();
    let mut inputs: Vec<u32> =
        rows.iter().map(|row| std::str::from_utf8(&row[5]).unwrap().parse().unwrap()).collect();
    inputs.sort_unstable();
    assert_eq!(inputs, (0..100).collect::<Vec<_>>());
    assert_eq!(ended.text().matches("id,pid").count(), 1);
    assert!(ended.stderr.contains("before it lost its engine"), "{ended:?}");
}

#[test]
fn inputs_of_a_pipe_are_there_again_after_a_loss() {
    let script = format!("enough=50; [ $n -lt 2 ] || {{ \"$@\"; exit; }}; {KILL}");
    let fake = Fake::new(&script);
    let mut command = fake.command(&[&["-p", "2"], &JOB[..]].concat());
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        for input in 0..300 {
            std::io::Write::write_all(&mut stdin, format!("{input}\n").as_bytes()).unwrap();
        }
    });
    let ended = wait(child);
    writer.join().unwrap();
    assert_eq!((ended.code, fake.launches()), (Some(0), 2), "{ended:?}");
    assert_eq!(sorted(ended.text()), expected("out ", 300));

    // Inputs of a file are read from where they started.
    let fake = Fake::new(&script);
    let list: String = (0..300).map(|it| format!("{it}\n")).collect();
    fs::write(fake.path("list"), list).unwrap();
    let mut command = fake.command(&[&["-p", "2"], &JOB[..]].concat());
    command.stdin(fs::File::open(fake.path("list")).unwrap());
    let ended = wait(command.spawn().unwrap());
    assert_eq!((ended.code, fake.launches()), (Some(0), 2), "{ended:?}");
    assert_eq!(sorted(ended.text()), expected("out ", 300));
}

#[test]
fn a_run_that_loses_its_engine_again_and_again_ends_and_says_how_to_go_on() {
    let fake = Fake::new(&format!("enough=$((n * 10)); {KILL}"));
    let words = ["-p", "2", "--count", "1000", "--journal", "journal", "--max-restarts", "1"];
    let ended = fake.run(&[&words, &JOB[..]].concat());
    assert_eq!((ended.code, fake.launches()), (Some(3), 2), "{ended:?}");
    assert!(ended.stderr.contains("--journal \"journal\" --resume"), "{ended:?}");
    assert_eq!(end(&fake.path("journal")), None);
    let shown = ended.text().lines().count();
    fs::write(
        fake.path("mpirun"),
        fs::read_to_string(fake.path("mpirun"))
            .unwrap()
            .replace("enough=$((n * 10));", "\"$@\"; exit;"),
    )
    .unwrap();
    let resumed = fake.run(&[&words[..6], &["--resume"], &JOB[..]].concat());
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    assert_eq!(shown + resumed.text().lines().count(), 1000, "none is missing and none is twice");
}

#[test]
fn a_run_that_does_not_start_says_what_the_launcher_said() {
    let fake = Fake::new("echo 'ssh: no route to host n9' >&2; exit 1");
    let ended = fake.run(&[&["--count", "3"], &JOB[..]].concat());
    assert_eq!((ended.code, fake.launches(), fake.ran()), (Some(3), 1, 0), "{ended:?}");
    for part in ["no route to host n9", "exit code 1", "procpool hosts"] {
        assert!(ended.stderr.contains(part), "{part}: {ended:?}");
    }
    let counted = fake.run(&[&["--count", "3", "--exit-count"], &JOB[..]].concat());
    assert_eq!(counted.code, Some(255), "{counted:?}");
}

#[test]
fn a_new_launch_does_without_the_hosts_that_do_not_answer() {
    let fake = Fake::new(&format!("enough=10; [ $n -lt 2 ] || {{ \"$@\"; exit; }}; {KILL}"));
    let rsh = fake.path("rsh");
    fs::write(&rsh, "#!/bin/sh\n[ $1 != gone ]\n").unwrap();
    fs::set_permissions(&rsh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let rsh = rsh.to_str().unwrap();
    let words = ["--count", "100", "-p", "2", "--rsh", rsh, "--hostfile", "hosts"];
    fs::write(fake.path("hosts"), "there\ngone slots=3\nlocalhost slots=2\n").unwrap();
    let mut command = fake.command(&[]);
    command = {
        let mut other = procpool(&[&["run"], &words[..], &JOB[..]].concat());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => other.env(name, value),
                None => other.env_remove(name),
            };
        }
        other.current_dir(&fake.dir);
        other
    };
    let ended = wait(command.spawn().unwrap());
    assert_eq!((ended.code, fake.launches()), (Some(0), 2), "{ended:?}");
    let arguments = fake.arguments();
    assert!(arguments[0].contains("--host localhost,there,gone "), "{arguments:?}");
    assert!(arguments[1].contains("--host localhost,there "), "{arguments:?}");
    // What stands between outlives its hosts.
    assert!(
        arguments[0].contains("plm_rsh_agent /") && arguments[0].contains("/rsh "),
        "{arguments:?}"
    );
    assert!(ended.stderr.contains("starting again without gone"), "{ended:?}");
}

#[test]
fn the_nodes_of_a_slurm_allocation_are_used_without_being_named() {
    let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let own = own.trim();
    let fake = Fake::new(r#""$@""#);
    fs::copy(fake.path("mpirun"), fake.path("srun")).unwrap();
    let run = |nodes: &str, more: &[(&str, &str)], words: &[&str]| {
        let mut command = procpool(&[&["run"], words, &JOB[..]].concat());
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", fake.dir.path().display()));
        command.env("TMPDIR", fake.path("tmp")).current_dir(&fake.dir);
        command.env("SLURM_JOB_NODELIST", nodes).envs(more.iter().copied());
        wait(command.spawn().unwrap())
    };
    let here = format!("{own},n[2-3]");
    let ended = run(&here, &[], &["--count", "20"]);
    assert_eq!((ended.code, fake.launches()), (Some(0), 1), "{ended:?}");
    assert_eq!(sorted(ended.text()), expected("out ", 20));
    let arguments = fake.arguments();
    assert!(arguments[0].contains("--mpi=pmix --nodes 3 --ntasks 3"), "{arguments:?}");
    // In a step, on one node, and where it is not wanted, nothing is launched.
    for (nodes, more, words) in [
        (&*here, &[("SLURM_STEP_ID", "0")][..], &["--count", "3"][..]),
        (own, &[], &["--count", "3"]),
        (&*here, &[], &["--count", "3", "--engine", "local"]),
    ] {
        let ended = run(nodes, more, words);
        assert_eq!((ended.code, fake.launches()), (Some(0), 1), "{ended:?}");
    }
    // Where the run will be on another machine, srun takes the place of the command.
    fs::write(fake.path("srun"), "#!/bin/sh\necho \"$@\"; exit 5\n").unwrap();
    let ended = run("n[2-3]", &[], &["--count", "3"]);
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(ended.text().contains("run --engine mpi --count 3 -- sh -c"), "{ended:?}");
}

#[test]
fn a_signal_ends_the_run_in_order_and_a_third_at_once() {
    let fake = Fake::new(r#""$@""#);
    let job = ["--", "sh", "-c", "echo $0 >> ran; exec sleep 1", "{}"];
    let words = [&["-p", "2", "--count", "1000", "--journal", "journal"], &job[..]].concat();
    for (signals, expected) in [(1, Signal::INT), (1, Signal::TERM), (3, Signal::INT)] {
        let _ = fs::remove_file(fake.path("ran"));
        let _ = fs::remove_file(fake.path("journal"));
        let child = fake.command(&words).spawn().unwrap();
        wait_until("jobs run", || fake.ran() >= 2);
        for _ in 0..signals {
            signal(child.id(), expected);
            std::thread::sleep(Duration::from_millis(100)); // signals of one kind are merged
        }
        let ended = wait(child);
        let code = if expected == Signal::INT { 130 } else { 143 };
        assert_eq!(ended.code, Some(code), "{ended:?}");
        fake.has_left_nothing();
        if signals == 1 {
            let end = end(&fake.path("journal")).unwrap();
            assert_eq!(end["exit"], code);
            assert!(end["not_started"].as_u64().unwrap() > 900, "{end}");
        }
    }
}

#[test]
fn a_launcher_that_gives_up_is_a_loss_and_not_the_end() {
    let script = r#"[ $n -lt 2 ] || { "$@"; exit; }
        "$@" & while [ ! -s ran ]; do sleep 0.01; done; kill -TERM $!; wait; exit 1"#;
    let fake = Fake::new(script);
    let ended = fake.run(&[&["-p", "2", "--count", "100"], &JOB[..]].concat());
    assert_eq!((ended.code, fake.launches()), (Some(0), 2), "{ended:?}");
    assert_eq!(sorted(ended.text()), expected("out ", 100));
    assert!(!ended.stderr.contains("interrupted"), "{ended:?}");
}

#[test]
fn a_stopped_run_stops_its_workers_and_goes_on_as_it_was() {
    let fake = Fake::new(r#""$@""#);
    let job = ["--", "sh", "-c", "echo $0 >> ran; sleep 0.05; echo out $0", "{}"];
    let child = fake.command(&[&["-p", "2", "--count", "60"], &job[..]].concat()).spawn().unwrap();
    wait_until("jobs run", || fake.ran() >= 2);
    let run = children(children(child.id())[0])[0];
    signal(child.id(), Signal::TSTP);
    let is_stopped = |pid: u32| state(pid) == Some('T');
    wait_until("all is stopped", || {
        is_stopped(child.id()) && children(run).into_iter().all(is_stopped)
    });
    assert!(!is_stopped(run), "it tells the other hosts that it is there");
    signal(child.id(), Signal::CONT);
    let ended = wait(child);
    assert_eq!((ended.code, fake.launches()), (Some(0), 1), "{ended:?}");
    assert_eq!(sorted(ended.text()), expected("out ", 60));
}

#[test]
fn a_signal_to_change_the_number_of_workers_ends_no_run() {
    let fake = Fake::new(r#""$@""#);
    let job = ["--", "sh", "-c", "echo $0 >> ran; sleep 0.05; echo out $0", "{}"];
    let child = fake.command(&[&["-p", "2", "--count", "40"], &job[..]].concat()).spawn().unwrap();
    wait_until("jobs run", || fake.ran() >= 2);
    signal(child.id(), Signal::USR1);
    let ended = wait(child);
    assert_eq!((ended.code, fake.launches()), (Some(0), 1), "{ended:?}");
    assert_eq!(sorted(ended.text()), expected("out ", 40));
    let said = ended.stderr.contains("3 workers from now on") || ended.stderr.contains("stays 2");
    assert!(said, "{ended:?}");
}

#[test]
fn a_reader_that_goes_away_is_a_clean_end() {
    let fake = Fake::new(r#""$@""#);
    let mut child =
        fake.command(&["--task", "square", "0..100000000", "--format", "csv"]).spawn().unwrap();
    let lines = lines_of(child.stdout.take().unwrap());
    assert_eq!(
        lines.recv_timeout(Duration::from_secs(60)).unwrap(),
        "id,pid,worker,attempt,seconds,input,result,error"
    );
    drop(lines);
    let ended = wait(child);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    fake.has_left_nothing();
}

#[test]
fn a_run_whose_supervisor_is_killed_ends_and_is_resumed_to_the_same_results() {
    let fake = Fake::new(r#""$@""#);
    let words = ["-p", "2", "--count", "2000", "--task", "square", "--format", "csv"];
    let rows = |text: &str| {
        let columns = |line: &str| {
            let fields: Vec<_> = line.split(',').collect();
            format!("{} {} {}", fields[0], fields[5], fields[6])
        };
        text.lines().map(columns).collect::<Vec<_>>()
    };
    let whole = run(&[&["run"], &words[..]].concat());
    let journal = fake.path("journal");
    let words = [
        &["--journal", "journal", "--resume", "--results", "results"],
        &words[..],
        &["--chunk-size", "1"],
    ]
    .concat();
    for least in [2, 300] {
        let mut child = fake.command(&words).spawn().unwrap();
        let done = || fs::read_to_string(&journal).unwrap_or_default().lines().count();
        wait_until("some are done", || done() > least);
        // The launcher, and the run: as if the power were cut.
        for process in children(child.id()).into_iter().chain([child.id()]) {
            for run in children(process) {
                let _ = rustix::process::kill_process(
                    rustix::process::Pid::from_raw(run as i32).unwrap(),
                    Signal::KILL,
                );
            }
        }
        signal(child.id(), Signal::KILL);
        let _ = child.wait();
        for left in fs::read_dir(fake.path("tmp")).unwrap().flatten() {
            let _ = fs::remove_dir_all(left.path());
        }
    }
    let ended = fake.run(&words);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let results = fs::read_to_string(fake.path("results")).unwrap();
    assert_eq!(rows(&results), rows(whole.text()));
}

#[test]
fn a_supervisor_that_is_killed_takes_the_run_with_it_and_leaves_no_file() {
    let fake = Fake::new(r#""$@""#);
    let job = ["--", "sh", "-c", "echo $0 >> ran; exec sleep 60", "{}"];
    let child = fake.command(&[&["-p", "2", "--count", "9"], &job[..]].concat()).spawn().unwrap();
    wait_until("jobs run", || fake.ran() >= 2);
    signal(child.id(), Signal::KILL);
    let is_empty = || fs::read_dir(fake.path("tmp")).unwrap().next().is_none();
    wait_until("its files are gone", is_empty);
    let ended = wait(child);
    assert_eq!(ended.code, None, "{ended:?}");
    fake.has_left_nothing();
}

#[test]
fn a_silent_run_is_lost_and_launched_again() {
    let script = r#"[ $n -lt 2 ] || { "$@"; exit; }
        "$@" & while [ ! -s ran ]; do sleep 0.01; done; kill -STOP $!; wait"#;
    let fake = Fake::new(script);
    let ended = fake.run(&[&["--count", "20"], &JOB[..]].concat());
    assert_eq!((ended.code, fake.launches()), (Some(0), 2), "{ended:?}");
    assert!(ended.stderr.contains("silent"), "{ended:?}");
    assert_eq!(sorted(ended.text()), expected("out ", 20));
}

#[test]
fn hosts_that_cannot_be_meant_are_refused_before_anything_starts() {
    let fake = Fake::new(r#""$@""#);
    for (words, part) in [
        (&["--engine", "local"][..], "--engine local"),
        (&["--task", "nothing"], "nothing"),
        (&["--input", "/nowhere"], "--input"),
    ] {
        let ended = wait(fake.command(words).spawn().unwrap());
        assert!(ended.code == Some(2) && ended.stderr.contains(part), "{ended:?}");
    }
    for (words, part) in [
        (&["run", "--hosts", "240.0.0.1"][..], "none of the hosts"),
        (&["run", "--hosts", "a,a"], "twice"),
        (&["run", "--hostfile", "/nowhere"], "--hostfile"),
        (&["run", "--engine", "mpi"], "--hosts"),
    ] {
        let ended = run(words);
        assert!(ended.code == Some(2) && ended.stderr.contains(part), "{ended:?}");
    }
    assert!(!fake.path("launches").exists(), "nothing was launched");
    let mut command = procpool(&["run", "--hosts", "localhost", "1"]);
    let ended = wait(command.env("PATH", "/nowhere").spawn().unwrap());
    assert!(ended.code == Some(2) && ended.stderr.contains("openmpi-bin"), "{ended:?}");
}

#[test]
fn hosts_are_checked_with_the_remedy_for_each() {
    let fake = Fake::new("");
    let rsh = fake.path("rsh");
    let script = format!(
        "#!/bin/sh\nhost=$1; shift; case $host in gone) echo no route >&2; exit 255;; other) \
         exec {} hosts --describe | sed 's/\"build\":\"[^\"]*/&x/;s/\"boot\":\"/&x/';; *) exec sh -c \"$*\";; esac\n",
        env!("CARGO_BIN_EXE_procpool")
    );
    fs::write(&rsh, script).unwrap();
    fs::set_permissions(&rsh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let rsh = rsh.to_str().unwrap();
    let check = |hosts: &str, more: &[&str]| {
        let path = std::env::var("PATH").unwrap();
        let mut command = procpool(&[&["hosts", "--hosts", hosts, "--rsh", rsh], more].concat());
        command.env("PATH", format!("{}:{path}", fake.dir.path().display()));
        wait(command.spawn().unwrap())
    };
    let fine = check("localhost:3", &[]);
    assert!(fine.code == Some(0) && fine.text().contains("ok"), "{fine:?}");
    let ended = check("localhost,gone,other,again", &["--format", "json"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let rows = ended.json();
    let problems = ["", "no route", "another build", "same machine as localhost"];
    for (row, problem) in rows.iter().zip(problems) {
        assert!(row["problem"].as_str().unwrap_or_default().contains(problem), "{row}");
        assert_eq!(row.get("problem").is_none(), problem.is_empty(), "{row}");
    }
}
