//! The protocol between a supervisor and the run that it launched, over a socket on one machine.
//!
//! The supervisor sends its orders and its own standard streams, so that a terminal stays a
//! terminal for the run. The run then sends a beat every second, and its exit code at last; the
//! supervisor sends the signals that end the run. For both, the end of the socket is the end of the
//! other.

use std::fs;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use signal_hook::low_level;

use crate::exit::Exit;

/// The interval of a run's heartbeats.
pub(super) const BEAT: Duration = Duration::from_secs(1);

/// A message of a run: alive, or its exit code follows.
const ALIVE: u8 = 1;
const EXIT: u8 = 2;

/// The longest orders: a list of hosts, and some paths.
const MAX_ORDERS: u64 = 64 << 20;

/// The settings that distinguish a launched run from an unsupervised one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// The journal that the supervisor follows.
    pub(crate) journal: PathBuf,
    /// Whether it is removed at the end of the run.
    pub(crate) is_private: bool,
    /// Where the lines of this run start in it.
    pub(crate) since: u64,
    /// Whether there were several hosts at the start of the run.
    pub(crate) several: bool,
    /// The file for the results, unless `--results` names one.
    pub(crate) out: Option<PathBuf>,
    /// The file for what belongs to the results on standard error.
    pub(crate) err: PathBuf,
    /// The hosts that are left, with the numbers of their workers where these were given.
    pub(crate) hosts: Vec<(String, Option<usize>)>,
}

/// The supervisor's side, before the run is there.
pub(super) struct Listener {
    listener: UnixListener,
    pub(super) name: String,
}

/// The supervisor's side.
pub(super) struct Link {
    socket: UnixStream,
    /// The process of the run, which is no child of the supervisor: its PID may be another's once it
    /// has ended.
    pub(super) run: Arc<OwnedFd>,
}

/// The supervisor's side, for signals.
pub(super) struct Voice(UnixStream);

impl Voice {
    /// Lets the run take this signal as its supervisor's.
    pub(super) fn pass_on(&self, signal: i32) {
        // A run that is gone, or takes nothing, is ended otherwise.
        let _ = (&self.0).write_all(&[signal as u8]);
    }
}

/// The result of polling a run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    Alive,
    /// It ends with this exit code.
    Exit(u8),
    /// It is gone.
    Gone,
}

impl Listener {
    pub(super) fn new() -> Result<Self> {
        let name = format!("procpool-run-{:032x}", rand::random::<u128>());
        let listener = SocketAddr::from_abstract_name(&name)
            .and_then(|address| UnixListener::bind_addr(&address))
            .context("failed to create the socket of the supervisor")?;
        listener.set_nonblocking(true).context("failed to set up the socket of the supervisor")?;
        Ok(Self { listener, name })
    }

    /// Accepts the run's connection, if there is one, and sends the orders.
    pub(super) fn accept(
        &self,
        orders: &Orders,
        streams: [BorrowedFd<'_>; 3],
    ) -> Result<Option<Link>> {
        let socket = match self.listener.accept() {
            Ok((socket, _)) => socket,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error).context("failed to accept the launched run"),
        };
        // Any process on this machine may connect to it.
        let peer = rustix::net::sockopt::socket_peercred(&socket);
        let Some(peer) = peer.ok().filter(|peer| peer.uid == rustix::process::geteuid()) else {
            return Ok(None);
        };
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(Duration::from_secs(10)))?;
        // A run that was killed meanwhile is one that has never been there.
        let Ok(run) = pidfd_open(peer.pid, PidfdFlags::empty()) else { return Ok(None) };
        if send_orders(&socket, orders, &streams).is_err() {
            return Ok(None);
        }
        socket.set_nonblocking(true)?;
        Ok(Some(Link { socket, run: Arc::new(run) }))
    }
}

impl Link {
    pub(super) fn voice(&self) -> io::Result<Voice> {
        self.socket.try_clone().map(Voice)
    }

    /// Returns the run's message, without waiting.
    pub(super) fn hear(&mut self) -> Heard {
        let mut bytes = [0; 64];
        match (&self.socket).read(&mut bytes) {
            Ok(0) => Heard::Gone,
            Ok(length) => {
                let bytes = &bytes[..length];
                match bytes.iter().position(|byte| *byte == EXIT) {
                    None => Heard::Alive,
                    // Both bytes were sent at once.
                    Some(at) => bytes.get(at + 1).map_or(Heard::Gone, |code| Heard::Exit(*code)),
                }
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Heard::Nothing
            }
            Err(_) => Heard::Gone,
        }
    }
}

fn send_orders(to: &UnixStream, orders: &Orders, streams: &[BorrowedFd<'_>; 3]) -> io::Result<()> {
    let text = serde_json::to_vec(orders)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(streams));
    let length = (text.len() as u64).to_le_bytes();
    let sent = sendmsg(to, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL)?;
    if sent != length.len() {
        return Err(ErrorKind::WriteZero.into());
    }
    let mut to = to;
    to.write_all(&text)
}

fn take(from: &UnixStream) -> io::Result<(Orders, [OwnedFd; 3])> {
    let mut length = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let read = recvmsg(from, &mut [IoSliceMut::new(&mut length)], &mut control, flags)?;
    let streams = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let streams: Vec<OwnedFd> = streams.flatten().collect();
    let invalid = || io::Error::from(ErrorKind::InvalidData);
    let streams = <[OwnedFd; 3]>::try_from(streams).map_err(|_| invalid())?;
    let length = u64::from_le_bytes(length);
    if read.bytes != 8 || length > MAX_ORDERS {
        return Err(invalid());
    }
    let mut text = vec![0; length as usize];
    let mut from = from;
    from.read_exact(&mut text)?;
    Ok((serde_json::from_slice(&text)?, streams))
}

/// The run's side, for its exit code.
static SUPERVISOR: OnceLock<Mutex<UnixStream>> = OnceLock::new();

/// In a launched run: takes the orders, the supervisor's standard streams, and begins to beat. The
/// process ends with its supervisor.
pub(crate) fn attach(name: &str) -> Result<Orders> {
    let failed = "failed to reach the supervisor of this run: it must be on the same machine";
    let address = SocketAddr::from_abstract_name(name).context(failed)?;
    let socket = UnixStream::connect_addr(&address).context(failed)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (orders, [stdin, stdout, stderr]) = take(&socket).context(failed)?;
    socket.set_read_timeout(None)?;
    let moved = rustix::stdio::dup2_stdin(stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(stderr));
    moved.context("failed to take the standard streams of the supervisor")?;
    // Removes the supervisor's files. A killed supervisor can't.
    let dir = orders.err.parent().map(Path::to_owned);
    let ears = socket.try_clone()?;
    let mouth = socket.try_clone()?;
    let _ = SUPERVISOR.set(Mutex::new(socket)); // once per process
    let beat = move || {
        let mut mouth = mouth;
        while mouth.write_all(&[ALIVE]).is_ok() {
            thread::sleep(BEAT);
        }
    };
    let listen = move || {
        let mut ears = ears;
        let mut byte = [0];
        loop {
            match ears.read(&mut byte) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    let _ = dir.map(fs::remove_dir_all); // the process ends either way
                    low_level::exit(Exit::Failure.code().into())
                }
                Ok(_) => {
                    SIGNALS.fetch_add(1, Ordering::SeqCst);
                    let _ = low_level::raise(byte[0].into()); // handled on another thread
                }
            }
        }
    };
    for (name, run) in
        [("beat", Box::new(beat) as Box<dyn FnOnce() + Send>), ("ears", Box::new(listen))]
    {
        let thread = thread::Builder::new().name(name.into());
        thread.spawn(run).context("failed to start a thread")?;
    }
    Ok(orders)
}

/// The supervisor's signals that were not handled yet.
static SIGNALS: AtomicU32 = AtomicU32::new(0);

/// Whether a signal that asks the run to end comes from who may ask it: in a launched run, its
/// supervisor alone. The launcher also sends such signals when it ends because of one lost host.
pub(crate) fn is_ordered() -> bool {
    let take = |signals: u32| signals.checked_sub(1);
    SUPERVISOR.get().is_none()
        || SIGNALS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
}

/// In a launched run: says its exit code, so that the supervisor knows it where the journal has no
/// end, as after an error in the journal itself.
pub(crate) fn say_exit(code: u8) {
    if let Some(socket) = SUPERVISOR.get() {
        let mut socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = socket.write_all(&[EXIT, code]); // a supervisor that is gone has ended this process
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn orders_and_streams_arrive_as_they_were_sent() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let hosts = (0..10_000).map(|it| (format!("n{it}"), (it % 2 == 0).then_some(it))).collect();
        let orders = Orders { journal: "/a/b".into(), since: 7, hosts, ..Orders::default() };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        let file = File::create(&path).unwrap();
        let null = File::open("/dev/null").unwrap();
        let sent = orders.clone();
        let sender = thread::spawn(move || {
            send_orders(&ours, &sent, &[null.as_fd(), file.as_fd(), null.as_fd()]).unwrap();
        });
        let (taken, streams) = take(&theirs).unwrap();
        sender.join().unwrap();
        assert_eq!(taken, orders);
        let [_, stdout, _] = streams;
        File::from(stdout).write_all(b"here").unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"here");
    }

    #[test]
    fn a_run_is_heard_without_waiting_and_its_end_too() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        let mut link = Link { socket: ours, run: Arc::new(own) };
        assert_eq!(link.hear(), Heard::Nothing);
        theirs.write_all(&[ALIVE, ALIVE]).unwrap();
        assert_eq!(link.hear(), Heard::Alive);
        theirs.write_all(&[ALIVE, EXIT, 101]).unwrap();
        assert_eq!(link.hear(), Heard::Exit(101));
        drop(theirs);
        assert_eq!(link.hear(), Heard::Gone);
    }
}
