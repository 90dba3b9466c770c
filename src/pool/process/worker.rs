//! The parent's handle on a worker process. [`Worker`] is the exclusive right to communicate with it;
//! [`Process`] is shared state that any thread may use.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::attach::{Attachments, FileId, Received};
use procpool_worker::codec;
use procpool_worker::control::{Control, Packet};
use procpool_worker::doorbell::SpinWaiter;
use procpool_worker::error::TransportError;
use procpool_worker::function::ImageId;
use procpool_worker::lane::ParentLane;
use procpool_worker::note::Note;
use procpool_worker::protocol::{
    Handshake, MAX_ATTACHED, MAX_FILES, Passed, PassedResult, RegionSlice, Reply, Request, Setup,
    VERSION,
};
use procpool_worker::region::Region;
use procpool_worker::sys::now;
use procpool_worker::transport::FrameSender;
use rustix::process::Signal;

use crate::error::{DeathCause, StartError};
use crate::os::process::{CaptureFile, Child};
use crate::pool::call::context::Context;
use crate::pool::drive::notes::{NoteHead, PartialNote};
use crate::pool::drive::parcel::{Files, Parcel};
use crate::pool::drive::records;
use crate::pool::drive::regions::{Mapped, Regions};
use crate::pool::observe::events::Observers;
use crate::worker_ref::{HostName, WorkerRef};

/// How long a worker that was told to exit may take before it is killed.
pub(crate) const RETIRE_GRACE: Duration = Duration::from_secs(2);

/// A worker process, from start to end.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) slot: usize,
    /// This host, if the pool spans several.
    host: Option<HostName>,
    /// Number among the slot's processes, from 1.
    pub(crate) generation: u64,
    pub(crate) child: Child,
    control: Control,
    /// Captured output.
    pub(crate) capture: Option<CaptureFile>,
    /// Time between SIGTERM and SIGKILL.
    grace: Duration,
    /// Whether it has been given a task.
    used: AtomicBool,
    lifecycle: Mutex<Lifecycle>,
    exited: Condvar,
}

#[derive(Debug, Default)]
struct Lifecycle {
    /// Why it was killed or told to exit.
    kill_reason: Option<KillReason>,
    /// When SIGKILL follows SIGTERM.
    kill_at: Option<Instant>,
    death: Option<DeathCause>,
    /// Whether it has connected.
    handshake_done: bool,
    /// Whether it has ever been ready.
    ready: bool,
    /// When its end was noticed, in nanoseconds of the monotonic clock.
    ended: Option<u64>,
}

/// Why the pool killed or retired a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// It was not ready in time.
    StartTimedOut(Duration),
    /// Its item exceeded the time limit.
    TimedOut(Duration),
    /// Its item was cancelled.
    Cancelled,
    /// It exceeded the memory limit.
    OutOfMemory,
    /// It violated the protocol.
    Malformed,
    /// It was idle although it had work.
    Silent,
    /// It is no longer needed.
    Retired,
}

impl Process {
    pub(crate) fn new(
        slot: usize,
        host: Option<HostName>,
        generation: u64,
        child: Child,
        control: Control,
        capture: Option<CaptureFile>,
        grace: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            slot,
            host,
            generation,
            child,
            control,
            capture,
            grace,
            used: AtomicBool::new(false),
            lifecycle: Mutex::default(),
            exited: Condvar::new(),
        })
    }

    fn lifecycle(&self) -> MutexGuard<'_, Lifecycle> {
        self.lifecycle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Returns how results and errors identify it.
    pub(crate) fn worker_ref(&self) -> WorkerRef {
        WorkerRef { slot: self.slot, pid: self.pid(), host: self.host }
    }

    /// Kills the process. The first reason is kept.
    pub(crate) fn kill(&self, reason: KillReason) {
        self.lifecycle().kill_reason.get_or_insert(reason);
        self.child.kill();
    }

    /// Sends SIGTERM; the supervisor kills the process after the grace period. The first reason is kept.
    pub(crate) fn terminate_gracefully(&self, reason: KillReason) {
        if self.grace.is_zero() {
            return self.kill(reason);
        }
        let mut lifecycle = self.lifecycle();
        lifecycle.kill_reason.get_or_insert(reason);
        lifecycle.kill_at = lifecycle.kill_at.or_else(|| Instant::now().checked_add(self.grace));
        if lifecycle.ended.is_none() {
            self.child.signal_group(Signal::TERM);
        }
    }

    /// Sends a signal to the process group, unless the process has ended.
    pub(crate) fn signal_group(&self, signal: Signal) {
        // Held so that the process isn't reaped meanwhile.
        let lifecycle = self.lifecycle();
        if lifecycle.ended.is_none() {
            self.child.signal_group(signal);
        }
    }

    /// Returns when SIGKILL follows SIGTERM.
    pub(crate) fn kill_at(&self) -> Option<Instant> {
        self.lifecycle().kill_at
    }

    /// Records why the process ends, without killing it. The first reason is kept.
    pub(crate) fn set_kill_reason(&self, reason: KillReason) {
        self.lifecycle().kill_reason.get_or_insert(reason);
    }

    /// Returns why the pool ends the process, if it does.
    pub(crate) fn kill_reason(&self) -> Option<KillReason> {
        self.lifecycle().kill_reason
    }

    /// Marks the process as having been given a task.
    pub(crate) fn set_used(&self) {
        self.used.store(true, Relaxed);
    }

    /// Returns whether the process has been given a task.
    pub(crate) fn was_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    /// Marks the process as connected; its initializer follows.
    pub(crate) fn set_connected(&self) {
        self.lifecycle().handshake_done = true;
    }

    /// Returns whether the process has connected.
    pub(crate) fn has_connected(&self) -> bool {
        self.lifecycle().handshake_done
    }

    /// Marks the process as ready, after its initializer.
    pub(crate) fn set_ready(&self) {
        self.lifecycle().ready = true;
    }

    /// Returns whether the process has ever been ready.
    pub(crate) fn was_ready(&self) -> bool {
        self.lifecycle().ready
    }

    /// Marks the process as ended. Must be called before it is reaped: afterwards its PID may be reused, and
    /// no signal may be sent to it.
    pub(crate) fn set_ended(&self) {
        self.lifecycle().ended = Some(now());
    }

    /// Returns when its end was noticed, in nanoseconds of the monotonic clock; now if it wasn't.
    pub(crate) fn ended(&self) -> u64 {
        self.lifecycle().ended.unwrap_or_else(now)
    }

    /// Publishes the cause of death and wakes all waiters.
    pub(crate) fn publish_exit(&self, cause: DeathCause) {
        self.lifecycle().death = Some(cause);
        self.exited.notify_all();
        // A closed connection isn't enough: a process that a task has started may hold it open.
        self.control.shut_down();
    }

    /// Returns the cause of death, once the process has ended.
    pub(crate) fn death(&self) -> Option<DeathCause> {
        self.lifecycle().death
    }

    /// Blocks until the process ends. Called for processes known to be ending.
    pub(crate) fn wait_death(&self) -> DeathCause {
        let mut lifecycle = self.lifecycle();
        loop {
            match lifecycle.death {
                Some(cause) => return cause,
                None => {
                    lifecycle = self.exited.wait(lifecycle).unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
    }

    /// Blocks until the process ends, but at most for `limit`. Returns whether it has ended.
    pub(crate) fn wait_death_timeout(&self, limit: Duration) -> bool {
        let is_alive = |lifecycle: &mut Lifecycle| lifecycle.death.is_none();
        let waited = self.exited.wait_timeout_while(self.lifecycle(), limit, is_alive);
        waited.unwrap_or_else(PoisonError::into_inner).0.death.is_some()
    }
}

/// A started process before its handshake.
#[derive(Debug)]
pub(crate) struct PendingWorker {
    pub(crate) process: Arc<Process>,
    pub(crate) lane: Arc<ParentLane>,
    pub(crate) requests: FrameSender,
}

/// The exclusive right to communicate with a worker. The holder may send a frame, and must receive its reply
/// before passing the worker on.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) process: Arc<Process>,
    pub(crate) lane: Arc<ParentLane>,
    /// `None` once the channel is closed.
    requests: Option<FrameSender>,
    /// Regions received that no result has referred to yet.
    arrived: Vec<(u32, Option<Region>)>,
    /// Files received that no result has referred to yet, with their reply's number; or why they were not.
    attached: Option<(u32, Result<Files, &'static str>)>,
    waiter: SpinWaiter,
    /// Number of frames sent since its last reply.
    unread: u32,
    /// Whether the worker spins for another frame after its reply.
    pub(crate) hint_more: bool,
    /// Number of the last chunk.
    pub(crate) sequence: u32,
    /// Number of tasks it has run.
    pub(crate) tasks: u64,
    /// Contexts that it holds.
    contexts: Vec<Arc<Context>>,
    /// The frame being built, reused for its capacity.
    pub(crate) frame: Vec<u8>,
    /// Regions that it has mapped.
    pub(crate) mapped: Mapped,
    /// The note of which some parts have arrived.
    partial: PartialNote,
    /// How many notes were received.
    pub(crate) notes: u64,
    /// Who learns of its log records.
    pub(crate) observers: Observers,
}

/// What a worker has sent.
#[derive(Debug)]
pub(crate) enum Incoming {
    Reply(Reply),
    /// What a task said while it ran, and the value behind it.
    Note(NoteHead, (Note, Vec<u8>)),
}

impl PendingWorker {
    /// Blocks until the process connects, and verifies that it is the one that was started.
    pub(crate) fn handshake(
        self,
        setup: Setup,
        regions: &Arc<Regions>,
        observers: &Observers,
    ) -> Result<Worker, StartError> {
        let Self { process, lane, requests } = self;
        let mismatch = |what: String| {
            process.kill(KillReason::Malformed);
            StartError::HandshakeMismatch(what)
        };
        let handshake = match process.control.recv(true).and_then(|packet| reply(&packet)) {
            Ok(Reply::Handshake(handshake)) => handshake,
            Ok(other) => return Err(mismatch(format!("its first message is {other:?}"))),
            Err(TransportError::PeerGone) => {
                process.child.kill();
                return Err(died(&process));
            }
            Err(error) => return Err(mismatch(error.to_string())),
        };
        check_handshake(&handshake, process.pid()).map_err(mismatch)?;
        let mut worker = Worker {
            process,
            lane,
            requests: Some(requests),
            arrived: Vec::new(),
            attached: None,
            waiter: SpinWaiter::default(),
            unread: 0,
            hint_more: false,
            sequence: 0,
            tasks: 0,
            contexts: Vec::new(),
            frame: Vec::new(),
            mapped: Mapped::new(regions),
            partial: PartialNote::default(),
            notes: 0,
            observers: observers.clone(),
        };
        if worker.send(&Request::Setup(setup)).is_err() {
            worker.process.child.kill();
            return Err(died(&worker.process));
        }
        Ok(worker)
    }
}

/// Returns the error of a process that ended during its start. The cause of death is more useful than the closed
/// connection.
pub(crate) fn died(process: &Process) -> StartError {
    match process.kill_reason() {
        Some(KillReason::StartTimedOut(limit)) => StartError::TimedOut(limit),
        _ => StartError::Died(process.wait_death()),
    }
}

/// Verifies that a process which has connected is the one that was started. Returns what is wrong otherwise.
pub(super) fn check_handshake(handshake: &Handshake, pid: u32) -> Result<(), String> {
    if handshake.version != VERSION {
        return Err(format!("it speaks protocol version {}", handshake.version));
    }
    if handshake.identity != ImageId::own() {
        return Err("it runs another executable".to_owned());
    }
    if handshake.pid != pid {
        return Err(format!("it reports PID {} instead of {pid}", handshake.pid));
    }
    Ok(())
}

impl Worker {
    /// Retires the worker: dropping its channel makes it exit.
    pub(crate) fn retire(self) {
        self.process.set_kill_reason(KillReason::Retired);
    }

    /// Closes its channel. The worker finishes what it was sent and exits.
    pub(crate) fn hang_up(&mut self) {
        self.requests = None;
    }

    /// Sends a request as a frame of its own.
    pub(crate) fn send(&mut self, request: &Request) -> Result<(), TransportError> {
        self.make(request)?;
        self.send_frame()
    }

    /// Starts a frame with `request`.
    pub(crate) fn make(&mut self, request: &Request) -> Result<(), TransportError> {
        self.frame.clear();
        codec::encode(request, &mut self.frame)
            .map_err(|error| TransportError::Malformed(error.to_string()))
    }

    /// Sends a context unless the worker holds it.
    pub(crate) fn send_context(&mut self, context: &Arc<Context>) -> Result<(), TransportError> {
        if self.contexts.iter().any(|known| known.id == context.id) {
            return Ok(());
        }
        let attached = self.attach([&context.attachments])?;
        if let Some(region) = &context.region {
            self.pass(&Passed::Region, &[region.as_fd()])?;
        }
        self.make(&Request::Context { id: context.id, attached, body: context.body })?;
        self.frame.extend_from_slice(&context.bytes);
        self.send_frame()?;
        self.contexts.push(Arc::clone(context));
        Ok(())
    }

    /// Passes the files that the next frame's arguments refer to. Returns the number of packets.
    pub(crate) fn attach<'a>(
        &self,
        attachments: impl IntoIterator<Item = &'a Attachments>,
    ) -> Result<u32, TransportError> {
        let mut files: Vec<_> = attachments.into_iter().flat_map(Attachments::files).collect();
        // The two ends of a pipe are one file.
        let key = |(file, descriptor): &(FileId, BorrowedFd<'_>)| (*file, descriptor.as_raw_fd());
        files.sort_by_key(key);
        files.dedup_by_key(|named| key(named));
        let mut packets = 0;
        for files in files.chunks(MAX_ATTACHED) {
            let (names, descriptors): (Vec<_>, Vec<_>) = files.iter().copied().unzip();
            self.pass(&Passed::Attached(names), &descriptors)?;
            packets += 1;
        }
        Ok(packets)
    }

    fn pass(&self, what: &Passed, descriptors: &[BorrowedFd<'_>]) -> Result<(), TransportError> {
        let packet = codec::encode_to_vec(what)
            .map_err(|error| TransportError::Malformed(error.to_string()))?;
        self.process.control.send(&packet, descriptors).map_err(|error| match error {
            TransportError::Io(error) => {
                let text = format!("failed to pass its files or its memory: {error}");
                io::Error::new(error.kind(), text).into()
            }
            error => error,
        })
    }

    /// Makes the worker drop the contexts of finished calls. Skipped for a worker that may not be reading:
    /// the pool's lock is held here, and a full channel would block.
    pub(crate) fn drop_contexts(&mut self) {
        /// Fewer small frames than fit in a socket's buffer beside a chunk's.
        const MAX_UNREAD: u32 = 16;
        if self.unread >= MAX_UNREAD {
            return;
        }
        let over = self.contexts.extract_if(.., |context| context.is_over());
        let contexts: Vec<u64> = over.map(|context| context.id).collect();
        if !contexts.is_empty() {
            // A dead worker holds no contexts.
            let _ = self.send(&Request::DropContexts { contexts });
        }
    }

    /// Sends the frame built in `self.frame`. This doesn't block: the worker has read everything before its
    /// last reply, and everything it is sent until the next fits in its socket's buffer. Should it block with
    /// a small buffer, it ends when the worker is found silent and killed.
    pub(crate) fn send_frame(&mut self) -> Result<(), TransportError> {
        self.unread += 1;
        self.requests.as_ref().ok_or(TransportError::PeerGone)?.send(&self.frame)?;
        self.lane.requests().ring(self.hint_more);
        Ok(())
    }

    /// Passes the region that the next frame refers to.
    pub(crate) fn send_region(&self, region: &Region) -> Result<(), TransportError> {
        match region.descriptor() {
            Some(descriptor) => self.pass(&Passed::Region, &[descriptor]),
            None => Err(TransportError::Malformed("a region was sent before".to_owned())),
        }
    }

    /// Returns whether everything that was passed with these results has been received.
    pub(crate) fn has_parcels(&self, records: &[u8]) -> bool {
        let has_region = |slice: RegionSlice| {
            !slice.is_new || self.arrived.iter().any(|(number, _)| *number == slice.number)
        };
        let has_files = |number| self.attached.as_ref().is_some_and(|(known, _)| *known == number);
        records::passed_results(records).is_none_or(|passed| {
            passed.iter().all(|head| {
                head.region.is_none_or(|(slice, _)| has_region(slice))
                    && head.attached.is_none_or(has_files)
            })
        })
    }

    /// Returns what was passed with these results. Returns `None` if there is no such thing.
    pub(crate) fn take_parcels(&mut self, records: &[u8]) -> Option<VecDeque<Parcel>> {
        let passed = records::passed_results(records)?;
        passed.into_iter().map(|head| self.take_parcel(head)).collect()
    }

    fn take_parcel(&mut self, head: PassedResult) -> Option<Parcel> {
        let files = match head.attached {
            None => Ok(Files::default()),
            Some(number) => self.attached.take_if(|(known, _)| *known == number)?.1,
        };
        let region = match head.region {
            None => None,
            Some((slice, _)) if !slice.is_new => Some(self.mapped.result(slice, None)?),
            Some((slice, _)) => {
                let at = self.arrived.iter().position(|(number, _)| *number == slice.number)?;
                match self.arrived.swap_remove(at).1 {
                    Some(region) => Some(self.mapped.result(slice, Some(region))?),
                    None => return Some(Parcel::Lost(NO_MEMORY)),
                }
            }
        };
        Some(match files {
            Ok(files) => Parcel::Arrived { region, files },
            Err(why) => Parcel::Lost(why),
        })
    }

    /// Spins for a reply, for at most `limit`. Returns whether there is one.
    pub(crate) fn spin_for_reply(&mut self, limit: Duration) -> bool {
        self.waiter.spin_until(self.lane.replies(), limit)
    }

    /// Blocks until a reply arrives, and drops notes.
    #[cfg(feature = "sandbox")]
    pub(crate) fn recv_reply(&mut self) -> Result<Reply, TransportError> {
        loop {
            if let Incoming::Reply(reply) = self.recv(true)? {
                return Ok(reply);
            }
        }
    }

    /// Blocks until a reply or a note arrives. [`Process::publish_exit`] ends the wait if the process dies. With
    /// `wait` false, it must be there already.
    pub(crate) fn recv(&mut self, wait: bool) -> Result<Incoming, TransportError> {
        /// A worker sends one region at a time and waits until it is received.
        const MAX_ARRIVED: usize = 16;
        loop {
            let packet = self.process.control.recv(wait)?;
            let (reply, rest) = split_reply(&packet)?;
            let number = match reply {
                Reply::Note { sequence, item, is_first, is_last } => {
                    let head = NoteHead { sequence, item, is_first, is_last };
                    match self.partial.add(head, rest)? {
                        Some(note) => {
                            self.notes += 1;
                            return Ok(Incoming::Note(head, note));
                        }
                        None => continue,
                    }
                }
                _ if !rest.is_empty() => {
                    return Err(TransportError::Malformed("bytes behind a reply".to_owned()));
                }
                Reply::Region { number } => number,
                Reply::Attached { number, files } => {
                    let files = accept_files(files, packet)?;
                    self.attached = Some((number, files));
                    continue;
                }
                reply => {
                    self.waiter.note_received();
                    self.unread = 0;
                    return Ok(Incoming::Reply(reply));
                }
            };
            let malformed = |what: String| TransportError::Malformed(what);
            if self.arrived.len() >= MAX_ARRIVED || packet.descriptors.len() > 1 {
                return Err(malformed("too many regions".to_owned()));
            }
            let region = match packet.descriptors.into_iter().next() {
                Some(file) => {
                    if !file.is_prompt() {
                        return Err(malformed("a region that is a file".to_owned()));
                    }
                    let region = Region::open_backed(file.into());
                    let mut region = region.map_err(|error| malformed(error.to_string()))?;
                    region.close_descriptor();
                    Some(region)
                }
                None if packet.is_cut => None,
                None => return Err(malformed("a region without a descriptor".to_owned())),
            };
            self.arrived.push((number, region));
        }
    }
}

/// Why a region was not received.
const NO_MEMORY: &str = "its shared memory was not received: this process has no file descriptors left (raise `ulimit -n`)";

/// Checks the files that came with a result.
fn accept_files(
    names: Vec<FileId>,
    packet: Packet,
) -> Result<Result<Files, &'static str>, TransportError> {
    if packet.is_cut {
        return Ok(Err(
            "its files were not received: this process has no file descriptors left (raise `ulimit -n`)",
        ));
    }
    if names.len() != packet.descriptors.len() || names.len() > MAX_FILES {
        return Err(TransportError::Malformed("other files than it has named".to_owned()));
    }
    let received = Received::new(names.into_iter().zip(packet.descriptors).collect());
    Ok(Files::new(received).ok_or(
        "its files were closed: results that were not taken yet keep half of all descriptors open (take results sooner, or raise `ulimit -n`)",
    ))
}

fn reply(packet: &Packet) -> Result<Reply, TransportError> {
    codec::decode(&packet.bytes).map_err(|error| TransportError::Malformed(error.to_string()))
}

/// Returns the reply, and what follows it.
fn split_reply(packet: &Packet) -> Result<(Reply, &[u8]), TransportError> {
    codec::decode_prefix(&packet.bytes)
        .map_err(|error| TransportError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    /// Reads a field of `/proc/PID/status`.
    fn status(pid: u32, field: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().to_owned()
    }

    #[test]
    fn an_ended_process_is_sent_no_signal_because_its_pid_may_be_reused() {
        let mut command = Command::new("sleep");
        let mut sleep = command.arg("3600").process_group(0).spawn().unwrap();
        let child = Child::of(&sleep).unwrap();
        let control = Control::new(Control::pair().unwrap().0, 0);
        let grace = Duration::from_secs(3600);
        let process = Process::new(0, None, 1, child, control, None, grace);
        let pid = process.pid();
        // A stopped process's signals stay pending and can be observed.
        process.signal_group(Signal::STOP);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !status(pid, "State:").starts_with('T') {
            assert!(Instant::now() < deadline, "it is not stopped");
            std::thread::yield_now();
        }
        let pending = || u64::from_str_radix(&status(pid, "ShdPnd:"), 16).unwrap();
        process.set_ended();
        process.signal_group(Signal::TERM);
        process.terminate_gracefully(KillReason::Cancelled);
        assert_eq!(pending(), 0);
        assert_eq!(process.kill_reason(), Some(KillReason::Cancelled));
        sleep.kill().unwrap();
        sleep.wait().unwrap();
    }
}
