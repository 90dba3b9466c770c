//! `run --sandbox`: jobs reach what is named, and nothing else.

use std::fs;
use std::net::TcpListener;

use crate::support::{Terminal, run};

#[test]
fn a_command_reads_and_writes_only_where_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("in")).unwrap();
    fs::create_dir(path("out")).unwrap();
    fs::write(path("in/a"), "alpha\n").unwrap();
    fs::write(path("secret"), "secret\n").unwrap();
    let (input, output) = (path("in"), path("out"));
    let sandbox = ["run", "-qk", "--sandbox", "--read", &input, "--write", &output, "--"];
    let confined = |command: &[&str]| run(&[&sandbox[..], command].concat());
    let copied = confined(&["cp", "{}", &format!("{output}/{{/}}"), ":::", &path("in/a")]);
    assert_eq!(copied.code, Some(0), "{copied:?}");
    assert_eq!(fs::read_to_string(path("out/a")).unwrap(), "alpha\n");
    let refused = confined(&["cat", ":::", &path("secret"), &path("in/a")]);
    assert_eq!((refused.code, refused.text()), (Some(1), "alpha\n"), "{refused:?}");
    assert!(refused.stderr.contains("Permission denied"), "{refused:?}");
    let refused = confined(&["touch", ":::", &path("in/new")]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(!fs::exists(path("in/new")).unwrap());
    // Much output goes through a file, which the worker opens before it is confined.
    let long = confined(&["seq", ":::", "100000"]);
    assert_eq!(long.text().lines().count(), 100_000, "{:?}", long.stderr);
    let shell =
        run(&["run", "-q", "--sandbox", "--shell", "--", "echo {} | tr a-z A-Z", ":::", "a"]);
    assert_eq!((shell.code, shell.text()), (Some(0), "A\n"), "{shell:?}");
    // Limits need to find and kill the processes of a job.
    let limit = ["run", "-q", "--sandbox", "--timeout", "300ms", "--memory", "200M", "--"];
    let killed = run(&[&limit[..], &["sh", "-c", "sleep 100 & sleep 100", ":::", "a"]].concat());
    assert!(killed.stderr.contains("time limit"), "{killed:?}");
}

#[test]
fn a_job_writes_to_the_terminal_and_neither_reads_from_it_nor_sets_it() {
    let job = "stty -echo <&1; head -c1 <&1; stty -echo <&2; head -c1 <&2; echo done-$0";
    let terminal = Terminal::start(&format!(
        "run -q --sandbox --output inherit -- sh -c '{job}' ::: a; stty -a | grep -o '.echo '"
    ));
    terminal.wait_until("it ends", |shown| shown.contains("done-a") && shown.contains(" echo "));
    let (_, shown) = terminal.end();
    assert_eq!(shown.matches("Operation not permitted").count(), 2, "{shown}");
    assert_eq!(shown.matches("Bad file descriptor").count(), 2, "{shown}");
}

#[test]
fn the_network_is_there_for_those_who_ask() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let connect = "exec 3<>/dev/tcp/127.0.0.1/$0 && echo connected";
    let ports = format!("--net={port}");
    for (net, works) in [("--net", true), (ports.as_str(), true), ("--net=1", false), ("-q", false)]
    {
        let ended =
            run(&["run", "-q", "--sandbox", net, "--", "bash", "-c", connect, ":::", &port]);
        assert_eq!(ended.text() == "connected\n", works, "{net}: {ended:?}");
    }
    let wrong = run(&["run", "--sandbox", "--net=http", "--", "true", ":::", "a"]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
}

#[test]
fn a_built_in_task_is_confined_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text").to_str().unwrap().to_owned();
    fs::write(&file, "a b a\n").unwrap();
    let count = ["run", "--task", "wordcount", "--format", "json", "--sandbox"];
    let refused = run(&[&count[..], &[&file]].concat());
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.text().contains("Permission denied"), "{refused:?}");
    let dir = dir.path().to_str().unwrap();
    let counted = run(&[&count[..], &["--read", dir, &file]].concat());
    assert_eq!(counted.code, Some(0), "{counted:?}");
    let computed = run(&["run", "--sandbox", "--format", "csv", "--task", "pi", "--count", "4"]);
    assert_eq!(computed.code, Some(0), "{computed:?}");
    let without = run(&["run", "--read", dir, "--", "true", ":::", "a"]);
    assert_eq!(without.code, Some(2), "{without:?}");
    let missing = run(&["run", "--sandbox", "--read", "/no/such", "--", "true", ":::", "a"]);
    assert!(missing.stderr.contains("/no/such can't be opened"), "{missing:?}");
    assert_ne!(missing.code, Some(0));
}
