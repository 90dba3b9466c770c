//! What a form of output is, and what is shown in it.

use crate::row::Row;
use crate::screen::Page;
use crate::tasks::Column;

/// A form of output.
pub(crate) trait Render {
    /// What stands before the first row.
    fn header(&mut self, page: &mut Page);

    /// Writes one row, its end of line included.
    fn row(&mut self, row: &Row, page: &mut Page);

    /// What is said of a row on standard error.
    fn row_errors(&mut self, _row: &Row, _errors: &mut Page) {}
}

/// What is shown of each row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// The input.
    pub(crate) input: Column,
    /// The values of the answer.
    pub(crate) columns: &'static [Column],
    /// What was printed.
    pub(crate) prints: OutputFields,
}

/// Which fields there are for what was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputFields {
    None,
    /// One for both outputs of a task.
    Output,
    /// One for each output of a command.
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

/// What is added to what jobs print themselves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PlainOptions {
    /// The input, before each line.
    pub(crate) tag: bool,
}
