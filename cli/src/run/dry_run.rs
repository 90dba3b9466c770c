//! `--dry-run`: prints the commands that would run, and runs nothing.

use std::io::{self, Write};
use std::sync::Arc;

use anyhow::Result;

use super::messages::report_skipped;
use crate::exit::Exit;
use crate::jobs::{BuiltIn, Commands, Work};
use crate::journal::{History, Journal};
use crate::key::JobKey;
use crate::plan::{RunPlan, WorkPlan};
use crate::screen::shown;
use crate::tasks::Input;
use crate::tasks::command::{self, CommandJob};

/// Computes the journal key of an input.
type ToKey = Box<dyn Fn(&Input, u64) -> JobKey>;

/// Prints the commands that would run.
pub(super) fn dry_run(plan: RunPlan) -> Result<Exit> {
    let mut history = Journal::history(&plan.journal)?;
    let failed_before = history.as_ref().map_or(0, History::failed);
    let work: ToKey = match &plan.work {
        WorkPlan::Task(task, params) => {
            let work = BuiltIn::new(task, params.clone());
            Box::new(move |input, number| work.key(input, number))
        }
        WorkPlan::Command(spec) => {
            let work = Commands::new(spec.template.clone(), None, Arc::default());
            Box::new(move |input, number| work.key(input, number))
        }
    };
    let (inputs, feed) = plan.source.stream(plan.takes);
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    for (number, input) in (1..).zip(inputs) {
        if history.as_mut().is_some_and(|history| history.skips(work(&input, number))) {
            continue;
        }
        let mut line = match &plan.work {
            WorkPlan::Task(task, _) => {
                [task.name.as_bytes(), b" ", &command::quote(&input.to_bytes())].concat()
            }
            // The worker is not known yet.
            WorkPlan::Command(spec) => {
                let job = CommandJob { input, number, id: 0, limit: None, stdin: None };
                spec.template.line(&job, "{%}")
            }
        };
        line.push(b'\n');
        shown(stdout.write_all(&line))?;
    }
    shown(stdout.flush())?;
    let is_in_vain = history.is_some_and(|history| {
        report_skipped(&plan.journal, &history.counts(), failed_before, plan.is_quiet)
    });
    match feed.error() {
        None if is_in_vain => Ok(Exit::Failure),
        None => Ok(Exit::Success),
        Some(error) => Err(anyhow::anyhow!("{error}")),
    }
}
