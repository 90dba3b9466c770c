//! Messages of a run on standard error that belong to no row.

use std::io::{self, Write};
use std::sync::atomic::Ordering;

use crate::args::JournalArgs;
use crate::format;
use crate::journal::Counts;

/// Reports how many inputs the journal skipped. Returns whether `--retry-failed` matched none of
/// the failed jobs: then the journal is of another command.
pub(super) fn report_skipped(
    journal: &JournalArgs,
    counts: &Counts,
    failed_before: u64,
    is_quiet: bool,
) -> bool {
    let [skipped, not_skipped] =
        [&counts.skipped, &counts.not_skipped].map(|count| count.load(Ordering::Relaxed));
    if journal.retry_failed && failed_before > 0 && not_skipped == 0 {
        say(format_args!(
            "error: none of the {} jobs that failed according to the journal match: their \
             command, options or inputs differ; --resume runs all jobs that have not succeeded",
            format::grouped(failed_before)
        ));
        return true;
    }
    if skipped > 0 && !is_quiet {
        let noun = if skipped == 1 { "input" } else { "inputs" };
        let why = if journal.retry_failed { "did not fail" } else { "succeeded" };
        let skipped = format::grouped(skipped);
        say(format_args!("skipped {skipped} {noun} that {why} according to the journal"));
    }
    false
}

/// Prints a line to standard error.
pub(super) fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{what}");
}
