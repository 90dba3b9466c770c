//! Resolves the arguments of `run`: every default and conflict, before any process starts.
//!
//! Errors that are visible in the arguments are reported here, with exit code 2. Errors that only a
//! task can detect become rows.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::args::{
    CommandOptions, Format, JournalArgs, LimitArgs, OutputChoice, Progress, RunArgs, TaskOptions,
};
use super::blocks::BlockFiles;
use super::exit::Usage;
use super::gpus;
use super::inputs::Source;
use super::job_files;
use super::render::{self, Form, PlainOptions};
use super::sources::{self, Given};
use super::units::TimeLimit;
use crate::tasks::command::{
    self, CommandSpec, Completed, Replacements, StartRules, Template, TemplateError,
};
use crate::tasks::{self, Column, Params, Takes, Task};
use procpool::Sandbox;

/// A resolved run.
pub(super) struct RunPlan {
    pub(super) work: WorkPlan,
    pub(super) source: Source,
    pub(super) takes: Takes,
    /// The blocks that jobs read, if the input is split.
    pub(super) blocks: Option<BlockFiles>,
    /// 0 means that the pool chooses, by the available CPUs.
    pub(super) workers: usize,
    /// Assigned to the workers in turn.
    pub(super) gpus: Vec<String>,
    pub(super) chunk_size: Option<usize>,
    /// The directory of the jobs, if it is another.
    pub(super) dir: Option<PathBuf>,
    /// Whether each input of a task has a process of its own.
    pub(super) fresh: bool,
    pub(super) limits: LimitArgs,
    /// What confines the workers, if something does.
    pub(super) sandbox: Option<Sandbox>,
    /// When the run ends at the latest, from its start.
    pub(super) deadline: Option<Duration>,
    pub(super) journal: JournalArgs,
    pub(super) dry_run: bool,
    /// Where the pool's workers print.
    pub(super) output: procpool::OutputMode,
    pub(super) log: LogTo,
    pub(super) trace: Option<PathBuf>,
    /// The file of the page about the run.
    pub(super) report: Option<PathBuf>,
    /// The file for the results, instead of standard output.
    pub(super) results: Option<PathBuf>,
    /// The directory for the files of each job.
    pub(super) job_files: Option<PathBuf>,
    /// Whether to show the live table of the workers.
    pub(super) top: bool,
    pub(super) unordered: bool,
    pub(super) format: Format,
    pub(super) form: Form,
    pub(super) plain: PlainOptions,
    pub(super) progress: bool,
    pub(super) summary: bool,
    /// Whether only results and errors are printed.
    pub(super) is_quiet: bool,
    pub(super) exit_count: bool,
}

/// The work to run for each input.
pub(super) enum WorkPlan {
    Task(&'static Task, Params),
    Command(Box<CommandSpec>),
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
        let inputs = args.inputs.len();
        args.inputs.retain(|input| input != "-0");
        args.null |= args.inputs.len() < inputs;
        let given = Given {
            inputs: args.inputs,
            file: args.input,
            count: args.count,
            null: args.null,
            delimiter: args.delimiter,
        };
        let output = args.output;
        let log = match output.log {
            None => LogTo::Nowhere,
            Some(file) if file == Path::new("-") => LogTo::Stderr,
            Some(file) => LogTo::File(file),
        };
        let gpus = gpus::in_turn(&args.gpus);
        let (work, source, takes, output_to, form, sandbox);
        let (mut fresh, mut plain, mut blocks) = (false, PlainOptions::default(), None);
        if is_command {
            refuse_task_options(&args.task_options)?;
            let over = sources::of_command(args.command, given, &args.input_args)?;
            let options = &args.command_options;
            if options.tty {
                if args.procs > 1 {
                    return Err(Usage::error(
                        "the jobs of --tty have one terminal, one after the other: use -p 1",
                    ));
                }
                args.procs = 1;
            }
            let start = args.start.rules(args.limits.retries)?;
            let mut spec =
                spec(over.words, options, &over.replacements, &args.limits, output.output)?;
            spec.start = start;
            spec.confined = args.sandbox.is_wanted();
            sandbox = args.sandbox.of_command(spec.program.as_deref());
            let packs = args.input_args.max_args.is_some() || args.input_args.pack;
            if packs && !args.input_args.pack_once {
                spec.template = spec.template.repeating_words();
            }
            let cpus = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let workers = [args.procs, gpus.len()].into_iter().find(|it| *it > 0);
            let workers = workers.unwrap_or_else(cpus);
            let rule = args.input_args.pack_rule(spec.template.value_cost(), workers)?;
            blocks = over.blocks;
            source = match rule {
                Some(rule) => over.source.packing(rule),
                None => over.source,
            };
            takes = over.takes;
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
            plain.tag = spec.tag.clone();
            // The worker prints it where it does not collect the output.
            let collects =
                matches!(spec.prints, command::OutputMode::Grouped | command::OutputMode::Null);
            plain.command = (spec.verbose && collects).then(|| spec.template.clone());
            work = WorkPlan::Command(Box::new(spec));
        } else {
            let name = args.task.as_deref().unwrap_or(tasks::ALL[0].name);
            let task = tasks::find(name)
                .ok_or_else(|| Usage::error(format!("there is no task '{name}'")))?;
            let has_inputs = !given.inputs.is_empty() || given.file.is_some();
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
            args.input_args.refuse_for_tasks()?;
            args.start.refuse_for_tasks()?;
            if args.task.is_none() {
                refuse_command(&given.inputs)?;
            }
            if given.inputs.iter().any(|input| input == ":::") {
                return Err(Usage::error(
                    "::: belongs after a command, and a command after --: procpool run -- COMMAND \
                     ::: INPUT...; the inputs of a task need none",
                ));
            }
            fresh = args.task_options.fresh;
            let params = params(task, args.task_options)?;
            sandbox = args.sandbox.of_task();
            source = sources::of_task(task, given)?;
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
        let shares_terminal = lines
            || args.command_options.tty
            || (is_command && output.output == Some(OutputChoice::Inherit));
        let prints_itself = matches!(output_to, procpool::OutputMode::Inherit)
            && output.output == Some(OutputChoice::Inherit);
        if output.top && (prints_itself || matches!(log, LogTo::Stderr)) {
            return Err(Usage::error(
                "--top would overwrite direct output to the terminal: leave out \
                 --output inherit and --log -",
            ));
        }
        let results = output.results;
        let has_directory = results.as_deref().is_some_and(job_files::is_directory);
        let job_files = results.clone().filter(|_| has_directory);
        let workers = if args.procs == 0 { gpus.len() } else { args.procs };
        let most_inputs = source
            .count_to(takes, workers as u64)
            .map_or(workers, |count| usize::try_from(count).unwrap_or(usize::MAX).max(1));
        Ok(Self {
            source: source.shuffling(args.shuf),
            takes,
            blocks,
            // More workers than inputs would start and stop without work.
            workers: workers.min(most_inputs),
            gpus,
            chunk_size: args.chunk_size.map(Into::into),
            fresh,
            dry_run: args.dry_run,
            unordered: output.unordered || (is_command && !output.keep_order),
            format,
            form,
            plain: PlainOptions { is_silent: output.quiet > 1, ..plain },
            dir: args.command_options.wd,
            progress: output.progress == Progress::Auto
                && output.quiet == 0
                && !shares_terminal
                && !output.top
                // Log lines and the bar would overwrite each other.
                && !matches!(log, LogTo::Stderr)
                && io::stderr().is_terminal(),
            is_quiet: output.quiet > 0,
            summary: output.quiet == 0
                && (output.summary || format == Format::Table || io::stderr().is_terminal()),
            exit_count: output.exit_count,
            limits: args.limits,
            sandbox,
            deadline: args.start.deadline,
            journal: args.journal,
            output: output_to,
            trace: output.trace,
            report: output.report,
            results: results.filter(|_| !has_directory),
            job_files,
            top: output.top,
            work,
            log,
        })
    }
}

/// Refuses a file that one option writes and another reads or writes.
fn refuse_same_file(args: &RunArgs) -> Result<()> {
    let files = [
        ("--input", args.input.as_deref()),
        ("--journal", args.journal.journal.as_deref()),
        ("--log", args.output.log.as_deref()),
        ("--trace", args.output.trace.as_deref()),
        ("--report", args.output.report.as_deref()),
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

/// Refuses a command without its --, which would be inputs of the default task.
fn refuse_command(inputs: &[OsString]) -> Result<()> {
    let is_number = |text: &str| {
        let start = text.split_once("..").map_or(text, |(start, _)| start);
        start.trim().parse::<f64>().is_ok()
    };
    let Some(first) = inputs.first().filter(|it| !it.to_str().is_some_and(is_number)) else {
        return Ok(());
    };
    let words: Vec<_> = inputs.iter().map(|it| command::quote(it.as_encoded_bytes())).collect();
    let words = String::from_utf8_lossy(&words.join(&b' ')).into_owned();
    Err(Usage::error(format!(
        "{first:?} is no number, as the default task takes; a command follows --: procpool run -- \
         {words}"
    )))
}

fn spec(
    words: Vec<OsString>,
    options: &CommandOptions,
    replacements: &Replacements,
    limits: &LimitArgs,
    output: Option<OutputChoice>,
) -> Result<CommandSpec> {
    let usage = |error: TemplateError| Usage::error(error.to_string());
    let template = Template::new(words, options.shell.clone(), replacements).map_err(usage)?;
    template.check().map_err(usage)?;
    let tag = if options.tag { Some("{}".into()) } else { options.tagstring.clone() };
    let tag = tag.map(|tag| Template::text(tag, replacements)).transpose().map_err(usage)?;
    if let Some(dir) = options.wd.as_deref().filter(|dir| !dir.is_dir()) {
        let message = format!("{} is no directory: check --wd, or create it", dir.display());
        return Err(Usage::error(message));
    }
    let program = template.program(options.wd.as_deref())?;
    let prints = match output {
        _ if options.tty => command::OutputMode::Inherit,
        _ if options.line_buffer => command::OutputMode::Lines,
        Some(OutputChoice::Inherit) if tag.is_some() => {
            return Err(Usage::error(
                "--tag cannot change direct output: leave out --output inherit",
            ));
        }
        None | Some(OutputChoice::Capture) => command::OutputMode::Grouped,
        Some(OutputChoice::Inherit) => command::OutputMode::Inherit,
        Some(OutputChoice::Null) => command::OutputMode::Null,
    };
    let LimitArgs { retries, memory, .. } = *limits;
    Ok(CommandSpec {
        has_terminal: options.tty,
        confined: false,
        pseudo_terminal: options.pty,
        watched: false,
        template,
        program,
        prints,
        retries,
        signals: options.termseq.clone().unwrap_or_default(),
        tag,
        verbose: options.verbose,
        memory,
        start: StartRules::default(),
        spill: Vec::new(),
    })
}

/// Refuses options of built-in tasks.
fn refuse_task_options(given: &TaskOptions) -> Result<()> {
    let given = [
        (given.out.is_some(), "--out"),
        (given.to.is_some(), "--to"),
        (given.points.is_some(), "--points"),
        (given.seed.is_some(), "--seed"),
        (given.fresh, "--fresh"),
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
