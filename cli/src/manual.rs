//! `procpool completions` and `procpool man`, generated from the arguments. The only user of
//! clap_complete and clap_mangen.

use std::io::{self, Write};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::{Cli, CompletionsArgs, ManArgs};
use super::exit::{Exit, Usage};

/// Completes what follows `--` as a command, which clap_complete does not support.
const BASH: &str = r#"
# After -- stands a command of its own, and after ::: its inputs.
_procpool_or_command() {
    local index dashes=0
    for (( index = 1; index < COMP_CWORD; index++ )); do
        case "${COMP_WORDS[index]}" in
            --) (( dashes )) || dashes=$index ;;
            :::) if (( dashes )); then COMPREPLY=(); return 0; fi ;;
        esac
    done
    if (( dashes == 0 )); then
        _procpool "$@"
    elif declare -F _comp_command_offset > /dev/null; then
        _comp_command_offset $(( dashes + 1 ))
    elif declare -F _command_offset > /dev/null; then
        _command_offset $(( dashes + 1 ))
    elif (( COMP_CWORD == dashes + 1 )); then
        COMPREPLY=( $(compgen -c -- "${COMP_WORDS[COMP_CWORD]}") )
    else
        COMPREPLY=()
    fi
}
complete -F _procpool_or_command -o bashdefault -o default procpool
"#;

/// The same for zsh, at the start of the function.
const ZSH: &str = r#"
    # After -- stands a command of its own, and after ::: its inputs.
    local dashes=${words[(i)--]}
    if (( dashes < CURRENT )); then
        if (( ${words[(ie):::]} < CURRENT )); then
            _files
            return
        fi
        shift $dashes words
        (( CURRENT -= dashes ))
        _normal
        return
    fi
"#;

/// The same for fish.
const FISH: &str = r#"
# After -- stands a command of its own, and after ::: its inputs.
function __fish_procpool_command
    set -l words (commandline -opc)
    set -l dashes (contains -i -- -- $words)
    or return 1
    contains -- ::: $words
    and return 1
    set -e words[1..$dashes]
    string escape -- $words
    return 0
end
complete -c procpool -n "__fish_procpool_command > /dev/null" -f -a "(complete -C (string join ' ' -- (__fish_procpool_command) (commandline -ct)))"
"#;

pub(super) fn completions(args: &CompletionsArgs) -> Result<Exit> {
    let mut page = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "procpool", &mut page);
    let start = "_procpool() {\n";
    match args.shell {
        Shell::Bash => page.extend_from_slice(BASH.as_bytes()),
        Shell::Fish => page.extend_from_slice(FISH.as_bytes()),
        Shell::Zsh => {
            let text = String::from_utf8_lossy(&page);
            let start_and_more = [start, ZSH.trim_start_matches('\n')].concat();
            page = text.replacen(start, &start_and_more, 1).into_bytes();
        }
        _ => {}
    }
    print(&page)
}

pub(super) fn man(args: &ManArgs) -> Result<Exit> {
    let mut command = Cli::command();
    command.build();
    if let Some(verb) = &args.verb {
        let found = command.find_subcommand(verb).cloned();
        let found = found.ok_or_else(|| Usage::error(format!("there is no verb '{verb}'")))?;
        // clap uses "procpool run" in some places and "run" in others.
        command = found.name(format!("procpool-{verb}"));
    }
    let verbs: Vec<String> = match &args.verb {
        Some(_) => vec!["procpool".to_owned()],
        None => {
            command.get_subcommands().map(|verb| format!("procpool-{}", verb.get_name())).collect()
        }
    };
    let epilogue = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let man = Man::new(command);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if args.verb.is_none() {
        man.render_subcommands_section(&mut page)?;
    }
    page.extend_from_slice(sections(&epilogue).as_bytes());
    let others: Vec<_> = verbs.iter().map(|verb| format!("\\fB{}\\fR(1)", escaped(verb))).collect();
    let others = others.join(", ");
    let tools = if args.verb.as_deref() == Some("run") {
        ", \\fBxargs\\fR(1), \\fBparallel\\fR(1)"
    } else {
        ""
    };
    page.extend_from_slice(format!(".SH \"SEE ALSO\"\n{others}{tools}\n").as_bytes());
    print(&page)
}

/// Formats the text after the options as sections of a manual page. Headings end with a colon.
/// Prose is refilled; tables and commands keep their lines.
fn sections(help: &str) -> String {
    let mut page = String::new();
    let (mut keeps_all, mut kept) = (false, false);
    for line in help.lines() {
        let text = line.trim();
        let is_heading = !line.starts_with(' ') && text.ends_with(':');
        let keep = !is_heading && !text.is_empty() && (keeps_all || line.starts_with("    "));
        if keep != kept {
            page += if keep { ".PP\n.RS 4\n.nf\n" } else { ".fi\n.RE\n" };
            kept = keep;
        }
        if is_heading {
            let name = text.trim_end_matches(':').to_uppercase();
            keeps_all = name == "EXAMPLES";
            page += &format!(".SH \"{}\"\n", name.replace("EXIT CODES", "EXIT STATUS"));
        } else if text.is_empty() {
            continue;
        } else {
            page += &escaped(if keep { line.trim_start() } else { text });
            page.push('\n');
        }
    }
    if kept {
        page += ".fi\n.RE\n";
    }
    page
}

/// Escapes text for roff.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn print(page: &[u8]) -> Result<Exit> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(page).and_then(|()| stdout.flush());
    written.context("failed to write to standard output")?;
    Ok(Exit::Success)
}
