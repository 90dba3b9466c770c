//! `--top`: the live table of a run's workers.
//!
//! | file | owns |
//! |---|---|
//! | `board` | the live state: the input and output of each worker, and the counts |
//! | `keys` | what is typed |
//! | `terminal` | entering and leaving the alternate screen, in every case |
//! | `view` | the drawing |
//!
//! The table is drawn on the terminal itself, not on an output stream, so that results can go
//! through a pipe. The only user of ratatui.

mod board;
mod keys;
mod terminal;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

pub(super) use self::board::Board;
use self::keys::Key;
pub(super) use self::terminal::{enter_alternate_screen, leave_alternate_screen};
use self::view::View;
use super::control::Change;
use super::exit::Usage;
use procpool::Pool;

/// The redraw interval: often enough to look live, rarely enough for a slow connection.
const REDRAW: Duration = Duration::from_millis(250);

/// The live table. Dropping it leaves the alternate screen.
pub(super) struct Top {
    wake: Sender<Wake>,
    has_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Why the table is drawn before its time.
#[derive(Clone, Copy, Debug)]
enum Wake {
    Key(Key),
    End,
}

impl Top {
    /// Shows the board. `change` is called for keys that change the run; without, what is typed is left
    /// alone.
    pub(super) fn start(
        board: Arc<Board>,
        pool: Pool,
        total: Option<u64>,
        change: Option<impl Fn(Change) + Send + 'static>,
    ) -> Result<Self> {
        let takes_keys = change.is_some();
        let terminal = terminal::open(takes_keys).map_err(|error| {
            Usage::error(format!("--top needs a terminal: {error}; leave it out, or use --log"))
        })?;
        let (wake, woken) = mpsc::channel();
        let has_ended = Arc::new(AtomicBool::new(false));
        let mut view = View::new(board, pool, total, takes_keys);
        let draw = move || {
            let mut terminal = terminal;
            loop {
                // The terminal is gone, or the run asked to stop: the run continues without the
                // table.
                if view.draw(&mut terminal).is_err() {
                    break;
                }
                match woken.recv_timeout(REDRAW) {
                    Ok(Wake::Key(key)) => {
                        if let (Some(pressed), Some(change)) = (view.press(key), &change) {
                            change(pressed);
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(Wake::End) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            leave_alternate_screen();
        };
        let thread = thread::Builder::new().name("top".into()).spawn(draw);
        let thread = thread.inspect_err(|_| {
            leave_alternate_screen();
        });
        let thread = Some(thread.context("failed to start a thread")?);
        let top = Self { wake, has_ended, thread };
        if takes_keys {
            let (wake, has_ended) = (top.wake.clone(), Arc::clone(&top.has_ended));
            let read = move || keys::read(&has_ended, |key| wake.send(Wake::Key(key)).is_ok());
            // Not waited for: it ends within a tenth of a second.
            let keys = thread::Builder::new().name("keys".into()).spawn(read);
            keys.context("failed to start a thread")?;
        }
        Ok(top)
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::Relaxed);
        let _ = self.wake.send(Wake::End); // it may have ended by itself
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there was printed, and harms nothing
        }
        leave_alternate_screen();
    }
}
