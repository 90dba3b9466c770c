//! Aligned columns for people.
//!
//! Rows stream, so widths cannot be measured first. Columns have fixed widths, and those without
//! one (file names) come last. A value wider than its column shifts the rest of its row.

use std::io::Write;

use super::form::{Form, Render};
use crate::row::Row;
use crate::screen::Page;
use crate::spill::{Encoding, Printed, TABLE_INDENT};
use crate::tasks::{Column, Kind, Value};
use crate::{color, format};

/// The width of a column without one that is not the last.
const LOOSE: usize = 28;

/// The width of the column of hosts.
const HOST: usize = 10;

pub(super) struct Table {
    cells: Vec<Cell>,
    /// The prefix of an error.
    error: &'static str,
    /// Whether there is a column for the host.
    hosts: bool,
}

/// A column after those that every row has.
struct Cell {
    column: Column,
    /// The index of the task's value, or none for the input.
    value: Option<usize>,
}

impl Table {
    pub(super) fn new(form: &Form) -> Self {
        let input = Cell { column: form.input, value: None };
        let values = form.columns.iter().enumerate();
        let values = values.map(|(index, column)| Cell { column: *column, value: Some(index) });
        let (mut cells, loose): (Vec<_>, Vec<_>) =
            std::iter::once(input).chain(values).partition(|cell| cell.column.width > 0);
        cells.extend(loose);
        let last = cells.len() - 1;
        for (place, cell) in cells.iter_mut().enumerate() {
            let loose = cell.column.width == 0;
            if loose && place < last {
                cell.column.width = LOOSE;
            }
        }
        Self { cells, error: color::error(&std::io::stdout()), hosts: form.hosts }
    }
}

impl Render for Table {
    fn header(&mut self, page: &mut Page) {
        start(page, "id", "pid", self.hosts.then_some("host"), "time");
        for cell in &self.cells {
            put(page, &cell.column, cell.column.name);
        }
        end(page);
    }

    fn row(&mut self, row: &Row, page: &mut Page) {
        let host = self.hosts.then(|| row.host.as_ref().map_or("", |host| host.as_str()));
        start(page, row.number, row.pid, host, format::duration(row.elapsed));
        let input = row.input.to_text();
        if row.error.is_none() || !row.values.is_empty() {
            for cell in &self.cells {
                match cell.value.map(|index| row.values.get(index)) {
                    None => put(page, &cell.column, &format::one_line(&input)),
                    Some(Some(value)) => put(page, &cell.column, &shown(value, &cell.column)),
                    Some(None) => put(page, &cell.column, "-"),
                }
            }
        }
        match &row.error {
            None => {}
            Some(error) if !row.values.is_empty() => {
                write(page, format_args!("  {} {}", self.error, format::one_line(error)));
            }
            Some(error) => {
                let cell = self.cells.iter().find(|cell| cell.value.is_none());
                if let Some(cell) = cell.filter(|cell| cell.column.kind != Kind::Text) {
                    put(page, &cell.column, &format::one_line(&input));
                } else if !error.contains(&*input) {
                    // Errors about a file name it. The death of a worker does not.
                    write(page, format_args!("  {}", format::one_line(&input)));
                }
                write(page, format_args!("  {} {}", self.error, format::one_line(error)));
            }
        }
        if row.attempt > 1 {
            write(page, format_args!(" (attempt {})", row.attempt));
        }
        end(page);
        for printed in [&row.stdout, &row.stderr] {
            match printed {
                Printed::Here(printed) => {
                    for line in String::from_utf8_lossy(printed).lines() {
                        write(page, format_args!("{TABLE_INDENT}{}", format::one_line(line)));
                        end(page);
                    }
                }
                Printed::InFile(part) => page.insert(part, Encoding::Table),
                Printed::Named(_) => {}
            }
        }
    }
}

fn start(
    page: &mut Vec<u8>,
    id: impl std::fmt::Display,
    pid: impl std::fmt::Display,
    host: Option<&str>,
    time: impl std::fmt::Display,
) {
    write(page, format_args!("{id:>7}  {pid:>7}"));
    if let Some(host) = host {
        write(page, format_args!("  {host:<HOST$}"));
    }
    write(page, format_args!("  {time:>9}"));
}

fn put(page: &mut Vec<u8>, column: &Column, text: &str) {
    let width = column.width;
    match column.kind {
        Kind::Text => write(page, format_args!("  {text:<width$}")),
        Kind::Number | Kind::Fixed(_) => write(page, format_args!("  {text:>width$}")),
    }
}

/// Ends a row, without trailing spaces.
fn end(page: &mut Vec<u8>) {
    page.truncate(page.trim_ascii_end().len());
    page.push(b'\n');
}

fn shown(value: &Value, column: &Column) -> String {
    match (value, column.kind) {
        (Value::Whole(number), _) => number.to_string(),
        (Value::Real(number), Kind::Fixed(decimals)) => format!("{number:.decimals$}"),
        (Value::Real(number), _) => number.to_string(),
        (Value::Text(text), _) => format::one_line(&text.to_text()).into_owned(),
        (Value::Missing, _) => "-".to_owned(),
    }
}

fn write(page: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _ = page.write_fmt(text); // writing to memory can't fail
}
