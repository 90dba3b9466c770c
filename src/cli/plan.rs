//! What a run will do: the arguments with every default and conflict resolved, before any process
//! is started.
//!
//! Whatever can be known to be wrong is an error here and exit code 2; what only a task can find
//! out is a row.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::args::{Format, LimitArgs, Prints, Progress, RunArgs, TaskOptions};
use super::exit::Usage;
use super::inputs::Source;
use crate::tasks::{self, Bytes, Params, Takes, Task};

/// A run, resolved.
pub(super) struct RunPlan {
    pub(super) task: &'static Task,
    pub(super) params: Params,
    pub(super) source: Source,
    /// 0 is left to the pool, which knows how many CPUs it may use.
    pub(super) workers: usize,
    pub(super) chunk_size: Option<usize>,
    pub(super) limits: LimitArgs,
    pub(super) prints: Prints,
    pub(super) log: LogTo,
    pub(super) unordered: bool,
    pub(super) format: Format,
    pub(super) progress: bool,
    pub(super) summary: bool,
}

/// Where the pool's events are written.
pub(super) enum LogTo {
    Nowhere,
    Stderr,
    File(PathBuf),
}

impl RunPlan {
    pub(super) fn resolve(args: RunArgs) -> Result<Self> {
        let task = tasks::find(&args.task)
            .ok_or_else(|| Usage::error(format!("there is no task '{}'", args.task)))?;
        let params = params(task, args.task_options)?;
        let source = source(task, args.inputs, args.input, args.count)?;
        let output = args.output;
        let log = match output.log {
            None => LogTo::Nowhere,
            Some(file) if file == Path::new("-") => LogTo::Stderr,
            Some(file) => LogTo::File(file),
        };
        Ok(Self {
            task,
            params,
            source,
            workers: args.procs,
            chunk_size: args.chunk_size.map(Into::into),
            unordered: output.unordered,
            format: output.format,
            progress: output.progress == Progress::Auto
                && !output.quiet
                // They would write over each other.
                && !matches!(log, LogTo::Stderr)
                && io::stderr().is_terminal(),
            summary: !output.quiet,
            limits: args.limits,
            prints: output.output,
            log,
        })
    }
}

/// The options of the task; one that it doesn't take is an error, not ignored.
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
            "the task '{}' can't write {to}: give --to {}",
            task.name,
            known.join(" or --to ")
        )));
    }
    Ok(Params {
        // Without the "." of "new/.", which a directory that is still to be made can't have.
        out: given.out.map(|out| out.components().collect::<PathBuf>().into()),
        to: given.to,
        points: given.points,
        seed: given.seed,
    })
}

/// Where the inputs come from.
///
/// A task with default inputs reads standard input only when it is told to. Programs are started
/// with all kinds of standard inputs, among them pipes that nobody writes to or closes: reading
/// unasked would hang there.
fn source(
    task: &Task,
    given: Vec<OsString>,
    file: Option<PathBuf>,
    count: Option<i64>,
) -> Result<Source> {
    if !given.is_empty() {
        return Ok(Source::given(given.into_iter().map(|input| input.into_vec().into())));
    }
    if let Some(count) = count {
        if task.takes != Takes::Numbers {
            let message = format!("the task '{}' takes files, not --count", task.name);
            return Err(Usage::error(message));
        }
        return Ok(Source::given([Bytes::from(format!("0..{count}").as_str())]));
    }
    if let Some(file) = file {
        return if file == Path::new("-") { Ok(standard_input()) } else { open(file) };
    }
    if !task.default_inputs.is_empty() {
        return Ok(Source::given(task.default_inputs.iter().copied().map(Bytes::from)));
    }
    if io::stdin().is_terminal() {
        return Err(Usage::error(format!(
            "the task '{}' needs inputs: give files, or --input LIST, or pipe names in, as from: \
             find DIR -type f",
            task.name
        )));
    }
    Ok(standard_input())
}

fn standard_input() -> Source {
    let stdin = io::stdin();
    let is_file = stdin
        .as_fd()
        .try_clone_to_owned()
        .and_then(|stdin| File::from(stdin).metadata())
        .is_ok_and(|metadata| metadata.is_file());
    let (name, reader) = ("standard input", BufReader::new(stdin));
    if is_file { Source::file(name, reader) } else { Source::live(name, reader) }
}

fn open(path: PathBuf) -> Result<Source> {
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
        Source::file(name, reader).readable_again_at(path)
    } else {
        Source::live(name, reader)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::args::{Cli, Verb};
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
        assert!(refused("--task plot --out d --to webp").contains("--to svg or --to png"));
        assert!(refused("--input /nowhere/list").contains("check --input"));
        assert!(refused("--input /").contains("directory"));
    }

    #[test]
    fn defaults_are_those_of_the_task() {
        let plan = plan("--task parzen --procs 3 --seed 9").unwrap();
        assert_eq!((plan.workers, plan.chunk_size, plan.unordered), (3, None, false));
        assert_eq!(plan.params.seed, Some(9));
        assert_eq!(plan.source.count(Takes::Numbers), Some(12));
    }
}
