//! Starts the binary and waits for it, but never for ever.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Far more than anything here takes on a slow machine, and the end of a hang.
pub(crate) const LIMIT: Duration = Duration::from_secs(50);

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

/// The letter that stands for what a process is at; none where there is none.
pub(crate) fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

/// A run in a terminal of its own.
pub(crate) struct Terminal {
    /// `script`, which owns the other side of the terminal and writes what is sent there to a file.
    child: Child,
    keyboard: ChildStdin,
    dir: TempDir,
}

impl Terminal {
    /// Starts procpool with these arguments, in an empty directory. The shell that the terminal
    /// belongs to waits to be told to end: with it, the kernel throws away what has been written to
    /// the terminal and not been read.
    pub(crate) fn start(arguments: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let procpool = env!("CARGO_BIN_EXE_procpool");
        let command = format!(
            "trap : INT; stty rows 30 cols 120; {procpool} {arguments}; code=$?; \
             until test -e seen; do sleep 0.01; done; exit $code"
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--flush", "--return", "--command", &command, "screen"]);
        script.current_dir(&dir).env_remove("PROCPOOL_PROCS").env("TERM", "xterm");
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = script.spawn().unwrap();
        let keyboard = child.stdin.take().unwrap();
        Self { child, keyboard, dir }
    }

    /// The directory that it runs in.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The PID of procpool.
    pub(crate) fn pid(&self) -> u32 {
        children(children(self.child.id())[0])[0]
    }

    pub(crate) fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// All that was sent to the terminal so far.
    pub(crate) fn shown(&self) -> String {
        let shown = fs::read(self.dir().join("screen")).unwrap_or_default();
        let shown = String::from_utf8_lossy(&shown).into_owned();
        // The first and the last line are script's own.
        let shown = match shown.split_once('\n') {
            Some((first, rest)) if first.starts_with("Script started") => rest.to_owned(),
            _ => shown,
        };
        shown.split("\nScript done").next().unwrap_or_default().to_owned()
    }

    /// Waits until what was sent to the terminal is such.
    #[track_caller]
    pub(crate) fn wait_until(&self, what: &str, holds: impl Fn(&str) -> bool) {
        wait_until(what, || holds(&self.shown()));
    }

    /// Waits for the end. Returns the exit code and all that was sent to the terminal; what comes last
    /// must have been waited for.
    pub(crate) fn end(self) -> (Option<i32>, String) {
        fs::write(self.dir().join("seen"), "").unwrap();
        let shown = self.shown();
        (wait(self.child).code, shown)
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}
