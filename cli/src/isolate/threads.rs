//! A case among threads: in a child process, which may die of it, and its observation by the
//! parent.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::{fs::File, io};

use anyhow::{Context, Result};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, setrlimit};
use serde::{Deserialize, Serialize};

use super::bystander::{Answer, failing, healthy};
use super::cases::{BYSTANDERS, Case, MEMORY, NO_CORE};
use super::rendezvous::{Rendezvous, RendezvousFile, wait};
use crate::exit::Exit;
use procpool::DeathCause;

/// How long to observe a process that does not end by itself.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// How long bystanders wait for the failing task.
const TIMEOUT: Duration = Duration::from_millis(500);

/// CPU time after which the kernel kills the process, if its parent is gone.
const CPU_SECONDS: u64 = 20;

/// Descriptors from here on survive the fault.
const HIGH_FD: i32 = 512;

/// The observations of a case.
#[derive(Debug, Serialize)]
pub(super) struct Observation {
    pub(super) pid: u32,
    /// How the process ended.
    pub(super) ended: String,
    /// Whether it exited by itself with success.
    pub(super) ended_well: bool,
    /// What happened to the failing thread, if it survived to report it.
    pub(super) happened: Option<String>,
    pub(super) bystanders: usize,
    /// How many bystanders returned a result, and how many of the results are correct.
    pub(super) answers: usize,
    pub(super) right: usize,
    /// Changes that bystanders observed.
    pub(super) changed: Vec<String>,
}

impl Observation {
    pub(super) fn contained(&self) -> bool {
        self.ended_well && self.right == self.bystanders && self.changed.is_empty()
    }
}

/// A message of the child, one per line, sent as soon as it is known.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    Answer(Answer),
    /// How the failing thread ended.
    Happened(String),
}

/// Starts the child and observes it.
pub(super) fn watch(case: Case) -> Result<Observation> {
    let file = RendezvousFile::new().context("failed to create a memory file")?;
    let rendezvous = file.rendezvous();
    let mut child = Command::new("/proc/self/exe")
        .args(["isolate", "--case", &case.name(), "--threads-child"])
        .arg(rendezvous.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // A crash prints a message, and the exit status says the same.
        .stderr(Stdio::null())
        // A group of its own, to kill all of it, and to keep Ctrl-C for the parent.
        .process_group(0)
        .spawn()
        .context("failed to start this program once more")?;
    let group = Pid::from_child(&child);
    let words = child.stdout.take().map(messages_of);
    if case == Case::Kill && rendezvous.wait_acting(TIME_LIMIT).is_some() {
        let _ = kill_process_group(group, Signal::KILL); // it has not been waited for
    }
    let mut status = None;
    wait(TIME_LIMIT, || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    if status.is_none() {
        let _ = kill_process_group(group, Signal::KILL);
        child.wait().context("failed to wait for the process of threads")?;
    }
    let words: Vec<Message> = words.map(|words| words.iter().collect()).unwrap_or_default();
    Ok(seen(child.id(), status, words))
}

fn seen(pid: u32, status: Option<ExitStatus>, words: Vec<Message>) -> Observation {
    let mut happened = None;
    let mut answers = Vec::new();
    for word in words {
        match word {
            Message::Answer(answer) => answers.push(answer),
            Message::Happened(what) => happened = Some(what),
        }
    }
    let mut changed: Vec<String> =
        answers.iter().flat_map(|answer| answer.changed.clone()).collect();
    changed.dedup();
    Observation {
        pid,
        ended: ended(status),
        // An exit with missing results is a failure, whatever the code.
        ended_well: status.is_some_and(|status| status.success()) && happened.is_some(),
        happened,
        bystanders: BYSTANDERS,
        answers: answers.len(),
        right: answers.iter().filter(|answer| answer.is_right()).count(),
        changed,
    }
}

fn ended(status: Option<ExitStatus>) -> String {
    let Some(status) = status else {
        return format!("had to be killed after {} s", TIME_LIMIT.as_secs());
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => DeathCause::Exited(code).to_string(),
        (_, Some(signal)) => DeathCause::Signaled(signal, false).to_string(),
        (None, None) => status.to_string(),
    }
}

/// Reads the child's messages on a thread until their end.
fn messages_of(stdout: impl io::Read + Send + 'static) -> mpsc::Receiver<Message> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Ok(word) = serde_json::from_str(&line) {
                let _ = sender.send(word);
            }
        }
    });
    receiver
}

/// Runs in the child: threads run the healthy tasks, and one of them fails.
pub(super) fn act(case: Case, rendezvous: &Path) -> Result<Exit> {
    limit().context("failed to limit this process")?;
    let rendezvous = Rendezvous::at(rendezvous);
    // Out of reach of the fault, as a worker's channel is.
    let stdout = rustix::io::fcntl_dupfd_cloexec(io::stdout(), HIGH_FD)
        .or_else(|_| rustix::io::dup(io::stdout()))?;
    let mut stdout = File::from(stdout);
    let mut tell = |word: &Message| -> Result<()> {
        let mut line = serde_json::to_vec(word)?;
        line.push(b'\n');
        Ok(stdout.write_all(&line)?)
    };

    let (sender, answers) = mpsc::channel();
    for bystander in 0..BYSTANDERS {
        let (rendezvous, sender) = (rendezvous.clone(), sender.clone());
        thread::Builder::new().spawn(move || sender.send(healthy((rendezvous, bystander))))?;
    }
    drop(sender);
    let failing_task = thread::Builder::new().spawn({
        let rendezvous = rendezvous.clone();
        move || failing((rendezvous, case))
    })?;
    rendezvous.wait_acting(TIME_LIMIT);
    wait(TIMEOUT, || failing_task.is_finished());
    rendezvous.set_over();
    for answer in answers {
        tell(&Message::Answer(answer))?;
    }
    // A thread cannot be ended from outside: this blocks for as long as it takes.
    let happened = match failing_task.join() {
        Ok(changes) => changes.join(", "),
        Err(_) => "panicked".to_owned(),
    };
    tell(&Message::Happened(happened))?;
    Ok(Exit::Success)
}

/// Limits the damage that this process can do.
fn limit() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let at_most = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
    setrlimit(Resource::Core, at_most(NO_CORE))?;
    setrlimit(Resource::Data, at_most(MEMORY))?;
    setrlimit(Resource::Cpu, at_most(CPU_SECONDS))?;
    Ok(())
}
