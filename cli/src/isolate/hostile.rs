//! `procpool isolate --hostile`: what code can do that has taken a worker over, without a sandbox and in one.
//!
//! Every line is observed: each attack runs twice, in a pool of one worker each. The attacks are real and do no harm where
//! they succeed: the files are the command's own, the signal is one that is ignored, the processes end at once.

use std::fs;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::cases::NO_CORE;
use super::report::write;
use crate::exit::Exit;
use crate::report::{Document, DocumentTable, Target};
use crate::report_format::ReportFormat;
use procpool::shared::SharedSlice;
use procpool::{Limits, OutputMode, Pool, Sandbox, TaskErrorKind};

/// How long an attack may take.
const LIMIT: Duration = Duration::from_secs(10);

/// How much an attack writes to the disk, in bytes.
const FILL: usize = 64 << 20;

/// How many processes an attack starts.
const PROCESSES: usize = 32;

/// How many packets of nonsense an attack sends to the parent.
const PACKETS: usize = 10_000;

/// An attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Attack {
    ReadSecret,
    WriteFile,
    FillDisk,
    Connect,
    ForkBomb,
    KillParent,
    TraceParent,
    ShrinkMemory,
    FloodParent,
}

impl Attack {
    /// What it does, for the report.
    fn what(self) -> &'static str {
        match self {
            Self::ReadSecret => "reads a file of the user",
            Self::WriteFile => "writes a file elsewhere",
            Self::FillDisk => "writes 64 MiB to the disk",
            Self::Connect => "connects to a server",
            Self::ForkBomb => "starts processes",
            Self::KillParent => "sends its parent a signal",
            Self::TraceParent => "looks into its parent",
            Self::ShrinkMemory => "shrinks the shared memory",
            Self::FloodParent => "floods its parent with nonsense",
        }
    }

    /// Whether the pool itself stops it, without a sandbox.
    fn is_stopped_always(self) -> bool {
        matches!(self, Self::ShrinkMemory | Self::FloodParent)
    }
}

/// What an attack is directed at.
#[derive(Clone, Serialize, Deserialize)]
struct Aim {
    attack: Attack,
    dir: String,
    port: u16,
    memory: SharedSlice<u64>,
}

/// Runs an attack in a worker. Returns what it has achieved.
fn act(aim: Aim) -> Result<String, String> {
    let dir = Path::new(&aim.dir);
    let refused = |error: io::Error| error.to_string();
    match aim.attack {
        Attack::ReadSecret => {
            fs::read(dir.join("secret")).map(|_| "has read it".to_owned()).map_err(refused)
        }
        Attack::WriteFile => {
            fs::write(dir.join("new"), "x").map(|()| "has written it".to_owned()).map_err(refused)
        }
        Attack::FillDisk => {
            let block = vec![0; 1 << 20];
            let mut file = fs::File::create(dir.join("filler")).map_err(refused)?;
            for _ in 0..FILL / block.len() {
                file.write_all(&block).map_err(refused)?;
            }
            Ok("has written it".to_owned())
        }
        Attack::Connect => TcpStream::connect(("127.0.0.1", aim.port))
            .map(|_| "is connected".to_owned())
            .map_err(refused),
        Attack::ForkBomb => bomb().map_err(refused),
        Attack::KillParent => {
            let parent = rustix::process::getppid().ok_or("it has none")?;
            let signal = rustix::process::Signal::URG; // which processes ignore
            let killed = rustix::process::kill_process(parent, signal);
            killed.map(|()| "has sent it".to_owned()).map_err(|error| error.to_string())
        }
        Attack::TraceParent => trace().map_err(refused),
        Attack::ShrinkMemory => shrink(&aim.memory),
        Attack::FloodParent => Ok(flood()),
    }
}

/// Starts processes, which end at once.
fn bomb() -> io::Result<String> {
    for _ in 0..PROCESSES {
        // SAFETY: the copy ends at once.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            // SAFETY: as above.
            0 => unsafe { libc::_exit(0) },
            pid => {
                // SAFETY: a plain system call.
                unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            }
        }
    }
    Ok(format!("has started {PROCESSES}"))
}

/// Attaches to the parent as a debugger does. The kernel detaches this process when it ends.
fn trace() -> io::Result<String> {
    // SAFETY: plain system calls.
    unsafe {
        let parent = libc::getppid();
        if libc::ptrace(libc::PTRACE_SEIZE, parent, 0, 0) == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok("is attached to it".to_owned())
}

/// Shrinks all shared memory that this process has open.
fn shrink(_memory: &SharedSlice<u64>) -> Result<String, String> {
    let mut found = Vec::new();
    for fd in 3..1024 {
        // SAFETY: plain system calls, on descriptors that may not exist.
        unsafe {
            if libc::fcntl(fd, libc::F_GET_SEALS) != -1 {
                found.push(match libc::ftruncate(fd, 0) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                });
            }
        }
    }
    match found.iter().find(|shrunk| shrunk.is_ok()) {
        Some(_) => Ok("has shrunk it".to_owned()),
        None => Err(found.pop().map_or("it has none open".to_owned(), |last| {
            last.map_or_else(|error| format!("sealed: {error}"), |()| String::new())
        })),
    }
}

/// Sends nonsense to all sockets that this process has open: the parent's are among them.
fn flood() -> String {
    let mut sent = 0;
    for _ in 0..PACKETS {
        for fd in 3..64 {
            // SAFETY: plain system calls, on descriptors that may be no sockets, with memory that exists.
            let done = unsafe {
                libc::send(
                    fd,
                    [0xff_u8; 64].as_ptr().cast(),
                    64,
                    libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
                )
            };
            sent += usize::from(done > 0);
        }
    }
    format!("has sent {sent} packets")
}

fn square(x: u64) -> u64 {
    x * x
}

/// What was seen of an attack in one pool.
#[derive(Debug, Serialize)]
struct Seen {
    /// Whether it has achieved what it wanted.
    succeeded: bool,
    happened: String,
    /// Whether the pool gives right results afterwards.
    answers_on: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    attack: Attack,
    what: &'a str,
    contained: bool,
    without: &'a Seen,
    sandboxed: &'a Seen,
}

fn watch(aim: Aim, sandbox: Option<Sandbox>) -> Result<Seen> {
    let mut builder = Pool::builder()
        .name("hostile")
        .workers(1)
        .task_timeout(LIMIT)
        .limits(Limits::new().core_size(NO_CORE))
        .output(OutputMode::Null);
    if let Some(sandbox) = sandbox {
        builder = builder.sandbox(sandbox);
    }
    let pool = builder.build().context("failed to start the pool")?;
    let outcome = pool.apply(act, aim.clone());
    let (succeeded, happened) = match outcome {
        Ok(Ok(done)) => (aim.attack != Attack::FloodParent, done),
        Ok(Err(why)) => (false, format!("refused: {why}")),
        Err(error) => match error.kind() {
            TaskErrorKind::Died { cause, .. } => (false, format!("the worker {cause}")),
            other => (false, other.to_string()),
        },
    };
    let answers_on = pool.apply(square, 12).is_ok_and(|answer| answer == 144);
    // A worker that is attached to this process must end first.
    pool.terminate();
    for name in ["new", "filler"] {
        match fs::remove_file(Path::new(&aim.dir).join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context("failed to remove what an attack has written");
            }
            _ => {}
        }
    }
    Ok(Seen { succeeded, happened, answers_on })
}

/// Shows all attacks.
pub(super) fn run(format: ReportFormat, target: Option<Target>) -> Result<Exit> {
    let dir = tempfile::Builder::new().prefix("procpool-hostile-").tempdir();
    let dir = dir.context("failed to create a directory for the attacks")?;
    fs::write(dir.path().join("secret"), "secret").context("failed to write a secret")?;
    let listener = TcpListener::bind("127.0.0.1:0").context("failed to listen")?;
    let port = listener.local_addr()?.port();
    let memory = SharedSlice::new([1u64; 1024]).context("failed to share memory")?;
    let (mut rows, mut contained, mut in_vain) = (Vec::new(), 0, 0);
    if format == ReportFormat::Table {
        write(&line("a worker that is taken over", "without a sandbox", "in Sandbox::strict()"))?;
    }
    let attacks = Attack::value_variants();
    for attack in attacks.iter().copied() {
        let dir = dir.path().to_str().context("the temporary directory is no text")?.to_owned();
        let aim = Aim { attack, dir, port, memory: memory.clone() };
        let context = || format!("failed to show the attack '{}'", attack.what());
        let without = watch(aim.clone(), None).with_context(context)?;
        let sandboxed = watch(aim, Some(Sandbox::strict())).with_context(context)?;
        let is_contained = !sandboxed.succeeded && sandboxed.answers_on;
        contained += usize::from(is_contained);
        in_vain += usize::from(!without.succeeded && !attack.is_stopped_always());
        let shown = |seen: &Seen| {
            let over = if seen.answers_on { "" } else { "; the pool answers no more" };
            format!("{}{over}", seen.happened)
        };
        match format {
            ReportFormat::Table => {
                write(&line(attack.what(), &shown(&without), &shown(&sandboxed)))?;
            }
            ReportFormat::Json => {
                let (without, sandboxed) = (&without, &sandboxed);
                let what = attack.what();
                let shown = Shown { attack, what, contained: is_contained, without, sandboxed };
                write(&format!("{}\n", serde_json::to_string(&shown)?))?;
            }
        }
        rows.push(vec![attack.what().to_owned(), shown(&without), shown(&sandboxed)]);
    }
    let title = format!("{contained} of {} attacks contained in the sandbox", attacks.len());
    let mut text = title.clone();
    if in_vain > 0 {
        text += &format!("; this system stops {in_vain} more of them without one");
    }
    match format {
        ReportFormat::Table => write(&format!("\n{text}\n"))?,
        ReportFormat::Json => {
            let _ = writeln!(io::stderr(), "{text}"); // standard output has JSON objects only
        }
    }
    if let Some(target) = target {
        let heads = ["A worker that is taken over", "Without a sandbox", "In Sandbox::strict()"];
        let table = DocumentTable {
            title: "What code can do that has taken a worker over".to_owned(),
            heads: heads.map(str::to_owned).into(),
            rows,
            note: String::new(),
            has_numbers: false,
        };
        Document { title, tables: vec![table], ..Document::default() }.write(target)?;
    }
    Ok(if contained == attacks.len() { Exit::Success } else { Exit::Failure })
}

fn line(attack: &str, without: &str, sandboxed: &str) -> String {
    const ATTACK: usize = 32;
    const WITHOUT: usize = 30;
    let line = format!("{attack:<ATTACK$} {without:<WITHOUT$} {sandboxed}");
    // What a system says may be longer than its column.
    if without.chars().count() > WITHOUT {
        return format!(
            "{attack:<ATTACK$} {without}\n{:<width$} {sandboxed}\n",
            "",
            width = ATTACK + 1 + WITHOUT
        );
    }
    line.trim_end().to_owned() + "\n"
}
