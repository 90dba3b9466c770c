//! Decides whether to use colours, and formats the few coloured texts.

use std::env;
use std::io::IsTerminal;
use std::sync::OnceLock;

use clap::{ColorChoice, ValueEnum};

use super::args::Color;

static CHOICE: OnceLock<Color> = OnceLock::new();

/// Sets the choice. Only the first call counts.
pub(super) fn set(choice: Color) {
    let _ = CHOICE.set(choice);
}

/// Whether to use colours on this stream.
pub(super) fn wanted(to: &impl IsTerminal) -> bool {
    match CHOICE.get() {
        Some(Color::Always) => true,
        Some(Color::Never) => false,
        Some(Color::Auto) | None => {
            let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
            let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
            to.is_terminal() && !is_set("NO_COLOR") && !is_dumb
        }
    }
}

/// Returns the prefix of an error on this stream.
pub(super) fn error(to: &impl IsTerminal) -> &'static str {
    if wanted(to) { "\x1b[1;31merror:\x1b[0m" } else { "error:" }
}

/// Colours the help and the errors of clap. They are made before the arguments are parsed, so this
/// searches them for `--color`.
pub(super) fn of_help(command: clap::Command) -> clap::Command {
    let mut arguments = env::args_os().map_while(|argument| (argument != "--").then_some(argument));
    let mut choice = None;
    while let Some(argument) = arguments.next() {
        let value = match argument.to_str() {
            Some("--color") => arguments.next().and_then(|value| value.into_string().ok()),
            Some(argument) => argument.strip_prefix("--color=").map(str::to_owned),
            None => None,
        };
        choice = value.and_then(|value| Color::from_str(&value, false).ok()).or(choice);
    }
    command.color(match choice {
        None | Some(Color::Auto) => ColorChoice::Auto,
        Some(Color::Always) => ColorChoice::Always,
        Some(Color::Never) => ColorChoice::Never,
    })
}
