//! The formats of reports for people and programs.

use clap::ValueEnum;

/// The format of the report of `isolate` and `hosts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// Text for people
    Table,
    /// One JSON object per line
    Json,
}
