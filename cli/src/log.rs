//! `--log`: what happens in the pool, one event a line.
//!
//! It is written on the thread that the pool calls back on, so that no task waits for it. A file
//! gets JSON, standard error lines for people.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use super::exit::Usage;
use procpool::{Event, EventKind};

/// A log that is being written.
#[derive(Clone)]
pub(super) struct Log(Arc<Mutex<State>>);

struct State {
    file: BufWriter<File>,
    path: PathBuf,
    /// What went wrong first; after that, no more is written.
    trouble: Option<io::Error>,
}

impl Log {
    /// A new file, or an old one emptied.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| {
            Usage::error(format!("failed to write the log to {path:?}: {error}; check --log"))
        })?;
        let state = State { file: BufWriter::new(file), path: path.to_owned(), trouble: None };
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    pub(super) fn write(&self, event: &Event) {
        let mut state = self.state();
        if state.trouble.is_some() {
            return;
        }
        let written = line(event).and_then(|line| {
            state.file.write_all(&line)?;
            // What there are few of can be read at once, by whoever follows the file.
            match event.kind {
                EventKind::Assigned { .. } | EventKind::Finished { .. } => Ok(()),
                _ => state.file.flush(),
            }
        });
        state.trouble = written.err();
    }

    /// Writes what is left; what went wrong is said here.
    pub(super) fn close(&self) -> Result<(), String> {
        let mut state = self.state();
        let flushed = state.file.flush();
        match state.trouble.take().or(flushed.err()) {
            None => Ok(()),
            Some(error) => Err(format!("failed to write the log to {:?}: {error}", state.path)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The event on standard error, for people.
pub(super) fn tell(event: &Event) {
    // In one piece, and not by eprintln!, which panics where standard error is closed.
    let _ = io::stderr().write_all(format!("{event}\n").as_bytes());
}

/// The event as a line of JSON. Times are in seconds, as they are in the rows.
fn line(event: &Event) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(line)
}
