//! One JSON object a line. The field `result` is there where the task succeeded and `error` where
//! it failed; a result of several values is an object with a field for each.

use std::borrow::Cow;
use std::fmt::Write;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{Render, Row};
use crate::tasks::{Column, Output, Task, Value};

pub(super) struct Json {
    columns: &'static [Column],
    /// Whether there is a field for what tasks print.
    capture: bool,
}

impl Json {
    pub(super) fn new(task: &Task, capture: bool) -> Self {
        Self { columns: task.columns, capture }
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
            result: row
                .outcome
                .as_ref()
                .ok()
                .map(|values| Answer { values, columns: self.columns }),
            error: row.outcome.as_ref().err(),
            output: self.capture.then(|| String::from_utf8_lossy(&row.printed)),
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
    error: Option<&'a String>,
    /// What the task printed, where that is captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Cow<'a, str>>,
}

struct Answer<'a> {
    values: &'a Output,
    columns: &'static [Column],
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
