//! The contenders, started once and used by all rows: the pools, the raw channel, and copies of this
//! program that do nothing.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ipc_channel::ipc::{self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcSender};
use procpool::Pool;

use crate::measure::Outcome;
use crate::python::Python;

/// Makes a copy of this program end at once (`exit`) or send back what it is sent (`echo:SERVER`).
const COPY: &str = "PROCPOOL_BENCH_COPY";

/// How long anything may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// All of them.
pub(crate) struct Peers {
    /// How many processes or threads each has.
    pub(crate) cores: usize,
    pub(crate) pool: Pool,
    pub(crate) procspawn: procspawn::Pool,
    pub(crate) echo: Echo,
    /// None where there is no python3.
    pub(crate) mp_pool: Option<Python>,
    pub(crate) executor: Option<Python>,
}

impl Peers {
    pub(crate) fn start() -> Outcome<Self> {
        let cores = std::thread::available_parallelism()?.get();
        // Before any thread of ours: Python forks.
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

/// Another process at the far end of two ipc-channels for bytes, which sends back what it gets: what
/// a call costs where nothing is called. Or it sends as much as it can.
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

    /// There and back.
    pub(crate) fn round_trip(&self, message: &[u8]) -> Outcome<()> {
        self.to.send(message)?;
        std::hint::black_box(self.from.recv()?);
        Ok(())
    }

    /// Has the other process send so many messages of eight bytes.
    pub(crate) fn stream(&self, messages: u64) -> Outcome<()> {
        self.to.send(&messages.to_le_bytes())?;
        for _ in 0..messages {
            std::hint::black_box(self.from.recv()?);
        }
        Ok(())
    }

    /// Sends back what comes, and as many messages as it says where it is a number.
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

/// Does what a copy of this program was started for, and ends.
pub(crate) fn serve_if_copy() {
    let Ok(what) = std::env::var(COPY) else { return };
    if let Some(server) = what.strip_prefix("echo:") {
        let _ = Echo::serve(server); // until the other end is closed
    }
    std::process::exit(0)
}

/// Waits for a child, but not for ever.
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
