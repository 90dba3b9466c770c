//! `--top`: the workers of a run, live in the terminal.
//!
//! | file | owns |
//! |---|---|
//! | `board` | what is known: which worker is at which input, how many are done |
//! | `terminal` | taking the terminal over, and giving it back whatever happens |
//! | `view` | what is drawn |
//!
//! It is drawn on the terminal itself and not on an output, so that results can go on through a
//! pipe. ratatui's only home.

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

/// How long there is between two pictures: often enough to look alive, seldom enough for a slow
/// line.
const REDRAW: Duration = Duration::from_millis(250);

/// The table while it's shown; when it's dropped, the terminal is given back.
pub(super) struct Top {
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Top {
    /// Shows what is on the board.
    pub(super) fn start(board: Arc<Board>, pool: Pool, total: Option<u64>) -> Result<Self> {
        let terminal = terminal::open().map_err(|error| {
            Usage::error(format!("--top needs a terminal: {error}; leave it out, or use --log"))
        })?;
        let (stop, stopped) = mpsc::channel();
        let mut view = View::new(board, pool, total);
        let draw = move || {
            let mut terminal = terminal;
            loop {
                // A terminal that is gone, or the signal to stop: the run goes on without it.
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
