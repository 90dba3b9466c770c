//! The command `procpool`: parses the arguments, runs the verb, and reports errors.
//!
//! One file per verb (`run`, `tasks`, `isolate`, …). Arguments take two steps: `args` holds them as
//! typed, and `plan` resolves every default and conflict before the first process starts. The
//! stages of a run:
//!
//! ```text
//!     plan ─► inputs ─► jobs ─► pool ─► collect ─► events ─► run ─► order, render ─► screen
//!             one at    id and          threads    bounded,  the only one             stdout,
//!             a time    input           that wait  signals   that decides             flushed
//!                       kept            for it     too                                when idle
//! ```
//!
//! Rows of results go to standard output and everything else to standard error, so that a pipe
//! receives rows only. The summary of a table is the exception. A closed pipe is a clean end.
//! `exit` has the exit codes. `tasks` uses no other module but `os` and
//! `drawing`.

#![deny(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

mod args;
mod batch_queue;
mod blocks;
mod collect;
mod color;
mod combine;
mod compare;
mod control;
mod drawing;
mod exit;
mod format;
mod gpus;
mod halt;
mod hints;
mod input_args;
mod inputs;
mod interrupt;
mod isolate;
mod job_files;
mod jobs;
mod journal;
mod key;
mod launch;
mod list;
mod log;
mod manual;
mod median;
mod numbers;
mod order;
#[allow(unsafe_code)] // System calls that no crate wraps.
mod os;
mod pack;
mod pending;
mod plan;
mod progress;
mod record;
mod render;
mod report;
mod report_format;
mod row;
mod run;
mod sandbox_args;
mod screen;
mod sources;
mod spill;
mod start_args;
mod summary;
mod tasks;
mod timeline;
mod top;
mod trace;
mod units;

use args::{Cli, Verb};
use exit::{Exit, Usage};

use tasks::command::NoProgram;

fn main() -> ExitCode {
    // A worker is a copy of this program: `init` never returns in one.
    procpool::init();
    compare::serve_calibration();
    os::program::default_child_signal();
    let command = color::of_help(Cli::command());
    let parsed =
        command.try_get_matches().and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    let exit = match parsed {
        Ok(Cli { verb, color }) => {
            color::set(color);
            match verb {
                Verb::Run(args) => {
                    let count = args.output.exit_count;
                    let outcome = run::run(*args);
                    let is_error = outcome.is_err();
                    let exit = report("run", outcome);
                    if count && is_error { exit.uncounted() } else { exit }
                }
                Verb::Tasks(args) => report("tasks", list::run(&args)),
                Verb::Isolate(args) => report("isolate", isolate::run(args)),
                Verb::Compare(args) => report("compare", compare::run(args)),
                Verb::Hosts(args) => report("hosts", launch::check(&args)),
                Verb::Timeline(args) => report("timeline", timeline::run(&args)),
                Verb::Completions(args) => report("completions", manual::completions(&args)),
                Verb::Man(args) => report("man", manual::man(&args)),
            }
        }
        Err(help_or_error) => {
            let _ = help_or_error.print(); // to a terminal that is gone, perhaps
            if let Some(hint) = hints::of(&help_or_error) {
                let _ = writeln!(io::stderr(), "\nhint: {hint}");
            }
            let exit = if help_or_error.use_stderr() { Exit::WrongUsage } else { Exit::Success };
            // The arguments could not be parsed, so this looks at them as typed.
            let mut typed = std::env::args_os().take_while(|argument| argument != "--");
            if typed.any(|argument| argument == "--exit-count") { exit.uncounted() } else { exit }
        }
    };
    launch::say_exit(exit.code());
    exit.into()
}

/// Reports the error of a verb and returns its exit code.
fn report(verb: &str, outcome: anyhow::Result<Exit>) -> Exit {
    let error = match outcome {
        Ok(exit) => return exit,
        Err(error) if error.is::<screen::OutputClosed>() => return Exit::Success,
        // A run also writes to other files than standard output.
        Err(error) if verb != "run" && is_closed_pipe(&error) => return Exit::Success,
        Err(error) => error,
    };
    let mut stderr = io::stderr().lock();
    // `eprintln!` would panic if standard error is closed.
    let _ = writeln!(stderr, "{} {error:#}", color::error(&stderr));
    if error.is::<Usage>() {
        let _ = writeln!(stderr, "\nFor more information, try 'procpool {verb} --help'.");
        return Exit::WrongUsage;
    }
    if error.is::<launch::EngineLost>() {
        return Exit::EngineLost;
    }
    if let Some(procpool::Error::BuildMismatch { .. }) = error.downcast_ref() {
        return Exit::BuildMismatch;
    }
    error.downcast_ref::<NoProgram>().map_or(Exit::Failure, Exit::from)
}

/// Whether the reader of standard output has closed it.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
