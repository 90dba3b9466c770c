//! The table: each goal, the measurement, and whether the goal is met.

use std::fmt::Write;

use serde::Serialize;

use crate::machine::Machine;
use crate::measure::{Field, Series, median, range};

#[derive(Clone, Copy)]
pub(crate) enum Format {
    Markdown,
    Json,
}

impl Format {
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        match name {
            "markdown" => Ok(Self::Markdown),
            "json" => Ok(Self::Json),
            _ => Err(format!("there is no format {name}; there are markdown and json")),
        }
    }
}

/// The unit of a number.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Unit {
    Seconds,
    PerSecond,
    Bytes,
    Times,
    Share,
}

impl Unit {
    fn show(self, value: f64) -> String {
        let digits = |value: f64| match value.abs() {
            ..0.995 => format!("{value:.2}"),
            ..9.95 => format!("{value:.2}"),
            ..99.5 => format!("{value:.1}"),
            _ => format!("{value:.0}"),
        };
        match self {
            _ if value.is_nan() => "–".to_owned(),
            Self::Seconds if value < 1e-6 => format!("{} ns", digits(value * 1e9)),
            Self::Seconds if value < 1e-3 => format!("{} µs", digits(value * 1e6)),
            Self::Seconds if value < 1.0 => format!("{} ms", digits(value * 1e3)),
            Self::Seconds => format!("{} s", digits(value)),
            Self::PerSecond if value >= 1e6 => format!("{} M/s", digits(value / 1e6)),
            Self::PerSecond if value >= 1e3 => format!("{} k/s", digits(value / 1e3)),
            Self::PerSecond => format!("{}/s", digits(value)),
            Self::Bytes if value.abs() < 1048576.0 => format!("{} KiB", digits(value / 1024.0)),
            Self::Bytes => format!("{} MiB", digits(value / 1048576.0)),
            Self::Times => format!("{} ×", digits(value)),
            Self::Share => format!("{value:.3}"),
        }
    }

    fn spread(self, values: &[f64]) -> String {
        let (least, greatest) = range(values);
        let middle = self.show(median(values));
        if values.len() < 2 {
            return middle;
        }
        // If all have the same unit, it is written once.
        let (least, greatest) = (self.show(least), self.show(greatest));
        let unit = |text: &str| text.split_once(' ').map(|(_, unit)| unit.to_owned());
        match (unit(&least), unit(&greatest)) {
            (Some(one), Some(other)) if one == other => {
                let number = least.split(' ').next().unwrap_or_default();
                format!("{middle} ({number}–{greatest})")
            }
            _ => format!("{middle} ({least}–{greatest})"),
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// One goal of a row, with a number per repetition.
pub(crate) struct Goal {
    pub(crate) text: String,
    pub(crate) bound: Bound,
    pub(crate) unit: Unit,
    pub(crate) values: Vec<f64>,
}

impl Goal {
    /// Returns none if the other contender did not take part.
    fn is_met(&self) -> Option<bool> {
        let middle = median(&self.values);
        match self.bound {
            _ if middle.is_nan() => None,
            Bound::AtMost(bound) => Some(middle <= bound),
            Bound::AtLeast(bound) => Some(middle >= bound),
        }
    }

    fn verdict(&self) -> &'static str {
        match self.is_met() {
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "not measured",
        }
    }
}

pub(crate) struct Row {
    what: String,
    unit: Unit,
    goals: Vec<Goal>,
    figures: Vec<Series>,
    notes: Vec<String>,
    /// The share of the cores that was free before and after the row.
    pub(crate) share: [f64; 2],
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, unit: Unit, field: Field) -> Self {
        Self {
            what: what.into(),
            unit,
            goals: Vec::new(),
            figures: field.0,
            notes: Vec::new(),
            share: [f64::NAN; 2],
        }
    }

    pub(crate) fn goal(
        mut self,
        text: impl Into<String>,
        bound: Bound,
        unit: Unit,
        values: Vec<f64>,
    ) -> Self {
        self.goals.push(Goal { text: text.into(), bound, unit, values });
        self
    }

    pub(crate) fn at_most(self, times: f64, than: &str, values: Vec<f64>) -> Self {
        self.goal(format!("≤ {times} × {than}"), Bound::AtMost(times), Unit::Times, values)
    }

    pub(crate) fn at_least(self, times: f64, text: &str, values: Vec<f64>) -> Self {
        self.goal(format!("≥ {times} × {text}"), Bound::AtLeast(times), Unit::Times, values)
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

/// All measurements.
pub(crate) struct Report {
    machine: Machine,
    size: &'static str,
    pub(crate) rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(machine: Machine, size: &'static str) -> Self {
        Self { machine, size, rows: Vec::new() }
    }

    pub(crate) fn print(&self, format: Format) {
        match format {
            Format::Markdown => print!("{}", self.markdown()),
            Format::Json => println!("{}", self.json()),
        }
    }

    fn markdown(&self) -> String {
        let machine = &self.machine;
        let versions: Vec<_> =
            machine.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let mut page = format!(
            "{}, {} cores, {:.0} GiB; Linux {}; {}. Sample size: {}; load before the run: {}.\n\n",
            machine.cpu,
            machine.cores,
            machine.memory_gib,
            machine.kernel,
            versions.join(", "),
            self.size,
            machine.load
        );
        page += "| what | goal | measured, median (least–greatest) | | free cores |\n|---|---|---|---|---|\n";
        for row in &self.rows {
            for (place, goal) in row.goals.iter().enumerate() {
                let what = if place == 0 { row.what.as_str() } else { "" };
                let spread = goal.unit.spread(&goal.values);
                let [before, after] = row.share.map(|share| (share * 100.0).round());
                let share = if place == 0 { format!("{before}, {after} %") } else { String::new() };
                let (text, verdict) = (&goal.text, goal.verdict());
                let _ = writeln!(page, "| {what} | {text} | {spread} | {verdict} | {share} |");
            }
        }
        page +=
            "\n| what | who | figure, median (least–greatest) | repetitions |\n|---|---|---|---|\n";
        for row in &self.rows {
            for (place, one) in row.figures.iter().enumerate() {
                let what = if place == 0 { row.what.as_str() } else { "" };
                let spread = row.unit.spread(&one.values);
                let _ =
                    writeln!(page, "| {what} | {} | {spread} | {} |", one.who, one.values.len());
            }
        }
        page.push('\n');
        for row in self.rows.iter().filter(|row| !row.notes.is_empty()) {
            let _ = writeln!(page, "- {}: {}", row.what, row.notes.join(" ").trim_end());
        }
        page
    }

    fn json(&self) -> String {
        let rows = self.rows.iter().map(JsonRow::from).collect();
        let report = JsonReport { machine: &self.machine, size: self.size, rows };
        serde_json::to_string_pretty(&report).unwrap()
    }
}

#[derive(Serialize)]
struct JsonReport<'a> {
    machine: &'a Machine,
    size: &'a str,
    rows: Vec<JsonRow<'a>>,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    what: &'a str,
    goals: Vec<JsonGoal<'a>>,
    figures: Vec<JsonSeries<'a>>,
    notes: &'a [String],
    share_of_cores: [f64; 2],
}

#[derive(Serialize)]
struct JsonGoal<'a> {
    goal: &'a str,
    median: f64,
    values: &'a [f64],
    met: Option<bool>,
}

#[derive(Serialize)]
struct JsonSeries<'a> {
    who: &'a str,
    median: f64,
    values: &'a [f64],
}

impl<'a> From<&'a Row> for JsonRow<'a> {
    fn from(row: &'a Row) -> Self {
        let goal = |goal: &'a Goal| JsonGoal {
            goal: &goal.text,
            median: median(&goal.values),
            values: &goal.values,
            met: goal.is_met(),
        };
        let figure = |one: &'a Series| JsonSeries {
            who: &one.who,
            median: median(&one.values),
            values: &one.values,
        };
        Self {
            what: &row.what,
            goals: row.goals.iter().map(goal).collect(),
            figures: row.figures.iter().map(figure).collect(),
            notes: &row.notes,
            share_of_cores: row.share,
        }
    }
}
