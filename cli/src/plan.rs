//! Resolves the arguments of `run`: every default and conflict, before any process starts.
//!
//! Errors that are visible in the arguments are reported here, with exit code 2. Errors that only a
//! task can detect become rows.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::args::{
    CommandOptions, Format, JournalArgs, LimitArgs, OutputChoice, Progress, RunArgs, TaskOptions,
};
use super::exit::Usage;
use super::inputs::{STANDARD_INPUT, Source};
use super::launch::environment::is_launched;
use super::render::{self, Form, PlainOptions};
use super::units::TimeLimit;
use crate::tasks::command::{self, CommandSpec, Completed, Template};
use crate::tasks::{self, Bytes, Column, Params, Takes, Task};

/// A resolved run.
pub(super) struct RunPlan {
    pub(super) work: WorkPlan,
    pub(super) source: Source,
    pub(super) takes: Takes,
    /// 0 means that the pool chooses, by the available CPUs.
    pub(super) workers: usize,
    /// Assigned to the workers in turn.
    pub(super) gpus: Vec<String>,
    pub(super) chunk_size: Option<usize>,
    pub(super) limits: LimitArgs,
    pub(super) journal: JournalArgs,
    pub(super) dry_run: bool,
    /// Where the pool's workers print.
    pub(super) output: procpool::OutputMode,
    pub(super) log: LogTo,
    pub(super) trace: Option<PathBuf>,
    /// The file for the results, instead of standard output.
    pub(super) results: Option<PathBuf>,
    /// Whether to show the live table of the workers.
    pub(super) top: bool,
    pub(super) unordered: bool,
    pub(super) format: Format,
    pub(super) form: Form,
    pub(super) plain: PlainOptions,
    pub(super) progress: bool,
    pub(super) summary: bool,
    pub(super) exit_count: bool,
}

/// The work to run for each input.
pub(super) enum WorkPlan {
    Task(&'static Task, Params),
    Command(CommandSpec),
}

/// Where to write the pool's events.
pub(super) enum LogTo {
    Nowhere,
    Stderr,
    File(PathBuf),
}

impl RunPlan {
    pub(super) fn resolve(mut args: RunArgs) -> Result<Self> {
        refuse_same_file(&args)?;
        let is_command = !args.command.is_empty();
        // clap reads -0 as an input where negative numbers are allowed.
        let given = args.inputs.len();
        args.inputs.retain(|input| input != "-0");
        args.null |= args.inputs.len() < given;
        let output = args.output;
        let log = match output.log {
            None => LogTo::Nowhere,
            Some(file) if file == Path::new("-") => LogTo::Stderr,
            Some(file) => LogTo::File(file),
        };
        let (work, source, takes, output_to, form);
        if is_command {
            refuse_task_options(&args.task_options)?;
            let words = split_command(args.command, &mut args.inputs)?;
            let spec = spec(words, &args.command_options, &args.limits, output.output)?;
            takes = if args.count.is_some() { Takes::Numbers } else { Takes::Files };
            refuse_two_sources(&args.inputs, args.input.as_deref(), args.count, args.null)?;
            // A launcher gives a pipe to every run.
            if args.count.is_some() && !is_launched() {
                refuse_unread_input()?;
            }
            let inputs = Inputs { given: args.inputs, file: args.input, count: args.count };
            source = command_source(inputs, args.null)?;
            let prints = match spec.prints {
                command::OutputMode::Grouped => render::OutputFields::Both,
                _ => render::OutputFields::None,
            };
            form = Form {
                input: Column::COMMAND_INPUT,
                columns: Completed::COLUMNS,
                prints,
                hosts: false,
            };
            // Of a command, the worker prints only the lines of its jobs.
            output_to = procpool::OutputMode::Inherit;
            work = WorkPlan::Command(spec);
        } else {
            let name = args.task.as_deref().unwrap_or(tasks::ALL[0].name);
            let task = tasks::find(name)
                .ok_or_else(|| Usage::error(format!("there is no task '{name}'")))?;
            let has_inputs = !args.inputs.is_empty() || args.input.is_some();
            let shows = args.task.is_none() && !has_inputs && args.count.is_none();
            let task = if shows { &tasks::square::DEMONSTRATION } else { task };
            if let Some(TimeLimit::OfMedian(_)) = args.limits.timeout {
                return Err(Usage::error(
                    "a percentage of the median works only for commands: use a --timeout such \
                     as 10s",
                ));
            }
            if output.format == Some(Format::Plain) {
                return Err(Usage::error("--format plain is for commands: use table, json or csv"));
            }
            if args.inputs.iter().any(|input| input == ":::") {
                return Err(Usage::error(
                    "::: belongs after a command, and a command after --: procpool run -- COMMAND \
                     ::: INPUT...; the inputs of a task need none",
                ));
            }
            refuse_two_sources(&args.inputs, args.input.as_deref(), args.count, args.null)?;
            let params = params(task, args.task_options)?;
            let inputs = Inputs { given: args.inputs, file: args.input, count: args.count };
            source = task_source(task, inputs, args.null)?;
            takes = task.takes;
            output_to = match output.output {
                None | Some(OutputChoice::Inherit) => procpool::OutputMode::Inherit,
                Some(OutputChoice::Null) => procpool::OutputMode::Null,
                Some(OutputChoice::Capture) => procpool::OutputMode::Capture,
            };
            let prints = match output_to {
                procpool::OutputMode::Capture => render::OutputFields::Output,
                _ => render::OutputFields::None,
            };
            form = Form { input: task.input, columns: task.columns, prints, hosts: false };
            work = WorkPlan::Task(task, params);
        }
        let default = if is_command { Format::Plain } else { Format::Table };
        let lines = args.command_options.line_buffer;
        let format = output.format.unwrap_or(default);
        // Workers that write to the terminal themselves would overwrite the bar.
        let shares_terminal = lines || (is_command && output.output == Some(OutputChoice::Inherit));
        let prints_itself = matches!(output_to, procpool::OutputMode::Inherit)
            && output.output == Some(OutputChoice::Inherit);
        if output.top && (prints_itself || matches!(log, LogTo::Stderr)) {
            return Err(Usage::error(
                "--top would overwrite direct output to the terminal: leave out \
                 --output inherit and --log -",
            ));
        }
        let workers = if args.procs == 0 { args.gpus.len() } else { args.procs };
        let most_inputs = source
            .count_to(takes, workers as u64)
            .map_or(workers, |count| usize::try_from(count).unwrap_or(usize::MAX).max(1));
        Ok(Self {
            source,
            takes,
            // More workers than inputs would start and stop without work.
            workers: workers.min(most_inputs),
            gpus: args.gpus,
            chunk_size: args.chunk_size.map(Into::into),
            dry_run: args.dry_run,
            unordered: output.unordered || (is_command && !output.keep_order),
            format,
            form,
            plain: PlainOptions { tag: args.command_options.tag },
            progress: output.progress == Progress::Auto
                && !output.quiet
                && !shares_terminal
                && !output.top
                // Log lines and the bar would overwrite each other.
                && !matches!(log, LogTo::Stderr)
                && io::stderr().is_terminal(),
            summary: !output.quiet,
            exit_count: output.exit_count,
            limits: args.limits,
            journal: args.journal,
            output: output_to,
            trace: output.trace,
            results: output.results,
            top: output.top,
            work,
            log,
        })
    }
}

/// Refuses inputs from two sources: those of the second must not be ignored silently.
fn refuse_two_sources(
    given: &[OsString],
    file: Option<&Path>,
    count: Option<i64>,
    null: bool,
) -> Result<()> {
    let read = match (file, count) {
        (Some(_), _) => "--input",
        (None, Some(_)) => "--count",
        (None, None) if null => "--null (-0)",
        (None, None) => return Ok(()),
    };
    if given.is_empty() {
        return Ok(());
    }
    Err(Usage::error(format!(
        "{read} cannot be used with inputs that are arguments: leave out one of them, or put all of \
         them into one list"
    )))
}

/// Refuses `-n` if standard input is a pipe or a file. In xargs, `-n` means inputs per call; here
/// it would ignore them and use 0, 1, 2….
fn refuse_unread_input() -> Result<()> {
    let kind = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|stdin| File::from(stdin).metadata())
        .map(|metadata| metadata.file_type());
    match kind {
        Ok(kind) if kind.is_fifo() || kind.is_file() => Err(Usage::error(
            "-n (--count) uses the inputs 0..N and ignores standard input: leave it out to read \
             standard input (-p sets the number of workers), or add '< /dev/null'",
        )),
        _ => Ok(()),
    }
}

/// Refuses a file that one option writes and another reads or writes.
fn refuse_same_file(args: &RunArgs) -> Result<()> {
    let files = [
        ("--input", args.input.as_deref()),
        ("--journal", args.journal.journal.as_deref()),
        ("--log", args.output.log.as_deref()),
        ("--trace", args.output.trace.as_deref()),
        ("--results", args.output.results.as_deref()),
        ("--hostfile", args.hosts.hostfile.as_deref()),
    ];
    let named = files.into_iter().filter_map(|(option, path)| Some((option, path?)));
    let named: Vec<_> = named.filter(|(_, path)| *path != Path::new("-")).collect();
    for (index, (option, path)) in named.iter().enumerate() {
        let before = &named[..index];
        if let Some((other, _)) = before.iter().find(|(_, other)| is_same_file(path, other)) {
            return Err(Usage::error(format!(
                "{option} and {other} are the same file, {path:?}, which would be overwritten: \
                 use another file for one of them"
            )));
        }
    }
    Ok(())
}

/// Whether two paths name the same file, or will. Devices such as /dev/null may be shared.
fn is_same_file(one: &Path, other: &Path) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => {
            one.is_file() && (one.dev(), one.ino()) == (other.dev(), other.ino())
        }
        (Err(_), Err(_)) => one == other,
        _ => false,
    }
}

/// Splits a command into its words and the inputs after `:::`.
fn split_command(words: Vec<OsString>, inputs: &mut Vec<OsString>) -> Result<Vec<OsString>> {
    if let Some(word) =
        words.iter().find(|word| [":::+", "::::", "::::+"].iter().any(|it| *word == *it))
    {
        return Err(Usage::error(format!(
            "{word:?} is not supported: pass inputs after one :::, or one per line in a file \
             with --input"
        )));
    }
    let mut parts = words.split(|word| word == ":::");
    let command = parts.next().unwrap_or_default().to_vec();
    if command.is_empty() {
        return Err(Usage::error("there is no command between -- and ::: (add one)"));
    }
    if let Some(given) = parts.next() {
        inputs.extend_from_slice(given);
        if inputs.is_empty() {
            return Err(Usage::error("there are no inputs after ::: (add some, or leave it out)"));
        }
    }
    if parts.next().is_some() {
        return Err(Usage::error("::: is allowed once: pass all inputs after the first"));
    }
    Ok(command)
}

fn spec(
    words: Vec<OsString>,
    options: &CommandOptions,
    limits: &LimitArgs,
    output: Option<OutputChoice>,
) -> Result<CommandSpec> {
    let template = Template::new(words, options.shell);
    template.check().map_err(|error| Usage::error(error.to_string()))?;
    let program = template.program()?;
    let prints = match output {
        _ if options.line_buffer => command::OutputMode::Lines { tag: options.tag },
        Some(OutputChoice::Inherit) if options.tag => {
            return Err(Usage::error(
                "--tag cannot change direct output: leave out --output inherit",
            ));
        }
        None | Some(OutputChoice::Capture) => command::OutputMode::Grouped,
        Some(OutputChoice::Inherit) => command::OutputMode::Inherit,
        Some(OutputChoice::Null) => command::OutputMode::Null,
    };
    let LimitArgs { retries, memory, .. } = *limits;
    Ok(CommandSpec { template, program, prints, retries, memory, spill: Vec::new() })
}

/// Refuses options of built-in tasks.
fn refuse_task_options(given: &TaskOptions) -> Result<()> {
    let given = [
        (given.out.is_some(), "--out"),
        (given.to.is_some(), "--to"),
        (given.points.is_some(), "--points"),
        (given.seed.is_some(), "--seed"),
    ];
    match given.iter().find(|(is_given, _)| *is_given) {
        Some((_, option)) => Err(Usage::error(format!(
            "{option} is for tasks: leave it out, or put it after -- for the command"
        ))),
        None => Ok(()),
    }
}

/// Returns the options of the task. An option that the task does not take is an error.
fn params(task: &Task, given: TaskOptions) -> Result<Params> {
    let takes = &task.options;
    let refuse = |given: bool, taken: bool, option: &str| {
        if given && !taken {
            let message = format!("the task '{}' takes no {option}: leave it out", task.name);
            return Err(Usage::error(message));
        }
        Ok(())
    };
    refuse(given.out.is_some(), takes.out, "--out")?;
    refuse(given.to.is_some(), !takes.to.is_empty(), "--to")?;
    refuse(given.points.is_some(), takes.points.is_some(), "--points")?;
    refuse(given.seed.is_some(), takes.seed.is_some(), "--seed")?;
    if takes.out && given.out.is_none() {
        let message = format!("the task '{}' writes files: say where with --out DIR", task.name);
        return Err(Usage::error(message));
    }
    if let Some(to) = given.to.filter(|to| !takes.to.contains(to)) {
        let known: Vec<_> = takes.to.iter().map(|format| format.name()).collect();
        return Err(Usage::error(format!(
            "the task '{}' can't write {to}: use --to {}",
            task.name,
            known.join(" or --to ")
        )));
    }
    Ok(Params {
        // Removes the "." of "new/.": a directory that does not exist yet cannot have one.
        out: given.out.map(|out| out.components().collect::<PathBuf>().into()),
        to: given.to,
        points: given.points,
        seed: given.seed,
    })
}

/// Where the arguments say that inputs come from.
struct Inputs {
    given: Vec<OsString>,
    file: Option<PathBuf>,
    count: Option<i64>,
}

impl Inputs {
    /// Returns the source that was asked for, if any.
    fn source(self, null: bool) -> Result<Option<Source>> {
        let end = if null { b'\0' } else { b'\n' };
        if !self.given.is_empty() {
            return Ok(Some(Source::given(self.given.into_iter().map(|it| it.into_vec().into()))));
        }
        if let Some(count) = self.count {
            return Ok(Some(Source::given([Bytes::from(format!("0..{count}").as_str())])));
        }
        Ok(match self.file {
            Some(file) if file == Path::new("-") => Some(standard_input(end)),
            Some(file) => Some(open(file, end)?),
            None if null => Some(standard_input(end)),
            None => None,
        })
    }
}

/// Where a task's inputs come from.
///
/// A task with default inputs reads standard input only when it is told to. Programs are started
/// with all kinds of standard inputs, among them pipes that nobody writes to or closes: reading
/// unasked would hang there.
fn task_source(task: &Task, inputs: Inputs, null: bool) -> Result<Source> {
    if inputs.count.is_some() && task.takes != Takes::Numbers {
        let message = format!("the task '{}' takes files, not --count", task.name);
        return Err(Usage::error(message));
    }
    if let Some(source) = inputs.source(null)? {
        return Ok(source);
    }
    if !task.default_inputs.is_empty() {
        return Ok(Source::given(task.default_inputs.iter().copied().map(Bytes::from)));
    }
    if io::stdin().is_terminal() {
        return Err(Usage::error(format!(
            "the task '{}' needs inputs: pass files, or --input LIST, or pipe names in, as from: \
             find DIR -type f",
            task.name
        )));
    }
    Ok(standard_input(b'\n'))
}

/// Where a command's inputs come from.
fn command_source(inputs: Inputs, null: bool) -> Result<Source> {
    if let Some(source) = inputs.source(null)? {
        return Ok(source);
    }
    if io::stdin().is_terminal() {
        return Err(Usage::error(
            "a command needs inputs: add some after :::, or --input LIST, or pipe them in, as \
             from: find DIR -type f",
        ));
    }
    Ok(standard_input(b'\n'))
}

fn standard_input(end: u8) -> Source {
    let stdin = io::stdin();
    let is_file = stdin
        .as_fd()
        .try_clone_to_owned()
        .and_then(|stdin| File::from(stdin).metadata())
        .is_ok_and(|metadata| metadata.is_file());
    let (name, reader) = (STANDARD_INPUT, BufReader::new(stdin));
    let source = if is_file { Source::file(name, reader) } else { Source::live(name, reader) };
    source.ending_with(end)
}

fn open(path: PathBuf, end: u8) -> Result<Source> {
    let failed = |error: &dyn std::fmt::Display| {
        Usage::error(format!("failed to read the inputs from {path:?}: {error}; check --input"))
    };
    let file = File::open(&path).map_err(|error| failed(&error))?;
    let kind = file.metadata().map_err(|error| failed(&error))?.file_type();
    if kind.is_dir() {
        return Err(failed(&"it's a directory, not a list of inputs"));
    }
    let (name, reader) = (format!("{path:?}"), BufReader::new(file));
    Ok(if kind.is_file() {
        // It can be read twice: once to count what's in it, once to work on it.
        Source::file(name, reader).readable_again_at(path).ending_with(end)
    } else {
        Source::live(name, reader).ending_with(end)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::args::{Cli, Verb};
    use clap::Parser;

    fn plan(arguments: &str) -> Result<RunPlan> {
        let words = ["procpool", "run"].into_iter().chain(arguments.split_whitespace());
        let Verb::Run(args) = Cli::try_parse_from(words).unwrap().verb else { panic!() };
        RunPlan::resolve(*args)
    }

    fn refused(arguments: &str) -> String {
        let error = plan(arguments).err().expect("refused");
        assert!(error.is::<Usage>(), "{error:#}");
        format!("{error:#}")
    }

    #[test]
    fn an_option_that_the_task_does_not_take_is_refused() {
        assert!(refused("--task sha256 --points 5 x").contains("no --points"));
        assert!(refused("--task pi --seed 5").contains("no --seed"));
        assert!(refused("--out d").contains("no --out"));
        assert!(refused("--task square --to png").contains("no --to"));
        assert!(refused("--task sha256 --count 3").contains("takes files"));
    }

    #[test]
    fn what_is_missing_or_unfit_is_named_with_the_remedy() {
        assert!(refused("--task plot").contains("--out DIR"));
        assert!(
            refused("--task plot --out d --to webp").contains("--to pdf or --to png or --to svg")
        );
        assert!(refused("--input /nowhere/list").contains("check --input"));
        assert!(refused("--input /").contains("directory"));
    }

    #[test]
    fn defaults_are_those_of_the_task() {
        let plan = plan("--task parzen --procs 3 --seed 9").unwrap();
        assert_eq!((plan.workers, plan.chunk_size, plan.unordered), (3, None, false));
        let WorkPlan::Task(_, params) = &plan.work else { panic!("a task") };
        assert_eq!(params.seed, Some(9));
        assert_eq!(plan.source.count(Takes::Numbers), Some(12));
    }
}
