//! The keys of the live table.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind};

use super::terminal;

/// How long one wait for a key takes at most, and so how late this ends.
const WAIT: Duration = Duration::from_millis(100);

/// The keys, for the last line of the table.
pub(super) const HELP: &str =
    "+ - workers · p pause · ↑ ↓ select · enter output · x end the job · X kill it · ctrl-c end";

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    More,
    Fewer,
    Pause,
    Up,
    Down,
    Open,
    Close,
    End,
    Kill,
    /// The terminal has another size.
    Redraw,
}

impl Key {
    fn of(code: KeyCode) -> Option<Self> {
        Some(match code {
            KeyCode::Char('+' | '=') => Self::More,
            KeyCode::Char('-') => Self::Fewer,
            KeyCode::Char('p' | ' ') => Self::Pause,
            KeyCode::Up | KeyCode::Char('k') => Self::Up,
            KeyCode::Down | KeyCode::Char('j') => Self::Down,
            KeyCode::Enter | KeyCode::Char('o') => Self::Open,
            KeyCode::Esc | KeyCode::Char('q') => Self::Close,
            KeyCode::Char('x') => Self::End,
            KeyCode::Char('X') => Self::Kill,
            _ => return None,
        })
    }
}

/// Passes on what is typed, until the table has ended or `pass` returns false.
pub(super) fn read(has_ended: &AtomicBool, pass: impl Fn(Key) -> bool) {
    while !has_ended.load(Ordering::Relaxed) {
        // The terminal is another program's while this one is stopped.
        match event::poll(WAIT) {
            Ok(true) if terminal::times_entered().is_some() => {}
            Ok(_) => continue,
            Err(_) => return,
        }
        let key = match event::read() {
            Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => Key::of(key.code),
            Ok(Event::Resize(..)) => Some(Key::Redraw),
            Ok(_) => None,
            Err(_) => return,
        };
        if key.is_some_and(|key| !pass(key)) {
            return;
        }
    }
}
