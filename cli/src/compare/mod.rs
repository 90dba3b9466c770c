//! `procpool compare`: what processes cost beside threads, on this machine.
//!
//! ```text
//!   args ─► overhead, scaling, breakeven ─► report ─► standard output
//!            measure, calibration, load, fit  └────► plot ─► DIR/*.svg, *.png, *.pdf
//! ```
//!
//! Three parts, each in its own file, measure the same work done serially, by threads (rayon) and by
//! processes. The contenders take turns within a repetition, so that other load on the machine affects
//! all of them (`measure`, `timing`). `load` makes the work of a built-in task. `calibration` measures the
//! lower bounds: the start of an idle copy of this program, and a socket to it. `fit` finds the serial
//! share. `report` writes tables and files, `plot` draws pictures.

pub(super) mod args;
mod breakeven;
mod calibration;
mod figures;
mod fit;
mod load;
mod machine;
mod measure;
mod overhead;
mod plot;
mod report;
mod scaling;
mod timing;

use std::io::{self, Write};

use anyhow::{Context, Result};

use self::args::{CompareArgs, Format, Part};
pub(super) use self::calibration::serve_calibration;
use self::measure::SampleSize;
use self::report::Report;
use super::exit::{Exit, Usage};
use crate::report::{Document, Target};
use crate::tasks;

pub(super) fn run(args: CompareArgs) -> Result<Exit> {
    let mut procs: Vec<usize> = args.procs.iter().map(|procs| usize::from(*procs)).collect();
    procs.sort_unstable();
    procs.dedup();
    let task = tasks::find(&args.task)
        .ok_or_else(|| Usage::error(format!("there is no task '{}'", args.task)))?;
    if let Some(dir) = &args.plot {
        // Before minutes of measuring, not after.
        std::fs::create_dir_all(dir)
            .with_context(|| format!("failed to create the directory {}", dir.display()))?;
    }
    let target = args.report.as_deref().map(Target::open).transpose()?;
    let wants = |part| args.only.is_empty() || args.only.contains(&part);
    let size = SampleSize::new(args.quick, args.repetitions.map(usize::from));
    let mut report = Report::new(machine::Machine::detect(), size.repetitions);
    if wants(Part::Overhead) {
        doing("measuring overhead");
        report.overhead = Some(overhead::measure(&size)?);
        report.machine.refresh();
    }
    if wants(Part::Scaling) {
        doing(&format!("measuring how {} scales", task.name));
        report.scaling = Some(scaling::measure(task, &procs, &size)?);
        report.machine.refresh();
    }
    if wants(Part::BreakEven) {
        doing("measuring where processes break even");
        report.breakeven = Some(breakeven::measure(&size)?);
        report.machine.refresh();
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
    if let Some(target) = target {
        let pictures = plot::svgs(&report)?;
        Document { pictures, ..report.document() }.write(target)?;
    }
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(&page).and_then(|()| stdout.flush());
    written.context("failed to write to standard output")?;
    Ok(Exit::Success)
}

/// Reports progress on standard error.
fn doing(what: &str) {
    let _ = writeln!(io::stderr(), "{what}"); // standard error may be closed
}
