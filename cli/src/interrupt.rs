//! Handles the signals that end, stop or continue a run.
//!
//! The first SIGINT (Ctrl-C), SIGTERM or SIGHUP is an event of the run, which then finishes the
//! jobs it has started. The second one kills running jobs: they get SIGTERM, and SIGKILL half a
//! second later. The run then ends within seconds whatever its state, by this thread if necessary.
//! The third one ends the process at once; the workers die with their parent. Stopping is
//! different: each worker is in a process group of its own, where Ctrl-Z does not reach it, so
//! workers are stopped here. If the run spans hosts, its own process goes on, since the other hosts
//! would take a silent one for lost, and continues the workers at SIGCONT. SIGUSR1 and SIGUSR2 change
//! the number of workers.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result};
use rustix::process::Signal;
use signal_hook::consts::{
    SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGSTOP, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use super::collect::{Event, Events};
use super::control::Change;
use super::exit::Exit;
use super::launch::link::is_ordered;
use super::top;
use crate::os::program;
use procpool::Pool;

/// How long workers may take to stop before this process stops itself.
const STOPPING: Duration = Duration::from_millis(500);

/// How long a job may take to end after SIGTERM.
const GRACE: Duration = Duration::from_millis(500);

/// How long a run may take to end after the second signal.
const ENDING: Duration = Duration::from_secs(4);

/// Catches the signals, for the life of the process. They wait for [`watch`], so that no moment is
/// left in which workers run and a signal ends the process without a word.
pub(super) fn catch(spans_hosts: bool) -> Result<Signals> {
    // Signals that were ignored at the start stay ignored, as with `nohup`.
    let ignored = ignored();
    let wanted = [SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGQUIT, SIGUSR1, SIGUSR2];
    let wanted = wanted.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
    let wanted = wanted.chain(spans_hosts.then_some(SIGCONT));
    Signals::new(wanted).context("failed to catch signals")
}

/// Handles the signals that were caught on a thread of its own, for the life of the process.
pub(super) fn watch(
    mut signals: Signals,
    events: Arc<Events>,
    pool: Pool,
    is_command: bool,
    spans_hosts: bool,
) -> Result<()> {
    let watch = move || {
        let mut interrupted = 0;
        for signal in signals.forever() {
            match ending(signal) {
                None if signal == SIGQUIT => {
                    top::leave_alternate_screen();
                    // As if the signal were not caught.
                    let _ = low_level::emulate_default_handler(SIGQUIT);
                }
                None if signal == SIGCONT => pool.resume(),
                None if signal == SIGUSR1 => {
                    events.send_over_capacity(Event::Changed(Change::More));
                }
                None if signal == SIGUSR2 => {
                    events.send_over_capacity(Event::Changed(Change::Fewer));
                }
                None if spans_hosts => pool.suspend(),
                None => pause(&pool),
                Some(exit) => {
                    if !is_ordered() {
                        // The launcher kills it within a second. The supervisor starts it again.
                        leave(Exit::EngineLost);
                    }
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

/// Kills running jobs on a thread of its own: SIGTERM first, so that they can clean up, and SIGKILL
/// later. Then terminates the pool.
pub(super) fn end_jobs(pool: &Pool, is_command: bool) -> io::Result<thread::JoinHandle<()>> {
    let pool = pool.clone();
    thread::Builder::new().name("jobs".into()).spawn(move || {
        let begun = Instant::now();
        let (mut asked, mut killed) = (HashSet::new(), HashSet::new());
        // The work of a built-in task is in the worker itself.
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

/// Returns the exit of a run that is ended by this signal.
pub(super) fn ending(signal: i32) -> Option<Exit> {
    match signal {
        SIGINT => Some(Exit::Interrupted),
        SIGTERM => Some(Exit::Terminated),
        SIGHUP => Some(Exit::HungUp),
        _ => None,
    }
}

/// Stops the workers and this process, until SIGCONT.
fn pause(pool: &Pool) {
    pool.suspend();
    // A thread of this process stops the workers, so the process must not stop first.
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
    let _ = low_level::raise(SIGSTOP); // returns when the process continues
    if was_taken {
        top::enter_alternate_screen();
    }
    pool.resume();
}

/// Whether the process exists and is not stopped.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may contain any character, so the search starts at the end.
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| !"TtZX".contains(state))
}

/// Returns the ignored signals, one bit each.
pub(super) fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
