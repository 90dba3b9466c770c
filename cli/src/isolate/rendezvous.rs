//! Synchronises the tasks of a case, in threads or processes, by a few bytes in a memory file. The
//! file vanishes with the process that holds it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::cases::BYSTANDERS;

/// Offset of the PID of the failing process. Before it, one byte per bystander.
const ACTING: u64 = BYSTANDERS as u64;

/// Offset of the byte that ends the case.
const OVER: u64 = ACTING + 4;

/// Poll interval: short enough to lose no time, long enough to cost none.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// Owns the file.
pub(super) struct RendezvousFile(File);

/// The path of the file, for the tasks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Rendezvous(PathBuf);

impl RendezvousFile {
    pub(super) fn new() -> io::Result<Self> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create(c"procpool-isolate", flags)?);
        file.set_len(OVER + 1)?;
        Ok(Self(file))
    }

    pub(super) fn rendezvous(&self) -> Rendezvous {
        Rendezvous(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into())
    }
}

impl Rendezvous {
    pub(super) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Reports that a bystander is in the middle of its work.
    pub(super) fn set_ready(&self, bystander: usize) {
        self.write(bystander as u64, &[1]);
    }

    /// Waits until all bystanders are.
    pub(super) fn wait_ready(&self, timeout: Duration) -> bool {
        wait(timeout, || self.read::<BYSTANDERS>(0) == [1; BYSTANDERS])
    }

    /// Reports that the fault happens now, in this process.
    pub(super) fn set_acting(&self) {
        self.write(ACTING, &std::process::id().to_le_bytes());
    }

    /// Waits for the fault. Returns the process.
    pub(super) fn wait_acting(&self, timeout: Duration) -> Option<u32> {
        let pid = || u32::from_le_bytes(self.read(ACTING));
        wait(timeout, || pid() != 0).then(pid)
    }

    /// Reports that the fault is over.
    pub(super) fn set_over(&self) {
        self.write(OVER, &[1]);
    }

    /// Waits until the fault is over.
    pub(super) fn wait_over(&self, timeout: Duration) -> bool {
        wait(timeout, || self.read(OVER) == [1])
    }

    /// Opens the file each time: the fault could close a descriptor that is kept.
    fn write(&self, at: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(&self.0);
        // The waiting side reports a timeout.
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

/// Polls until the condition holds. Returns whether it did within the timeout.
pub(super) fn wait(timeout: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
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
