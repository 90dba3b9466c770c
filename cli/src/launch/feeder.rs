//! Standard input of a run that may be launched again. Keeps the bytes read from a pipe, so that the
//! next launch reads them from the start.

use std::fs::File;
use std::io::{self, ErrorKind, PipeWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};

/// How far the reader may be ahead of the launch.
const MAX_AHEAD: u64 = 1 << 20;

/// The size of a read.
const BLOCK: usize = 64 << 10;

/// The bytes read from standard input so far.
#[derive(Clone)]
pub(super) struct Feeder(Arc<Shared>);

struct Shared {
    kept: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The bytes in the file.
    length: u64,
    /// Whether the input has ended.
    ended: bool,
    /// How far the current launch was given them, and its number.
    given: u64,
    launch: u64,
}

impl Feeder {
    /// Starts to read. What is read is kept in this empty file.
    pub(super) fn new(from: impl Read + Send + 'static, kept: File) -> Result<Self> {
        let shared = Shared { kept, state: Mutex::default(), changed: Condvar::new() };
        let feeder = Self(Arc::new(shared));
        let reader = feeder.clone();
        // Not waited for: it may sit in a read that never ends.
        spawn("stdin", move || reader.read(from))?;
        Ok(feeder)
    }

    fn read(&self, mut from: impl Read) {
        let mut block = vec![0; BLOCK];
        loop {
            let mut state = self.lock();
            while state.length > state.given + MAX_AHEAD {
                state = self.wait(state);
            }
            let at = state.length;
            drop(state);
            let read = from.read(&mut block);
            let kept = read
                .and_then(|length| self.0.kept.write_all_at(&block[..length], at).map(|()| length));
            let mut state = self.lock();
            match kept {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Ok(length) if length > 0 => state.length += length as u64,
                _ => state.ended = true,
            }
            self.0.changed.notify_all();
            if state.ended {
                return;
            }
        }
    }

    /// Returns a pipe from which a new launch reads everything from its start. The pipe of the
    /// launch before gets no more.
    pub(super) fn pipe(&self) -> Result<io::PipeReader> {
        let (reader, writer) = io::pipe().context("failed to create a pipe")?;
        let mut state = self.lock();
        state.launch += 1;
        state.given = 0;
        let launch = state.launch;
        drop(state);
        self.0.changed.notify_all();
        let feeder = self.clone();
        spawn("feeder", move || feeder.feed(launch, writer))?;
        Ok(reader)
    }

    /// Writes the input to a launch, until either ends.
    fn feed(&self, launch: u64, mut to: PipeWriter) {
        let mut block = vec![0; BLOCK];
        let mut at = 0;
        loop {
            let mut state = self.lock();
            while state.launch == launch && state.length == at && !state.ended {
                state = self.wait(state);
            }
            if state.launch != launch || state.length == at {
                return;
            }
            let most = usize::try_from(state.length - at).unwrap_or(BLOCK).min(BLOCK);
            drop(state);
            let given = self
                .0
                .kept
                .read_at(&mut block[..most], at)
                .and_then(|length| to.write_all(&block[..length]).map(|()| length));
            let Ok(length) = given else { return }; // the launch has ended
            at += length as u64;
            let mut state = self.lock();
            if state.launch == launch {
                state.given = at;
                self.0.changed.notify_all();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = thread::Builder::new().name(name.into()).spawn(run);
    thread.map(drop).context("failed to start a thread")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Read;

    #[test]
    fn each_launch_reads_all_of_the_input_from_its_start() {
        let (from, mut to) = io::pipe().unwrap();
        let feeder = Feeder::new(from, tempfile::tempfile().unwrap()).unwrap();
        let mut first = feeder.pipe().unwrap();
        to.write_all(b"one\n").unwrap();
        let mut line = [0; 4];
        first.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"one\n");
        let mut second = feeder.pipe().unwrap();
        let mut rest = Vec::new();
        first.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "the first launch gets no more");
        let long = b"two\n".repeat(MAX_AHEAD as usize);
        let writer = thread::spawn(move || to.write_all(&long).unwrap());
        second.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"one\n");
        second.read_to_end(&mut rest).unwrap();
        writer.join().unwrap();
        assert_eq!(rest.len(), 4 * MAX_AHEAD as usize);
        let mut third = Vec::new();
        feeder.pipe().unwrap().read_to_end(&mut third).unwrap();
        assert_eq!(third.len(), 4 + rest.len());
    }
}
