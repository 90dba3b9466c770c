//! How those who take part know of each other, be they threads or processes: a few bytes in a file
//! in memory, which is gone with the process that holds it, however that ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::cases::NEIGHBOURS;

/// Where the PID of the process in which it goes wrong stands; before it, a byte for each neighbour.
const ACTING: u64 = NEIGHBOURS as u64;

/// Where it stands that it is over.
const OVER: u64 = ACTING + 4;

/// Often enough to lose no time, seldom enough to take none.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// Holds the file.
pub(super) struct Stage(File);

/// A way to it, for whoever takes part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Scene(PathBuf);

impl Stage {
    pub(super) fn new() -> io::Result<Self> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create(c"procpool-isolate", flags)?);
        file.set_len(OVER + 1)?;
        Ok(Self(file))
    }

    pub(super) fn scene(&self) -> Scene {
        Scene(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into())
    }
}

impl Scene {
    pub(super) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// A neighbour is in the middle of its work.
    pub(super) fn set_ready(&self, neighbour: usize) {
        self.write(neighbour as u64, &[1]);
    }

    /// Waits until all neighbours are.
    pub(super) fn wait_ready(&self, patience: Duration) -> bool {
        wait(patience, || self.read::<NEIGHBOURS>(0) == [1; NEIGHBOURS])
    }

    /// It is going wrong now, in this process.
    pub(super) fn set_acting(&self) {
        self.write(ACTING, &std::process::id().to_le_bytes());
    }

    /// Waits until it is going wrong; gives where.
    pub(super) fn wait_acting(&self, patience: Duration) -> Option<u32> {
        let pid = || u32::from_le_bytes(self.read(ACTING));
        wait(patience, || pid() != 0).then(pid)
    }

    /// It has gone wrong, as far as it will.
    pub(super) fn set_over(&self) {
        self.write(OVER, &[1]);
    }

    /// Waits until it has.
    pub(super) fn wait_over(&self, patience: Duration) -> bool {
        wait(patience, || self.read(OVER) == [1])
    }

    /// Opened anew each time: a descriptor that is kept could be closed by what goes wrong.
    fn write(&self, at: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(&self.0);
        // Whoever waits for it in vain says so.
        let _ = file.and_then(|file| file.write_all_at(bytes, at));
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let file = File::open(&self.0);
        match file.and_then(|file| file.read_exact_at(&mut bytes, at)) {
            Ok(()) => bytes,
            Err(_) => [0; N],
        }
    }
}

/// Waits until it holds; whether it did in that time.
pub(super) fn wait(patience: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(BETWEEN_LOOKS);
    }
}
