//! Comma-separated values with a header. Every row has the same fields, empty where nothing
//! applies. File names are kept byte for byte, and quoted where necessary.

use csv::WriterBuilder;

use super::form::{Form, OutputFields, Render};
use crate::row::Row;
use crate::screen::Page;
use crate::spill::{Encoding, Printed};
use crate::tasks::{Column, Value};

pub(super) struct Csv {
    columns: &'static [Column],
    prints: OutputFields,
    hosts: bool,
    /// The fields of the current row; the buffer is reused.
    fields: csv::ByteRecord,
}

impl Csv {
    pub(super) fn new(form: &Form) -> Self {
        let Form { columns, prints, hosts, .. } = *form;
        Self { columns, prints, hosts, fields: csv::ByteRecord::new() }
    }

    fn write(&mut self, page: &mut Page) {
        // Writes to the page directly, so a small buffer is enough.
        let mut writer = WriterBuilder::new().buffer_capacity(256).from_writer(&mut **page);
        let _ = writer.write_byte_record(&self.fields); // writing to memory can't fail
        let _ = writer.flush();
        self.fields.clear();
    }
}

impl Render for Csv {
    fn header(&mut self, page: &mut Page) {
        let hosts: &[_] = if self.hosts { &["host"] } else { &[] };
        let names = [&["id", "pid", "worker"], hosts, &["attempt", "seconds", "input"]].concat();
        for name in names {
            self.fields.push_field(name.as_bytes());
        }
        for column in self.columns {
            self.fields.push_field(column.name.as_bytes());
        }
        self.fields.push_field(b"error");
        for name in self.prints.names() {
            self.fields.push_field(name.as_bytes());
        }
        self.write(page);
    }

    fn row(&mut self, row: &Row, page: &mut Page) {
        self.fields.push_field(row.number.to_string().as_bytes());
        self.fields.push_field(row.pid.to_string().as_bytes());
        self.fields.push_field(row.worker_number().to_string().as_bytes());
        if self.hosts {
            let host = row.host.as_ref().map_or("", |host| host.as_str());
            self.fields.push_field(host.as_bytes());
        }
        self.fields.push_field(row.attempt.to_string().as_bytes());
        let (seconds, nanos) = (row.elapsed.as_secs(), row.elapsed.subsec_nanos());
        self.fields.push_field(format!("{seconds}.{nanos:09}").as_bytes());
        self.fields.push_field(&row.input.to_bytes());
        for index in 0..self.columns.len() {
            match row.values.get(index) {
                None | Some(Value::Missing) => self.fields.push_field(b""),
                Some(Value::Whole(number)) => self.fields.push_field(number.to_string().as_bytes()),
                // As many digits as reading the same number back takes.
                Some(Value::Real(number)) => {
                    self.fields.push_field(format!("{number:?}").as_bytes())
                }
                Some(Value::Text(text)) => self.fields.push_field(text.as_slice()),
            }
        }
        self.fields.push_field(row.error.as_deref().unwrap_or_default().as_bytes());
        let printed: Vec<_> =
            self.prints.names().iter().zip([&row.stdout, &row.stderr]).map(|(_, it)| it).collect();
        if printed.iter().all(|it| matches!(it, Printed::Here(_))) {
            for printed in printed {
                let Printed::Here(bytes) = printed else { continue };
                self.fields.push_field(bytes);
            }
            return self.write(page);
        }
        // Output in files is too long for a buffer, and follows the other fields.
        self.write(page);
        page.pop(); // the end of the line
        for printed in printed {
            page.extend_from_slice(b",\"");
            match printed {
                Printed::Here(bytes) => {
                    for part in bytes.split_inclusive(|byte| *byte == b'"') {
                        page.extend_from_slice(part);
                        if part.ends_with(b"\"") {
                            page.push(b'"');
                        }
                    }
                }
                Printed::InFile(part) => page.insert(part, Encoding::Csv),
                Printed::Named(_) => {}
            }
            page.push(b'"');
        }
        page.push(b'\n');
    }
}
