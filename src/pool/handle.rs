//! The handle on a pool. Each call creates a job, feeds it and collects its results.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use procpool_worker::function::{FnRef, ForeignFunction};
use procpool_worker::seed;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{DidRun, TaskError, TaskErrorKind};
use crate::os::observe;
use crate::pool::call::context::Context;
use crate::pool::call::job::Job;
use crate::pool::call::results::{Order, Results};
use crate::pool::call::task::{self, Task};
use crate::pool::call::{collect, encode, feed};
use crate::pool::observe::metrics::Metrics;
use crate::pool::options::TaskOptions;
use crate::pool::process::shared_supervisor::Membership;
use crate::pool::schedule::batch::Batch;
use crate::pool::schedule::state::{self, PoolState};
use crate::pool::types::{HostInfo, Stats, WorkerInfo};

/// A pool of worker processes.
///
/// A clone is another handle on the same pool. Dropping the last handle [terminates](Self::terminate) the
/// pool. Threads can share a pool.
///
/// A pool belongs to the process that built it. In a copy of that process made by `fork`, every call fails
/// with [`TaskErrorKind::Forked`], [`workers`](Self::workers) is empty, and
/// every other method does nothing. The original pool is not affected. A program that daemonizes builds its
/// pools after the fork.
///
/// Functions are plain `fn(A) -> R`; a closure without captures coerces to one. Pass several arguments as a
/// tuple. If `R` is a `Result`, an `Err` is an ordinary result.
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
/// A function or value that can't be sent to a worker doesn't compile: a closure that captures,
///
/// ```compile_fail,E0308
/// # let pool = procpool::Pool::new(4).unwrap();
/// let factor = 3;
/// pool.apply(|x: u32| x * factor, 1);
/// ```
///
/// and an argument or a result that doesn't implement serde's traits.
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
    /// Held while the number of workers changes.
    resizing: Mutex<()>,
    _guard: LivenessGuard,
}

/// Keeps the workers alive: the write end of the liveness pipe, whose close kills them. See
/// `liveness` in procpool-worker.
#[derive(Debug)]
pub(crate) enum LivenessGuard {
    /// The pool's own pipe.
    Own(#[allow(dead_code, reason = "it is there to be dropped")] OwnedFd),
    /// The pipe that all [`Process`](crate::Process)es share.
    Shared(#[allow(dead_code, reason = "it is there to be dropped")] Membership),
}

impl Pool {
    pub(crate) fn of(shared: Arc<PoolState>, options: TaskOptions, guard: LivenessGuard) -> Self {
        let inner =
            Inner { shared, threads: Mutex::default(), resizing: Mutex::default(), _guard: guard };
        Self { inner: Arc::new(inner), options }
    }

    pub(super) fn resizing(&self) -> &Mutex<()> {
        &self.inner.resizing
    }

    pub(super) fn add_thread(&self, thread: JoinHandle<()>) {
        self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }

    /// Returns an error in a copy of the process made by `fork`.
    pub(super) fn check(&self) -> Result<(), TaskError> {
        self.shared().forked().map_or(Ok(()), |kind| Err(unsent(kind)))
    }

    pub(crate) fn shared(&self) -> &Arc<PoolState> {
        &self.inner.shared
    }

    /// Returns a handle on the same workers with other task options. Options that are unset in `options` keep
    /// this handle's values.
    #[must_use]
    pub fn with_options(&self, options: TaskOptions) -> Self {
        Self { inner: Arc::clone(&self.inner), options: options.or(&self.options) }
    }

    /// Runs `f(argument)` in a worker and blocks until it returns.
    ///
    /// # Errors
    ///
    /// The task's failure: a panic, a dead worker, a timeout, a cancellation, or a value that can't be
    /// encoded or decoded.
    pub fn apply<A, R>(&self, f: fn(A) -> R, argument: A) -> Result<R, TaskError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.check()?;
        let job = self.single(f);
        let shared = self.shared();
        let _kept = match encode::encode_one(self.shared(), &job, argument) {
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

    /// Submits `f(argument)` and returns immediately.
    pub fn apply_async<A, R>(&self, f: fn(A) -> R, argument: A) -> Task<R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let job = self.single(f);
        // In a forked copy, the task itself reports the error.
        if self.check().is_ok() {
            match encode::encode_one(self.shared(), &job, argument) {
                Ok((batch, _)) => self.shared().submit(batch),
                Err(reason) => encode::fail_unencoded(self.shared(), &job, reason),
            }
        }
        Task::of_one(Arc::clone(self.shared()), job)
    }

    /// Runs `f` on each item and blocks until all items are done. Returns the results in input order.
    ///
    /// # Errors
    ///
    /// The failure of the first failed item in input order. All items run regardless; [`imap`](Self::imap)
    /// returns each item's result.
    pub fn map<A, R, I>(&self, f: fn(A) -> R, items: I) -> Result<Vec<R>, TaskError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        self.check()?;
        collect::collect(Arc::clone(self.shared()), self.many(f), items.into_iter())
    }

    /// Submits `f` on each item. Reads and encodes all items before it returns; never blocks on a worker.
    pub fn map_async<A, R, I>(&self, f: fn(A) -> R, items: I) -> Task<Vec<R>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let job = self.many(f);
        // In a forked copy, the task itself reports the error.
        if self.check().is_ok() {
            feed::feed_all(self.shared(), &job, items.into_iter());
        }
        Task::of_many(Arc::clone(self.shared()), job)
    }

    /// Runs `f` on each item and returns an iterator over the results, in input order. The iterator reads the
    /// input lazily, a bounded [window](crate::PoolBuilder::window) ahead of the results taken, so the input
    /// may be infinite.
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

    /// Like [`imap`](Self::imap), but yields results in the order in which items complete.
    pub fn imap_unordered<A, R, I>(&self, f: fn(A) -> R, items: I) -> Results<I::IntoIter, R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let job = self.many(f);
        Results::new(Arc::clone(self.shared()), job, items.into_iter(), Order::Completion, None)
    }

    /// Runs `f(argument)` once on every worker and blocks until all have run it. Returns the results in slot
    /// order. A busy worker runs it after its current task; a dead or retired worker's replacement runs it
    /// once started. Use this for per-process state: clearing caches, configuring a library, inspecting
    /// memory.
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
            return (0..self.shared().worker_count()).map(|_| Err(error.clone())).collect();
        }
        let (shared, job) = (self.shared(), self.many(f));
        let workers = shared.worker_count();
        let _kept = match encode::encode_one(self.shared(), &job, argument) {
            Ok((first, kept)) => {
                // All batches are created before the first can finish.
                let others: Vec<Batch> =
                    (1..workers).map(|slot| first.for_slot(job.reserve(1), slot)).collect();
                shared.submit(first.for_slot(0, 0));
                others.into_iter().for_each(|batch| shared.submit(batch));
                kept
            }
            // The failure is reported for every worker.
            Err(reason) => {
                (0..workers).for_each(|_| encode::fail_unencoded(shared, &job, reason.clone()));
                None
            }
        };
        job.wait(None);
        task::collect_each(&job)
    }

    /// Stops accepting tasks. Workers exit once all submitted tasks are done.
    pub fn close(&self) {
        self.shared().close();
    }

    /// [Closes](Self::close) the pool and blocks until all tasks are done, the workers have exited, all
    /// callbacks have run, and [`on_event`](crate::PoolBuilder::on_event) has seen every event. Returns
    /// immediately on the pool's own threads, which run wakers and
    /// [`env_per_worker`](crate::PoolBuilder::env_per_worker) closures; so does
    /// [`terminate`](Self::terminate).
    pub fn join(&self) {
        if self.shared().forked().is_some() {
            return;
        }
        self.close();
        if !state::is_pool_thread() {
            self.inner.join_threads();
            self.shared().config.observers.callbacks.wait();
        }
    }

    /// [Closes](Self::close) the pool, and gives its tasks this long to end. Then [terminates](Self::terminate) it:
    /// unfinished tasks fail with [`TaskErrorKind::Closed`]. Returns whether all were done in time. For an orderly
    /// shutdown with a deadline, as at SIGTERM; see also [`cancel_queued`](Self::cancel_queued).
    ///
    /// On the pool's own threads (see [`join`](Self::join)), closes the pool and returns `false` at once.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = procpool::Pool::new(4)?;
    /// if !pool.drain(std::time::Duration::from_secs(20)) {
    ///     eprintln!("some tasks were cut off");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn drain(&self, limit: Duration) -> bool {
        if self.shared().forked().is_some() {
            return false;
        }
        self.close();
        if state::is_pool_thread() {
            return false;
        }
        let is_done = self.shared().wait_end_until(Instant::now().checked_add(limit));
        if !is_done {
            self.terminate();
        }
        self.join();
        is_done
    }

    /// Kills the workers immediately. Unfinished tasks fail with
    /// [`TaskErrorKind::Closed`].
    pub fn terminate(&self) {
        self.shared().terminate();
        self.inner.join_threads();
    }

    /// Cancels all queued tasks. Use this for an orderly shutdown: running tasks finish, queued ones fail
    /// with [`TaskErrorKind::Cancelled`].
    pub fn cancel_queued(&self) {
        self.shared().cancel_queued();
    }

    /// Stops all workers and their child processes (SIGSTOP) until [`resume`](Self::resume). Suspended time
    /// doesn't count towards time limits. Tasks can still be submitted.
    pub fn suspend(&self) {
        self.shared().suspend(true);
    }

    /// Resumes the workers after [`suspend`](Self::suspend) (SIGCONT).
    pub fn resume(&self) {
        self.shared().suspend(false);
    }

    /// Returns the state and current resource use of each worker.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        let mut workers = self.shared().workers();
        // The other hosts report their workers' use themselves.
        let slots = self.shared().slots.count();
        let local = workers.partition_point(|worker| worker.slot < slots);
        let local = &mut workers[..local];
        let pids: Vec<u32> =
            local.iter().map(|worker| worker.pid).filter(|pid| *pid != 0).collect();
        let usage = observe::usage(&pids);
        for worker in local {
            if let Some(usage) = usage.get(&worker.pid) {
                worker.memory = Some(usage.memory);
                worker.cpu = Some(Duration::from_millis(usage.cpu_millis));
            }
        }
        workers
    }

    /// Returns the hosts that the pool spans, lost ones included; nothing if it has this host alone.
    pub fn hosts(&self) -> Vec<HostInfo> {
        if self.shared().forked().is_some() {
            return Vec::new();
        }
        let link = self.shared().link.as_ref();
        link.map_or_else(Vec::new, |link| link.with_status(|status| status.hosts.clone()))
    }

    /// Returns the pool's task counters.
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

    /// Returns the pool's numbers for a dashboard: [`stats`](Self::stats), how long tasks waited and ran, and how workers
    /// died.
    pub fn metrics(&self) -> Metrics {
        let counters = &self.shared().counters;
        let workers = self.workers().into_iter().filter(|worker| worker.pid != 0);
        let memory: Vec<u64> = workers.map(|worker| worker.memory.unwrap_or(0)).collect();
        Metrics {
            stats: self.stats(),
            wait: counters.wait.read(),
            run: counters.run.read(),
            deaths: counters.deaths.read(),
            argument_bytes: counters.argument_bytes.load(Relaxed),
            result_bytes: counters.result_bytes.load(Relaxed),
            workers: memory.len() as u64,
            memory: memory.iter().sum(),
        }
    }

    /// Publishes the pool's [metrics](Self::metrics) through the crate `metrics`, so that its recorder passes them to
    /// Prometheus, OpenTelemetry or others. Call it before each scrape, or every few seconds: tasks cost nothing more
    /// for it.
    ///
    /// Each metric has the label `pool`. Durations are in seconds, and at most an eighth wrong.
    ///
    /// | metric | kind | more labels |
    /// |---|---|---|
    /// | `procpool_tasks_queued`, `procpool_tasks_running` | gauge | |
    /// | `procpool_tasks_total` | counter | `outcome`: `done`, `failed` |
    /// | `procpool_tasks_retried_total` | counter | |
    /// | `procpool_task_wait_seconds`, `procpool_task_run_seconds` | histogram | |
    /// | `procpool_argument_bytes_total`, `procpool_result_bytes_total` | counter | |
    /// | `procpool_workers`, `procpool_workers_memory_bytes` | gauge | |
    /// | `procpool_worker_restarts_total` | counter | |
    /// | `procpool_worker_deaths_total` | counter | `cause`: a field of [`Deaths`](crate::Deaths) |
    #[cfg(feature = "metrics")]
    pub fn publish_metrics(&self) {
        if self.check().is_ok() {
            let shared = self.shared();
            shared.published.update(&shared.config.name, self.metrics());
        }
    }

    /// Creates a job for a single call.
    pub(super) fn single<A, R>(&self, f: fn(A) -> R) -> Arc<Job>
    where
        A: DeserializeOwned,
        R: Serialize,
    {
        let number = self.shared().counters.single_calls.fetch_add(1, Relaxed);
        // Consecutive seeds, so that single calls can share a chunk.
        let seed = seed::advance(seed::finalize(self.shared().config.seed), number);
        let job = self.job(FnRef::task(f), number, None, seed);
        job.set_single();
        job
    }

    /// Creates a job for many items.
    fn many<A, R>(&self, f: fn(A) -> R) -> Arc<Job>
    where
        A: DeserializeOwned,
        R: Serialize,
    {
        self.many_with(FnRef::task(f), None)
    }

    pub(super) fn many_with(
        &self,
        call: Result<FnRef, ForeignFunction>,
        context: Option<Arc<Context>>,
    ) -> Arc<Job> {
        let number = self.shared().counters.map_calls.fetch_add(1, Relaxed);
        // Widely spaced seeds, so that the items of two calls never get the same one.
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
}

/// The error of a call that was never sent to a worker.
pub(super) fn unsent(kind: TaskErrorKind) -> TaskError {
    TaskError::new(kind, 0, None, 0, DidRun::No)
}

pub(super) fn foreign(error: ForeignFunction) -> TaskError {
    unsent(TaskErrorKind::Function { reason: error.to_string() })
}

impl Inner {
    /// Joins the pool's threads. Returns immediately on one of them: a waker that terminates the pool runs on
    /// such a thread, which can't join itself.
    fn join_threads(&self) {
        if state::is_pool_thread() || self.shared.forked().is_some() {
            return;
        }
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // The program's panic hook has already reported a panic there.
            let _ = thread.join();
        }
        self.shared.wait_end();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.shared.forked().is_some() {
            // The threads belong to the original process. Their handles here may refer to memory that has
            // been reused.
            let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
            return std::mem::forget(std::mem::take(threads));
        }
        self.shared.terminate();
        self.join_threads();
    }
}
