//! `procpool completions` and `procpool man`: made of the arguments themselves, so that they can't
//! say anything else. The only home of clap_complete and clap_mangen.

use std::io::{self, Write};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_mangen::Man;

use super::args::{Cli, CompletionsArgs, ManArgs};
use super::exit::{Exit, Usage};

pub(super) fn completions(args: &CompletionsArgs) -> Result<Exit> {
    let mut page = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "procpool", &mut page);
    print(&page)
}

pub(super) fn man(args: &ManArgs) -> Result<Exit> {
    let mut command = Cli::command();
    command.build();
    if let Some(verb) = &args.verb {
        let found = command.find_subcommand(verb).cloned();
        let found = found.ok_or_else(|| Usage::error(format!("there is no verb '{verb}'")))?;
        // Its own name, which clap has as "procpool run" in some places and "run" in others.
        command = found.name(format!("procpool-{verb}"));
    }
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    print(&page)
}

fn print(page: &[u8]) -> Result<Exit> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(page).and_then(|()| stdout.flush());
    written.context("failed to write to standard output")?;
    Ok(Exit::AllWell)
}
