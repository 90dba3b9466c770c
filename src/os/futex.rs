//! Sleeping on a word of shared memory.

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

    /// Sleeps until `word` is woken, as long as it is `value`; false if `limit` is over before.
    pub(crate) fn wait(word: &AtomicU32, value: u32, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).ok();
        futex::wait(word, Flags::empty(), value, limit.as_ref()) != Err(Errno::TIMEDOUT)
    }

    /// Wakes up to `most` of those that sleep on `word`, in whatever process they are,
    /// and says how many that were.
    pub(crate) fn wake(word: &AtomicU32, most: u32) -> usize {
        // The kernel counts in signed numbers.
        futex::wake(word, Flags::empty(), most.min(i32::MAX as u32)).unwrap_or(0)
    }
}

/// What the kernel promises, without its time limits: under one lock, a sleeper compares the word and
/// begins to sleep, and a waker wakes those that sleep. There is one queue, so a model has one word that
/// is slept on. No sleep ends by itself: in a model, a wake-up that is lost is a deadlock.
#[cfg(all(test, loom))]
mod model {
    use std::sync::atomic::Ordering::SeqCst;
    use std::time::Duration;

    use loom::sync::{Condvar, Mutex};

    use crate::atomic::AtomicU32;

    #[derive(Default)]
    struct Queue {
        sleepers: usize,
        /// How many of them are to go on.
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
