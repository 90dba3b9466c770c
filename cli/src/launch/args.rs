//! The arguments about hosts, as typed.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};

use crate::report_format::ReportFormat;

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Hosts")]
pub(crate) struct HostArgs {
    /// Run on these hosts, through Open MPI: their names, with the number of workers where it is
    /// not one per CPU, such as n1,n2:8. The machine that this is typed on must be one of them; in
    /// a Slurm allocation of several nodes, all of them are used without this option
    #[arg(long, value_name = "LIST", conflicts_with = "hostfile")]
    pub(crate) hosts: Option<String>,

    /// Read the hosts from FILE, one per line: a name, then slots=N for the number of workers
    #[arg(long, value_name = "FILE")]
    pub(crate) hostfile: Option<PathBuf>,

    /// What the workers run on; auto means mpi under a launcher of MPI, and otherwise this machine
    #[arg(long, value_enum, value_name = "ENGINE", default_value_t = Engine::Auto)]
    pub(crate) engine: Engine,

    /// Command that runs another on a host, and its arguments [default: ssh]
    #[arg(long, value_name = "COMMAND", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) rsh: Option<String>,

    /// How often to start again, without the hosts that were lost, when the run has lost its engine
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) max_restarts: u32,

    /// In a run that is supervised: the socket of its supervisor
    #[arg(long, value_name = "NAME", hide = true)]
    pub(crate) supervised: Option<String>,
}

/// What the workers run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// As the environment says
    Auto,
    /// This machine
    Local,
    /// The hosts that MPI has started this program on
    Mpi,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each host is reached as a run reaches it. It must have the same build of procpool at the same path, and
the same series of Open MPI.

Exit codes:
  0 all hosts can be used together · 1 some can't, or the list is empty · 2 wrong usage

Examples:
  procpool hosts --hosts n1,n2,n3
  procpool hosts --hostfile hosts --format json | jq -r 'select(.problem).host'")]
pub(crate) struct HostsArgs {
    /// Hosts to check, such as n1,n2:8 [default: the nodes of the Slurm allocation]
    #[arg(long, value_name = "LIST", conflicts_with = "hostfile")]
    pub(crate) hosts: Option<String>,

    /// Read the hosts from FILE, one per line
    #[arg(long, value_name = "FILE")]
    pub(crate) hostfile: Option<PathBuf>,

    /// Command that runs another on a host, and its arguments [default: ssh]
    #[arg(long, value_name = "COMMAND", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) rsh: Option<String>,

    /// Format of the report; json is one object per host
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = ReportFormat::Table)]
    pub(crate) format: ReportFormat,

    /// On a host that is checked: print what this host is
    #[arg(long, hide = true)]
    pub(crate) describe: bool,
}
