//! The engine on MPI: the only file that names the crate `mpi`.
//!
//! The crate starts MPI, probes for it when it is built, and has the bindings. Its calls drop the error codes
//! of MPI, so everything else here uses the bindings: non-blocking calls on the world communicator, whose
//! errors are returned.
//!
//! - One thread owns MPI, from [`enter`] to the end of the process.
//! - No call waits for a peer: a send to a lost peer never returns. Large messages both ways with
//!   blocking calls would deadlock.
//! - Each peer has one receive under way, started by a matched probe of that peer alone.
//! - Buffers of requests to a lost peer are leaked: MPI may still use them.
//! - A process leaves without `MPI_Finalize` once a peer is lost, because finalizing waits for all peers.

use std::collections::VecDeque;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::raw::c_int;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use mpi::environment::Universe;
use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::topology::Communicator;
use procpool_worker::function::ImageId;

use super::agent::{Agent, Ending};
use super::engine::{Engine, EngineEvent};
use super::manager::Manager;
use super::requests::{self, Handle, LEAVE_LIMIT};
use super::wire::Hello;
use super::{HOSTS, IS_IN_RUN, RANKS};
use crate::os::process::{at_exit, exit_now};
use crate::os::{host, signals};

/// Largest message. Each piece of a large frame counts as a heartbeat: heartbeats queue behind it.
const MOST_PIECE: usize = 8 << 20;

/// Tags: more of the frame follows, or this is its end.
const MORE: c_int = 1;
const END: c_int = 2;

/// Number of messages to a peer that MPI has at the same time.
const MOST_SENDING: usize = 16;

/// The exit codes of an agent that the manager rejected, and of one that lost the manager.
const EXIT_REJECTED: i32 = 4;
const EXIT_LOST: i32 = 3;

/// Starts the manager if this is rank 0 of a run, and becomes an agent if it is another rank. Then it never
/// returns.
pub(crate) fn enter() {
    if std::env::var_os(HOSTS).is_some_and(|value| value == "local") {
        return;
    }
    let rank = RANKS.iter().find_map(|name| std::env::var(name).ok());
    let Some(rank) = rank.and_then(|rank| rank.parse::<u32>().ok()) else { return };
    IS_IN_RUN.store(true, std::sync::atomic::Ordering::Relaxed);
    if std::env::var_os("OMPI_COMM_WORLD_RANK").is_some() {
        // mpirun binds a rank to one core. Workers would inherit the binding.
        host::use_all_cpus();
    }
    if rank > 0 {
        serve();
    }
    let (registered, is_registered) = sync_channel(1);
    let start = move || {
        let handle = requests::register();
        let _ends = EndsHandle(handle);
        let _ = registered.send(());
        if !ImageId::own().has_build_id() {
            let reason = "this program has no build id, so that other builds could not be told apart: link it with `-Wl,--build-id`";
            return requests::reject_all(handle, reason);
        }
        match Mpi::start() {
            Ok(engine) => {
                // Once more: before the handlers of MPI's own libraries.
                at_exit(leave);
                Manager::new(engine, handle, hello()).run();
            }
            Err(error) => requests::reject_all(handle, &error),
        }
    };
    let thread = std::thread::Builder::new().name("procpool-hosts".to_owned());
    match thread.spawn(start) {
        Ok(_) => {
            // The next pool to be built must find the manager.
            let _ = is_registered.recv();
            at_exit(leave);
        }
        Err(error) => eprintln!("procpool: no thread for the other hosts: {error}"),
    }
}

/// Releases all threads that wait for the manager when it ends, also by a panic.
struct EndsHandle(&'static Handle);

impl Drop for EndsHandle {
    fn drop(&mut self) {
        self.0.end();
    }
}

extern "C" fn leave() {
    requests::leave();
}

/// Serves rank 0, and ends the process.
fn serve() -> ! {
    // Before `main`, Rust has not ignored SIGPIPE. A dead worker would otherwise kill the agent.
    signals::ignore_broken_pipes();
    let engine = match Mpi::start() {
        Ok(engine) => engine,
        Err(error) => {
            eprintln!("procpool: {}: {error}", host::name());
            exit_now(EXIT_LOST)
        }
    };
    let (ending, mut engine) = Agent::new(engine).run(&hello());
    match ending {
        Ending::Bye { finalize } => {
            // Finalizing waits for all ranks, and one may be lost by now.
            let limit = || {
                std::thread::sleep(LEAVE_LIMIT);
                exit_now(0)
            };
            if finalize && std::thread::Builder::new().spawn(limit).is_ok() {
                engine.leave();
            }
            exit_now(0)
        }
        Ending::Rejected(reason) => {
            eprintln!("procpool: {}: {reason}", host::name());
            exit_now(EXIT_REJECTED)
        }
        Ending::Lost(reason) => {
            eprintln!("procpool: {}: the first host was lost: {reason}", host::name());
            exit_now(EXIT_LOST)
        }
    }
}

fn hello() -> Hello {
    Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        image: ImageId::own(),
        host: host::name(),
        boot: host::boot_id(),
        cpus: host::cpus(),
        memory: host::memory(),
    }
}

/// MPI, owned by one thread.
struct Mpi {
    /// Its drop finalizes MPI, and waits for all peers.
    universe: ManuallyDrop<Universe>,
    comm: ffi::MPI_Comm,
    rank: usize,
    peers: Vec<Peer>,
    has_lost: bool,
}

/// The transfers to and from a peer.
#[derive(Default)]
struct Peer {
    /// Pieces not yet passed to MPI, with their tags.
    waiting: VecDeque<(c_int, Vec<u8>)>,
    sending: Vec<Request>,
    receiving: Option<(c_int, Request)>,
    /// The pieces of a frame so far.
    partial: Vec<u8>,
    is_lost: bool,
}

/// A request, and the memory that MPI uses until it is complete.
struct Request {
    request: ffi::MPI_Request,
    buffer: ManuallyDrop<Vec<u8>>,
}

impl Request {
    /// Returns whether it is complete.
    fn test(&mut self) -> Result<bool, String> {
        let mut is_complete = 0;
        let mut status = MaybeUninit::uninit();
        // SAFETY: the request is live or complete, and MPI writes to locals.
        let code =
            unsafe { ffi::MPI_Test(&mut self.request, &mut is_complete, status.as_mut_ptr()) };
        check(code, "MPI_Test").map(|()| is_complete != 0)
    }

    /// Returns the memory of a complete request.
    fn into_buffer(self) -> Vec<u8> {
        ManuallyDrop::into_inner(self.buffer)
    }
}

fn check(code: c_int, call: &str) -> Result<(), String> {
    match code {
        0 => Ok(()),
        code => Err(format!("{call} failed with error {code}")),
    }
}

impl Mpi {
    /// Starts MPI on this thread, which owns it from here on.
    fn start() -> Result<Self, String> {
        let started = mpi::initialize_with_threading(mpi::Threading::Serialized);
        let (universe, _) = started.ok_or("MPI was started by another part of the program")?;
        let universe = ManuallyDrop::new(universe);
        let world = universe.world();
        let (comm, rank, size) = (world.as_raw(), world.rank(), world.size());
        // SAFETY: the world communicator is live until MPI is finalized.
        let code = unsafe { ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN) };
        check(code, "MPI_Comm_set_errhandler")?;
        let peers = (0..size).map(|_| Peer::default()).collect();
        Ok(Self { universe, comm, rank: rank as usize, peers, has_lost: false })
    }

    /// Starts sending a peer's waiting pieces, and frees what has been sent.
    fn send_to(&mut self, at: usize) -> Result<bool, String> {
        let (comm, peer) = (self.comm, &mut self.peers[at]);
        let mut has_moved = false;
        let mut index = 0;
        while index < peer.sending.len() {
            if peer.sending[index].test()? {
                drop(peer.sending.swap_remove(index).into_buffer());
                has_moved = true;
            } else {
                index += 1;
            }
        }
        while peer.sending.len() < MOST_SENDING
            && let Some((tag, buffer)) = peer.waiting.pop_front()
        {
            let buffer = ManuallyDrop::new(buffer);
            let mut request = MaybeUninit::uninit();
            // SAFETY: the buffer lives until the request is complete, or for ever.
            let code = unsafe {
                ffi::MPI_Isend(
                    buffer.as_ptr().cast(),
                    buffer.len() as c_int,
                    ffi::RSMPI_UINT8_T,
                    at as c_int,
                    tag,
                    comm,
                    request.as_mut_ptr(),
                )
            };
            check(code, "MPI_Isend")?;
            // SAFETY: MPI has set it.
            let request = unsafe { request.assume_init() };
            peer.sending.push(Request { request, buffer });
            has_moved = true;
        }
        Ok(has_moved)
    }

    /// Receives a peer's messages.
    fn receive_from(&mut self, at: usize, events: &mut Vec<EngineEvent>) -> Result<bool, String> {
        let mut has_moved = false;
        loop {
            let peer = &mut self.peers[at];
            match peer.receiving.take() {
                Some((tag, mut request)) => {
                    if !request.test()? {
                        peer.receiving = Some((tag, request));
                        return Ok(has_moved);
                    }
                    let piece = request.into_buffer();
                    has_moved = true;
                    if tag == MORE {
                        events.push(EngineEvent::Alive(at));
                        peer.partial.try_reserve(piece.len()).map_err(|error| error.to_string())?;
                        peer.partial.extend_from_slice(&piece);
                    } else if peer.partial.is_empty() {
                        events.push(EngineEvent::Frame(at, piece));
                    } else {
                        let mut frame = std::mem::take(&mut peer.partial);
                        frame.try_reserve(piece.len()).map_err(|error| error.to_string())?;
                        frame.extend_from_slice(&piece);
                        events.push(EngineEvent::Frame(at, frame));
                    }
                }
                None => match self.probe(at)? {
                    Some(receiving) => self.peers[at].receiving = Some(receiving),
                    None => return Ok(has_moved),
                },
            }
        }
    }

    /// Starts receiving a peer's next message, if there is one.
    fn probe(&self, at: usize) -> Result<Option<(c_int, Request)>, String> {
        let (mut is_there, mut count) = (0, 0);
        let (mut message, mut status) = (MaybeUninit::uninit(), MaybeUninit::zeroed());
        // SAFETY: MPI writes to locals. There is one peer and any tag, so no other thread or call can take the
        // message in between.
        let code = unsafe {
            ffi::MPI_Improbe(
                at as c_int,
                ffi::RSMPI_ANY_TAG,
                self.comm,
                &mut is_there,
                message.as_mut_ptr(),
                status.as_mut_ptr(),
            )
        };
        check(code, "MPI_Improbe")?;
        if is_there == 0 {
            return Ok(None);
        }
        // SAFETY: with a message, MPI has set both.
        let (mut message, status) = unsafe { (message.assume_init(), status.assume_init()) };
        // SAFETY: a status that MPI has set, and a local.
        let code = unsafe { ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut count) };
        check(code, "MPI_Get_count")?;
        let len = usize::try_from(count).map_err(|_| "a message without a length".to_owned())?;
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(len).map_err(|error| error.to_string())?;
        buffer.resize(len, 0u8);
        let mut buffer = ManuallyDrop::new(buffer);
        let mut request = MaybeUninit::uninit();
        // SAFETY: the buffer has `count` bytes and lives until the request is complete, or for ever.
        let code = unsafe {
            ffi::MPI_Imrecv(
                buffer.as_mut_ptr().cast(),
                count,
                ffi::RSMPI_UINT8_T,
                &mut message,
                request.as_mut_ptr(),
            )
        };
        check(code, "MPI_Imrecv")?;
        // SAFETY: MPI has set it.
        let request = unsafe { request.assume_init() };
        Ok(Some((status.MPI_TAG, Request { request, buffer })))
    }
}

impl Engine for Mpi {
    fn size(&self) -> usize {
        self.peers.len()
    }

    fn send(&mut self, peer: usize, frame: Vec<u8>) {
        let Some(to) = self.peers.get_mut(peer).filter(|to| !to.is_lost) else { return };
        if frame.len() <= MOST_PIECE {
            return to.waiting.push_back((END, frame));
        }
        let pieces = frame.len().div_ceil(MOST_PIECE);
        for (at, piece) in (1..).zip(frame.chunks(MOST_PIECE)) {
            let tag = if at == pieces { END } else { MORE };
            to.waiting.push_back((tag, piece.to_vec()));
        }
    }

    fn poll(&mut self, events: &mut Vec<EngineEvent>) -> bool {
        let mut has_moved = false;
        let rank = self.rank;
        for peer in (0..self.peers.len()).filter(|peer| *peer != rank) {
            // Agents exchange messages with the manager only.
            if self.peers[peer].is_lost || (rank > 0 && peer > 0) {
                continue;
            }
            let received = self.receive_from(peer, events);
            let moved = received.and_then(|received| Ok(self.send_to(peer)? || received));
            match moved {
                Ok(moved) => has_moved |= moved,
                Err(reason) => {
                    self.forget(peer);
                    events.push(EngineEvent::Lost(peer, reason));
                    has_moved = true;
                }
            }
        }
        has_moved
    }

    fn is_sending(&self) -> bool {
        let is_busy = |peer: &Peer| {
            let is_under_way = !peer.waiting.is_empty() || !peer.sending.is_empty();
            !peer.is_lost && (is_under_way || peer.receiving.is_some())
        };
        self.peers.iter().any(is_busy)
    }

    fn backlog(&self, peer: usize) -> usize {
        let Some(peer) = self.peers.get(peer) else { return 0 };
        let waiting = peer.waiting.iter().map(|(_, piece)| piece.len()).sum::<usize>();
        waiting + peer.sending.iter().map(|request| request.buffer.len()).sum::<usize>()
    }

    fn forget(&mut self, peer: usize) {
        self.has_lost = true;
        if let Some(peer) = self.peers.get_mut(peer) {
            // Their buffers are leaked.
            peer.sending.clear();
            peer.receiving = None;
            peer.waiting.clear();
            peer.partial = Vec::new();
            peer.is_lost = true;
        }
    }

    fn leave(&mut self) {
        if self.has_lost {
            return;
        }
        let limit = std::time::Instant::now() + Duration::from_secs(1);
        while self.is_sending() && std::time::Instant::now() < limit {
            self.poll(&mut Vec::new());
        }
        if !self.is_sending() {
            self.has_lost = true;
            // SAFETY: it is dropped once: `has_lost` is set, and nothing uses MPI after that.
            unsafe { ManuallyDrop::drop(&mut self.universe) };
        }
    }
}
