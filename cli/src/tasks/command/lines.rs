//! What a job prints, passed on to the worker's own output as it comes: a whole line at a time, so
//! that lines of several jobs don't mix.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::spill::AT_ONCE;
use crate::tasks::Input;

/// A line that is longer than this is passed on in parts.
const LONGEST: usize = 1 << 20;

/// One of a job's two outputs.
pub(super) struct Lines {
    /// None when it has ended.
    from: Option<File>,
    to: To,
    /// What each line begins with.
    tag: Vec<u8>,
    /// What has come of a line whose end hasn't.
    begun: Vec<u8>,
    block: Vec<u8>,
}

/// Which output of the worker lines go to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    Stdout,
    /// If nobody sees it, nobody misses it: what can't be written is dropped.
    Stderr,
}

impl Lines {
    /// From a pipe, which from now on never waits.
    pub(super) fn new(from: OwnedFd, to: To, tag: Vec<u8>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&from, true)?;
        let block = vec![0; 64 << 10];
        Ok(Self { from: Some(File::from(from)), to, tag, begun: Vec::new(), block })
    }

    /// What to wait for before there is more.
    pub(super) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.from.as_ref().map(AsFd::as_fd)
    }

    /// Passes on what has come, but not more than [`AT_ONCE`]: a job that prints without end is to be
    /// held to its limits all the same. Whether there may be more.
    ///
    /// # Errors
    ///
    /// When it can't be written.
    pub(super) fn pass(&mut self) -> io::Result<bool> {
        let mut taken = 0;
        while taken < AT_ONCE {
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

    /// Passes on what is left, at the job's end: also a line without its own.
    pub(super) fn finish(mut self) -> io::Result<()> {
        // What another process holds open may go on for ever.
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

    /// Writes the first bytes of what has come.
    fn write(&mut self, end: usize) -> io::Result<()> {
        let lines: Vec<u8> = self.begun.drain(..end).collect();
        // In one piece: other workers write to the same place.
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

/// Writes directly, since what the standard library has failed to write it would write again.
fn write_all(to: BorrowedFd<'_>, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match rustix::io::write(to, text) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(Errno::INTR) => {}
            // Another program has made what this one shares with it not wait.
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What the lines of this input's job begin with: the input and a tab. What would move the cursor or
/// end the line is written out, so that the first tab always ends the input.
pub(crate) fn tag_of(input: &Input) -> Vec<u8> {
    let input = input.to_bytes();
    let mut tag = Vec::with_capacity(input.len() + 1);
    for chunk in input.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                tag.extend(character.escape_default().map(|it| it as u8)); // in ASCII
            } else {
                tag.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        // A control character in some encodings of one byte.
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

    #[test]
    fn a_tag_is_one_field_of_one_line_and_moves_no_cursor() {
        let tag = |input: &[u8]| tag_of(&Input::Text(input.to_vec().into()));
        assert_eq!(tag("ä b".as_bytes()), "ä b\t".as_bytes());
        assert_eq!(tag(b"a\tb\nc\x1b[2J"), b"a\\tb\\nc\\u{1b}[2J\t");
        assert_eq!(tag(b"\xff\x9b2J"), b"\xff\\x9b2J\t");
        assert_eq!(tag_of(&Input::Number(7)), b"7\t");
    }
}
