//! A bounded queue between threads that is emptied in one go.
//!
//! A channel hands over one thing at a time: with one side waiting for the other, every item costs
//! a wake-up, which is more than many a task costs. Here the receiver takes all there is, and a
//! sender that found the box full sleeps until it is empty again.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(super) struct Mailbox<T> {
    contents: Mutex<Contents<T>>,
    /// There is something to take, or the box is closed.
    filled: Condvar,
    /// There is room, or the box is closed.
    emptied: Condvar,
    capacity: usize,
}

struct Contents<T> {
    items: VecDeque<T>,
    closed: bool,
}

/// What became of an attempt to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// There was something.
    Some,
    /// There was nothing in that time.
    NothingYet,
    /// There is nothing and there will be nothing.
    End,
}

impl<T> Mailbox<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            contents: Mutex::new(Contents { items: VecDeque::new(), closed: false }),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            capacity,
        }
    }

    /// Puts an item in, once there is room; false if the box is closed.
    pub(super) fn put(&self, item: T) -> bool {
        let mut contents = self.lock();
        while contents.items.len() >= self.capacity && !contents.closed {
            contents = self.emptied.wait(contents).unwrap_or_else(PoisonError::into_inner);
        }
        self.put_into(contents, item)
    }

    /// Puts an item in, be there room or not; false if the box is closed.
    pub(super) fn put_at_once(&self, item: T) -> bool {
        self.put_into(self.lock(), item)
    }

    /// Takes out all there is and adds it to `items`. If there is nothing, waits for that long, or
    /// for ever.
    pub(super) fn take(&self, items: &mut VecDeque<T>, patience: Option<Duration>) -> Taken {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut contents = self.lock();
        while contents.items.is_empty() {
            if contents.closed {
                return Taken::End;
            }
            contents = match deadline.map(|end| end.saturating_duration_since(Instant::now())) {
                None => self.filled.wait(contents).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Taken::NothingYet,
                Some(rest) => {
                    let waited = self.filled.wait_timeout(contents, rest);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let was_full = contents.items.len() >= self.capacity;
        if items.is_empty() {
            std::mem::swap(items, &mut contents.items);
        } else {
            items.append(&mut contents.items);
        }
        drop(contents);
        if was_full {
            self.emptied.notify_all();
        }
        Taken::Some
    }

    /// Nothing more can be put in. What is in can still be taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
        self.emptied.notify_all();
    }

    fn put_into(&self, mut contents: MutexGuard<'_, Contents<T>>, item: T) -> bool {
        if contents.closed {
            return false;
        }
        let was_empty = contents.items.is_empty();
        contents.items.push_back(item);
        drop(contents);
        if was_empty {
            self.filled.notify_one();
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Contents<T>> {
        // No code of others runs under the lock: contents that were left by a panic are whole.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::thread;

    fn all(mailbox: &Mailbox<u32>) -> Vec<u32> {
        let (mut all, mut items) = (Vec::new(), VecDeque::new());
        while mailbox.take(&mut items, None) == Taken::Some {
            all.extend(items.drain(..));
        }
        all
    }

    #[test]
    fn everything_arrives_in_order_through_a_small_box() {
        let mailbox = Mailbox::new(3);
        thread::scope(|scope| {
            scope.spawn(|| {
                assert!((0..10_000).all(|item| mailbox.put(item)));
                mailbox.close();
            });
            assert_eq!(all(&mailbox), (0..10_000).collect::<Vec<_>>());
        });
    }

    #[test]
    fn senders_of_a_closed_box_are_told() {
        let mailbox = Mailbox::new(1);
        assert!(mailbox.put(1) && mailbox.put_at_once(2));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| mailbox.put(3));
            mailbox.close();
            assert!(!waiting.join().unwrap());
        });
        assert!(!mailbox.put_at_once(4));
        assert_eq!(all(&mailbox), [1, 2]);
    }

    #[test]
    fn patience_ends() {
        let mailbox = Mailbox::new(1);
        let mut items = VecDeque::new();
        assert_eq!(mailbox.take(&mut items, Some(Duration::ZERO)), Taken::NothingYet);
        assert_eq!(mailbox.take(&mut items, Some(Duration::from_millis(1))), Taken::NothingYet);
        mailbox.put(7);
        assert_eq!(mailbox.take(&mut items, Some(Duration::ZERO)), Taken::Some);
        mailbox.close();
        assert_eq!(mailbox.take(&mut items, None), Taken::End);
        assert_eq!(items, [7]);
    }
}
