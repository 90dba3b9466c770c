//! One JSON object a line. The field `result` is there where the task succeeded and `error` where
//! it failed; a result of several values is an object with a field for each.

use std::borrow::Cow;
use std::fmt::Write;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{Form, Prints, Render, Row};
use crate::tasks::{Column, Output, Value};

pub(super) struct Json {
    columns: &'static [Column],
    prints: Prints,
}

impl Json {
    pub(super) fn new(form: &Form) -> Self {
        Self { columns: form.columns, prints: form.prints }
    }
}

impl Render for Json {
    fn header(&mut self, _page: &mut Vec<u8>) {}

    fn row(&mut self, row: &Row, page: &mut Vec<u8>) {
        let object = Object {
            id: row.id,
            pid: row.pid,
            worker: row.worker,
            attempt: row.attempt,
            queued: row.queued.as_secs_f64(),
            seconds: row.elapsed.as_secs_f64(),
            input: row.input.to_text(),
            input_hex: hex_unless_text(&row.input.to_bytes()),
            result: Answer::of(row, self.columns),
            error: row.error.as_deref(),
            output: (self.prints == Prints::Output).then(|| text(&row.stdout)),
            stdout: (self.prints == Prints::Both).then(|| text(&row.stdout)),
            stderr: (self.prints == Prints::Both).then(|| text(&row.stderr)),
        };
        let start = page.len();
        if serde_json::to_writer(&mut *page, &object).is_err() {
            // It can't fail: all is plain data and the page is memory. Still, never half an object.
            page.truncate(start);
            return;
        }
        page.push(b'\n');
    }
}

#[derive(serde::Serialize)]
struct Object<'a> {
    id: u64,
    pid: u32,
    worker: usize,
    attempt: u32,
    /// Seconds between being ready to run and running.
    queued: f64,
    seconds: f64,
    input: Cow<'a, str>,
    /// The bytes of an input that is not UTF-8, which `input` can only show in part.
    #[serde(skip_serializing_if = "Option::is_none")]
    input_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Answer<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    /// What the task printed, where that is captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Cow<'a, str>>,
    /// What the command printed, where that is grouped.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<Cow<'a, str>>,
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// The values of a row: one by itself, or several by their columns' names.
pub(in crate::cli) struct Answer<'a> {
    values: &'a Output,
    columns: &'static [Column],
}

impl<'a> Answer<'a> {
    /// None where there are no values.
    pub(in crate::cli) fn of(row: &'a Row, columns: &'static [Column]) -> Option<Self> {
        (!row.values.is_empty()).then_some(Self { values: &row.values, columns })
    }
}

impl Serialize for Answer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let [value] = self.values.as_slice() {
            return Plain(value).serialize(serializer);
        }
        let mut map = serializer.serialize_map(Some(self.values.len()))?;
        for (column, value) in self.columns.iter().zip(self.values) {
            map.serialize_entry(column.name, &Plain(value))?;
        }
        map.end()
    }
}

/// A value as JSON has it: without the name of its kind, which the wire to the worker needs.
struct Plain<'a>(&'a Value);

impl Serialize for Plain<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Whole(number) => serializer.serialize_i128(*number),
            Value::Real(number) => serializer.serialize_f64(*number),
            Value::Text(text) => serializer.serialize_str(&text.to_text()),
            Value::Missing => serializer.serialize_none(),
        }
    }
}

fn hex_unless_text(bytes: &[u8]) -> Option<String> {
    if std::str::from_utf8(bytes).is_ok() {
        return None;
    }
    let mut hex = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(hex, "{byte:02x}"); // writing to a String can't fail
    }
    Some(hex)
}
