//! The observations of a case, as lines of JSON. `Facts` is one line, printed when it is dropped.

use std::fmt::{self, Display, Formatter};
use std::io::Write;

/// One line of facts.
#[derive(Debug, Default)]
pub(crate) struct Facts(Vec<String>);

/// The outcome of a task: its result or its error, and after how many milliseconds.
#[derive(Debug)]
pub(crate) enum Outcome<R> {
    Answer(R, f64),
    Error(String, f64),
    Nothing,
}

impl Facts {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a number, or any other text that is valid JSON.
    pub(crate) fn add(mut self, name: &str, value: impl Display) -> Self {
        self.0.push(format!("{}: {value}", quoted(name)));
        self
    }

    pub(crate) fn text(self, name: &str, value: &str) -> Self {
        self.add(name, quoted(value))
    }

    pub(crate) fn list(self, name: &str, values: impl IntoIterator<Item: Display>) -> Self {
        let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
        self.add(name, format_args!("[{}]", values.join(", ")))
    }
}

impl<R> Outcome<R> {
    /// Counts the time from an instant this many milliseconds after the start.
    pub(crate) fn since(self, millis: f64) -> Self {
        match self {
            Self::Answer(answer, ms) => Self::Answer(answer, ms - millis),
            Self::Error(text, ms) => Self::Error(text, ms - millis),
            Self::Nothing => Self::Nothing,
        }
    }
}

/// As JSON.
impl<R: Display> Display for Outcome<R> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(value, ms) => write!(f, "{{\"answer\": {value}, \"ms\": {ms}}}"),
            Self::Error(text, ms) => {
                write!(f, "{{\"error\": {}, \"ms\": {ms}}}", quoted(text))
            }
            Self::Nothing => f.write_str("{}"),
        }
    }
}

impl Drop for Facts {
    fn drop(&mut self) {
        let mut out = std::io::stdout().lock();
        // A reader that is gone does not need them.
        let _ = writeln!(out, "{{{}}}", self.0.join(", ")).and_then(|()| out.flush());
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
