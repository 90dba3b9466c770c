//! Enters and leaves the alternate screen in every case: at the end, in a panic, and on a signal
//! that ends or stops the process.
//!
//! What is typed is not shown meanwhile and is read at once, without the end of a line. Ctrl-C and
//! Ctrl-Z keep their meaning.

use std::fs::File;
use std::io::{self, Write};
use std::panic;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::queue;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// The terminal, if this process draws on it.
static TERMINAL: OnceLock<File> = OnceLock::new();

/// Whether the alternate screen is entered.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// How often it was entered. Each time it is empty.
static TIMES_ENTERED: AtomicUsize = AtomicUsize::new(0);

/// The settings of the terminal before keys were read, if they are.
static SETTINGS: OnceLock<Termios> = OnceLock::new();

/// Enters the alternate screen of the controlling terminal, whatever the outputs are.
pub(super) fn open(takes_keys: bool) -> io::Result<Terminal<CrosstermBackend<File>>> {
    let file = File::options().read(true).write(true).open("/dev/tty")?;
    let terminal = empty(&file)?;
    if takes_keys {
        let _ = SETTINGS.set(tcgetattr(&file)?);
    }
    let _ = TERMINAL.set(file); // one run has one
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        leave_alternate_screen();
        before(panic);
    }));
    enter_alternate_screen();
    Ok(terminal)
}

/// Creates a frame for an empty screen.
fn empty(terminal: &File) -> io::Result<Terminal<CrosstermBackend<File>>> {
    Terminal::new(CrosstermBackend::new(terminal.try_clone()?))
}

/// Starts over with an empty screen.
pub(super) fn begin_anew(picture: &mut Terminal<CrosstermBackend<File>>) -> io::Result<()> {
    if let Some(terminal) = TERMINAL.get() {
        // Not `clear`, which asks the terminal for its cursor and waits for the reply.
        *picture = empty(terminal)?;
    }
    Ok(())
}

/// Enters the alternate screen, if this process draws on one and has left it.
pub(crate) fn enter_alternate_screen() {
    if let Some(mut terminal) = TERMINAL.get()
        && !ENTERED.swap(true, Ordering::SeqCst)
    {
        let _ = terminal.write_all(&sequence(|bytes| queue!(bytes, EnterAlternateScreen, Hide)));
        if let Some(mut settings) = SETTINGS.get().cloned() {
            settings.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            let _ = tcsetattr(terminal, OptionalActions::Now, &settings);
        }
        TIMES_ENTERED.fetch_add(1, Ordering::SeqCst);
    }
}

/// Leaves the alternate screen. Returns whether it was entered.
pub(crate) fn leave_alternate_screen() -> bool {
    let Some(mut terminal) = TERMINAL.get().filter(|_| ENTERED.swap(false, Ordering::SeqCst))
    else {
        return false;
    };
    let _ = terminal.write_all(&sequence(|bytes| queue!(bytes, LeaveAlternateScreen, Show)));
    if let Some(settings) = SETTINGS.get() {
        let _ = tcsetattr(terminal, OptionalActions::Now, settings);
    }
    true
}

/// Returns commands as bytes, to be written at once: the table may be drawn meanwhile, by another thread.
fn sequence(commands: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = commands(&mut bytes); // a vector takes everything
    bytes
}

/// Returns how often it was entered, if it is entered now.
pub(super) fn times_entered() -> Option<usize> {
    ENTERED.load(Ordering::SeqCst).then(|| TIMES_ENTERED.load(Ordering::SeqCst))
}
