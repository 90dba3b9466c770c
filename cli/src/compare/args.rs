//! What is typed after `compare`.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};

use crate::tasks;

const EXAMPLES: &str = "\
Parts:
  overhead    start-up, one call's round trip, tiny tasks, payloads, memory, with calibration
  scaling     time, speed-up S = T1/Tp against the serial run, efficiency E = S/p
  break-even  how long an item must take for processes to be worth it

Tables and figures go to standard output, what is being done to standard error.

Examples:
  procpool compare --quick
  procpool compare --task parzen --procs 1,2,4,8 --plot pictures
  procpool compare --only scaling --task image --format csv > scaling.csv";

/// What is typed after `compare`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompareArgs {
    /// What to do in the part about scaling; 'procpool tasks' says more
    #[arg(short, long, value_name = "NAME", default_value = "pi")]
    #[arg(value_parser = PossibleValuesParser::new(tasks::ALL.iter().map(|task| task.name)))]
    pub(super) task: String,

    /// How many threads and processes to try there
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,3,4,6,8")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) procs: Vec<u16>,

    /// Measure some parts only
    #[arg(long, value_enum, value_name = "PART,…", value_delimiter = ',')]
    pub(super) only: Vec<Part>,

    /// How often everything is measured [default: 7, or 3 with --quick]
    #[arg(short, long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(super) repetitions: Option<u16>,

    /// Less of everything: some seconds instead of a minute or two
    #[arg(long)]
    pub(super) quick: bool,

    /// Draw pictures into this directory, each as SVG and as PNG; made if it's missing
    #[arg(long, value_name = "DIR")]
    pub(super) plot: Option<PathBuf>,

    /// How to write what was measured
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
    /// Aligned columns, to be looked at
    Table,
    /// One JSON object with every repetition of everything
    Json,
    /// One line per figure, with a header
    Csv,
    /// Tables for a page
    Markdown,
}
