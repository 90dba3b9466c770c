//! What the kernel limits in a worker.

use std::time::Duration;

/// What a worker may use, beyond its memory, for [`PoolBuilder::limits`](crate::PoolBuilder::limits): limits that the kernel
/// keeps (setrlimit(2)). They are inherited by what its tasks start.
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
    /// Sets none.
    pub fn new() -> Self {
        Self::default()
    }

    /// What setrlimit(2) takes: resource, soft and hard limit.
    pub(crate) fn resources(&self) -> Vec<(u32, u64, u64)> {
        self.resources.clone()
    }

    fn set(mut self, resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> Self {
        self.resources.retain(|(other, ..)| *other != resource);
        self.resources.push((resource, soft, hard));
        self
    }

    /// CPU time of each worker over its whole life, rounded up to seconds. A worker that has used it
    /// up is killed by SIGXCPU, one that ignores that by SIGKILL a second later.
    pub fn cpu_time(self, limit: Duration) -> Self {
        let seconds = limit.as_secs() + u64::from(limit.subsec_nanos() > 0);
        self.set(libc::RLIMIT_CPU, seconds, seconds + 1)
    }

    /// How many files a worker may have open. It needs about ten for itself.
    pub fn open_files(self, files: u64) -> Self {
        self.set(libc::RLIMIT_NOFILE, files, files)
    }

    /// Size of the core file that a crash leaves, in bytes; 0 for none.
    pub fn core_size(self, bytes: u64) -> Self {
        self.set(libc::RLIMIT_CORE, bytes, bytes)
    }

    /// Size of a worker's address space, in bytes. An allocation beyond it fails, and the task with
    /// [`DeathCause::OutOfMemory`](crate::DeathCause::OutOfMemory) where the program aborts at that,
    /// as Rust does.
    pub fn address_space(self, bytes: u64) -> Self {
        self.set(libc::RLIMIT_AS, bytes, bytes)
    }
}
