//! Forwards a job's output to the worker's own, in whole lines, so that lines of several jobs do
//! not mix.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::spill::MAX_PER_READ;

/// A longer line is forwarded in parts.
const LONGEST: usize = 1 << 20;

/// One of a job's two output streams.
pub(super) struct Lines {
    /// None after its end.
    from: Option<File>,
    to: To,
    /// The prefix of each line.
    tag: Vec<u8>,
    /// The start of a line that is not complete.
    begun: Vec<u8>,
    block: Vec<u8>,
}

/// The worker's stream that lines go to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    Stdout,
    /// Lines that cannot be written are dropped: nobody reads them.
    Stderr,
}

impl Lines {
    /// Reads from a pipe, which becomes non-blocking.
    pub(super) fn new(from: OwnedFd, to: To, tag: Vec<u8>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&from, true)?;
        let block = vec![0; 64 << 10];
        Ok(Self { from: Some(File::from(from)), to, tag, begun: Vec::new(), block })
    }

    /// Returns the pipe to poll for more.
    pub(super) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.from.as_ref().map(AsFd::as_fd)
    }

    /// Forwards what has arrived, up to [`MAX_PER_READ`] bytes: an endless job must still obey its
    /// limits. Returns whether there may be more.
    ///
    /// # Errors
    ///
    /// If writing fails.
    pub(super) fn pass(&mut self) -> io::Result<bool> {
        let mut taken = 0;
        while taken < MAX_PER_READ {
            let Some(from) = &mut self.from else { return Ok(false) };
            match from.read(&mut self.block) {
                Ok(0) => self.from = None,
                Ok(length) => {
                    taken += length;
                    let end = self.begun.len() + length;
                    self.begun.extend_from_slice(&self.block[..length]);
                    let whole = self.begun.iter().rposition(|byte| *byte == b'\n');
                    match whole {
                        Some(last) => self.write(last + 1)?,
                        None if end > LONGEST => self.write(end)?,
                        None => {}
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(_) => self.from = None,
            }
        }
        Ok(true)
    }

    /// Forwards the rest at the job's end, including an incomplete line.
    pub(super) fn finish(mut self) -> io::Result<()> {
        // Another process may hold the pipe open and write forever.
        let mut turns = 0;
        while self.pass()? && turns < 16 {
            turns += 1;
        }
        if !self.begun.is_empty() {
            self.begun.push(b'\n');
            self.write(self.begun.len())?;
        }
        Ok(())
    }

    /// Writes the first `end` bytes.
    fn write(&mut self, end: usize) -> io::Result<()> {
        let lines: Vec<u8> = self.begun.drain(..end).collect();
        // In one write, since other workers write to the same stream.
        let text = if self.tag.is_empty() { lines } else { tagged(&self.tag, &lines) };
        match self.to {
            To::Stdout => write_all(rustix::stdio::stdout(), &text),
            To::Stderr => {
                let _ = write_all(rustix::stdio::stderr(), &text);
                Ok(())
            }
        }
    }
}

/// Writes without a buffer: the standard library's would write what failed again at exit.
fn write_all(to: BorrowedFd<'_>, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match rustix::io::write(to, text) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(Errno::INTR) => {}
            // Another program has set this shared description to non-blocking.
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Returns the prefix of a job's lines: this text and a tab. Control characters are escaped, so that the
/// first tab always ends the text.
pub(crate) fn tag_of(text: &[u8]) -> Vec<u8> {
    let mut tag = Vec::with_capacity(text.len() + 1);
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                tag.extend(character.escape_default().map(|it| it as u8)); // in ASCII
            } else {
                tag.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        // A control character in some single-byte encodings.
        for byte in chunk.invalid() {
            match byte {
                0x80..=0x9f => tag.extend(byte.escape_ascii()),
                byte => tag.push(*byte),
            }
        }
    }
    tag.push(b'\t');
    tag
}

/// Adds the prefix to each line.
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

    #[test]
    fn a_tag_is_one_field_of_one_line_and_moves_no_cursor() {
        let tag = |input: &[u8]| tag_of(input);
        assert_eq!(tag("ä b".as_bytes()), "ä b\t".as_bytes());
        assert_eq!(tag(b"a\tb\nc\x1b[2J"), b"a\\tb\\nc\\u{1b}[2J\t");
        assert_eq!(tag(b"\xff\x9b2J"), b"\xff\\x9b2J\t");
    }
}
