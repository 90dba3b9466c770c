//! A job: what one call of the API asked for, as one item or many, and the place where its outcomes
//! arrive. Drivers deliver here, handles and iterators take from here; the [`Ledger`] in the middle
//! lets each item through once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use procpool_worker::function::{FnRef, ForeignFunction};

use crate::pool::call::context::Context;
use crate::pool::call::ledger::Ledger;
use crate::pool::call::outcome::Delivery;
use crate::pool::observe::events::Deferred;
use crate::pool::options::TaskOptions;
use crate::pool::schedule::cost::CostEstimate;

/// No result within the time limit, from [`Results::next_timeout`](crate::Results::next_timeout).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no result within the time limit: the call goes on and can be asked again")]
pub struct Timeout;

/// What one call asked for.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) call: Result<FnRef, ForeignFunction>,
    pub(crate) options: TaskOptions,
    pub(crate) cost: Arc<CostEstimate>,
    /// What its items share, if they do.
    pub(crate) context: Option<Arc<Context>>,
    /// The first item's state among those of [`seed`](procpool_worker::seed); the others' follow it.
    pub(crate) seed: u64,
    /// What is added to an item's number in the ledger to make its id.
    pub(crate) offset: u64,
    /// Its result has been asked for, which can be given once.
    pub(crate) taken: AtomicBool,
    /// Nothing of it is to be started any more.
    pub(crate) cancelled: AtomicBool,
    /// Nobody looks at an outcome before all are there, so that none is worth waking anybody.
    pub(crate) collects_all: AtomicBool,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    deliveries: VecDeque<Delivery>,
    /// How many threads wait for an arrival: a notification costs a system call, also where nobody
    /// waits.
    waiting: u32,
    /// None of them is to be woken as long as more items are open than this.
    most_open: u64,
    waker: Option<Waker>,
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
            state: Mutex::default(),
            arrived: Condvar::new(),
        })
    }

    /// Whether items of the other may be in the same chunk: a time limit, a chunk size and a context
    /// are a chunk's.
    pub(crate) fn can_share_chunk(&self, other: &Self) -> bool {
        let context = |job: &Self| job.context.as_ref().map(|context| context.id);
        self.options.timeout == other.options.timeout
            && self.options.chunk_size == other.options.chunk_size
            && context(self) == context(other)
    }

    /// How long a chunk of its items is to take, in nanoseconds.
    pub(crate) fn target_duration(&self) -> u64 {
        if self.collects_all.load(Relaxed) { CostEstimate::LONG_CHUNK } else { CostEstimate::CHUNK }
    }

    /// Whether nothing says yet how many of its items a chunk is to have.
    pub(crate) fn is_of_unknown_speed(&self) -> bool {
        self.options.chunk_size.is_none() && self.cost.nanos() == 0
    }

    /// How many items a chunk is to have: as many as were asked for, or as take so long.
    pub(crate) fn chunk(&self) -> u32 {
        self.options.chunk_size.unwrap_or_else(|| self.cost.chunk(self.target_duration()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters new items and gives the first one's number.
    pub(crate) fn reserve(&self, items: u64) -> u64 {
        self.state().ledger.reserve(items)
    }

    /// Settles the items of an arrival; false if that had been done before, and then nothing has
    /// happened. What is to be called for it is added to `calls`.
    pub(crate) fn deliver(&self, arrival: Delivery, calls: &mut Deferred) -> bool {
        let mut state = self.state();
        let ids = arrival.first..arrival.first + u64::from(arrival.items);
        let settled = state.ledger.settle(ids);
        // An item is in one place only, so it is all of these or none.
        debug_assert!(settled == 0 || settled == u64::from(arrival.items));
        if settled == 0 {
            return false;
        }
        if state.deliveries.capacity() == 0 {
            // Most calls are for one item, and have one.
            state.deliveries.reserve_exact(1);
        }
        state.deliveries.push_back(arrival);
        self.announce(state, calls);
        true
    }

    fn announce(&self, mut state: MutexGuard<'_, State>, calls: &mut Deferred) {
        let waker = state.waker.take();
        let when_done = if state.ledger.open() == 0 { state.when_done.take() } else { None };
        let is_awaited = state.waiting > 0 && state.ledger.open() <= state.most_open;
        drop(state);
        if is_awaited {
            self.arrived.notify_all();
        }
        if let Some(waker) = waker {
            calls.add(Box::new(|| waker.wake()));
        }
        if let Some(when_done) = when_done {
            calls.add(when_done);
        }
    }

    /// Whether every item that was entered is settled.
    pub(crate) fn is_done(&self) -> bool {
        self.state().ledger.open() == 0
    }

    /// As [`is_done`](Self::is_done); if not, `waker` is woken at the next arrival.
    pub(crate) fn poll_done(&self, waker: &Waker) -> bool {
        let is_known = |state: &State| state.waker.as_ref().is_some_and(|old| old.will_wake(waker));
        let state = self.state();
        if state.ledger.open() == 0 || is_known(&state) {
            return state.ledger.open() == 0;
        }
        drop(state);
        // Cloning and dropping a waker are the user's code, which may ask for this job's state.
        let mut waker = Some(waker.clone());
        let mut state = self.state();
        let is_done = state.ledger.open() == 0;
        if !is_done {
            std::mem::swap(&mut state.waker, &mut waker);
        }
        drop(state);
        drop(waker);
        is_done
    }

    /// Has `callback` called once everything is settled; if it is, that is added to `calls`.
    pub(crate) fn when_done(&self, callback: Box<dyn FnOnce() + Send>, calls: &mut Deferred) {
        let mut state = self.state();
        state.when_done = Some(callback);
        if state.ledger.open() == 0 {
            self.announce(state, calls);
        }
    }

    /// Waits until everything is settled; false if `deadline` comes before.
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

    /// Waits for the next arrival; none when nothing is open and all has been taken.
    ///
    /// # Errors
    ///
    /// When `deadline` comes before.
    pub(crate) fn wait_arrival(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Option<Delivery>, Timeout> {
        let mut state = self.state();
        loop {
            if let Some(arrival) = state.deliveries.pop_front() {
                return Ok(Some(arrival));
            }
            if state.ledger.open() == 0 {
                return Ok(None);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Timeout);
            }
            state = self.sleep(state, left, u64::MAX);
        }
    }

    /// Waits until no more than `most_open` items are open, and gives what has arrived; nothing when
    /// nothing is open and all has been taken.
    pub(crate) fn wait_arrivals(&self, most_open: u64) -> VecDeque<Delivery> {
        let mut state = self.state();
        loop {
            let open = state.ledger.open();
            if open == 0 || (open <= most_open && !state.deliveries.is_empty()) {
                return std::mem::take(&mut state.deliveries);
            }
            state = self.sleep(state, None, most_open);
        }
    }

    /// Waits for an arrival after which no more than `most_open` items are open, or until the time is
    /// over.
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

    /// Whether something has arrived and not been taken.
    pub(crate) fn has_arrivals(&self) -> bool {
        !self.state().deliveries.is_empty()
    }

    /// The next arrival, if there is one.
    pub(crate) fn take_arrival(&self) -> Option<Delivery> {
        self.state().deliveries.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::TaskErrorKind;
    use crate::pool::call::outcome::{Content, Failure, Provenance};

    #[test]
    fn who_wants_results_together_is_not_woken_for_each() {
        let call = FnRef::NOWHERE;
        let job = Job::new(Ok(call), Default::default(), Default::default(), 0, None, 0);
        job.reserve(8);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for first in 0..8 {
                    let content = Content::Failed(Failure::unstarted(TaskErrorKind::Cancelled));
                    let arrival =
                        Delivery { first, items: 1, provenance: Provenance::NONE, content };
                    job.deliver(arrival, &mut Deferred::default());
                }
            });
            let arrived = job.wait_arrivals(2).len();
            assert!(arrived >= 6, "{arrived} arrived");
            let rest = job.wait_arrivals(0).len();
            assert_eq!(arrived + rest, 8);
        });
        assert!(job.wait_arrivals(0).is_empty(), "nothing is open, and all has been taken");
    }
}
