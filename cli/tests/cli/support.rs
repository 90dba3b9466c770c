//! Starts the binary and waits for it, but never for ever.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Far more than anything here takes on a slow machine, and the end of a hang.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The command with these arguments and an empty standard input.
pub(crate) fn procpool<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_procpool"));
    command.args(arguments).env_remove("PROCPOOL_PROCS");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// The rows of `--format json`.
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The rows of `--format csv`, without the header.
    pub(crate) fn csv(&self) -> Vec<csv::ByteRecord> {
        let mut reader = csv::Reader::from_reader(self.stdout.as_slice());
        reader.byte_records().collect::<Result<_, _>>().unwrap()
    }
}

/// Runs it to its end.
pub(crate) fn run<S: AsRef<OsStr>>(arguments: &[S]) -> Ended {
    wait(procpool(arguments).spawn().unwrap())
}

/// Runs it to its end with this on its standard input, which is a pipe.
pub(crate) fn run_with_input<S: AsRef<OsStr>>(arguments: &[S], input: &[u8]) -> Ended {
    let mut child = procpool(arguments).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        wait(child)
    })
}

/// Waits for the end. A run that has none is killed, and the test with it.
pub(crate) fn wait(child: Child) -> Ended {
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(LIMIT) else {
        signal(pid, Signal::KILL);
        panic!("it was still running after {LIMIT:?}");
    };
    let output = output.unwrap();
    Ended {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The lines that a run writes to either of its outputs, as it writes them.
pub(crate) fn lines_of(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Waits until it holds; fails the test if that takes too long.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The PIDs of a process's children.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let children = tasks.flatten().map(|task| fs::read_to_string(task.path().join("children")));
    let children: Vec<String> = children.flatten().collect();
    children
        .iter()
        .flat_map(|pids| pids.split_whitespace())
        .map(|pid| pid.parse().unwrap())
        .collect()
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}
