//! The items of one pool that other hosts have and have not answered.
//!
//! An item is in the [`Flight`] of at most one host. A host is lost if it sends a message about an item that it
//! doesn't have.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::link::{Command, Link};
use super::remote_host::{Flight, Nonsense, Phase, RemoteHost};
use super::wire::{Blob, Chunk, ItemRange, ItemResults, ItemUpdate, ToAgent, WorkerStatus};
use procpool_worker::note::Progress;

use crate::error::{DidRun, TaskErrorKind};
use crate::pool::call::emitted::RawUpdate;
use crate::pool::call::outcome::{Failure, Provenance};
use crate::pool::observe::events::{Deferred, EventKind};
use crate::pool::schedule::batch::Batch;
use crate::pool::schedule::state::PoolState;
use crate::worker_ref::HostName;

/// How long a host may keep items without a result before idle workers elsewhere ask for some of them.
const STRAGGLER: Duration = Duration::from_millis(5);

/// Maximum bytes that wait to be sent to a host before it gets more work.
const MOST_BACKLOG: usize = 16 << 20;

/// How long a host may take to close its pool, after its tasks have ended.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// The manager's view of a pool.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) link: Arc<Link>,
    shared: Arc<PoolState>,
    hosts: Vec<RemoteHost>,
    next_chunk: u64,
    /// The time at which the pool ends without the hosts that are still closing.
    closing: Option<Instant>,
}

impl Run {
    pub(super) fn new(link: Arc<Link>, shared: Arc<PoolState>, hosts: Vec<RemoteHost>) -> Self {
        Self { link, shared, hosts, next_chunk: 0, closing: None }
    }

    fn id(&self) -> u32 {
        self.link.run
    }

    fn host(&mut self, peer: usize) -> Option<&mut RemoteHost> {
        self.hosts.iter_mut().find(|host| host.peer == peer && host.phase != Phase::Lost)
    }

    /// Returns a host if it is open. The items of any other host are already settled.
    fn open_host(&mut self, peer: usize) -> Option<&mut RemoteHost> {
        self.host(peer).filter(|host| host.is_open())
    }

    /// Sends the messages that are due. Returns whether any was sent.
    pub(super) fn serve(&mut self, engine: &mut impl Engine) -> bool {
        for command in self.link.commands() {
            self.obey(engine, &command);
        }
        if let Some(kill) = self.shared.hosts_may_close() {
            self.close(engine, kill);
            return false;
        }
        let mut has_sent = false;
        for at in 0..self.hosts.len() {
            has_sent |= self.feed(engine, at);
        }
        if !has_sent {
            self.steal_from_straggler(engine);
        }
        has_sent
    }

    fn obey(&mut self, engine: &mut impl Engine, command: &Command) {
        let run = self.id();
        for host in self.hosts.iter_mut().filter(|host| host.is_open()) {
            match command {
                Command::Cancel(job) => {
                    let is_its = |part: &Batch| Arc::ptr_eq(&part.job, job);
                    let flights = host.flights.iter();
                    let of_job = flights.filter(|(_, flight)| flight.parts.iter().any(is_its));
                    let chunks: Vec<u64> = of_job.map(|(id, _)| *id).collect();
                    if !chunks.is_empty() {
                        host.send(engine, &ToAgent::Cancel { run, chunks });
                    }
                }
                Command::CancelQueued => {
                    host.stealing.push_back(true);
                    host.send(engine, &ToAgent::Steal { run, items: u32::MAX });
                }
                Command::Suspend(stop) => {
                    host.send(engine, &ToAgent::Suspend { run, stop: *stop });
                }
                Command::DropContexts => {
                    let over = host.contexts.extract_if(|_, context| context.is_over());
                    let contexts: Vec<u64> = over.map(|(id, _)| id).collect();
                    if !contexts.is_empty() {
                        host.send(engine, &ToAgent::DropContexts { run, contexts });
                    }
                }
            }
        }
    }

    /// Sends work to a host that needs it. Fails items that are bound to a lost host.
    fn feed(&mut self, engine: &mut impl Engine, at: usize) -> bool {
        let (run, host) = (self.id(), &mut self.hosts[at]);
        if !host.is_open() {
            let (bound, name) = (self.shared.take_bound(host.slots.clone()), host.name);
            // Bound items are never retried elsewhere.
            self.lose_batches(bound, name, "it was lost before");
            return false;
        }
        if host.is_unfit {
            let (bound, name) = (self.shared.take_bound(host.slots.clone()), host.name);
            self.lose_batches(bound, name, "its workers can't start");
            return false;
        }
        if engine.backlog(host.peer) > MOST_BACKLOG {
            return false;
        }
        let batches = self.shared.take_for_host(host.slots.clone(), host.open);
        if batches.is_empty() {
            return false;
        }
        let now = Instant::now();
        for batch in batches {
            let Ok(call) = batch.job.call else { continue };
            let context = batch.job.context.as_ref().map(|context| {
                if host.contexts.insert(context.id, Arc::clone(context)).is_none() {
                    let (is_elements, bytes) = context.copy();
                    let (id, bytes) = (context.id, Blob(bytes));
                    host.send(engine, &ToAgent::Context { run, id, is_elements, bytes });
                }
                context.id
            });
            let id = self.next_chunk;
            self.next_chunk += 1;
            let options = &batch.job.options;
            let chunk = Chunk {
                id,
                call,
                first_id: batch.job.offset + batch.first,
                items: batch.items,
                attempt: batch.attempt,
                seed: batch.seed(),
                context,
                slot: batch.slot.map(|slot| slot as u32),
                chunk_size: options.chunk_size,
                timeout: options.timeout,
                retries: options.retries,
                label: options.label.as_deref().map(str::to_owned),
                collects_all: batch.job.collects_all.load(Relaxed),
                width: batch.width,
                is_elements: batch.elements().is_some(),
                arguments: Blob(batch.elements().unwrap_or(batch.arguments()).to_vec()),
            };
            host.send(engine, &ToAgent::Chunk { run, chunk });
            host.open += u64::from(batch.items);
            let base = batch.first;
            host.flights.insert(id, Flight { parts: vec![batch], base, sent: now });
        }
        host.moved = now;
        true
    }

    /// Asks the host with the most waiting items for half of them, if a worker elsewhere is idle.
    fn steal_from_straggler(&mut self, engine: &mut impl Engine) {
        let run = self.id();
        let waiting = |host: &RemoteHost| host.open.saturating_sub(host.slots.len() as u64);
        let is_slow = |host: &&mut RemoteHost| {
            host.is_open()
                && host.stealing.is_empty()
                && waiting(host) > 0
                && host.moved.elapsed() > STRAGGLER
        };
        let has_idle_host = self
            .hosts
            .iter()
            .any(|host| host.is_open() && !host.is_unfit && host.open < host.slots.len() as u64);
        let slowest = self.hosts.iter_mut().filter(is_slow).max_by_key(|host| waiting(host));
        let Some(host) = slowest else { return };
        if has_idle_host || self.shared.has_idle_worker() {
            let items = u32::try_from(waiting(host).div_ceil(2)).unwrap_or(u32::MAX);
            host.stealing.push_back(false);
            // Asked again if it stays slow.
            host.moved = Instant::now();
            host.send(engine, &ToAgent::Steal { run, items });
        }
    }

    /// Delivers results.
    pub(super) fn results(&mut self, peer: usize, all: Vec<ItemResults>) -> Result<(), Nonsense> {
        let shared = Arc::clone(&self.shared);
        let Some(host) = self.open_host(peer) else { return Ok(()) };
        host.moved = Instant::now();
        let (mut settled, mut calls, mut outcome) = (0, Deferred::default(), Ok(()));
        let mut again = Vec::new();
        for results in all {
            let items = u64::from(results.range.items);
            if host.has_failed_to_start(&results) {
                // Other hosts, or this one, may have workers.
                match host.cut(results.range) {
                    Ok((batch, _)) => again.push(batch),
                    Err(nonsense) => outcome = Err(nonsense),
                }
            } else {
                outcome = host.deliver(&shared, results, &mut calls);
            }
            if outcome.is_err() {
                break;
            }
            host.open -= items;
            settled += items;
        }
        let requeued: u64 = again.iter().map(|batch| u64::from(batch.items)).sum();
        // Callers first: what they submit next keeps the pool open.
        shared.config.observers.fire(calls);
        shared.requeue_from_host(again);
        shared.settled_elsewhere(settled - requeued);
        outcome
    }

    /// Hands on what a chunk's tasks said.
    pub(super) fn updates(
        &mut self,
        peer: usize,
        chunk: u64,
        values: Vec<ItemUpdate>,
        (dropped, progress): (u64, Option<(u64, Progress)>),
    ) -> Result<(), Nonsense> {
        let shared = Arc::clone(&self.shared);
        let Some(host) = self.open_host(peer) else { return Ok(()) };
        let mut calls = Deferred::default();
        // A task that is over has nobody who waits.
        if let Some((job, base)) = host.job_of(chunk) {
            if dropped > 0 {
                job.add_dropped_updates(dropped, &mut calls);
            }
            for ItemUpdate { item, worker, attempt, type_name, bytes } in values {
                let worker = host.worker_ref(worker)?;
                let number = base.saturating_add(item);
                let update = RawUpdate { number, worker, attempt, type_name, bytes: bytes.0 };
                job.add_update(update, &mut calls);
            }
            if let Some((item, progress)) = progress {
                job.set_progress(base.saturating_add(item), progress, &mut calls);
            }
        }
        shared.config.observers.fire(calls);
        Ok(())
    }

    /// Accepts items that a host returned.
    pub(super) fn stolen(
        &mut self,
        peer: usize,
        items: Vec<(ItemRange, u32)>,
    ) -> Result<(), Nonsense> {
        let shared = Arc::clone(&self.shared);
        let Some(host) = self.open_host(peer) else { return Ok(()) };
        let is_cancelled = host.stealing.pop_front() == Some(true);
        let mut batches = Vec::new();
        let mut outcome = Ok(());
        for (range, attempt) in items {
            match host.cut(range) {
                Ok((mut batch, _)) => {
                    batch.attempt = batch.attempt.max(attempt);
                    batches.push(batch);
                }
                Err(nonsense) => outcome = Err(nonsense),
            }
        }
        host.open -= batches.iter().map(|batch| u64::from(batch.items)).sum::<u64>();
        if !is_cancelled {
            shared.requeue_from_host(batches);
            return outcome;
        }
        let settled = batches.iter().map(|batch| u64::from(batch.items)).sum::<u64>();
        for batch in batches {
            let failure = Failure::unstarted(TaskErrorKind::Cancelled);
            shared.fail(&batch, failure, Provenance::NONE);
        }
        shared.settled_elsewhere(settled);
        outcome
    }

    /// Emits a host's events.
    pub(super) fn events(&mut self, peer: usize, events: Vec<EventKind>) -> Result<(), Nonsense> {
        let shared = Arc::clone(&self.shared);
        let Some(host) = self.host(peer) else { return Ok(()) };
        for mut kind in events {
            if let Some(slot) = kind.slot_mut() {
                if *slot >= host.slots.len() {
                    return Err(Nonsense("an event of a slot that it doesn't have"));
                }
                *slot += host.slots.start;
            }
            // The end of one host's pool is not the end of the pool.
            match kind {
                EventKind::Drained => {}
                EventKind::Logged { .. } => shared.config.observers.log_of(Some(host.name), kind),
                kind => shared.config.observers.emit_of(Some(host.name), || kind),
            }
        }
        Ok(())
    }

    /// Notes the state of a host's workers.
    pub(super) fn workers(&mut self, peer: usize, workers: Vec<WorkerStatus>) {
        if let Some(host) = self.hosts.iter().find(|host| host.peer == peer) {
            host.note_workers(&self.link, workers);
        }
    }

    /// A host has closed its pool.
    pub(super) fn closed(&mut self, peer: usize) -> Result<(), Nonsense> {
        let Some(host) = self.host(peer) else { return Ok(()) };
        if host.is_open() {
            return Err(Nonsense("it closed a pool unasked"));
        }
        host.phase = Phase::Closed;
        Ok(())
    }

    /// Handles the loss of a host. Each of its items is retried or fails by itself.
    pub(super) fn lose(&mut self, peer: usize, reason: &str) {
        let shared = Arc::clone(&self.shared);
        let Some(host) = self.host(peer) else { return };
        let (was_closed, name) = (host.phase == Phase::Closed, host.name);
        host.phase = Phase::Lost;
        host.open = 0;
        host.contexts.clear();
        let flights = std::mem::take(&mut host.flights);
        self.link.with_status(|status| {
            for known in status.hosts.iter_mut().filter(|known| known.name == name) {
                known.lost = Some(reason.to_owned());
            }
        });
        if was_closed {
            return;
        }
        let reason = reason.to_owned();
        shared
            .config
            .observers
            .emit_of(Some(name), || EventKind::HostLost { reason: reason.clone() });
        let parts: Vec<Batch> = flights.into_values().flat_map(|flight| flight.parts).collect();
        let items: u64 = parts.iter().map(|part| u64::from(part.items)).sum();
        let again = self.lose_batches(parts, name, &reason);
        let requeued: u64 = again.iter().map(|batch| u64::from(batch.items)).sum();
        shared.requeue_from_host(again);
        shared.settled_elsewhere(items - requeued);
    }

    /// Fails a lost host's items, except those that may be retried, which it returns.
    fn lose_batches(&self, parts: Vec<Batch>, host: HostName, reason: &str) -> Vec<Batch> {
        let mut again = Vec::new();
        for mut batch in parts {
            let options = &batch.job.options;
            let is_cancelled = batch.job.cancelled.load(Relaxed);
            let may_retry = batch.slot.is_none()
                && !is_cancelled
                && batch.attempt <= options.retries.unwrap_or(0);
            let kind = match is_cancelled {
                true => TaskErrorKind::Cancelled,
                false => TaskErrorKind::HostLost { host, reason: reason.to_owned() },
            };
            if may_retry {
                self.shared.counters.retried.fetch_add(batch.items.into(), Relaxed);
                batch.attempt += 1;
                again.push(batch);
                continue;
            }
            let failure = Failure {
                kind,
                did_it_run: DidRun::Maybe,
                elapsed: Duration::ZERO,
                output: Vec::new(),
                progress: None,
            };
            let provenance = Provenance { attempt: batch.attempt, ..Provenance::NONE };
            self.shared.fail(&batch, failure, provenance);
        }
        again
    }

    /// Closes the hosts' pools. The pool ends without a host that exceeds the limit.
    fn close(&mut self, engine: &mut impl Engine, kill: bool) {
        let run = self.id();
        if self.closing.is_none() {
            self.closing = Instant::now().checked_add(CLOSE_LIMIT);
        }
        for host in &mut self.hosts {
            if kill && matches!(host.phase, Phase::Open | Phase::Closing) {
                let flights = std::mem::take(&mut host.flights);
                let mut settled = 0;
                for part in flights.into_values().flat_map(|flight| flight.parts) {
                    settled += u64::from(part.items);
                    let failure = Failure {
                        did_it_run: DidRun::Maybe,
                        ..Failure::unstarted(TaskErrorKind::Closed)
                    };
                    let provenance = Provenance { attempt: part.attempt, ..Provenance::NONE };
                    self.shared.fail(&part, failure, provenance);
                }
                host.open = 0;
                self.shared.settled_elsewhere(settled);
            }
            if host.is_open() {
                host.phase = Phase::Closing;
                host.send(engine, &ToAgent::Close { run, kill });
            }
        }
    }

    /// Returns the time of the shortest items that a host has, in nanoseconds; 0 if it isn't known.
    pub(super) fn expected(&self) -> Option<u64> {
        // They are much alike, and this is asked often.
        const FEW: usize = 4;
        let flights = self.hosts.iter().flat_map(|host| host.flights.values().take(FEW));
        let parts = flights.filter_map(|flight| flight.parts.first());
        parts.map(|part| part.job.cost.least()).min()
    }

    /// Returns whether a host has unsettled items, or is closing.
    pub(super) fn is_busy(&self) -> bool {
        let is_busy = |host: &RemoteHost| host.open > 0 || host.phase == Phase::Closing;
        self.hosts.iter().any(is_busy)
    }

    /// Returns whether the pool has requests, or work for a host.
    pub(super) fn has_news(&self) -> bool {
        // What is queued while a host is busy waits for its next answer.
        let is_fed = |host: &RemoteHost| host.is_open() && !host.is_unfit;
        let is_full = self.is_busy() || !self.hosts.iter().any(is_fed);
        let has_work = || self.closing.is_none() && self.shared.has_work_for_hosts(is_full);
        self.link.has_commands() || has_work()
    }

    /// Returns whether the pool may end: all hosts have closed it, or exceeded the limit.
    pub(super) fn has_ended(&self) -> bool {
        let is_left = |host: &RemoteHost| matches!(host.phase, Phase::Open | Phase::Closing);
        let is_late = self.closing.is_some_and(|limit| Instant::now() >= limit);
        self.closing.is_some() && (is_late || !self.hosts.iter().any(is_left))
    }
}

impl Drop for Run {
    /// Fails or retries the hosts' remaining items, and marks the hosts as ended.
    fn drop(&mut self) {
        let peers: Vec<usize> = self.hosts.iter().map(|host| host.peer).collect();
        if self.closing.is_none() {
            peers.into_iter().for_each(|peer| self.lose(peer, "the manager has ended"));
        }
        self.shared.hosts_ended();
        self.shared.driver_ended();
    }
}
