//! The healthy task: works, waits for the fault, works on, and checks its environment for changes.

use std::env;
use std::fs::{self, File};
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cases::{Case, GLOBAL};
use super::rendezvous::Rendezvous;

/// How long tasks wait for each other at most, on a slow machine.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Steps in each half of the work.
const STEPS: u64 = 100_000;

/// The result of a healthy task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) bystander: usize,
    pub(super) value: u64,
    /// Changes in its environment.
    pub(super) changed: Vec<String>,
}

impl Answer {
    pub(super) fn is_right(&self) -> bool {
        self.value == value(self.bystander)
    }
}

/// The healthy task.
pub(super) fn healthy((rendezvous, bystander): (Rendezvous, usize)) -> Answer {
    let environment = Environment::observe();
    let half = work(bystander as u64 + 1);
    rendezvous.set_ready(bystander);
    rendezvous.wait_over(TIMEOUT);
    Answer { bystander, value: work(half), changed: environment.changes() }
}

/// Returns the correct result.
fn value(bystander: usize) -> u64 {
    work(work(bystander as u64 + 1))
}

/// The failing task. If it returns, the result lists the changes that it made.
pub(super) fn failing((rendezvous, case): (Rendezvous, Case)) -> Vec<String> {
    let environment = Environment::observe();
    rendezvous.wait_ready(TIMEOUT);
    rendezvous.set_acting();
    case.act();
    environment.changes()
}

/// Computes numbers that cannot be guessed (xorshift).
fn work(seed: u64) -> u64 {
    (0..STEPS).fold(seed, |x, _| {
        let x = x ^ (x << 13);
        let x = x ^ (x >> 7);
        x ^ (x << 17)
    })
}

/// The state that a task relies on.
pub(super) struct Environment {
    global: u64,
    directory: io::Result<PathBuf>,
    /// An open file. Never closed: another task may have closed it, and its number may belong to
    /// another file.
    file: io::Result<ManuallyDrop<File>>,
}

/// A file that every process may read.
const FILE: &str = "/proc/self/exe";

impl Environment {
    pub(super) fn observe() -> Self {
        Self {
            global: GLOBAL.load(Ordering::SeqCst),
            directory: env::current_dir(),
            file: File::open(FILE).map(ManuallyDrop::new),
        }
    }

    /// Returns what has changed.
    pub(super) fn changes(&self) -> Vec<String> {
        let mut changes = Vec::new();
        let global = GLOBAL.load(Ordering::SeqCst);
        if global != self.global {
            changes.push(format!("the global went from {} to {global}", self.global));
        }
        if let (Ok(before), Ok(now)) = (&self.directory, env::current_dir())
            && *before != now
        {
            changes.push(format!("the directory became {}", now.display()));
        }
        if let Ok(file) = &self.file {
            let is_same = file.metadata().and_then(|mine| {
                file.read_exact_at(&mut [0; 4], 0)?;
                let named = fs::metadata(FILE)?;
                Ok((mine.dev(), mine.ino()) == (named.dev(), named.ino()))
            });
            match is_same {
                Ok(true) => {}
                Ok(false) => changes.push("the open file became another".to_owned()),
                Err(_) => changes.push("the open file was closed".to_owned()),
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bystanders_have_answers_of_their_own() {
        let answers: std::collections::HashSet<u64> = (0..8).map(value).collect();
        assert_eq!(answers.len(), 8);
    }
}
