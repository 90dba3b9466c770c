//! The agent: runs the items of another host's pool in a local pool, and sends back their outcomes.
//!
//! One thread owns the engine. It waits for no worker: pools are built and closed on threads of their own,
//! and every delivery wakes it. After [`LOSS`] without a message from the manager, it kills the workers and
//! ends the process.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use procpool_worker::attach::Attachments;
use procpool_worker::bulk::RawBytes;

use super::engine::{Engine, EngineEvent};
use super::link::Waker;
use super::wire::{
    self, Blob, Chunk, Hello, ItemRange, ItemResults, ItemUpdate, ResultContent, Settings, ToAgent,
    ToManager, WorkerStatus,
};
use super::{BEAT, IDLE_PAUSE, LOSS, PAUSE, exclude_pause, next_look, pause_of};
use crate::error::{TaskErrorKind, ValueSide};
use crate::pool::builder::PoolBuilder;
use crate::pool::call::context::Context;
use crate::pool::call::emitted::RawUpdate;
use crate::pool::call::job::Job;
use crate::pool::call::outcome::{Content, Delivery, Failure, Provenance};
use crate::pool::drive::parcel::Parcel;
use crate::pool::handle::Pool;
use crate::pool::observe::events::EventKind;
use crate::pool::options::TaskOptions;
use crate::pool::schedule::batch::Batch;
use crate::pool::types::WorkerInfo;
use crate::self_describing::SelfDescribing;

/// How long an agent sleeps between two polls, by the time since its last work. A poll costs about 5 µs,
/// and a call waits for the next poll.
const RESTS: [(Duration, Duration); 2] =
    [(Duration::from_secs(1), PAUSE), (Duration::from_secs(10), Duration::from_millis(1))];

/// Why an agent ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The manager sent a goodbye.
    Bye { finalize: bool },
    /// The manager rejected it.
    Rejected(String),
    /// The manager is lost.
    Lost(String),
}

/// An agent.
pub(super) struct Agent<E> {
    engine: E,
    runs: HashMap<u32, Run>,
    inbox: Arc<Inbox>,
    waker: Arc<Waker>,
    /// The time of the manager's last message.
    heard: Instant,
    /// The time of the last work other than heartbeats.
    worked: Instant,
    ending: Option<Ending>,
}

/// A pool of the program, as this host sees it.
struct Run {
    first_slot: usize,
    /// `None` while it is being built or closed.
    pool: Option<Pool>,
    /// Whether it was closed before it was built, and whether the close kills.
    is_closed: Option<bool>,
    chunks: HashMap<u64, Arc<Job>>,
    contexts: HashMap<u64, Arc<Context>>,
    events: Arc<Mutex<Vec<EventKind>>>,
}

/// A message from another thread to the agent.
struct Inbox {
    news: Mutex<VecDeque<News>>,
    waker: Arc<Waker>,
}

enum News {
    Built {
        run: u32,
        pool: Result<Box<Pool>, String>,
    },
    Closed {
        run: u32,
    },
    /// Items of a chunk have outcomes.
    Arrived {
        run: u32,
        chunk: u64,
    },
}

impl Inbox {
    fn push(&self, news: News) {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).push_back(news);
        self.waker.wake();
    }

    fn take(&self) -> VecDeque<News> {
        std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_empty(&self) -> bool {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// The waker of a chunk: reports its next delivery to the agent.
struct Notify {
    inbox: Arc<Inbox>,
    run: u32,
    chunk: u64,
}

impl std::task::Wake for Notify {
    fn wake(self: Arc<Self>) {
        self.inbox.push(News::Arrived { run: self.run, chunk: self.chunk });
    }
}

impl Run {
    /// Returns the slots of its workers in the pool of all hosts.
    fn slots(&self) -> Range<usize> {
        let workers = self.pool.as_ref().map_or(0, |pool| pool.shared().config.workers);
        self.first_slot..self.first_slot + workers
    }
}

impl<E: Engine> Agent<E> {
    /// Creates an agent, which runs on the current thread.
    pub(super) fn new(engine: E) -> Self {
        let waker = Arc::new(Waker::of_this_thread());
        let inbox = Inbox { news: Mutex::default(), waker: Arc::clone(&waker) };
        Self {
            engine,
            runs: HashMap::new(),
            inbox: Arc::new(inbox),
            waker,
            heard: Instant::now(),
            worked: Instant::now(),
            ending: None,
        }
    }

    /// Serves the manager until it leaves or is lost.
    pub(super) fn run(mut self, hello: &Hello) -> (Ending, E) {
        match hello.encode() {
            Ok(frame) => self.engine.send(0, frame),
            Err(error) => return (Ending::Lost(error.to_string()), self.engine),
        }
        let (mut next_beat, mut last) = (Instant::now() + BEAT, Instant::now());
        let mut events = Vec::new();
        loop {
            let mut has_moved = self.engine.poll(&mut events);
            for event in events.drain(..) {
                match event {
                    EngineEvent::Frame(0, frame) => self.receive(&frame),
                    EngineEvent::Alive(0) => self.heard = Instant::now(),
                    EngineEvent::Frame(..) | EngineEvent::Alive(_) | EngineEvent::Lost(1.., _) => {}
                    EngineEvent::Lost(0, reason) => self.ending = Some(Ending::Lost(reason)),
                }
            }
            let news = self.inbox.take();
            if !news.is_empty() {
                (self.worked, has_moved) = (Instant::now(), true);
            }
            self.deliver(news);
            let now = Instant::now();
            if now >= next_beat {
                next_beat = now + BEAT;
                self.beat();
            }
            exclude_pause(&mut self.heard, pause_of(&mut last, now), now);
            let silent = now.saturating_duration_since(self.heard);
            if silent > LOSS && self.ending.is_none() {
                let reason = format!("no sign of life from the first host for {silent:.0?}");
                self.ending = Some(Ending::Lost(reason));
            }
            if let Some(ending) = self.ending.take() {
                return self.end(ending);
            }
            if !has_moved {
                self.pause(now.saturating_duration_since(self.worked));
            }
        }
    }

    /// Sleeps until the next poll. The sleep grows with the time without work.
    fn pause(&self, since: Duration) {
        // They are much alike, and this is asked often.
        const FEW: usize = 4;
        let jobs = self.runs.values().flat_map(|run| run.chunks.values().take(FEW));
        let expected = jobs.map(|job| job.cost.least()).min();
        let Some(pause) = next_look(expected, since) else { return std::thread::yield_now() };
        let is_busy = self.engine.is_sending() || expected.is_some();
        let rest = RESTS.iter().find(|(limit, _)| since < *limit);
        let limit = match rest {
            _ if is_busy => pause,
            Some((_, rest)) => *rest,
            None => IDLE_PAUSE,
        };
        self.waker.sleep(limit, || !self.inbox.is_empty());
    }

    /// Kills the workers, and sends a goodbye if the manager is still connected.
    fn end(mut self, ending: Ending) -> (Ending, E) {
        for run in self.runs.values() {
            if let Some(pool) = &run.pool {
                pool.terminate();
            }
        }
        self.runs.clear();
        if matches!(ending, Ending::Bye { .. }) {
            self.send(&ToManager::Bye);
            let limit = Instant::now() + BEAT;
            while self.engine.is_sending() && Instant::now() < limit {
                self.engine.poll(&mut Vec::new());
            }
        }
        (ending, self.engine)
    }

    fn send(&mut self, message: &ToManager) {
        match wire::encode(message) {
            Ok(frame) => self.engine.send(0, frame),
            Err(error) => eprintln!("procpool: a message to the first host was lost: {error}"),
        }
    }

    fn receive(&mut self, frame: &[u8]) {
        self.heard = Instant::now();
        let message = match wire::decode::<ToAgent>(frame) {
            Ok(message) => message,
            Err(error) => {
                self.ending = Some(Ending::Lost(error.to_string()));
                return;
            }
        };
        if !matches!(message, ToAgent::Beat) {
            self.worked = self.heard;
        }
        match message {
            ToAgent::Beat | ToAgent::Welcome => {}
            ToAgent::Reject { reason } => self.ending = Some(Ending::Rejected(reason)),
            ToAgent::Bye { finalize } => self.ending = Some(Ending::Bye { finalize }),
            ToAgent::Open { run, settings } => self.open(run, *settings),
            ToAgent::Close { run, kill } => self.close(run, kill),
            ToAgent::Chunk { run, chunk } => self.start(run, chunk),
            ToAgent::Steal { run, items } => self.give_back(run, items),
            ToAgent::Cancel { run, chunks } => {
                if let Some(run) = self.runs.get(&run)
                    && let Some(pool) = &run.pool
                {
                    let jobs = chunks.iter().filter_map(|chunk| run.chunks.get(chunk));
                    jobs.for_each(|job| pool.shared().cancel(job));
                }
            }
            ToAgent::Context { run, id, is_elements, bytes } => {
                if let Some(run) = self.runs.get_mut(&run)
                    && let Some(pool) = &run.pool
                {
                    let context = match is_elements {
                        true => Context::of_elements(&bytes.0),
                        false => Context::of_encoded(bytes.0, pool.shared().inline_limit),
                    };
                    // Without it, the chunks that need it fail.
                    if let Ok(context) = context {
                        run.contexts.insert(id, Arc::new(context));
                    }
                }
            }
            ToAgent::DropContexts { run, contexts } => {
                if let Some(run) = self.runs.get_mut(&run) {
                    for context in contexts.iter().filter_map(|id| run.contexts.remove(id)) {
                        context.set_over();
                    }
                    if let Some(pool) = &run.pool {
                        pool.shared().forget_contexts();
                    }
                }
            }
            ToAgent::Suspend { run, stop } => {
                if let Some(pool) = self.runs.get(&run).and_then(|run| run.pool.as_ref()) {
                    pool.shared().suspend(stop);
                }
            }
        }
    }

    /// Builds a pool on a thread of its own: its workers' initializer may take long.
    fn open(&mut self, id: u32, settings: Settings) {
        let events = Arc::<Mutex<Vec<EventKind>>>::default();
        let run = Run {
            first_slot: settings.first_slot as usize,
            pool: None,
            is_closed: None,
            chunks: HashMap::new(),
            contexts: HashMap::new(),
            events: Arc::clone(&events),
        };
        self.runs.insert(id, run);
        let inbox = Arc::clone(&self.inbox);
        let build = move || {
            let (is_observed, logs) = (settings.is_observed, settings.worker_logs);
            let mut builder = PoolBuilder::of_settings(settings);
            if is_observed || logs.is_some() {
                let inbox = Arc::clone(&inbox);
                builder = builder.on_event(move |event| {
                    if !is_observed && !matches!(event.kind, EventKind::Logged { .. }) {
                        return;
                    }
                    events.lock().unwrap_or_else(PoisonError::into_inner).push(event.kind.clone());
                    inbox.waker.wake();
                });
            }
            let pool = builder.build().map(Box::new).map_err(|error| {
                let source = std::error::Error::source(&error);
                source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
            });
            inbox.push(News::Built { run: id, pool });
        };
        let name = "procpool-open".to_owned();
        if let Err(error) = std::thread::Builder::new().name(name).spawn(build) {
            let pool = Err(error.to_string());
            self.inbox.push(News::Built { run: id, pool });
        }
    }

    /// Closes a pool on a thread of its own: its tasks may take long.
    fn close(&mut self, id: u32, kill: bool) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let Some(pool) = run.pool.take() else {
            run.is_closed = Some(kill);
            return;
        };
        let inbox = Arc::clone(&self.inbox);
        let end = move || {
            match kill {
                true => pool.terminate(),
                false => pool.join(),
            }
            drop(pool);
            inbox.push(News::Closed { run: id });
        };
        if std::thread::Builder::new().name("procpool-close".to_owned()).spawn(end).is_err() {
            // The pool was dropped with the closure, which has terminated it.
            self.inbox.push(News::Closed { run: id });
        }
    }

    /// Queues a chunk.
    fn start(&mut self, id: u32, chunk: Chunk) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if !chunk.is_sound(run.slots()) {
            self.ending = Some(Ending::Lost("it sent a chunk that makes no sense".to_owned()));
            return;
        }
        let range = ItemRange { chunk: chunk.id, first: 0, items: chunk.items };
        let context = chunk.context.map(|id| run.contexts.get(&id).cloned());
        let (Some(pool), false) = (&run.pool, matches!(context, Some(None))) else {
            let reason = "the host has no memory for the call's context".to_owned();
            return self.fail(id, range, reason);
        };
        let shared = pool.shared();
        let options = TaskOptions {
            chunk_size: chunk.chunk_size,
            timeout: chunk.timeout,
            retries: chunk.retries,
            label: chunk.label.map(Arc::from),
            priority: None,
        };
        let cost = shared.cost(chunk.call);
        let context = context.flatten();
        let job = Job::new(Ok(chunk.call), options, cost, chunk.first_id, context, chunk.seed);
        job.collects_all.store(chunk.collects_all, Relaxed);
        job.reserve(chunk.items.into());
        let mut batch = match chunk.is_elements {
            true => match RawBytes::of(chunk.arguments.0, 0) {
                Ok(elements) => Batch::of_elements(Arc::clone(&job), 0, elements),
                // Unreachable: bytes are elements.
                Err(_) => return,
            },
            false => Batch::of_buffer(
                Arc::clone(&job),
                0,
                chunk.items,
                chunk.width,
                chunk.arguments.0.into(),
                Attachments::default(),
            ),
        };
        batch.attempt = chunk.attempt;
        batch.slot = chunk.slot.map(|slot| (slot as usize).saturating_sub(run.first_slot));
        run.chunks.insert(chunk.id, Arc::clone(&job));
        let notify = Notify { inbox: Arc::clone(&self.inbox), run: id, chunk: chunk.id };
        let waker = Arc::new(notify).into();
        job.poll_done(&waker);
        job.take_updates(&waker);
        shared.submit(batch);
    }

    /// Fails items that can't be queued.
    fn fail(&mut self, run: u32, range: ItemRange, reason: String) {
        let kind = TaskErrorKind::Decode { side: ValueSide::Argument, reason };
        let content = Failure::unstarted(kind).into();
        let queued = Duration::ZERO;
        let results = vec![ItemResults { range, worker: None, attempt: 0, queued, content }];
        self.send(&ToManager::Results { run, results });
    }

    /// Returns unstarted items to the manager.
    fn give_back(&mut self, id: u32, most: u32) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let batches = run.pool.as_ref().map_or_else(Vec::new, |pool| pool.shared().give_back(most));
        let mut items = Vec::new();
        for batch in batches {
            let is_its = |(_, job): &(&u64, &Arc<Job>)| Arc::ptr_eq(job, &batch.job);
            let Some((chunk, job)) = run.chunks.iter().find(is_its) else { continue };
            let chunk = *chunk;
            let range = ItemRange { chunk, first: batch.first, items: batch.items };
            items.push((range, batch.attempt));
            if job.withdraw(batch.first, batch.items) && !job.has_deliveries() {
                run.chunks.remove(&chunk);
            }
        }
        self.send(&ToManager::Stolen { run: id, items });
    }

    /// Sends the messages of other threads.
    fn deliver(&mut self, news: VecDeque<News>) {
        let mut results: HashMap<u32, Vec<ItemResults>> = HashMap::new();
        let mut updates = Vec::new();
        for news in news {
            match news {
                News::Arrived { run: id, chunk } => {
                    let Some(run) = self.runs.get_mut(&id) else { continue };
                    let Some(job) = run.chunks.get(&chunk).cloned() else { continue };
                    let notify = Notify { inbox: Arc::clone(&self.inbox), run: id, chunk };
                    // Asked first, so that no delivery from here on goes unnoticed.
                    let waker = Arc::new(notify).into();
                    let is_done = job.poll_done(&waker);
                    let (values, dropped, progress) = job.take_updates(&waker);
                    if !values.is_empty() || dropped > 0 || progress.is_some() {
                        let tell = |update: RawUpdate| ItemUpdate {
                            item: update.number,
                            worker: update.worker.map(|worker| (worker.slot as u32, worker.pid)),
                            attempt: update.attempt,
                            type_name: update.type_name,
                            bytes: Blob(update.bytes),
                        };
                        let values = values.into_iter().map(tell).collect();
                        // Before the results: these may end the chunk.
                        updates.push(ToManager::Updates {
                            run: id,
                            chunk,
                            values,
                            dropped,
                            progress,
                        });
                    }
                    let deliveries = std::iter::from_fn(|| job.take_delivery());
                    let told = deliveries.map(|delivery| tell(chunk, delivery));
                    results.entry(id).or_default().extend(told);
                    if is_done {
                        run.chunks.remove(&chunk);
                    }
                }
                News::Built { run: id, pool } => self.built(id, pool),
                News::Closed { run } => {
                    self.flush_events(run);
                    self.runs.remove(&run);
                    self.send(&ToManager::Closed { run });
                }
            }
        }
        let runs: Vec<u32> = self.runs.keys().copied().collect();
        // Events first: a caller that has a result has seen what led to it.
        runs.into_iter().for_each(|run| self.flush_events(run));
        updates.iter().for_each(|update| self.send(update));
        for (run, results) in results {
            if !results.is_empty() {
                self.send(&ToManager::Results { run, results });
            }
        }
    }

    fn flush_events(&mut self, id: u32) {
        let Some(run) = self.runs.get(&id) else { return };
        let events =
            std::mem::take(&mut *run.events.lock().unwrap_or_else(PoisonError::into_inner));
        if !events.is_empty() {
            let events = events.into_iter().map(SelfDescribing).collect();
            self.send(&ToManager::Events { run: id, events });
        }
    }

    fn built(&mut self, id: u32, pool: Result<Box<Pool>, String>) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let error = match pool {
            Ok(pool) => {
                run.pool = Some(*pool);
                None
            }
            Err(error) => Some(error),
        };
        let (has_failed, is_closed) = (error.is_some(), run.is_closed);
        self.flush_events(id);
        self.send_workers(id);
        self.send(&ToManager::Opened { run: id, error });
        if has_failed {
            self.runs.remove(&id);
            self.send(&ToManager::Closed { run: id });
        } else if let Some(kill) = is_closed {
            self.close(id, kill);
        }
    }

    /// Sends a heartbeat and the states of the workers.
    fn beat(&mut self) {
        self.send(&ToManager::Beat);
        let runs: Vec<u32> = self.runs.keys().copied().collect();
        runs.into_iter().for_each(|run| self.send_workers(run));
    }

    fn send_workers(&mut self, id: u32) {
        let Some(pool) = self.runs.get(&id).and_then(|run| run.pool.as_ref()) else { return };
        let status = |worker: WorkerInfo| WorkerStatus {
            pid: worker.pid,
            state: worker.state,
            restarts: worker.restarts,
            memory: worker.memory,
            cpu: worker.cpu,
        };
        let workers = pool.workers().into_iter().map(status).collect();
        self.send(&ToManager::Workers { run: id, workers });
    }
}

/// Returns a delivery as a message.
fn tell(chunk: u64, delivery: Delivery) -> ItemResults {
    let Delivery { first, items, provenance, content } = delivery;
    let Provenance { worker, attempt, queued } = provenance;
    let content = match content {
        Content::Failed(failure) => failure.into(),
        // Unreachable: no job here has a destination.
        Content::Written => {
            let (side, reason) = (ValueSide::Result, "is elsewhere".to_owned());
            Failure::unstarted(TaskErrorKind::Decode { side, reason }).into()
        }
        Content::Records(records) => {
            let (bytes, parcels, outputs) = records.into_parts(items);
            // Files stay on their host.
            let copy = |parcel| match parcel {
                Parcel::Arrived { region: Some(region), files } if files.is_empty() => {
                    region.copy().map(Blob)
                }
                Parcel::Arrived { .. } | Parcel::Lost(_) => None,
            };
            ResultContent::Records {
                bytes: Blob(bytes.to_vec()),
                regions: parcels.into_iter().map(copy).collect(),
                outputs: outputs.into_iter().map(Blob).collect(),
            }
        }
    };
    let worker = worker.map(|worker| (worker.slot as u32, worker.pid));
    ItemResults { range: ItemRange { chunk, first, items }, worker, attempt, queued, content }
}
