//! `procpool isolate`: the wall, shown to somebody who doubts it.
//!
//! In each case eight healthy tasks are under way when a ninth one goes wrong. It happens twice: in
//! a pool of worker processes, and, for comparison, in a process of threads that is started for it.
//! Nothing is known beforehand: whatever is shown was seen, and a case is contained if the answers
//! and the state of the neighbours say so.
//!
//! | file | owns |
//! |---|---|
//! | `cases` | what can go wrong, and doing it |
//! | `scene` | how those who take part know of each other, across threads and processes |
//! | `neighbour` | the healthy task, and what of its surroundings it would notice |
//! | `processes` | the act in a pool |
//! | `threads` | the act among threads: the child process, and who watches it |
//! | `report` | what is shown |

use anyhow::{Context, Result};

use super::args::IsolateArgs;
use super::exit::Exit;

#[allow(unsafe_code)] // Its tasks crash on purpose.
pub(super) mod cases;
mod neighbour;
mod processes;
mod report;
mod scene;
mod threads;

use cases::Case;

pub(super) fn run(args: IsolateArgs) -> Result<Exit> {
    if let (Some(scene), [case, ..]) = (&args.threads_child, args.case.as_slice()) {
        return threads::act(*case, scene);
    }
    let cases = if args.case.is_empty() { Case::all() } else { args.case };
    let mut report = report::Report::begin(args.format)?;
    for case in cases {
        let processes = processes::watch(case)
            .with_context(|| format!("failed to show the case '{}' in a pool", case.name()))?;
        let threads = threads::watch(case)
            .with_context(|| format!("failed to show the case '{}' among threads", case.name()))?;
        report.show(case, &processes, &threads)?;
    }
    report.end()
}
