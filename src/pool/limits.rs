//! Resource limits that the kernel enforces in each worker.

use std::time::Duration;

/// Resource limits of each worker, for [`PoolBuilder::limits`](crate::PoolBuilder::limits). The kernel
/// enforces them (setrlimit(2)), and processes that a task starts inherit them.
///
/// ```no_run
/// # fn main() -> Result<(), procpool::Error> {
/// use std::time::Duration;
///
/// let limits = procpool::Limits::new().cpu_time(Duration::from_secs(60)).open_files(256).core_size(0);
/// let pool = procpool::Pool::builder().limits(limits).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    resources: Vec<(u32, u64, u64)>,
}

impl Limits {
    /// Creates an empty set of limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates limits from setrlimit(2) arguments.
    pub(crate) fn of_resources(resources: Vec<(u32, u64, u64)>) -> Self {
        Self { resources }
    }

    /// Returns setrlimit(2) arguments: resource, soft limit and hard limit.
    pub(crate) fn resources(&self) -> Vec<(u32, u64, u64)> {
        self.resources.clone()
    }

    fn set(mut self, resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> Self {
        self.resources.retain(|(other, ..)| *other != resource);
        self.resources.push((resource, soft, hard));
        self
    }

    /// Limits the CPU time of each worker over its lifetime, rounded up to seconds. The worker is killed by
    /// SIGXCPU; a worker that ignores the signal is killed by SIGKILL one second later.
    pub fn cpu_time(self, limit: Duration) -> Self {
        let seconds = limit.as_secs() + u64::from(limit.subsec_nanos() > 0);
        self.set(libc::RLIMIT_CPU, seconds, seconds + 1)
    }

    /// Limits the number of open file descriptors. A worker needs about ten of its own.
    pub fn open_files(self, files: u64) -> Self {
        self.set(libc::RLIMIT_NOFILE, files, files)
    }

    /// Limits the size of a core dump, in bytes; 0 disables core dumps.
    pub fn core_size(self, bytes: u64) -> Self {
        self.set(libc::RLIMIT_CORE, bytes, bytes)
    }

    /// Limits the size of each file that a worker writes, in bytes. Writing beyond it is the error `EFBIG`.
    /// Shared memory is a file to the kernel: a larger result can't be returned.
    pub fn file_size(self, bytes: u64) -> Self {
        self.set(libc::RLIMIT_FSIZE, bytes, bytes)
    }

    /// Limits the number of processes and threads of the worker's user, all programs together: a worker starts no more
    /// while there are so many. Does not apply to root.
    pub fn processes(self, processes: u64) -> Self {
        self.set(libc::RLIMIT_NPROC, processes, processes)
    }

    /// Limits the size of a worker's address space, in bytes. Allocations beyond it fail. A Rust program
    /// aborts then, and the task fails with [`DeathCause::OutOfMemory`](crate::DeathCause::OutOfMemory).
    pub fn address_space(self, bytes: u64) -> Self {
        self.set(libc::RLIMIT_AS, bytes, bytes)
    }
}
