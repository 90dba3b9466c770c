//! What the workers of a pool may still do.

use std::path::PathBuf;

use procpool_worker::confinement::{Confinement, Network};

use crate::error::StartError;

/// What workers may still do, for [`PoolBuilder::sandbox`](crate::PoolBuilder::sandbox) and
/// [`ProcessBuilder::sandbox`](crate::ProcessBuilder::sandbox). The kernel refuses all else, also to code that has taken a
/// worker over, and to the programs that the worker starts.
///
/// [`strict`](Self::strict) allows computing, memory, threads, and what the worker has open. It denies:
///
/// - files and directories that are not named, but for their metadata: whether they exist, their size, their times;
/// - the network, and sockets of any kind;
/// - starting processes, and signals to others;
/// - settings of terminals, file systems and devices (`ioctl`), exclusive locks on files that may only be read;
/// - looking into other processes (`ptrace`), keyrings, `io_uring`, `userfaultfd`, namespaces, modules, and all else
///   that has no place in a computation.
///
/// A refused file, socket or process is an error (`EACCES`, `EPERM`), as where the user lacks the right. A call that
/// programs do not make in good faith ends the worker: the task fails with
/// [`DeathCause::Sandboxed`](crate::DeathCause::Sandboxed), which names it. Changes of a file's mode, owner, times and
/// extended attributes are refused everywhere.
///
/// What stays open: CPU time, memory and threads up to the pool's limits
/// ([`max_memory_per_worker`](crate::PoolBuilder::max_memory_per_worker), [`task_timeout`](crate::PoolBuilder::task_timeout),
/// [`limits`](crate::PoolBuilder::limits)), what the pool's output mode passes on, and faults of the kernel and the processor.
///
/// Needs Linux 6.2 with Landlock and seccomp, which distributions enable; 6.7 for ports; 6.12 for a sandbox that starts
/// processes.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::{Pool, Sandbox};
///
/// /// Counts the bytes of a file. Whatever its input makes it do, it can read nothing else.
/// fn parse(path: String) -> usize {
///     std::fs::read(path).map_or(0, |bytes| bytes.len())
/// }
///
/// let pool = Pool::builder().sandbox(Sandbox::strict().read("/var/uploads")).build()?;
/// println!("{}", pool.apply(parse, "/var/uploads/1.pdf".to_owned())?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    confinement: Confinement,
    after_initializer: bool,
}

/// Which connections a worker may make, for [`Sandbox::network`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(Network);

impl Ports {
    /// Allows TCP connections to these ports of any host.
    pub fn connect(ports: impl IntoIterator<Item = u16>) -> Self {
        Self(Network::Tcp { connect: ports.into_iter().collect(), listen: Vec::new() })
    }

    /// Allows listening on these TCP ports, too.
    #[must_use]
    pub fn listen(mut self, ports: impl IntoIterator<Item = u16>) -> Self {
        if let Network::Tcp { listen, .. } = &mut self.0 {
            listen.extend(ports);
        }
        self
    }

    /// Allows all of IPv4 and IPv6, with UDP. To look up names, a worker also needs
    /// [`read`](Sandbox::read) of `/etc`.
    pub fn all() -> Self {
        Self(Network::Full)
    }
}

impl Sandbox {
    /// Creates a sandbox that allows nothing but computing.
    pub fn strict() -> Self {
        Self { confinement: Confinement::default(), after_initializer: false }
    }

    /// Allows reading a file, or everything below a directory. It must exist.
    #[must_use]
    pub fn read(mut self, path: impl Into<PathBuf>) -> Self {
        self.confinement.read.push(path.into().into_os_string());
        self
    }

    /// Allows reading and changing a file, or everything below a directory. It must exist. How much is written is limited by
    /// [`Limits::file_size`](crate::Limits::file_size) for each file, and by the file system.
    #[must_use]
    pub fn write(mut self, path: impl Into<PathBuf>) -> Self {
        self.confinement.write.push(path.into().into_os_string());
        self
    }

    /// Allows connections.
    #[must_use]
    pub fn network(mut self, ports: Ports) -> Self {
        self.confinement.network = ports.0;
        self
    }

    /// Sets whether tasks may start processes, of programs that they may [`read`](Self::read), with the same sandbox.
    /// Default: no.
    #[must_use]
    pub fn spawn(mut self, is_allowed: bool) -> Self {
        self.confinement.spawn = is_allowed;
        self
    }

    /// Builds the pool also where the kernel lacks a part of this sandbox: workers are confined by the parts that it has.
    #[must_use]
    pub fn best_effort(mut self) -> Self {
        self.confinement.best_effort = true;
        self
    }

    /// Makes `build` fail where the kernel lacks a part of this sandbox. This is the default.
    #[must_use]
    pub fn required(mut self) -> Self {
        self.confinement.best_effort = false;
        self
    }

    /// Confines a worker after its [initializer](crate::PoolBuilder::initializer), which can then load what tasks cannot reach.
    /// It must leave no threads behind. Default: before.
    #[must_use]
    pub fn after_initializer(mut self) -> Self {
        self.after_initializer = true;
        self
    }

    /// Returns the sandbox of pools that have none, in the run of the whole suite in a sandbox; see CONTRIBUTING.
    pub(crate) fn of_suite() -> Option<Self> {
        let everything = Self::strict().write("/").read("/").network(Ports::all()).spawn(true);
        cfg!(sandboxed).then_some(everything)
    }

    /// Returns what is sent to other hosts: what workers may do, and whether from after their initializer on.
    pub(crate) fn into_parts(self) -> (Confinement, bool) {
        (self.confinement, self.after_initializer)
    }

    /// Returns the sandbox that another host asks for.
    pub(crate) fn of_parts((confinement, after_initializer): (Confinement, bool)) -> Self {
        Self { confinement, after_initializer }
    }

    /// Checks that this machine can confine workers so.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        procpool_worker::sandbox::check(&self.confinement).map_err(StartError::Sandbox)
    }

    /// Returns what a worker is told at this point, before or after its initializer.
    pub(crate) fn due(&self, after_initializer: bool) -> Option<&Confinement> {
        (self.after_initializer == after_initializer).then_some(&self.confinement)
    }
}
