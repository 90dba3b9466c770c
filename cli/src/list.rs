//! `procpool tasks`: lists the built-in tasks.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;

use super::args::{ListFormat, TasksArgs};
use super::exit::Exit;
use crate::tasks::{self, Takes, Task};

pub(super) fn run(args: &TasksArgs) -> Result<Exit> {
    let page = match args.format {
        ListFormat::Table => table(),
        ListFormat::Json => json()?,
        ListFormat::Csv => csv()?,
    };
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(&page).and_then(|()| stdout.flush());
    written.context("failed to write the list to standard output")?;
    Ok(Exit::Success)
}

/// A task in the list.
#[derive(Serialize)]
struct Listed {
    name: &'static str,
    summary: &'static str,
    inputs: &'static str,
    default: String,
    options: String,
    results: String,
}

impl Listed {
    fn all() -> impl Iterator<Item = Self> {
        tasks::ALL.iter().map(|task| Self::from(*task))
    }
}

impl From<&Task> for Listed {
    fn from(task: &Task) -> Self {
        let mut options = Vec::new();
        if task.options.out {
            options.push("--out DIR".to_owned());
        }
        if !task.options.to.is_empty() {
            let formats: Vec<_> = task.options.to.iter().map(|format| format.name()).collect();
            options.push(format!("--to {}", formats.join("|")));
        }
        if let Some(points) = task.options.points {
            options.push(format!("--points {points}"));
        }
        if let Some(seed) = task.options.seed {
            options.push(format!("--seed {seed}"));
        }
        let results: Vec<_> = task.columns.iter().map(|column| column.name).collect();
        Self {
            name: task.name,
            summary: task.summary,
            inputs: match task.takes {
                Takes::Numbers => "numbers",
                Takes::Files => "files",
            },
            default: task.default_inputs.join(" "),
            options: options.join(" "),
            results: results.join(" "),
        }
    }
}

fn table() -> Vec<u8> {
    let mut text = String::new();
    for task in Listed::all() {
        let mut line = |name: &str, heading: &str, what: &str| {
            if !what.is_empty() {
                text += &format!("{name:<10} {heading:<9}{what}\n");
            }
        };
        line(task.name, "", task.summary);
        line("", "inputs", task.inputs);
        line("", "default", &task.default);
        line("", "options", &task.options);
        line("", "results", &task.results);
        text.push('\n');
    }
    text += "procpool run --task NAME runs one of them; an option is shown with its default.\n";
    text.into_bytes()
}

fn json() -> Result<Vec<u8>> {
    let mut page = Vec::new();
    for task in Listed::all() {
        serde_json::to_writer(&mut page, &task)?;
        page.push(b'\n');
    }
    Ok(page)
}

fn csv() -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for task in Listed::all() {
        writer.serialize(task)?;
    }
    Ok(writer.into_inner()?)
}
