//! `--termseq`: the signals for a job that is over its time limit.

use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

/// How long a job may take to end after SIGTERM, unless it is set.
const GRACE: u64 = 500;

/// Signals in the order in which a job gets them, each with the time until the next. SIGKILL is the last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SignalSequence(Vec<(i32, u64)>);

impl Default for SignalSequence {
    fn default() -> Self {
        Self(vec![(libc::SIGTERM, GRACE), (libc::SIGKILL, GRACE)])
    }
}

impl SignalSequence {
    /// Parses names or numbers of signals, and milliseconds between them: `TERM,200,KILL`.
    ///
    /// # Errors
    ///
    /// If it is something else, or does not end with SIGKILL, which alone ends every job.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "use signals and milliseconds in turn, with KILL at the end: \
                            TERM,500,KILL or INT,1000,TERM,200,KILL";
        let words: Vec<&str> = text.split(',').map(str::trim).collect();
        let steps = words.chunks(2).map(|step| {
            let pause = step.get(1).map_or(Some(GRACE), |pause| pause.parse().ok());
            Some((number(step[0])?, pause?))
        });
        let steps: Vec<_> = steps.collect::<Option<_>>().ok_or(FORM)?;
        match steps.last() {
            Some((libc::SIGKILL, _)) => Ok(Self(steps)),
            _ => Err(FORM.to_owned()),
        }
    }

    /// Returns the signal of a step, and how long to wait for the job's end then. The last step is
    /// repeated.
    pub(super) fn step(&self, step: usize) -> (Signal, Duration) {
        let last = (libc::SIGKILL, GRACE);
        let (number, pause) = *self.0.get(step).unwrap_or(&last);
        let signal = Signal::from_named_raw(number).unwrap_or(Signal::KILL);
        (signal, Duration::from_millis(pause.max(1)))
    }
}

/// Returns the number of a signal that ends or asks a process: `TERM`, `SIGTERM` or `15`.
fn number(name: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 9] = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ABRT", libc::SIGABRT),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
    ];
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let is_it = |known: &&(&str, i32)| known.0 == short || known.1.to_string() == short;
    NAMES.iter().find(is_it).map(|known| known.1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn signals_and_pauses_come_in_turn_and_the_last_is_repeated() {
        let sequence = SignalSequence::parse("INT,1000, sigterm ,200,9").unwrap();
        let millis = Duration::from_millis;
        assert_eq!(sequence.step(0), (Signal::INT, millis(1000)));
        assert_eq!(sequence.step(1), (Signal::TERM, millis(200)));
        assert_eq!(sequence.step(2), (Signal::KILL, millis(500)));
        assert_eq!(sequence.step(9), (Signal::KILL, millis(500)));
        assert_eq!(SignalSequence::default(), SignalSequence::parse("TERM,500,KILL,500").unwrap());
    }

    #[test]
    fn what_would_not_end_every_job_is_refused() {
        for text in ["", "TERM", "TERM,100", "TERM,x,KILL", "FOO,1,KILL", "KILL,1,TERM", "500,KILL"]
        {
            assert!(SignalSequence::parse(text).unwrap_err().contains("KILL"), "{text}");
        }
    }
}
