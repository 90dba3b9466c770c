//! `--top`: the live table of a run's workers.
//!
//! | file | owns |
//! |---|---|
//! | `board` | the live state: the input of each worker, and the counts |
//! | `terminal` | entering and leaving the alternate screen, in every case |
//! | `view` | the drawing |
//!
//! The table is drawn on the terminal itself, not on an output stream, so that results can go
//! through a pipe. The only user of ratatui.

mod board;
mod terminal;
mod view;

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

pub(super) use self::board::Board;
pub(super) use self::terminal::{enter_alternate_screen, leave_alternate_screen};
use self::view::View;
use super::exit::Usage;
use procpool::Pool;

/// The redraw interval: often enough to look live, rarely enough for a slow connection.
const REDRAW: Duration = Duration::from_millis(250);

/// The live table. Dropping it leaves the alternate screen.
pub(super) struct Top {
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Top {
    /// Shows the board.
    pub(super) fn start(board: Arc<Board>, pool: Pool, total: Option<u64>) -> Result<Self> {
        let terminal = terminal::open().map_err(|error| {
            Usage::error(format!("--top needs a terminal: {error}; leave it out, or use --log"))
        })?;
        let (stop, stopped) = mpsc::channel();
        let mut view = View::new(board, pool, total);
        let draw = move || {
            let mut terminal = terminal;
            loop {
                // The terminal is gone, or the run asked to stop: the run continues without the
                // table.
                if view.draw(&mut terminal).is_err() {
                    break;
                }
                if stopped.recv_timeout(REDRAW) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            leave_alternate_screen();
        };
        let thread = thread::Builder::new().name("top".into()).spawn(draw);
        let thread = thread.inspect_err(|_| {
            leave_alternate_screen();
        });
        Ok(Self { stop, thread: Some(thread.context("failed to start a thread")?) })
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let _ = self.stop.send(()); // it may have ended by itself
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there was printed, and harms nothing
        }
        leave_alternate_screen();
    }
}
