//! Renders rows. One file per format.

mod csv;
mod form;
mod json;
mod plain;
mod table;

use super::args::Format;
pub(super) use form::{Form, OutputFields, PlainOptions, Render};
pub(super) use json::Answer;

/// Creates the renderer for a format.
pub(super) fn renderer(format: Format, form: &Form, plain: PlainOptions) -> Box<dyn Render> {
    match format {
        Format::Plain => Box::new(plain::Plain::new(plain)),
        Format::Table => Box::new(table::Table::new(form)),
        Format::Json => Box::new(json::Json::new(form)),
        Format::Csv => Box::new(csv::Csv::new(form)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::row::Row;
    use crate::screen::Page;
    use crate::spill::Printed;
    use crate::tasks::{Input, Output, find};
    use std::time::Duration;

    fn row(id: u64, input: Input, outcome: Result<Output, String>) -> Row {
        Row {
            id,
            number: id + 1,
            pid: 4711,
            worker: 1,
            host: None,
            attempt: 1,
            queued: Duration::from_micros(3),
            elapsed: Duration::from_micros(1500),
            began: 0,
            input,
            key: None,
            stdout: Printed::default(),
            stderr: Printed::default(),
            error: outcome.as_ref().err().cloned(),
            values: outcome.unwrap_or_default(),
            memory: None,
            cancelled: false,
            killed: false,
            earlier: Vec::new(),
            abort: None,
            unstarted: None,
        }
    }

    fn rendered(format: Format, task: &str, rows: &[Row]) -> Vec<u8> {
        let mut page = Page::default();
        let capture = rows
            .iter()
            .any(|row| matches!(&row.stdout, Printed::Here(printed) if !printed.is_empty()));
        let task = find(task).unwrap();
        let prints = if capture { OutputFields::Output } else { OutputFields::None };
        let form = Form { input: task.input, columns: task.columns, prints, hosts: false };
        let mut renderer = renderer(format, &form, PlainOptions::default());
        renderer.header(&mut page);
        rows.iter().for_each(|row| renderer.row(row, &mut page));
        page.clone()
    }

    fn text(page: Vec<u8>) -> String {
        String::from_utf8(page).unwrap()
    }

    fn squares() -> [Row; 2] {
        [
            row(0, Input::from(12), Ok(vec![144u64.into()])),
            row(1, Input::from("x"), Err("not a number:\nsorry".into())),
        ]
    }

    #[test]
    fn a_table_has_aligned_columns_and_one_line_per_row() {
        assert_eq!(
            text(rendered(Format::Table, "square", &squares())),
            "     id      pid       time           x          result\n\
             \x20     1     4711    1.50 ms          12             144\n\
             \x20     2     4711    1.50 ms           x  error: not a number:\\nsorry\n"
        );
    }

    #[test]
    fn in_a_table_long_names_stand_last() {
        let digest = "0".repeat(64);
        let rows = [
            row(0, Input::from("a\tb"), Ok(vec![digest.clone().into()])),
            row(1, Input::from("gone"), Err("failed to read \"gone\"".into())),
            row(2, Input::from("c"), Err("the worker died".into())),
        ];
        let table = text(rendered(Format::Table, "sha256", &rows));
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[1].ends_with(&format!("{digest}  a\\tb")), "{table}");
        assert!(lines[2].ends_with("1.50 ms  error: failed to read \"gone\""), "{table}");
        assert!(lines[3].ends_with("1.50 ms  c  error: the worker died"), "{table}");
    }

    fn form_of(task: &str) -> Form {
        let task = find(task).unwrap();
        let prints = OutputFields::None;
        Form { input: task.input, columns: task.columns, prints, hosts: true }
    }

    #[test]
    fn rows_name_the_host_where_there_are_several() {
        let mut rows = squares();
        rows[0].host = Some(serde_json::from_str("\"n2\"").unwrap());
        let rendered = |format| {
            let mut page = Page::default();
            let form = form_of("square");
            let mut renderer = renderer(format, &form, PlainOptions::default());
            renderer.header(&mut page);
            rows.iter().for_each(|row| renderer.row(row, &mut page));
            text(page.clone())
        };
        let table = rendered(Format::Table);
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[0].starts_with("     id      pid  host             time"), "{table}");
        assert!(lines[1].starts_with("      1     4711  n2            1.50 ms"), "{table}");
        assert!(lines[2].starts_with("      2     4711                1.50 ms"), "{table}");
        let csv = rendered(Format::Csv);
        assert!(csv.starts_with("id,pid,worker,host,attempt,"), "{csv}");
        assert!(csv.contains("\n1,4711,2,n2,1,") && csv.contains("\n2,4711,2,,1,"), "{csv}");
        assert!(rendered(Format::Json).contains("\"worker\":2,\"host\":\"n2\",\"attempt\":1"));
        let mut errors = Page::default();
        rows[1].host = rows[0].host;
        let mut plain = renderer(Format::Plain, &form_of("square"), PlainOptions::default());
        plain.row_errors(&rows[1], &mut errors);
        assert!(text(errors.clone()).ends_with("(after 1.50 ms, on n2)\n"));
    }

    #[test]
    fn json_is_one_object_a_line() {
        let json = text(rendered(Format::Json, "square", &squares()));
        let rows: Vec<serde_json::Value> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!((&rows[0]["id"], &rows[0]["pid"]), (&1.into(), &4711.into()));
        assert_eq!((&rows[0]["input"], &rows[0]["result"]), (&"12".into(), &144.into()));
        assert_eq!(rows[0]["seconds"], 0.0015);
        assert_eq!(rows[1]["error"], "not a number:\nsorry");
        assert!(rows[0].get("error").is_none() && rows[1].get("result").is_none());

        let counts = [row(0, Input::from("f"), Ok([1u64, 2, 3].map(Into::into).into()))];
        let counts: serde_json::Value =
            serde_json::from_str(&text(rendered(Format::Json, "wordcount", &counts))).unwrap();
        assert_eq!(counts["result"], serde_json::json!({"lines": 1, "words": 2, "bytes": 3}));
    }

    #[test]
    fn a_name_that_is_no_text_can_be_had_back_from_json_and_csv() {
        let name = b"a\xff,\"\n";
        let row = [row(0, Input::Text(name.to_vec().into()), Ok(vec!["d".to_owned().into()]))];
        let json: serde_json::Value =
            serde_json::from_str(&text(rendered(Format::Json, "sha256", &row))).unwrap();
        assert_eq!(
            (&json["input"], &json["input_hex"]),
            (&"a\u{fffd},\"\n".into(), &"61ff2c220a".into())
        );

        let csv = rendered(Format::Csv, "sha256", &row);
        let mut reader = ::csv::Reader::from_reader(csv.as_slice());
        let record = reader.byte_records().next().unwrap().unwrap();
        assert_eq!(&record[5], name);
    }

    #[test]
    fn what_a_task_printed_stands_with_its_result() {
        let mut rows = squares();
        rows[0].stdout = Printed::Here(b"one\n\x1b[2Jtwo".to_vec());
        rows[1].attempt = 3;
        let table = text(rendered(Format::Table, "square", &rows));
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[1].ends_with("144"), "{table}");
        assert_eq!(lines[2..4], ["         │ one", "         │ \\u{1b}[2Jtwo"], "{table}");
        assert!(lines[4].ends_with("sorry (attempt 3)"), "{table}");

        let json = text(rendered(Format::Json, "square", &rows));
        let json: Vec<serde_json::Value> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            (&json[0]["output"], &json[1]["output"]),
            (&"one\n\x1b[2Jtwo".into(), &"".into())
        );

        let csv = rendered(Format::Csv, "square", &rows);
        let mut reader = ::csv::Reader::from_reader(csv.as_slice());
        assert_eq!(reader.headers().unwrap().iter().next_back(), Some("output"));
        let record = reader.byte_records().next().unwrap().unwrap();
        assert_eq!(&record[8], b"one\n\x1b[2Jtwo");
    }

    #[test]
    fn csv_has_a_field_for_each_value_and_one_for_the_error() {
        assert_eq!(
            text(rendered(Format::Csv, "square", &squares())),
            "id,pid,worker,attempt,seconds,input,result,error\n\
             1,4711,2,1,0.001500000,12,144,\n\
             2,4711,2,1,0.001500000,x,,\"not a number:\nsorry\"\n"
        );
    }
}
