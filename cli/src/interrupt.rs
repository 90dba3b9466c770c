//! The signals of whoever watches a run: end it, stop it for a while, let it go on.
//!
//! The first SIGINT (Ctrl-C), SIGTERM or SIGHUP is an event of the run, which then finishes what it
//! has begun. The second one, of whatever kind, ends what runs: jobs are asked to end by SIGTERM and
//! killed half a second later, and the run ends within seconds whatever state it is in, by this
//! thread if need be. The third one ends the process at once; the workers need no telling then: they
//! die with their parent. They do need it when they are to stop: each is in a process group of its
//! own, where Ctrl-Z doesn't reach it.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result};
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGSTOP, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use super::collect::{Event, Events};
use super::exit::Exit;
use super::top;
use crate::os::program;
use procpool::Pool;

/// How long workers may take to stop before this process does so itself.
const STOPPING: Duration = Duration::from_millis(500);

/// How long a job that has been asked to end may take before it is made to.
const GRACE: Duration = Duration::from_millis(500);

/// How long a run may take to end after the second signal.
const ENDING: Duration = Duration::from_secs(4);

/// Watches for them from a thread of its own, for as long as the process lives.
pub(super) fn watch(events: Arc<Events>, pool: Pool, is_command: bool) -> Result<()> {
    // What was ignored when the process started is to be ignored, as `nohup` has it.
    let ignored = ignored();
    let wanted = [SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGQUIT];
    let wanted = wanted.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
    let mut signals = Signals::new(wanted).context("failed to catch signals")?;
    let watch = move || {
        let mut interrupted = 0;
        for signal in signals.forever() {
            match ending(signal) {
                None if signal == SIGQUIT => {
                    top::leave_alternate_screen();
                    // As if it weren't caught.
                    let _ = low_level::emulate_default_handler(SIGQUIT);
                }
                None => pause(&pool),
                Some(exit) => {
                    interrupted += 1;
                    if interrupted > 2 {
                        leave(exit);
                    }
                    events.send_over_capacity(Event::Interrupted(exit));
                    if interrupted == 2 {
                        let ender = thread::Builder::new().name("end".into());
                        let ended = ender.spawn(move || {
                            thread::sleep(ENDING);
                            leave(exit);
                        });
                        if end_jobs(&pool, is_command).and(ended).is_err() {
                            leave(exit);
                        }
                    }
                }
            }
        }
    };
    let watcher = thread::Builder::new().name("signals".into());
    watcher.spawn(watch).context("failed to start a thread")?;
    Ok(())
}

/// Ends the process, and with it the workers and their jobs.
fn leave(exit: Exit) -> ! {
    top::leave_alternate_screen();
    low_level::exit(exit.code().into())
}

/// Ends what runs, from a thread of its own: jobs are asked to by SIGTERM, so that they can clear up,
/// and killed if they take too long. Then the pool is at its end.
pub(super) fn end_jobs(pool: &Pool, is_command: bool) -> io::Result<thread::JoinHandle<()>> {
    let pool = pool.clone();
    thread::Builder::new().name("jobs".into()).spawn(move || {
        let begun = Instant::now();
        let (mut asked, mut killed) = (HashSet::new(), HashSet::new());
        // What a built-in task has begun is in the worker itself.
        while is_command && pool.stats().running > 0 && begun.elapsed() < 2 * GRACE {
            for worker in pool.workers().into_iter().filter(|worker| worker.pid != 0) {
                let late = begun.elapsed() >= GRACE;
                let (signal, known) =
                    if late { (Signal::KILL, &mut killed) } else { (Signal::TERM, &mut asked) };
                program::signal_descendants_of(worker.pid, signal, known);
            }
            thread::sleep(Duration::from_millis(10));
        }
        pool.terminate();
    })
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
    let was_taken = top::leave_alternate_screen();
    let _ = low_level::raise(SIGSTOP); // has returned when the process goes on
    if was_taken {
        top::enter_alternate_screen();
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
