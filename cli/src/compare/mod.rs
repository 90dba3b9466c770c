//! `procpool compare`: what processes cost beside threads, on this machine.
//!
//! ```text
//!   args ─► overhead, scaling, breakeven ─► report ─► standard output
//!                 measure, copy, load          └────► plot ─► DIR/*.svg, *.png
//! ```
//!
//! Three parts, each in its own file, measure the same work done serially, by threads (rayon) and by
//! processes. Whoever is compared takes turns within a repetition, so that what else the machine
//! does meets all of them (`measure`). `load` makes the work of a built-in task, `copy` is the
//! calibration: this program started for nothing, and a socket to it. `report` puts it all into
//! tables and files, and `plot` into pictures.

mod breakeven;
mod copy;
mod load;
mod machine;
mod measure;
mod overhead;
mod plot;
mod report;
mod scaling;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};

pub(super) use self::copy::serve_if_copy;
use self::measure::Effort;
use self::report::Report;
use super::exit::{Exit, Usage};
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
pub(super) struct CompareArgs {
    /// What to do in the part about scaling; 'procpool tasks' says more
    #[arg(short, long, value_name = "NAME", default_value = "pi")]
    #[arg(value_parser = PossibleValuesParser::new(tasks::ALL.iter().map(|task| task.name)))]
    task: String,

    /// How many threads and processes to try there
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,3,4,6,8")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    procs: Vec<u16>,

    /// Measure some parts only
    #[arg(long, value_enum, value_name = "PART,…", value_delimiter = ',')]
    only: Vec<Part>,

    /// How often everything is measured [default: 7, or 3 with --quick]
    #[arg(short, long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    repetitions: Option<u16>,

    /// Less of everything: some seconds instead of a minute or two
    #[arg(long)]
    quick: bool,

    /// Draw pictures into this directory, each as SVG and as PNG; made if it's missing
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,

    /// How to write what was measured
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Overhead,
    Scaling,
    BreakEven,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Aligned columns, to be looked at
    Table,
    /// One JSON object with every repetition of everything
    Json,
    /// One line per figure, with a header
    Csv,
    /// Tables for a page
    Markdown,
}

pub(super) fn run(args: CompareArgs) -> Result<Exit> {
    let mut procs: Vec<usize> = args.procs.iter().map(|procs| usize::from(*procs)).collect();
    procs.sort_unstable();
    procs.dedup();
    let task = tasks::find(&args.task)
        .ok_or_else(|| Usage::error(format!("there is no task '{}'", args.task)))?;
    if let Some(dir) = &args.plot {
        // Before minutes of measuring, not after them.
        std::fs::create_dir_all(dir)
            .with_context(|| format!("failed to make the directory {}", dir.display()))?;
    }
    let wants = |part| args.only.is_empty() || args.only.contains(&part);
    let effort = Effort::new(args.quick, args.repetitions.map(usize::from));
    let mut report = Report::new(machine::Machine::look(), effort.repetitions);
    if wants(Part::Overhead) {
        doing("measuring overhead");
        report.overhead = Some(overhead::measure(&effort)?);
        report.machine.look_again();
    }
    if wants(Part::Scaling) {
        doing(&format!("measuring how {} scales", task.name));
        report.scaling = Some(scaling::measure(task, &procs, &effort)?);
        report.machine.look_again();
    }
    if wants(Part::BreakEven) {
        doing("measuring where processes break even");
        report.breakeven = Some(breakeven::measure(&effort)?);
        report.machine.look_again();
    }
    let page = match args.format {
        Format::Table => report.table(),
        Format::Markdown => report.markdown(),
        Format::Json => report.json()?,
        Format::Csv => report.csv()?,
    };
    if let Some(dir) = &args.plot {
        for path in plot::write_all(&report, dir)? {
            doing(&format!("drawn: {}", path.display()));
        }
    }
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(&page).and_then(|()| stdout.flush());
    written.context("failed to write to standard output")?;
    Ok(Exit::AllWell)
}

/// Tells whoever waits.
fn doing(what: &str) {
    let _ = writeln!(io::stderr(), "{what}"); // standard error may be closed
}
