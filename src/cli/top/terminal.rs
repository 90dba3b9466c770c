//! Taking the terminal over, and giving it back whatever happens: at the end, in a panic, on a
//! signal that ends or stops the process.
//!
//! Only the picture is exchanged (the alternate screen); how the terminal treats keys stays as it
//! is, so that Ctrl-C and Ctrl-Z do what they always do.

use std::fs::File;
use std::io::{self, Write};
use std::panic;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};

/// The terminal, if it's drawn on in this process.
static TERMINAL: OnceLock<File> = OnceLock::new();

/// Whether it's taken over at the moment.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes over the terminal that this process is controlled from, whatever its outputs are.
pub(super) fn open() -> io::Result<Terminal<CrosstermBackend<File>>> {
    let file = File::options().read(true).write(true).open("/dev/tty")?;
    let terminal = Terminal::new(CrosstermBackend::new(file.try_clone()?))?;
    let _ = TERMINAL.set(file); // one run has one
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        give_back();
        before(panic);
    }));
    take_over();
    Ok(terminal)
}

/// Takes it over, if it's drawn on and isn't taken over.
pub(in crate::cli) fn take_over() {
    if let Some(mut terminal) = TERMINAL.get()
        && !TAKEN.swap(true, Ordering::SeqCst)
    {
        let _ = execute!(terminal, EnterAlternateScreen, Hide); // it may be gone
    }
}

/// Gives it back, if it's taken over; says whether it was.
pub(in crate::cli) fn give_back() -> bool {
    let Some(mut terminal) = TERMINAL.get().filter(|_| TAKEN.swap(false, Ordering::SeqCst)) else {
        return false;
    };
    let _ = execute!(terminal, LeaveAlternateScreen, Show);
    let _ = terminal.flush();
    true
}

/// Whether it's ours to draw on.
pub(super) fn is_taken() -> bool {
    TAKEN.load(Ordering::SeqCst)
}
