//! Each row of docs/from-parallel.md that says "same" is run in both: what they print is compared byte by byte,
//! and so are the exit codes.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whether Debian's `parallel` and a shell are there, which this test is not without.
fn has_parallel() -> bool {
    let found = Command::new("parallel").arg("--version").output();
    let is_there = found.is_ok_and(|output| output.stdout.starts_with(b"GNU parallel"));
    assert!(
        is_there || std::env::var_os("PROCPOOL_TEST_PARALLEL").is_none(),
        "GNU parallel is not installed (Debian: apt-get install parallel)"
    );
    is_there
}

/// A row that says "same": what it is about, and the two command lines.
#[derive(Debug)]
struct Row {
    what: String,
    other: String,
    ours: String,
}

fn rows() -> Vec<Row> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/from-parallel.md");
    let text = fs::read_to_string(page).unwrap();
    let cells = |line: &str| -> Option<Row> {
        // A pipe within a cell is escaped.
        let line = line.replace("\\|", "\u{1}");
        let cells: Vec<_> = line.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect();
        let [_, what, other, ours, same, _] = cells.as_slice() else { return None };
        let is_same = same == "same" || same.starts_with("same;");
        let code = |cell: &str| Some(cell.strip_prefix('`')?.strip_suffix('`')?.to_owned());
        is_same.then_some(())?;
        let (other, ours) = (code(other).unwrap(), code(ours).unwrap());
        Some(Row { what: what.clone(), other, ours })
    };
    text.lines().filter_map(cells).collect()
}

/// Runs a line in a directory with the page's files. Returns its standard output, standard error and exit code.
fn run(line: &str, dir: &Path) -> (String, String, Option<i32>) {
    for (name, text) in [
        ("a.txt", ""),
        ("b.txt", ""),
        ("c.tar.gz", ""),
        ("words", "one\ntwo three\nfour\n"),
        ("pairs", "x\t1\ny\t2\n"),
        ("table.csv", "name,size\na,1\nb,2\n"),
        ("quoted.csv", "\"a, b\",1\nc,\"2 \"\"3\"\"\"\n"),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
    let programs = Path::new(env!("CARGO_BIN_EXE_procpool")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir(dir).env("PATH", path).env("HOME", dir);
    shell.env("PARALLEL_SHELL", "/bin/sh").env_remove("PROCPOOL_PROCS");
    // GNU parallel takes standard input for inputs, as far as nothing else is given.
    shell.stdin(Stdio::null()).process_group(0);
    let output = shell.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

#[test]
fn what_is_said_to_be_the_same_prints_the_same_bytes() {
    if !has_parallel() {
        eprintln!("left out: GNU parallel is not installed");
        return;
    }
    let rows = rows();
    assert!(rows.len() > 40, "{}", rows.len());
    let mut differing = Vec::new();
    for Row { what, other, ours } in &rows {
        let dir = tempfile::tempdir().unwrap();
        let (theirs, their_errors, their_code) = run(other, dir.path());
        let (printed, errors, code) = run(ours, dir.path());
        // With -t, the commands are on standard error.
        let is_verbose = ours.contains(" -t ");
        if printed != theirs || code != their_code || (is_verbose && errors != their_errors) {
            differing.push(format!(
                "{what}\n  {other}\n    {their_code:?} {theirs:?} {their_errors:?}\n  {ours}\n    {code:?} {printed:?} {errors:?}"
            ));
        }
    }
    assert!(
        differing.is_empty(),
        "{} of {} rows:\n{}",
        differing.len(),
        rows.len(),
        differing.join("\n")
    );
}
