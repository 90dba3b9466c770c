//! The worker's loop: claim an item, decode its argument, call the function, encode the result into
//! the lane, commit.
//!
//! The loop over a chunk's items lives in a trampoline ([`trampoline`]), which is compiled for the
//! argument and result types, so that the call is the only indirect one, and a plain number's
//! decoding and encoding come down to a load and a store. All that is the same for all types is in
//! [`Run`].
//!
//! Items are claimed in blocks: one at a time as long as an item takes a few microseconds or more,
//! so that the parent can take back everything that isn't running; up to [`MAX_BLOCK`] of the tiny
//! ones, where a compare-and-swap and a look at the clock would cost more than the call. Should one
//! of a block turn out slow, the parent recalls what is behind it.
//!
//! Functions from a plain number to a plain number have a loop of their own ([`Run::numbers`]), in
//! which an item costs a load, the call, and three stores: what it began, the result, and what is
//! committed. Everything else is done once a block.

use std::any::type_name;
use std::collections::HashMap;
use std::io::Write as _;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bell::Ear;
use crate::codec::{self, CodecError};
use crate::context::{Context, Source};
use crate::control::Control;
use crate::function::{Call, ForeignFunction, Identity};
use crate::harden::{self, now};
use crate::lane::{
    CAPACITY, LANE_BYTES, Progress, RECORD_HEAD, Record, TIME_RECORD, Words, WorkerLane,
};
use crate::panics::{self, PanicReport};
use crate::protocol::{
    self, Body, Greeting, Manner, Passed, Place, Reply, Request, Token, VERSION,
};
use crate::region::{Frozen, Region};
use crate::transport::{FrameReceiver, TransportError};
use crate::{attach, plain, seed, state};

/// The most items that are claimed at once: so many of the tiniest take about [`SHORT_BLOCK`], and
/// the costs of a block are lost beside theirs.
const MAX_BLOCK: u32 = 256;

/// A block that takes less is doubled the next time: the clock is read once a block, which costs
/// about 25 ns.
const SHORT_BLOCK: u64 = 2_000;

/// A block that takes more makes the next one a single item.
const LONG_BLOCK: u64 = 20_000;

/// How often the parent is told that more is committed, while a chunk runs for long and somebody
/// waits for single results.
const PROGRESS_EVERY: u64 = 1_000_000;

/// And where nobody does: an exchange costs 20 to 50 µs of CPU time.
const PROGRESS_SELDOM: u64 = 20_000_000;

/// Exit code of a worker that could not begin. The parent finds the cause on standard error.
const EXIT_UNFIT: i32 = 70;

/// Serves as the worker that `token` makes this process, and ends the process.
///
/// # Safety
///
/// The token must come from a parent that runs this executable and keeps to the protocol: the functions
/// that its frames name are called.
pub unsafe fn run(token: Token) -> ! {
    let code = match enter(token) {
        Ok(mut worker) => worker.serve(),
        // The parent has let it go while it started, and says itself what there is to say.
        Err(TransportError::PeerGone) => EXIT_UNFIT,
        Err(error) => {
            eprintln!("procpool worker {}: cannot start: {error}", std::process::id());
            EXIT_UNFIT
        }
    };
    let _ = std::io::stdout().flush();
    std::process::exit(code)
}

/// Hardens the process and reports to the parent.
fn enter(token: Token) -> Result<Worker, TransportError> {
    harden::begin_serving();
    harden::harden(token.parent)?;
    let control = Control::new(harden::take_control_socket(token.parent)?, token.nonce);
    let start = control.recv(false)?;
    let malformed = || TransportError::Malformed("no start was passed".to_owned());
    let passed = start.descriptors.into_iter().map(harden::move_high).collect::<Vec<_>>();
    let [liveness, lane, frames] = <[OwnedFd; 3]>::try_from(passed).map_err(|_| malformed())?;
    harden::hold_liveness_pipe(liveness);
    let mut lane = Region::open(lane, LANE_BYTES as u64)?;
    lane.close_descriptor();
    // SAFETY: the region was mapped just now, for this alone.
    let lane = unsafe { WorkerLane::new(lane) }
        .map_err(|region| TransportError::Malformed(format!("a lane of {} bytes", region.len())))?;
    let from_parent = FrameReceiver::adopt(frames)?;
    let link = Link { from_parent, control, lane: lane.words, ear: Ear::default() };
    let (version, identity, pid) = (VERSION, Identity::own(), std::process::id());
    // Nobody listens for it, so that it isn't rung for.
    link.pass(&Reply::Greeting(Greeting { version, identity, pid }), &[])?;
    panics::install(Run::last_words);
    harden::note_refused_memory(lane.words);
    Ok(Worker {
        link,
        lane,
        kept: Kept::default(),
        block: 1,
        function: std::ptr::null(),
        capture: false,
        code: 0,
        contexts: HashMap::new(),
    })
}

/// The worker's ends of its channels.
#[derive(Debug)]
struct Link {
    from_parent: FrameReceiver,
    control: Control,
    lane: &'static Words,
    ear: Ear,
}

impl Link {
    fn recv(&mut self) -> Result<Vec<u8>, TransportError> {
        self.ear.listen_for_more(self.lane.requests());
        let frame = self.from_parent.recv()?;
        self.ear.receive();
        Ok(frame)
    }

    fn reply(&self, reply: &Reply) -> Result<(), TransportError> {
        harden::end_copy();
        self.pass(reply, &[])?;
        self.lane.replies().ring(false);
        Ok(())
    }

    fn pass(&self, reply: &Reply, descriptors: &[BorrowedFd<'_>]) -> Result<(), TransportError> {
        let mut packet = Vec::with_capacity(16);
        codec::encode(reply, &mut packet)
            .map_err(|error| TransportError::Malformed(error.to_string()))?;
        self.control.send(&packet, descriptors)
    }

    /// Takes a packet that the parent has passed before the frame that speaks of it.
    fn passed(&self) -> Result<(Passed, Vec<OwnedFd>), TransportError> {
        let packet = self.control.recv(false)?;
        if packet.is_cut {
            return Err(std::io::Error::from_raw_os_error(libc::EMFILE).into());
        }
        let passed = codec::decode(&packet.bytes)
            .map_err(|error| TransportError::Malformed(error.to_string()))?;
        Ok((passed, packet.descriptors.into_iter().map(harden::move_high).collect()))
    }

    /// Takes the file of the region that the frame speaks of.
    fn region_file(&self) -> Result<OwnedFd, TransportError> {
        match self.passed()? {
            (Passed::Region, mut descriptors) if descriptors.len() == 1 => {
                Ok(descriptors.swap_remove(0))
            }
            _ => Err(TransportError::Malformed("no region was passed".to_owned())),
        }
    }

    /// Maps the region that the frame speaks of, of which so many bytes hold something.
    fn region(&self, len: u64) -> Result<Region, TransportError> {
        let mut region = Region::open(self.region_file()?, len)?;
        region.close_descriptor();
        Ok(region)
    }

    /// Maps the memory of a context, which no process can write.
    fn frozen(&self, place: Place) -> Result<Frozen, TransportError> {
        Ok(Frozen::open(self.region_file()?, place.len)?)
    }

    /// Takes what the arguments in the frame point to.
    fn attached(&self, packets: u32) -> Result<(), TransportError> {
        for _ in 0..packets {
            match self.passed()? {
                (Passed::Attached(files), descriptors) if files.len() == descriptors.len() => {
                    files.into_iter().zip(descriptors).for_each(|(file, descriptor)| {
                        attach::receive(file, descriptor);
                    });
                }
                _ => return Err(TransportError::Malformed("nothing was attached".to_owned())),
            }
        }
        Ok(())
    }
}

/// Regions that will be spoken of again.
#[derive(Debug, Default)]
struct Kept {
    /// Those for arguments, by number.
    arguments: Vec<(u32, Region)>,
    results: Vec<ResultRegion>,
    /// How many regions for results have been made.
    made: u32,
}

#[derive(Debug)]
struct ResultRegion {
    number: u32,
    region: Region,
    /// Whether the parent has taken out what it held.
    is_free: bool,
}

impl Kept {
    /// Does as a [`Request::Regions`] says.
    fn update(&mut self, gone: &[u32], results_gone: &[u32], results_free: &[u32]) {
        self.arguments.retain(|(number, _)| !gone.contains(number));
        self.results.retain(|result| !results_gone.contains(&result.number));
        for result in &mut self.results {
            result.is_free |= results_free.contains(&result.number);
        }
    }

    /// Copies `bytes` into a region: the smallest that is free and large enough, or a new one.
    fn put(&mut self, bytes: &[u8], link: &Link) -> Result<Place, TransportError> {
        let fitting = self.results.iter_mut().filter(|result| {
            result.is_free
                && result.region.len() >= bytes.len()
                && result.region.len() / 8 <= bytes.len()
        });
        let len = bytes.len() as u64;
        if let Some(result) = fitting.min_by_key(|result| result.region.len()) {
            result.is_free = false;
            // What the last result didn't need may have no memory yet.
            result.region.populate(bytes.len())?;
            result.region.write(0, bytes);
            return Ok(Place { number: result.number, len, is_new: false, is_kept: true });
        }
        let mut region = Region::copy_of(bytes)?;
        let number = self.made.wrapping_add(1);
        let descriptor = region.descriptor().into_iter().collect::<Vec<_>>();
        link.pass(&Reply::Region { number }, &descriptor)?;
        region.close_descriptor();
        self.made = number;
        self.results.push(ResultRegion { number, region, is_free: false });
        Ok(Place { number, len, is_new: true, is_kept: true })
    }
}

struct Worker {
    link: Link,
    lane: WorkerLane,
    kept: Kept,
    /// Size of the next block, and the function that it was found good for.
    block: u32,
    function: *const (),
    /// Whether output is captured.
    capture: bool,
    /// With what it exits: 1 if an item of the last chunk has no answer.
    code: i32,
    contexts: HashMap<u64, Context>,
}

impl Worker {
    /// Answers requests until the parent closes the channel; gives the exit code.
    fn serve(&mut self) -> i32 {
        loop {
            match self.answer_one() {
                Ok(()) => {}
                Err(TransportError::PeerGone) => {
                    harden::leave_with_group();
                    return self.code;
                }
                Err(error) => {
                    eprintln!("procpool worker {}: {error}", std::process::id());
                    return EXIT_UNFIT;
                }
            }
        }
    }

    fn answer_one(&mut self) -> Result<(), TransportError> {
        let frame = self.link.recv()?;
        let malformed = |error: CodecError| TransportError::Malformed(error.to_string());
        let (request, body) = codec::decode_prefix::<Request>(&frame).map_err(malformed)?;
        match request {
            Request::Setup(setup) => {
                harden::apply(&setup)?;
                self.capture = setup.capture;
                Ok(())
            }
            Request::Context { id, attached, body: place } => {
                self.link.attached(attached)?;
                let source = match place {
                    Body::Frame => Source::Bytes(body.to_vec()),
                    Body::Region(place) => Source::Region(self.link.frozen(place)?),
                    Body::Elements(place) => Source::Elements(self.link.frozen(place)?),
                };
                self.contexts.insert(id, Context::new(source));
                Ok(())
            }
            Request::Forget { contexts } => {
                for context in contexts.iter().filter_map(|id| self.contexts.remove(id)) {
                    // Nobody waits for what its `Drop` has to say.
                    let _ = catch_unwind(AssertUnwindSafe(|| drop(context)));
                }
                Ok(())
            }
            Request::Chunk { attached, body: place, manner } => {
                self.link.attached(attached)?;
                match place {
                    Body::Frame => self.run_chunk(manner, body, None)?,
                    Body::Region(at) | Body::Elements(at) => {
                        let region = self.region(at)?;
                        let len = usize::try_from(at.len).unwrap_or(usize::MAX);
                        if len > region.len() {
                            return Err(TransportError::Malformed("a region is short".to_owned()));
                        }
                        // SAFETY: the region has so many bytes, and the parent doesn't write to it, nor
                        // use it for another chunk, until it has been told that this one is done.
                        let bytes = unsafe { std::slice::from_raw_parts(region.as_ptr(), len) };
                        let (body, elements) = match place {
                            Body::Elements(_) => (body, Some(bytes)),
                            _ => (bytes, None),
                        };
                        self.run_chunk(manner, body, elements)?;
                        if at.is_kept {
                            self.kept.arguments.push((at.number, region));
                        }
                    }
                }
                // A context is decoded at the first item that runs, which may be another chunk's.
                if self.contexts.is_empty() {
                    attach::clear_received();
                }
                self.link.reply(&Reply::Done { sequence: manner.sequence })
            }
            Request::Regions { gone, results_gone, results_free } => {
                self.kept.update(&gone, &results_gone, &results_free);
                Ok(())
            }
            Request::Resume => {
                Err(TransportError::Malformed("resumed where nothing was yielded".to_owned()))
            }
        }
    }

    /// The region that is spoken of, taken from those that are kept.
    fn region(&mut self, place: Place) -> Result<Region, TransportError> {
        if place.is_new {
            return self.link.region(place.len);
        }
        let mut kept = self.kept.arguments.iter();
        match kept.position(|(number, _)| *number == place.number) {
            Some(at) => Ok(self.kept.arguments.swap_remove(at).1),
            None => Err(TransportError::Malformed(format!("region {} is not here", place.number))),
        }
    }

    fn run_chunk(
        &mut self,
        manner: Manner,
        mut body: &[u8],
        elements: Option<&[u8]>,
    ) -> Result<(), TransportError> {
        let begun = now();
        // What has a time limit, or whose output is to be told from its neighbours', goes alone.
        let Manner { sequence, limited, prompt, context } = manner;
        let singly = limited || self.capture;
        let mut run = Run {
            lane: &mut self.lane,
            link: &mut self.link,
            kept: &mut self.kept,
            sequence,
            singly,
            capture: self.capture,
            arguments: &[],
            width: 0,
            elements,
            context: context.and_then(|id| self.contexts.get(&id)),
            numbers: None,
            widths: None,
            span: 0..0,
            claimed: 0..0,
            block: if singly { 1 } else { self.block },
            block_begun: begun,
            reported: begun,
            report_every: if prompt { PROGRESS_EVERY } else { PROGRESS_SELDOM },
            progress: Progress { items: 0, bytes: 0 },
            stage: Stage::Between,
            types: ("", ""),
            unanswered: false,
            failed: None,
        };
        while !body.is_empty() {
            let broken = || TransportError::Malformed("a chunk's body is cut short".to_owned());
            let (span, rest) = protocol::take_span(body).ok_or_else(broken)?;
            let (arguments, rest) = rest.split_at(span.bytes as usize);
            body = rest;
            let (function, trampoline) = span
                .call
                .resolve()
                .map_err(|error| TransportError::Malformed(error.to_string()))?;
            if function != self.function {
                (run.block, self.function) = (1, function);
            }
            run.arguments = arguments;
            run.width = span.width;
            run.span = run.span.end..run.span.end.saturating_add(span.items);
            seed::enter(run.lane.words, run.span.start, span.seed);
            // SAFETY: `resolve` gives the pair that `Call::new` was given in the parent.
            unsafe { trampoline(function, &mut run) };
            seed::leave();
            if let Some(error) = run.failed.take() {
                return Err(error);
            }
        }
        self.block = run.block;
        self.code = i32::from(run.unanswered);
        Ok(())
    }
}

/// Names `function`, so that a worker can call it with an argument `A` and send back an `R`.
///
/// # Errors
///
/// When it is not in the executable's own image.
pub fn name<A, R>(function: fn(A) -> R) -> Result<Call, ForeignFunction>
where
    A: DeserializeOwned,
    R: Serialize,
{
    // SAFETY: a `fn(A) -> R` and its trampoline.
    unsafe { Call::new(function as *const (), trampoline::<A, R>) }
}

/// Names `function`, which shares a context among the items of its call.
///
/// # Errors
///
/// When it is not in the executable's own image.
pub fn name_with<C, A, R>(function: fn(&C, A) -> R) -> Result<Call, ForeignFunction>
where
    C: DeserializeOwned + 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    // SAFETY: a `fn(&C, A) -> R` and its trampoline.
    unsafe { Call::new(function as *const (), trampoline_with::<C, A, R>) }
}

/// Names `function`, which changes a state that `init` makes, and `init`, as which the context of
/// the call is to be sent.
///
/// # Errors
///
/// When one of them is not in the executable's own image.
pub fn name_init<S, A, R>(
    init: fn() -> S,
    function: fn(&mut S, A) -> R,
) -> Result<(Call, Call), ForeignFunction>
where
    S: 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    // SAFETY: a `fn(&mut S, A) -> R` and its trampoline; `init` is sent as the context, which only
    // that trampoline reads, and names a `fn() -> S`.
    let name = |function| unsafe { Call::new(function, trampoline_init::<S, A, R>) };
    Ok((name(function as *const ())?, name(init as *const ())?))
}

/// Names an initializer: its result is kept in the worker, to be reached with [`state::with`].
///
/// # Errors
///
/// When it is not in the executable's own image.
pub fn name_initializer<A, S>(function: fn(A) -> S) -> Result<Call, ForeignFunction>
where
    A: DeserializeOwned,
    S: 'static,
{
    // SAFETY: a `fn(A) -> S` and its trampoline.
    unsafe { Call::new(function as *const (), initializer_trampoline::<A, S>) }
}

/// Runs the items of one span with a `fn(A) -> R`.
///
/// # Safety
///
/// `function` is a `fn(A) -> R`.
unsafe fn trampoline<A, R>(function: *const (), run: &mut Run<'_>)
where
    A: DeserializeOwned,
    R: Serialize,
{
    // SAFETY: as promised by the caller.
    let function = unsafe { std::mem::transmute::<*const (), fn(A) -> R>(function) };
    run.items(|| Ok(()), |(), argument| function(argument));
}

/// Runs the items of one span with a `fn(&C, A) -> R`.
///
/// # Safety
///
/// `function` is a `fn(&C, A) -> R`.
unsafe fn trampoline_with<C, A, R>(function: *const (), run: &mut Run<'_>)
where
    C: DeserializeOwned + 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    // SAFETY: as promised by the caller.
    let function = unsafe { std::mem::transmute::<*const (), fn(&C, A) -> R>(function) };
    let Some(context) = run.context() else { return };
    run.items(|| context.value(), function);
}

/// Runs the items of one span with a `fn(&mut S, A) -> R`.
///
/// # Safety
///
/// `function` is a `fn(&mut S, A) -> R`, and the context names a `fn() -> S`.
unsafe fn trampoline_init<S, A, R>(function: *const (), run: &mut Run<'_>)
where
    S: 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    // SAFETY: as promised by the caller.
    let function = unsafe { std::mem::transmute::<*const (), fn(&mut S, A) -> R>(function) };
    let Some(context) = run.context() else { return };
    run.items(
        || context.workshop::<S>(),
        |workshop, argument| workshop.with(|state| function(state, argument)),
    );
}

/// Runs a `fn(A) -> S` and keeps its result as the worker's state.
///
/// # Safety
///
/// `function` is a `fn(A) -> S`.
unsafe fn initializer_trampoline<A, S>(function: *const (), run: &mut Run<'_>)
where
    A: DeserializeOwned,
    S: 'static,
{
    // SAFETY: as promised by the caller.
    let function = unsafe { std::mem::transmute::<*const (), fn(A) -> S>(function) };
    run.items(|| Ok(()), |(), argument: A| state::put(function(argument)));
}

/// What the running item is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No item runs: the last one is committed.
    Between,
    Decoding,
    Calling,
    Encoding,
}

/// A chunk as it is run.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    lane: &'a mut WorkerLane,
    link: &'a mut Link,
    kept: &'a mut Kept,
    sequence: u32,
    /// Whether items are claimed one at a time.
    singly: bool,
    /// Whether the end of each item's output is told.
    capture: bool,
    /// The current span's arguments that are not used yet.
    arguments: &'a [u8],
    /// How many bytes each of them takes, if all take the same.
    width: u32,
    /// The only item's argument, where it came as elements.
    elements: Option<&'a [u8]>,
    /// What the items share, if they do.
    context: Option<&'a Context>,
    /// Where the run of plain numbers began that is being written, if one is.
    numbers: Option<usize>,
    /// How wide arguments and results are, while the loop over plain numbers is in a block. What it
    /// has done there is in the lane alone; see [`catch_up`](Self::catch_up).
    widths: Option<(usize, usize)>,
    /// The current span's items, counted through the chunk.
    span: Range<u32>,
    /// Claimed and not started.
    claimed: Range<u32>,
    block: u32,
    block_begun: u64,
    /// When the parent last heard of us, and how often it is to.
    reported: u64,
    report_every: u64,
    progress: Progress,
    stage: Stage,
    /// Names of the current span's argument and result types.
    types: (&'static str, &'static str),
    /// An item has no answer.
    unanswered: bool,
    /// The channel broke: nothing more is run.
    failed: Option<TransportError>,
}

thread_local! {
    /// The chunk that runs on this thread, for [`Run::last_words`].
    static RUNNING: std::cell::Cell<*mut ()> = const { std::cell::Cell::new(std::ptr::null_mut()) };
}

/// Room that is kept free at the lane's end, so that an item's time, the size of its output and the
/// mark of a region always fit.
const SPARE: usize = RECORD_HEAD + 2 * TIME_RECORD;

impl<'a> Run<'a> {
    /// What the items share.
    fn context(&mut self) -> Option<&'a Context> {
        if self.context.is_none() {
            let missing = TransportError::Malformed("a call's context was not sent".to_owned());
            self.failed = Some(missing);
        }
        self.context
    }

    /// Runs the current span's items, as far as they can be claimed, with `function` and with what
    /// `shared` gives for it.
    #[inline]
    fn items<C, A, R>(
        &mut self,
        shared: impl Fn() -> Result<C, CodecError>,
        function: impl Fn(C, A) -> R,
    ) where
        C: Copy,
        A: DeserializeOwned,
        R: Serialize,
    {
        if cfg!(panic = "abort") {
            RUNNING.set(std::ptr::from_mut(self).cast());
        }
        self.types = (type_name::<A>(), type_name::<R>());
        let is_bulk = plain::width::<A>() == Some(self.width as usize)
            && plain::width::<R>().is_some()
            && !self.capture;
        // One net for as many items as don't panic: setting it up for each would cost a nanosecond
        // or two, and the stage tells which item a panic belongs to.
        while let Err(payload) = catch_unwind(AssertUnwindSafe(|| {
            if is_bulk && let Ok(shared) = shared() {
                // SAFETY: both are plain numbers, and the arguments are as wide as an `A`.
                return unsafe { self.numbers(|argument| function(shared, argument)) };
            }
            while let Some(argument) = self.next() {
                match shared().and_then(|shared| Ok((shared, self.decode::<A>(argument)?))) {
                    Ok((shared, argument)) => {
                        self.stage = Stage::Calling;
                        let result = function(shared, argument);
                        harden::end_copy();
                        self.stage = Stage::Encoding;
                        self.finish(&result);
                    }
                    Err(error) => self.finish_text(Record::Undecodable, &error.to_string()),
                }
            }
        })) {
            self.finish_panicked(panics::take(&*payload));
        }
        // The next span's results may be others.
        self.end_numbers();
        RUNNING.set(std::ptr::null_mut());
    }

    /// Runs the current span's items, as far as they can be claimed, with a function from plain
    /// numbers to plain numbers.
    ///
    /// # Safety
    ///
    /// `A` and `R` are plain numbers, and so many bytes as an `A` has make an argument.
    #[inline]
    unsafe fn numbers<A, R>(&mut self, function: impl Fn(A) -> R) {
        while self.failed.is_none() && (!self.claimed.is_empty() || self.claim()) {
            let items = self.claimed.start..self.claimed.end.min(self.span.end);
            if items.is_empty() {
                return;
            }
            let Some(arguments) = self.arguments.get(..items.len() * size_of::<A>()) else {
                self.failed = Some(TransportError::Malformed("arguments are cut short".to_owned()));
                return;
            };
            self.begin_numbers(items.len(), size_of::<R>());
            if self.failed.is_some() {
                return;
            }
            let results =
                self.lane.room(self.progress.bytes as usize, items.len() * size_of::<R>());
            (self.widths, self.stage) = (Some((size_of::<A>(), size_of::<R>())), Stage::Calling);
            let (lane, mut progress) = (self.lane.words, self.progress);
            let serving = harden::serving();
            for (index, item) in items.clone().enumerate() {
                lane.start(item + 1);
                // SAFETY: as promised by the caller, any bytes are an argument; here are as many
                // arguments as items.
                let argument =
                    unsafe { arguments.as_ptr().cast::<A>().add(index).read_unaligned() };
                let result = function(argument);
                serving.end_copy();
                // SAFETY: as promised by the caller, a result is just its bytes; there is room for
                // as many as there are items.
                unsafe { results.cast::<R>().add(index).write_unaligned(result) };
                progress.items += 1;
                progress.bytes += size_of::<R>() as u32;
                if item + 1 == items.end || lane.is_recalled() {
                    break;
                }
                lane.commit(progress);
            }
            // The last one's result has yet to be committed.
            self.catch_up();
            self.progress = progress;
            if self.claimed.is_empty() || lane.is_recalled() {
                self.unclaim();
                self.end_numbers();
                self.commit_block();
            } else {
                self.end_numbers();
                self.lane.commit(self.progress);
            }
            self.stage = Stage::Between;
        }
    }

    /// Takes note of what the loop over plain numbers has done in its block: all items before the
    /// last that began are finished.
    fn catch_up(&mut self) {
        let Some((argument, result)) = self.widths.take() else { return };
        // A task that writes where it likes may have changed the lane.
        let next = self.lane.started().clamp(self.claimed.start + 1, self.claimed.end);
        let begun = (next - self.claimed.start) as usize;
        self.claimed.start = next;
        self.arguments = self.arguments.get(begun * argument..).unwrap_or_default();
        self.progress.items += begun as u32 - 1;
        self.progress.bytes += ((begun - 1) * result) as u32;
    }

    /// Puts back what is claimed and not begun.
    #[cold]
    fn unclaim(&mut self) {
        if !self.claimed.is_empty() {
            self.lane.unclaim(self.claimed.start);
            self.claimed.end = self.claimed.start;
            self.block = 1;
        }
    }

    #[inline(always)]
    fn decode<A: DeserializeOwned>(&self, argument: &[u8]) -> Result<A, CodecError> {
        match self.elements {
            None => codec::decode(argument),
            // SAFETY: a slice is valid for its length.
            Some(bytes) => unsafe { plain::from_elements(bytes.as_ptr(), bytes.len()) },
        }
    }

    /// The next item's argument, marked as started; none when the span or the claim is used up.
    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.claimed.is_empty() && !self.claim() {
            return None;
        }
        let item = self.claimed.start;
        if item >= self.span.end || self.failed.is_some() {
            return None;
        }
        let Some((argument, rest)) = protocol::take_item(self.arguments, self.width) else {
            if self.elements.is_some() {
                self.claimed.start = item + 1;
                self.lane.start(item + 1);
                self.stage = Stage::Decoding;
                return Some(&[]);
            }
            self.failed = Some(TransportError::Malformed("an argument is cut short".to_owned()));
            return None;
        };
        self.claimed.start = item + 1;
        self.arguments = rest;
        self.lane.start(item + 1);
        self.stage = Stage::Decoding;
        Some(argument)
    }

    fn claim(&mut self) -> bool {
        let block = self.block;
        self.claimed = self.lane.claim(block);
        self.lane.begin(self.block_begun);
        !self.claimed.is_empty()
    }

    /// Writes the item's result and commits it.
    #[inline]
    fn finish<R: Serialize>(&mut self, result: &R) {
        if let Some(width) = plain::width::<R>().filter(|_| !self.capture) {
            return self.finish_number(result, width);
        }
        let at = self.progress.bytes as usize;
        if let Some(elements) = plain::elements(result)
            && elements.len() > CAPACITY
        {
            return self.finish_in_region(elements, true);
        }
        // A lane without room for a head is emptied first.
        if at + RECORD_HEAD + SPARE > CAPACITY {
            return self.finish_large(result);
        }
        let mut writer = self.lane.writer(at + RECORD_HEAD, SPARE);
        match codec::encode(result, &mut writer) {
            Ok(()) => match writer.finish() {
                Ok(end) => self.commit(Record::Value, end),
                Err(spilled) => self.finish_spilled(&spilled),
            },
            Err(error) => self.finish_text(Record::Unencodable, &error.to_string()),
        }
    }

    /// Writes a plain number into the block's run of them and commits it. Not where output is
    /// captured: there, more is told of each item than fits between two numbers.
    #[inline]
    fn finish_number<R: Serialize>(&mut self, number: &R, width: usize) {
        if self.numbers.is_none() {
            self.begin_numbers(self.claimed.len() + 1, width);
        }
        let at = self.progress.bytes as usize;
        let mut writer = self.lane.writer(at, 0);
        // Plain numbers can be encoded, and room for the whole run was made.
        let _ = codec::encode(number, &mut writer);
        self.progress.bytes += width as u32;
        self.progress.items += 1;
        self.commit_item();
    }

    /// Begins a run of results for so many items.
    fn begin_numbers(&mut self, items: usize, width: usize) {
        let len = 1 + items * width;
        if self.progress.bytes as usize + RECORD_HEAD + len + SPARE > CAPACITY {
            self.make_room();
        }
        let at = self.progress.bytes as usize;
        self.lane.write(at, &Record::Numbers.head(len));
        self.lane.write(at + RECORD_HEAD, &[width as u8]);
        self.progress.bytes += RECORD_HEAD as u32 + 1;
        self.numbers = Some(at);
    }

    /// Ends a run of numbers before the block's end, since another record follows.
    fn end_numbers(&mut self) {
        if let Some(at) = self.numbers.take() {
            let len = self.progress.bytes as usize - at - RECORD_HEAD;
            if len == 1 {
                // Its first item panicked: it holds nothing but the width.
                self.progress.bytes = at as u32;
                return;
            }
            self.lane.write(at, &Record::Numbers.head(len));
        }
    }

    #[cold]
    fn finish_large<R: Serialize>(&mut self, result: &R) {
        match codec::encode_to_vec(result) {
            Ok(bytes) => self.finish_spilled(&bytes),
            Err(error) => self.finish_text(Record::Unencodable, &error.to_string()),
        }
    }

    /// Commits a result that didn't fit into what room was left: after the lane has been emptied,
    /// or in a region of its own.
    #[cold]
    fn finish_spilled(&mut self, bytes: &[u8]) {
        if bytes.len() + RECORD_HEAD + SPARE <= CAPACITY {
            self.make_room();
            return self.finish_bytes(Record::Value, bytes);
        }
        self.finish_in_region(bytes, false);
    }

    /// Commits a result that travels in a region of its own: its elements or its encoding.
    #[cold]
    fn finish_in_region(&mut self, bytes: &[u8], is_elements: bool) {
        match self.kept.put(bytes, self.link) {
            Ok(place) => {
                let mark = codec::encode_to_vec(&(place, is_elements)).unwrap_or_default();
                self.finish_bytes(Record::Region, &mark);
                self.make_room();
            }
            Err(TransportError::PeerGone) => self.failed = Some(TransportError::PeerGone),
            Err(error) => {
                let text = format!(
                    "the result of {} bytes could not be put into shared memory: {error}",
                    bytes.len()
                );
                self.finish_text(Record::Unencodable, &text);
            }
        }
    }

    fn finish_text(&mut self, kind: Record, text: &str) {
        self.finish_bytes(kind, text.as_bytes());
    }

    #[cold]
    fn finish_panicked(&mut self, report: PanicReport) {
        harden::end_copy();
        self.catch_up();
        let text = |type_name: &str, part: &str| format!("`{type_name}`: {}", report.in_part(part));
        let (argument, result) = self.types;
        match self.stage {
            // Dropping the result panicked, after it was committed: nobody waits for that.
            Stage::Between => {}
            Stage::Decoding => {
                self.finish_text(Record::Undecodable, &text(argument, "`Deserialize`"))
            }
            Stage::Encoding => self.finish_text(Record::Unencodable, &text(result, "`Serialize`")),
            Stage::Calling => {
                let bytes = codec::encode_to_vec(&report).unwrap_or_default();
                self.finish_bytes(Record::Panicked, &bytes);
            }
        }
    }

    /// Writes a record that surely fits into an empty lane, if need be by cutting it.
    fn finish_bytes(&mut self, kind: Record, bytes: &[u8]) {
        const LONGEST: usize = CAPACITY - RECORD_HEAD - SPARE;
        let bytes = &bytes[..bytes.len().min(LONGEST)];
        self.unanswered |= !matches!(kind, Record::Value | Record::Region);
        self.end_numbers();
        if self.progress.bytes as usize + RECORD_HEAD + bytes.len() + SPARE > CAPACITY {
            self.make_room();
        }
        let start = self.progress.bytes as usize + RECORD_HEAD;
        self.lane.write(start, bytes);
        self.commit(kind, start + bytes.len());
    }

    /// Commits the item whose payload ends at `end`.
    #[inline]
    fn commit(&mut self, kind: Record, end: usize) {
        let at = self.progress.bytes as usize;
        self.lane.write(at, &kind.head(end - at - RECORD_HEAD));
        self.progress.bytes = end as u32;
        self.progress.items += 1;
        self.commit_item();
    }

    /// Commits the item that was finished last; the block's last one with what is said of a block.
    #[inline]
    fn commit_item(&mut self) {
        // The type's `Serialize` may have forked, too.
        harden::end_copy();
        if self.lane.is_recalled() {
            self.unclaim();
        }
        if self.claimed.is_empty() {
            self.end_numbers();
            return self.commit_block();
        }
        self.lane.commit(self.progress);
        self.stage = Stage::Between;
    }

    /// Commits a block's last item together with the time that the block took.
    fn commit_block(&mut self) {
        // What the tasks printed must be seen when their results are; and where printing blocks, it is
        // the last item that takes long, and no silence after it.
        let _ = std::io::stdout().flush();
        let now = now();
        let took = now.saturating_sub(self.block_begun);
        if self.capture {
            self.put_number(Record::Output, harden::printed());
        }
        self.put_number(Record::Time, took);
        self.lane.commit(self.progress);
        self.stage = Stage::Between;
        self.block_begun = now;
        if took > LONG_BLOCK || self.singly {
            self.block = 1;
        } else if took < SHORT_BLOCK {
            self.block = (self.block * 2).min(MAX_BLOCK);
        }
        if now.saturating_sub(self.reported) > self.report_every && self.lane.unstarted() > 0 {
            self.reported = now;
            let told = self.link.reply(&Reply::Progress { sequence: self.sequence });
            self.failed = self.failed.take().or(told.err());
        }
    }

    fn put_number(&mut self, kind: Record, number: u64) {
        let at = self.progress.bytes as usize;
        self.lane.write(at, &kind.head(size_of::<u64>()));
        self.lane.write(at + RECORD_HEAD, &number.to_le_bytes());
        self.progress.bytes += TIME_RECORD as u32;
    }

    /// Waits until the parent has taken out what is committed.
    fn make_room(&mut self) {
        if self.progress.bytes == 0 || self.failed.is_some() {
            return;
        }
        let resumed = self
            .link
            .reply(&Reply::Yield { sequence: self.sequence })
            .and_then(|()| self.link.recv())
            .and_then(|frame| match codec::decode::<Request>(&frame) {
                Ok(Request::Resume) => Ok(()),
                _ => Err(TransportError::Malformed("expected to be resumed".to_owned())),
            });
        self.failed = resumed.err();
        self.progress.bytes = 0;
        self.reported = now();
        if self.stage == Stage::Between {
            self.block_begun = self.reported;
        }
    }

    /// In a program built with `panic = "abort"`: commits the panic, since the process ends next.
    fn last_words(report: PanicReport) {
        let run = RUNNING.get().cast::<Run<'_>>();
        if !run.is_null() {
            // SAFETY: set by `items` on this thread for the time in which its `Run` lives;
            // the panic has interrupted it for good, so nobody else uses it.
            unsafe { &mut *run }.finish_panicked(report);
        }
    }
}
