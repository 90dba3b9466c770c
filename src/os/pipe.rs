//! A pipe without data: each end detects whether any process still has the other end, even if processes
//! were killed.

use std::io;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;

use crate::ipc::handle::File;

/// Creates a pipe. Returns its read end and its write end.
pub(crate) fn pipe() -> io::Result<(File, File)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    Ok((File::new(read)?, File::new(write)?))
}

/// Returns whether no process has the other end.
pub(crate) fn is_hung_up(end: &File) -> bool {
    let mut end = [PollFd::new(end, PollFlags::empty())];
    let asked = rustix::event::poll(&mut end, Some(&Timespec::default()));
    asked.is_ok() && end[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}
