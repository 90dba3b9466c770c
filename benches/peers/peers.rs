//! The contenders, started once and used by all rows: the pools, the raw channel, and copies of this
//! program that do nothing.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ipc_channel::ipc::{self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcSender};
use procpool::Pool;

use crate::measure::Outcome;
use crate::python::Python;

/// Tells a copy of this program to exit at once (`exit`) or to echo messages (`echo:SERVER`).
const COPY: &str = "PROCPOOL_BENCH_COPY";

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// The contenders.
pub(crate) struct Peers {
    /// Processes or threads of each.
    pub(crate) cores: usize,
    pub(crate) pool: Pool,
    pub(crate) procspawn: procspawn::Pool,
    pub(crate) echo: Echo,
    /// None without a python3.
    pub(crate) mp_pool: Option<Python>,
    pub(crate) executor: Option<Python>,
}

impl Peers {
    pub(crate) fn start() -> Outcome<Self> {
        let cores = std::thread::available_parallelism()?.get();
        // Before this process has threads: Python forks.
        let mp_pool = Python::start("Pool", cores);
        let executor = Python::start("ProcessPoolExecutor", cores);
        if mp_pool.is_none() {
            eprintln!("no python3: its pools are left out");
        }
        Ok(Self {
            cores,
            pool: Pool::new(cores)?,
            procspawn: procspawn::Pool::new(cores)?,
            echo: Echo::start()?,
            mp_pool,
            executor,
        })
    }
}

/// A process that echoes messages over two ipc-channels for bytes: the cost of a call without a call. It can
/// also send as many messages as possible.
pub(crate) struct Echo {
    to: IpcBytesSender,
    from: IpcBytesReceiver,
    child: Child,
}

type Ends = (IpcBytesReceiver, IpcBytesSender);

impl Echo {
    fn start() -> Outcome<Self> {
        let (server, name) = IpcOneShotServer::<IpcSender<Ends>>::new()?;
        let child = copy(&format!("echo:{name}")).spawn()?;
        let (_, introduction) = server.accept()?;
        let (to, childs_from) = ipc::bytes_channel()?;
        let (childs_to, from) = ipc::bytes_channel()?;
        introduction.send((childs_from, childs_to))?;
        Ok(Self { to, from, child })
    }

    /// Makes one round trip.
    pub(crate) fn round_trip(&self, message: &[u8]) -> Outcome<()> {
        self.to.send(message)?;
        std::hint::black_box(self.from.recv()?);
        Ok(())
    }

    /// Makes the other process send this many messages of eight bytes.
    pub(crate) fn stream(&self, messages: u64) -> Outcome<()> {
        self.to.send(&messages.to_le_bytes())?;
        for _ in 0..messages {
            std::hint::black_box(self.from.recv()?);
        }
        Ok(())
    }

    /// Echoes messages. For a message that is a number, sends that many.
    fn serve(name: &str) -> Outcome<()> {
        let (introduction, ends) = ipc::channel::<Ends>()?;
        IpcSender::connect(name.to_owned())?.send(introduction)?;
        let (from, to) = ends.recv()?;
        loop {
            let message = from.recv()?;
            match message.as_slice().try_into().map(u64::from_le_bytes) {
                Ok(messages) => {
                    (0..messages).try_for_each(|x| to.send(&x.to_le_bytes()))?;
                }
                Err(_) => to.send(&message)?,
            }
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a copy of this program and waits until it has ended.
pub(crate) fn start_copy() -> Outcome<()> {
    let status = copy("exit").status()?;
    if status.success() { Ok(()) } else { Err("the copy failed".into()) }
}

/// A copy of this program that is not a worker.
fn copy(what: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env(COPY, what).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// In a copy of this program, does its work and exits.
pub(crate) fn serve_if_copy() {
    let Ok(what) = std::env::var(COPY) else { return };
    if let Some(server) = what.strip_prefix("echo:") {
        let _ = Echo::serve(server); // ends when the other end is closed
    }
    std::process::exit(0)
}

/// Waits for a child, with a limit.
pub(crate) fn reap(child: &mut Child) {
    let start = std::time::Instant::now();
    while start.elapsed() < GRACE {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            _ => return,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}
