//! What people read, word for word: help, errors, tables, exit codes. After a change that is meant,
//! `INSTA_UPDATE=always cargo test --test cli snapshots` writes the files anew.

use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Ended, run, run_with_input, wait};

/// How it ended, and what it has said where.
fn page(ended: &Ended) -> String {
    let mut page = format!("exit code {}\n", ended.code.unwrap());
    for (name, text) in [("standard output", ended.text()), ("standard error", &ended.stderr)] {
        if !text.is_empty() {
            let _ = write!(page, "── {name}\n{text}");
        }
    }
    page
}

/// Compares with what is on file, but for what is different each time.
macro_rules! assert_page {
    ($name:expr, $page:expr) => {
        insta::with_settings!({
            prepend_module_to_snapshot => false,
            omit_expression => true,
            filters => vec![
                (r"[\d.]+ (ns|µs|ms|s)\b", "TIME"),
                (r"[\d.]+ [KM]iB", "SIZE"),
                (r"[\d,.]+ a second", "RATE a second"),
                (r"[\d.,]+ times as fast", "N times as fast"),
                (r"(?m)^( +\d+) +\d{2,} +TIME", "$1  PID  TIME"),
                (r"(?m)^ +\d{3,} +(\d+ +\d+ +TIME)", "  PID  $1"),
                (r"(TIME +\S+ +\S+ +)0\.\d{3} +\d+", "$1 CPU MEMORY"),
                (r"\x22(pid|worker)\x22:\d+", "\x22$1\x22:N"),
                (r"\x22(queued|seconds|cpu)\x22:[\d.e-]+", "\x22$1\x22:TIME"),
                (r"\x22memory\x22:\d+", "\x22memory\x22:SIZE"),
                (r"(?m)^(\d+),\d+,\d+,1,[\d.]+,", "$1,PID,WORKER,1,TIME,"),
                (r",0\.\d+,\d{7,},", ",CPU,MEMORY,"),
                (r"slowest: .*", "slowest: …"),
                (r"most memory: .*", "most memory: …"),
                (r" +\n", "\n"),
                (r"  +", "  "),
            ],
        }, { insta::assert_snapshot!($name, $page) });
    };
}

#[test]
fn help() {
    for verb in
        ["", "run", "tasks", "compare", "isolate", "hosts", "timeline", "completions", "man"]
    {
        let arguments: Vec<&str> =
            [verb, "--help"].into_iter().filter(|it| !it.is_empty()).collect();
        let name = format!("help {verb}").trim().replace(' ', "-");
        assert_page!(name, page(&run(&arguments)));
    }
}

#[test]
fn errors() {
    let cases: [&[&str]; 14] = [
        &["walk"],
        &["run", "--procs", "many"],
        &["run", "--task", "nothing"],
        &["run", "--task", "plot"],
        &["run", "--task", "sha256", "--points", "3", "x"],
        &["run", "--timeout", "soon"],
        &["run", "--memory", "5"],
        &["run", "--halt", "later"],
        &["run", "--input", "/nowhere/list"],
        &["run", "--", ":::", "x"],
        &["run", "--", "no-such-command", ":::", "x"],
        &["run", "--", "/etc/passwd", ":::", "x"],
        &["compare", "--procs", "0"],
        &["timeline", "/nowhere/trace"],
    ];
    let mut pages = String::new();
    for arguments in cases {
        let _ = write!(pages, "$ procpool {}\n{}\n", arguments.join(" "), page(&run(arguments)));
    }
    assert_page!("errors", pages);
}

#[test]
fn rows_of_a_task() {
    let run =
        |format| page(&run(&["run", "--summary", "-p1", "--format", format, "3", "four", "5"]));
    assert_page!("task-table", run("table"));
    assert_page!("task-json", run("json"));
    assert_page!("task-csv", run("csv"));
}

#[test]
fn rows_of_a_command() {
    let run = |format| {
        let mut arguments = vec!["run", "--summary", "-p1", "--keep-order", "--format", format];
        arguments.extend(["--", "sh"]);
        arguments.extend([
            "-c",
            "sleep .02; echo out; echo err >&2; test $0 -lt 9 || kill -$0 $$; exit $0",
            ":::",
            "0",
            "3",
            "15",
        ]);
        page(&run(&arguments))
    };
    assert_page!("command-plain", run("plain"));
    assert_page!("command-table", run("table"));
    assert_page!("command-json", run("json"));
    assert_page!("command-csv", run("csv"));
}

#[test]
fn exit_codes() {
    let code = |arguments: &[&str]| run(arguments).code.unwrap();
    assert_eq!(code(&["run", "-q", "--", "true", ":::", "x"]), 0);
    assert_eq!(code(&["run", "-q", "--", "false", ":::", "x", "y"]), 1);
    assert_eq!(code(&["run", "-q", "--exit-count", "--", "false", ":::", "x", "y"]), 2);
    assert_eq!(code(&["run", "--"]), 0, "the same as without --: the default task");
    assert_eq!(code(&["run", "--no-such-option"]), 2);
    assert_eq!(code(&["run", "--", "/etc", ":::", "x"]), 126);
    assert_eq!(code(&["run", "--", "no-such-command", ":::", "x"]), 127);
    assert_eq!(run_with_input(&["run", "-q", "--", "true"], b"").code, Some(0), "nothing to do");
}

#[test]
fn colors_are_for_terminals_and_for_who_asks() {
    let red = |arguments: &[&str]| run(arguments).stderr.contains("\x1b[");
    let fails = ["--", "false", ":::", "x"];
    assert!(!red(&[&["run"], &fails[..]].concat()));
    assert!(red(&[&["run", "--color", "always"], &fails[..]].concat()));
    assert!(red(&["run", "--color=always", "--no-such-option"]));
    assert!(!red(&["run", "--color=never", "--no-such-option"]));
}

#[test]
fn completions_and_the_manual_know_every_option() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = run(&["completions", shell]);
        assert_eq!(ended.code, Some(0));
        assert!(ended.text().contains("retry-failed"), "{shell}");
    }
    let man = run(&["man", "run"]);
    assert!(man.text().contains(".TH") && man.text().contains("retry\\-failed"), "{man:?}");
    assert!(run(&["man"]).text().contains("procpool\\-run"));
    for section in ["\"INPUTS\"", "\"EXIT STATUS\"", "\"EXAMPLES\"", "\"SEE ALSO\""] {
        assert!(man.text().contains(&format!(".SH {section}\n")), "{section}: {man:?}");
    }
    // The table of {} keeps its lines, and so does each example.
    let lines: Vec<_> = man.text().lines().collect();
    let table = lines.iter().position(|line| line.starts_with("{}  is the input")).unwrap();
    assert_eq!((lines[table - 1], lines[table + 8]), (".nf", ".fi"), "{:?}", &lines[table..]);
    assert!(lines.contains(&r"procpool run \-\-procs 4"), "{man:?}");
    let zsh = run(&["completions", "zsh"]);
    for option in ["--halt", "--timeout"] {
        let file = format!("'{option}=[");
        let line = zsh.text().lines().find(|line| line.contains(&file)).unwrap();
        assert!(!line.contains("_files") && !line.contains("_default"), "{line}");
    }
    assert_eq!(run(&["man", "walk"]).code, Some(2));
}

/// What this shell completes with our completions, a line each; none where it isn't installed.
fn completed(shell: &str, options: &[&str], script: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ours"), run(&["completions", shell]).stdout).unwrap();
    let mut command = Command::new(shell);
    command.args(options).args(["-c", script]).current_dir(dir.path()).env("HOME", dir.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    match command.spawn() {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        child => Some(wait(child.unwrap()).text().to_owned()),
    }
}

#[test]
fn what_stands_after_the_dashes_is_completed_as_a_command_of_its_own() {
    let bash = |before: &str, words: &str| {
        let script = format!(
            "{before}; . ./ours; complete -W 'first second' tool; COMP_WORDS=({words}); \
             COMP_LINE='{words}'; COMP_POINT=${{#COMP_LINE}}; COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); \
             _procpool_or_command procpool; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        completed("bash", &["--norc"], &script).unwrap_or_default()
    };
    let has = |shown: &str, line: &str| shown.lines().any(|it| it.trim() == line);
    let is_there = !bash("", "procpool run --hal").is_empty();
    assert!(!is_there || has(&bash("", "procpool run --hal"), "--halt"), "options");
    for before in ["", ". /usr/share/bash-completion/bash_completion 2> /dev/null"] {
        let shown = bash(before, "procpool run -p 3 -- printen");
        assert!(!is_there || has(&shown, "printenv"), "{before}: {shown}");
        let shown = bash(before, "procpool run -- tool ::: f");
        assert!(!is_there || shown.trim().is_empty(), "inputs are files, the default: {shown}");
    }
    if is_there && Path::new("/usr/share/bash-completion/bash_completion").exists() {
        let shown = bash(". /usr/share/bash-completion/bash_completion", "procpool run -- tool f");
        assert!(has(&shown, "first") && !has(&shown, "second"), "{shown}");
    }

    let fish = "source ours; complete -c tool -f -a 'first second'; complete -C";
    for (words, line) in [
        ("run --hal", "--halt"),
        ("run -p 3 -- printen", "printenv"),
        ("run -- tool f", "first"),
        ("run -- tool x f", "first"),
    ] {
        let shown = completed("fish", &["-N"], &format!("{fish} 'procpool {words}'"));
        let shown = shown.unwrap_or_else(|| line.to_owned());
        let begins = |it: &str| it.split('\t').next() == Some(line);
        assert!(shown.lines().any(begins), "fish: {words}: {shown}");
    }

    // What is typed into a real one, as zsh completes nothing else.
    let zsh = "zmodload zsh/zpty; zpty it zsh -f -i; zpty -w it 'PS1=; autoload -U compinit; \
               compinit -D; . ./ours; _tool() { compadd first second }; compdef _tool tool'; \
               zpty -w it $'echo re\\'\\'ady'; zpty -r it shown '*ready*'; \
               zpty -w -n it $'procpool run -p 3 -- tool fi\\t'; zpty -r it shown '*tool first*'; \
               echo $shown";
    let shown = completed("zsh", &["-f"], zsh).unwrap_or_else(|| "tool first".to_owned());
    assert!(shown.contains("tool first"), "zsh: {shown}");
}
