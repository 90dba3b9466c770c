//! Taking the terminal over, and giving it back whatever happens: at the end, in a panic, on a
//! signal that ends or stops the process.
//!
//! Only the picture is exchanged (the alternate screen); how the terminal treats keys stays as it
//! is, so that Ctrl-C and Ctrl-Z do what they always do.

use std::fs::File;
use std::io::{self, Write};
use std::panic;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};

/// The terminal, if it's drawn on in this process.
static TERMINAL: OnceLock<File> = OnceLock::new();

/// Whether it's taken over at the moment.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// How often it has been taken over: each time it's empty.
static TIMES_ENTERED: AtomicUsize = AtomicUsize::new(0);

/// Takes over the terminal that this process is controlled from, whatever its outputs are.
pub(super) fn open() -> io::Result<Terminal<CrosstermBackend<File>>> {
    let file = File::options().read(true).write(true).open("/dev/tty")?;
    let terminal = empty(&file)?;
    let _ = TERMINAL.set(file); // one run has one
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        leave_alternate_screen();
        before(panic);
    }));
    enter_alternate_screen();
    Ok(terminal)
}

/// A picture of a terminal that was just taken over, on which there is nothing.
fn empty(terminal: &File) -> io::Result<Terminal<CrosstermBackend<File>>> {
    Terminal::new(CrosstermBackend::new(terminal.try_clone()?))
}

/// Begins the picture anew.
pub(super) fn begin_anew(picture: &mut Terminal<CrosstermBackend<File>>) -> io::Result<()> {
    if let Some(terminal) = TERMINAL.get() {
        // Not `clear`, which asks the terminal where its cursor is and waits for the answer.
        *picture = empty(terminal)?;
    }
    Ok(())
}

/// Takes it over, if it's drawn on and isn't taken over.
pub(crate) fn enter_alternate_screen() {
    if let Some(mut terminal) = TERMINAL.get()
        && !ENTERED.swap(true, Ordering::SeqCst)
    {
        let _ = execute!(terminal, EnterAlternateScreen, Hide); // it may be gone
        TIMES_ENTERED.fetch_add(1, Ordering::SeqCst);
    }
}

/// Gives it back, if it's taken over; says whether it was.
pub(crate) fn leave_alternate_screen() -> bool {
    let Some(mut terminal) = TERMINAL.get().filter(|_| ENTERED.swap(false, Ordering::SeqCst))
    else {
        return false;
    };
    let _ = execute!(terminal, LeaveAlternateScreen, Show);
    let _ = terminal.flush();
    true
}

/// How often it has been taken over, if it's ours to draw on.
pub(super) fn times_entered() -> Option<usize> {
    ENTERED.load(Ordering::SeqCst).then(|| TIMES_ENTERED.load(Ordering::SeqCst))
}
