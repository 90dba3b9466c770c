//! The arguments of `compare`.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};

use crate::tasks;

const EXAMPLES: &str = "\
Parts:
  overhead    start-up, round trip of a call, tiny tasks, payloads, memory, and a calibration
  scaling     time, speed-up S = T1/Tp over the serial run, efficiency E = S/p, and the
              fit of T(p) = s + w/p + c·p: serial share, overhead, best number of processes
  break-even  the item duration from which processes pay off

Tables and figures go to standard output, and progress to standard error.

Examples:
  procpool compare --quick
  procpool compare --task parzen --procs 1,2,4,8 --plot pictures
  procpool compare --only scaling --task image --format csv > scaling.csv";

/// The arguments of `compare`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompareArgs {
    /// Task of the scaling part; 'procpool tasks' lists them
    #[arg(short, long, value_name = "NAME", default_value = "pi")]
    #[arg(value_parser = PossibleValuesParser::new(tasks::ALL.iter().map(|task| task.name)))]
    pub(super) task: String,

    /// Numbers of threads and processes to measure
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,3,4,6,8")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) procs: Vec<u16>,

    /// Parts to measure [default: all]
    #[arg(long, value_enum, value_name = "PART,…", value_delimiter = ',')]
    pub(super) only: Vec<Part>,

    /// Repetitions of every measurement [default: 7, or 3 with --quick]
    #[arg(short, long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(super) repetitions: Option<u16>,

    /// Measure less: seconds instead of a minute or two
    #[arg(long)]
    pub(super) quick: bool,

    /// Draw pictures as SVG, PNG and PDF into DIR; created if missing
    #[arg(long, value_name = "DIR")]
    pub(super) plot: Option<PathBuf>,

    /// Write a page with the tables and the pictures to FILE, for a browser
    #[arg(long, value_name = "FILE.html")]
    pub(super) report: Option<PathBuf>,

    /// Format of the results
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub(super) format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Part {
    Overhead,
    Scaling,
    BreakEven,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns
    Table,
    /// One JSON object with every repetition
    Json,
    /// One line per figure, with a header
    Csv,
    /// Markdown tables
    Markdown,
}
