//! What to type instead of an option that is not taken: those of GNU parallel and xargs, as far as
//! there is something like them.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Options of GNU parallel and xargs, and what does the same here.
const OTHERS: [(&[&str], &str); 18] = [
    (&["--bar", "--eta"], "a bar is shown on a terminal; --top shows the workers"),
    (&["--joblog"], "--journal FILE has a line of JSON for each job; --format csv has rows"),
    (&["--resume-failed"], "--journal FILE --retry-failed runs the jobs that failed again"),
    (&["-v", "--interactive"], "-t prints each command; --dry-run prints all and runs none"),
    (&["-r", "--no-run-if-empty"], "without inputs, no command is run: leave it out"),
    (&["-x", "--exit"], "a command that is too long fails by itself: leave it out"),
    (&["--will-cite", "--citation", "--bibtex"], "leave it out"),
    (&["--ungroup"], "--output inherit passes output through as it is written"),
    (&["--group"], "output is grouped by job unless --line-buffer is set: leave it out"),
    (&["-S", "--sshlogin", "--slf", "--sshloginfile"], "--hosts n1,n2:8 or --hostfile FILE"),
    (&["-E", "-e", "--eof", "--arg-sep", "--arg-file-sep"], "there is no such marker here"),
    (&["-l"], "-n N passes N inputs to each command"),
    (&["--process-slot-var"], "PROCPOOL_SLOT has the worker's number, and so has {%}"),
    (&["--plus"], "its replacement strings always work: leave it out"),
    (&["--memsuspend", "--limit", "--noswap"], "--memory SIZE limits each job"),
    (&["--gnu", "--compress", "--tmpdir", "--files"], "leave it out; large output goes to TMPDIR"),
    (&["--env", "--record-env"], "jobs have the environment of procpool: leave it out"),
    (&["--xargs"], "-m passes as many inputs to each command as fit"),
];

/// Returns what to type instead of what clap refused, if that is known.
pub(super) fn of(error: &clap::Error) -> Option<String> {
    let argument = |kind| match error.get(kind) {
        Some(ContextValue::String(argument)) => Some(argument.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let argument = argument(ContextKind::InvalidArg)?;
            let name = argument.split('=').next().unwrap_or(argument);
            let known = OTHERS.iter().find(|(names, _)| names.contains(&name));
            Some(match known {
                Some((_, hint)) => format!("in place of {name}: {hint}"),
                None => "a command and its own options follow --: procpool run -- COMMAND {} ::: INPUT..."
                    .to_owned(),
            })
        }
        ErrorKind::MissingRequiredArgument if lacks_command(error) => Some(
            "options of commands need one after --: procpool run -- COMMAND {} ::: INPUT...; \
             --task names a built-in task, and -t prints commands"
                .to_owned(),
        ),
        _ => None,
    }
}

/// Whether an option was given that is for commands, and no command.
fn lacks_command(error: &clap::Error) -> bool {
    let missing = error.get(ContextKind::InvalidArg);
    matches!(missing, Some(ContextValue::Strings(names)) if names.iter().any(|it| it.starts_with("<COMMAND>")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::{CommandFactory, Parser};

    #[test]
    fn an_option_that_is_hinted_at_is_none_of_ours() {
        let mut command = Cli::command();
        command.build();
        let run = command.find_subcommand("run").expect("a verb");
        for (names, _) in OTHERS {
            for name in names {
                let is_ours = run.get_arguments().any(|argument| {
                    let longs = argument
                        .get_long()
                        .into_iter()
                        .chain(argument.get_all_aliases().unwrap_or_default());
                    let shorts = argument
                        .get_short()
                        .into_iter()
                        .chain(argument.get_all_short_aliases().unwrap_or_default());
                    longs.map(|long| format!("--{long}")).any(|long| long == *name)
                        || shorts.map(|short| format!("-{short}")).any(|short| short == *name)
                });
                assert!(!is_ours, "{name}");
            }
        }
    }

    #[test]
    fn every_option_that_is_not_taken_gets_a_hint() {
        for (option, hint) in [
            ("--joblog=x", "--journal"),
            ("-r", "leave it out"),
            ("-Z", "follow --"),
            ("--frob", "follow --"),
        ] {
            let error = Cli::try_parse_from(["procpool", "run", option, "x"]);
            let hinted = of(&error.expect_err(option)).expect(option);
            assert!(hinted.contains(hint), "{option}: {hinted}");
        }
    }

    #[test]
    fn only_who_leaves_out_the_command_is_told_of_it() {
        let hint = |arguments: &[&str]| {
            let arguments = std::iter::once(&"procpool").chain(arguments);
            of(&Cli::try_parse_from(arguments).expect_err("something is missing"))
        };
        let told = hint(&["run", "-t", "sha256"]).expect("a hint");
        assert!(told.contains("--task names a built-in task"), "{told}");
        assert_eq!(hint(&["run", "--read", "/", "--", "true"]), None);
        assert_eq!(hint(&["timeline"]), None);
    }
}
