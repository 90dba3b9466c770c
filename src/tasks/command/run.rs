//! One job in its worker: starting it, its limits, how it ended.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use procpool_worker::harden;
use rustix::process::Signal;

use super::lines::Lines;
use super::{CommandJob, Ended, Prints, Recipe, Verdict};
use crate::os::command::{self, Program};
use crate::os::observe;
use crate::os::process::CaptureFile;
use crate::tasks::Bytes;

/// The variable of a worker's environment, and so of its jobs', that says which slot it has, from 1.
pub(crate) const SLOT: &str = "PROCPOOL_SLOT";

/// How often the memory of a job is looked at.
const OFTEN: Duration = Duration::from_millis(10);

/// The longest that a limited job is waited for at a time. A wait that took much longer means that
/// the worker was stopped, and its job with it: such a time counts for nothing.
const TICK: Duration = Duration::from_millis(250);

/// How long a job that has been asked to end may take before it is made to.
const GRACE: Duration = Duration::from_millis(500);

/// What a worker has for its jobs.
struct Runner {
    recipe: Recipe,
    slot: String,
    stdout: CaptureFile,
    stderr: CaptureFile,
}

/// Makes a worker ready for jobs: its initializer.
///
/// # Panics
///
/// When the system refuses what it needs; the pool then says so.
pub fn prepare(recipe: Recipe) -> impl Sized + 'static {
    let ready = || -> io::Result<Runner> {
        command::adopt_orphans()?;
        Ok(Runner {
            slot: std::env::var(SLOT).unwrap_or_default(),
            recipe,
            stdout: CaptureFile::new()?,
            stderr: CaptureFile::new()?,
        })
    };
    ready().unwrap_or_else(|error| panic!("failed to get ready for commands: {error}"))
}

/// Does one job, and tries it again where it fails and may be.
pub fn run(job: CommandJob) -> Ended {
    let ended = crate::with_state(|runner: &mut Runner| {
        let mut attempts = 1;
        loop {
            let ended = runner.attempt(&job, attempts);
            let again = !ended.verdict.is_success() && ended.verdict != Verdict::Unread;
            if !again || attempts > runner.recipe.retries {
                return ended;
            }
            attempts += 1;
        }
    });
    // Not reached: each worker of the pool that is given commands is prepared for them.
    ended.unwrap_or_else(|| Ended::not_started(1, 0, "the worker was not made ready".to_owned()))
}

impl Ended {
    fn not_started(attempts: u32, code: i32, reason: String) -> Self {
        Self {
            verdict: Verdict::NotStarted(code, reason),
            began: harden::now(),
            elapsed: Duration::ZERO,
            cpu: Duration::ZERO,
            memory: 0,
            attempts,
            stdout: Bytes::default(),
            stderr: Bytes::default(),
        }
    }
}

impl Runner {
    fn attempt(&self, job: &CommandJob, attempts: u32) -> Ended {
        let began = harden::now();
        let start = Instant::now();
        let words = self.recipe.template.words(job, &self.slot);
        let file = self.recipe.program.as_deref();
        let started = self.start(job, file, &words).or_else(|error| {
            let script = self.as_script(&words, &error);
            script.map_or(Err(error), |words| self.start(job, None, &words))
        });
        let (program, lines) = match started {
            Ok(started) => started,
            Err(error) => {
                let (code, reason) = why_not(&words, &error);
                return Ended::not_started(attempts, code, reason);
            }
        };
        let waited = self.wait(program, job.limit, lines);
        let elapsed = start.elapsed();
        let is_unread = self.recipe.prints == Prints::Inherit && command::is_unread();
        let (stdout, stderr) = match self.recipe.prints {
            Prints::Grouped => (self.stdout.take().into(), self.stderr.take().into()),
            _ => (Bytes::default(), Bytes::default()),
        };
        match waited {
            Ok((verdict, ended)) => Ended {
                verdict: match verdict {
                    None if is_unread && ended.status.signal().is_some() => Verdict::Unread,
                    verdict => verdict.unwrap_or_else(|| Verdict::of(ended.status)),
                },
                began,
                elapsed,
                cpu: ended.cpu,
                memory: ended.memory,
                attempts,
                stdout,
                stderr,
            },
            Err(error) => Ended {
                began,
                elapsed,
                stdout,
                stderr,
                ..Ended::not_started(attempts, 1, format!("how it ended is not known: {error}"))
            },
        }
    }

    fn start(
        &self,
        job: &CommandJob,
        file: Option<&Path>,
        words: &[OsString],
    ) -> io::Result<(Program, Vec<Lines>)> {
        let Some((name, arguments)) = words.split_first() else {
            return Err(ErrorKind::NotFound.into());
        };
        let file = file.unwrap_or(name.as_ref());
        let mut command = Command::new(file);
        // The worker's own standard input is empty already.
        command.arg0(name).args(arguments).stdin(Stdio::inherit());
        let mut lines = Vec::new();
        match self.recipe.prints {
            Prints::Inherit => {}
            Prints::Null => {
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
            Prints::Grouped => {
                command.stdout(self.stdout.file().try_clone()?);
                command.stderr(self.stderr.file().try_clone()?);
            }
            Prints::Lines { tag } => {
                let tag = if tag { [&*job.input.to_bytes(), b"\t"].concat() } else { Vec::new() };
                let (out, to_out) = io::pipe()?;
                let (err, to_err) = io::pipe()?;
                command.stdout(to_out).stderr(to_err);
                lines.push(Lines::new(out.into(), Box::new(io::stdout()), tag.clone())?);
                lines.push(Lines::new(err.into(), Box::new(io::stderr()), tag)?);
            }
        }
        // The command holds the other ends of the pipes, and is dropped here.
        Ok((Program::start(&mut command)?, lines))
    }

    /// The words that are run instead where a file is no program: a shell runs it as a script then,
    /// unless it's another machine's program.
    fn as_script(&self, words: &[OsString], error: &io::Error) -> Option<Vec<OsString>> {
        if error.raw_os_error() != Some(libc::ENOEXEC) {
            return None;
        }
        let (name, arguments) = words.split_first()?;
        let file = self.recipe.program.as_deref().unwrap_or(name.as_ref());
        let mut start = [0; 256];
        let length = File::open(file).and_then(|mut file| file.read(&mut start)).ok()?;
        if start[..length].contains(&0) {
            return None;
        }
        let script = ["/bin/sh".into(), file.as_os_str().to_owned()];
        Some(script.into_iter().chain(arguments.iter().cloned()).collect())
    }

    /// Waits for the end of a job and of all that it has started, keeps its limits and passes on its
    /// lines. The verdict is why it was ended, if it was.
    fn wait(
        &self,
        program: Program,
        limit: Option<Duration>,
        mut lines: Vec<Lines>,
    ) -> io::Result<(Option<Verdict>, command::Ended)> {
        let memory = self.recipe.memory;
        if limit.is_none() && memory.is_none() && lines.is_empty() {
            let mut ended = program.wait()?;
            command::end_left_behind(&mut ended);
            return Ok((None, ended));
        }
        let pidfd = program.pidfd()?;
        let mut verdict = None;
        let mut ran = Duration::ZERO;
        // When it is made to end, after it was asked to.
        let mut last = limit;
        loop {
            let before = Instant::now();
            let left = last.map(|last| last.saturating_sub(ran).min(TICK));
            let tick = if memory.is_some() { Some(left.unwrap_or(OFTEN).min(OFTEN)) } else { left };
            let pipe = |index: usize| lines.get(index).and_then(Lines::pipe);
            let files = [Some(pidfd.as_fd()), pipe(0), pipe(1)];
            let [ended, ..] = command::poll_readable(files, tick);
            if ended {
                break;
            }
            let passed = before.elapsed();
            let is_stopped = tick.is_some_and(|tick| passed > tick + 4 * TICK);
            ran += if is_stopped { tick.unwrap_or_default() } else { passed };
            if lines.iter_mut().try_for_each(Lines::pass).is_err() {
                verdict.get_or_insert(Verdict::Unread);
                lines.clear();
                command::signal_descendants(Signal::KILL);
            }
            if let Some(most) = memory.filter(|most| verdict.is_none() && taken() > *most) {
                verdict = Some(Verdict::OutOfMemory(most));
                // It would only take more meanwhile.
                command::signal_descendants(Signal::KILL);
            } else if last.is_some_and(|last| ran >= last) {
                let asked = verdict.is_some();
                verdict = verdict.or(limit.map(Verdict::TimedOut));
                let signal = if asked { Signal::KILL } else { Signal::TERM };
                command::signal_descendants(signal);
                last = Some(ran + GRACE);
            }
        }
        let mut ended = program.wait()?;
        // What it has left behind may hold its output open, and print on and on.
        command::end_left_behind(&mut ended);
        if lines.into_iter().try_for_each(Lines::finish).is_err() {
            verdict = verdict.or(Some(Verdict::Unread));
        }
        Ok((verdict, ended))
    }
}

impl Verdict {
    fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, signal) => Self::Signaled(signal.unwrap_or(0), status.core_dumped()),
        }
    }
}

/// The resident memory in bytes of all that this worker has started.
fn taken() -> u64 {
    observe::descendants(std::process::id()).into_iter().filter_map(observe::resident).sum()
}

/// The exit code that a shell gives for a program that can't be started, and what to do about it.
fn why_not(words: &[OsString], error: &io::Error) -> (i32, String) {
    let name = words.first().cloned().unwrap_or_default();
    let (code, remedy) = match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => (127, "; check its name, and PATH"),
        ErrorKind::PermissionDenied => (126, "; check its permissions (chmod +x)"),
        ErrorKind::ArgumentListTooLong => (126, "; the input is longer than an argument may be"),
        _ if error.raw_os_error() == Some(libc::ENOEXEC) => {
            (126, "; it's a program for another machine, or damaged")
        }
        // An input with a NUL in it, which only -0 keeps from being one.
        ErrorKind::InvalidInput => (126, "; separate inputs by NUL with -0"),
        _ => (126, ""),
    };
    (code, format!("failed to start {name:?}: {error}{remedy}"))
}
