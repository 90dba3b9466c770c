//! Runs that span hosts: how they are launched, supervised and checked.
//!
//! The supervisor is the command as it was typed. It starts a launcher (mpirun or srun), which starts
//! this program once on each host. The process on the supervisor's machine is the run: it does what
//! a run does anywhere, but its pool spans the hosts. Its results go to files, and the supervisor
//! shows of them what the journal says that counts.
//!
//! ```text
//!     procpool run --hosts … ─► mpirun ─► the run (rank 0) ═══ agents on the other hosts
//!        supervisor                          │
//!           ▲ ▲─────── beats, exit code ─────┤
//!           └── journal, results ◄───────────┘
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `args` | the arguments, as typed |
//! | `list` | lists of hosts |
//! | `environment` | the machine's name, and the variables of a launcher or Slurm |
//! | `command` | the command line of the launcher, by its version |
//! | `supervise` | the launches of a run |
//! | `steering` | signals |
//! | `link` | the protocol between supervisor and run |
//! | `follow` | the journal as the supervisor reads it, and showing results |
//! | `feeder` | standard input for each launch |
//! | `remote` | commands on other hosts |
//! | `check` | `procpool hosts` |

pub(super) mod args;
mod check;
mod command;
pub(super) mod environment;
mod feeder;
mod follow;
pub(super) mod link;
mod list;
mod remote;
mod steering;
mod supervise;

use anyhow::Result;

use self::args::Engine;
use self::command::Launcher;
use self::environment::{GET_MPI, HAS_MPI, allocation};
use self::list::Host;
use self::supervise::Job;
use super::args::RunArgs;
use super::exit::{Exit, Usage};
use super::plan::RunPlan;

pub(super) use self::check::run as check;
pub(super) use self::environment::{is_here, own_name};
pub(super) use self::link::{Orders, attach, say_exit};
pub(super) use self::supervise::EngineLost;

/// Whether the workers of this run are on the hosts that MPI has started this program on.
pub(super) fn spans_hosts(args: &RunArgs) -> bool {
    let is_launched = args.hosts.supervised.is_some() || environment::is_launched();
    match args.hosts.engine {
        Engine::Local => false,
        Engine::Mpi => true,
        Engine::Auto => HAS_MPI && is_launched,
    }
}

/// Launches and supervises the run, if it spans hosts that were not started yet. Returns none if
/// this process is the run.
pub(super) fn launch(args: &RunArgs) -> Result<Option<Exit>> {
    let given = match (&args.hosts.hosts, &args.hosts.hostfile) {
        (Some(names), _) => Some(list::of_argument(names)?),
        (None, Some(file)) => Some(list::of_file(file)?),
        (None, None) => None,
    };
    if args.hosts.supervised.is_some() {
        return Ok(None);
    }
    let is_launched = environment::is_launched();
    match args.hosts.engine {
        Engine::Local if given.is_some() => {
            return Err(Usage::error(
                "--engine local uses this machine alone: leave it out, or --hosts and --hostfile",
            ));
        }
        Engine::Local => return Ok(None),
        Engine::Mpi if !HAS_MPI => {
            return Err(Usage::error(format!("this procpool was built without MPI: {GET_MPI}")));
        }
        Engine::Mpi if !is_launched && given.is_none() => {
            return Err(Usage::error(
                "--engine mpi is for a run that mpirun or srun has started: start it so, or name \
                 the hosts with --hosts",
            ));
        }
        Engine::Mpi | Engine::Auto => {}
    }
    if !HAS_MPI {
        if given.is_some() {
            let message = format!("this procpool can't span hosts: {GET_MPI}");
            return Err(Usage::error(message));
        }
        if environment::launched_with().is_some_and(|size| size > 1) {
            return Err(Usage::error(format!(
                "MPI has started this program several times, and each would run all inputs: \
                 {GET_MPI}, or use --engine local"
            )));
        }
        return Ok(None);
    }
    if is_launched {
        if given.is_some() {
            return Err(Usage::error(
                "the hosts of this run are those that its launcher has started it on: leave out \
                 --hosts and --hostfile, or the launcher",
            ));
        }
        return Ok(None);
    }
    if args.dry_run {
        return Ok(None);
    }
    if let Some(hosts) = given {
        let hosts = with_this_first(hosts).ok_or_else(|| {
            Usage::error(format!(
                "this machine ({}) is none of the hosts: add it, since the run itself is here, or \
                 start procpool on one of them",
                environment::own_name()
            ))
        })?;
        return supervised(args, Launcher::mpirun()?, hosts).map(Some);
    }
    let Some(hosts) = allocation()? else { return Ok(None) };
    match hosts.first() {
        Some(first) if environment::is_here(&first.name) => {
            supervised(args, Launcher::Srun, hosts).map(Some)
        }
        // Typed where the run will not be.
        _ => supervise::replace(&Launcher::Srun, &hosts, &args.output).map(Some),
    }
}

fn supervised(args: &RunArgs, launcher: Launcher, hosts: Vec<Host>) -> Result<Exit> {
    // Reports wrong arguments before any process starts.
    let plan = RunPlan::resolve(args.clone())?;
    if plan.source.took_standard_input() {
        return Err(Usage::error(
            "with --header or several sources, a run over several hosts reads files, not standard \
             input: put the inputs into a file, and name it after ::::",
        ));
    }
    let reads_stdin = plan.source.is_standard_input();
    drop(plan);
    supervise::supervise(&Job { args, launcher, hosts, reads_stdin })
}

/// Puts this machine first: the first process is the run. None if it is not among the hosts.
fn with_this_first(mut hosts: Vec<Host>) -> Option<Vec<Host>> {
    let own = hosts.iter().position(|host| environment::is_here(&host.name))?;
    hosts[..=own].rotate_right(1);
    Some(hosts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn this_machine_is_the_first_host() {
        let own = environment::own_name();
        let hosts = list::of_argument(&format!("n-1,n-2:3,{own}:4,n-5")).unwrap();
        let hosts = with_this_first(hosts).unwrap();
        let names: Vec<_> = hosts.iter().map(|host| host.name.as_str()).collect();
        assert_eq!(names, [own.as_str(), "n-1", "n-2", "n-5"]);
        assert_eq!(hosts[0].workers, Some(4));
        let others = list::of_argument("240.0.0.1,240.0.0.2").unwrap();
        assert_eq!(with_this_first(others), None);
    }
}
