//! Formats the measurements as tables, JSON or CSV.

use anyhow::Result;
use serde::Serialize;

use super::breakeven::BreakEven;
use super::figures;
use super::fit::Fit;
use super::machine::Machine;
use super::measure::Sample;
use super::overhead::Overhead;
use super::scaling::Scaling;
use crate::report::{Document, DocumentTable};

/// The measured parts.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) repetitions: usize,
    pub(super) overhead: Option<Overhead>,
    pub(super) scaling: Option<Scaling>,
    pub(super) breakeven: Option<BreakEven>,
}

/// A table: a title, a heading per column, and rows.
struct Table {
    title: String,
    heads: &'static [&'static str],
    rows: Vec<Vec<String>>,
    note: String,
}

impl Report {
    pub(super) fn new(machine: Machine, repetitions: usize) -> Self {
        Self { machine, repetitions, overhead: None, scaling: None, breakeven: None }
    }

    /// Aligned columns.
    pub(super) fn table(&self) -> Vec<u8> {
        let mut page = format!("{}\n{}\n", self.machine.describe(), self.explain());
        for table in self.tables() {
            let widths: Vec<usize> = (0..table.heads.len())
                .map(|column| {
                    let cells = table.rows.iter().map(|row| row[column].chars().count());
                    cells.chain([table.heads[column].chars().count()]).max().unwrap_or(0)
                })
                .collect();
            page += &format!("\n{}\n", table.title);
            let heads: Vec<String> = table.heads.iter().map(|head| (*head).to_owned()).collect();
            for row in std::iter::once(&heads).chain(&table.rows) {
                let mut line = String::from("  ");
                for (place, (cell, width)) in row.iter().zip(&widths).enumerate() {
                    // Names are left-aligned, numbers right-aligned.
                    let width = *width;
                    if place == 0 {
                        line += &format!("{cell:<width$}");
                    } else {
                        line += &format!("  {cell:>width$}");
                    }
                }
                page += line.trim_end();
                page.push('\n');
            }
            if !table.note.is_empty() {
                page += &format!("  {}\n", table.note);
            }
        }
        page.into_bytes()
    }

    /// Returns a page with the tables.
    pub(super) fn document(&self) -> Document {
        let tables = self.tables().into_iter().map(|table| DocumentTable {
            title: table.title.to_string(),
            heads: table.heads.iter().map(|head| (*head).to_owned()).collect(),
            rows: table.rows.clone(),
            note: table.note.to_string(),
            has_numbers: true,
        });
        Document {
            title: "Processes beside threads".to_owned(),
            lead: vec![self.machine.describe(), self.explain()],
            tables: tables.collect(),
            ..Document::default()
        }
    }

    pub(super) fn markdown(&self) -> Vec<u8> {
        let mut page = format!("{}. {}.\n", self.machine.describe(), self.explain());
        for table in self.tables() {
            page += &format!("\n### {}\n\n| {} |\n", table.title, table.heads.join(" | "));
            page += &format!("|---|{}\n", "---:|".repeat(table.heads.len() - 1));
            for row in &table.rows {
                page += &format!("| {} |\n", row.join(" | "));
            }
            if !table.note.is_empty() {
                page += &format!("\n{}\n", table.note);
            }
        }
        page.into_bytes()
    }

    pub(super) fn json(&self) -> Result<Vec<u8>> {
        let mut page = serde_json::to_vec(self)?;
        page.push(b'\n');
        Ok(page)
    }

    /// One line per figure.
    pub(super) fn csv(&self) -> Result<Vec<u8>> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record([
            "part",
            "what",
            "who",
            "at",
            "unit",
            "median",
            "least",
            "greatest",
            "repetitions",
        ])?;
        for (part, what, who, at, unit, sample) in self.figures() {
            writer.write_record([
                part,
                what,
                who,
                &at,
                unit,
                &sample.median.to_string(),
                &sample.least.to_string(),
                &sample.greatest.to_string(),
                &sample.values.len().to_string(),
            ])?;
        }
        if let Some(Scaling { task, fit: Some(fit), .. }) = &self.scaling {
            for (who, unit, value) in [
                ("serial", "s", fit.serial),
                ("parallel", "s", fit.parallel),
                ("per process", "s", fit.per_process),
                ("serial share", "", fit.serial_share),
                ("best number", "", fit.best as f64),
                ("deviation", "", fit.deviation),
            ] {
                writer.write_record([
                    "fit",
                    *task,
                    who,
                    "",
                    unit,
                    &value.to_string(),
                    "",
                    "",
                    "",
                ])?;
            }
        }
        Ok(writer.into_inner()?)
    }

    fn explain(&self) -> String {
        let sample = format!("Medians of {} repetitions (least–greatest)", self.repetitions);
        match self.machine.busy() {
            Some(busy) => format!("{sample}; {busy}"),
            None => sample,
        }
    }

    fn tables(&self) -> Vec<Table> {
        let mut tables = Vec::new();
        tables.extend(self.overhead.iter().flat_map(overhead));
        tables.extend(self.scaling.as_ref().map(scaling));
        tables.extend(self.scaling.as_ref().and_then(|it| it.fit.as_ref()).map(amdahl));
        tables.extend(self.breakeven.as_ref().map(breakeven));
        tables
    }

    fn figures(&self) -> Vec<Figure<'_>> {
        let mut all = Vec::new();
        if let Some(it) = &self.overhead {
            let none = String::new;
            let mut add = |what, who, at, unit, sample| {
                all.push(("overhead", what, who, at, unit, sample));
            };
            add("start-up", "processes", none(), "s", &it.start.processes);
            add("start-up", "threads", none(), "s", &it.start.threads);
            add("start-up", "bare process", none(), "s", &it.start.bare_process);
            add("start-up", "bare thread", none(), "s", &it.start.bare_thread);
            let trip = &it.round_trip;
            for (who, latency) in [
                ("processes", &trip.processes),
                ("threads", &trip.threads),
                ("socket", &trip.socket),
            ] {
                add("round trip p50", who, none(), "s", &latency.p50);
                add("round trip p99", who, none(), "s", &latency.p99);
            }
            let items = || it.tiny.items.to_string();
            let calls = || it.tiny.calls.to_string();
            add("tiny tasks", "processes", items(), "1/s", &it.tiny.processes);
            add("tiny tasks", "threads", items(), "1/s", &it.tiny.threads);
            add("tiny tasks", "serial", items(), "1/s", &it.tiny.serial);
            add("single calls", "processes", calls(), "1/s", &it.tiny.processes_singly);
            add("single calls", "threads", calls(), "1/s", &it.tiny.threads_singly);
            for payload in &it.payloads {
                let bytes = || payload.bytes.to_string();
                add("payload", "processes", bytes(), "s", &payload.seconds);
                add("payload", "memcpy", bytes(), "s", &payload.copy);
                add("payload rate", "processes", bytes(), "B/s", &payload.rate);
            }
            add("memory", "process", none(), "B", &it.memory.process);
            add("memory", "thread", none(), "B", &it.memory.thread);
        }
        if let Some(it) = &self.scaling {
            all.push(("scaling", it.task, "serial", "1".to_owned(), "s", &it.serial));
            for at in &it.by_procs {
                for (who, way) in [("threads", &at.threads), ("processes", &at.processes)] {
                    let procs = || at.procs.to_string();
                    all.push(("scaling", it.task, who, procs(), "s", &way.seconds));
                    all.push(("speed-up", it.task, who, procs(), "", &way.speed_up));
                    all.push(("efficiency", it.task, who, procs(), "", &way.efficiency));
                }
            }
        }
        for point in self.breakeven.iter().flat_map(|it| &it.points) {
            let item = || point.item.to_string();
            let mut add = |who, sample| {
                all.push(("break-even", "items of so many seconds", who, item(), "s", sample));
            };
            add("serial", &point.serial);
            add("threads", &point.threads);
            add("processes", &point.processes);
        }
        all
    }
}

/// Part, quantity, contender, size or number, unit, and figure.
type Figure<'a> = (&'a str, &'a str, &'a str, String, &'a str, &'a Sample);

fn overhead(it: &Overhead) -> Vec<Table> {
    let row = |what: &str, cells: [String; 3]| {
        let mut row = vec![what.to_owned()];
        row.extend(cells);
        row
    };
    let time = |sample: &Sample| spread_of(sample, figures::time);
    let rate = |sample: &Sample| spread_of(sample, figures::rate);
    let size = |sample: &Sample| spread_of(sample, figures::bytes);
    let calls = Table {
        title: "Overhead".to_owned(),
        heads: &["", "processes", "threads", "calibration"],
        rows: vec![
            row(
                "start of two and first answer",
                [
                    time(&it.start.processes),
                    time(&it.start.threads),
                    format!("{} a bare process", time(&it.start.bare_process)),
                ],
            ),
            row(
                "",
                [
                    String::new(),
                    String::new(),
                    format!("{} a bare thread", time(&it.start.bare_thread)),
                ],
            ),
            row(
                "round trip of a call, p50",
                [
                    time(&it.round_trip.processes.p50),
                    time(&it.round_trip.threads.p50),
                    format!("{} a socket", time(&it.round_trip.socket.p50)),
                ],
            ),
            row(
                "round trip of a call, p99",
                [
                    time(&it.round_trip.processes.p99),
                    time(&it.round_trip.threads.p99),
                    format!("{} a socket", time(&it.round_trip.socket.p99)),
                ],
            ),
            row(
                "tiny tasks in a map, per second",
                [
                    rate(&it.tiny.processes),
                    rate(&it.tiny.threads),
                    format!("{} serially", rate(&it.tiny.serial)),
                ],
            ),
            row(
                "tiny tasks by single calls, per second",
                [rate(&it.tiny.processes_singly), rate(&it.tiny.threads_singly), String::new()],
            ),
            row(
                "private memory of one that is idle",
                [size(&it.memory.process), size(&it.memory.thread), String::new()],
            ),
        ],
        note: "A bare process is a copy of this program that ends at once; the socket carries 48 \
               bytes to another process and back."
            .to_owned(),
    };
    let payload = |payload: &super::overhead::Payload| {
        vec![
            crate::format::bytes(payload.bytes as u64),
            time(&payload.seconds),
            spread_of(&payload.rate, figures::byte_rate),
            time(&payload.copy),
            format!("{:.1} ×", payload.seconds.over(&payload.copy).median),
        ]
    };
    let payloads = Table {
        title: "Round trip of a Vec<u8>, by size".to_owned(),
        heads: &["bytes", "there and back", "bytes a second", "memcpy", "to memcpy"],
        rows: it.payloads.iter().map(payload).collect(),
        note: "Each byte is counted once; the memcpy is a clone, into memory that is new."
            .to_owned(),
    };
    vec![calls, payloads]
}

fn scaling(it: &Scaling) -> Table {
    let time = |sample: &Sample| spread_of(sample, figures::time);
    let mut rows = vec![
        ["serial".to_owned(), time(&it.serial)].into_iter().chain(vec![String::new(); 5]).collect(),
    ];
    for at in &it.by_procs {
        rows.push(vec![
            format!("p = {}", at.procs),
            time(&at.threads.seconds),
            format!("{:.2}", at.threads.speed_up.median),
            format!("{:.2}", at.threads.efficiency.median),
            time(&at.processes.seconds),
            spread_of(&at.processes.speed_up, |value| format!("{value:.2}")),
            format!("{:.2}", at.processes.efficiency.median),
        ]);
    }
    Table {
        title: format!("Scaling: {} jobs of the task '{}'", it.jobs, it.task),
        heads: &["", "threads", "S", "E", "processes", "S", "E"],
        rows,
        note: "S = T1/Tp against the serial run, which is a plain loop; E = S/p.".to_owned()
            + &it.unfit.map_or_else(String::new, |reason| format!(" Amdahl: {reason}.")),
    }
}

fn amdahl(it: &Fit) -> Table {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let row = |what: &str, figure: String, meaning: &str| {
        vec![what.to_owned(), figure, meaning.to_owned()]
    };
    let limit = it.limit.map_or_else(|| "no limit".to_owned(), |limit| format!("{limit:.1}"));
    Table {
        title: format!("Amdahl: T(p) = s + w/p + c·p, with p up to {} in w/p", it.cores),
        heads: &["", "fitted", ""],
        rows: vec![
            row("s, serial", figures::time(it.serial), "no process shortens it"),
            row("w, parallel", figures::time(it.parallel), "processes share it"),
            row("c, overhead", figures::time(it.per_process), "each process adds it"),
            row("serial share", percent(it.serial_share), "s / (s + w)"),
            row("greatest S", limit, "1 / serial share, however many processes"),
            row("best p", it.best.to_string(), "the shortest fitted time"),
        ],
        note: format!(
            "The measured times of processes are within {} of the fit; on a quiet machine, a few percent.",
            percent(it.deviation)
        ),
    }
}

fn breakeven(it: &BreakEven) -> Table {
    let time = |sample: &Sample| spread_of(sample, figures::time);
    let row = |point: &super::breakeven::Point| {
        vec![
            figures::time(point.item),
            crate::format::grouped(point.items),
            time(&point.serial),
            time(&point.threads),
            time(&point.processes),
            format!("{:.2}", point.speed_up.median),
            format!("{:.2}", point.beside_threads.median),
        ]
    };
    let from = |item: Option<f64>| match item {
        Some(item) => format!("from {} per item", figures::time(item)),
        None => "at no measured duration".to_owned(),
    };
    Table {
        title: format!("Break-even, {} threads and {0} processes", it.procs),
        heads: &["an item", "items", "serial", "threads", "processes", "S", "to threads"],
        rows: it.points.iter().map(row).collect(),
        note: format!(
            "Processes beat serial {}, and come within 5 % of threads {}.",
            from(it.beats_serial),
            from(it.near_threads)
        ),
    }
}

/// Formats the median, with the minimum and the maximum.
fn spread_of(sample: &Sample, show: impl Fn(f64) -> String) -> String {
    if sample.values.len() < 2 {
        return show(sample.median);
    }
    format!("{} ({}–{})", show(sample.median), show(sample.least), show(sample.greatest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::compare::breakeven::Point;
    use crate::compare::scaling::{AtProcs, Variant};

    fn sample(value: f64) -> Sample {
        Sample::of(vec![value, value * 2.0, value])
    }

    fn report() -> Report {
        let way =
            || Variant { seconds: sample(0.5), speed_up: sample(1.9), efficiency: sample(0.95) };
        let at = AtProcs { procs: 2, threads: way(), processes: way() };
        let machine = Machine::detect();
        Report {
            scaling: Some(Scaling {
                task: "pi",
                jobs: 12,
                serial: sample(0.95),
                by_procs: vec![at],
                fit: Some(Fit {
                    serial: 0.05,
                    parallel: 0.95,
                    per_process: 0.001,
                    serial_share: 0.05,
                    limit: Some(20.0),
                    best: 2,
                    deviation: 0.034,
                    cores: 2,
                }),
                unfit: None,
            }),
            breakeven: Some(BreakEven {
                procs: 2,
                points: vec![Point {
                    item: 1e-6,
                    items: 1000,
                    serial: sample(1e-3),
                    threads: sample(5e-4),
                    processes: sample(6e-4),
                    speed_up: sample(1.7),
                    beside_threads: sample(1.2),
                }],
                beats_serial: Some(1e-6),
                near_threads: None,
            }),
            ..Report::new(machine, 3)
        }
    }

    #[test]
    fn a_table_has_aligned_columns_and_says_where_it_breaks_even() {
        let page = String::from_utf8(report().table()).unwrap();
        assert!(page.contains("Scaling: 12 jobs of the task 'pi'"), "{page}");
        assert!(page.contains("500 ms (500 ms–1.00 s)"), "{page}");
        assert!(page.contains("serial share    5.0 %"), "{page}");
        assert!(page.contains("greatest S       20.0") && page.contains("within 3.4 %"), "{page}");
        assert!(page.contains("beat serial from 1.00 µs per item"), "{page}");
        assert!(page.contains("threads at no measured duration"), "{page}");
    }

    #[test]
    fn a_table_says_why_there_is_no_fit() {
        let mut report = report();
        let scaling = report.scaling.as_mut().unwrap();
        (scaling.fit, scaling.unfit) = (None, Some("too few numbers"));
        let page = String::from_utf8(report.table()).unwrap();
        assert!(page.contains("Amdahl: too few numbers."), "{page}");
        assert!(!page.contains("serial share"), "{page}");
    }

    #[test]
    fn every_form_has_every_figure() {
        let report = report();
        let json: serde_json::Value = serde_json::from_slice(&report.json().unwrap()).unwrap();
        assert_eq!(json["scaling"]["by_procs"][0]["processes"]["speed_up"]["median"], 1.9);
        assert_eq!(json["scaling"]["fit"]["best"], 2);
        assert!(json["machine"]["cores"].as_u64().unwrap() > 0);

        let csv = String::from_utf8(report.csv().unwrap()).unwrap();
        assert_eq!(csv.lines().count(), 1 + 1 + 6 + 3 + 6, "{csv}");
        assert!(csv.contains("fit,pi,serial share,,,0.05,,,\n"), "{csv}");
        assert!(csv.contains("speed-up,pi,processes,2,,1.9,1.9,3.8,3\n"), "{csv}");

        let markdown = String::from_utf8(report.markdown()).unwrap();
        assert!(markdown.contains("\n|---|---:|"), "{markdown}");
    }
}
