//! The arguments of `run` that say what an input of a command is, as typed.

use std::ffi::OsString;
use std::num::NonZeroUsize;

use anyhow::Result;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::blocks::BlockRules;
use super::exit::Usage;
use super::inputs::Split;
use super::pack::PackRule;
use super::units::{self, Text};
use crate::tasks::command::ValueCost;

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Inputs of commands")]
pub(super) struct InputArgs {
    /// Pass N inputs to each command, the last one what is left. {} stands for all of them, and {1},
    /// {2} for one each
    #[arg(short = 'n', long, value_name = "N", visible_short_aliases = ['N', 'L'])]
    #[arg(aliases = ["max-replace-args", "max-lines"])]
    pub(super) max_args: Option<NonZeroUsize>,

    /// Pass as many inputs to each command as fit, or N with -n N, spread evenly over the workers.
    /// The word around {} is repeated for each
    #[arg(short = 'X', long)]
    pub(super) pack: bool,

    /// As -X, and what stands around {} stands once: before the first input and after the last
    #[arg(short = 'm', long, conflicts_with = "pack")]
    pub(super) pack_once: bool,

    /// Bytes of a command with -X or -m [default: 131072]
    #[arg(short = 's', long, value_name = "BYTES")]
    pub(super) max_chars: Option<NonZeroUsize>,

    /// Split standard input, or the file of --input, into blocks that end where a record ends. Each is the
    /// standard input of one job, and {#} its number
    #[arg(long, requires = "command", conflicts_with_all = [
        "pack", "pack_once", "max_chars", "link", "colsep", "csv", "header", "replace", "count", "null",
        "delimiter", "dry_run", "journal", "chunk_size", "hosts", "hostfile",
    ])]
    #[arg(aliases = ["spreadstdin", "pipepart", "pipe-part"])]
    pub(super) pipe: bool,

    /// Bytes of a block: 64K, 10M [default: 1M]. With -N, each block has N records instead
    #[arg(long, value_name = "SIZE", requires = "pipe", value_parser = units::size)]
    pub(super) block: Option<usize>,

    /// What each record starts with
    #[arg(long, value_name = "TEXT", requires = "pipe", value_parser = units::text)]
    pub(super) recstart: Option<Text>,

    /// What each record ends with; \n is a line feed [default: \n, or nothing with --recstart]
    #[arg(long, value_name = "TEXT", requires = "pipe", value_parser = units::text)]
    pub(super) recend: Option<Text>,

    /// Use R for the input, in place of {}
    #[arg(short = 'I', long, value_name = "R")]
    pub(super) replace: Option<OsString>,

    /// Link all sources, a ::: and the next: their values go side by side, and a shorter one starts
    /// again. :::+ and ::::+ link one source to the one before, as far as the shorter goes
    #[arg(long)]
    pub(super) link: bool,

    /// Split each input at S into {1}, {2} and so on; '\t' is a tab
    #[arg(long, value_name = "S", value_parser = NonEmptyStringValueParser::new())]
    pub(super) colsep: Option<String>,

    /// Read inputs as records of CSV, with , or --colsep between the fields {1}, {2} and so on
    #[arg(long, conflicts_with_all = ["null", "delimiter"])]
    pub(super) csv: bool,

    /// Take the names of the values from the first line, or from the first value of each source:
    /// {name} is the one below name
    #[arg(long, value_name = ":", value_parser = [":"])]
    pub(super) header: Option<String>,
}

impl InputArgs {
    /// Returns how the input is split into blocks, if it is.
    pub(super) fn block_rules(&self) -> Option<BlockRules> {
        const SIZE: usize = 1 << 20;
        let bytes = |text: &Option<Text>| text.as_ref().map(|text| text.0.clone());
        let default_end = if self.recstart.is_some() { Vec::new() } else { b"\n".to_vec() };
        self.pipe.then(|| BlockRules {
            size: self.block.unwrap_or(SIZE),
            end: bytes(&self.recend).unwrap_or(default_end),
            start: bytes(&self.recstart).unwrap_or_default(),
            records: self.max_args.map(NonZeroUsize::get),
        })
    }

    /// Whether a command gets as many inputs as fit.
    pub(super) fn packs(&self) -> bool {
        self.pack || self.pack_once
    }

    /// Returns how many inputs a command gets, if it gets several.
    pub(super) fn pack_rule(&self, cost: ValueCost, workers: usize) -> Result<Option<PackRule>> {
        if self.pipe {
            return Ok(None);
        }
        let most = self.max_args.map(NonZeroUsize::get);
        if self.packs() {
            let length = self.max_chars.map(NonZeroUsize::get);
            return Ok(Some(PackRule::fitting(most, length, cost, workers)));
        }
        if self.max_chars.is_some() {
            return Err(Usage::error(
                "--max-chars (-s) is for commands that are filled: add -X or -m",
            ));
        }
        Ok(most.map(PackRule::of))
    }

    /// Returns how inputs have several values, if they have.
    pub(super) fn split(&self) -> Result<Option<Split>> {
        let single = self.colsep.as_deref().map(units::delimiter);
        match (&self.colsep, single, self.csv) {
            (Some(_), Some(Ok(byte)), true) => Ok(Some(Split::Csv(byte))),
            (Some(colsep), _, true) => Err(Usage::error(format!(
                "between fields of CSV stands one character, not {colsep:?}: use a --colsep such as ';'"
            ))),
            (None, _, true) => Ok(Some(Split::Csv(b','))),
            (Some(_), Some(Ok(byte)), false) => Ok(Some(Split::Columns(vec![byte]))),
            (Some(colsep), _, false) => Ok(Some(Split::Columns(colsep.clone().into_bytes()))),
            (None, _, false) => Ok(None),
        }
    }

    /// Refuses these options for a task.
    pub(super) fn refuse_for_tasks(&self) -> Result<()> {
        let given = [
            (self.max_args.is_some(), "--max-args (-n)"),
            (self.packs(), "--pack (-X, -m)"),
            (self.max_chars.is_some(), "--max-chars (-s)"),
            (self.replace.is_some(), "--replace (-I)"),
            (self.link, "--link"),
            (self.colsep.is_some(), "--colsep"),
            (self.csv, "--csv"),
            (self.header.is_some(), "--header"),
        ];
        match given.into_iter().find(|(is_given, _)| *is_given) {
            Some((_, option)) => Err(Usage::error(format!(
                "{option} is for commands: leave it out; --count N is how many inputs a task gets, \
                 and -p N how many workers there are"
            ))),
            None => Ok(()),
        }
    }
}
