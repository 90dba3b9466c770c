//! One JSON object per line. `result` exists if the task succeeded, and `error` if it failed; a
//! result of several values is an object with a field for each. Captured output comes last. If it
//! is not UTF-8, `stdout_base64` and similar fields have its bytes.

use std::borrow::Cow;
use std::fmt::Write;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::form::{Form, OutputFields, Render};
use crate::row::Row;
use crate::screen::Page;
use crate::spill::{Encoding, Printed, base64, json};
use crate::tasks::{Column, Output, Value};

pub(super) struct Json {
    columns: &'static [Column],
    prints: OutputFields,
}

impl Json {
    pub(super) fn new(form: &Form) -> Self {
        Self { columns: form.columns, prints: form.prints }
    }
}

impl Render for Json {
    fn header(&mut self, _page: &mut Page) {}

    fn row(&mut self, row: &Row, page: &mut Page) {
        let object = Object {
            id: row.number,
            pid: row.pid,
            worker: row.worker_number(),
            host: row.host.as_ref().map(|host| host.as_str()),
            attempt: row.attempt,
            queued: row.queued.as_secs_f64(),
            seconds: row.elapsed.as_secs_f64(),
            input: row.input.to_text(),
            input_hex: hex_unless_text(&row.input.to_bytes()),
            result: Answer::of(row, self.columns),
            error: row.error.as_deref(),
        };
        let start = page.len();
        if serde_json::to_writer(&mut **page, &object).is_err() {
            // Cannot fail: all is plain data in memory. If it did, half an object must not remain.
            page.truncate(start);
            return;
        }
        page.pop(); // the end of the object, in which what was printed is still to stand
        for (name, printed) in self.prints.names().iter().zip([&row.stdout, &row.stderr]) {
            put(name, printed, page);
        }
        page.extend_from_slice(b"}\n");
    }
}

#[derive(serde::Serialize)]
struct Object<'a> {
    id: u64,
    pid: u32,
    worker: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    attempt: u32,
    /// Seconds from submission to start.
    queued: f64,
    seconds: f64,
    input: Cow<'a, str>,
    /// The bytes of an input that is not UTF-8, which `input` shows only partly.
    #[serde(skip_serializing_if = "Option::is_none")]
    input_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Answer<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Writes captured output as a field of this name. If it is not UTF-8, another field has the bytes.
fn put(name: &str, printed: &Printed, page: &mut Page) {
    let is_text = match printed {
        Printed::Here(bytes) => std::str::from_utf8(bytes).is_ok(),
        // A read error is reported when it is written.
        Printed::InFile(part) => part.is_text().unwrap_or(true),
        Printed::Named(_) => true,
    };
    page.extend_from_slice(format!(",\"{name}\":\"").as_bytes());
    match printed {
        Printed::Here(bytes) => json(&String::from_utf8_lossy(bytes), page),
        Printed::InFile(part) => page.insert(part, Encoding::Json),
        Printed::Named(_) => {}
    }
    page.push(b'"');
    if is_text {
        return;
    }
    page.extend_from_slice(format!(",\"{name}_base64\":\"").as_bytes());
    match printed {
        Printed::Here(bytes) => base64(bytes, page),
        Printed::InFile(part) => page.insert(part, Encoding::Base64),
        Printed::Named(_) => {}
    }
    page.push(b'"');
}

/// The values of a row: one by itself, or several by their columns' names.
pub(crate) struct Answer<'a> {
    values: &'a Output,
    columns: &'static [Column],
}

impl<'a> Answer<'a> {
    /// Returns none if there are no values.
    pub(crate) fn of(row: &'a Row, columns: &'static [Column]) -> Option<Self> {
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

/// A value without the name of its variant, which only the wire format needs.
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
