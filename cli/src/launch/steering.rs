//! Signals of a supervised run: passed on to the run, and, if that does not help, the end of everything.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGSTOP, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use super::link::Voice;
use crate::exit::Exit;
use crate::interrupt;

/// How long a run may take to end after the second signal: somewhat longer than it allows itself.
const END_LIMIT: Duration = Duration::from_secs(6);

/// The recipients of signals.
#[derive(Clone)]
pub(super) struct Steering(Arc<Mutex<Steered>>);

#[derive(Default)]
pub(super) struct Steered {
    /// The process of the run.
    pub(super) run: Option<Arc<OwnedFd>>,
    /// What it takes signals from that end it.
    pub(super) voice: Option<Voice>,
    /// The process group of the launcher.
    pub(super) group: Option<Pid>,
    signals: u32,
    /// How the last signal ends the run.
    pub(super) exit: Option<Exit>,
    pub(super) dir: PathBuf,
}

impl Steering {
    /// Passes signals on to the run, on a thread of its own.
    pub(super) fn watch(dir: PathBuf) -> Result<Self> {
        let steering = Self(Arc::new(Mutex::new(Steered { dir, ..Steered::default() })));
        let ignored = interrupt::ignored();
        let wanted = [SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGUSR1, SIGUSR2];
        let wanted = wanted.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
        let mut signals = Signals::new(wanted).context("failed to catch signals")?;
        let watched = steering.clone();
        let watch = move || {
            for signal in signals.forever() {
                match interrupt::ending(signal) {
                    Some(exit) => watched.end(signal, exit),
                    // The run says that its number of workers stays.
                    None if signal == SIGUSR1 => watched.tell(Signal::USR1),
                    None if signal == SIGUSR2 => watched.tell(Signal::USR2),
                    None => watched.pause(),
                }
            }
        };
        let thread = thread::Builder::new().name("signals".into());
        thread.spawn(watch).context("failed to start a thread")?;
        Ok(steering)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Steered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, signal: i32, exit: Exit) {
        let mut steered = self.lock();
        steered.signals += 1;
        steered.exit = Some(exit);
        match (&steered.run, steered.signals) {
            (Some(_), 1 | 2) => {
                if let Some(voice) = &steered.voice {
                    voice.pass_on(signal);
                }
            }
            // The main thread waits for the launcher.
            (None, 1) => steered.signal_group(Signal::TERM),
            _ => steered.leave(exit),
        }
        if steered.signals == 2 {
            let steering = self.clone();
            let ender = thread::Builder::new().name("end".into()).spawn(move || {
                thread::sleep(END_LIMIT);
                steering.lock().leave(exit);
            });
            if ender.is_err() {
                steered.leave(exit);
            }
        }
    }

    /// Stops the workers and this process. The run itself goes on: silent hosts are lost hosts.
    fn pause(&self) {
        self.tell(Signal::TSTP);
        let _ = low_level::raise(SIGSTOP); // has returned when the process goes on
        self.tell(Signal::CONT);
    }

    /// Sends the run a signal.
    fn tell(&self, signal: Signal) {
        let run = self.lock().run.clone();
        let _ = run.map(|run| pidfd_send_signal(run, signal)); // it may just have ended
    }
}

impl Steered {
    pub(super) fn signal_group(&self, signal: Signal) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, signal); // it may have ended
        }
    }

    /// Ends everything at once.
    fn leave(&self, exit: Exit) -> ! {
        self.signal_group(Signal::KILL);
        if let Some(run) = &self.run {
            let _ = pidfd_send_signal(run, Signal::KILL);
        }
        let _ = fs::remove_dir_all(&self.dir);
        low_level::exit(exit.code().into())
    }
}
