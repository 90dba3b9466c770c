//! What a worker runs before its first task, and how its process starts.

use std::time::Duration;

use procpool_worker::attach::Attachments;
use procpool_worker::codec;
use procpool_worker::function::{FnRef, PreloadRef};
use procpool_worker::protocol;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::pool::builder::PoolBuilder;
use crate::pool::config::{Initializer, Preload, StartMethod};
#[cfg(doc)]
use crate::pool::handle::Pool;
use crate::pool::hosts::Hosts;
#[cfg(feature = "sandbox")]
use crate::pool::sandbox::Sandbox;

/// The environment variable that sets the default.
const START_METHOD: &str = "PROCPOOL_START_METHOD";

impl PoolBuilder {
    /// Runs `f(argument)` in each worker, replacements included, before its first task. Tasks access its
    /// return value through [`with_state`](crate::with_state).
    ///
    /// A worker whose initializer panics or dies is not used. The pool retries with growing delays; after
    /// several failures, waiting tasks fail with
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
        self.initializer = Some((|| {
            let call =
                FnRef::initializer(f).map_err(|error| foreign("initializer", error.to_string()))?;
            let (mut bytes, mut attachments) = (Vec::new(), Attachments::default());
            protocol::encode_item(&mut bytes, &mut attachments, &argument)
                .map_err(|error| not_encodable("initializer", error.to_string()))?;
            let width = protocol::item_width::<A>();
            Ok(Initializer { call, argument: bytes, attachments, width })
        })());
        self
    }

    /// Runs `f(argument)` once, in a template process from which all workers are forked. They share what it has
    /// built until they change it (copy-on-write), so it takes its time and its memory once for the pool, and a
    /// replacement worker has it at once. Tasks access its return value through
    /// [`with_state`](crate::with_state), each worker its own copy. Implies [`StartMethod::Template`].
    ///
    /// An [`initializer`](Self::initializer) still runs in each worker, after the fork. If both return the same
    /// type, tasks see the initializer's value.
    ///
    /// [`build`](Self::build) returns after `f`. If `f` panics, dies or takes longer than
    /// [`start_timeout`](Self::start_timeout), it fails with [`StartError::Preload`](crate::StartError::Preload)
    /// or [`StartError::TimedOut`](crate::StartError::TimedOut). A template that dies later is replaced: `f` runs
    /// again.
    ///
    /// # What `f` must not leave behind
    ///
    /// - **Threads.** A fork copies one thread only, so the build fails if others are running; the error names
    ///   them. Start threads and runtimes in the initializer.
    /// - **Connections and open files** that workers would share, with one position and one stream of bytes. A
    ///   file that is read by position (`read_at`) or mapped can be shared.
    /// - **Random generators.** Each worker would draw the same numbers. Create them in the initializer, or use
    ///   [`random_u64`](crate::random_u64()), which differs in each task.
    ///
    /// Handlers of `pthread_atfork` do not run. A worker's
    /// [`max_memory_per_worker`](Self::max_memory_per_worker) counts the memory that it shares with the template.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::collections::HashSet;
    ///
    /// struct Words(HashSet<String>);
    ///
    /// fn load(path: String) -> Words {
    ///     let text = std::fs::read_to_string(path).expect("the list of words");
    ///     Words(text.lines().map(str::to_owned).collect())
    /// }
    ///
    /// fn is_word(word: String) -> bool {
    ///     procpool::with_state(|words: &mut Words| words.0.contains(&word)).unwrap()
    /// }
    ///
    /// let pool = procpool::Pool::builder()
    ///     .preload(load, "/usr/share/dict/words".to_owned())
    ///     .max_tasks_per_worker(1) // a fresh process for each task
    ///     .build()?;
    /// println!("{:?}", pool.map(is_word, ["pool".to_owned(), "looop".to_owned()])?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn preload<A, S>(mut self, f: fn(A) -> S, argument: A) -> Self
    where
        A: Serialize + DeserializeOwned,
        S: 'static,
    {
        self.preload = Some((|| {
            let call = PreloadRef::new(f).map_err(|error| foreign("preload", error.to_string()))?;
            let (mut bytes, mut attachments) = (Vec::new(), Attachments::default());
            codec::encode_attached(&argument, &mut bytes, &mut attachments)
                .map_err(|error| not_encodable("preload", error.to_string()))?;
            Ok(Preload { call, argument: bytes, attachments })
        })());
        self
    }

    /// Sets how worker processes are started. Default: [`StartMethod::Template`] with a
    /// [`preload`](Self::preload) function, else the environment variable `PROCPOOL_START_METHOD` (`spawn` or
    /// `template`), else [`StartMethod::Spawn`].
    ///
    /// A worker that is forked is ready in a fraction of the time, because it skips the start of the program: use
    /// a template where workers are replaced often
    /// ([`max_tasks_per_worker`](Self::max_tasks_per_worker), crashes), or where there are many. A template costs
    /// one more process. Workers of a template share the layout of their address space and the keys of hash maps,
    /// and run no code that the program has before [`init`](crate::init) again.
    ///
    /// Needs a kernel with `CONFIG_CHECKPOINT_RESTORE`, as all distributions have it.
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.start_method = Some(method);
        self
    }

    /// Starts `workers` workers in [`build`](Self::build). The others start as they are needed: when more tasks are
    /// queued than workers are idle or starting. At least 1. Default: all. Applies to each
    /// [host](Self::hosts).
    ///
    /// With an [`idle_timeout`](Self::idle_timeout), a pool grows with its work and shrinks again.
    pub fn initial_workers(mut self, workers: usize) -> Self {
        self.initial_workers = Some(workers);
        self
    }

    /// Keeps `workers` more workers that stand by, ready and initialized. One takes the place of a worker that dies
    /// or [retires](Self::max_tasks_per_worker), so that the next task does not wait for a start. The replacement
    /// stands by in turn. Default: 0.
    ///
    /// [`workers`](Self::workers) is still the number of tasks that run at once. All workers are listed by
    /// [`Pool::workers`] and reached by [`Pool::broadcast`]. Not available with
    /// [`env_per_worker`](Self::env_per_worker), [`pin_cpus`](Self::pin_cpus) or [`hosts`](Self::hosts): a worker that
    /// stands by would need the device, the CPU or the host of the one whose place it takes.
    pub fn spares(mut self, workers: usize) -> Self {
        self.spares = workers;
        self
    }

    /// Checks that the pool's other options let workers stand by.
    pub(super) fn check_spares(&self) -> Result<(), Error> {
        let refuse = |other: &str, remedy| {
            let value = format!("{} with {other}", self.spares);
            Err(Error::Option { option: "spares", value, remedy })
        };
        match self.spares {
            0 => Ok(()),
            _ if !self.env_per_worker.is_empty() => {
                refuse("env_per_worker", "use 0 spares, or env for all workers")
            }
            _ if self.pin_cpus => refuse("pin_cpus", "use 0 spares, or do not pin the workers"),
            _ if self.agent.is_some() || self.hosts == Hosts::Mpi => {
                refuse("other hosts", "use 0 spares, or a pool of this host")
            }
            _ => Ok(()),
        }
    }

    /// Confines the workers; see [`Sandbox`]. With [`hosts`](Self::hosts), on each host: what is named must exist there.
    ///
    /// [`build`](Self::build) fails with [`StartError::Sandbox`](crate::StartError::Sandbox) where the kernel can't do it.
    #[cfg(feature = "sandbox")]
    pub fn sandbox(mut self, sandbox: Sandbox) -> Self {
        self.sandbox = Some(sandbox);
        self
    }

    /// Checks that this machine can confine workers so.
    #[cfg(feature = "sandbox")]
    pub(super) fn check_sandbox(&self) -> Result<(), Error> {
        self.sandbox.as_ref().map_or(Ok(()), |sandbox| Ok(sandbox.check()?))
    }

    /// Limits the time from a worker's start to the end of its initializer, and from the template's start to the
    /// end of its preload function. Default: 30 s.
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.start_timeout = limit;
        self
    }

    /// Returns the start method that the options ask for.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if the environment variable names none.
    pub(super) fn chosen_start_method(&self) -> Result<StartMethod, Error> {
        match (self.start_method, &self.preload) {
            (Some(method), _) => Ok(method),
            (None, Some(_)) => Ok(StartMethod::Template),
            // A `Process` would be the only worker of its template.
            (None, None) if !self.replaces => Ok(StartMethod::Spawn),
            (None, None) => match std::env::var_os(START_METHOD) {
                None => Ok(StartMethod::Spawn),
                Some(value) if value.is_empty() || value == "spawn" => Ok(StartMethod::Spawn),
                Some(value) if value == "template" => Ok(StartMethod::Template),
                Some(value) => Err(Error::Option {
                    option: START_METHOD,
                    value: value.display().to_string(),
                    remedy: "set it to spawn or template",
                }),
            },
        }
    }
}

fn foreign(option: &'static str, value: String) -> Error {
    Error::Option { option, value, remedy: "pass a function defined in this program" }
}

fn not_encodable(option: &'static str, value: String) -> Error {
    Error::Option { option, value, remedy: "pass an argument that can be encoded" }
}
