//! `procpool hosts`: checks that hosts can be used together, each as a run would reach it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::args::HostsArgs;
use super::command;
use super::environment::{GET_MPI, HAS_MPI, allocation, is_here, own_name};
use super::list::{self, Host};
use super::remote::{self, Answer};
use crate::exit::{Exit, Usage};
use crate::format;
use crate::report_format::ReportFormat;
use crate::tasks::command::quote;

/// How long a host may take to answer: a slow login, and reading this program's file.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A host's description of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
struct Description {
    name: String,
    /// Identifies the running system, independent of its name.
    boot: String,
    version: String,
    /// A hash of the program's file.
    build: String,
    /// Whether it was built with MPI.
    spans: bool,
    cores: usize,
    /// In bytes.
    memory: u64,
    /// The version of Open MPI that a shell there finds.
    mpi: Option<String>,
}

/// A host that was checked.
#[derive(Debug, Serialize)]
struct Checked {
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    workers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cores: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mpi: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<String>,
    /// The problem, with the remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

pub(crate) fn run(args: &HostsArgs) -> Result<Exit> {
    let own = describe()?;
    if args.describe {
        let mut line = serde_json::to_vec(&own)?;
        line.push(b'\n');
        print(&line)?;
        return Ok(Exit::Success);
    }
    let hosts = match (&args.hosts, &args.hostfile) {
        (Some(names), _) => list::of_argument(names)?,
        (None, Some(file)) => list::of_file(file)?,
        (None, None) => allocation()?.ok_or_else(|| {
            Usage::error("name the hosts to check with --hosts n1,n2 or --hostfile FILE")
        })?,
    };
    let program = std::env::current_exe().context("failed to find this program's file")?;
    let program =
        String::from_utf8_lossy(&quote(program.as_os_str().as_encoded_bytes())).into_owned();
    let line = format!("{program} hosts --describe");
    let rsh = args.rsh.as_deref();
    let answers = remote::each(&hosts, |host| match is_here(&host.name) {
        true => Ok(own.clone()),
        false => understood(
            &remote::ask(rsh, &host.name, false, &line, ANSWER_LIMIT),
            &program,
            rsh,
            host,
        ),
    });
    let checked = judged(&hosts, answers, &own, &program);
    let is_fine = checked.iter().all(|host| host.problem.is_none());
    print(&match args.format {
        ReportFormat::Table => table(&checked).into_bytes(),
        ReportFormat::Json => {
            let mut page = Vec::new();
            for host in &checked {
                serde_json::to_writer(&mut page, host)?;
                page.push(b'\n');
            }
            page
        }
    })?;
    if !hosts.iter().any(|host| is_here(&host.name)) {
        let _ = writeln!(
            io::stderr(),
            "note: this machine is none of the hosts; start a run on one of them"
        );
    }
    Ok(if is_fine { Exit::Success } else { Exit::Failure })
}

fn print(page: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(page).and_then(|()| stdout.flush());
    written.context("failed to write the report to standard output")
}

/// Describes this host.
fn describe() -> Result<Description> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let memory = read("/proc/meminfo");
    let memory = memory.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok()
    });
    let mpirun = Command::new("mpirun").arg("--version").stdin(Stdio::null()).output();
    let mpi = mpirun.ok().and_then(|it| command::version(&String::from_utf8_lossy(&it.stdout)));
    Ok(Description {
        name: own_name(),
        boot: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        build: build().context("failed to read this program's file")?,
        spans: HAS_MPI,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory: memory.unwrap_or(0) << 10,
        mpi: mpi.map(|(_, version)| version),
    })
}

/// Returns the start of a hash of this program's file.
fn build() -> io::Result<String> {
    let mut file = File::open("/proc/self/exe")?;
    let mut state = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut block)?;
        if length == 0 {
            break;
        }
        state.update(&block[..length]);
    }
    Ok(state.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Reads a host's answer. The error states the problem and the remedy.
fn understood(
    answer: &Answer,
    program: &str,
    rsh: Option<&str>,
    host: &Host,
) -> Result<Description, String> {
    let Host { name, .. } = host;
    let said = remote::last_line(&answer.stderr).unwrap_or("without a message");
    // A shell's start-up files may print something before.
    let line = answer.stdout.lines().rfind(|line| line.starts_with('{'));
    if let Some(description) = line.and_then(|line| serde_json::from_str(line).ok()) {
        return Ok(description);
    }
    let shell = rsh.unwrap_or("ssh");
    Err(match answer.code {
        _ if answer.is_late => format!(
            "did not answer within {} s: check its network and 'time {shell} {name} true'",
            ANSWER_LIMIT.as_secs()
        ),
        // 255 is ssh's own failure. There is no code if ssh could not be started.
        Some(255) | None => format!(
            "can't be reached: {said}; '{shell} {name} true' must work without a password: check \
             the name, its network, and that your public key is in its ~/.ssh/authorized_keys"
        ),
        Some(127) if answer.stderr.contains("libmpi") => {
            format!("can't run procpool: it lacks Open MPI's library; {}", command::INSTALL)
        }
        Some(126 | 127) => format!(
            "has no procpool at {program} ({said}): copy it there, to the same path, or put it on \
             a shared file system"
        ),
        Some(2) => format!(
            "has a procpool without the verb 'hosts', so another build: copy {program} there"
        ),
        Some(code) => format!("its procpool failed with exit code {code}: {said}"),
    })
}

fn judged(
    hosts: &[Host],
    answers: Vec<Result<Description, String>>,
    own: &Description,
    program: &str,
) -> Vec<Checked> {
    let mut seen: HashMap<(String, String), &str> = HashMap::new();
    let mut all = Vec::new();
    for (host, answer) in hosts.iter().zip(answers) {
        let (description, mut problem) = match answer {
            Ok(description) => (Some(description), None),
            Err(problem) => (None, Some(problem)),
        };
        if let Some(it) = &description {
            let first = *seen.entry((it.name.clone(), it.boot.clone())).or_insert(&host.name);
            problem = wrong_with(it, own, program).or_else(|| {
                (first != host.name)
                    .then(|| format!("is the same machine as {first}: leave one of them out"))
            });
        }
        let it = description.as_ref();
        all.push(Checked {
            host: host.name.clone(),
            workers: host.workers.or(it.map(|it| it.cores)),
            cores: it.map(|it| it.cores),
            memory: it.map(|it| it.memory),
            mpi: it.and_then(|it| it.mpi.clone()),
            build: it.map(|it| it.build.clone()),
            problem,
        });
    }
    all
}

/// Returns the problem of a host that has answered, and the remedy.
fn wrong_with(host: &Description, own: &Description, program: &str) -> Option<String> {
    if host.build != own.build {
        return Some(format!(
            "has another build of procpool ({}, {}) than this machine ({}, {}): copy {program} \
             there",
            host.version, host.build, own.version, own.build
        ));
    }
    if !host.spans {
        return Some(format!("its procpool was built without MPI: {GET_MPI}"));
    }
    let series = |version: &str| version.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
    match (&host.mpi, &own.mpi) {
        (None, _) => Some(format!(
            "its shell finds no mpirun of Open MPI: {}, and set PATH where a shell that isn't \
             interactive reads it",
            command::INSTALL
        )),
        (Some(theirs), Some(own)) if series(theirs) != series(own) => Some(format!(
            "has Open MPI {theirs}, and this machine {own}: install the same version on both"
        )),
        _ => None,
    }
}

fn table(hosts: &[Checked]) -> String {
    let width = hosts.iter().map(|host| host.host.chars().count()).max().unwrap_or(0).max(8);
    let line = |host: &str, [workers, cores, memory, mpi, build]: [String; 5], state: &str| {
        let line = format!(
            "{host:<width$}  {workers:>7}  {cores:>5}  {memory:>9}  {mpi:>8}  {build:>12}  {state}"
        );
        line.trim_end().to_owned() + "\n"
    };
    let names = ["workers", "cores", "memory", "open mpi", "build"].map(str::to_owned);
    let mut text = line("host", names, "state");
    for host in hosts {
        let cells = [
            host.workers.map(|it| it.to_string()),
            host.cores.map(|it| it.to_string()),
            host.memory.map(format::bytes),
            host.mpi.clone(),
            host.build.clone(),
        ];
        let state = host.problem.as_deref().unwrap_or("ok");
        text += &line(&host.host, cells.map(|it| it.unwrap_or("-".to_owned())), state);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Host {
        Host { name: name.to_owned(), workers: None }
    }

    fn own() -> Description {
        Description {
            name: "n1".to_owned(),
            boot: "b1".to_owned(),
            build: "aa".to_owned(),
            spans: true,
            cores: 2,
            mpi: Some("4.1.4".to_owned()),
            ..Description::default()
        }
    }

    #[test]
    fn what_is_wrong_with_a_host_is_said_with_the_remedy() {
        let problem = |code, stderr: &str, is_late| {
            let answer = Answer { code, stderr: stderr.to_owned(), is_late, ..Answer::default() };
            understood(&answer, "/p", None, &host("n2")).unwrap_err()
        };
        let refused = "Permission denied (publickey).";
        for (problem, parts) in [
            (problem(Some(255), refused, false), [refused, "authorized_keys"]),
            (problem(None, "failed to run ssh", false), ["failed to run ssh", "ssh n2 true"]),
            (problem(None, "", true), ["20 s", "network"]),
            (problem(Some(127), "sh: 1: /p: not found", false), ["/p", "copy"]),
            (
                problem(Some(127), "/p: error while loading: libmpi.so.40", false),
                ["MPI", "openmpi-bin"],
            ),
            (problem(Some(2), "error: unrecognized", false), ["another build", "copy"]),
            (problem(Some(101), "panicked", false), ["101", "panicked"]),
        ] {
            assert!(parts.iter().all(|part| problem.contains(part)), "{problem}");
        }
    }

    #[test]
    fn hosts_must_be_alike_and_different_machines() {
        let build = Description { build: "bb".to_owned(), ..own() };
        let series = Description { mpi: Some("5.0.5".to_owned()), ..own() };
        let patch = Description { mpi: Some("4.1.6".to_owned()), ..own() };
        let lacks = Description { mpi: None, ..own() };
        let feature = Description { spans: false, ..own() };
        let other = |of: Description, name: &str| Ok(Description { name: name.to_owned(), ..of });
        let names = ["n1", "n2", "n3", "n4", "n5", "n6", "again", "gone"].map(host);
        let answers = vec![
            Ok(own()),
            other(build, "n2"),
            other(series, "n3"),
            other(patch, "n4"),
            other(lacks, "n5"),
            other(feature, "n6"),
            Ok(own()),
            Err("can't be reached".to_owned()),
        ];
        let checked = judged(&names, answers, &own(), "/p");
        let problems: Vec<_> =
            checked.iter().map(|host| host.problem.as_deref().unwrap_or("")).collect();
        let expected = [
            "",
            "another build",
            "same version",
            "",
            "no mpirun",
            "without MPI",
            "machine as n1",
            "can't",
        ];
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.contains(expected), "{problem}: {expected}");
        }
        assert!(problems[0].is_empty() && problems[3].is_empty(), "{problems:?}");
        let table = table(&checked);
        assert_eq!(table.lines().count(), 9, "{table}");
    }

    #[test]
    fn a_host_may_print_before_it_answers() {
        let line = serde_json::to_string(&own()).unwrap_or_default();
        let stdout = format!("Welcome!\n{line}\n");
        let answer = Answer { code: Some(0), stdout, ..Answer::default() };
        assert_eq!(understood(&answer, "/p", None, &host("n1")), Ok(own()));
    }
}
