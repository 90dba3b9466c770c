//! A bounded queue between threads whose receiver takes everything at once.
//!
//! A channel hands over one item at a time. If one side waits for the other, each item then costs a
//! wake-up, which is more than many tasks cost. Here the receiver takes all items, and a sender
//! that found the queue full sleeps until it is empty.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(super) struct BatchQueue<T> {
    contents: Mutex<Contents<T>>,
    /// There is an item, or the queue is closed.
    not_empty: Condvar,
    /// There is capacity, or the queue is closed.
    not_full: Condvar,
    capacity: usize,
}

struct Contents<T> {
    items: VecDeque<T>,
    closed: bool,
}

/// The outcome of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecvOutcome {
    /// There were items.
    Received,
    /// There were none within the timeout.
    TimedOut,
    /// The queue is closed and empty.
    Closed,
}

impl<T> BatchQueue<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            contents: Mutex::new(Contents { items: VecDeque::new(), closed: false }),
            not_empty: Condvar::new(),
            not_full: Condvar::new(),
            capacity,
        }
    }

    /// Blocks until there is capacity, and adds an item. Returns false if the queue is closed.
    pub(super) fn send(&self, item: T) -> bool {
        let mut contents = self.lock();
        while contents.items.len() >= self.capacity && !contents.closed {
            contents = self.not_full.wait(contents).unwrap_or_else(PoisonError::into_inner);
        }
        self.push(contents, item)
    }

    /// Adds an item regardless of capacity. Returns false if the queue is closed.
    pub(super) fn send_over_capacity(&self, item: T) -> bool {
        self.push(self.lock(), item)
    }

    /// Moves all items to the end of `items`. If there are none, blocks for the timeout, or forever
    /// without one.
    pub(super) fn recv(&self, items: &mut VecDeque<T>, timeout: Option<Duration>) -> RecvOutcome {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut contents = self.lock();
        while contents.items.is_empty() {
            if contents.closed {
                return RecvOutcome::Closed;
            }
            contents = match deadline.map(|end| end.saturating_duration_since(Instant::now())) {
                None => self.not_empty.wait(contents).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return RecvOutcome::TimedOut,
                Some(rest) => {
                    let waited = self.not_empty.wait_timeout(contents, rest);
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
            self.not_full.notify_all();
        }
        RecvOutcome::Received
    }

    /// Closes the queue. Items in it can still be received.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.not_empty.notify_all();
        self.not_full.notify_all();
    }

    fn push(&self, mut contents: MutexGuard<'_, Contents<T>>, item: T) -> bool {
        if contents.closed {
            return false;
        }
        let was_empty = contents.items.is_empty();
        contents.items.push_back(item);
        drop(contents);
        if was_empty {
            self.not_empty.notify_one();
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Contents<T>> {
        // No foreign code runs under the lock, so a panic cannot leave the contents inconsistent.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::thread;

    fn all(queue: &BatchQueue<u32>) -> Vec<u32> {
        let (mut all, mut items) = (Vec::new(), VecDeque::new());
        while queue.recv(&mut items, None) == RecvOutcome::Received {
            all.extend(items.drain(..));
        }
        all
    }

    #[test]
    fn everything_arrives_in_order_through_a_small_box() {
        let queue = BatchQueue::new(3);
        thread::scope(|scope| {
            scope.spawn(|| {
                assert!((0..10_000).all(|item| queue.send(item)));
                queue.close();
            });
            assert_eq!(all(&queue), (0..10_000).collect::<Vec<_>>());
        });
    }

    #[test]
    fn senders_of_a_closed_box_are_told() {
        let queue = BatchQueue::new(1);
        assert!(queue.send(1) && queue.send_over_capacity(2));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.send(3));
            queue.close();
            assert!(!waiting.join().unwrap());
        });
        assert!(!queue.send_over_capacity(4));
        assert_eq!(all(&queue), [1, 2]);
    }

    #[test]
    fn a_timeout_ends_the_wait() {
        let queue = BatchQueue::new(1);
        let mut items = VecDeque::new();
        assert_eq!(queue.recv(&mut items, Some(Duration::ZERO)), RecvOutcome::TimedOut);
        assert_eq!(queue.recv(&mut items, Some(Duration::from_millis(1))), RecvOutcome::TimedOut);
        queue.send(7);
        assert_eq!(queue.recv(&mut items, Some(Duration::ZERO)), RecvOutcome::Received);
        queue.close();
        assert_eq!(queue.recv(&mut items, None), RecvOutcome::Closed);
        assert_eq!(items, [7]);
    }
}
