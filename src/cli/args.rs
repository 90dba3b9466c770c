//! The arguments as they are typed. Nothing is decided here; that is `plan`.

use std::ffi::OsString;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::compare::CompareArgs;
use super::isolate::Case;
use super::units;
use crate::tasks::{self, FileFormat};

const EXAMPLES: &str = "\
Examples:
  procpool run --procs 4                          the squares of 0..5, and who made each
  procpool run --task pi --count 64               64 estimates of π
  procpool run --task sqrt 10..5000000 --quiet    the square roots of a range
  find . -type f | procpool run --task sha256 --format csv
  procpool run --task image *.png --out turned --to webp
  procpool isolate                                what a crash or a hang costs, shown
  procpool tasks                                  what can be run by name";

const RUN_EXAMPLES: &str = "\
Inputs:
  Given as arguments, or one per line by --input FILE; '-' is standard input.
  A range such as 0..5 or 0..=4 stands for the whole numbers in it. Blank lines are skipped.
  Without any, tasks over files read standard input, and tasks over numbers have defaults.

Output:
  Results go to standard output. The summary follows a table, and goes to standard error with
  json and csv.

Exit codes:
  0 all well · 1 a task failed (the others are done all the same) · 2 wrong usage
  130 interrupted by Ctrl-C · 143 by SIGTERM · 129 by SIGHUP

Signals:
  Ctrl-C, SIGTERM and SIGHUP: what has been begun is finished, then the run ends; twice: it ends at
  once. Ctrl-Z stops the workers too, and fg lets them go on.

Examples:
  procpool run --procs 4
  procpool run --task pi --count 64 --unordered
  procpool run --task sqrt 10..5000000 --format csv > roots.csv
  procpool run --task parzen 0.1 0.2 0.5 1 --points 100000
  find . -type f | procpool run --procs 4 --task sha256 --input - --format csv
  procpool run --task wordcount *.txt --format json | jq .result.words
  procpool run --task image photos/*.jpg --out turned --to webp
  procpool run --task plot --count 64 --out plots --to png";

const ISOLATE_EXAMPLES: &str = "\
In each case eight healthy tasks are under way beside one that goes wrong: once in a pool, once in
a process of threads (a child of this command, so that it can be seen dying). All that is shown was
observed just then.

Exit codes:
  0 every case was contained: the neighbours' answers came and are right, nothing of theirs was
  changed, and the pool answers on · 1 one was not · 2 wrong usage

Examples:
  procpool isolate
  procpool isolate --case segfault --case leak
  procpool isolate --format json | jq -c '[.case, .contained, .threads.ended]'";

/// A pool of worker processes: one task's crash, hang or leak cannot bring down the others.
#[derive(Debug, Parser)]
#[command(name = "procpool", version, after_help = EXAMPLES, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run a built-in task over inputs, in a pool; every result with its id and PID
    Run(Box<RunArgs>),
    /// List the built-in tasks
    Tasks(TasksArgs),
    /// Measure what processes cost here beside threads, and draw it
    Compare(CompareArgs),
    /// Show what a crash, a leak or a hang costs: here, and among threads
    Isolate(IsolateArgs),
}

#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(super) struct RunArgs {
    /// What to work on: numbers, ranges of them, or files, as the task has it
    #[arg(value_name = "INPUT", allow_negative_numbers = true)]
    pub(super) inputs: Vec<OsString>,

    /// How many worker processes; 0 is as many as there are CPUs for this process
    #[arg(short, long, value_name = "N", env = "PROCPOOL_PROCS", default_value_t = 0)]
    #[arg(value_parser = procs)]
    pub(super) procs: usize,

    /// What to do with each input; 'procpool tasks' says more
    #[arg(short, long, value_name = "NAME", default_value = tasks::ALL[0].name)]
    #[arg(value_parser = PossibleValuesParser::new(tasks::ALL.iter().map(|task| task.name)))]
    pub(super) task: String,

    /// Read the inputs from a file, one per line; '-' is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["inputs", "count"])]
    pub(super) input: Option<PathBuf>,

    /// The inputs 0..N, for tasks over numbers
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "inputs")]
    #[arg(value_parser = clap::value_parser!(i64).range(0..))]
    pub(super) count: Option<i64>,

    /// How many inputs a worker is sent at once; without it, the pool finds out
    #[arg(long, value_name = "N")]
    pub(super) chunk_size: Option<NonZeroUsize>,

    #[command(flatten)]
    pub(super) task_options: TaskOptions,

    #[command(flatten)]
    pub(super) limits: LimitArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Options of tasks")]
pub(super) struct TaskOptions {
    /// The directory to write files to; made if it's missing
    #[arg(short, long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,

    /// The format of those files
    #[arg(long, value_name = "FORMAT")]
    #[arg(value_parser = format_parser())]
    pub(super) to: Option<FileFormat>,

    /// How many random points to draw
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) points: Option<u64>,

    /// The seed of the random points, where the inputs aren't seeds themselves
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitArgs {
    /// The longest that one input may take: 10, 1.5, 500ms, 2s, 1m; then its worker is killed
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(super) timeout: Option<Duration>,

    /// How often an input is tried again after its worker died or its time ran out
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) retries: u32,

    /// The most memory that a worker may take: 200M, 1G; one that takes more is killed
    #[arg(long, value_name = "SIZE", value_parser = units::memory)]
    pub(super) memory: Option<u64>,

    /// After so many inputs a worker is replaced by a new one
    #[arg(long, value_name = "N")]
    pub(super) max_tasks: Option<NonZeroU64>,

    /// Add to the workers' niceness, up to 19: then they run when nobody else wants to
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i32).range(-20..=19))]
    pub(super) nice: i32,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputArgs {
    /// Show each result as it comes, not in the order of the inputs
    #[arg(short, long)]
    pub(super) unordered: bool,

    /// How to write the results; json is one object a line
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub(super) format: Format,

    /// What becomes of what tasks print
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = Prints::Inherit)]
    pub(super) output: Prints,

    /// Write what happens in the pool to a file, as JSON lines; '-' is standard error, for people
    #[arg(long, value_name = "FILE")]
    pub(super) log: Option<PathBuf>,

    /// A progress bar on standard error; auto is when that is a terminal
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Progress::Auto)]
    pub(super) progress: Progress,

    /// The results alone: no summary, no progress
    #[arg(short, long)]
    pub(super) quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct TasksArgs {
    /// How to write the list; json is one object a line
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub(super) format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = ISOLATE_EXAMPLES)]
pub(super) struct IsolateArgs {
    /// What is to go wrong; without it, everything in turn
    #[arg(short, long, value_enum, value_name = "NAME")]
    pub(super) case: Vec<Case>,

    /// How to write what was seen; json is one object a case
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Sight::Table)]
    pub(super) format: Sight,

    /// In the child process: do it among threads, in sight of who holds this file
    #[arg(long, value_name = "FILE", hide = true, requires = "case")]
    pub(super) threads_child: Option<PathBuf>,
}

/// How what was seen is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Sight {
    /// For people
    Table,
    /// One JSON object a line
    Json,
}

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns, to be looked at
    Table,
    /// One JSON object a line
    Json,
    /// Comma-separated values with a header
    Csv,
}

/// What becomes of what tasks print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Prints {
    /// It goes where this command's own output goes
    Inherit,
    /// Nothing
    Null,
    /// It is shown with the result of the input that it belongs to
    Capture,
}

/// When progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Progress {
    /// On a terminal
    Auto,
    /// Not at all
    Never,
}

/// A variable of the environment that is set to nothing is as good as one that isn't set.
fn procs(text: &str) -> Result<usize, std::num::ParseIntError> {
    if text.is_empty() { Ok(0) } else { text.parse() }
}

fn format_parser() -> impl TypedValueParser {
    PossibleValuesParser::new(FileFormat::ALL.map(FileFormat::name)).map(format_named)
}

/// The parser before it lets only names of formats through.
fn format_named(name: String) -> FileFormat {
    let found = FileFormat::ALL.into_iter().find(|format| format.name() == name);
    found.unwrap_or(FileFormat::Png)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_format_is_known_by_its_name() {
        for format in FileFormat::ALL {
            assert_eq!(format_named(format.name().to_owned()), format);
        }
    }
}
