//! `--dry-run`: prints what would be run, and runs nothing.

use std::io::{self, Write};
use std::sync::Arc;

use anyhow::Result;

use super::messages::tell_left_out;
use crate::exit::Exit;
use crate::jobs::{BuiltIn, Commands, Work};
use crate::journal::{Journal, Past};
use crate::key::JobKey;
use crate::plan::{RunPlan, WorkPlan};
use crate::screen::shown;
use crate::tasks::Input;
use crate::tasks::command::{self, CommandJob};

/// Names an input's work in the journal.
type ToKey = Box<dyn Fn(&Input, u64) -> JobKey>;

/// Prints what would be run.
pub(super) fn dry_run(plan: RunPlan) -> Result<Exit> {
    let mut past = Journal::look(&plan.journal)?;
    let failed_before = past.as_ref().map_or(0, Past::failed);
    let work: ToKey = match &plan.work {
        WorkPlan::Task(task, params) => {
            let work = BuiltIn::new(task, params.clone());
            Box::new(move |input, number| work.key(input, number))
        }
        WorkPlan::Command(recipe) => {
            let work = Commands::new(recipe.template.clone(), None, Arc::default());
            Box::new(move |input, number| work.key(input, number))
        }
    };
    let (inputs, feed) = plan.source.stream(plan.takes);
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    for (number, input) in (1..).zip(inputs) {
        if past.as_mut().is_some_and(|past| past.leaves_out(work(&input, number))) {
            continue;
        }
        let mut line = match &plan.work {
            WorkPlan::Task(task, _) => {
                [task.name.as_bytes(), b" ", &command::quote(&input.to_bytes())].concat()
            }
            // Which worker it would be isn't known.
            WorkPlan::Command(recipe) => {
                let job = CommandJob { input, number, id: 0, limit: None };
                recipe.template.line(&job, "{%}")
            }
        };
        line.push(b'\n');
        shown(stdout.write_all(&line))?;
    }
    shown(stdout.flush())?;
    let is_in_vain = past.is_some_and(|past| {
        tell_left_out(&plan.journal, &past.counts(), failed_before, plan.summary)
    });
    match feed.trouble() {
        None if is_in_vain => Ok(Exit::SomeFailed),
        None => Ok(Exit::AllWell),
        Some(trouble) => Err(anyhow::anyhow!("{trouble}")),
    }
}
