//! The signals of whoever watches a run: end it, stop it for a while, let it go on.
//!
//! The first SIGINT (Ctrl-C), SIGTERM or SIGHUP is an event of the run, which then finishes what it
//! has begun; the second one, of whatever kind, ends the process at once. The workers need no
//! telling then: they die with their parent. They do need it when they are to stop: each is in a
//! process group of its own, where Ctrl-Z doesn't reach it.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGSTOP, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use super::collect::{Event, Events};
use super::exit::Exit;
use super::top;
use crate::Pool;

/// How long workers may take to stop before this process does so itself.
const STOPPING: Duration = Duration::from_millis(500);

/// Watches for them from a thread of its own, for as long as the process lives.
pub(super) fn watch(events: Arc<Events>, pool: Pool) -> Result<()> {
    // What was ignored when the process started is to be ignored, as `nohup` has it.
    let ignored = ignored();
    let wanted = [SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGQUIT];
    let wanted = wanted.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
    let mut signals = Signals::new(wanted).context("failed to catch signals")?;
    let watch = move || {
        let mut interrupted = false;
        for signal in signals.forever() {
            match ending(signal) {
                None if signal == SIGQUIT => {
                    top::give_back();
                    // As if it weren't caught.
                    let _ = low_level::emulate_default_handler(SIGQUIT);
                }
                None => pause(&pool),
                Some(exit) if interrupted => {
                    top::give_back();
                    std::process::exit(exit.code().into());
                }
                Some(exit) => {
                    interrupted = true;
                    events.put_at_once(Event::Interrupted(exit));
                }
            }
        }
    };
    let watcher = thread::Builder::new().name("signals".into());
    watcher.spawn(watch).context("failed to start a thread")?;
    Ok(())
}

/// How a run that is ended by this signal ends.
fn ending(signal: i32) -> Option<Exit> {
    match signal {
        SIGINT => Some(Exit::Interrupted),
        SIGTERM => Some(Exit::Terminated),
        SIGHUP => Some(Exit::HungUp),
        _ => None,
    }
}

/// Stops the workers and this process, until somebody lets it go on.
fn pause(pool: &Pool) {
    pool.suspend();
    // What stops them is a thread of this process, which must not stop before they have.
    let deadline = Instant::now() + STOPPING;
    let mut workers = pool.workers();
    while Instant::now() < deadline {
        workers.retain(|worker| runs(worker.pid));
        if workers.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let was_taken = top::give_back();
    let _ = low_level::raise(SIGSTOP); // has returned when the process goes on
    if was_taken {
        top::take_over();
    }
    pool.resume();
}

/// Whether there is such a process and it isn't stopped.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may have any characters, so it's looked for from the end.
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| !"TtZX".contains(state))
}

/// The signals that are ignored, a bit each.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
