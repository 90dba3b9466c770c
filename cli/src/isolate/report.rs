//! The report: a few lines per case as soon as it is over, and a line for all.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;

use super::cases::Case;
use super::{processes, threads};
use crate::exit::Exit;
use crate::report::{Document, DocumentTable};
use crate::report_format::ReportFormat;

/// Widths of the first two columns. With the third, a line has at most 100 characters.
const CASE: usize = 14;
const PROCESSES: usize = 42;

pub(super) struct Report {
    format: ReportFormat,
    cases: usize,
    contained: usize,
    contained_by_threads: usize,
    /// Of the page: the case, the verdict, and what happened in each.
    rows: Vec<Vec<String>>,
}

/// A case in JSON.
#[derive(Serialize)]
struct Shown<'a> {
    case: String,
    what: String,
    contained: bool,
    processes: &'a processes::Observation,
    threads: Threads<'a>,
}

#[derive(Serialize)]
struct Threads<'a> {
    contained: bool,
    #[serde(flatten)]
    seen: &'a threads::Observation,
}

impl Report {
    pub(super) fn begin(format: ReportFormat) -> Result<Self> {
        if format == ReportFormat::Table {
            write(&line("", "in a pool of processes", "in a process of threads"))?;
        }
        Ok(Self { format, cases: 0, contained: 0, contained_by_threads: 0, rows: Vec::new() })
    }

    pub(super) fn show(
        &mut self,
        case: Case,
        processes: &processes::Observation,
        threads: &threads::Observation,
    ) -> Result<()> {
        self.cases += 1;
        self.contained += usize::from(processes.contained());
        self.contained_by_threads += usize::from(threads.contained());
        let verdict = |is_contained| if is_contained { "contained" } else { "not contained" };
        let [left, right] = cells(processes, threads);
        self.rows.push(vec![
            format!("{}\n{}", case.name(), case.summary()),
            format!("{}\n{}", verdict(processes.contained()), left.join("\n")),
            format!("{}\n{}", verdict(threads.contained()), right.join("\n")),
        ]);
        match self.format {
            ReportFormat::Table => write(&paragraph(case, processes, threads)),
            ReportFormat::Json => {
                let shown = Shown {
                    case: case.name(),
                    what: case.summary(),
                    contained: processes.contained(),
                    processes,
                    threads: Threads { contained: threads.contained(), seen: threads },
                };
                write(&format!("{}\n", serde_json::to_string(&shown)?))
            }
        }
    }

    /// Returns a page with what was seen.
    pub(super) fn document(&self) -> Document {
        let heads = ["Case", "In a pool of processes", "In a process of threads"];
        let table = DocumentTable {
            title: "Eight healthy tasks beside one that fails".to_owned(),
            heads: heads.map(str::to_owned).into(),
            rows: self.rows.clone(),
            note: String::new(),
            has_numbers: false,
        };
        let (contained, cases) = (self.contained, self.cases);
        let title = format!(
            "{contained} of {cases} contained (among threads, {})",
            self.contained_by_threads
        );
        Document { title, tables: vec![table], ..Document::default() }
    }

    /// Reports how many cases were contained.
    pub(super) fn end(self) -> Result<Exit> {
        let (contained, cases) = (self.contained, self.cases);
        let line = format!(
            "{contained} of {cases} contained (among threads, {})\n",
            self.contained_by_threads
        );
        match self.format {
            ReportFormat::Table => write(&format!("\n{line}"))?,
            ReportFormat::Json => {
                let _ = io::stderr().write_all(line.as_bytes()); // standard output has JSON objects only
            }
        }
        Ok(if contained == cases { Exit::Success } else { Exit::Failure })
    }
}

/// Formats a case as lines of the table.
fn paragraph(
    case: Case,
    processes: &processes::Observation,
    threads: &threads::Observation,
) -> String {
    let [left, right] = cells(processes, threads);
    let verdict = if processes.contained() { "contained" } else { "NOT CONTAINED" };
    let names = [case.name(), format!("  {verdict}")];
    let mut text = String::from("\n");
    for row in 0..left.len().max(right.len()).max(names.len()) {
        let cell = |cells: &[String]| cells.get(row).map_or("", String::as_str).to_owned();
        text += &line(names.get(row).map_or("", String::as_str), &cell(&left), &cell(&right));
    }
    text
}

/// Returns what happened in the pool, and among threads, in lines.
fn cells(processes: &processes::Observation, threads: &threads::Observation) -> [Vec<String>; 2] {
    let left = [
        format!("PID {}: {}", processes.pid, processes.happened),
        answers(processes.right, processes.answers, processes.bystanders),
        changes(&processes.changed, &processes.changed_in_parent),
        match processes.new_pid {
            Some(pid) => format!("the pool started PID {pid} in its place"),
            None => "the pool had nothing to do".to_owned(),
        },
        if processes.answers_on { String::new() } else { "the pool answers no more".to_owned() },
    ];
    let right = [
        match &threads.happened {
            Some(happened) if !happened.is_empty() => format!("its thread: {happened}"),
            _ => format!("the process {}", threads.ended),
        },
        answers(threads.right, threads.answers, threads.bystanders),
        changes(&threads.changed, &[]),
    ];
    let filled = |lines: Vec<String>| lines.into_iter().filter(|text| !text.is_empty()).collect();
    [filled(left.into()), filled(right.into())]
}

fn answers(right: usize, came: usize, of: usize) -> String {
    let wrong = came - right;
    match wrong {
        0 => format!("{right} of {of} bystanders answered"),
        _ => format!("{came} of {of} bystanders answered, {wrong} wrongly"),
    }
}

/// Describes the changes that others than the failing task observed.
fn changes(bystanders: &[String], parent: &[String]) -> String {
    let mut text = Vec::new();
    if !bystanders.is_empty() {
        text.push(format!("for them, {}", bystanders.join(", ")));
    }
    if !parent.is_empty() {
        text.push(format!("in the parent, {}", parent.join(", ")));
    }
    text.join("; ")
}

fn line(case: &str, processes: &str, threads: &str) -> String {
    format!("{case:<CASE$} {processes:<PROCESSES$} {threads}").trim_end().to_owned() + "\n"
}

pub(super) fn write(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.context("failed to write what was seen to standard output")
}
