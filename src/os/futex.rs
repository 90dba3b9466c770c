//! Futexes: sleeping on a word of shared memory.

#[cfg(all(test, loom))]
pub(crate) use self::model::{wait, wake};
#[cfg(not(all(test, loom)))]
pub(crate) use self::system::{wait, wake};

#[cfg(not(all(test, loom)))]
mod system {
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use rustix::io::Errno;
    use rustix::thread::futex::{self, Flags, Timespec};

    /// Sleeps until `word` is woken, if it is `value`. Returns false if `limit` expires first.
    pub(crate) fn wait(word: &AtomicU32, value: u32, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).ok();
        futex::wait(word, Flags::empty(), value, limit.as_ref()) != Err(Errno::TIMEDOUT)
    }

    /// Wakes up to `most` sleepers on `word` in all processes. Returns how many it woke.
    pub(crate) fn wake(word: &AtomicU32, most: u32) -> usize {
        // The kernel's count is signed.
        futex::wake(word, Flags::empty(), most.min(i32::MAX as u32)).unwrap_or(0)
    }
}

/// The kernel's guarantees, without time limits: under one lock, a sleeper compares the word and starts to
/// sleep, and a waker wakes sleepers. There is one queue, so a model can sleep on one word only. No sleep
/// times out, so a lost wake-up is a deadlock in a model.
#[cfg(all(test, loom))]
mod model {
    use std::sync::atomic::Ordering::SeqCst;
    use std::time::Duration;

    use loom::sync::{Condvar, Mutex};

    use crate::atomic::AtomicU32;

    #[derive(Default)]
    struct Queue {
        sleepers: usize,
        /// How many sleepers have been woken and have not continued yet.
        woken: usize,
    }

    loom::lazy_static! {
        static ref QUEUE: (Mutex<Queue>, Condvar) = Default::default();
    }

    pub(crate) fn wait(word: &AtomicU32, value: u32, _: Duration) -> bool {
        let mut queue = QUEUE.0.lock().expect("no thread panics with the queue");
        if word.load(SeqCst) != value {
            return true;
        }
        queue.sleepers += 1;
        while queue.woken == 0 {
            queue = QUEUE.1.wait(queue).expect("no thread panics with the queue");
        }
        queue.woken -= 1;
        true
    }

    pub(crate) fn wake(_: &AtomicU32, most: u32) -> usize {
        let mut queue = QUEUE.0.lock().expect("no thread panics with the queue");
        let woken = queue.sleepers.min(most as usize);
        queue.sleepers -= woken;
        queue.woken += woken;
        QUEUE.1.notify_all();
        woken
    }
}
