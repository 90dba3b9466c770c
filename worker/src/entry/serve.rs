//! Serves as a worker process: performs the handshake and handles the parent's requests in order,
//! until the parent closes the channel.
//!
//! This file owns the state that outlives a chunk. Running the items of a chunk is the task of
//! [`ChunkRun`]. This file decodes no argument and calls no function of the user.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{liveness, oom, setup};
use crate::run::channels::Channels;
use crate::run::chunk_run::{ChunkRun, RawArgument};
use crate::run::context::{Context, Source};
#[cfg(any(feature = "log", feature = "tracing"))]
use crate::run::logs;
use crate::run::region_cache::RegionCache;
use crate::run::state::{WorkerContext, set_worker};
use crate::run::{fork_guard, outbox, panics, trampoline};
use crate::shm::lane::{LANE_BYTES, WorkerLane};
use crate::shm::region::Region;
use crate::shm::sys;
use crate::wire::control::Control;
use crate::wire::error::{CodecError, TransportError};
use crate::wire::function::ImageId;
use crate::wire::protocol::{
    self, Body, ChunkOptions, Handshake, RegionSlice, Reply, Request, SpawnToken, VERSION,
};
use crate::wire::transport::FrameReceiver;
use crate::wire::{attach, codec};

/// Exit code of a worker that cannot start, or whose parent violates the protocol (`EX_SOFTWARE` of
/// sysexits.h). The worker prints the cause to standard error.
pub(super) const EX_SOFTWARE: i32 = 70;

/// Serves as the worker that `token` describes. Ends the process.
///
/// # Safety
///
/// The token must come from a parent that runs this executable and follows the protocol: the
/// functions that its frames name are called.
pub unsafe fn run(token: SpawnToken) -> ! {
    finish(start(token))
}

/// Serves as a worker, if it could be started. Ends the process.
pub(super) fn finish(worker: Result<Worker, TransportError>) -> ! {
    let code = match worker {
        Ok(mut worker) => worker.serve(),
        // The parent abandoned this worker during its start, and reports that itself.
        Err(TransportError::PeerGone) => EX_SOFTWARE,
        Err(error) => {
            eprintln!("procpool worker {}: cannot start: {error}", std::process::id());
            EX_SOFTWARE
        }
    };
    let _ = std::io::stdout().flush();
    std::process::exit(code)
}

/// Sets up the process and sends the handshake.
fn start(token: SpawnToken) -> Result<Worker, TransportError> {
    fork_guard::set_worker_pid();
    setup::prepare(token.parent)?;
    connect(Control::new(setup::take_control_socket(token.parent)?, token.nonce))
}

/// Takes what was passed on the control socket and sends the handshake.
pub(super) fn connect(control: Control) -> Result<Worker, TransportError> {
    let start = control.recv(false)?;
    let malformed = || TransportError::Malformed("no start was passed".to_owned());
    let passed =
        start.descriptors.into_iter().map(|fd| sys::move_high(fd.into())).collect::<Vec<_>>();
    let [liveness, lane, frames] = <[OwnedFd; 3]>::try_from(passed).map_err(|_| malformed())?;
    liveness::hold_pipe(liveness);
    let mut lane = Region::open(lane, LANE_BYTES as u64)?;
    lane.close_descriptor();
    // SAFETY: the region was mapped just now. Nothing else uses the mapping.
    let lane = unsafe { WorkerLane::new(lane) }
        .map_err(|region| TransportError::Malformed(format!("a lane of {} bytes", region.len())))?;
    let channels = Channels::new(FrameReceiver::adopt(frames)?, control, lane.words);
    let (version, identity, pid) = (VERSION, ImageId::own(), std::process::id());
    // No thread of the parent spins for the handshake, so the doorbell is not rung.
    channels.pass(&Reply::Handshake(Handshake { version, identity, pid }), &[])?;
    panics::install(ChunkRun::on_abort);
    oom::install_handler(lane.words);
    Ok(Worker {
        channels,
        lane,
        regions: RegionCache::default(),
        block: 1,
        function: std::ptr::null(),
        capture: false,
        code: 0,
        contexts: HashMap::new(),
    })
}

/// The state of a worker between requests.
pub(super) struct Worker {
    channels: Channels,
    lane: WorkerLane,
    regions: RegionCache,
    /// Size of the next block, adapted to `function`.
    block: u32,
    function: *const (),
    /// Whether output is captured.
    capture: bool,
    /// The exit code: 1 if an item of the last chunk failed.
    code: i32,
    contexts: HashMap<u64, Context>,
}

impl Worker {
    /// Handles requests until the parent closes the channel. Returns the exit code.
    fn serve(&mut self) -> i32 {
        loop {
            match self.handle_request() {
                Ok(()) => {}
                Err(TransportError::PeerGone) => {
                    liveness::kill_group_on_exit();
                    return self.code;
                }
                Err(error) => {
                    eprintln!("procpool worker {}: {error}", std::process::id());
                    return EX_SOFTWARE;
                }
            }
        }
    }

    /// Receives one request and handles it.
    fn handle_request(&mut self) -> Result<(), TransportError> {
        let frame = self.channels.recv()?;
        let malformed = |error: CodecError| TransportError::Malformed(error.to_string());
        let (request, body) = codec::decode_prefix::<Request>(&frame).map_err(malformed)?;
        match request {
            Request::Setup(setup) => {
                setup::apply(&setup)?;
                self.capture = setup.capture;
                outbox::set_open(setup.has_outbox);
                #[cfg(any(feature = "log", feature = "tracing"))]
                if let Some(level) = setup.logs {
                    logs::install(level);
                }
                set_worker(WorkerContext::new(setup.pool, setup.slot, setup.host));
                Ok(())
            }
            #[cfg(feature = "sandbox")]
            Request::Confine(to) => {
                let confined = super::sandbox::confine(&to, self.lane.words);
                self.channels.reply(&Reply::Confined(confined))
            }
            Request::Context { id, attached, body: location } => {
                let files = self.channels.recv_attached(attached)?;
                let source = match location {
                    Body::Frame => Source::Bytes(body.to_vec()),
                    Body::Region(slice) => Source::Region(self.channels.recv_frozen(slice.len)?),
                    Body::RawBytes(slice) => {
                        Source::RawBytes(self.channels.recv_frozen(slice.len)?)
                    }
                };
                self.contexts.insert(id, Context::new(source, files));
                Ok(())
            }
            Request::DropContexts { contexts } => {
                for context in contexts.iter().filter_map(|id| self.contexts.remove(id)) {
                    // The call is over: a panic in `Drop` has no receiver.
                    let _ = catch_unwind(AssertUnwindSafe(|| drop(context)));
                }
                Ok(())
            }
            Request::Chunk { attached, body: location, options } => {
                self.channels.recv_attached(attached)?.register();
                match location {
                    Body::Frame => self.run_chunk(options, body, None)?,
                    Body::Region(slice) | Body::RawBytes(slice) => {
                        let region = self.region(slice)?;
                        let len = usize::try_from(slice.len).unwrap_or(usize::MAX);
                        if len > region.len() {
                            return Err(TransportError::Malformed("a region is short".to_owned()));
                        }
                        if let Body::RawBytes(_) = location {
                            let start = region.as_ptr().cast_const();
                            self.run_chunk(options, body, Some(RawArgument { start, len }))?;
                        } else {
                            // SAFETY: the region has `len` bytes. The parent neither writes to it nor uses it
                            // for another chunk until it has received this chunk's `Reply::Done`.
                            let body = unsafe { std::slice::from_raw_parts(region.as_ptr(), len) };
                            self.run_chunk(options, body, None)?;
                        }
                        if slice.is_cached {
                            self.regions.insert_argument(slice.number, region);
                        }
                    }
                }
                // Before the reply: peers may wait for the descriptors to be closed.
                attach::clear_received();
                self.channels.reply(&Reply::Done { sequence: options.sequence })
            }
            Request::Regions { gone, results_gone, results_free } => {
                self.regions.update(&gone, &results_gone, &results_free);
                Ok(())
            }
            Request::Resume => {
                Err(TransportError::Malformed("resumed, but the lane was not full".to_owned()))
            }
        }
    }

    /// Returns the region that `slice` names: the one that was just passed, or a cached one, which is
    /// taken out of the cache.
    fn region(&mut self, slice: RegionSlice) -> Result<Region, TransportError> {
        if slice.is_new {
            return self.channels.recv_region(slice.len);
        }
        self.regions.remove_argument(slice.number).ok_or_else(|| {
            TransportError::Malformed(format!("region {} is not cached", slice.number))
        })
    }

    /// Runs the items of a chunk's body that this worker can claim.
    fn run_chunk(
        &mut self,
        options: ChunkOptions,
        mut body: &[u8],
        raw_argument: Option<RawArgument>,
    ) -> Result<(), TransportError> {
        let context = options.context.and_then(|id| self.contexts.get(&id));
        let (lane, channels, regions) = (&mut self.lane, &mut self.channels, &mut self.regions);
        let capture = self.capture;
        outbox::set_sequence(options.sequence);
        let mut run =
            ChunkRun::new(lane, channels, regions, options, capture, context, raw_argument);
        run.set_block(self.block);
        while !body.is_empty() {
            let broken = || TransportError::Malformed("a chunk's body is cut short".to_owned());
            let (span, rest) = protocol::split_span(body).ok_or_else(broken)?;
            let (arguments, rest) = rest.split_at(span.bytes as usize);
            body = rest;
            let (function, trampoline) = trampoline::resolve(span.function)
                .map_err(|error| TransportError::Malformed(error.to_string()))?;
            if function != self.function {
                run.reset_block();
                self.function = function;
            }
            run.begin_span(&span, arguments);
            // SAFETY: `resolve` returns the pair that `FnRef::new` was called with in the parent.
            unsafe { trampoline(function, &mut run) };
            run.end_span()?;
        }
        self.block = run.block();
        self.code = i32::from(run.has_failures());
        Ok(())
    }
}
