//! A pipe that nothing is written into: each of its ends tells whether anybody still has the other,
//! whatever way the others have ended.

use std::io;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;

use super::handle::File;

/// A pipe's ends: to be read, to be written.
pub(crate) fn pipe() -> io::Result<(File, File)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    Ok((File::new(read)?, File::new(write)?))
}

/// Whether nobody has the other end any more.
pub(crate) fn is_hung_up(end: &File) -> bool {
    let mut end = [PollFd::new(end, PollFlags::empty())];
    let asked = rustix::event::poll(&mut end, Some(&Timespec::default()));
    asked.is_ok() && end[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}
