//! Admission: a bound on what waits in the queue, for callers that ask for room first.
//!
//! A call asks for a place and holds it until a worker gets the call, or it fails. Places are given in the order in
//! which they are asked for. Wakers are user code: they are collected under a lock and [woken](Admission::wake)
//! under none.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::pool::observe::callbacks::contain;

/// The bound on the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) items: u64,
    pub(crate) bytes: u64,
}

impl Default for Bound {
    fn default() -> Self {
        Self { items: u64::MAX, bytes: u64::MAX }
    }
}

/// Who waits for a place, and how many have one.
#[derive(Debug)]
pub(crate) struct Admission {
    bound: Bound,
    state: Mutex<State>,
    /// Whether somebody has to be woken. Checked without the lock.
    has_ready: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    items: u64,
    bytes: u64,
    /// Those who wait, by number, in order.
    waiting: VecDeque<(u64, Waker)>,
    /// Those who have a place and don't know.
    granted: HashSet<u64>,
    /// Their wakers.
    ready: Vec<Waker>,
    next: u64,
    is_closed: bool,
}

/// The pool is closed.
#[derive(Debug)]
pub(crate) struct Closed;

/// A place that a call holds until it leaves the queue.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Arc<Admission>,
    bytes: u64,
    is_held: AtomicBool,
}

impl Admission {
    pub(crate) fn new(bound: Bound) -> Arc<Self> {
        Arc::new(Self { bound, state: Mutex::default(), has_ready: AtomicBool::new(false) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, state: &State) -> bool {
        state.items < self.bound.items && state.bytes < self.bound.bytes
    }

    /// Takes a place, if there is one and nobody waits. In a closed pool there is always one: the call fails.
    pub(crate) fn try_take(&self) -> bool {
        let mut state = self.state();
        let has_room = state.is_closed || (state.waiting.is_empty() && self.has_room(&state));
        state.items += u64::from(has_room);
        has_room
    }

    /// Takes a place, or waits for one: `waker` is woken when there is one. `number` identifies who asks, from the
    /// first time on.
    pub(crate) fn poll_take(
        &self,
        number: &mut Option<u64>,
        waker: &Waker,
    ) -> Poll<Result<(), Closed>> {
        // User code.
        let waker = waker.clone();
        let mut state = self.state();
        if let Some(known) = *number
            && state.granted.remove(&known)
        {
            *number = None;
            return Poll::Ready(Ok(()));
        }
        if state.is_closed {
            *number = None;
            return Poll::Ready(Err(Closed));
        }
        let before = match number {
            None if state.waiting.is_empty() && self.has_room(&state) => {
                state.items += 1;
                return Poll::Ready(Ok(()));
            }
            None => {
                let new = state.next;
                (state.next, *number) = (new + 1, Some(new));
                state.waiting.push_back((new, waker));
                None
            }
            Some(known) => {
                let place = state.waiting.iter_mut().find(|(waiting, _)| waiting == known);
                place.map(|(_, old)| std::mem::replace(old, waker))
            }
        };
        drop(state);
        drop(before);
        Poll::Pending
    }

    /// Stops waiting. A place that was given meanwhile is given to the next.
    pub(crate) fn forget(&self, number: u64) {
        let mut state = self.state();
        let waiter = match state.granted.remove(&number) {
            true => {
                self.free(&mut state, 0);
                None
            }
            false => {
                let at = state.waiting.iter().position(|(waiting, _)| *waiting == number);
                at.and_then(|at| state.waiting.remove(at))
            }
        };
        drop(state);
        drop(waiter);
        self.wake();
    }

    /// Turns a place into that of a call whose argument has so many bytes.
    pub(crate) fn hold(self: &Arc<Self>, bytes: u64) -> Place {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_add(bytes);
        Place { admission: Arc::clone(self), bytes, is_held: AtomicBool::new(true) }
    }

    /// Gives a place back. Wakes nobody.
    fn free(&self, state: &mut State, bytes: u64) {
        state.items -= 1;
        state.bytes -= bytes.min(state.bytes);
        while self.has_room(state)
            && let Some((number, waker)) = state.waiting.pop_front()
        {
            state.items += 1;
            state.granted.insert(number);
            state.ready.push(waker);
            self.has_ready.store(true, Ordering::Release);
        }
    }

    /// Gives back a place that no call has used.
    pub(crate) fn give_back(&self) {
        self.free(&mut self.state(), 0);
        self.wake();
    }

    /// Wakes those who have got a place. Must be called under no lock.
    pub(crate) fn wake(&self) {
        if self.has_ready.swap(false, Ordering::AcqRel) {
            let ready = std::mem::take(&mut self.state().ready);
            wake_all(ready);
        }
    }

    /// Ends all waits. Must be called under no lock.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let waiting: Vec<_> = state.waiting.drain(..).map(|(_, waker)| waker).collect();
        drop(state);
        wake_all(waiting);
    }

    /// Returns how many items and bytes hold a place.
    #[cfg(test)]
    fn held(&self) -> (u64, u64) {
        let state = self.state();
        (state.items, state.bytes)
    }
}

/// Wakers are user code, which may panic.
fn wake_all(wakers: Vec<Waker>) {
    for waker in wakers {
        let _ = contain(|| waker.wake());
    }
}

impl Place {
    /// Gives the place back, once. Returns whose [`wake`](Admission::wake) to call, under no lock.
    pub(crate) fn leave(&self) -> Option<&Arc<Admission>> {
        if !self.is_held.swap(false, Ordering::AcqRel) {
            return None;
        }
        self.admission.free(&mut self.admission.state(), self.bytes);
        Some(&self.admission)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn places_are_given_in_order_and_none_is_lost() {
        let admission = Admission::new(Bound { items: 2, bytes: u64::MAX });
        let wakes: Vec<_> = (0..3).map(|_| Arc::new(Count::default())).collect();
        assert!(admission.try_take() && admission.try_take() && !admission.try_take());
        let places: Vec<_> = (0..2).map(|_| admission.hold(10)).collect();
        let mut numbers = [None; 3];
        for (number, wake) in numbers.iter_mut().zip(&wakes) {
            assert!(admission.poll_take(number, &Arc::clone(wake).into()).is_pending());
        }
        places[0].leave().expect("it was held").wake();
        assert!(places[0].leave().is_none(), "once");
        assert!(!admission.try_take(), "it is the first waiter's");
        let count = |at: usize| wakes[at].0.load(Ordering::SeqCst);
        assert_eq!((count(0), count(1)), (1, 0));
        // The first does not want it any more.
        admission.forget(numbers[0].expect("it waits"));
        assert_eq!((count(1), count(2)), (1, 0));
        let second = admission.poll_take(&mut numbers[1], &Arc::clone(&wakes[1]).into());
        assert!(matches!(second, Poll::Ready(Ok(()))));
        assert_eq!(admission.held(), (2, 10));
        admission.close();
        assert_eq!(count(2), 1);
        let third = admission.poll_take(&mut numbers[2], &Arc::clone(&wakes[2]).into());
        assert!(matches!(third, Poll::Ready(Err(Closed))));
        admission.give_back();
        places[1].leave();
        assert_eq!(admission.held(), (0, 0));
    }

    #[test]
    fn one_call_fits_whatever_its_bytes() {
        let admission = Admission::new(Bound { items: u64::MAX, bytes: 100 });
        assert!(admission.try_take());
        let large = admission.hold(1000);
        assert!(!admission.try_take());
        large.leave();
        assert!(admission.try_take());
        admission.hold(99);
        assert!(admission.try_take(), "there is a byte left");
    }
}
