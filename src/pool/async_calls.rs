//! The calls of async programs: room in the queue that can be awaited, and the pool's end.
//!
//! They need no runtime. A thread waits for the pool's end, because it waits for threads.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{TaskError, TaskErrorKind};
use crate::os::signals;
use crate::pool::call::encode;
use crate::pool::call::task::Task;
use crate::pool::config::STACK;
use crate::pool::handle::{Pool, unsent};
use crate::pool::schedule::state::PoolState;

/// The queue is full, from [`Pool::try_apply_async`]. Holds the argument.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct QueueFull<A>(pub A);

impl<A> fmt::Debug for QueueFull<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QueueFull")
    }
}

impl<A> fmt::Display for QueueFull<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the pool's queue is full: try again later, or await `reserve`")
    }
}

impl<A> std::error::Error for QueueFull<A> {}

/// A permit to submit one call, from [`Pool::reserve`]. Dropping it frees its place in the queue. The permits of
/// semaphores are [another type](crate::sync::Permit).
#[derive(Debug)]
#[must_use = "a permit that is dropped frees its place"]
pub struct Permit {
    pool: Pool,
    is_used: bool,
}

impl Permit {
    /// Submits `f(argument)` and returns immediately, as [`Pool::apply_async`] does.
    pub fn apply_async<A, R>(mut self, f: fn(A) -> R, argument: A) -> Task<R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.is_used = true;
        self.pool.apply_in_place(f, argument)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.is_used && self.pool.check().is_ok() {
            self.pool.shared().admission.give_back();
        }
    }
}

impl Pool {
    /// Submits `f(argument)` and returns immediately. Fails if the queue is full: if the calls that wait for a worker
    /// reach [`max_queued`](crate::PoolBuilder::max_queued), or their arguments
    /// [`max_queued_bytes`](crate::PoolBuilder::max_queued_bytes). For services that shed load.
    ///
    /// Calls of this method and of [`reserve`](Self::reserve) count, and no others.
    ///
    /// # Errors
    ///
    /// [`QueueFull`] with the argument.
    pub fn try_apply_async<A, R>(&self, f: fn(A) -> R, argument: A) -> Result<Task<R>, QueueFull<A>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        // In a forked copy, no lock may be taken, and the task reports the error.
        match self.check().is_err() || self.shared().admission.try_take() {
            true => Ok(self.apply_in_place(f, argument)),
            false => Err(QueueFull(argument)),
        }
    }

    /// Waits for room in the queue. For async programs that must not submit more than the workers can do.
    ///
    /// Places are given in the order in which they are asked for. A wait that is dropped gives its place to the next.
    /// Does not wait if the pool has no [`max_queued`](crate::PoolBuilder::max_queued) and no
    /// [`max_queued_bytes`](crate::PoolBuilder::max_queued_bytes).
    ///
    /// # Errors
    ///
    /// [`TaskErrorKind::Closed`] if the pool is closed, also while this waits.
    ///
    /// ```no_run
    /// # async fn work(inputs: Vec<u64>) -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = procpool::Pool::builder().workers(4).max_queued(16).build()?;
    /// for input in inputs {
    ///     let task = pool.reserve().await?.apply_async(|x: u64| x + 1, input);
    ///     task.on_done(|result| println!("{result:?}"));
    /// }
    /// pool.join_async().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn reserve(&self) -> Reserve {
        Reserve { pool: self.clone(), number: None }
    }

    /// Submits a call that has a place in the queue.
    fn apply_in_place<A, R>(&self, f: fn(A) -> R, argument: A) -> Task<R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let job = self.single(f);
        let shared = self.shared();
        if self.check().is_ok() {
            match encode::encode_one(shared, &job, argument) {
                Ok((batch, _)) => {
                    let bytes = batch.elements().unwrap_or(batch.arguments()).len();
                    job.set_place(shared.admission.hold(bytes as u64));
                    shared.submit(batch);
                }
                Err(reason) => {
                    shared.admission.give_back();
                    encode::fail_unencoded(shared, &job, reason);
                }
            }
        }
        Task::of_one(Arc::clone(shared), job)
    }

    /// Like [`join`](Self::join), for async programs: [closes](Self::close) the pool and waits until all tasks are
    /// done, the workers have exited and all callbacks have run.
    ///
    /// The pool is closed at once, also if the future is dropped.
    pub fn join_async(&self) -> Ending {
        Ending::of(self, None)
    }

    /// Like [`drain`](Self::drain), for async programs: as [`join_async`](Self::join_async), but after `limit` the
    /// pool is terminated, and unfinished tasks fail with [`TaskErrorKind::Closed`]. Returns whether all were done
    /// in time.
    ///
    /// The limit holds also if the future is dropped.
    pub fn drain_async(&self, limit: Duration) -> Ending {
        Ending::of(self, Some(limit))
    }
}

/// A wait for room in a pool's queue, from [`Pool::reserve`].
#[derive(Debug)]
#[must_use = "futures do nothing unless they are awaited"]
pub struct Reserve {
    pool: Pool,
    /// Identifies it among those who wait.
    number: Option<u64>,
}

impl Future for Reserve {
    type Output = Result<Permit, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Err(forked) = this.pool.check() {
            this.number = None;
            return Poll::Ready(Err(forked));
        }
        let polled = this.pool.shared().admission.poll_take(&mut this.number, context.waker());
        polled.map(|taken| match taken {
            Ok(()) => Ok(Permit { pool: this.pool.clone(), is_used: false }),
            Err(_) => Err(unsent(TaskErrorKind::Closed)),
        })
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        if let Some(number) = self.number
            && self.pool.check().is_ok()
        {
            self.pool.shared().admission.forget(number);
        }
    }
}

/// A wait for the end of a pool, from [`Pool::join_async`] and [`Pool::drain_async`]. Returns whether all tasks were
/// done in time.
#[derive(Debug)]
#[must_use = "futures do nothing unless they are awaited"]
pub struct Ending {
    state: Arc<Mutex<EndingState>>,
}

#[derive(Debug, Default)]
struct EndingState {
    /// Whether all tasks were done, once the pool has ended.
    ended: Option<bool>,
    waker: Option<Waker>,
}

impl Ending {
    fn of(pool: &Pool, limit: Option<Duration>) -> Self {
        let state = Arc::<Mutex<EndingState>>::default();
        let shared = Arc::clone(pool.shared());
        if shared.forked().is_some() {
            // Its workers belong to another process.
            return Self {
                state: Arc::new(Mutex::new(EndingState { ended: Some(false), waker: None })),
            };
        }
        shared.close();
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        // It holds no pool: one that is dropped is terminated, and the wait ends.
        let wait = {
            let state = Arc::clone(&state);
            let shared = Arc::clone(&shared);
            move || end(&shared, deadline, &state)
        };
        let thread = std::thread::Builder::new().name("procpool-end".to_owned()).stack_size(STACK);
        if signals::blocked(|| thread.spawn(wait)).is_err() {
            // Without a thread, this one waits.
            end(&shared, deadline, &state);
        }
        Self { state }
    }
}

/// Waits for the end of a pool and reports it.
fn end(shared: &PoolState, deadline: Option<Instant>, state: &Mutex<EndingState>) {
    let is_done = shared.wait_end_until(deadline);
    if !is_done {
        shared.terminate();
        shared.wait_end();
    }
    shared.config.observers.callbacks.wait();
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.ended = Some(is_done && !shared.is_terminated());
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Future for Ending {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        // User code.
        let waker = context.waker().clone();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ended) = state.ended else {
            let before = state.waker.replace(waker);
            drop(state);
            drop(before);
            return Poll::Pending;
        };
        Poll::Ready(ended)
    }
}
