//! The parent's handle on one worker process: [`Worker`] is whoever's turn it is to talk to it,
//! [`Process`] is what everybody else may know of it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::attach::{Attachments, FileId};
use procpool_worker::codec;
use procpool_worker::control::{Control, Packet};
use procpool_worker::doorbell::SpinWaiter;
use procpool_worker::error::TransportError;
use procpool_worker::function::ImageId;
use procpool_worker::lane::ParentLane;
use procpool_worker::protocol::{
    MAX_ATTACHED, Passed, RegionSlice, Reply, Request, Setup, VERSION,
};
use procpool_worker::region::Region;
use procpool_worker::sys::now;
use procpool_worker::transport::FrameSender;
use rustix::process::Signal;

use crate::error::{DeathCause, StartError};
use crate::os::process::{CaptureFile, Child};
use crate::pool::call::context::Context;
use crate::pool::drive::records;
use crate::pool::drive::regions::{Lease, Mapped, Regions};

/// How long a worker that has been told to go may take before it is killed.
pub(crate) const RETIRE_GRACE: Duration = Duration::from_secs(2);

/// One worker process, from its start to its end.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) slot: usize,
    /// Which of the slot's processes it is, from 1.
    pub(crate) generation: u64,
    pub(crate) child: Child,
    control: Control,
    /// What it prints, where that is captured.
    pub(crate) capture: Option<CaptureFile>,
    /// How long it is asked to end before it is made to.
    grace: Duration,
    /// Whether it has been given a task.
    used: AtomicBool,
    lifecycle: Mutex<Lifecycle>,
    exited: Condvar,
}

#[derive(Debug, Default)]
struct Lifecycle {
    /// Why it was killed or told to go, if it was.
    set_kill_reason: Option<KillReason>,
    /// When it is made to end, after having been asked.
    kill_at: Option<Instant>,
    death: Option<DeathCause>,
    /// Whether it has reported.
    handshake_done: bool,
    /// Whether it has ever been ready.
    ready: bool,
    /// When its end was noticed, in nanoseconds of the monotonic clock.
    ended: Option<u64>,
}

/// Why the pool ends a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// It was not ready in time.
    StartTimedOut(Duration),
    /// The item that it runs has done so for longer than its limit.
    TimedOut(Duration),
    /// The item that it runs was cancelled.
    Cancelled,
    /// It uses more memory than it may.
    OutOfMemory,
    /// It broke the protocol.
    Malformed,
    /// It did nothing although it had something to do.
    Silent,
    /// There is nothing more for it to do.
    Retired,
}

impl Process {
    pub(crate) fn new(
        slot: usize,
        generation: u64,
        child: Child,
        control: Control,
        capture: Option<CaptureFile>,
        grace: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            slot,
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

    /// Kills it for this reason, unless another came first.
    pub(crate) fn kill(&self, set_kill_reason: KillReason) {
        self.lifecycle().set_kill_reason.get_or_insert(set_kill_reason);
        self.child.kill();
    }

    /// Asks it to end for this reason, unless another came first; after the grace that the pool
    /// gives, the supervisor makes it.
    pub(crate) fn terminate_gracefully(&self, set_kill_reason: KillReason) {
        if self.grace.is_zero() {
            return self.kill(set_kill_reason);
        }
        let mut lifecycle = self.lifecycle();
        lifecycle.set_kill_reason.get_or_insert(set_kill_reason);
        lifecycle.kill_at = lifecycle.kill_at.or_else(|| Instant::now().checked_add(self.grace));
        if lifecycle.ended.is_none() {
            self.child.signal_group(Signal::TERM);
        }
    }

    /// Sends a signal to it and to what it has started, unless it has ended.
    pub(crate) fn signal_group(&self, signal: Signal) {
        // Held meanwhile, so that it is not waited for.
        let lifecycle = self.lifecycle();
        if lifecycle.ended.is_none() {
            self.child.signal_group(signal);
        }
    }

    /// When it is to be made to end, after having been asked.
    pub(crate) fn kill_at(&self) -> Option<Instant> {
        self.lifecycle().kill_at
    }

    /// Notes why it is to end, without doing anything about it.
    pub(crate) fn set_kill_reason(&self, set_kill_reason: KillReason) {
        self.lifecycle().set_kill_reason.get_or_insert(set_kill_reason);
    }

    /// Why it is to end, if it is.
    pub(crate) fn kill_reason(&self) -> Option<KillReason> {
        self.lifecycle().set_kill_reason
    }

    /// Marks it as having been given a task.
    pub(crate) fn set_used(&self) {
        self.used.store(true, Relaxed);
    }

    /// Whether it has been given a task.
    pub(crate) fn was_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    /// Marks it as having reported; what is left is its initializer.
    pub(crate) fn set_greeted(&self) {
        self.lifecycle().handshake_done = true;
    }

    /// Whether it has reported.
    pub(crate) fn was_greeted(&self) -> bool {
        self.lifecycle().handshake_done
    }

    /// Marks it as ready, after its initializer.
    pub(crate) fn set_ready(&self) {
        self.lifecycle().ready = true;
    }

    /// Whether it has ever been ready.
    pub(crate) fn was_ready(&self) -> bool {
        self.lifecycle().ready
    }

    /// Notes that it has ended. Must be called before it is waited for: from then on its number may be
    /// another's, and nothing is sent to that any more.
    pub(crate) fn set_ended(&self) {
        self.lifecycle().ended = Some(now());
    }

    /// When its end was noticed, in nanoseconds of the monotonic clock; now, if it hasn't been.
    pub(crate) fn ended(&self) -> u64 {
        self.lifecycle().ended.unwrap_or_else(now)
    }

    /// Publishes how it ended, and ends every wait for it.
    pub(crate) fn publish_exit(&self, cause: DeathCause) {
        self.lifecycle().death = Some(cause);
        self.exited.notify_all();
        // The end of the connection is not enough: what a task has started may hold it open.
        self.control.shut_down();
    }

    /// How it ended, if it has.
    pub(crate) fn death(&self) -> Option<DeathCause> {
        self.lifecycle().death
    }

    /// Waits for the end of a process that is known to be ending.
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

    /// Waits for its end, for at most `limit`; whether it has come.
    pub(crate) fn wait_death_timeout(&self, limit: Duration) -> bool {
        let lives = |lifecycle: &mut Lifecycle| lifecycle.death.is_none();
        let waited = self.exited.wait_timeout_while(self.lifecycle(), limit, lives);
        waited.unwrap_or_else(PoisonError::into_inner).0.death.is_some()
    }
}

/// A process that has been started and not been heard of.
#[derive(Debug)]
pub(crate) struct PendingWorker {
    pub(crate) process: Arc<Process>,
    pub(crate) lane: Arc<ParentLane>,
    pub(crate) requests: FrameSender,
}

/// The right to talk to a worker: whoever has it may send it a frame, and must wait for its reply
/// before handing it on.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) process: Arc<Process>,
    pub(crate) lane: Arc<ParentLane>,
    /// None once it is sent nothing more.
    requests: Option<FrameSender>,
    /// Regions that have arrived and that no result has spoken of yet.
    arrived: Vec<(u32, Option<Region>)>,
    waiter: SpinWaiter,
    /// How many frames it was sent since its last answer.
    unread: u32,
    /// Whether it is to stay awake after its answer.
    pub(crate) more: bool,
    /// Number of the last chunk.
    pub(crate) sequence: u32,
    /// How many tasks it has been through.
    pub(crate) tasks: u64,
    /// The contexts that it keeps.
    contexts: Vec<Arc<Context>>,
    /// The frame that is being made, kept for its room.
    pub(crate) frame: Vec<u8>,
    /// The regions that it has mapped.
    pub(crate) mapped: Mapped,
}

impl PendingWorker {
    /// Waits until the process reports, and checks that it is what was started.
    pub(crate) fn greet(self, setup: Setup, regions: &Arc<Regions>) -> Result<Worker, StartError> {
        let Self { process, lane, requests } = self;
        // How it ended says more than that it can't be heard.
        let died = |process: &Process| match process.kill_reason() {
            Some(KillReason::StartTimedOut(limit)) => StartError::TimedOut(limit),
            _ => StartError::Died(process.wait_death()),
        };
        let stranger = |what: String| {
            process.kill(KillReason::Malformed);
            StartError::HandshakeMismatch(what)
        };
        let handshake = match process.control.recv(true).and_then(|packet| reply(&packet)) {
            Ok(Reply::Handshake(handshake)) => handshake,
            Ok(other) => return Err(stranger(format!("it says {other:?} first"))),
            Err(TransportError::PeerGone) => {
                process.child.kill();
                return Err(died(&process));
            }
            Err(error) => return Err(stranger(error.to_string())),
        };
        if handshake.version != VERSION {
            return Err(stranger(format!(
                "it speaks version {} of the protocol",
                handshake.version
            )));
        }
        if handshake.identity != ImageId::own() {
            return Err(stranger("its executable is another".to_owned()));
        }
        if handshake.pid != process.pid() {
            return Err(stranger(format!("PID {} answers for {}", handshake.pid, process.pid())));
        }
        let mut worker = Worker {
            process,
            lane,
            requests: Some(requests),
            arrived: Vec::new(),
            waiter: SpinWaiter::default(),
            unread: 0,
            more: false,
            sequence: 0,
            tasks: 0,
            contexts: Vec::new(),
            frame: Vec::new(),
            mapped: Mapped::none(regions),
        };
        if worker.send(&Request::Setup(setup)).is_err() {
            worker.process.child.kill();
            return Err(died(&worker.process));
        }
        Ok(worker)
    }
}

impl Worker {
    /// Lets it go: its channel ends, and so does it.
    pub(crate) fn retire(self) {
        self.process.set_kill_reason(KillReason::Retired);
    }

    /// Closes its channel: after what it was sent, it ends by itself.
    pub(crate) fn hang_up(&mut self) {
        self.requests = None;
    }

    /// Sends a request that is a frame by itself.
    pub(crate) fn send(&mut self, request: &Request) -> Result<(), TransportError> {
        self.make(request)?;
        self.send_frame()
    }

    /// Begins the frame with `request`.
    pub(crate) fn make(&mut self, request: &Request) -> Result<(), TransportError> {
        self.frame.clear();
        codec::encode(request, &mut self.frame)
            .map_err(|error| TransportError::Malformed(error.to_string()))
    }

    /// Sees to it that it has a context.
    pub(crate) fn share(&mut self, context: &Arc<Context>) -> Result<(), TransportError> {
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

    /// Passes what the next frame's arguments point to; returns in how many packets.
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
        self.process.control.send(&packet, descriptors)
    }

    /// Has it drop the contexts of calls that are over. One that may not be reading is not told: the pool's
    /// lock is held here, and a full channel would block.
    pub(crate) fn forget(&mut self) {
        /// Fewer small frames than fit into a socket's buffer beside a chunk's.
        const MOST_UNREAD: u32 = 16;
        if self.unread >= MOST_UNREAD {
            return;
        }
        let over = self.contexts.extract_if(.., |context| context.is_over());
        let contexts: Vec<u64> = over.map(|context| context.id).collect();
        if !contexts.is_empty() {
            // One that has died has forgotten everything.
            let _ = self.send(&Request::DropContexts { contexts });
        }
    }

    /// Sends the frame that was made in `self.frame`. The worker has read all that came before its last
    /// answer, and what it is sent until the next fits into its socket's buffer, so that this doesn't block;
    /// should it do so where that buffer is small, it ends when the worker is found silent and killed.
    pub(crate) fn send_frame(&mut self) -> Result<(), TransportError> {
        self.unread += 1;
        self.requests.as_ref().ok_or(TransportError::PeerGone)?.send(&self.frame)?;
        self.lane.requests().ring(self.more);
        Ok(())
    }

    /// Passes the region that the next frame speaks of.
    pub(crate) fn send_region(&self, region: &Region) -> Result<(), TransportError> {
        match region.descriptor() {
            Some(descriptor) => self.pass(&Passed::Region, &[descriptor]),
            None => Err(TransportError::Malformed("a region was sent before".to_owned())),
        }
    }

    /// Returns the results in regions that these records speak of, each none where this process had no
    /// descriptor left to receive it; none at all if there is no such region.
    pub(crate) fn take_results(&mut self, records: &[u8]) -> Option<VecDeque<Option<Lease>>> {
        let take = |place: RegionSlice| {
            if !place.is_new {
                return self.mapped.result(place, None).map(Some);
            }
            let at = self.arrived.iter().position(|(number, _)| *number == place.number)?;
            match self.arrived.swap_remove(at).1 {
                Some(region) => self.mapped.result(place, Some(region)).map(Some),
                None => Some(None),
            }
        };
        records::places(records)?.into_iter().map(take).collect()
    }

    /// Stays awake for a reply, for at most so long; whether there is one.
    pub(crate) fn listen(&mut self, limit: Duration) -> bool {
        self.waiter.spin_until(self.lane.replies(), limit)
    }

    /// Waits for a reply; [`Process::publish_exit`] ends the wait for a process that dies.
    pub(crate) fn recv(&mut self) -> Result<Reply, TransportError> {
        /// A worker sends one, and waits until it has been taken.
        const MOST_ARRIVED: usize = 16;
        loop {
            let packet = self.process.control.recv(true)?;
            let reply = reply(&packet)?;
            let Reply::Region { number } = reply else {
                self.waiter.note_received();
                self.unread = 0;
                return Ok(reply);
            };
            let malformed = |what: String| TransportError::Malformed(what);
            if self.arrived.len() >= MOST_ARRIVED || packet.descriptors.len() > 1 {
                return Err(malformed("too many regions".to_owned()));
            }
            let region = match packet.descriptors.into_iter().next() {
                Some(file) => {
                    let region = Region::open_backed(file);
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

fn reply(packet: &Packet) -> Result<Reply, TransportError> {
    codec::decode(&packet.bytes).map_err(|error| TransportError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    /// A field of `/proc/PID/status`.
    fn status(pid: u32, field: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().to_owned()
    }

    #[test]
    fn what_was_seen_to_end_is_sent_no_signal_since_its_number_may_be_anothers() {
        let mut command = Command::new("sleep");
        let mut sleep = command.arg("3600").process_group(0).spawn().unwrap();
        let child = Child::of(&sleep).unwrap();
        let control = Control::new(Control::pair().unwrap().0, 0);
        let grace = Duration::from_secs(3600);
        let process = Process::new(0, 1, child, control, None, grace);
        let pid = process.pid();
        // What a process that is stopped is sent stays to be seen.
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
