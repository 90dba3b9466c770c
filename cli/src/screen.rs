//! Standard output as a page of rows, and the progress bar below it on a terminal.
//!
//! Writing each row to a pipe would cost a system call per row. Rows are buffered, and written when
//! the page is full or the run is idle.

use std::io::{self, IsTerminal, Write};
use std::mem;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::progress::Progress;
use super::spill::{Encoding, LiveOutput, Part};

/// The most bytes that are buffered.
const PAGE: usize = 64 * 1024;

/// Text that is not written yet, with references to output in files.
#[derive(Default)]
pub(super) struct Page {
    bytes: Vec<u8>,
    parts: Vec<Inserted>,
}

/// A part of a file that precedes one of a page's bytes.
struct Inserted {
    at: usize,
    part: Arc<Part>,
    form: Encoding,
}

impl Page {
    /// Appends a part of a file.
    pub(super) fn insert(&mut self, part: &Arc<Part>, form: Encoding) {
        self.parts.push(Inserted { at: self.bytes.len(), part: Arc::clone(part), form });
    }

    /// Whether it ends within a line.
    fn is_torn(&self) -> bool {
        let last = match self.parts.last() {
            Some(inserted) if inserted.at == self.bytes.len() => inserted.part.last(),
            _ => self.bytes.last().copied(),
        };
        last.is_some_and(|last| last != b'\n')
    }

    /// Whether the stream ends within a line after this page. `before` is the state before it.
    fn ends_torn(&self, before: bool) -> bool {
        if self.is_blank() { before } else { self.is_torn() }
    }

    fn is_blank(&self) -> bool {
        self.bytes.is_empty() && self.parts.is_empty()
    }

    /// Writes all of it and clears it.
    fn write(&mut self, to: &mut (impl Write + AsFd)) -> io::Result<()> {
        let mut written = 0;
        for Inserted { at, part, form } in mem::take(&mut self.parts) {
            to.write_all(&self.bytes[written..at])?;
            written = at;
            part.write(&form, to)?;
        }
        to.write_all(&self.bytes[written..])?;
        self.bytes.clear();
        to.flush()
    }
}

impl Deref for Page {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Page {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

/// The reader of standard output is gone: a clean end.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub(super) struct OutputClosed;

pub(super) struct Screen {
    page: Page,
    /// Text for standard error that follows the page.
    errors: Page,
    progress: Progress,
    /// Whether standard output, and standard error, end within a line.
    torn: [bool; 2],
    /// Text to show later, while the live table has the terminal.
    held: Option<Held>,
}

/// Text that was written while the live table has the terminal.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    /// How many bytes were dropped.
    dropped: usize,
}

/// The most bytes to show later: no user reads more.
const MAX_HELD: usize = 1 << 20;

impl Screen {
    pub(super) fn new(progress: Progress) -> Self {
        Self {
            page: Page::default(),
            errors: Page::default(),
            progress,
            torn: [false; 2],
            held: None,
        }
    }

    /// Returns the page for rows.
    pub(super) fn page(&mut self) -> &mut Page {
        &mut self.page
    }

    /// Returns the page for standard error.
    pub(super) fn errors(&mut self) -> &mut Page {
        &mut self.errors
    }

    /// Returns the page for standard error, at the start of a line.
    pub(super) fn error_lines(&mut self) -> &mut Page {
        if self.errors.ends_torn(self.torn[1]) {
            self.errors.push(b'\n');
        }
        &mut self.errors
    }

    pub(super) fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    pub(super) fn flush_if_full(&mut self) -> Result<()> {
        // Before the next row would grow the buffer. A row's errors belong right after it.
        let is_full = self.page.len() > PAGE - PAGE / 8
            || !self.page.parts.is_empty()
            || !self.errors.is_blank();
        if is_full { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        if self.page.is_blank() && self.errors.is_blank() {
            return Ok(());
        }
        let stdout_waits = self.held.is_some() && io::stdout().is_terminal();
        let stderr_waits = self.held.is_some() && io::stderr().is_terminal();
        if let Some(held) = &mut self.held {
            if stdout_waits {
                held.put(&mut self.page);
            }
            if stderr_waits {
                held.put(&mut self.errors);
            }
        }
        let Self { page, errors, progress, torn, .. } = self;
        // The bar starts at the start of a line and would stick to a torn one; so would text on
        // standard error.
        let follows = progress.is_shown() || (!errors.is_blank() && io::stderr().is_terminal());
        if follows && page.ends_torn(torn[0]) && io::stdout().is_terminal() {
            page.push(b'\n');
        }
        if progress.is_shown() && errors.is_torn() {
            errors.push(b'\n');
        }
        *torn = [page.ends_torn(torn[0]), errors.ends_torn(torn[1])];
        let written = progress.suspend(|| {
            let written = page.write(&mut Stdout);
            let _ = errors.write(&mut Stderr); // it is for display only
            written
        });
        *page = Page { bytes: mem::take(&mut page.bytes), ..Page::default() };
        page.clear();
        errors.clear();
        errors.parts.clear();
        shown(written)
    }

    /// Shows what the running job has printed since. Returns whether there was anything.
    pub(super) fn follow(&mut self, live: &mut LiveOutput) -> Result<bool> {
        self.flush()?;
        if io::stdout().is_terminal() {
            // The output may end within a line at any time.
            self.progress.finish();
        }
        match self.progress.suspend(|| live.follow(&mut Stdout)) {
            Ok(some) => Ok(some),
            Err(error) => shown(Err(error)).map(|()| false),
        }
    }

    /// Holds text back: the live table has the terminal.
    pub(super) fn hold(&mut self) {
        self.held = Some(Held::default());
    }

    /// Shows the held text: the terminal is free.
    pub(super) fn release(&mut self) -> Result<()> {
        self.flush()?;
        let Some(held) = self.held.take() else { return Ok(()) };
        if held.dropped > 0 {
            let what = format!(
                "… {} bytes omitted: redirect the output to a file to keep them\n",
                held.dropped
            );
            self.page.extend_from_slice(what.as_bytes());
        }
        self.page.extend_from_slice(&held.bytes);
        self.flush()
    }
}

/// Converts the outcome of a write to standard output.
pub(super) fn shown(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        written => written.context("failed to write the results to standard output"),
    }
}

impl Held {
    fn put(&mut self, page: &mut Page) {
        // Output in files is longer than what is kept.
        for Inserted { at, part, .. } in page.parts.drain(..).rev() {
            let what = format!(
                "… {} bytes omitted: redirect the output to a file to keep them\n",
                part.length()
            );
            page.bytes.splice(at..at, what.into_bytes());
        }
        self.bytes.append(&mut page.bytes);
        if self.bytes.len() > 2 * MAX_HELD {
            // Drop up to the start of a line.
            let least = self.bytes.len() - MAX_HELD;
            let line = self.bytes[least..].iter().position(|byte| *byte == b'\n');
            let end = line.map_or(least, |line| least + line + 1);
            self.bytes.drain(..end);
            self.dropped += end;
        }
    }
}

/// Standard output without a buffer: the standard library's would write what failed again at exit.
struct Stdout;

/// Standard error without a buffer.
struct Stderr;

impl AsFd for Stdout {
    fn as_fd(&self) -> BorrowedFd<'_> {
        rustix::stdio::stdout()
    }
}

impl AsFd for Stderr {
    fn as_fd(&self) -> BorrowedFd<'_> {
        rustix::stdio::stderr()
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(self, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(self, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(to: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::io::write(to, bytes) {
            // Another program has set this shared description to non-blocking.
            Err(Errno::AGAIN) => poll(&mut [PollFd::new(to, PollFlags::OUT)], None).map(drop)?,
            written => return Ok(written?),
        }
    }
}
