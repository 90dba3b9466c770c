//! Notes: what a task tells its parent while it runs. Progress, values, log records.
//!
//! A note is encoded and cut into packets of the control socket, each a
//! [`Reply::Note`](crate::wire::protocol::Reply::Note) with a part of the bytes behind it.

use serde::{Deserialize, Serialize};

/// The longest note in bytes, encoded.
pub const MAX_NOTE: usize = 16 << 20;

/// A note.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Note {
    /// How far the task is.
    Progress(Progress),
    /// A value that the task emits. The encoded value follows the note.
    Value {
        /// The value's type.
        type_name: String,
    },
    /// A log record.
    Record(Box<LogRecord>),
}

/// How far a task is, as it says itself; see [`progress`](crate::outbox::progress).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Progress {
    /// How much is done.
    pub done: u64,
    /// How much there is, if the task knows it.
    pub total: Option<u64>,
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.total {
            Some(total) => write!(f, "{} of {total}", self.done),
            None => write!(f, "{}", self.done),
        }
    }
}

/// The level of a log record, from the most to the least urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is wrong, but the task goes on.
    Warn,
    /// What a user may want to know.
    Info,
    /// What a developer may want to know.
    Debug,
    /// All steps.
    Trace,
}

impl LogLevel {
    /// Returns the level's name in capitals, such as `"WARN"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
            Self::Trace => "TRACE",
        }
    }
}

impl std::fmt::Display for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// The crate by which a record was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LogSource {
    /// The crate `log`.
    Log,
    /// The crate `tracing`.
    Tracing,
}

/// A log record that was made in a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogRecord {
    /// How urgent it is.
    pub level: LogLevel,
    /// The module that made it, or what that module says.
    pub target: String,
    /// The text. One of more than 32 KiB is cut.
    pub message: String,
    /// Names and values of the other fields, in order.
    pub fields: Vec<(String, String)>,
    /// The spans that it was made in, each as its name and its fields, from the outermost.
    pub spans: Vec<String>,
    /// The source file.
    pub file: Option<String>,
    /// The line in that file.
    pub line: Option<u32>,
    /// The crate that it was made with.
    pub source: LogSource,
    /// How many records were dropped just before it, because they could not be sent in time.
    pub dropped: u64,
}

/// Cuts a text of more than `most` bytes, and says so at its end.
pub fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        let mut end = most;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("… (cut)");
        text.shrink_to_fit();
    }
}

impl LogRecord {
    /// The most bytes of a text in a record.
    pub(crate) const MAX_TEXT: usize = 32 << 10;

    /// The most fields, and the most spans.
    pub(crate) const MAX_FIELDS: usize = 64;

    /// Cuts what is too long or too many. A parent cuts again: a worker may send anything.
    pub fn cut(&mut self) {
        let shorten = |text: &mut String| cut(text, Self::MAX_TEXT);
        self.fields.truncate(Self::MAX_FIELDS);
        self.spans.truncate(Self::MAX_FIELDS);
        shorten(&mut self.message);
        shorten(&mut self.target);
        self.spans.iter_mut().chain(&mut self.file).for_each(shorten);
        for (name, value) in &mut self.fields {
            shorten(name);
            shorten(value);
        }
    }

    /// Returns about how many bytes of memory it takes up.
    pub fn size(&self) -> usize {
        let fields = self.fields.iter().map(|(name, value)| name.len() + value.len());
        let texts: usize = fields.chain(self.spans.iter().map(String::len)).sum();
        size_of::<Self>() + self.message.len() + self.target.len() + texts
    }
}

impl std::fmt::Display for LogRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.dropped > 0 {
            write!(f, "({} records dropped) ", self.dropped)?;
        }
        write!(f, "{} ", self.level)?;
        for span in &self.spans {
            write!(f, "{span}:")?;
        }
        if !self.spans.is_empty() {
            f.write_str(" ")?;
        }
        write!(f, "{}: {}", self.target, self.message)?;
        for (name, value) in &self.fields {
            write!(f, " {name}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_record_is_bounded_whoever_made_it() {
        let long = || "ä".repeat(LogRecord::MAX_TEXT);
        let mut record = LogRecord {
            level: LogLevel::Info,
            target: long(),
            message: long(),
            fields: vec![(long(), long()); 2 * LogRecord::MAX_FIELDS],
            spans: vec![long(); 2 * LogRecord::MAX_FIELDS],
            file: Some(long()),
            line: None,
            source: LogSource::Log,
            dropped: 0,
        };
        record.cut();
        let most = LogRecord::MAX_TEXT + 16;
        let fields = record.fields.iter().flat_map(|(name, value)| [name, value]);
        let mut texts = fields.chain(&record.spans).chain([&record.target, &record.message]);
        assert!(texts.all(|text| text.len() <= most && text.ends_with("ä… (cut)")));
        assert!(record.file.is_some_and(|file| file.len() <= most));
        assert_eq!((record.fields.len(), record.spans.len()), (64, 64));
    }
}
