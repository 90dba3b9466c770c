//! `procpool isolate`: shows that a fault in one task does not reach the others.
//!
//! Each case runs eight healthy tasks beside one that fails. It runs twice: in a pool of worker
//! processes, and, for comparison, among threads in a child process. Every line of the report is
//! observed. A case is contained if the results and the state of the bystanders prove it.
//!
//! | file | owns |
//! |---|---|
//! | `cases` | the faults |
//! | `rendezvous` | how the tasks synchronise, across threads and processes |
//! | `bystander` | the healthy task, and the part of its environment that it checks |
//! | `processes` | a case in a pool |
//! | `threads` | a case among threads: the child process and its observer |
//! | `report` | the report |
//! | `hostile` | `--hostile`: attacks of a worker, without a sandbox and in one |

use anyhow::{Context, Result};

use super::args::IsolateArgs;
use super::exit::Exit;
use super::report::Target;

mod bystander;
#[allow(unsafe_code)] // Its tasks crash on purpose.
pub(super) mod cases;
#[allow(unsafe_code)] // Its tasks attack.
mod hostile;
mod processes;
mod rendezvous;
mod report;
mod threads;

use cases::Case;

pub(super) fn run(args: IsolateArgs) -> Result<Exit> {
    if let (Some(rendezvous), [case, ..]) = (&args.threads_child, args.case.as_slice()) {
        return threads::act(*case, rendezvous);
    }
    if args.hostile {
        let target = args.report.as_deref().map(Target::open).transpose()?;
        return hostile::run(args.format, target);
    }
    let cases = if args.case.is_empty() { Case::all() } else { args.case };
    let target = args.report.as_deref().map(Target::open).transpose()?;
    let mut report = report::Report::begin(args.format)?;
    for case in cases {
        let processes = processes::watch(case)
            .with_context(|| format!("failed to show the case '{}' in a pool", case.name()))?;
        let threads = threads::watch(case)
            .with_context(|| format!("failed to show the case '{}' among threads", case.name()))?;
        report.show(case, &processes, &threads)?;
    }
    if let Some(target) = target {
        report.document().write(target)?;
    }
    report.end()
}
