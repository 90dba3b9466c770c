//! The renderer interface, and what rows contain.

use crate::row::Row;
use crate::screen::Page;
use crate::tasks::Column;
use crate::tasks::command::Template;

/// A format of rows.
pub(crate) trait Render {
    /// Writes the text before the first row.
    fn header(&mut self, page: &mut Page);

    /// Writes one row with its line end.
    fn row(&mut self, row: &Row, page: &mut Page);

    /// Writes the row's part on standard error.
    fn row_errors(&mut self, _row: &Row, _errors: &mut Page) {}
}

/// The contents of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// The column of the input.
    pub(crate) input: Column,
    /// The columns of the result.
    pub(crate) columns: &'static [Column],
    /// The fields for captured output.
    pub(crate) prints: OutputFields,
    /// Whether there is a column for the host.
    pub(crate) hosts: bool,
}

/// The fields for captured output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputFields {
    None,
    /// One field for both streams of a task.
    Output,
    /// One field per stream of a command.
    Both,
}

impl OutputFields {
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Output => &["output"],
            Self::Both => &["stdout", "stderr"],
        }
    }
}

/// Options of the plain format.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlainOptions {
    /// The prefix of each line, if it has one.
    pub(crate) tag: Option<Template>,
    /// The command, if it is printed.
    pub(crate) command: Option<Template>,
    /// Whether nothing is said about jobs that fail.
    pub(crate) is_silent: bool,
}
