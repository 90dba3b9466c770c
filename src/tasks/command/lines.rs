//! What a job prints, passed on to the worker's own output as it comes: a whole line at a time, so
//! that lines of several jobs don't mix.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A line that is longer than this is passed on in parts.
const LONGEST: usize = 1 << 20;

/// One of a job's two outputs.
pub(super) struct Lines {
    /// None when it has ended.
    from: Option<File>,
    to: Box<dyn Write>,
    /// What each line begins with.
    tag: Vec<u8>,
    /// What has come of a line whose end hasn't.
    begun: Vec<u8>,
    block: Vec<u8>,
}

impl Lines {
    /// From a pipe, which from now on never waits.
    pub(super) fn new(from: OwnedFd, to: Box<dyn Write>, tag: Vec<u8>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&from, true)?;
        let block = vec![0; 64 << 10];
        Ok(Self { from: Some(File::from(from)), to, tag, begun: Vec::new(), block })
    }

    /// What to wait for before there is more.
    pub(super) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.from.as_ref().map(AsFd::as_fd)
    }

    /// Passes on what has come.
    ///
    /// # Errors
    ///
    /// When it can't be written.
    pub(super) fn pass(&mut self) -> io::Result<()> {
        while let Some(from) = &mut self.from {
            match from.read(&mut self.block) {
                Ok(0) => self.from = None,
                Ok(length) => {
                    let end = self.begun.len() + length;
                    self.begun.extend_from_slice(&self.block[..length]);
                    let whole = self.begun.iter().rposition(|byte| *byte == b'\n');
                    match whole {
                        Some(last) => self.write(last + 1)?,
                        None if end > LONGEST => self.write(end)?,
                        None => {}
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.from = None,
            }
        }
        Ok(())
    }

    /// Passes on what is left, at the job's end: also a line without its own.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.pass()?;
        if !self.begun.is_empty() {
            self.begun.push(b'\n');
            self.write(self.begun.len())?;
        }
        Ok(())
    }

    /// Writes the first bytes of what has come.
    fn write(&mut self, end: usize) -> io::Result<()> {
        let lines: Vec<u8> = self.begun.drain(..end).collect();
        // In one piece: other workers write to the same place.
        let text = if self.tag.is_empty() { lines } else { tagged(&self.tag, &lines) };
        self.to.write_all(&text)?;
        self.to.flush()
    }
}

/// These lines, each after this tag.
pub(crate) fn tagged(tag: &[u8], text: &[u8]) -> Vec<u8> {
    text.split_inclusive(|byte| *byte == b'\n').flat_map(|line| [tag, line].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_tag() {
        assert_eq!(tagged(b"x\t", b"one\n\ntwo"), b"x\tone\nx\t\nx\ttwo");
        assert_eq!(tagged(b"x\t", b""), b"");
    }
}
