//! `--log`: the events of the pool, one per line.
//!
//! Lines are written on the pool's event thread, so no task waits for them. A file receives JSON,
//! and standard error receives text.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use super::exit::Usage;
use super::numbers::{Numbering, Numbers};
use procpool::{Event, EventKind};

/// A log that is being written.
#[derive(Clone)]
pub(super) struct Log(Arc<Mutex<State>>);

struct State {
    to: To,
    numbering: Numbering,
    /// The first error. Nothing is written after it.
    error: Option<io::Error>,
}

enum To {
    /// JSON.
    File(BufWriter<File>, PathBuf),
    /// Text for people.
    Stderr,
}

impl Log {
    /// Creates or truncates a file.
    pub(super) fn create(path: &Path, numbers: Numbers) -> Result<Self> {
        let file = File::create(path).map_err(|error| {
            Usage::error(format!("failed to write the log to {path:?}: {error}; check --log"))
        })?;
        Ok(Self::new(To::File(BufWriter::new(file), path.to_owned()), numbers))
    }

    /// Logs to standard error.
    pub(super) fn to_stderr(numbers: Numbers) -> Self {
        Self::new(To::Stderr, numbers)
    }

    fn new(to: To, numbers: Numbers) -> Self {
        let numbering = Numbering::new(numbers);
        Self(Arc::new(Mutex::new(State { to, numbering, error: None })))
    }

    pub(super) fn write(&self, event: &Event) {
        let mut state = self.state();
        if state.error.is_some() {
            return;
        }
        let event = state.numbering.of(event);
        let file = match &mut state.to {
            To::File(file, _) => file,
            To::Stderr => {
                // In one write, and not with `eprintln!`, which panics if standard error is closed.
                let _ = io::stderr().write_all(format!("{event}\n").as_bytes());
                return;
            }
        };
        let written = line(&event).and_then(|line| {
            file.write_all(&line)?;
            // Rare events are flushed at once, for those who follow the file.
            match event.kind {
                EventKind::Assigned { .. } | EventKind::Finished { .. } => Ok(()),
                _ => file.flush(),
            }
        });
        state.error = written.err();
    }

    /// Flushes the log, and returns the first error.
    pub(super) fn close(&self) -> Result<(), String> {
        let State { to, error, .. } = &mut *self.state();
        let To::File(file, path) = to else { return Ok(()) };
        let flushed = file.flush();
        match error.take().or(flushed.err()) {
            None => Ok(()),
            Some(error) => Err(format!("failed to write the log to {path:?}: {error}")),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Formats an event as a line of JSON. Times are in seconds, as in rows.
fn line(event: &Event) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(line)
}
