//! The act among threads: in a child process, since it may not come back, and the parent's look at
//! that.

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

use super::cases::{Case, MEMORY, NEIGHBOURS, NO_CORE};
use super::neighbour::{Answer, healthy, sick};
use super::scene::{Scene, Stage, wait};
use crate::exit::Exit;
use procpool::DeathCause;

/// How long a process that doesn't end by itself is watched.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// How long the neighbours wait for the one that goes wrong, there.
const PATIENCE: Duration = Duration::from_millis(500);

/// CPU time after which the kernel ends the process, should nobody be left to do it.
const CPU_SECONDS: u64 = 20;

/// Descriptors from here on are not closed by what goes wrong.
const HIGH_FD: i32 = 512;

/// What was seen.
#[derive(Debug, Serialize)]
pub(super) struct Seen {
    pub(super) pid: u32,
    /// How the process ended.
    pub(super) ended: String,
    /// Whether it did so by itself, without a failure.
    pub(super) ended_well: bool,
    /// What became of the thread in which it went wrong, if it lived to tell.
    pub(super) happened: Option<String>,
    pub(super) neighbours: usize,
    /// How many of the neighbours' answers came, and how many of those are right.
    pub(super) answers: usize,
    pub(super) right: usize,
    /// What the neighbours found changed.
    pub(super) changed: Vec<String>,
}

impl Seen {
    pub(super) fn contained(&self) -> bool {
        self.ended_well && self.right == self.neighbours && self.changed.is_empty()
    }
}

/// What the child tells, a line each, as soon as it knows.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Answer(Answer),
    /// The thread in which it went wrong has ended so.
    Happened(String),
}

/// Starts the child, and watches.
pub(super) fn watch(case: Case) -> Result<Seen> {
    let stage = Stage::new().context("failed to make a file in memory")?;
    let scene = stage.scene();
    let mut child = Command::new("/proc/self/exe")
        .args(["isolate", "--case", &case.name(), "--threads-child"])
        .arg(scene.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // A crash prints its message, and how it ended says it all.
        .stderr(Stdio::null())
        // So that all of it can be killed, and a Ctrl-C is the parent's alone.
        .process_group(0)
        .spawn()
        .context("failed to start this program once more")?;
    let group = Pid::from_child(&child);
    let words = child.stdout.take().map(words_of);
    if case == Case::Kill && scene.wait_acting(TIME_LIMIT).is_some() {
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
    let words: Vec<Word> = words.map(|words| words.iter().collect()).unwrap_or_default();
    Ok(seen(child.id(), status, words))
}

fn seen(pid: u32, status: Option<ExitStatus>, words: Vec<Word>) -> Seen {
    let mut happened = None;
    let mut answers = Vec::new();
    for word in words {
        match word {
            Word::Answer(answer) => answers.push(answer),
            Word::Happened(what) => happened = Some(what),
        }
    }
    let mut changed: Vec<String> =
        answers.iter().flat_map(|answer| answer.changed.clone()).collect();
    changed.dedup();
    Seen {
        pid,
        ended: ended(status),
        // An exit with tasks that were not answered is not well, whatever its code.
        ended_well: status.is_some_and(|status| status.success()) && happened.is_some(),
        happened,
        neighbours: NEIGHBOURS,
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

/// What the child says, read on a thread until its end.
fn words_of(stdout: impl io::Read + Send + 'static) -> mpsc::Receiver<Word> {
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

/// The child: threads do the healthy tasks, and one of them goes wrong.
pub(super) fn act(case: Case, scene: &Path) -> Result<Exit> {
    limit().context("failed to limit this process")?;
    let scene = Scene::at(scene);
    // Out of the way of what goes wrong, as a worker's channel is.
    let stdout = rustix::io::fcntl_dupfd_cloexec(io::stdout(), HIGH_FD)
        .or_else(|_| rustix::io::dup(io::stdout()))?;
    let mut stdout = File::from(stdout);
    let mut tell = |word: &Word| -> Result<()> {
        let mut line = serde_json::to_vec(word)?;
        line.push(b'\n');
        Ok(stdout.write_all(&line)?)
    };

    let (sender, answers) = mpsc::channel();
    for neighbour in 0..NEIGHBOURS {
        let (scene, sender) = (scene.clone(), sender.clone());
        thread::Builder::new().spawn(move || sender.send(healthy((scene, neighbour))))?;
    }
    drop(sender);
    let patient = thread::Builder::new().spawn({
        let scene = scene.clone();
        move || sick((scene, case))
    })?;
    scene.wait_acting(TIME_LIMIT);
    wait(PATIENCE, || patient.is_finished());
    scene.set_over();
    for answer in answers {
        tell(&Word::Answer(answer))?;
    }
    // There is no ending a thread from outside: this waits for as long as it takes.
    let happened = match patient.join() {
        Ok(changes) => changes.join(", "),
        Err(_) => "panicked".to_owned(),
    };
    tell(&Word::Happened(happened))?;
    Ok(Exit::AllWell)
}

/// Sees to it that this process harms nobody else.
fn limit() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let at_most = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
    setrlimit(Resource::Core, at_most(NO_CORE))?;
    setrlimit(Resource::Data, at_most(MEMORY))?;
    setrlimit(Resource::Cpu, at_most(CPU_SECONDS))?;
    Ok(())
}
