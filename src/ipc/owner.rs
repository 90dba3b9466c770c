//! The owner of a lock or permit: a process, identified uniquely despite reused PIDs.

use std::fs;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

/// A process, identified by its PID and its start time in one word that is never zero. PIDs are reused,
/// pairs are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(u64);

/// PIDs have 22 bits. The remaining 42 bits hold the clock ticks of a thousand years.
const PID_BITS: u32 = 22;

impl Owner {
    /// Returns this process.
    pub(crate) fn own() -> Self {
        static OWN: AtomicU64 = AtomicU64::new(0);
        static AT_FORK: Once = Once::new();
        extern "C" fn forget() {
            OWN.store(0, Relaxed);
        }
        let known = OWN.load(Relaxed);
        if known != 0 {
            return Self(known);
        }
        // A forked copy is another process.
        AT_FORK.call_once(|| crate::os::process::after_fork(forget));
        let pid = std::process::id();
        // If it cannot be read for lack of a descriptor, it is zero this time.
        let start = start_time(pid).unwrap_or(0);
        let own = (start << PID_BITS) | u64::from(pid);
        if start != 0 {
            OWN.store(own, Relaxed);
        }
        Self(own)
    }

    pub(crate) fn from_word(word: u64) -> Option<Self> {
        (word != 0).then_some(Self(word))
    }

    pub(crate) fn word(self) -> u64 {
        self.0
    }

    pub(crate) fn pid(self) -> u32 {
        (self.0 & ((1 << PID_BITS) - 1)) as u32
    }

    /// Returns whether the process is running; true if that cannot be determined. A process counts as dead
    /// only if the kernel reports that it does not exist, or that another one has its PID. A missing file in
    /// `/proc` does not suffice: it may be hidden, or outside of this process's root.
    pub(crate) fn is_alive(self) -> bool {
        if self == Self::own() {
            return true;
        }
        let Some(pid) = Pid::from_raw(self.pid().cast_signed()) else { return false };
        if has_ended(pid) {
            return false;
        }
        // Another process may have the same PID.
        let known = self.0 >> PID_BITS;
        known == 0
            || start_time(self.pid()).is_none_or(|start| (start << PID_BITS) >> PID_BITS == known)
    }
}

/// Returns whether the kernel reports that all threads of a process have ended, even if its exit status has
/// not been collected yet. A process whose first thread alone has ended still runs.
fn has_ended(pid: Pid) -> bool {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => {
            let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
            let answered = rustix::event::poll(&mut polled, Some(&Timespec::default()));
            answered.is_ok() && polled[0].revents().contains(PollFlags::IN)
        }
        Err(Errno::SRCH) => true,
        // Without a descriptor, or if the call is refused, a death is detected only after the exit status
        // was collected.
        Err(_) => test_kill_process(pid) == Err(Errno::SRCH),
    }
}

/// Returns the start time of a process in clock ticks since boot, or `None` if it cannot be read.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain any characters.
    let mut fields = stat.rsplit(") ").next()?.split(' ');
    fields.nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_is_dead_once_it_has_ended_even_if_it_is_not_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let start = start_time(child.id()).unwrap();
        let owner = Owner((start << PID_BITS) | u64::from(child.id()));
        assert!(owner.is_alive() && owner.pid() == child.id());
        assert!(!Owner(((start + 1) << PID_BITS) | u64::from(child.id())).is_alive());
        child.kill().unwrap();
        while owner.is_alive() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!owner.is_alive());
    }

    #[test]
    fn this_process_is_alive_and_every_word_can_be_read() {
        assert!(Owner::own().is_alive());
        assert_eq!(Owner::own().pid(), std::process::id());
        assert_eq!(Owner::from_word(0), None);
        assert!(!Owner::from_word(u64::MAX).unwrap().is_alive());
    }
}
