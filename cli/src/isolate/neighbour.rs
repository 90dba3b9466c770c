//! The healthy task: it works, has all go wrong beside it, works on, and looks around whether
//! anything that it relies on has changed.

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
use super::scene::Scene;

/// The longest that anybody waits for the others, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Steps of each half of the work.
const STEPS: u64 = 100_000;

/// What a healthy task answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) neighbour: usize,
    pub(super) value: u64,
    /// What had changed around it.
    pub(super) changed: Vec<String>,
}

impl Answer {
    pub(super) fn is_right(&self) -> bool {
        self.value == value(self.neighbour)
    }
}

/// The healthy task.
pub(super) fn healthy((scene, neighbour): (Scene, usize)) -> Answer {
    let surroundings = Surroundings::look();
    let half = work(neighbour as u64 + 1);
    scene.set_ready(neighbour);
    scene.wait_over(PATIENCE);
    Answer { neighbour, value: work(half), changed: surroundings.changes() }
}

/// The answer that it should give.
fn value(neighbour: usize) -> u64 {
    work(work(neighbour as u64 + 1))
}

/// The task that goes wrong. If it returns, it tells what it has changed around itself.
pub(super) fn sick((scene, case): (Scene, Case)) -> Vec<String> {
    let surroundings = Surroundings::look();
    scene.wait_ready(PATIENCE);
    scene.set_acting();
    case.act();
    surroundings.changes()
}

/// Numbers that can't be guessed (xorshift).
fn work(seed: u64) -> u64 {
    (0..STEPS).fold(seed, |x, _| {
        let x = x ^ (x << 13);
        let x = x ^ (x >> 7);
        x ^ (x << 17)
    })
}

/// What a task relies on.
pub(super) struct Surroundings {
    global: u64,
    directory: io::Result<PathBuf>,
    /// A file that it has open. It is never closed: somebody else may have done so, and another file
    /// may have its number.
    file: io::Result<ManuallyDrop<File>>,
}

/// A file that every process can read.
const FILE: &str = "/proc/self/exe";

impl Surroundings {
    pub(super) fn look() -> Self {
        Self {
            global: GLOBAL.load(Ordering::SeqCst),
            directory: env::current_dir(),
            file: File::open(FILE).map(ManuallyDrop::new),
        }
    }

    /// What is no longer as it was.
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
    fn neighbours_have_answers_of_their_own() {
        let answers: std::collections::HashSet<u64> = (0..8).map(value).collect();
        assert_eq!(answers.len(), 8);
    }
}
