//! The command line of the launcher: Open MPI's mpirun, by its version, or Slurm's srun.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::process::{Command, Stdio};

use anyhow::Result;

use super::list::Host;
use crate::args::OutputArgs;
use crate::exit::Usage;

/// The program that starts a run's processes on their hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Launcher {
    /// Open MPI's, with this major version.
    Mpirun { major: u32, version: String },
    /// Slurm's, in an allocation.
    Srun,
}

/// How to install Open MPI.
pub(crate) const INSTALL: &str = "install it on every host (Debian: apt-get install openmpi-bin)";

impl Launcher {
    /// Finds mpirun and its version.
    pub(crate) fn mpirun() -> Result<Self> {
        let output = Command::new("mpirun").arg("--version").stdin(Stdio::null()).output();
        let output = output.map_err(|error| {
            Usage::error(format!(
                "failed to run mpirun, which starts the hosts: {error}; {INSTALL}"
            ))
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        match version(&text) {
            Some((major, version)) if major >= 4 => Ok(Self::Mpirun { major, version }),
            Some((_, version)) => Err(Usage::error(format!(
                "mpirun is Open MPI {version}, and procpool needs 4 or newer: {INSTALL}"
            ))),
            None => Err(Usage::error(format!(
                "mpirun isn't Open MPI's: {INSTALL}, and put it first in PATH"
            ))),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Mpirun { .. } => "mpirun",
            Self::Srun => "srun",
        }
    }

    /// Returns the launcher's command line up to the command that it starts, once on each host.
    ///
    /// `without` are the hosts that are left out of an allocation.
    pub(crate) fn arguments(
        &self,
        hosts: &[Host],
        without: &[Host],
        rsh: Option<&str>,
        is_root: bool,
    ) -> Vec<OsString> {
        let names = |hosts: &[Host]| {
            hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(",")
        };
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));
        match *self {
            Self::Mpirun { major, .. } => {
                let is_4 = major == 4;
                if is_root {
                    add(&["--allow-run-as-root"]);
                }
                add(&["--host", &names(hosts)]);
                // One process per host. Bound to a core, all workers of its host would share it.
                add(&["--map-by", "ppr:1:node", "--bind-to", "none"]);
                // The simplest transports: they start fast and tolerate child processes.
                let btl = if is_4 { "self,vader,tcp" } else { "self,sm,tcp" };
                add(&["--mca", "pml", "ob1", "--mca", "btl", btl]);
                // The loss of a process isn't the end of the others.
                if is_4 {
                    add(&["--enable-recovery"]);
                } else {
                    add(&["--with-ft", "ulfm"]);
                }
                match rsh {
                    Some(rsh) if is_4 => add(&["--mca", "plm_rsh_agent", rsh]),
                    Some(rsh) => add(&["--prtemca", "plm_ssh_agent", rsh]),
                    None => {}
                }
            }
            Self::Srun => {
                let nodes = hosts.len().to_string();
                add(&["--mpi=pmix", "--nodes", &nodes, "--ntasks", &nodes, "--ntasks-per-node=1"]);
                add(&["--cpu-bind=none", "--kill-on-bad-exit=0", "--no-kill"]);
                if !without.is_empty() {
                    add(&["--exclude", &names(without)]);
                }
            }
        }
        arguments.into_iter().map(OsString::from).collect()
    }
}

/// Reads the answer of `mpirun --version`: the major version, and all of it.
pub(crate) fn version(text: &str) -> Option<(u32, String)> {
    let version = text.lines().next()?.split_once("(Open MPI)")?.1.trim();
    let major = version.split('.').next()?.parse().ok()?;
    Some((major, version.to_owned()))
}

/// Returns the arguments of this process after the verb, which is `run`, for a copy that has no terminal.
pub(crate) fn arguments_of_run(output: &OutputArgs) -> Vec<OsString> {
    let has_summary = output.summary || output.quiet > 0 || !io::stderr().is_terminal();
    let added = (!has_summary).then(|| "--summary".into());
    added.into_iter().chain(after_verb(env::args_os())).collect()
}

/// Splits options of the command itself, which may precede the verb, from the verb's.
fn after_verb(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut after: Vec<OsString> = Vec::new();
    let mut arguments = arguments.skip(1);
    let mut before = Vec::new();
    for argument in arguments.by_ref() {
        if argument == OsStr::new("run") {
            break;
        }
        before.push(argument);
    }
    // They are global, so they mean the same after the verb.
    after.extend(before);
    after.extend(arguments);
    after
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::list::of_argument;
    use super::*;

    fn line(launcher: &Launcher, rsh: Option<&str>, is_root: bool) -> String {
        let hosts = of_argument("n1,n2:8").unwrap();
        let without = of_argument("n3").unwrap();
        let words = launcher.arguments(&hosts, &without, rsh, is_root);
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn flags_are_those_of_the_version() {
        let mpirun = |major| Launcher::Mpirun { major, version: String::new() };
        assert_eq!(
            line(&mpirun(4), Some("ssh -F c"), true),
            "--allow-run-as-root --host n1,n2 --map-by ppr:1:node --bind-to none --mca pml ob1 \
             --mca btl self,vader,tcp --enable-recovery --mca plm_rsh_agent ssh -F c"
        );
        assert_eq!(
            line(&mpirun(5), Some("ssh"), false),
            "--host n1,n2 --map-by ppr:1:node --bind-to none --mca pml ob1 --mca btl self,sm,tcp \
             --with-ft ulfm --prtemca plm_ssh_agent ssh"
        );
        assert_eq!(
            line(&Launcher::Srun, None, false),
            "--mpi=pmix --nodes 2 --ntasks 2 --ntasks-per-node=1 --cpu-bind=none \
             --kill-on-bad-exit=0 --no-kill --exclude n3"
        );
    }

    #[test]
    fn the_version_is_read_from_what_mpirun_says_of_itself() {
        let text = "mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/\n";
        assert_eq!(version(text), Some((4, "4.1.4".to_owned())));
        assert_eq!(version("mpirun (Open MPI) 5.0.5"), Some((5, "5.0.5".to_owned())));
        assert_eq!(version("mpirun (Open MPI) 6.1.0a1\n"), Some((6, "6.1.0a1".to_owned())));
        assert_eq!(version("HYDRA build details:\n  Version: 4.0.2\n"), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn what_stands_before_the_verb_is_passed_on_after_it() {
        let after = |line: &str| {
            let words = after_verb(line.split(' ').map(OsString::from));
            words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(after("procpool run -p 2 -- run x"), "-p 2 -- run x");
        assert_eq!(after("procpool --color never run 1 2"), "--color never 1 2");
    }
}
