//! Configures and builds a pool.

use std::ffi::OsString;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use procpool_worker::note::LogLevel;
use procpool_worker::sys;

use crate::error::{Error, StartError};
use crate::os::closer;
use crate::os::process::{Launch, OutputMode, check_directory};
use crate::pool::config::{Config, EnvPerWorker, Initializer, MAX_WORKERS, Preload, StartMethod};
use crate::pool::drive::driver;
use crate::pool::handle::{LivenessGuard, Pool};
use crate::pool::hosts::link::Link;
use crate::pool::hosts::requests::{self, Plan};
use crate::pool::hosts::{self, Hosts};
use crate::pool::limits::Limits;
use crate::pool::observe::events::{Event, Observer, Observers};
use crate::pool::observe::logs;
use crate::pool::options::TaskOptions;
use crate::pool::process::shared_supervisor::{Membership, SupervisorFds};
use crate::pool::process::supervisor;
use crate::pool::process::supervisor_handle::SupervisorHandle;
#[cfg(feature = "sandbox")]
use crate::pool::sandbox::Sandbox;
use crate::pool::schedule::admission::Bound;
use crate::pool::schedule::state::PoolState;
use crate::pool::system::{allowed_cpus, check_program, check_system, share_of_cpus};
use crate::worker_ref::HostName;

/// Minimum memory of a worker in bytes, shared memory included.
const MIN_MEMORY: u64 = 8 << 20;

/// Builder of a [`Pool`], from [`Pool::builder`].
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
    /// 0: the number of CPUs available to this process.
    pub(super) workers: usize,
    /// Default: "procpool".
    pub(super) name: String,
    pub(super) initializer: Option<Result<Initializer, Error>>,
    pub(super) preload: Option<Result<Preload, Error>>,
    #[cfg(feature = "sandbox")]
    pub(super) sandbox: Option<Sandbox>,
    /// `None`: as the other options need.
    pub(super) start_method: Option<StartMethod>,
    /// `None`: all.
    pub(super) initial_workers: Option<usize>,
    /// Workers that stand by.
    pub(super) spares: usize,
    pub(super) options: TaskOptions,
    /// `None`: adapts to the tasks.
    pub(super) window: Option<u64>,
    pub(super) max_queued: Bound,
    /// Default: 30 s.
    pub(super) start_timeout: Duration,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) env_per_worker: Vec<EnvPerWorker>,
    pub(super) current_dir: Option<PathBuf>,
    pub(super) output: OutputMode,
    /// Zero: kills immediately.
    pub(super) kill_grace: Duration,
    pub(super) max_tasks: Option<u64>,
    pub(super) max_memory: Option<u64>,
    pub(super) idle_timeout: Option<Duration>,
    /// Default: 1.
    pub(super) min_workers: usize,
    pub(super) limits: Limits,
    pub(super) nice: i32,
    pub(super) pin_cpus: bool,
    /// Whether a lost worker is replaced.
    pub(super) replaces: bool,
    /// `None`: random.
    pub(super) seed: Option<u64>,
    pub(super) observers: Vec<Observer>,
    pub(super) worker_logs: Option<Option<LogLevel>>,
    pub(super) hosts: Hosts,
    /// Numbers of workers for hosts by name.
    pub(super) workers_on: Vec<(String, usize)>,
    /// Set on a host that serves the pool of another: its name, and the slot of its first worker.
    pub(super) agent: Option<(HostName, usize)>,
}

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
    /// Creates a pool of `workers` workers; 0 for the number of CPUs available to this process.
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::build`].
    pub fn new(workers: usize) -> Result<Self, Error> {
        Self::builder().workers(workers).build()
    }

    /// Creates a builder with default options.
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
            preload: None,
            #[cfg(feature = "sandbox")]
            sandbox: None,
            start_method: None,
            initial_workers: None,
            spares: 0,
            options: TaskOptions::default(),
            window: None,
            max_queued: Bound::default(),
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
            worker_logs: None,
            hosts: Hosts::from_env(),
            workers_on: Vec::new(),
            agent: None,
        }
    }

    /// Sets the number of workers. The default, also for 0, is the number of CPUs available to this process,
    /// by its affinity mask and cgroup quota.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Sets the hosts that the pool spans. Default: the environment variable `PROCPOOL_HOSTS`
    /// (`mpi` or `local`), else this host alone.
    ///
    /// With [`Hosts::Mpi`], `mpirun` or `srun` starts the program once on each host. [`init`](crate::init)
    /// returns on the first and serves its pools on the others. Each host has
    /// [`workers`](Self::workers) workers, and every call of the pool runs on all of them. Reports, errors
    /// and events name the host.
    ///
    /// A task that kills its worker fails alone, on any host. If a whole host is lost, its tasks are
    /// retried elsewhere if [`retries`](Self::retries) are left, and fail with
    /// [`TaskErrorKind::HostLost`](crate::TaskErrorKind::HostLost) otherwise.
    ///
    /// Handles (channel ends, locks, shared memory) exist on one host: an argument that holds one is
    /// rejected. Each host has its own environment and files.
    ///
    /// ```no_run
    /// fn main() -> Result<(), procpool::Error> {
    ///     procpool::init(); // serves the pool on all hosts but the first
    ///     let pool = procpool::Pool::builder().hosts(procpool::Hosts::Mpi).retries(2).build()?;
    ///     println!("{:?}", pool.map(|x: u64| x * x, 0..10)?);
    ///     Ok(())
    /// }
    /// ```
    pub fn hosts(mut self, hosts: Hosts) -> Self {
        self.hosts = hosts;
        self
    }

    /// Sets the number of workers on one host of a pool that spans several.
    pub fn workers_on(mut self, host: impl Into<String>, workers: usize) -> Self {
        self.workers_on.push((host.into(), workers));
        self
    }

    /// Sets the workers' name in `ps` and `top`, followed by the slot number. Default: "procpool".
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Kills the worker if a task runs longer than `limit`. The task fails with
    /// [`TaskErrorKind::TimedOut`](crate::TaskErrorKind::TimedOut).
    pub fn task_timeout(mut self, limit: Duration) -> Self {
        self.options.timeout = Some(limit);
        self
    }

    /// Retries a task up to `times` times after its worker died or it timed out. A panic is never retried.
    /// Default: 0, because a task that has started may have had side effects.
    pub fn retries(mut self, times: u32) -> Self {
        self.options.retries = Some(times);
        self
    }

    /// Sends `items` items to a worker at once. Default: adaptive. By measured cost, a chunk takes about 1 ms,
    /// or 4 ms in a `map`, whose caller sees no result earlier.
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.options = self.options.chunk_size(items);
        self
    }

    /// Sets how far the input is read ahead: at most `items` items whose results have not been taken.
    /// Default: a few chunks for each worker. Results that have arrived and wait for an earlier one don't count
    /// then, up to 64 MiB of them, so that one slow item doesn't stop the other workers.
    pub fn window(mut self, items: usize) -> Self {
        self.window = Some(items as u64);
        self
    }

    /// Sets an environment variable in the workers.
    ///
    /// Libraries with their own thread pools would start one thread per CPU in each worker. The pool limits
    /// them to the worker's share (CPUs divided by workers, at least 1) through `RAYON_NUM_THREADS`,
    /// `OMP_NUM_THREADS`, `OPENBLAS_NUM_THREADS`, `MKL_NUM_THREADS`, `BLIS_NUM_THREADS`,
    /// `NUMEXPR_NUM_THREADS` and `NUMBA_NUM_THREADS`. A variable that is set here or in this process's
    /// environment is left unchanged.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets environment variables for each worker: `env` returns them for a slot number. Can be called
    /// several times. In a pool that spans [hosts](Self::hosts), slots count from 0 on each host.
    ///
    /// # Devices
    ///
    /// This is how workers share GPUs. Each worker sees one GPU, as number 0, because GPU libraries read the
    /// variable when they are initialized. Initialize them in the [`initializer`](Self::initializer), which
    /// runs in the worker, and never in the parent, where they would occupy memory on every device. A
    /// replacement worker gets the device of its slot.
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

    /// Sets the workers' working directory. Default: this process's.
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.current_dir = Some(dir.into());
        self
    }

    /// Sets where the workers' stdout and stderr go. Default: inherited from this process.
    pub fn output(mut self, output: OutputMode) -> Self {
        self.output = output;
        self
    }

    /// Sends SIGTERM when a running task times out or is cancelled, and SIGKILL if the worker is still
    /// running after `grace`. Default: SIGKILL immediately.
    pub fn kill_grace(mut self, grace: Duration) -> Self {
        self.kill_grace = grace;
        self
    }

    /// Replaces a worker after `tasks` tasks, for code that leaks. Counts tasks, not chunks.
    pub fn max_tasks_per_worker(mut self, tasks: u64) -> Self {
        self.max_tasks = Some(tasks);
        self
    }

    /// Kills a worker whose resident memory exceeds `bytes`, sampled every 10 ms while tasks run. The running
    /// task fails with [`DeathCause::OutOfMemory`](crate::DeathCause::OutOfMemory). With `RUST_BACKTRACE`
    /// set, a panic's backtrace loads the program's debug information, which counts too.
    pub fn max_memory_per_worker(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// Ends workers that have been idle for `limit`, down to [`min_workers`](Self::min_workers). They
    /// restart when there is work.
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.idle_timeout = Some(limit);
        self
    }

    /// Sets how many workers [`idle_timeout`](Self::idle_timeout) keeps. Default: 1. Has no effect without an
    /// idle timeout.
    pub fn min_workers(mut self, workers: usize) -> Self {
        self.min_workers = workers;
        self
    }

    /// Sets resource limits for each worker.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Adds to the workers' niceness, -20 to 19. At 19 they only use CPU time that no other process wants.
    pub fn nice(mut self, nice: i32) -> Self {
        self.nice = nice;
        self
    }

    /// Pins each worker to one of the CPUs available to this process, in turn.
    pub fn pin_cpus(mut self, pin: bool) -> Self {
        self.pin_cpus = pin;
        self
    }

    /// Seeds the tasks' random numbers, for reproducible runs; see [`random_u64`](crate::random_u64()).
    /// Default: a new seed for each pool.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Bounds how many calls of [`try_apply_async`](crate::Pool::try_apply_async) and
    /// [`reserve`](crate::Pool::reserve) wait for a worker. Beyond it, the first returns an error and the second waits.
    /// Other calls do not count. Default: no bound.
    pub fn max_queued(mut self, calls: usize) -> Self {
        self.max_queued.items = calls as u64;
        self
    }

    /// Bounds the bytes of the encoded arguments of these calls. The bound is checked before a call is encoded, so the
    /// last call that is accepted may exceed it. Default: no bound.
    pub fn max_queued_bytes(mut self, bytes: u64) -> Self {
        self.max_queued.bytes = bytes;
        self
    }

    /// Sets the least urgent level of the log records that workers send, or `None` for no records. The default is
    /// the least urgent level that this program's loggers take when the pool is built.
    ///
    /// Needs the feature `log`, `tracing` or both. Records that tasks and initializers make with these crates reach
    /// this program's logger and subscriber, with the fields `procpool.pool`, `procpool.slot`, `procpool.pid`,
    /// `procpool.task` and `procpool.attempt`, and `procpool.spans` for the spans that they were made in. They are
    /// also [events](crate::EventKind::Logged), and a task's last ten are part of the error of its worker's
    /// [death](crate::TaskErrorKind::Died). The records of one worker come in order.
    ///
    /// Loggers are called on the pool's callback thread, and [`join`](crate::Pool::join) waits for them. A worker whose
    /// records can't be sent within 10 ms drops them, and so does this process while 65,536 wait; the next one says how many. A worker in
    /// which code before [`init`](crate::init) has installed a logger keeps that one. A [`Process`](crate::Process)
    /// sends no records.
    pub fn worker_logs(mut self, level: impl Into<Option<LogLevel>>) -> Self {
        self.worker_logs = Some(level.into());
        self
    }

    /// Returns the level of log records that workers send.
    pub(super) fn chosen_worker_logs(&self) -> Option<LogLevel> {
        self.worker_logs.unwrap_or_else(logs::level)
    }

    /// Calls `callback` with every event of the pool. The events of one worker or task arrive in order.
    /// Callbacks run on the pool's callback thread. A panic in a callback is printed and otherwise ignored.
    /// Can be called several times.
    ///
    /// Slow callbacks never block workers. Beyond 65,536 pending events, events are dropped and
    /// [`EventKind::Lagged`](crate::EventKind::Lagged) reports how many. The last event,
    /// [`EventKind::Drained`](crate::EventKind::Drained), is never dropped.
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

    /// Sets one worker without replacement.
    pub(crate) fn single(mut self) -> Self {
        (self.workers, self.replaces) = (1, false);
        self
    }

    /// Starts all workers and returns once the first one has connected.
    ///
    /// # Errors
    ///
    /// - [`Error::NotInitialized`] if [`init`](crate::init) was not called.
    /// - [`Error::Privileged`] in a program with more privileges than its user, such as a setuid one.
    /// - [`Error::Library`] in a library loaded by another program.
    /// - [`Error::Option`] for an invalid option.
    /// - [`Error::Start`] if the first worker fails to start.
    /// - [`Error::OpenFiles`] if the limit on open files is too low for the number of workers.
    /// - [`Error::System`] if the system refuses a thread or a file descriptor.
    /// - [`Error::Hosts`] if another host can't serve the pool, and [`Error::BuildMismatch`] if it runs
    ///   another build of this program.
    pub fn build(mut self) -> Result<Pool, Error> {
        check_program()?;
        let fds = SupervisorFds::new()?;
        self.hosts.check()?;
        let spans_hosts = self.hosts == Hosts::Mpi && self.agent.is_none();
        let plan = spans_hosts.then(|| self.plan()).transpose()?;
        let (mut config, options) = self.resolve(Arc::clone(&fds.reader))?;
        config.observers.start().map_err(Error::system("a thread"))?;
        let link = match plan {
            Some(plan) => open_on_hosts(plan, &mut config)?,
            None => None,
        };
        let slots = config.local;
        let inline_limit = check_system(slots).inspect_err(|_| {
            link.iter().for_each(|link| requests::abandon(link.run));
        })?;
        let supervisor = SupervisorHandle::new(fds.waker);
        let shared = Arc::new(PoolState::new(config, supervisor, inline_limit, link.clone()));
        link.iter().for_each(|link| requests::attach(link, &shared));
        let pool = Pool::of(Arc::clone(&shared), options, LivenessGuard::Own(fds.writer));
        let supervised = Arc::clone(&shared);
        let supervise = move || supervisor::supervise(&supervised);
        pool.start_thread("procpool-supervisor".to_owned(), supervise)
            .inspect_err(|_| shared.drivers_missing(slots))?;
        pool.start_all_drivers()?;
        shared.wait_first_start()?;
        Ok(pool)
    }

    /// Starts the worker of a [`Process`](crate::Process), under the shared supervisor.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub(super) fn build_one(self) -> Result<Pool, Error> {
        check_program()?;
        if let Some(dir) = &self.current_dir {
            // On this thread, which only waits for its own process: the thread that starts the process
            // supervises all others too.
            check_directory(dir).map_err(|error| StartError::Spawn(error.to_string()))?;
        }
        let membership = Membership::join()?;
        let (config, options) = self.resolve(membership.liveness_pipe())?;
        let inline_limit = check_system(config.local)?;
        config.observers.start().map_err(Error::system("a thread"))?;
        let shared = Arc::new(PoolState::new(config, membership.supervisor(), inline_limit, None));
        membership.supervise(&shared);
        let pool = Pool::of(Arc::clone(&shared), options, LivenessGuard::Shared(membership));
        driver::start_one(&shared)?;
        Ok(pool)
    }

    /// Validates the options and fills in defaults. `liveness_pipe` is the workers' end of the liveness pipe.
    fn resolve(self, liveness_pipe: Arc<OwnedFd>) -> Result<(Config, TaskOptions), Error> {
        closer::install();
        let worker_logs = self.chosen_worker_logs();
        let refuse = |option, value: String, remedy| Err(Error::Option { option, value, remedy });
        let most_on = self.workers_on.iter().map(|(_, workers)| *workers).max().unwrap_or(0);
        if most_on > MAX_WORKERS {
            return refuse("workers_on", most_on.to_string(), "use at most 4096");
        }
        if self.workers > MAX_WORKERS {
            return refuse("workers", self.workers.to_string(), "use at most 4096");
        }
        if self.spares > MAX_WORKERS {
            return refuse("spares", self.spares.to_string(), "use at most 4096");
        }
        if self.window == Some(0) {
            return refuse("window", "0".to_owned(), "use at least 1, or leave it unset");
        }
        if self.max_queued.items == 0 {
            return refuse("max_queued", "0".to_owned(), "use at least 1, or leave it unset");
        }
        if self.max_queued.bytes == 0 {
            return refuse("max_queued_bytes", "0".to_owned(), "use at least 1, or leave it unset");
        }
        if self.start_timeout.is_zero() {
            return refuse("start_timeout", "0 s".to_owned(), "use more than 0 s");
        }
        if self.options.timeout.is_some_and(|limit| limit.is_zero()) {
            return refuse("task_timeout", "0 s".to_owned(), "leave it unset for no limit");
        }
        if self.max_tasks == Some(0) {
            return refuse("max_tasks_per_worker", "0".to_owned(), "use at least 1");
        }
        if self.max_memory.is_some_and(|bytes| bytes < MIN_MEMORY) {
            let value = format!("{} bytes", self.max_memory.unwrap_or(0));
            return refuse(
                "max_memory_per_worker",
                value,
                "use at least 8 MiB: a worker itself needs several",
            );
        }
        if !(-20..=19).contains(&self.nice) {
            return refuse("nice", self.nice.to_string(), "use -20 to 19");
        }
        if self.initial_workers == Some(0) {
            return refuse("initial_workers", "0".to_owned(), "use at least 1");
        }
        self.check_spares()?;
        #[cfg(feature = "sandbox")]
        self.check_sandbox()?;
        let start_method = self.chosen_start_method()?;
        let initializer = self.initializer.transpose()?;
        let preload = self.preload.transpose()?;
        if preload.is_some() && start_method == StartMethod::Spawn {
            return refuse(
                "preload",
                "one with StartMethod::Spawn".to_owned(),
                "use StartMethod::Template",
            );
        }
        let cpus = if self.pin_cpus { allowed_cpus() } else { Vec::new() };
        let workers = match self.workers {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            workers => workers,
        };
        let mut env = share_of_cpus(workers);
        env.extend(self.env);
        let mut observers = Observers::new(&self.name, self.observers);
        observers.host = self.agent.map(|(host, _)| host);
        let config = Config {
            worker_logs: if self.replaces { worker_logs } else { None },
            workers: workers + self.spares,
            local: workers + self.spares,
            spares: self.spares,
            initial: self.initial_workers.unwrap_or(usize::MAX).saturating_add(self.spares),
            first_slot: self.agent.map_or(0, |(_, slot)| slot),
            name: self.name,
            initializer,
            start_method,
            preload,
            #[cfg(feature = "sandbox")]
            sandbox: self.sandbox.or_else(Sandbox::of_suite),
            window: self.window,
            max_queued: self.max_queued,
            start_timeout: self.start_timeout,
            env_per_worker: self.env_per_worker,
            launch: Launch {
                env,
                removed_env: hosts::launcher_variables(),
                current_dir: self.current_dir,
                output: self.output,
                liveness_pipe,
            },
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
            observers,
        };
        Ok((config, self.options))
    }
}

/// Opens the pool on the other hosts. Returns the connection to them, if there are any.
fn open_on_hosts(plan: Plan, config: &mut Config) -> Result<Option<Arc<Link>>, Error> {
    let Some(opened) = requests::open(plan)? else { return Ok(None) };
    config.local = opened.local;
    config.workers = opened.workers;
    config.observers.host = Some(opened.own);
    Ok(Some(opened.link))
}
