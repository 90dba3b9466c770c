//! The arguments as typed. `plan` decides what they mean.

use std::ffi::OsString;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};

use super::compare::args::CompareArgs;
use super::gpus::Gpu;
use super::halt::{Halt, halt};
use super::input_args::InputArgs;
use super::isolate::cases::Case;
use super::launch::args::{HostArgs, HostsArgs};
use super::report_format::ReportFormat;
use super::sandbox_args::SandboxArgs;
use super::start_args::StartArgs;
use super::units::{self, TimeLimit};
use crate::tasks::command::SignalSequence;
use crate::tasks::{self, FileFormat};

const EXAMPLES: &str = "\
Examples:
  procpool run --procs 4                          squares of 0..6, and the PID that computed each
  procpool run --task pi --count 64               64 estimates of π
  procpool run --task sqrt 10..5000000 --quiet    square roots of a range
  find . -type f | procpool run --task sha256 --format csv
  procpool run --task image *.png --out turned --to webp
  procpool run --timeout 1m -- gzip -k {} ::: *.log     any command, once per input
  procpool isolate                                what a crash or a hang costs, measured live
  procpool tasks                                  list the built-in tasks";

const RUN_EXAMPLES: &str = "\
Inputs:
  Inputs are arguments (of a command: after :::), or lines of --input FILE; '-' means standard
  input. Blank lines are skipped. An empty argument, or an empty input that ends with NUL (-0),
  is an input. For tasks, a range such as 0..5 or 0..=4 stands for its whole numbers. Without
  inputs, commands and tasks over files read standard input, and tasks over numbers use their
  defaults.

Commands:
  The command after -- runs once per input, without a shell. An input is one argument, whatever
  spaces, quotes or newlines it contains. In the command,
    {}  is the input              {/}   its base name       {#}  the job's number, from 1
    {.} without its extension     {//}  its directory       {%}  the worker's number, from 1
    {..} without two extensions   {/.}  its base name without its extension
    {+.} its extension            {+/}  its directory, or nothing
    {%.gz} without the suffix .gz       {#lib} without the prefix lib
    {1} {2} {-1}  its first, second, last value, also as {1/.} or {2%.gz}
    {04#} {03%}   the numbers with zeros up to a width
    {{}}          is the text {}, and so for all others
  and without any of these, the input is appended. The standard input of a job is empty, and its
  leftover child processes are killed. A job fails if it exits with a code other than 0 or asks
  for the terminal. With --shell, {} and the others stand outside of quotes, and each is one
  word: the shell never interprets their contents.

Output:
  The output of a command's job is shown when the job has ended, on the stream that it was
  written to. --format shows rows instead. Results of tasks are rows on standard output. The
  summary follows a table, and otherwise goes to standard error if that is a terminal. Rows, logs,
  traces, --top, {#} and {%} use the same numbers for jobs (id) and workers.

Exit codes:
    0    every job succeeded
    1    a job failed (the others completed; see --halt), or the run could not start
    2    wrong usage
    126  the command is not executable, for the run or for every job that failed
    127  the command was not found, for the run or for every job that failed
  With --exit-count: the number of failed jobs up to 100, 101 for more, and 255 for wrong usage or
  a run that could not start.
  130 interrupted by Ctrl-C · 143 by SIGTERM · 129 by SIGHUP
  of a run on several hosts also: 3 its engine was lost, and with it this run; go on with --resume
  · 4 a host has another build of procpool

Signals:
  Ctrl-C, SIGTERM and SIGHUP let running jobs finish and end the run. A second one kills them.
  SIGUSR1 adds a worker, SIGUSR2 takes one away once its job has ended.
  Ctrl-Z also stops the workers, and fg continues them.

Environment:
    PROCPOOL_PROCS         the default of --procs
    PROCPOOL_SLOT          is set for jobs: the number of their worker, as {%}
    PROCPOOL_START_METHOD  template forks workers from a prepared process; the default is spawn
    TMPDIR                 where output of jobs beyond 64 KiB is kept, in unnamed files
    NO_COLOR               no colours, unless --color always is set

Examples:
  procpool run --procs 4
  procpool run --task pi --count 64 --unordered
  procpool run --task sqrt 10..5000000 --format csv > roots.csv
  procpool run --task wordcount *.txt --format json | jq .result.words
  procpool run --task image photos/*.jpg --out turned --to webp
  procpool run -- gzip -k {} ::: *.log
  find . -name '*.wav' -print0 | procpool run -0 --timeout 300% --retries 1 -- flac -s {}
  procpool run --shell --keep-order -- 'grep -c error {} | sort' ::: *.log
  procpool run --journal done.jsonl --resume --input urls.txt -- curl -sSfO {}
  procpool run --hosts n1,n2:8 --retries 1 -- ./simulate {} ::: *.conf";

const ISOLATE_EXAMPLES: &str = "\
Each case runs eight healthy tasks beside one that fails: once in a pool, and once among threads
in a child process. Every line is measured live.

Exit codes:
  0 every case was contained: all bystanders returned correct results, their state did not
  change, and the pool keeps working · 1 some case was not contained · 2 wrong usage

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

    /// When to use colours; auto means on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = Color::Auto)]
    pub(super) color: Color,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run a command or a built-in task over inputs, in a pool
    Run(Box<RunArgs>),
    /// List the built-in tasks
    Tasks(TasksArgs),
    /// Measure the cost of processes beside threads, and plot it
    Compare(CompareArgs),
    /// Show what a crash, a leak or a hang costs in a pool and among threads
    Isolate(IsolateArgs),
    /// Check a list of hosts for runs that span them
    Hosts(HostsArgs),
    /// Draw a trace of procpool run as SVG
    Timeline(TimelineArgs),
    /// Print shell completions
    Completions(CompletionsArgs),
    /// Print a manual page
    Man(ManArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  procpool run --trace trace.json -- gzip -k ::: *.log
  procpool timeline trace.json > trace.svg")]
pub(super) struct TimelineArgs {
    /// Trace written by procpool run --trace
    #[arg(value_name = "FILE")]
    pub(super) trace: PathBuf,

    /// Write the picture to FILE [default: standard output]
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
    /// Shell to print completions for
    #[arg(value_name = "SHELL")]
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  procpool man | man -l -
  procpool man run > ~/.local/share/man/man1/procpool-run.1")]
pub(super) struct ManArgs {
    /// Verb to print the page of, such as run [default: procpool itself]
    #[arg(value_name = "VERB")]
    pub(super) verb: Option<String>,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
#[command(override_usage = "procpool run [OPTIONS] [INPUT]...
       procpool run [OPTIONS] -- COMMAND [ARG]... [::: INPUT...]")]
pub(super) struct RunArgs {
    /// Inputs: numbers and ranges, or files, depending on the task
    #[arg(value_name = "INPUT", allow_negative_numbers = true)]
    pub(super) inputs: Vec<OsString>,

    /// Command to run for each input, its arguments, and the inputs after :::. Variables that limit
    /// thread pools, such as OMP_NUM_THREADS, default to a worker's share of the CPUs
    #[arg(value_name = "COMMAND", last = true)]
    pub(super) command: Vec<OsString>,

    /// Number of worker processes: 4; 50% of the CPUs, or +1 or -1 for one more or less than there
    /// are; 0 means one per available CPU
    #[arg(short, long, value_name = "N", env = "PROCPOOL_PROCS", default_value_t = 0)]
    #[arg(visible_short_aliases = ['j', 'P'], visible_alias = "jobs", alias = "max-procs")]
    #[arg(value_parser = procs, allow_hyphen_values = true)]
    pub(super) procs: usize,

    /// GPUs to assign to the workers in turn, one per worker, by CUDA_VISIBLE_DEVICES and
    /// HIP_VISIBLE_DEVICES: 0,1, or 0:2,1:2 for two workers on each. The default of --procs is then
    /// their number
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(super) gpus: Vec<Gpu>,

    /// Built-in task to run for each input; 'procpool tasks' lists them [default: square]
    #[arg(long, value_name = "NAME", conflicts_with = "command")]
    #[arg(value_parser = PossibleValuesParser::new(tasks::ALL.iter().map(|task| task.name)))]
    pub(super) task: Option<String>,

    /// Read inputs from FILE, one per line; '-' means standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "count")]
    #[arg(visible_short_alias = 'a', visible_alias = "arg-file")]
    pub(super) input: Option<PathBuf>,

    /// Read inputs that end with NUL instead of a line feed, as find -print0 writes them
    #[arg(short = '0', long, conflicts_with = "count")]
    pub(super) null: bool,

    /// Read inputs that end with this character instead of a line feed: ',' or '\t' or '\0'
    #[arg(short, long, value_name = "C", conflicts_with_all = ["count", "null"])]
    #[arg(value_hint = ValueHint::Other, value_parser = units::delimiter)]
    pub(super) delimiter: Option<u8>,

    /// Use the inputs 0..N, for commands and tasks over numbers
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(i64).range(0..))]
    pub(super) count: Option<i64>,

    /// Take the inputs in random order, once all are read
    #[arg(long, conflicts_with = "pipe")]
    pub(super) shuf: bool,

    /// Inputs sent to a worker at once [default: adaptive]
    #[arg(long, value_name = "N")]
    pub(super) chunk_size: Option<NonZeroUsize>,

    /// Print the commands that would run, one per line, and run nothing
    #[arg(long, alias = "dryrun")]
    pub(super) dry_run: bool,

    #[command(flatten)]
    pub(super) input_args: InputArgs,

    #[command(flatten)]
    pub(super) command_options: CommandOptions,

    #[command(flatten)]
    pub(super) task_options: TaskOptions,

    #[command(flatten)]
    pub(super) limits: LimitArgs,

    #[command(flatten)]
    pub(super) sandbox: SandboxArgs,

    #[command(flatten)]
    pub(super) start: StartArgs,

    #[command(flatten)]
    pub(super) hosts: HostArgs,

    #[command(flatten)]
    pub(super) journal: JournalArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of commands")]
pub(super) struct CommandOptions {
    /// Run the command line with /bin/sh, for pipes and redirections, or with the shell at PATH, such
    /// as --shell=/bin/bash for exported functions; {} is one word and must not be quoted
    #[arg(long, requires = "command", value_name = "PATH", value_hint = ValueHint::CommandName)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "/bin/sh")]
    pub(super) shell: Option<PathBuf>,

    /// Prefix each output line of a job with its input and a tab
    #[arg(long, requires = "command")]
    pub(super) tag: bool,

    /// Prefix each output line of a job with this text and a tab; it may have replacement strings
    #[arg(long, alias = "tag-string", requires = "command", value_name = "TEXT")]
    #[arg(conflicts_with = "tag", value_hint = ValueHint::Other)]
    pub(super) tagstring: Option<OsString>,

    /// Print each command to standard error before its output
    #[arg(short = 't', long, requires = "command", conflicts_with_all = ["format", "top"])]
    pub(super) verbose: bool,

    /// Give the terminal to the jobs, one after the other: they read what is typed and write
    /// directly. Ctrl-C ends the job and the run
    #[arg(long, visible_alias = "open-tty", requires = "command")]
    #[arg(conflicts_with_all = ["format", "hosts", "hostfile", "line_buffer", "output", "pipe", "pty"])]
    #[arg(conflicts_with_all = ["results", "tag", "tagstring", "top"])]
    pub(super) tty: bool,

    /// Let jobs write to a pseudo-terminal, so that they print as on a terminal: in colour, and line
    /// by line
    #[arg(long, requires = "command")]
    pub(super) pty: bool,

    /// Run the commands in DIR
    #[arg(long, visible_alias = "workdir", requires = "command", value_name = "DIR")]
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) wd: Option<PathBuf>,

    /// Signals for a job over its --timeout, each but the last followed by the milliseconds to the
    /// next [default: TERM,500,KILL]
    #[arg(long, requires = "command", value_name = "SIGNALS", value_parser = SignalSequence::parse)]
    #[arg(value_hint = ValueHint::Other)]
    pub(super) termseq: Option<SignalSequence>,

    /// Print output line by line as jobs produce it, instead of job by job
    #[arg(long, requires = "command", conflicts_with_all = ["keep_order", "output", "format"])]
    #[arg(aliases = ["linebuffer", "lb"])]
    pub(super) line_buffer: bool,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Journal")]
pub(super) struct JournalArgs {
    /// Append a JSON line to FILE for each finished job; the line is on disk before the job is
    /// shown
    #[arg(long, value_name = "FILE")]
    pub(super) journal: Option<PathBuf>,

    /// Skip the jobs that succeeded according to the journal, and run the rest
    #[arg(long, requires = "journal")]
    pub(super) resume: bool,

    /// Run only the jobs that failed according to the journal
    #[arg(long, requires = "journal", conflicts_with = "resume")]
    pub(super) retry_failed: bool,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of tasks")]
pub(super) struct TaskOptions {
    /// Directory for output files; created if missing
    #[arg(short, long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,

    /// Format of the output files
    #[arg(long, value_name = "FORMAT")]
    #[arg(value_parser = format_parser())]
    pub(super) to: Option<FileFormat>,

    /// Number of random points
    #[arg(long, value_name = "N", value_hint = ValueHint::Other, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) points: Option<u64>,

    /// Seed of the random points, for tasks whose inputs are not seeds
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,

    /// Run each input in a new process, forked from one that has started the program. A command has a
    /// process of its own anyway
    #[arg(long, conflicts_with = "max_tasks")]
    pub(super) fresh: bool,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitArgs {
    /// Time limit per input: 10, 1.5, 500ms, 1m30s, 2h, 1d; for commands also a percentage of the median
    /// so far, such as 300%. A worker over the limit is killed; a command gets SIGTERM half a
    /// second before SIGKILL
    #[arg(long, value_name = "DURATION", value_hint = ValueHint::Other, value_parser = units::time_limit)]
    pub(super) timeout: Option<TimeLimit>,

    /// Retries of an input after its worker died or its time limit passed; of a command, after any
    /// failure
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) retries: u32,

    /// Memory limit of a worker, or of all processes of a command: 200M, 1G. Whatever exceeds it is
    /// killed
    #[arg(long, value_name = "SIZE", value_hint = ValueHint::Other, value_parser = units::memory)]
    pub(super) memory: Option<u64>,

    /// Replace a worker by a new one after N inputs
    #[arg(long, value_name = "N")]
    pub(super) max_tasks: Option<NonZeroU64>,

    /// Add N to the niceness of the workers, up to 19, so that they yield to other processes
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i32).range(-20..=19))]
    pub(super) nice: i32,

    /// Stop early: soon,fail=3 (or fail=3) starts no new jobs after 3 failures; now,fail=10% also
    /// kills running jobs once 10% (at least 3) have failed; now,success=1 after the first success,
    /// with exit code 0; done=N counts both. never is the default
    #[arg(long, value_name = "WHEN", value_hint = ValueHint::Other, value_parser = halt)]
    pub(super) halt: Option<Halt>,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputArgs {
    /// Print results as they complete (default for commands)
    #[arg(short, long)]
    pub(super) unordered: bool,

    /// Print results in input order (default for tasks)
    #[arg(short, long, conflicts_with = "unordered")]
    pub(super) keep_order: bool,

    /// Format of the results; json is one object per line [default: plain for commands, table for
    /// tasks]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub(super) format: Option<Format>,

    /// Where the output of jobs goes [default: capture for commands, inherit for tasks]
    #[arg(long, value_enum, value_name = "WHERE")]
    pub(super) output: Option<OutputChoice>,

    /// Write the results to FILE instead of standard output. With --journal and --resume, FILE goes
    /// on where the journal ends: no row is missing and none is there twice. A directory, or DIR/,
    /// gets a directory for each job, with its stdout, stderr and meta.json, beside what is printed
    #[arg(long, value_name = "FILE", conflicts_with = "line_buffer")]
    pub(super) results: Option<PathBuf>,

    /// Write the events of the pool to FILE as JSON lines; '-' means standard error, as text
    #[arg(long, value_name = "FILE")]
    pub(super) log: Option<PathBuf>,

    /// Write a timeline of the workers to FILE, for Perfetto (ui.perfetto.dev) and procpool
    /// timeline
    #[arg(long, value_name = "FILE")]
    pub(super) trace: Option<PathBuf>,

    /// Write a page about the run to FILE, for a browser: its timeline, its failures with what they
    /// printed, its slowest and largest jobs
    #[arg(long, value_name = "FILE.html")]
    pub(super) report: Option<PathBuf>,

    /// Show a progress bar on standard error; auto means if that is a terminal
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Progress::Auto)]
    pub(super) progress: Progress,

    /// Show a live table of the workers instead of the progress bar; its keys change the number of
    /// workers, pause the run, show what a job prints and end it. Results for the terminal follow at
    /// the end
    #[arg(long, conflicts_with_all = ["line_buffer", "quiet"])]
    pub(super) top: bool,

    /// Print only results and errors: no summary, no progress bar. Twice: no errors of jobs either
    #[arg(short, long, action = ArgAction::Count)]
    pub(super) quiet: u8,

    /// Print the summary, also where standard error is no terminal
    #[arg(long, conflicts_with = "quiet")]
    pub(super) summary: bool,

    /// Exit with the number of failed jobs, or 101 for more than 100; wrong usage and a run that
    /// cannot start exit with 255
    #[arg(long)]
    pub(super) exit_count: bool,
}

#[derive(Debug, Args)]
pub(super) struct TasksArgs {
    /// Format of the list; json is one object per line
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = ListFormat::Table)]
    pub(super) format: ListFormat,
}

#[derive(Debug, Args)]
#[command(after_help = ISOLATE_EXAMPLES)]
pub(super) struct IsolateArgs {
    /// Case to run; may be repeated [default: all cases]
    #[arg(short, long, value_enum, value_name = "NAME")]
    pub(super) case: Vec<Case>,

    /// Show what a worker can do that hostile code has taken over, without a sandbox and in one
    #[arg(long, conflicts_with = "case")]
    pub(super) hostile: bool,

    /// Format of the report; json is one object per case
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = ReportFormat::Table)]
    pub(super) format: ReportFormat,

    /// Write a page with what was seen to FILE, for a browser
    #[arg(long, value_name = "FILE.html")]
    pub(super) report: Option<PathBuf>,

    /// In the child process: run the case among threads, and report through this file
    #[arg(long, value_name = "FILE", hide = true, requires = "case")]
    pub(super) threads_child: Option<PathBuf>,
}

/// The format of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Only what the jobs of a command print
    Plain,
    /// Aligned columns
    Table,
    /// One JSON object per line
    Json,
    /// Comma-separated values with a header
    Csv,
}

/// The format of the list of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ListFormat {
    /// Text for people
    Table,
    /// One JSON object per line
    Json,
    /// Comma-separated values with a header
    Csv,
}

/// Where the output of jobs goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputChoice {
    /// To the output of procpool itself
    Inherit,
    /// Nowhere
    Null,
    /// Next to the result of its job
    Capture,
}

/// When to show progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Progress {
    /// On a terminal
    Auto,
    /// Never
    Never,
}

/// Parses `--procs`. An empty environment variable counts as unset.
fn procs(text: &str) -> Result<usize, String> {
    if text.is_empty() {
        return Ok(0);
    }
    // Relative to the number of CPUs, as GNU parallel reads them.
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let number = |digits: &str| {
        digits.parse::<usize>().map_err(|_| "use a number such as 4, 50%, +1 or -1".to_owned())
    };
    if let Some(percent) = text.strip_suffix('%') {
        return Ok((cpus.saturating_mul(number(percent)?) / 100).max(1));
    }
    if let Some(more) = text.strip_prefix('+') {
        return Ok(cpus.saturating_add(number(more)?));
    }
    if let Some(less) = text.strip_prefix('-') {
        return Ok(cpus.saturating_sub(number(less)?).max(1));
    }
    number(text)
}

fn format_parser() -> impl TypedValueParser {
    PossibleValuesParser::new(FileFormat::ALL.map(FileFormat::name)).map(format_named)
}

/// The parser before this accepts only names of formats.
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
