//! How a pool is set up.

use std::ffi::OsString;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use procpool_worker::attach::Attachments;
use procpool_worker::function::FnRef;
use procpool_worker::protocol;
use procpool_worker::{sys, transport};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::entry;
use crate::error::Error;
use crate::os::process::{Launch, OutputMode};
use crate::os::signals;
use crate::pool::config::{Config, EnvPerWorker, Initializer, STACK};
use crate::pool::drive::chunk::inline_limit;
use crate::pool::drive::driver;
use crate::pool::handle::{Keeper, Pool};
use crate::pool::limits::Limits;
use crate::pool::observe::events::{Event, Observer, Observers};
use crate::pool::options::TaskOptions;
use crate::pool::process::common::{Membership, Wires};
use crate::pool::process::orders::SupervisorHandle;
use crate::pool::process::supervisor;
use crate::pool::schedule::state::{self, PoolState};

/// A worker takes this much memory in bytes at the least, with what is shared.
const LEAST_MEMORY: u64 = 8 << 20;

/// File descriptors that a pool takes for itself, or for a moment while a worker starts.
const SPARE_FDS: u64 = 12;

/// Sets up a [`Pool`]; made by [`Pool::builder`].
///
/// ```no_run
/// # fn main() -> Result<(), procpool::Error> {
/// use std::time::Duration;
///
/// let pool = procpool::Pool::builder()
///     .workers(4)
///     .name("parsers")
///     .retries(1)
///     .task_timeout(Duration::from_secs(5))
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct PoolBuilder {
    /// 0: as many as this process may use CPUs.
    workers: usize,
    /// "procpool".
    name: String,
    initializer: Option<InitializerSetup>,
    options: TaskOptions,
    /// `None`: grows with what the tasks need.
    window: Option<u64>,
    /// 30 s.
    start_timeout: Duration,
    env: Vec<(OsString, OsString)>,
    env_per_worker: Vec<EnvPerWorker>,
    current_dir: Option<PathBuf>,
    output: OutputMode,
    /// Zero: killed at once.
    kill_grace: Duration,
    max_tasks: Option<u64>,
    max_memory: Option<u64>,
    idle_timeout: Option<Duration>,
    /// 1.
    min_workers: usize,
    limits: Limits,
    nice: i32,
    pin_cpus: bool,
    /// Whether another worker takes the place of one that is lost.
    replaces: bool,
    /// `None`: another each time.
    seed: Option<u64>,
    observers: Vec<Observer>,
}

type InitializerSetup = Result<Initializer, Error>;

impl std::fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolBuilder")
            .field("workers", &self.workers)
            .field("name", &self.name)
            .field("options", &self.options)
            .field("window", &self.window)
            .field("start_timeout", &self.start_timeout)
            .field("env", &self.env)
            .field("current_dir", &self.current_dir)
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool of so many workers; 0: as many as this process may use CPUs.
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::build`].
    pub fn new(workers: usize) -> Result<Self, Error> {
        Self::builder().workers(workers).build()
    }

    /// Sets up a pool.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::new()
    }
}

impl PoolBuilder {
    pub(crate) fn new() -> Self {
        Self {
            workers: 0,
            name: "procpool".to_owned(),
            initializer: None,
            options: TaskOptions::default(),
            window: None,
            start_timeout: Duration::from_secs(30),
            env: Vec::new(),
            env_per_worker: Vec::new(),
            current_dir: None,
            output: OutputMode::Inherit,
            kill_grace: Duration::ZERO,
            max_tasks: None,
            max_memory: None,
            idle_timeout: None,
            min_workers: 1,
            limits: Limits::default(),
            nice: 0,
            pin_cpus: false,
            replaces: true,
            seed: None,
            observers: Vec::new(),
        }
    }

    /// How many workers there are. 0, as if it were not set: as many as this process may use CPUs,
    /// by its affinity and its cgroup's quota.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// What the workers are called in `ps` and `top`: this name and their slot.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Has each worker call `f` with `argument` before its first task, also each that takes the
    /// place of one that has died. What it returns is kept for the worker's tasks; see
    /// [`with_state`](crate::with_state).
    ///
    /// A worker whose initializer panics or dies is not used; after several attempts, with growing
    /// pauses, the tasks that wait for a worker fail with
    /// [`TaskErrorKind::Initializer`](crate::TaskErrorKind::Initializer).
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// struct Model { weights: Vec<f64> }
    ///
    /// fn load(path: String) -> Model {
    ///     Model { weights: vec![path.len() as f64] }
    /// }
    ///
    /// fn predict(x: f64) -> f64 {
    ///     procpool::with_state(|model: &mut Model| model.weights[0] * x).unwrap()
    /// }
    ///
    /// let pool = procpool::Pool::builder().initializer(load, "model.bin".to_owned()).build()?;
    /// println!("{:?}", pool.map(predict, [1.0, 2.0])?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn initializer<A, S>(mut self, f: fn(A) -> S, argument: A) -> Self
    where
        A: Serialize + DeserializeOwned,
        S: 'static,
    {
        let option = |value: String, remedy| Error::Option { option: "initializer", value, remedy };
        self.initializer = Some((|| {
            let call = FnRef::initializer(f).map_err(|error| {
                option(error.to_string(), "pass a function of this program itself")
            })?;
            let (mut bytes, mut attachments) = (Vec::new(), Attachments::default());
            protocol::encode_item(&mut bytes, &mut attachments, &argument).map_err(|error| {
                option(error.to_string(), "pass an argument that can be encoded")
            })?;
            let width = protocol::item_width::<A>();
            Ok(Initializer { call, argument: bytes, attachments, width })
        })());
        self
    }

    /// Kills the worker of a task that runs for longer than this; the task fails with
    /// [`TaskErrorKind::TimedOut`](crate::TaskErrorKind::TimedOut).
    pub fn task_timeout(mut self, limit: Duration) -> Self {
        self.options.timeout = Some(limit);
        self
    }

    /// Runs a task again, up to this many times, after its worker died or its time ran out; never
    /// after a panic. Not set: never, since a task that has begun may have had effects.
    pub fn retries(mut self, times: u32) -> Self {
        self.options.retries = Some(times);
        self
    }

    /// Sends so many items to a worker at once. Not set: as many as take about a millisecond, as
    /// measured.
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.options = self.options.chunk_size(items);
        self
    }

    /// How many items of an input may have been read without their results having been taken. Not
    /// set: a few chunks for each worker.
    pub fn window(mut self, items: usize) -> Self {
        self.window = Some(items as u64);
        self
    }

    /// How long a worker may take from its start to the end of its initializer. Not set: 30 s.
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.start_timeout = limit;
        self
    }

    /// Sets a variable in the workers' environment.
    ///
    /// Libraries that start threads of their own would start as many in each worker as there are
    /// CPUs. They are told of the worker's share instead (the CPUs divided by the workers, at least 1)
    /// by `RAYON_NUM_THREADS`, `OMP_NUM_THREADS`, `OPENBLAS_NUM_THREADS`, `MKL_NUM_THREADS`,
    /// `BLIS_NUM_THREADS`, `NUMEXPR_NUM_THREADS` and `NUMBA_NUM_THREADS`. One that is set in this
    /// process's environment, or here, stays as it is.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets variables in the environment of each worker, by its slot. May be set several times.
    ///
    /// # Devices
    ///
    /// That is how workers share GPUs: each sees one, under number 0, since libraries look at the
    /// variable when they are opened. Open them in the [`initializer`](Self::initializer), which runs
    /// in the worker, and never in the parent, which would take part of each device's memory and has
    /// no use for it. A worker that takes the place of another in its slot has its device too.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), procpool::Error> {
    /// const GPUS: [&str; 2] = ["0", "1"];
    ///
    /// struct Model { device: String } // a library's context and what it has loaded
    ///
    /// fn open(path: String) -> Model {
    ///     let device = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    ///     println!("{path} on GPU {device}");
    ///     Model { device }
    /// }
    ///
    /// let pool = procpool::Pool::builder()
    ///     .workers(4) // two for each GPU
    ///     .env_per_worker(|slot| vec![("CUDA_VISIBLE_DEVICES".into(), GPUS[slot % 2].into())])
    ///     .initializer(open, "model.onnx".to_owned())
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn env_per_worker(
        mut self,
        env: impl Fn(usize) -> Vec<(OsString, OsString)> + Send + Sync + 'static,
    ) -> Self {
        self.env_per_worker.push(Arc::new(env));
        self
    }

    /// Where the workers start. Not set: where this process is.
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.current_dir = Some(dir.into());
        self
    }

    /// Where the workers' standard output and standard error go. Not set: to where this process's
    /// go.
    pub fn output(mut self, output: OutputMode) -> Self {
        self.output = output;
        self
    }

    /// Asks a worker to end (SIGTERM) when its task's time is up or the task is cancelled, and kills
    /// it only after this. Not set: it is killed at once.
    pub fn kill_grace(mut self, grace: Duration) -> Self {
        self.kill_grace = grace;
        self
    }

    /// Replaces a worker after so many tasks, for code that leaks. Tasks are counted, not chunks.
    pub fn max_tasks_per_worker(mut self, tasks: u64) -> Self {
        self.max_tasks = Some(tasks);
        self
    }

    /// Kills a worker whose resident memory is larger than this, in bytes. It is looked at every
    /// 10 ms while tasks run; the task that runs then fails as
    /// [`DeathCause::OutOfMemory`](crate::DeathCause::OutOfMemory). A panic's backtrace, where
    /// `RUST_BACKTRACE` asks for one, needs as much as the program's debug information takes.
    pub fn max_memory_per_worker(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// Lets workers go that have had nothing to do for this long, down to
    /// [`min_workers`](Self::min_workers); they are started again when there is work for them.
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.idle_timeout = Some(limit);
        self
    }

    /// How many workers stay, however idle. Not set: 1. Means nothing without
    /// [`idle_timeout`](Self::idle_timeout).
    pub fn min_workers(mut self, workers: usize) -> Self {
        self.min_workers = workers;
        self
    }

    /// Limits what each worker may use.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Adds to the workers' niceness: with 19, they run when nobody else wants to.
    pub fn nice(mut self, nice: i32) -> Self {
        self.nice = nice;
        self
    }

    /// Keeps each worker to one CPU of those that this process may use, in turn.
    pub fn pin_cpus(mut self, pin: bool) -> Self {
        self.pin_cpus = pin;
        self
    }

    /// What the tasks' random numbers are made from; see [`seed`](crate::random_u64()). Not set: something
    /// else in each run.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Has `callback` called with everything that happens to workers and tasks, in the order in
    /// which it happens to each of them. It is called on the thread that callbacks are called on; if
    /// it panics, that is printed and harms nothing. May be set several times.
    ///
    /// A listener may be slower than what happens: no worker waits for it. Up to 65,536 events wait for
    /// their turn then; what happens beyond that is dropped, all but the last
    /// ([`EventKind::Drained`](crate::EventKind::Drained)), and
    /// [`EventKind::Lagged`](crate::EventKind::Lagged) says in its place how much that was.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), procpool::Error> {
    /// let pool = procpool::Pool::builder().on_event(|event| eprintln!("{event}")).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_event(mut self, callback: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.observers.push(Arc::new(callback));
        self
    }

    /// One worker, which nothing takes the place of.
    pub(crate) fn single(mut self) -> Self {
        (self.workers, self.replaces) = (1, false);
        self
    }

    /// Starts the workers, and returns as soon as the first of them has been heard of.
    ///
    /// # Errors
    ///
    /// [`Error::NotInitialized`] where [`init`](crate::init) has not been called,
    /// [`Error::Privileged`] in a program with more privileges than its user, [`Error::Library`] in a
    /// library of another program, [`Error::Option`] for an option that can't be used, [`Error::Start`] when the first worker can't be started,
    /// and [`Error::System`] when the system refuses a thread or a file descriptor.
    pub fn build(self) -> Result<Pool, Error> {
        check_program()?;
        let wires = Wires::new()?;
        let (config, options) = self.resolve(Arc::clone(&wires.reader))?;
        let inline_limit = check_system(config.workers)?;
        let slots = config.workers;
        config.observers.start().map_err(Error::system("a thread"))?;
        let orders = SupervisorHandle::new(wires.waker);
        let shared = Arc::new(PoolState::new(config, orders, inline_limit));
        let pool = Pool::of(Arc::clone(&shared), options, Keeper::Own(wires.writer));
        // The supervisor's, or a slot's driver's.
        let start = |name: String, slot: Option<usize>| {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(name).stack_size(STACK);
            let run = move || {
                state::serve();
                match slot {
                    None => supervisor::supervise(&shared),
                    Some(slot) => driver::drive(&shared, slot),
                }
            };
            signals::blocked(|| thread.spawn(run))
                .map(|thread| pool.keep(thread))
                .map_err(Error::system("a thread (clone3)"))
        };
        start("procpool-supervisor".to_owned(), None)
            .inspect_err(|_| shared.drivers_missing(slots))?;
        for slot in 0..slots {
            start(format!("procpool-{slot}"), Some(slot))
                .inspect_err(|_| shared.drivers_missing(slots - slot))?;
        }
        shared.wait_first_start()?;
        Ok(pool)
    }

    /// Starts the one process of a [`Process`](crate::Process), under the supervisor that they share.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub(super) fn build_one(self) -> Result<Pool, Error> {
        check_program()?;
        let membership = Membership::enter()?;
        let (config, options) = self.resolve(membership.cord())?;
        let inline_limit = check_system(config.workers)?;
        config.observers.start().map_err(Error::system("a thread"))?;
        let shared = Arc::new(PoolState::new(config, membership.orders(), inline_limit));
        membership.supervise(&shared);
        let pool = Pool::of(Arc::clone(&shared), options, Keeper::Common(membership));
        driver::start_one(&shared)?;
        Ok(pool)
    }

    /// Checks the options and fills in what was left open; `cord` is the workers' end of it.
    fn resolve(self, cord: Arc<OwnedFd>) -> Result<(Config, TaskOptions), Error> {
        /// More slots than this are surely a mistake: each takes a process and a thread.
        const MOST: usize = 4096;
        let refuse = |option, value: String, remedy| Err(Error::Option { option, value, remedy });
        if self.workers > MOST {
            return refuse("workers", self.workers.to_string(), "use at most 4096");
        }
        if self.window == Some(0) {
            return refuse("window", "0".to_owned(), "use at least 1, or leave it unset");
        }
        if self.start_timeout.is_zero() {
            return refuse("start_timeout", "0 s".to_owned(), "no process starts in no time");
        }
        if self.options.timeout.is_some_and(|limit| limit.is_zero()) {
            return refuse("task_timeout", "0 s".to_owned(), "leave it unset for no limit");
        }
        if self.max_tasks == Some(0) {
            return refuse("max_tasks_per_worker", "0".to_owned(), "use at least 1");
        }
        if self.max_memory.is_some_and(|bytes| bytes < LEAST_MEMORY) {
            let value = format!("{} bytes", self.max_memory.unwrap_or(0));
            return refuse("max_memory_per_worker", value, "a worker takes some 10 MiB by itself");
        }
        if !(-20..=19).contains(&self.nice) {
            return refuse("nice", self.nice.to_string(), "use -20 to 19");
        }
        let initializer = self.initializer.transpose()?;
        let cpus = if self.pin_cpus { allowed_cpus() } else { Vec::new() };
        let workers = match self.workers {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            workers => workers,
        };
        let mut env = share_of_cpus(workers);
        env.extend(self.env);
        let config = Config {
            workers,
            name: self.name,
            initializer,
            window: self.window,
            start_timeout: self.start_timeout,
            env_per_worker: self.env_per_worker,
            launch: Launch { env, current_dir: self.current_dir, output: self.output, cord },
            kill_grace: self.kill_grace,
            max_tasks: self.max_tasks,
            max_memory: self.max_memory,
            idle_timeout: self.idle_timeout,
            min_workers: self.min_workers,
            replaces: self.replaces,
            seed: self.seed.unwrap_or_else(sys::entropy),
            limits: self.limits,
            nice: self.nice,
            cpus,
            observers: Observers::new(self.observers),
        };
        Ok((config, self.options))
    }
}

/// Refuses a program that can't have workers.
fn check_program() -> Result<(), Error> {
    if entry::is_privileged() {
        return Err(Error::Privileged);
    }
    if let Some((library, executable)) = entry::foreign_image() {
        return Err(Error::Library { library, executable });
    }
    match entry::is_initialized() {
        true => Ok(()),
        false => Err(Error::NotInitialized),
    }
}

/// Refuses so many workers where the system does; returns the largest body that travels in a frame.
fn check_system(workers: usize) -> Result<usize, Error> {
    check_open_files(workers)?;
    let frame = transport::max_frame().map_err(|error| Error::System {
        what: "a socket",
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(inline_limit(frame))
}

/// Refuses more workers than there are file descriptors for: found out one by one, it would be in
/// the middle of a handshake.
fn check_open_files(workers: usize) -> Result<(), Error> {
    let limit = entry::open_files().map(|(soft, _)| soft);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
    let needed = open + supervisor::FDS_PER_WORKER * workers as u64 + SPARE_FDS;
    match limit {
        Some(limit) if needed > limit => Err(Error::OpenFiles { workers, needed, limit }),
        _ => Ok(()),
    }
}

/// Tells libraries that start threads of their own how many they may: a worker's share of the CPUs,
/// where nobody has said otherwise.
fn share_of_cpus(workers: usize) -> Vec<(OsString, OsString)> {
    const VARIABLES: [&str; 7] = [
        "RAYON_NUM_THREADS",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
    ];
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = (cpus / workers).max(1).to_string();
    // One that has them all need not be told, and its own pools share them out.
    let is_open = |name: &&str| workers > 1 && std::env::var_os(name).is_none();
    VARIABLES.into_iter().filter(is_open).map(|name| (name.into(), share.clone().into())).collect()
}

/// The CPUs that this process may use.
fn allowed_cpus() -> Vec<u32> {
    let allowed = rustix::thread::sched_getaffinity(None);
    let cpus = 0..rustix::thread::CpuSet::MAX_CPU;
    allowed.map_or_else(
        |_| Vec::new(),
        |allowed| cpus.filter(|cpu| allowed.is_set(*cpu)).map(|cpu| cpu as u32).collect(),
    )
}
