//! The terminal of a job: the real one, lent to one job at a time, or a pseudo-terminal, through which a program believes
//! to write to one.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, getpgrp};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{
    OptionalActions, OutputModes, Termios, Winsize, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
    tcsetpgrp, tcsetwinsize,
};

/// The signals that Ctrl-C, Ctrl-\ and Ctrl-Z send to the jobs that have the terminal.
pub(super) const FROM_KEYS: [c_int; 2] = [libc::SIGINT, libc::SIGQUIT];

/// The controlling terminal, with the settings and the foreground process group that it had.
#[derive(Debug)]
pub(crate) struct Terminal {
    tty: File,
    owner: Pid,
    settings: Termios,
}

impl Terminal {
    /// Opens the controlling terminal.
    pub(crate) fn open() -> io::Result<Self> {
        let tty = File::options().read(true).write(true).open("/dev/tty")?;
        let (owner, settings) = (tcgetpgrp(&tty)?, tcgetattr(&tty)?);
        Ok(Self { tty, owner, settings })
    }

    /// Gives the terminal to this process's group. The process itself ignores what keys send, and its
    /// programs ignore Ctrl-Z: nobody would continue them.
    ///
    /// SIGTTOU must be blocked.
    pub(crate) fn take(&self) -> io::Result<()> {
        for signal in FROM_KEYS.into_iter().chain([libc::SIGTSTP]) {
            // SAFETY: a plain system call; no handler is installed.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        Ok(tcsetpgrp(&self.tty, getpgrp())?)
    }

    /// Gives the terminal back, with the settings that it had: a job that was killed may have left others. SIGTTOU must
    /// be blocked.
    pub(crate) fn give_back(&self) {
        // A terminal that was closed meanwhile needs neither.
        let _ = tcsetattr(&self.tty, OptionalActions::Drain, &self.settings);
        let _ = tcsetpgrp(&self.tty, self.owner);
    }

    /// Gives the terminal back if a job has it still, whose worker died. For the process that had it first.
    pub(crate) fn recover(&self) {
        let (mut set, mut before) =
            (std::mem::MaybeUninit::uninit(), std::mem::MaybeUninit::uninit());
        // SAFETY: plain system calls on local data, which the first call and the third initialise.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGTTOU);
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            if tcgetpgrp(&self.tty) != Ok(self.owner) {
                self.give_back();
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
        }
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tty.as_fd()
    }
}

/// Creates a pseudo-terminal for the output of a program. Returns the side to read, whose end is the error EIO, and the
/// program's side. What passes through is not changed. The size is that of the terminal, if there is one.
pub(crate) fn pseudo() -> io::Result<(OwnedFd, OwnedFd)> {
    let reader = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&reader)?;
    unlockpt(&reader)?;
    let name = ptsname(&reader, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let writer = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
    let mut settings = tcgetattr(&writer)?;
    settings.output_modes -= OutputModes::OPOST; // no \r before each \n
    tcsetattr(&writer, OptionalActions::Now, &settings)?;
    tcsetwinsize(&writer, size())?;
    Ok((reader, writer))
}

/// Returns the size of the terminal, or one that programs expect.
fn size() -> Winsize {
    let known = File::open("/dev/tty").ok().and_then(|tty| tcgetwinsize(tty).ok());
    let usual = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    known.filter(|size| size.ws_col > 0).unwrap_or(usual)
}
