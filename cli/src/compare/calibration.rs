//! The calibration: copies of this program that are not workers. One exits at once, the other
//! echoes what it receives through a socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// The environment variable with the purpose of a copy.
const MARKER: &str = "PROCPOOL_COMPARE_COPY";

/// As long as a small call is on the wire.
const MESSAGE: [u8; 48] = [7; 48];

/// In a copy, serves its purpose and exits. Elsewhere, does nothing.
pub(crate) fn serve_calibration() {
    let Some(what) = std::env::var_os(MARKER) else { return };
    if what == "echo" {
        echo(io::stdin().as_fd());
    }
    std::process::exit(0)
}

/// Echoes what it receives, until the end.
fn echo(socket: BorrowedFd<'_>) {
    let mut buffer = [0; 256];
    while let Ok(length @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut buffer))
    {
        if rustix::io::write(socket, &buffer[..length]).is_err() {
            break;
        }
    }
}

/// Starts a copy and waits for its exit.
pub(super) fn start_and_end() -> Result<()> {
    let status = command("exit").stdin(Stdio::null()).status();
    ensure!(status.context("failed to start a copy of this program")?.success());
    Ok(())
}

/// A copy at the other end of a socket.
pub(super) struct Echo {
    socket: OwnedFd,
    child: Child,
}

impl Echo {
    pub(super) fn start() -> Result<Self> {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .context("failed to create a socket")?;
        let child = command("echo").stdin(theirs).spawn();
        Ok(Self { socket, child: child.context("failed to start a copy of this program")? })
    }

    /// Sends a message and receives the echo.
    pub(super) fn round_trip(&self) -> Result<()> {
        let mut buffer = [0; 256];
        rustix::io::write(&self.socket, &MESSAGE)?;
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut buffer))?;
        ensure!(length == MESSAGE.len(), "the copy of this program has ended");
        Ok(())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(what: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env(MARKER, what).stdout(Stdio::null());
    command
}
