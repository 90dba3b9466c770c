//! Captured output of a job: a little in memory, the rest in a file.
//!
//! The job writes into a pipe that its worker reads. Up to [`IN_MEMORY`] bytes are returned with
//! the result. A job that prints more has all its output written to an unnamed file in the
//! temporary directory. Each worker has one such file per stream, opened on first use, and passes
//! both descriptors to the parent over a socket. A result then names a range. So memory does not
//! grow with the output, no more descriptors are open than there are workers, and no file outlives
//! a worker and a parent that are killed.
//!
//! The worker stands between the job and the file so that a full disk is a visible error, even if
//! the job ignores what `write` returns.
//!
//! On another host than the parent's, no process can receive a file. There, output stays in
//! memory up to [`MAX_FROM_AFAR`] bytes and travels with the result.

use std::fs::{self, File};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use crate::os::clock;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, splice};

use super::job::{Printed, Range};
use crate::tasks::Bytes;

/// The most bytes of one stream that are kept in memory and returned with the result. A thousand
/// results may wait to be shown.
const IN_MEMORY: usize = 64 << 10;

/// The most bytes of one stream that are returned from another host.
const MAX_FROM_AFAR: usize = 64 << 20;

/// The most bytes that are read from a pipe before the job's limits are checked again.
pub(super) const MAX_PER_READ: usize = 1 << 20;

/// The alignment of ranges, so that each can be freed in the file by itself.
pub(crate) const PAGE: u64 = 4096;

/// How long the parent may take to accept the files.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(20);

/// A message of a worker to its parent over the socket: three numbers of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The files of the worker with this key. Carries their descriptors. Acknowledged by one byte.
    Files { key: u64 },
    /// A job's output on this stream is in the file from `start`, and may be shown live: the job is
    /// in its last attempt and prints more than fits in memory, or the run is watched. Acknowledged
    /// by one byte.
    Runs { which: usize, id: u64, start: u64 },
    /// The announced output ends here. The worker's next output follows it. Acknowledged by one
    /// byte.
    Ends { which: usize, end: u64 },
    /// The next result names this many ranges.
    Ranges { count: u64 },
}

/// The length of a notice.
pub(crate) const NOTICE: usize = 24;

impl Notice {
    fn to_bytes(self) -> [u8; NOTICE] {
        let words = match self {
            Self::Files { key } => [0, key, 0],
            Self::Runs { which, id, start } => [1 + 4 * which as u64, id, start],
            Self::Ranges { count } => [2, count, 0],
            Self::Ends { which, end } => [3 + 4 * which as u64, end, 0],
        };
        let mut bytes = [0; NOTICE];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Parses a notice.
    pub(crate) fn from_bytes(bytes: &[u8; NOTICE]) -> Option<Self> {
        let mut words = bytes.chunks_exact(8).filter_map(|word| word.try_into().ok());
        let mut next = || words.next().map(u64::from_le_bytes);
        match (next()?, next()?, next()?) {
            (0, key, _) => Some(Self::Files { key }),
            (1, id, start) => Some(Self::Runs { which: 0, id, start }),
            (5, id, start) => Some(Self::Runs { which: 1, id, start }),
            (2, count, _) => Some(Self::Ranges { count }),
            (3, end, _) => Some(Self::Ends { which: 0, end }),
            (7, end, _) => Some(Self::Ends { which: 1, end }),
            _ => None,
        }
    }
}

/// The files of a worker.
#[derive(Debug)]
pub(super) struct Spiller {
    /// The abstract name of the parent's socket.
    socket: Vec<u8>,
    open: Option<Open>,
    /// Whether the parent is on another host.
    is_far: bool,
}

#[derive(Debug)]
struct Open {
    key: u64,
    parent: UnixStream,
    files: [File; 2],
    /// Where the next range of each file may start.
    ends: [u64; 2],
}

impl Spiller {
    pub(super) fn new(socket: Vec<u8>) -> Self {
        Self { socket, open: None, is_far: false }
    }

    /// Whether the output of a job has to be in memory, because the parent is on another host.
    fn is_far(&mut self) -> bool {
        // What else fails is an error where the files are used.
        let _ = self.open_early();
        self.is_far
    }

    /// Opens the files before they are needed, if the parent is on this host. It listens for as long as it lives.
    pub(super) fn open_early(&mut self) -> io::Result<()> {
        if self.open.is_some() || self.is_far {
            return Ok(());
        }
        match self.open().map(drop) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                self.is_far = true;
                Ok(())
            }
            opened => opened,
        }
    }

    /// Returns the files. Opens them and sends them to the parent on first use.
    fn open(&mut self) -> io::Result<&mut Open> {
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let files = [unnamed_file()?, unnamed_file()?];
                let address = SocketAddr::from_abstract_name(&self.socket)?;
                let parent = UnixStream::connect_addr(&address)?;
                parent.set_read_timeout(Some(ACCEPT_TIMEOUT))?;
                let key = clock::now() ^ (u64::from(std::process::id()) << 40);
                send_files(&parent, Notice::Files { key }, &files)?;
                (&parent).read_exact(&mut [0])?;
                Open { key, parent, files, ends: [0; 2] }
            }
        };
        Ok(self.open.insert(open))
    }

    /// Sends a notice to the parent, if the files were sent.
    fn send(&mut self, notice: Notice) {
        if let Some(open) = &mut self.open {
            // A parent that is gone has killed this process, or is about to.
            let _ = open.parent.write_all(&notice.to_bytes());
        }
    }
}

impl Spiller {
    /// Waits for the parent's acknowledgement.
    fn wait_acknowledged(&mut self) {
        if let Some(open) = &mut self.open {
            let _ = open.parent.read_exact(&mut [0]);
        }
    }
}

/// Sends a notice with descriptors.
fn send_files(to: &UnixStream, notice: Notice, files: &[File; 2]) -> io::Result<()> {
    let fds = files.each_ref().map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let bytes = notice.to_bytes();
    let sent = sendmsg(to, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}

/// Creates an unnamed file in the temporary directory.
fn unnamed_file() -> io::Result<File> {
    let dir = std::env::temp_dir();
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    let unnamed = options.clone().custom_flags(libc::O_TMPFILE).open(&dir);
    match unnamed {
        // Without support of the file system, the file has a name for a moment.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            let name = format!(".procpool-{}-{}", std::process::id(), clock::now());
            let path = dir.join(name);
            let file = options.create_new(true).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        }
        other => other,
    }
}

/// Formats the error of output that cannot be stored.
pub(super) fn storage_error(error: &io::Error) -> String {
    if error.kind() == ErrorKind::FileTooLarge && error.raw_os_error().is_none() {
        return format!(
            "it printed more than {} MiB, the most from another host; redirect its output to a \
             file",
            MAX_FROM_AFAR >> 20
        );
    }
    let dir = std::env::temp_dir();
    format!(
        "failed to store its output in {dir:?}: {error}; set TMPDIR to a directory with free \
         space, or use --line-buffer"
    )
}

/// One of a job's two output streams.
pub(super) struct Capture {
    /// None after its end.
    from: Option<File>,
    /// The index of the stream.
    which: usize,
    /// The job's id, if its output may be shown live.
    shown: Option<u64>,
    /// The most bytes that stay in memory.
    most: usize,
    kept: Vec<u8>,
    /// Where its output starts and ends in the file, if it is there.
    range: Option<(u64, u64)>,
    /// Whether the kernel can move bytes to the file itself.
    splices: bool,
}

impl Capture {
    /// Reads from a pipe, which becomes non-blocking.
    pub(super) fn new(from: OwnedFd, which: usize, shown: Option<u64>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&from, true)?;
        let from = Some(File::from(from));
        let (kept, range) = (Vec::new(), None);
        Ok(Self { from, which, shown, most: IN_MEMORY, kept, range, splices: true })
    }

    /// Puts all output into the file at once, where it can be watched.
    pub(super) fn watched(self, job: u64) -> Self {
        Self { most: 0, shown: Some(job), ..self }
    }

    /// Returns the pipe to poll for more.
    pub(super) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.from.as_ref().map(AsFd::as_fd)
    }

    /// Reads what has arrived, up to [`MAX_PER_READ`] bytes. Returns whether there may be more.
    pub(super) fn pass(&mut self, spiller: &mut Spiller) -> io::Result<bool> {
        let mut taken = 0;
        while taken < MAX_PER_READ {
            let moved = match self.range {
                None => self.read(spiller),
                Some(_) => self.move_on(spiller),
            };
            match moved {
                Ok(0) => {
                    self.from = None;
                    return Ok(false);
                }
                Ok(length) => taken += length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Reads into memory, and moves everything to the file when it is too much.
    fn read(&mut self, spiller: &mut Spiller) -> io::Result<usize> {
        let Some(from) = &mut self.from else { return Ok(0) };
        let before = self.kept.len();
        self.kept.resize(before + IN_MEMORY, 0);
        let read = or_end(from.read(&mut self.kept[before..]));
        self.kept.truncate(before + *read.as_ref().unwrap_or(&0));
        let length = read?;
        if self.kept.len() > self.most && spiller.is_far() {
            if self.kept.len() > MAX_FROM_AFAR {
                return Err(ErrorKind::FileTooLarge.into());
            }
        } else if self.kept.len() > self.most {
            let _ = fcntl_setpipe_size(&*from, MAX_PER_READ); // it's faster, and no more than that
            let open = spiller.open()?;
            let start = open.ends[self.which].next_multiple_of(PAGE);
            open.files[self.which].write_all_at(&self.kept, start)?;
            open.ends[self.which] = start + self.kept.len() as u64;
            self.range = Some((start, open.ends[self.which]));
            self.kept = Vec::new();
            if let Some(id) = self.shown {
                spiller.send(Notice::Runs { which: self.which, id, start });
                spiller.wait_acknowledged();
            }
        }
        Ok(length)
    }

    /// Moves bytes to the end of the file.
    fn move_on(&mut self, spiller: &mut Spiller) -> io::Result<usize> {
        let (Some(from), Some((_, end))) = (&mut self.from, &mut self.range) else { return Ok(0) };
        let open = spiller.open()?;
        let file = &open.files[self.which];
        let mut length = 0;
        if self.splices {
            let mut at = *end;
            match splice(&*from, None, file, Some(&mut at), MAX_PER_READ, SpliceFlags::NONBLOCK) {
                Ok(moved) => length = moved,
                // A pseudo-terminal, which may have ended, or a file that cannot be written.
                Err(Errno::INVAL | Errno::IO) => self.splices = false,
                Err(error) => return Err(error.into()),
            }
        }
        if !self.splices {
            let mut block = [0; IN_MEMORY];
            length = or_end(from.read(&mut block))?;
            file.write_all_at(&block[..length], *end)?;
        }
        *end += length as u64;
        open.ends[self.which] = *end;
        Ok(length)
    }

    /// Returns the output, after the job and all its processes have ended.
    pub(super) fn finish(mut self, spiller: &mut Spiller) -> (Printed, io::Result<()>) {
        // Another process may hold the pipe open and write forever.
        let mut turns = 0;
        let passed = loop {
            match self.pass(spiller) {
                Ok(true) if turns < 16 => turns += 1,
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if let (Some(_), Some((_, end))) = (self.shown, self.range) {
            spiller.send(Notice::Ends { which: self.which, end });
            spiller.wait_acknowledged();
        }
        let printed = match (self.range, &mut spiller.open) {
            // It was there to be watched only.
            (Some((start, end)), Some(open)) if end - start <= IN_MEMORY as u64 => {
                let mut kept = vec![0; (end - start) as usize];
                let file = &open.files[self.which];
                let read = file.read_exact_at(&mut kept, start).and_then(|()| file.set_len(start));
                open.ends[self.which] = start;
                return (Printed::Here(Bytes::from(kept)), passed.and(read));
            }
            (Some((start, end)), Some(open)) => Printed::InFile(Range {
                key: open.key,
                which: self.which,
                start,
                length: end - start,
            }),
            _ => Printed::Here(Bytes::from(self.kept)),
        };
        (printed, passed)
    }
}

/// Returns the end of a pseudo-terminal, which is an error, as that of a pipe.
fn or_end(read: io::Result<usize>) -> io::Result<usize> {
    match read {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
        read => read,
    }
}

impl Spiller {
    /// Announces the result that names these ranges.
    pub(super) fn announce(&mut self, printed: [&Printed; 2]) {
        let count =
            printed.into_iter().filter(|it| matches!(it, Printed::InFile(_))).count() as u64;
        if count > 0 {
            self.send(Notice::Ranges { count });
        }
    }

    /// Frees the output of an attempt that is retried.
    pub(super) fn drop_range(&mut self, printed: &Printed) {
        if let (Printed::InFile(range), Some(open)) = (printed, &mut self.open) {
            let _ = open.files[range.which].set_len(range.start);
            open.ends[range.which] = range.start;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_notice_is_read_as_it_was_written() {
        let notices = [
            Notice::Files { key: 7 },
            Notice::Runs { which: 0, id: 1, start: 4096 },
            Notice::Runs { which: 1, id: 9, start: 8192 },
            Notice::Ranges { count: 2 },
            Notice::Ends { which: 0, end: 5000 },
            Notice::Ends { which: 1, end: 6000 },
        ];
        for notice in notices {
            assert_eq!(Notice::from_bytes(&notice.to_bytes()), Some(notice));
        }
        assert_eq!(Notice::from_bytes(&[9; NOTICE]), None);
    }
}
