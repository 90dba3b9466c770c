//! A job: the items of one API call, and the inbox for their outcomes. Drivers deliver here; handles and
//! iterators take from here. The [`Ledger`] in between accepts each item once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use procpool_worker::function::{FnRef, ForeignFunction};
use procpool_worker::note::Progress;

use crate::pool::call::context::Context;
use crate::pool::call::emitted::{RawUpdate, UpdateError, UpdateQueue};
use crate::pool::call::ledger::Ledger;
use crate::pool::call::outcome::Delivery;
use crate::pool::drive::destination::Destination;
use crate::pool::observe::events::Deferred;
use crate::pool::options::TaskOptions;
use crate::pool::schedule::admission::Place;
use crate::pool::schedule::cost::CostEstimate;

/// No result arrived within the time limit, from [`Results::next_timeout`](crate::Results::next_timeout).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no result within the time limit: the call continues and can be polled again")]
pub struct Timeout;

/// What the items of a job have said: the values, how many were dropped, and how far an item is.
pub(crate) type TakenUpdates = (Vec<RawUpdate>, u64, Option<(u64, Progress)>);

/// One API call.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) call: Result<FnRef, ForeignFunction>,
    pub(crate) options: TaskOptions,
    pub(crate) cost: Arc<CostEstimate>,
    /// Context that its items share.
    pub(crate) context: Option<Arc<Context>>,
    /// Random state of the first item; see [`seed`](procpool_worker::seed). The others follow it.
    pub(crate) seed: u64,
    /// Added to an item's number in the ledger to make its id.
    pub(crate) offset: u64,
    /// Whether its result was taken, which is possible once.
    pub(crate) taken: AtomicBool,
    /// Whether it was cancelled: none of its items may start.
    pub(crate) cancelled: AtomicBool,
    /// Whether the caller collects all outcomes before it uses any, so that single outcomes need not wake it.
    pub(crate) collects_all: AtomicBool,
    /// Whether it is a single call, which shares a flow of the queue with the others.
    is_single: AtomicBool,
    /// Where its results go, if they are numbers that the caller collects in a vector.
    destination: OnceLock<Arc<Destination>>,
    /// The place in the queue that it holds, if it has asked for one.
    place: OnceLock<Place>,
    /// The virtual time up to which it has had its part of the workers, in nanoseconds. Changed under the scheduler's lock.
    pub(crate) had: AtomicU64,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    deliveries: VecDeque<Delivery>,
    /// Number of waiting threads: a notification costs a system call even without waiters.
    waiting: u32,
    /// Waiters are not woken while more items than this are open.
    most_open: u64,
    waker: Option<Waker>,
    /// What its tasks say while they run.
    updates: UpdateQueue,
    /// Called when the last item is settled.
    when_done: Option<Box<dyn FnOnce() + Send>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("ledger", &self.ledger).finish_non_exhaustive()
    }
}

impl Job {
    pub(crate) fn new(
        call: Result<FnRef, ForeignFunction>,
        options: TaskOptions,
        cost: Arc<CostEstimate>,
        offset: u64,
        context: Option<Arc<Context>>,
        seed: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            call,
            options,
            cost,
            context,
            seed,
            offset,
            taken: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            collects_all: AtomicBool::new(false),
            is_single: AtomicBool::new(false),
            destination: OnceLock::new(),
            place: OnceLock::new(),
            had: AtomicU64::new(0),
            state: Mutex::default(),
            arrived: Condvar::new(),
        })
    }

    /// Whether items of both jobs can share a chunk: timeout, chunk size and context apply to a whole chunk.
    pub(crate) fn can_share_chunk(&self, other: &Self) -> bool {
        let context = |job: &Self| job.context.as_ref().map(|context| context.id);
        self.options.timeout == other.options.timeout
            && self.options.chunk_size == other.options.chunk_size
            && context(self) == context(other)
    }

    /// Marks it as a single call, before it is queued.
    pub(crate) fn set_single(&self) {
        self.is_single.store(true, Relaxed);
    }

    /// Sets where its results go, before its first item is queued.
    pub(crate) fn set_destination(&self, destination: Arc<Destination>) {
        let _ = self.destination.set(destination);
    }

    pub(crate) fn destination(&self) -> Option<&Arc<Destination>> {
        self.destination.get()
    }

    /// Sets the place in the queue that it holds.
    pub(crate) fn set_place(&self, place: Place) {
        let _ = self.place.set(place);
    }

    /// Gives back its place in the queue, if it has one. Those who get it are to be woken by
    /// [`Admission::wake`](crate::pool::schedule::admission::Admission::wake).
    pub(crate) fn leave_queue(&self) {
        self.place.get().map(Place::leave);
    }

    pub(crate) fn is_single(&self) -> bool {
        self.is_single.load(Relaxed)
    }

    pub(crate) fn priority(&self) -> i32 {
        self.options.priority.unwrap_or(0)
    }

    /// Returns the target duration of a chunk, in nanoseconds.
    pub(crate) fn target_duration(&self) -> u64 {
        if self.collects_all.load(Relaxed) { CostEstimate::LONG_CHUNK } else { CostEstimate::CHUNK }
    }

    /// Whether the chunk size is adaptive and no cost has been measured.
    pub(crate) fn is_of_unknown_speed(&self) -> bool {
        self.options.chunk_size.is_none() && self.cost.nanos() == 0
    }

    /// Returns the chunk size: as configured, or to match the target duration.
    pub(crate) fn chunk(&self) -> u32 {
        self.options.chunk_size.unwrap_or_else(|| self.cost.chunk(self.target_duration()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves new items and returns the first one's number.
    pub(crate) fn reserve(&self, items: u64) -> u64 {
        self.state().ledger.reserve(items)
    }

    /// Settles the items of a delivery. Returns false, without effect, if they were settled before. Adds
    /// wakers and callbacks to `calls`.
    pub(crate) fn deliver(&self, delivery: Delivery, calls: &mut Deferred) -> bool {
        let mut state = self.state();
        let ids = delivery.first..delivery.first + u64::from(delivery.items);
        let settled = state.ledger.settle(ids);
        // An item is in one place only, so either all of these are open or none.
        debug_assert!(settled == 0 || settled == u64::from(delivery.items));
        if settled == 0 {
            return false;
        }
        if state.deliveries.capacity() == 0 {
            // Most calls have one item, and so one delivery.
            state.deliveries.reserve_exact(1);
        }
        state.deliveries.push_back(delivery);
        self.announce(state, calls);
        true
    }

    fn announce(&self, mut state: MutexGuard<'_, State>, calls: &mut Deferred) {
        let waker = state.waker.take();
        let is_over = state.ledger.open() == 0;
        let when_done = if is_over { state.when_done.take() } else { None };
        let update_waker = if is_over { state.updates.waker.take() } else { None };
        let is_awaited = state.waiting > 0 && state.ledger.open() <= state.most_open;
        drop(state);
        if is_awaited {
            self.arrived.notify_all();
        }
        if let Some(waker) = waker {
            calls.add(Box::new(|| waker.wake()));
        }
        if is_over && let Some(admission) = self.place.get().and_then(Place::leave) {
            let admission = Arc::clone(admission);
            calls.add(Box::new(move || admission.wake()));
        }
        if let Some(waker) = update_waker {
            calls.add(Box::new(|| waker.wake()));
        }
        if let Some(when_done) = when_done {
            calls.add(when_done);
        }
    }

    /// Adds a value that an item has emitted. Adds wakers to `calls`.
    pub(crate) fn add_update(&self, update: RawUpdate, calls: &mut Deferred) {
        self.change_updates(calls, |updates| updates.push(update));
    }

    /// Counts values that were dropped on another host.
    pub(crate) fn add_dropped_updates(&self, values: u64, calls: &mut Deferred) {
        self.change_updates(calls, |updates| updates.add_dropped(values));
    }

    /// Sets how far an item is. Adds wakers to `calls`.
    pub(crate) fn set_progress(&self, number: u64, progress: Progress, calls: &mut Deferred) {
        self.change_updates(calls, |updates| updates.progress = Some((number, progress)));
    }

    fn change_updates(&self, calls: &mut Deferred, change: impl FnOnce(&mut UpdateQueue)) {
        let mut state = self.state();
        change(&mut state.updates);
        let waker = state.updates.waker.take();
        let is_awaited = state.waiting > 0;
        drop(state);
        if is_awaited {
            self.arrived.notify_all();
        }
        if let Some(waker) = waker {
            calls.add(Box::new(|| waker.wake()));
        }
    }

    /// Returns how far it is: of one item, what that has said; of several, how many are settled.
    pub(crate) fn progress(&self) -> Option<Progress> {
        let state = self.state();
        let all = state.ledger.reserved();
        if self.is_single() {
            return state.updates.progress.map(|(_, progress)| progress);
        }
        Some(Progress { done: all - state.ledger.open(), total: Some(all) })
    }

    /// Takes the next emitted value. Returns `None` if none is left and everything is settled.
    ///
    /// # Errors
    ///
    /// [`Timeout`] at `deadline`.
    pub(crate) fn wait_update(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Option<Result<RawUpdate, UpdateError>>, Timeout> {
        self.wait_for(deadline, |state| match state.updates.pop() {
            None if state.ledger.open() > 0 => None,
            taken => Some(taken),
        })
    }

    /// Takes the next emitted value, like [`wait_update`](Self::wait_update). If there is none yet, the next one
    /// wakes `waker`.
    pub(crate) fn poll_update(
        &self,
        waker: &Waker,
    ) -> Poll<Option<Result<RawUpdate, UpdateError>>> {
        let ready = |state: &mut State| match state.updates.pop() {
            None if state.ledger.open() > 0 => None,
            taken => Some(taken),
        };
        self.poll_in(waker, ready, |state| &mut state.updates.waker)
    }

    /// Takes what the items have said: values, how many were dropped, and how far one of them is. The next thing
    /// that one says wakes `waker`.
    pub(crate) fn take_updates(&self, waker: &Waker) -> TakenUpdates {
        let waker = waker.clone();
        let mut state = self.state();
        let before = state.updates.waker.replace(waker);
        let (values, dropped) = state.updates.take();
        let progress = state.updates.progress.take();
        drop(state);
        drop(before);
        (values, dropped, progress)
    }

    /// Settles items that another host runs. Returns whether every reserved item is settled.
    pub(crate) fn withdraw(&self, first: u64, items: u32) -> bool {
        let mut state = self.state();
        state.ledger.settle(first..first + u64::from(items));
        state.ledger.open() == 0
    }

    /// Whether every reserved item is settled.
    pub(crate) fn is_done(&self) -> bool {
        self.state().ledger.open() == 0
    }

    /// Like [`is_done`](Self::is_done). If not done, the next delivery wakes `waker`.
    pub(crate) fn poll_done(&self, waker: &Waker) -> bool {
        self.poll(waker, |state| (state.ledger.open() == 0).then_some(())).is_ready()
    }

    /// Takes the next delivery, like [`wait_delivery`](Self::wait_delivery). If there is none yet, the next one
    /// wakes `waker`.
    pub(crate) fn poll_delivery(&self, waker: &Waker) -> Poll<Option<Delivery>> {
        self.poll(waker, |state| match state.deliveries.pop_front() {
            None if state.ledger.open() > 0 => None,
            delivery => Some(delivery),
        })
    }

    /// Returns what `ready` returns. If that is `None`, the next delivery wakes `waker`.
    fn poll<T>(&self, waker: &Waker, ready: impl FnMut(&mut State) -> Option<T>) -> Poll<T> {
        self.poll_in(waker, ready, |state| &mut state.waker)
    }

    /// Returns what `ready` returns. If that is `None`, `waker` is put into `place`.
    fn poll_in<T>(
        &self,
        waker: &Waker,
        mut ready: impl FnMut(&mut State) -> Option<T>,
        place: impl Fn(&mut State) -> &mut Option<Waker>,
    ) -> Poll<T> {
        let mut state = self.state();
        if let Some(value) = ready(&mut state) {
            return Poll::Ready(value);
        }
        if place(&mut state).as_ref().is_some_and(|known| known.will_wake(waker)) {
            return Poll::Pending;
        }
        drop(state);
        // Cloning and dropping a waker run user code, which may query this job.
        let mut waker = Some(waker.clone());
        let mut state = self.state();
        let value = ready(&mut state);
        if value.is_none() {
            std::mem::swap(place(&mut state), &mut waker);
        }
        drop(state);
        drop(waker);
        value.map_or(Poll::Pending, Poll::Ready)
    }

    /// Registers `callback` for when everything is settled. Adds it to `calls` if that is already so.
    pub(crate) fn when_done(&self, callback: Box<dyn FnOnce() + Send>, calls: &mut Deferred) {
        let mut state = self.state();
        state.when_done = Some(callback);
        if state.ledger.open() == 0 {
            self.announce(state, calls);
        }
    }

    /// Blocks until everything is settled. Returns false on timeout.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.state();
        while state.ledger.open() > 0 {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            state = self.sleep(state, left, 0);
        }
        true
    }

    /// Blocks until the next delivery. Returns `None` if nothing is open and all deliveries were taken.
    ///
    /// # Errors
    ///
    /// [`Timeout`] at `deadline`.
    pub(crate) fn wait_delivery(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Option<Delivery>, Timeout> {
        self.wait_for(deadline, |state| match state.deliveries.pop_front() {
            None if state.ledger.open() > 0 => None,
            delivery => Some(delivery),
        })
    }

    /// Blocks until `ready` returns something. It is asked again after each delivery and update.
    fn wait_for<T>(
        &self,
        deadline: Option<Instant>,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, Timeout> {
        let mut state = self.state();
        loop {
            if let Some(value) = ready(&mut state) {
                return Ok(value);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Timeout);
            }
            state = self.sleep(state, left, u64::MAX);
        }
    }

    /// Blocks until at most `most_open` items are open, and takes all deliveries. Returns none if nothing is
    /// open and all were taken.
    pub(crate) fn wait_deliveries(&self, most_open: u64) -> VecDeque<Delivery> {
        let mut state = self.state();
        loop {
            let open = state.ledger.open();
            if open == 0 || (open <= most_open && !state.deliveries.is_empty()) {
                return std::mem::take(&mut state.deliveries);
            }
            state = self.sleep(state, None, most_open);
        }
    }

    /// Sleeps until a delivery leaves at most `most_open` items open, or `limit` has passed.
    fn sleep<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        limit: Option<Duration>,
        most_open: u64,
    ) -> MutexGuard<'a, State> {
        state.waiting += 1;
        state.most_open = state.most_open.max(most_open);
        let mut state = match limit {
            None => self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = self.arrived.wait_timeout(state, limit);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.waiting -= 1;
        if state.waiting == 0 {
            state.most_open = 0;
        }
        state
    }

    /// Whether a delivery is waiting.
    pub(crate) fn has_deliveries(&self) -> bool {
        !self.state().deliveries.is_empty()
    }

    /// Takes the next delivery, if there is one.
    pub(crate) fn take_delivery(&self) -> Option<Delivery> {
        self.state().deliveries.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::TaskErrorKind;
    use crate::pool::call::outcome::{Content, Failure, Provenance};

    #[test]
    fn a_caller_that_collects_all_results_is_not_woken_for_each() {
        let call = FnRef::NOWHERE;
        let job = Job::new(Ok(call), Default::default(), Default::default(), 0, None, 0);
        job.reserve(8);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for first in 0..8 {
                    let content = Content::Failed(Failure::unstarted(TaskErrorKind::Cancelled));
                    let delivery =
                        Delivery { first, items: 1, provenance: Provenance::NONE, content };
                    job.deliver(delivery, &mut Deferred::default());
                }
            });
            let arrived = job.wait_deliveries(2).len();
            assert!(arrived >= 6, "{arrived} arrived");
            let rest = job.wait_deliveries(0).len();
            assert_eq!(arrived + rest, 8);
        });
        assert!(job.wait_deliveries(0).is_empty(), "nothing is open, and all was taken");
    }
}
