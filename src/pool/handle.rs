//! The handle on a pool: each of its calls makes a job, feeds it, and collects what comes back.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use procpool_worker::function::{FnRef, ForeignFunction};
use procpool_worker::seed;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{DidRun, TaskError, TaskErrorKind, ValueSide};
use crate::os::observe;
use crate::pool::call::context::Context;
use crate::pool::call::job::Job;
use crate::pool::call::results::{Order, Results};
use crate::pool::call::scope::Scope;
use crate::pool::call::task::{self, Task};
use crate::pool::call::{collect, encode, feed};
use crate::pool::options::TaskOptions;
use crate::pool::process::common::Membership;
use crate::pool::schedule::batch::Batch;
use crate::pool::schedule::state::{self, PoolState};
use crate::pool::types::{Stats, WorkerInfo};

/// A pool of worker processes.
///
/// A clone is another handle on the same pool; when the last one is dropped, the pool is
/// [terminated](Self::terminate). A pool can be used from many threads at once.
///
/// It belongs to the process that has built it. In a copy of that process, made by `fork`, every call
/// fails with [`TaskErrorKind::Forked`](crate::TaskErrorKind::Forked), [`workers`](Self::workers) is
/// empty, and all else does nothing; the original is not harmed. A program that makes itself a daemon
/// builds its pools after it has forked.
///
/// Functions are plain `fn(A) -> R`; a closure that captures nothing is one. Several arguments travel
/// as a tuple. If `R` is itself a `Result`, an `Err` in it is an answer like any other.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = procpool::Pool::new(4)?;
/// assert_eq!(pool.map(|x: u32| x * x, 0..5)?, [0, 1, 4, 9, 16]);
/// assert_eq!(pool.apply(|(a, b)| a + b, (1, 2))?, 3);
/// # Ok(())
/// # }
/// ```
///
/// What can't be sent doesn't compile: a closure that captures,
///
/// ```compile_fail,E0308
/// # let pool = procpool::Pool::new(4).unwrap();
/// let factor = 3;
/// pool.apply(|x: u32| x * factor, 1);
/// ```
///
/// and an argument or a result without serde.
///
/// ```compile_fail,E0277
/// # let pool = procpool::Pool::new(4).unwrap();
/// struct Opaque;
/// pool.apply(|x: Opaque| 1, Opaque);
/// ```
///
/// ```compile_fail,E0277
/// # let pool = procpool::Pool::new(4).unwrap();
/// pool.apply(|x: u32| std::thread::current(), 1);
/// ```
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Inner>,
    options: TaskOptions,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<PoolState>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _keeper: Keeper,
}

/// What keeps the workers alive: the end of a pipe, which is open as long as they live; see
/// `procpool_worker::harden`.
#[derive(Debug)]
pub(crate) enum Keeper {
    /// A pool's own.
    Own(#[allow(dead_code, reason = "it is there to be dropped")] OwnedFd),
    /// That of all processes.
    Common(#[allow(dead_code, reason = "it is there to be dropped")] Membership),
}

impl Pool {
    pub(crate) fn of(shared: Arc<PoolState>, options: TaskOptions, keeper: Keeper) -> Self {
        let inner = Inner { shared, threads: Mutex::default(), _keeper: keeper };
        Self { inner: Arc::new(inner), options }
    }

    pub(crate) fn keep(&self, thread: JoinHandle<()>) {
        self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }

    /// Refuses what is asked of a copy that `fork` has made.
    fn check(&self) -> Result<(), TaskError> {
        self.shared().forked().map_or(Ok(()), |kind| Err(unsent(kind)))
    }

    pub(crate) fn shared(&self) -> &Arc<PoolState> {
        &self.inner.shared
    }

    /// A handle on the same workers whose tasks have other options; what they leave open stays as it
    /// is.
    #[must_use]
    pub fn with_options(&self, options: TaskOptions) -> Self {
        Self { inner: Arc::clone(&self.inner), options: options.or(&self.options) }
    }

    /// Deferred `f` with `argument` in a worker and waits for its result.
    ///
    /// # Errors
    ///
    /// What became of the task, if it has no answer.
    pub fn apply<A, R>(&self, f: fn(A) -> R, argument: A) -> Result<R, TaskError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.check()?;
        let job = self.single(f);
        let shared = self.shared();
        let _kept = match encode::encode_one(&job, argument) {
            Ok((batch, kept)) => {
                shared.try_run_inline(batch).unwrap_or_else(|batch| shared.submit(batch));
                kept
            }
            Err(reason) => {
                encode::fail_unencoded(shared, &job, reason);
                None
            }
        };
        job.wait(None);
        task::collect_one(&job).result
    }

    /// Deferred `f` with `argument` in a worker. Never waits.
    pub fn apply_async<A, R>(&self, f: fn(A) -> R, argument: A) -> Task<R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let job = self.single(f);
        // What a copy of the pool is asked for, the task says.
        if self.check().is_ok() {
            match encode::encode_one(&job, argument) {
                Ok((batch, _)) => self.shared().submit(batch),
                Err(reason) => encode::fail_unencoded(self.shared(), &job, reason),
            }
        }
        Task::of_one(Arc::clone(self.shared()), job)
    }

    /// Deferred `f` with each item in the workers, and waits for all results, in the items' order.
    ///
    /// # Errors
    ///
    /// The failure of the first item, by position, that has no answer. All items are run all the
    /// same; [`imap`](Self::imap) gives the others' results.
    pub fn map<A, R, I>(&self, f: fn(A) -> R, items: I) -> Result<Vec<R>, TaskError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        self.check()?;
        collect::collect(Arc::clone(self.shared()), self.many(f), items.into_iter())
    }

    /// As [`map`](Self::map), for a function that needs something which is the same for all items:
    /// `context` is sent to each worker once, not with each item, and dropped there when the call is
    /// over. One of more than some 100 KiB travels through shared memory.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = procpool::Pool::new(4)?;
    /// let words = vec!["one".to_owned(), "two".to_owned()];
    /// let found = pool.map_with(words, |words, text: String| words.contains(&text), ["two".to_owned()])?;
    /// assert_eq!(found, [true]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`map`](Self::map), of which the context counts as an argument: one that can't be encoded is
    /// the call's error, one that can't be decoded each item's.
    pub fn map_with<C, A, R, I>(
        &self,
        context: C,
        f: fn(&C, A) -> R,
        items: I,
    ) -> Result<Vec<R>, TaskError>
    where
        C: Serialize + DeserializeOwned + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        self.collect_with(FnRef::task_with(f).map_err(foreign)?, &context, items)
    }

    /// As [`map`](Self::map), for a function that needs something which can't be sent, or which it
    /// changes: `init` makes it in each worker, at the first item that the worker runs, and it is kept
    /// there until the call is over. How items share it depends on which worker runs them.
    ///
    /// If `init` panics, that is the item's error, and the next item tries again. After a panic of
    /// `f`, the state that it may have left half changed is dropped, and the next item has a new one.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::collections::HashMap;
    ///
    /// fn lookup(cache: &mut HashMap<u64, u64>, n: u64) -> u64 {
    ///     *cache.entry(n % 10).or_insert_with(|| (0..=n % 10).sum())
    /// }
    ///
    /// let pool = procpool::Pool::new(4)?;
    /// let sums = pool.map_init(HashMap::new, lookup, 0..1000)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`map`](Self::map).
    pub fn map_init<S, A, R, I>(
        &self,
        init: fn() -> S,
        f: fn(&mut S, A) -> R,
        items: I,
    ) -> Result<Vec<R>, TaskError>
    where
        S: 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let (call, init) = FnRef::task_init(init, f).map_err(foreign)?;
        self.collect_with(call, &init, items)
    }

    /// Deferred `f` with each item in the workers. All items are read and encoded before this returns;
    /// it never waits for a worker.
    pub fn map_async<A, R, I>(&self, f: fn(A) -> R, items: I) -> Task<Vec<R>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let job = self.many(f);
        // What a copy of the pool is asked for, the task says.
        if self.check().is_ok() {
            feed::feed_all(self.shared(), &job, items.into_iter());
        }
        Task::of_many(Arc::clone(self.shared()), job)
    }

    /// Deferred `f` with each item in the workers, and gives the results as an iterator, in the items'
    /// order. The items are read as results are taken, a bounded window ahead: the input may be
    /// endless.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = procpool::Pool::new(4)?;
    /// for square in pool.imap(|x: u64| x * x, 0..).take(3) {
    ///     println!("{}", square?);
    /// }
    /// for report in pool.imap(|x: u64| x * x, 0..3).reports() {
    ///     println!("{}: {:?} from {:?}", report.id, report.result, report.worker);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn imap<A, R, I>(&self, f: fn(A) -> R, items: I) -> Results<I::IntoIter, R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let job = self.many(f);
        Results::new(Arc::clone(self.shared()), job, items.into_iter(), Order::Input, None)
    }

    /// As [`imap`](Self::imap), but gives each result as soon as it is there.
    pub fn imap_unordered<A, R, I>(&self, f: fn(A) -> R, items: I) -> Results<I::IntoIter, R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let job = self.many(f);
        Results::new(Arc::clone(self.shared()), job, items.into_iter(), Order::Completion, None)
    }

    /// As [`imap`](Self::imap), for a function that needs something which is the same for all items, as
    /// [`map_with`](Self::map_with) sends it. Workers drop the context when the iterator is dropped.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = procpool::Pool::new(4)?;
    /// for product in pool.imap_with(3, |factor, x: u64| factor * x, 0..10)? {
    ///     println!("{}", product?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When the context can't be encoded.
    pub fn imap_with<C, A, R, I>(
        &self,
        context: C,
        f: fn(&C, A) -> R,
        items: I,
    ) -> Result<Results<I::IntoIter, R>, TaskError>
    where
        C: Serialize + DeserializeOwned + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        self.results_with(context, f, items, Order::Input)
    }

    /// As [`imap_with`](Self::imap_with), in the order in which items complete.
    ///
    /// # Errors
    ///
    /// As [`imap_with`](Self::imap_with).
    pub fn imap_unordered_with<C, A, R, I>(
        &self,
        context: C,
        f: fn(&C, A) -> R,
        items: I,
    ) -> Result<Results<I::IntoIter, R>, TaskError>
    where
        C: Serialize + DeserializeOwned + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        self.results_with(context, f, items, Order::Completion)
    }

    fn results_with<C, A, R, I>(
        &self,
        context: C,
        f: fn(&C, A) -> R,
        items: I,
        order: Order,
    ) -> Result<Results<I::IntoIter, R>, TaskError>
    where
        C: Serialize + DeserializeOwned + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let (job, scope) = self.job_with(FnRef::task_with(f).map_err(foreign)?, &context)?;
        let shared = Arc::clone(self.shared());
        Ok(Results::new(shared, job, items.into_iter(), order, Some(scope)))
    }

    /// Deferred `f` with `context` and `argument` in a worker and waits for its result: as
    /// [`map_with`](Self::map_with) of one item.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply); a context that can't be encoded is the call's error.
    pub fn apply_with<C, A, R>(
        &self,
        context: C,
        f: fn(&C, A) -> R,
        argument: A,
    ) -> Result<R, TaskError>
    where
        C: Serialize + DeserializeOwned + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let mut results = self.imap_with(context, f, [argument])?;
        // One item has one outcome.
        results.next().unwrap_or(Err(unsent(TaskErrorKind::Closed)))
    }

    /// Deferred `f` with `argument` once on every worker, and waits for all results, in the order of the
    /// workers' slots. A busy worker does it when it comes to it, one that has died or was let go
    /// for want of work when another has taken its place. For what belongs to a process: caches,
    /// settings of a library, a look at what it holds.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = procpool::Pool::new(4)?;
    /// for pid in pool.broadcast(|()| std::process::id(), ()) {
    ///     println!("worker {}", pid?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn broadcast<A, R>(&self, f: fn(A) -> R, argument: A) -> Vec<Result<R, TaskError>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        if let Err(error) = self.check() {
            return (0..self.shared().config.workers).map(|_| Err(error.clone())).collect();
        }
        let (shared, job) = (self.shared(), self.many(f));
        let _kept = match encode::encode_one(&job, argument) {
            Ok((first, kept)) => {
                // All are made before any can have ended.
                let others: Vec<Batch> = (1..shared.config.workers)
                    .map(|slot| first.for_slot(job.reserve(1), slot))
                    .collect();
                shared.submit(first.for_slot(0, 0));
                others.into_iter().for_each(|batch| shared.submit(batch));
                kept
            }
            // It is each worker's error.
            Err(reason) => {
                (0..shared.config.workers)
                    .for_each(|_| encode::fail_unencoded(shared, &job, reason.clone()));
                None
            }
        };
        job.wait(None);
        task::collect_each(&job)
    }

    /// Accepts nothing more. What was submitted before is done; then the workers end.
    pub fn close(&self) {
        self.shared().close();
    }

    /// [Closes](Self::close) the pool, and waits until all that was submitted is done, the workers
    /// have ended, the callbacks have been called, and [`on_event`](crate::PoolBuilder::on_event) has heard of
    /// all that. In a waker or in what [`env_per_worker`](crate::PoolBuilder::env_per_worker) is given, which
    /// the pool's own threads call, it returns at once, as [`terminate`](Self::terminate) does.
    pub fn join(&self) {
        if self.shared().forked().is_some() {
            return;
        }
        self.close();
        if !state::is_serving() {
            self.inner.join_threads();
            self.shared().config.observers.callbacks.wait();
        }
    }

    /// Ends everything now: workers are killed, and every task that has no result ends with
    /// [`TaskErrorKind::Closed`](crate::TaskErrorKind::Closed).
    pub fn terminate(&self) {
        self.shared().terminate();
        self.inner.join_threads();
    }

    /// Cancels what has not been begun; what is running is left to finish. For a program that is to
    /// end soon and in order: nothing is killed, and every task still has its one outcome.
    pub fn cancel_queued(&self) {
        self.shared().cancel_queued();
    }

    /// Stops all workers and what they have started (SIGSTOP), until [`resume`](Self::resume). The
    /// time between does not count for time limits. Tasks may be submitted meanwhile.
    pub fn suspend(&self) {
        self.shared().suspend(true);
    }

    /// Lets the workers go on after [`suspend`](Self::suspend).
    pub fn resume(&self) {
        self.shared().suspend(false);
    }

    /// The workers, with what they use at the moment.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        let mut workers = self.shared().workers();
        let pids: Vec<u32> =
            workers.iter().map(|worker| worker.pid).filter(|pid| *pid != 0).collect();
        let usage = observe::usage(&pids);
        for worker in &mut workers {
            if let Some(usage) = usage.get(&worker.pid) {
                worker.memory = Some(usage.memory);
                worker.cpu = Some(Duration::from_millis(usage.cpu_millis));
            }
        }
        workers
    }

    /// What the pool has done and has to do.
    pub fn stats(&self) -> Stats {
        let (queued, running) = self.shared().load();
        let counters = &self.shared().counters;
        Stats {
            queued,
            running,
            done: counters.done.load(Relaxed),
            failed: counters.failed.load(Relaxed),
            retried: counters.retried.load(Relaxed),
            restarts: counters.restarts.load(Relaxed),
        }
    }

    /// A job for one call.
    fn single<A, R>(&self, f: fn(A) -> R) -> Arc<Job>
    where
        A: DeserializeOwned,
        R: Serialize,
    {
        let number = self.shared().counters.single_calls.fetch_add(1, Relaxed);
        // One after the other, so that they can travel collects_all.
        let seed = seed::advance(seed::finalize(self.shared().config.seed), number);
        self.job(FnRef::task(f), number, None, seed)
    }

    /// A job for many items.
    fn many<A, R>(&self, f: fn(A) -> R) -> Arc<Job>
    where
        A: DeserializeOwned,
        R: Serialize,
    {
        self.many_with(FnRef::task(f), None)
    }

    fn many_with(
        &self,
        call: Result<FnRef, ForeignFunction>,
        context: Option<Arc<Context>>,
    ) -> Arc<Job> {
        let number = self.shared().counters.map_calls.fetch_add(1, Relaxed);
        // Far apart, so that none runs into another.
        let seed = seed::finalize(seed::advance(!self.shared().config.seed, number));
        self.job(call, 0, context, seed)
    }

    fn job(
        &self,
        call: Result<FnRef, ForeignFunction>,
        offset: u64,
        context: Option<Arc<Context>>,
        seed: u64,
    ) -> Arc<Job> {
        let cost = call.map_or_else(|_| Arc::default(), |call| self.shared().cost(call));
        Job::new(call, self.options.clone(), cost, offset, context, seed)
    }

    /// The results of a call whose items share `context`.
    fn collect_with<C, A, R, I>(
        &self,
        function: FnRef,
        context: &C,
        items: I,
    ) -> Result<Vec<R>, TaskError>
    where
        C: Serialize,
        A: Serialize,
        R: DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let (job, _scope) = self.job_with(function, context)?;
        collect::collect(Arc::clone(self.shared()), job, items.into_iter())
    }

    /// A job whose items share `context`, and the time for which workers keep it.
    fn job_with<C: Serialize>(
        &self,
        function: FnRef,
        context: &C,
    ) -> Result<(Arc<Job>, Scope), TaskError> {
        self.check()?;
        let shared = self.shared();
        let context = Context::encode(context, shared.inline_limit).map_err(|reason| {
            unsent(TaskErrorKind::Encode { side: ValueSide::Argument, reason })
        })?;
        let context = Arc::new(context);
        let job = self.many_with(Ok(function), Some(Arc::clone(&context)));
        Ok((job, Scope { pool: Arc::clone(shared), context }))
    }
}

/// The error of a call of which nothing has been sent.
fn unsent(kind: TaskErrorKind) -> TaskError {
    TaskError::new(kind, 0, None, 0, DidRun::No)
}

fn foreign(error: ForeignFunction) -> TaskError {
    unsent(TaskErrorKind::Function { reason: error.to_string() })
}

impl Inner {
    /// Waits for the pool's threads to end. On one of them it returns at once: a waker, which is called
    /// there, may end the pool, but its thread can't wait for itself.
    fn join_threads(&self) {
        if state::is_serving() || self.shared.forked().is_some() {
            return;
        }
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic there has been reported by the program's own hook.
            let _ = thread.join();
        }
        self.shared.wait_end();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.shared.forked().is_some() {
            // The threads are the other process's: here, their handles speak of memory that may be used
            // for others by now.
            let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
            return std::mem::forget(std::mem::take(threads));
        }
        self.shared.terminate();
        self.join_threads();
    }
}
