//! The arguments as they are typed. Nothing is decided here; that is `plan`.

use std::ffi::OsString;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use super::compare::args::CompareArgs;
use super::isolate::cases::Case;
use super::units::{self, TimeLimit};
use crate::tasks::{self, FileFormat};

const EXAMPLES: &str = "\
Examples:
  procpool run --procs 4                          squares of 0..6, and the PID that computed each
  procpool run --task pi --count 64               64 estimates of π
  procpool run --task sqrt 10..5000000 --quiet    the square roots of a range
  find . -type f | procpool run --task sha256 --format csv
  procpool run --task image *.png --out turned --to webp
  procpool run --timeout 1m -- gzip -k {} ::: *.log     any program, one input a job
  procpool isolate                                what a crash or a hang costs, shown
  procpool tasks                                  what can be run by name";

const RUN_EXAMPLES: &str = "\
Inputs:
  Given as arguments (of a command: after :::), or one per line by --input FILE; '-' is standard
  input. Blank lines are skipped; an empty argument, or an empty input that ends with a NUL (-0), is
  an input like any other. For tasks, a range such as 0..5 or 0..=4 stands for the whole numbers in
  it. Without any, commands and tasks over files read standard input, and tasks over numbers have
  defaults.

Commands:
  What stands after -- is run for each input, without a shell in between: an input is one argument,
  whatever spaces, quotes or newlines are in it. In the command
    {}  the input             {/}   its base name       {#}  the job's number, from 1
    {.} without its extension {//}  its directory       {%}  the worker's number, from 1
  and without any of these the input is appended. A job's standard input is empty, and what it
  leaves running is ended with it. A job that doesn't exit with 0 has failed, and so has one that
  asks for the terminal. With --shell, {} and its kin stand outside of quotes, and are one word
  each; a shell never reads what is in them.

Output:
  Of commands, what each job prints is shown when it has ended, on the output that it printed it
  to; --format gives rows instead. Results of tasks are rows on standard output. The summary
  follows a table, and goes to standard error otherwise. Jobs (id) and workers have the same
  numbers in rows, logs, traces and --top as in {#} and {%}.

Exit codes:
  0 all well · 1 a job failed (the others are done all the same; see --halt), or the run could not
  be made · 2 wrong usage · 126 the command can't be executed · 127 there is no such command; both
  also where that is so for each job that failed · with --exit-count: how many failed, up to 100; 101
  for more; 255 for wrong usage and for a run that could not be made
  130 interrupted by Ctrl-C · 143 by SIGTERM · 129 by SIGHUP

Signals:
  Ctrl-C, SIGTERM and SIGHUP: what has been begun is finished, then the run ends; twice: it ends at
  once. Ctrl-Z stops the workers too, and fg lets them go on.

Examples:
  procpool run --procs 4
  procpool run --task pi --count 64 --unordered
  procpool run --task sqrt 10..5000000 --format csv > roots.csv
  procpool run --task wordcount *.txt --format json | jq .result.words
  procpool run --task image photos/*.jpg --out turned --to webp
  procpool run -- gzip -k {} ::: *.log
  find . -name '*.wav' -print0 | procpool run -0 --timeout 300% --retries 1 -- flac -s {}
  procpool run --shell --keep-order -- 'grep -c error {} | sort' ::: *.log
  procpool run --journal done.jsonl --resume --input urls.txt -- curl -sSfO {}";

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

    /// Colours on a terminal; auto respects NO_COLOR
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = Color::Auto)]
    pub(super) color: Color,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run a command or a built-in task over inputs, in a pool
    Run(Box<RunArgs>),
    /// List the built-in tasks
    Tasks(TasksArgs),
    /// Measure what processes cost here beside threads, and draw it
    Compare(CompareArgs),
    /// Show what a crash, a leak or a hang costs: here, and among threads
    Isolate(IsolateArgs),
    /// Draw a trace that run has written, as SVG
    Timeline(TimelineArgs),
    /// Print a shell's completions of this command
    Completions(CompletionsArgs),
    /// Print the manual page of this command, or of one of its verbs
    Man(ManArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  procpool run --trace trace.json -- gzip -k ::: *.log
  procpool timeline trace.json > trace.svg")]
pub(super) struct TimelineArgs {
    /// What procpool run --trace has written
    #[arg(value_name = "FILE")]
    pub(super) trace: PathBuf,

    /// Write the picture to this file, not to standard output
    #[arg(short, long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  procpool completions bash > ~/.local/share/bash-completion/completions/procpool
  procpool completions zsh > \"${fpath[1]}/_procpool\"
  procpool completions fish > ~/.config/fish/completions/procpool.fish")]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  procpool man | man -l -
  procpool man run > ~/.local/share/man/man1/procpool-run.1")]
pub(super) struct ManArgs {
    /// The verb, such as run
    #[arg(value_name = "VERB")]
    pub(super) verb: Option<String>,
}

/// When there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Everywhere
    Always,
    /// Nowhere
    Never,
}

#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
#[command(override_usage = "procpool run [OPTIONS] [INPUT]...
       procpool run [OPTIONS] -- COMMAND [ARG]... [::: INPUT...]")]
pub(super) struct RunArgs {
    /// What to work on: numbers, ranges of them, or files, as the task has it
    #[arg(value_name = "INPUT", allow_negative_numbers = true)]
    pub(super) inputs: Vec<OsString>,

    /// The program to run for each input, its arguments, and after ::: the inputs. Unless it is set,
    /// OMP_NUM_THREADS, as the variables of other thread pools, is a worker's share of the CPUs
    #[arg(value_name = "COMMAND", last = true)]
    pub(super) command: Vec<OsString>,

    /// How many worker processes; 0 is as many as there are CPUs for this process
    #[arg(short, long, value_name = "N", env = "PROCPOOL_PROCS", default_value_t = 0)]
    #[arg(value_parser = procs)]
    pub(super) procs: usize,

    /// GPUs to share out among the workers, one each in turn (CUDA_VISIBLE_DEVICES and
    /// HIP_VISIBLE_DEVICES); without --procs, there is a worker for each
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(super) gpus: Vec<String>,

    /// What to do with each input, without a command; 'procpool tasks' says more [default: square]
    #[arg(short, long, value_name = "NAME", conflicts_with = "command")]
    #[arg(value_parser = PossibleValuesParser::new(tasks::ALL.iter().map(|task| task.name)))]
    pub(super) task: Option<String>,

    /// Read the inputs from a file, one per line; '-' is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "count")]
    pub(super) input: Option<PathBuf>,

    /// Inputs that are read end with a NUL, not with a line, as from find -print0
    #[arg(short = '0', long, conflicts_with = "count")]
    pub(super) null: bool,

    /// The inputs 0..N, for commands and for tasks over numbers
    #[arg(short = 'n', long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(i64).range(0..))]
    pub(super) count: Option<i64>,

    /// How many inputs a worker is sent at once; without it, the pool finds out
    #[arg(long, value_name = "N")]
    pub(super) chunk_size: Option<NonZeroUsize>,

    /// Print what would be run, a line each, and run nothing
    #[arg(long)]
    pub(super) dry_run: bool,

    #[command(flatten)]
    pub(super) command_options: CommandOptions,

    #[command(flatten)]
    pub(super) task_options: TaskOptions,

    #[command(flatten)]
    pub(super) limits: LimitArgs,

    #[command(flatten)]
    pub(super) journal: JournalArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Options of commands")]
pub(super) struct CommandOptions {
    /// Have /bin/sh read the command, for pipes and redirections; {} is one word, outside of quotes
    #[arg(long, requires = "command")]
    pub(super) shell: bool,

    /// Begin each line that a job prints with its input and a tab
    #[arg(long, requires = "command")]
    pub(super) tag: bool,

    /// Show what jobs print line by line as they print it, not job by job
    #[arg(long, requires = "command", conflicts_with_all = ["keep_order", "output", "format"])]
    pub(super) line_buffer: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Journal")]
pub(super) struct JournalArgs {
    /// Write a line of JSON for each job that has ended; it's on the disk before the job is shown
    #[arg(long, value_name = "FILE")]
    pub(super) journal: Option<PathBuf>,

    /// Leave out what has succeeded according to the journal, and go on with the rest
    #[arg(long, requires = "journal")]
    pub(super) resume: bool,

    /// Do what has failed according to the journal, and nothing else
    #[arg(long, requires = "journal", conflicts_with = "resume")]
    pub(super) retry_failed: bool,
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
    #[arg(long, value_name = "N", value_hint = ValueHint::Other, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) points: Option<u64>,

    /// The seed of the random points, where the inputs aren't seeds themselves
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitArgs {
    /// The longest that one input may take: 10, 1.5, 500ms, 2s, 1m; for commands also 300%, of the
    /// median so far. A worker that takes longer is killed, a command is asked to end half a second
    /// before
    #[arg(long, value_name = "DURATION", value_hint = ValueHint::Other, value_parser = units::time_limit)]
    pub(super) timeout: Option<TimeLimit>,

    /// How often an input is tried again after its worker died or its time ran out; a command,
    /// after any failure
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) retries: u32,

    /// The most memory that a worker, or all processes of a command, may take: 200M, 1G; what takes
    /// more is killed
    #[arg(long, value_name = "SIZE", value_hint = ValueHint::Other, value_parser = units::memory)]
    pub(super) memory: Option<u64>,

    /// After so many inputs a worker is replaced by a new one
    #[arg(long, value_name = "N")]
    pub(super) max_tasks: Option<NonZeroU64>,

    /// Add to the workers' niceness, up to 19: then they run when nobody else wants to
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i32).range(-20..=19))]
    pub(super) nice: i32,

    /// End the run early: soon,fail=3 begins no more after three have failed, now,fail=10% kills
    /// what runs too once a tenth have failed, of three at least
    #[arg(long, value_name = "WHEN", value_hint = ValueHint::Other, value_parser = halt)]
    pub(super) halt: Option<Halt>,
}

/// When a run is to end before its inputs do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Halt {
    /// Kills what runs, rather than waiting for it.
    pub(super) now: bool,
    pub(super) failures: Failures,
}

/// How many failures are too many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Failures {
    Count(u64),
    /// A share of those that have ended, between 0 and 1.
    Share(f64),
}

impl Halt {
    /// Whether that many failures of that many that have ended are too many.
    pub(super) fn is_due(&self, failed: u64, ended: u64) -> bool {
        /// The first to fail is a share of everything.
        const LEAST: u64 = 3;
        match self.failures {
            Failures::Count(count) => failed >= count,
            Failures::Share(share) => failed >= LEAST && failed as f64 >= share * ended as f64,
        }
    }
}

fn halt(text: &str) -> Result<Halt, String> {
    let parse = || {
        let (when, failures) = text.split_once(",fail=")?;
        let now = match when {
            "now" => true,
            "soon" => false,
            _ => return None,
        };
        let failures = match failures.strip_suffix('%') {
            Some(percent) => {
                let percent =
                    percent.parse().ok().filter(|it| (f64::MIN_POSITIVE..=100.0).contains(it));
                Failures::Share(percent? / 100.0)
            }
            None => Failures::Count(failures.parse().ok().filter(|count| *count > 0)?),
        };
        Some(Halt { now, failures })
    };
    parse().ok_or_else(|| "give now or soon and how many: now,fail=1, soon,fail=10%".to_owned())
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputArgs {
    /// Show each result as it comes, not in the order of the inputs; so it is for commands anyhow
    #[arg(short, long)]
    pub(super) unordered: bool,

    /// Show results in the order of the inputs; so it is for tasks anyhow
    #[arg(short, long, conflicts_with = "unordered")]
    pub(super) keep_order: bool,

    /// How to write the results; json is one object a line [default: plain for commands, or table]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub(super) format: Option<Format>,

    /// What becomes of what jobs print [default: capture for commands, or inherit]
    #[arg(long, value_enum, value_name = "WHERE")]
    pub(super) output: Option<Prints>,

    /// Write what happens in the pool to a file, as JSON lines; '-' is standard error, for people
    #[arg(long, value_name = "FILE")]
    pub(super) log: Option<PathBuf>,

    /// Write when each worker did what to a file that Perfetto (ui.perfetto.dev) opens
    #[arg(long, value_name = "FILE")]
    pub(super) trace: Option<PathBuf>,

    /// A progress bar on standard error; auto is when that is a terminal
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Progress::Auto)]
    pub(super) progress: Progress,

    /// A live table of the workers, instead of the progress bar; results that would go to the
    /// terminal come at the end
    #[arg(long, conflicts_with_all = ["line_buffer", "quiet"])]
    pub(super) top: bool,

    /// The results and what failed alone: no summary, no progress
    #[arg(short, long)]
    pub(super) quiet: bool,

    /// Exit with the number of jobs that failed, or with 101 where that is over 100; what is 1 or 2
    /// otherwise and no number is 255
    #[arg(long)]
    pub(super) exit_count: bool,
}

#[derive(Debug, Args)]
pub(super) struct TasksArgs {
    /// How to write the list; json is one object a line
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = ListFormat::Table)]
    pub(super) format: ListFormat,
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
    /// What the jobs of a command print, and nothing else
    Plain,
    /// Aligned columns, to be looked at
    Table,
    /// One JSON object a line
    Json,
    /// Comma-separated values with a header
    Csv,
}

/// How the list of tasks is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ListFormat {
    /// For people
    Table,
    /// One JSON object a line
    Json,
    /// Comma-separated values with a header
    Csv,
}

/// What becomes of what jobs print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Prints {
    /// It goes where this command's own output goes
    Inherit,
    /// Nothing
    Null,
    /// It is shown with the result of the job that it belongs to
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
fn procs(text: &str) -> Result<usize, String> {
    if text.is_empty() {
        return Ok(0);
    }
    // For GNU parallel they are relative to how many CPUs there are.
    if text.starts_with(['+', '-']) || text.ends_with('%') {
        return Err(
            "give how many, not how many more or less than CPUs: 4, or 0 for one a CPU, or \
                    \"$(($(nproc) + 1))\""
                .to_owned(),
        );
    }
    text.parse().map_err(|error: std::num::ParseIntError| error.to_string())
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
