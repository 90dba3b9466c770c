//! One job in its worker: start, limits, end.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::os::clock;
use rustix::process::Signal;

use super::job::{CommandJob, Completed, FailedAttempt, Printed, Status};
use super::lines::{Lines, To};
use super::spec::{CommandSpec, OutputMode};
use super::spill::{self, Capture, Spiller};
use crate::os::observe;
use crate::os::program::{self, Program, TerminalWatch};
use crate::os::terminal::{self, Terminal};
use crate::tasks::Strings;

/// The environment variable of a worker and its jobs with the worker's number, from 1.
const SLOT: &str = "PROCPOOL_SLOT";

/// How often to sample the memory of a job.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// The longest single wait for a job with a limit. A wait that took much longer means that the
/// worker was stopped, and its job with it: that time does not count.
const TICK: Duration = Duration::from_millis(250);

/// How long a job may take to end after SIGTERM.
const GRACE: Duration = Duration::from_millis(500);

/// The state of a worker for commands.
struct Runner {
    spec: CommandSpec,
    slot: String,
    /// The variable that tells jobs the same.
    variable: CString,
    spiller: Spiller,
    watch: TerminalWatch,
    /// The terminal, if jobs have it.
    terminal: Option<Terminal>,
    /// Whether the user has interrupted a job on the terminal. The run ends, and no other job starts meanwhile.
    is_interrupted: bool,
}

/// One of a job's two output streams.
enum Output {
    Lines(Lines),
    Capture(Capture),
}

/// A running job.
struct Running {
    program: Program,
    /// Both streams, or none if the worker does not read them.
    outputs: Vec<Output>,
}

/// The end of an attempt.
struct AttemptEnd {
    /// Why it was killed, if it was.
    status: Option<Status>,
    ended: program::ProgramExit,
    printed: [Printed; 2],
}

/// Initializes a worker for jobs.
///
/// # Panics
///
/// If the system refuses a resource. The pool then reports the message.
pub(crate) fn prepare(spec: CommandSpec) -> impl Sized + 'static {
    // As the run counts them, over all hosts.
    let number = procpool::worker().map_or(0, |worker| worker.slot + 1);
    let ready = || -> io::Result<Runner> {
        program::adopt_orphans()?;
        program::default_child_signal();
        let mut spiller = Spiller::new(spec.spill.clone());
        if spec.confined && spec.prints == OutputMode::Grouped {
            spiller.open_early()?;
        }
        Ok(Runner {
            variable: CString::new(format!("{SLOT}={number}"))?,
            slot: number.to_string(),
            spiller,
            watch: TerminalWatch::start()?,
            terminal: spec.has_terminal.then(Terminal::open).transpose()?,
            is_interrupted: false,
            spec,
        })
    };
    ready().unwrap_or_else(|error| panic!("failed to prepare the worker for commands: {error}"))
}

/// Runs a job, and retries it after a failure if allowed.
pub(crate) fn run(job: CommandJob) -> Completed {
    let ended = procpool::with_state(|runner: &mut Runner| {
        let mut attempts = 1;
        let mut earlier = Vec::new();
        if runner.is_interrupted || !runner.spec.start.wait() {
            let held = Completed::not_started(1, 0, String::new());
            return Completed { status: Status::Held, ..held };
        }
        loop {
            let ended = runner.attempt(&job, attempts);
            let start = &runner.spec.start;
            let is_retried = ended.status.may_be_retried()
                && attempts <= runner.spec.retries
                && start.wait_to_retry(attempts)
                && start.wait();
            if !is_retried {
                runner.is_interrupted = ended.status == Status::Interrupted;
                runner.spiller.announce([&ended.stdout, &ended.stderr]);
                return Completed { earlier, ..ended };
            }
            earlier.push(FailedAttempt {
                began: ended.began,
                elapsed: ended.elapsed,
                error: ended.status.to_string(),
            });
            runner.spiller.drop_range(&ended.stdout);
            runner.spiller.drop_range(&ended.stderr);
            attempts += 1;
        }
    });
    // Not reached: every worker of a pool for commands runs `prepare`.
    ended.unwrap_or_else(|| {
        Completed::not_started(1, 0, "the worker was not initialized".to_owned())
    })
}

impl Completed {
    fn not_started(attempts: u32, code: i32, reason: String) -> Self {
        Self {
            status: Status::NotStarted(code, reason),
            began: clock::now(),
            elapsed: Duration::ZERO,
            cpu: Duration::ZERO,
            memory: 0,
            attempts,
            earlier: Vec::new(),
            stdout: Printed::default(),
            stderr: Printed::default(),
        }
    }
}

impl Runner {
    fn attempt(&mut self, job: &CommandJob, attempts: u32) -> Completed {
        let began = clock::now();
        let start = Instant::now();
        let words = self.spec.template.words(job, &self.slot);
        let file = self.spec.program.clone();
        // Leftovers of the previous job are gone, and so is their request for the terminal.
        self.watch.clear();
        if let Some(Err(error)) = self.terminal.as_ref().map(Terminal::take) {
            let reason = format!("failed to get the terminal: {error}");
            return Completed::not_started(attempts, 1, reason);
        }
        let started = self.start(job, file.as_deref(), &words, attempts).or_else(|error| {
            let script = self.as_script(&words, &error);
            script.map_or(Err(error), |words| self.start(job, None, &words, attempts))
        });
        let running = match started {
            Ok(running) => running,
            Err(error) => {
                self.terminal.iter().for_each(Terminal::give_back);
                let (code, reason) = why_not(&words, &error);
                return Completed::not_started(attempts, code, reason);
            }
        };
        let over = self.wait(running, job.limit);
        self.terminal.iter().for_each(Terminal::give_back);
        let elapsed = start.elapsed();
        let stdout_is_closed =
            self.spec.prints == OutputMode::Inherit && program::stdout_is_closed();
        match over {
            Ok(AttemptEnd { status, ended, printed: [stdout, stderr] }) => Completed {
                status: match status {
                    None if stdout_is_closed && ended.status.signal().is_some() => {
                        Status::OutputClosed
                    }
                    None if self.terminal.is_some()
                        && ended.status.signal() == Some(libc::SIGINT) =>
                    {
                        Status::Interrupted
                    }
                    status => status.unwrap_or_else(|| Status::of(ended.status)),
                },
                began,
                elapsed,
                cpu: ended.cpu,
                memory: ended.memory,
                attempts,
                earlier: Vec::new(),
                stdout,
                stderr,
            },
            Err(error) => Completed {
                began,
                elapsed,
                ..Completed::not_started(attempts, 1, format!("failed to wait for it: {error}"))
            },
        }
    }

    fn start(
        &self,
        job: &CommandJob,
        file: Option<&Path>,
        words: &Strings,
        attempts: u32,
    ) -> io::Result<Running> {
        let Some(name) = words.first() else {
            return Err(ErrorKind::NotFound.into());
        };
        let file = file.unwrap_or(Path::new(OsStr::from_bytes(name)));
        let mut outputs = Vec::new();
        // The job's ends. This process's copies are closed after the start.
        let mut given: [Option<OwnedFd>; 2] = [None, None];
        match self.spec.prints {
            OutputMode::Inherit => {}
            OutputMode::Null => {
                let null = File::options().write(true).open("/dev/null")?;
                given = [Some(null.try_clone()?.into()), Some(null.into())];
            }
            OutputMode::Grouped | OutputMode::Lines => {
                let [(out, to_out), (err, to_err)] = [self.stream()?, self.stream()?];
                given = [Some(to_out), Some(to_err)];
                if self.spec.prints == OutputMode::Lines {
                    let tag = self.spec.tag.as_ref();
                    let tag = tag.map_or(Vec::new(), |tag| tag.tag(job, &self.slot));
                    let lines = Lines::new(out, To::Stdout, tag.clone())?;
                    outputs.push(Output::Lines(lines));
                    outputs.push(Output::Lines(Lines::new(err, To::Stderr, tag)?));
                } else {
                    // The output of an attempt that may be retried must not be shown live.
                    let shown = (attempts > self.spec.retries).then_some(job.id);
                    let mut captures = [Capture::new(out, 0, shown)?, Capture::new(err, 1, None)?];
                    if self.spec.watched {
                        captures = captures.map(|it| it.watched(job.id));
                    }
                    outputs.extend(captures.map(Output::Capture));
                }
            }
        }
        if self.spec.verbose && matches!(self.spec.prints, OutputMode::Inherit | OutputMode::Lines)
        {
            let mut line = self.spec.template.line(job, &self.slot);
            line.push(b'\n');
            // Without a reader, the job goes on.
            let _ = io::stderr().write_all(&line);
        }
        let [out, err] = &given;
        let [out, err] = [out, err].map(|output| output.as_ref().map(AsFd::as_fd));
        let given = job.stdin.as_ref().map(AsFd::as_fd);
        let stdin = given.or(self.terminal.as_ref().map(AsFd::as_fd));
        if let Some(given) = given {
            // An earlier attempt may have read it.
            rustix::fs::seek(given, rustix::fs::SeekFrom::Start(0))?;
        }
        let (streams, has_terminal) = ([stdin, out, err], self.terminal.is_some());
        let file = file.as_os_str();
        Ok(Running {
            program: Program::start(file, words, &self.variable, streams, has_terminal)?,
            outputs,
        })
    }

    /// Creates what a job writes to. Returns this process's end, and the job's.
    fn stream(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        if self.spec.pseudo_terminal {
            return terminal::pseudo();
        }
        io::pipe().map(|(from, to)| (from.into(), to.into()))
    }

    /// Returns the words to run if the file is not a program: as in a shell, a script of /bin/sh,
    /// unless it is a binary for another machine.
    fn as_script(&self, words: &Strings, error: &io::Error) -> Option<Strings> {
        if error.raw_os_error() != Some(libc::ENOEXEC) {
            return None;
        }
        let named = Path::new(OsStr::from_bytes(words.first()?));
        let file = self.spec.program.as_deref().unwrap_or(named);
        let mut start = [0; 256];
        let length = File::open(file).and_then(|mut file| file.read(&mut start)).ok()?;
        if start[..length].contains(&0) {
            return None;
        }
        let script = [&b"/bin/sh"[..], file.as_os_str().as_bytes()];
        Some(script.into_iter().chain(words.iter().skip(1)).collect())
    }

    /// Waits for the end of a job and of all its processes, enforces its limits and reads its
    /// output.
    fn wait(&mut self, running: Running, limit: Option<Duration>) -> io::Result<AttemptEnd> {
        let Running { program, mut outputs } = running;
        let memory = self.spec.memory;
        let mut status = None;
        let pidfd = program.pidfd()?;
        let mut ran = Duration::ZERO;
        // When it gets the next signal.
        let mut last = limit;
        // How many signals of the sequence it has got.
        let mut signals = 0;
        let mut interval = MIN_CHECK_INTERVAL;
        loop {
            let before = Instant::now();
            let left = last.map(|last| last.saturating_sub(ran).min(TICK));
            let tick =
                if memory.is_some() { Some(left.unwrap_or(interval).min(interval)) } else { left };
            let pipe = |index: usize| outputs.get(index).and_then(Output::pipe);
            let files = [Some(pidfd.as_fd()), pipe(0), pipe(1), Some(self.watch.as_fd())];
            let [ended, _, _, wants_terminal] = program::poll_readable(files, tick);
            if ended {
                break;
            }
            if wants_terminal && self.watch.clear() && status.is_none() {
                status = Some(Status::NeedsTerminal);
                // It is stopped, and would get these signals again and again.
                program::signal_descendants(Signal::TERM);
                program::signal_descendants(Signal::CONT);
                last = Some(ran + GRACE);
            }
            let passed = before.elapsed();
            let is_stopped = tick.is_some_and(|tick| passed > tick + 4 * TICK);
            ran += if is_stopped { tick.unwrap_or_default() } else { passed };
            let before = Instant::now();
            let spiller = &mut self.spiller;
            if let Err(why) = outputs.iter_mut().try_for_each(|it| it.pass(spiller)) {
                status.get_or_insert(why);
                // Without a reader, its next write kills it. Its processes may want to clean up.
                outputs.clear();
                program::signal_descendants(Signal::TERM);
                last = Some(ran + GRACE);
            }
            if let Some(most) = memory.filter(|_| status.is_none()) {
                let checked = Instant::now();
                if takes_more_than(most) {
                    status = Some(Status::OutOfMemory(most));
                    // It would only use more memory in the meantime.
                    program::signal_descendants(Signal::KILL);
                    last = Some(ran + GRACE);
                }
                // Sampling a lot of memory takes long.
                interval = MIN_CHECK_INTERVAL.max(4 * checked.elapsed());
            }
            ran += before.elapsed();
            if last.is_some_and(|last| ran >= last) {
                status = status.or(limit.map(Status::TimedOut));
                let (signal, pause) = match status {
                    Some(Status::TimedOut(_)) => self.spec.signals.step(signals),
                    // It has got SIGTERM.
                    _ => (Signal::KILL, GRACE),
                };
                program::signal_descendants(signal);
                signals += 1;
                last = Some(ran + pause);
            }
        }
        let mut ended = program.wait()?;
        // Leftover processes may hold its output open and write forever.
        program::kill_orphans(&mut ended);
        let mut printed = [Printed::default(), Printed::default()];
        for (output, printed) in outputs.into_iter().zip(&mut printed) {
            let finished = match output {
                Output::Lines(lines) => lines.finish().map_err(|error| unwritten(&error)),
                Output::Capture(capture) => {
                    let (all, kept) = capture.finish(&mut self.spiller);
                    *printed = all;
                    kept.map_err(|error| Status::SpillFailed(spill::storage_error(&error)))
                }
            };
            status = status.or(finished.err());
        }
        Ok(AttemptEnd { status, ended, printed })
    }
}

impl Output {
    fn pipe(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Lines(lines) => lines.pipe(),
            Self::Capture(capture) => capture.pipe(),
        }
    }

    /// Reads some output. Returns an error if the job cannot continue.
    fn pass(&mut self, spiller: &mut Spiller) -> Result<(), Status> {
        match self {
            Self::Lines(lines) => lines.pass().map(drop).map_err(|error| unwritten(&error)),
            Self::Capture(capture) => {
                let passed = capture.pass(spiller);
                passed.map(drop).map_err(|error| Status::SpillFailed(spill::storage_error(&error)))
            }
        }
    }
}

/// Returns the status of a job whose lines cannot be written.
fn unwritten(error: &io::Error) -> Status {
    match error.kind() {
        ErrorKind::BrokenPipe => Status::OutputClosed,
        _ => Status::OutputFailed(error.to_string()),
    }
}

impl Status {
    fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, signal) => Self::Signaled(signal.unwrap_or(0), status.core_dumped()),
        }
    }
}

/// Whether all processes of this worker together use more memory than this. Shared pages count
/// once. Counting them takes long, so it is done only near the limit.
fn takes_more_than(most: u64) -> bool {
    let pids = observe::descendants(std::process::id());
    let resident = |pid: &u32| observe::resident(*pid).unwrap_or(0);
    if pids.iter().map(resident).sum::<u64>() <= most {
        return false;
    }
    let share = |pid: &u32| observe::proportional(*pid).unwrap_or_else(|| resident(pid));
    pids.iter().map(share).sum::<u64>() > most
}

/// Returns the shell's exit code for a program that cannot be started, and a message with the
/// remedy.
fn why_not(words: &Strings, error: &io::Error) -> (i32, String) {
    let name = OsStr::from_bytes(words.first().unwrap_or_default());
    let (code, remedy) = match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => (127, "; check its name and PATH"),
        ErrorKind::PermissionDenied => (126, "; check its permissions (chmod +x)"),
        ErrorKind::ArgumentListTooLong => (126, "; the input is too long for an argument"),
        _ if error.raw_os_error() == Some(libc::ENOEXEC) => {
            (126, "; the program is damaged or for another machine")
        }
        // An input that contains NUL; -0 would have split it.
        ErrorKind::InvalidInput => (126, "; separate inputs by NUL with -0"),
        _ => (126, ""),
    };
    (code, format!("failed to start {name:?}: {error}{remedy}"))
}
