//! Supervises a run on several hosts: launches it, follows its journal, and launches it again
//! without the hosts that were lost.
//!
//! The journal's end decides how the run ended. The launcher's exit code does not: mpirun exits with
//! 0 where it has ended all processes, and never where a host was lost and all results are there.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use signal_hook::consts::SIGTERM;

use super::command::{self, Launcher};
use super::environment;
use super::feeder::Feeder;
use super::follow::Follower;
use super::link::{BEAT, Heard, Link, Listener, Orders};
use super::list::Host;
use super::remote;
use super::steering::Steering;
use crate::args::{OutputArgs, OutputChoice, RunArgs};
use crate::exit::Exit;
use crate::journal;

/// How often the journal is read.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How long the launcher may take until the run is there: each host is started through its shell.
const START_LIMIT: Duration = Duration::from_secs(120);

/// How long a run may be silent. It sends a beat every second, whatever its jobs do.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// How long the launcher may take to end after the run, before it is asked to.
const LINGER: Duration = Duration::from_secs(2);

/// How long it may take after it was asked.
const GRACE: Duration = Duration::from_secs(3);

/// How long a host may take to answer before a new launch does without it.
const ANSWER_LIMIT: Duration = Duration::from_secs(8);

/// Hosts that are lost within this time before the engine is lost with it: nothing is wrong with
/// them.
const WITH_ENGINE: Duration = Duration::from_secs(3);

/// The most bytes of the launcher's messages that are kept.
const MAX_NOISE: usize = 16 << 10;

/// The launched run, and its hosts.
pub(super) struct Job<'a> {
    pub(super) args: &'a RunArgs,
    pub(super) launcher: Launcher,
    pub(super) hosts: Vec<Host>,
    /// Whether the inputs come from standard input.
    pub(super) reads_stdin: bool,
}

/// How a launch ended.
enum Ended {
    /// With this exit code of the run.
    Exit(u8),
    /// By a signal, before there was a run.
    Signalled,
    /// Without an end.
    Lost { why: String, has_run: bool },
}

pub(super) fn supervise(job: &Job<'_>) -> Result<Exit> {
    let dir = PrivateDir::create()?;
    let steering = Steering::watch(dir.path.clone())?;
    let args = job.args;
    let own = args.journal.journal.clone();
    let since = journal::counted(&args.journal)?;
    let journal = own.clone().unwrap_or_else(|| dir.path.join("journal"));
    let journal = std::path::absolute(&journal).unwrap_or(journal);
    let file = |name: &str| {
        let path = dir.path.join(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("failed to create {path:?}; check TMPDIR"))?;
        anyhow::Ok((path, file))
    };
    let out = if args.output.results.is_none() { Some(file("out")?) } else { None };
    let (err, err_file) = file("err")?;
    let (out, out_file) = out.unzip();
    let mut follower = Follower::new(since, out_file, err_file);
    let mut stdin = Stdin::of(job.reads_stdin, || file("stdin").map(|(_, file)| file))?;
    let several = job.hosts.len() > 1;
    let mut orders =
        Orders { journal, is_private: own.is_none(), since, several, out, err, hosts: Vec::new() };
    let mut hosts = job.hosts.clone();
    let mut without = Vec::new();
    let mut restart = 0;
    loop {
        orders.hosts = hosts.iter().map(|host| (host.name.clone(), host.workers)).collect();
        let given = stdin.for_launch()?;
        let launched = Launch::start(job, &hosts, &without, &steering)?;
        let (mut launch, listener) = launched;
        let ended = launch.follow(&listener, &orders, given.as_fd(), &mut follower, args);
        let end = Instant::now();
        drop(given);
        let status = launch.end(matches!(ended, Ok(Ended::Exit(_))), !follower.lost.is_empty());
        let (why, has_run) = match ended? {
            Ended::Exit(code) => {
                // No reader is left for the rest: a clean end.
                let is_shown = !launch.is_closed && shows(&mut follower);
                let is_closed = !is_shown && steering.lock().exit.is_none();
                return Ok(if is_closed { Exit::Success } else { Exit::Code(code) });
            }
            Ended::Signalled => return Ok(steering.lock().exit.unwrap_or(Exit::Terminated)),
            Ended::Lost { why, has_run } => (why, has_run),
        };
        // The last that it has written counts too, also if nothing follows.
        follower.read(&orders.journal)?;
        if !launch.is_closed {
            // With a live table, too: the process that drew it has ended.
            launch.is_closed = !shows(&mut follower);
        }
        if let Some(exit) = steering.lock().exit {
            return Ok(exit);
        }
        let ended = status.map_or(String::new(), |status| {
            format!("; {} ended with {}", job.launcher.name(), described(status))
        });
        if !has_run && restart == 0 {
            return Err(EngineLost(format!(
                "failed to start the run on its hosts: {why}{ended}{}\nremedy: 'procpool hosts' \
                 with the same hosts says what is wrong with each of them",
                launch.noise()
            ))
            .into());
        }
        let gone = lost_hosts(job, &hosts, &follower, end);
        hosts.retain(|host| !gone.iter().any(|lost| lost.name == host.name));
        let names: Vec<_> = gone.iter().map(|host| host.name.clone()).collect();
        without.extend(gone);
        if restart >= args.hosts.max_restarts || launch.is_closed {
            let again = match &own {
                Some(path) => format!("go on with --journal {path:?} --resume"),
                None => "with --journal FILE, a run can go on with --resume".to_owned(),
            };
            return Err(EngineLost(format!(
                "lost the engine of the run: {why}{ended}{}\nremedy: {again}",
                launch.noise()
            ))
            .into());
        }
        let less = match names.is_empty() {
            true => String::new(),
            false => format!(" without {}", names.join(", ")),
        };
        restart += 1;
        let most = args.hosts.max_restarts;
        say(format_args!(
            "lost the engine of the run: {why}{ended}; starting again{less} (restart {restart} of \
             {most})"
        ));
        follower.start_again();
    }
}

/// The run has lost its engine, and can't be launched again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct EngineLost(String);

/// Whether the results wait for the end of the run: on a terminal, until the live table has left it.
fn waits_for_end(args: &RunArgs) -> bool {
    args.output.top && io::stdout().is_terminal()
}

/// Shows the remaining results. Returns whether standard output accepted them.
fn shows(follower: &mut Follower) -> bool {
    match follower.show() {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => false,
        Err(error) => {
            say(format_args!("error: failed to write the results to standard output: {error}"));
            true
        }
    }
}

/// Returns the hosts that a new launch must do without: those that the run had lost when it lost its
/// engine, and those that don't answer.
fn lost_hosts(job: &Job<'_>, hosts: &[Host], follower: &Follower, end: Instant) -> Vec<Host> {
    let rsh = job.args.hosts.rsh.as_deref();
    // Nodes of an allocation can't be asked.
    let is_srun = job.launcher == Launcher::Srun;
    let is_lost = |host: &Host| {
        if environment::is_here(&host.name) {
            return false;
        }
        let short = host.name.split('.').next().unwrap_or_default();
        let is_it = |(lost, at): (&String, &Instant)| {
            let is_name = *lost == host.name || lost.split('.').next().unwrap_or_default() == short;
            is_name && (is_srun || end.saturating_duration_since(*at) > WITH_ENGINE)
        };
        if follower.lost.iter().any(is_it) {
            return true;
        }
        !is_srun && remote::ask(rsh, &host.name, false, "true", ANSWER_LIMIT).code != Some(0)
    };
    let lost = remote::each(hosts, is_lost);
    hosts.iter().zip(lost).filter(|(_, lost)| *lost).map(|(host, _)| host.clone()).collect()
}

/// A directory for the files of the run, which ends with it.
struct PrivateDir {
    path: PathBuf,
}

impl PrivateDir {
    fn create() -> Result<Self> {
        let name = format!("procpool-run-{:016x}", rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        let created = fs::DirBuilder::new().mode(0o700).create(&path);
        created.with_context(|| format!("failed to create {path:?}; check TMPDIR"))?;
        Ok(Self { path: std::path::absolute(&path).unwrap_or(path) })
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path); // nothing more can be done about it
    }
}

/// Standard input, for each launch from its start.
enum Stdin {
    /// The run does not read it.
    Unread,
    /// A file, and where its inputs start.
    File(u64),
    /// A pipe, whose contents are kept.
    Pipe(Feeder),
}

/// Standard input of one launch.
enum Given {
    Own,
    Pipe(io::PipeReader),
}

impl Stdin {
    fn of(is_read: bool, keep: impl FnOnce() -> Result<File>) -> Result<Self> {
        if !is_read {
            return Ok(Self::Unread);
        }
        let mut file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Ok(Self::File(file.stream_position()?));
        }
        Ok(Self::Pipe(Feeder::new(file, keep()?)?))
    }

    fn for_launch(&mut self) -> Result<Given> {
        match self {
            Self::Unread => Ok(Given::Own),
            Self::File(start) => {
                let mut file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
                file.seek(SeekFrom::Start(*start)).context("failed to read the inputs again")?;
                Ok(Given::Own)
            }
            Self::Pipe(feeder) => feeder.pipe().map(Given::Pipe),
        }
    }
}

impl Given {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own => rustix::stdio::stdin(),
            Self::Pipe(pipe) => pipe.as_fd(),
        }
    }
}

/// A launcher that runs.
struct Launch {
    child: Child,
    steering: Steering,
    noise: Arc<Mutex<Vec<u8>>>,
    /// The thread that reads it.
    listener: Option<JoinHandle<()>>,
    /// Whether standard output is gone.
    is_closed: bool,
    /// Kept until the launcher has ended: without it, the run ends at once, and leaves its hosts
    /// without a word.
    link: Option<Link>,
}

impl Launch {
    fn start(
        job: &Job<'_>,
        hosts: &[Host],
        without: &[Host],
        steering: &Steering,
    ) -> Result<(Self, Listener)> {
        let listener = Listener::new()?;
        let is_root = rustix::process::geteuid().is_root();
        let dir = steering.lock().dir.clone();
        let rsh = job.args.hosts.rsh.as_deref();
        // A question of ssh would wait forever for an answer.
        let shell = lasting_shell(&dir, rsh.unwrap_or("ssh -o BatchMode=yes"))?;
        let rsh = shell.as_deref().or(rsh);
        let mut command = Command::new(job.launcher.name());
        command.args(job.launcher.arguments(hosts, without, rsh, is_root));
        let program = std::env::current_exe().context("failed to find this program's file")?;
        command.arg(program).args(["run", "--supervised", &listener.name]);
        command.args(command::arguments_of_run(&job.args.output));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C must reach the run only: the launcher would end all hosts.
        command.process_group(0);
        let mut child = command.spawn().with_context(|| {
            format!("failed to run {}, which starts the hosts", job.launcher.name())
        })?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        {
            let mut steered = steering.lock();
            (steered.group, steered.run, steered.voice) = (group, None, None);
            if steered.exit.is_some() {
                steered.signal_group(Signal::TERM);
            }
        }
        let output = &job.args.output;
        let prints = job.args.command_options.line_buffer
            || matches!(output.output, Some(OutputChoice::Inherit))
            || (job.args.command.is_empty() && output.output.is_none());
        let noise: Arc<Mutex<Vec<u8>>> = Arc::default();
        if let Some(stdout) = child.stdout.take() {
            // Of a run, only jobs on other hosts print there.
            spawn("stdout", move || {
                let _ = io::copy(&mut { stdout }, &mut io::stdout()); // until one of both is gone
            })?;
        }
        let mut reader = None;
        if let Some(stderr) = child.stderr.take() {
            let noise = Arc::clone(&noise);
            reader = Some(spawn("stderr", move || hear_noise(stderr, &noise, prints))?);
        }
        let steering = steering.clone();
        Ok((
            Self { child, steering, noise, listener: reader, is_closed: false, link: None },
            listener,
        ))
    }

    /// Waits for the end of the run.
    fn follow(
        &mut self,
        listener: &Listener,
        orders: &Orders,
        stdin: BorrowedFd<'_>,
        follower: &mut Follower,
        args: &RunArgs,
    ) -> Result<Ended> {
        let mut link = None;
        let ended = self.follow_over(&mut link, listener, orders, stdin, follower, args);
        self.link = link;
        ended
    }

    fn follow_over(
        &mut self,
        link: &mut Option<Link>,
        listener: &Listener,
        orders: &Orders,
        stdin: BorrowedFd<'_>,
        follower: &mut Follower,
        args: &RunArgs,
    ) -> Result<Ended> {
        let streams = [stdin, rustix::stdio::stdout(), rustix::stdio::stderr()];
        let waits = waits_for_end(args);
        let started = Instant::now();
        let marker = self.steering.lock().dir.join(STARTED);
        let mut heard = Instant::now();
        let mut turned = Instant::now();
        let mut code = None;
        let mut launcher_ended = None;
        loop {
            // The time in which this process was stopped, or waited for its output, isn't the run's.
            let now = Instant::now();
            if now.duration_since(turned) > BEAT {
                heard = now;
            }
            turned = now;
            let has_read = follower.read(&orders.journal)?;
            if has_read && !waits && !self.is_closed && !shows(follower) {
                self.is_closed = true;
                if let Some(voice) = &self.steering.lock().voice {
                    voice.pass_on(SIGTERM);
                }
            }
            if let Some(end) = follower.end {
                return Ok(Ended::Exit(end.exit));
            }
            if let Some(code) = code {
                return Ok(Ended::Exit(code));
            }
            if launcher_ended.is_none() && self.is_over() {
                launcher_ended = Some(now);
            }
            match link {
                None => {
                    *link = listener.accept(orders, streams)?;
                    if let Some(link) = &*link {
                        heard = now;
                        let _ = fs::write(&marker, ""); // without it, mpirun ends with one shell
                        let mut steered = self.steering.lock();
                        steered.run = Some(Arc::clone(&link.run));
                        steered.voice = Some(link.voice()?);
                        if steered.exit.is_some() {
                            steered.signal_group(Signal::TERM);
                        }
                    } else if launcher_ended.is_some() {
                        let why = "no process of it has reported".to_owned();
                        return Ok(match self.steering.lock().exit {
                            Some(_) => Ended::Signalled,
                            None => Ended::Lost { why, has_run: false },
                        });
                    } else if started.elapsed() > START_LIMIT {
                        let why = format!("it wasn't there after {} s", START_LIMIT.as_secs());
                        return Ok(Ended::Lost { why, has_run: false });
                    }
                }
                Some(link) => match link.hear() {
                    Heard::Alive => heard = now,
                    Heard::Exit(exit) => {
                        code = Some(exit);
                        continue; // what it has written before is read first
                    }
                    Heard::Gone => {
                        follower.read(&orders.journal)?;
                        if let Some(end) = follower.end {
                            return Ok(Ended::Exit(end.exit));
                        }
                        let why = "its process on this machine has ended".to_owned();
                        return Ok(Ended::Lost { why, has_run: true });
                    }
                    Heard::Nothing if now.duration_since(heard) > MAX_SILENCE => {
                        let why = format!("it was silent for {} s", MAX_SILENCE.as_secs());
                        return Ok(Ended::Lost { why, has_run: true });
                    }
                    Heard::Nothing if launcher_ended.is_some_and(|it| it.elapsed() > LINGER) => {
                        let why = "its launcher has ended before it".to_owned();
                        return Ok(Ended::Lost { why, has_run: true });
                    }
                    Heard::Nothing => {}
                },
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Whether the launcher has ended. It stays a zombie, so that its process
    /// group id is not reused.
    fn is_over(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        pid.is_none_or(|pid| !matches!(waitid(WaitId::Pid(pid), options), Ok(None)))
    }

    /// Ends the launcher, and with it what it has started. Returns how it ended by itself, if it
    /// did.
    fn end(&mut self, in_order: bool, has_lost: bool) -> Option<ExitStatus> {
        let wait = |limit: Duration| {
            let deadline = Instant::now() + limit;
            while !self.is_over() && Instant::now() < deadline {
                thread::sleep(POLL_INTERVAL);
            }
            self.is_over()
        };
        // After a loss, mpirun 4.1 never ends by itself, and not always when it is asked to.
        let by_itself = wait(if in_order && !has_lost { LINGER } else { Duration::ZERO });
        if !by_itself {
            self.steering.lock().signal_group(Signal::TERM);
            wait(if has_lost { GRACE / 2 } else { GRACE });
        }
        let run = {
            // Also what was left of the group.
            let mut steered = self.steering.lock();
            steered.signal_group(Signal::KILL);
            (steered.group, steered.voice) = (None, None);
            steered.run.take()
        };
        let status = self.child.wait().ok();
        if let Some(run) = run {
            // It holds the journal's lock.
            if !in_order {
                let _ = pidfd_send_signal(&run, Signal::KILL); // it may have ended
            }
            let limit = Timespec { tv_sec: GRACE.as_secs() as i64, tv_nsec: 0 };
            let _ = poll(&mut [PollFd::new(&run, PollFlags::IN)], Some(&limit));
        }
        status.filter(|_| by_itself)
    }

    /// Returns the launcher's last messages, for an error.
    fn noise(&self) -> String {
        // All of it was written, and is read in a moment. A process that is left may hold the pipe.
        let deadline = Instant::now() + LINGER;
        while self.listener.as_ref().is_some_and(|it| !it.is_finished())
            && Instant::now() < deadline
        {
            thread::sleep(POLL_INTERVAL);
        }
        let noise = self.noise.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&noise);
        let text = text.trim();
        if text.is_empty() { String::new() } else { format!("\n{text}") }
    }
}

/// The file that says that all hosts have started.
const STARTED: &str = "started";

/// Writes a remote shell that does not fail once all hosts have started. mpirun takes one that fails
/// for a host that didn't start, and then ends all others: ssh fails when it misses its peer. None if
/// its path has a character with a meaning to mpirun.
fn lasting_shell(dir: &Path, rsh: &str) -> Result<Option<String>> {
    let path = dir.join("rsh");
    let started = dir.join(STARTED);
    let _ = fs::remove_file(&started); // of the launch before
    let Some(name) = path.to_str().filter(|path| !path.contains([' ', ':', '\'', '\t'])) else {
        return Ok(None);
    };
    let script = format!(
        "#!/bin/sh\n{rsh} \"$@\"\ncode=$?\n[ ! -e '{}' ] || exit 0\nexit $code\n",
        started.display()
    );
    let written = File::options().write(true).create(true).truncate(true).mode(0o700).open(&path);
    let written = written.and_then(|mut file| file.write_all(script.as_bytes()));
    written.with_context(|| format!("failed to write {path:?}; check TMPDIR"))?;
    Ok(Some(name.to_owned()))
}

/// Keeps the last messages of the launcher, and passes on those of jobs, which are among them.
fn hear_noise(from: impl Read, noise: &Mutex<Vec<u8>>, passes: bool) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        if !is_usual(&line) {
            let mut noise = noise.lock().unwrap_or_else(PoisonError::into_inner);
            noise.extend_from_slice(&line);
            let more = noise.len().saturating_sub(MAX_NOISE);
            noise.drain(..more);
            drop(noise);
            if passes {
                let _ = io::stderr().write_all(&line); // a closed standard error is no failure
            }
        }
        line.clear();
    }
}

/// Returns whether Open MPI 4.1 prints this line in healthy runs, and after a loss from which it
/// has recovered.
fn is_usual(line: &[u8]) -> bool {
    let line = String::from_utf8_lossy(line);
    line.contains("PMIX ERROR: ") && line.contains(" in file ")
}

fn described(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(name.into()).spawn(run);
    thread.context("failed to start a thread")
}

fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{what}");
}

/// Launches a run that can't be supervised from here, in place of this process.
pub(super) fn replace(launcher: &Launcher, hosts: &[Host], output: &OutputArgs) -> Result<Exit> {
    let program = std::env::current_exe().context("failed to find this program's file")?;
    let mut command = Command::new(launcher.name());
    command.args(launcher.arguments(hosts, &[], None, false)).arg(Path::new(&program));
    command.args(["run", "--engine", "mpi"]).args(command::arguments_of_run(output));
    let error = command.exec();
    Err(error).with_context(|| format!("failed to run {}", launcher.name()))
}
