//! Who holds something: a process, named so that no other is ever taken for it.

use std::fs;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

/// A process by its PID and the time at which it has started, in one word that is never zero. PIDs are
/// given again, but not both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(u64);

/// PIDs go up to 2^22. What is left is enough for the clock ticks of a thousand years.
const PID_BITS: u32 = 22;

impl Owner {
    /// This process.
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
        // A copy that is made by fork is another process.
        AT_FORK.call_once(|| crate::os::process::after_fork(forget));
        let pid = std::process::id();
        // Where it can't be read now, for want of a descriptor, it stays zero for this time.
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

    /// Whether the process still runs. Where it can't be known, it does: only the kernel's word that
    /// there is no such process, or that it is another one, counts as a death. A missing file in
    /// `/proc` does not, which may be hidden, or lie outside of this process's root.
    pub(crate) fn is_alive(self) -> bool {
        if self == Self::own() {
            return true;
        }
        let Some(pid) = Pid::from_raw(self.pid().cast_signed()) else { return false };
        if has_ended(pid) {
            return false;
        }
        // It may be another process that was given the same number.
        let known = self.0 >> PID_BITS;
        known == 0
            || start_time(self.pid()).is_none_or(|start| (start << PID_BITS) >> PID_BITS == known)
    }
}

/// Whether the kernel says that all threads of a process have ended, even if nobody has collected its
/// exit status yet. Its first thread alone may have ended: then it still runs.
fn has_ended(pid: Pid) -> bool {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => {
            let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
            let answered = rustix::event::poll(&mut polled, Some(&Timespec::default()));
            answered.is_ok() && polled[0].revents().contains(PollFlags::IN)
        }
        Err(Errno::SRCH) => true,
        // Without a descriptor, or where the call is refused, a process is only missed once its exit
        // status was collected.
        Err(_) => test_kill_process(pid) == Err(Errno::SRCH),
    }
}

/// When a process has started, in clock ticks since the system has; none if that can't be read.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit(") ").next()?.split(' ');
    fields.nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_has_ended_even_if_nobody_has_waited_for_it() {
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
    fn this_process_is_itself_and_any_word_is_some_process_or_none() {
        assert!(Owner::own().is_alive());
        assert_eq!(Owner::own().pid(), std::process::id());
        assert_eq!(Owner::from_word(0), None);
        assert!(!Owner::from_word(u64::MAX).unwrap().is_alive());
    }
}
