//! The cases of the matrix with procpool: `matrix CASE`, or `matrix version`. `peers/cases.py` has
//! the same for the Python pools, and `run.py` starts both.
//!
//! A case prints its observations, one JSON object per line, and judges nothing.

#[path = "procpool/cases.rs"]
mod cases;
#[path = "procpool/facts.rs"]
mod facts;
#[path = "procpool/lives.rs"]
mod lives;
#[path = "procpool/tasks.rs"]
mod tasks;

use std::process::ExitCode;

fn main() -> ExitCode {
    procpool::init();
    let case = std::env::args().nth(1).unwrap_or_default();
    let done = match case.as_str() {
        "version" => {
            println!("{}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        "sigkill" => cases::one_bad(tasks::kill_self, 0),
        "exit" => cases::one_bad(tasks::exit_zero, 0),
        "argument" => cases::one_bad(tasks::ignore, tasks::Picky::new()),
        "result" => cases::one_bad(tasks::make_picky, 0),
        "idle-killed" => cases::idle_killed(),
        "killed-while-sent" => cases::killed_while_sent(),
        "initializer" => cases::initializer(),
        "callback" => cases::callback(),
        "lazy" => cases::lazy(),
        "limit" => cases::limit(),
        "terminated" => lives::terminated(),
        "stopped" => lives::stopped(),
        "grandchild" => lives::grandchild(),
        "parent-killed" => lives::parent_killed(),
        "interrupted" => lives::interrupted(),
        _ => {
            eprintln!("there is no case `{case}`");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = done {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
