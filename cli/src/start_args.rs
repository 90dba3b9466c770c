//! The arguments of `run` that say when jobs start and when the run ends, as typed.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueHint};

use super::exit::Usage;
use super::units;
use crate::tasks::command::StartRules;

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Starts and end")]
pub(super) struct StartArgs {
    /// Start jobs of a command at least this long after one another: 100ms, 1m30s
    #[arg(long, value_name = "DURATION", value_hint = ValueHint::Other, value_parser = units::duration)]
    delay: Option<Duration>,

    /// Start no job of a command while this many processes run or wait for a disk: 4, or 100% of the
    /// CPUs
    #[arg(long, value_name = "N", value_hint = ValueHint::Other, value_parser = units::load)]
    load: Option<f64>,

    /// Start no job of a command while less memory than this is available: 2G
    #[arg(long, value_name = "SIZE", value_hint = ValueHint::Other, value_parser = units::memory)]
    memfree: Option<u64>,

    /// Wait this long before a failed command is run again by --retries, and twice as long each time,
    /// up to an hour; a random part of up to a half is left out
    #[arg(long, value_name = "DURATION", value_hint = ValueHint::Other, value_parser = units::duration)]
    retry_delay: Option<Duration>,

    /// End the run after this time: start no more jobs, and kill those that run
    #[arg(long, value_name = "DURATION", value_hint = ValueHint::Other, value_parser = units::duration)]
    pub(super) deadline: Option<Duration>,
}

impl StartArgs {
    /// Returns the rules for a command that is retried so often.
    pub(super) fn rules(&self, retries: u32) -> Result<StartRules> {
        if self.retry_delay.is_some() && retries == 0 {
            return Err(Usage::error(
                "--retry-delay is for failed jobs that are run again: add --retries N",
            ));
        }
        let Self { delay, load, memfree, retry_delay, .. } = *self;
        Ok(StartRules { delay, load, memfree, retry_delay, shared: None })
    }

    /// Refuses the options of commands for a task.
    pub(super) fn refuse_for_tasks(&self) -> Result<()> {
        let given = [
            (self.delay.is_some(), "--delay"),
            (self.load.is_some(), "--load"),
            (self.memfree.is_some(), "--memfree"),
            (self.retry_delay.is_some(), "--retry-delay"),
        ];
        match given.into_iter().find(|(is_given, _)| *is_given) {
            Some((_, option)) => {
                Err(Usage::error(format!("{option} is for commands: leave it out")))
            }
            None => Ok(()),
        }
    }
}
