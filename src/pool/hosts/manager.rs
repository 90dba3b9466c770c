//! The manager: the thread of host 0 that owns the engine. It tracks which hosts are connected or lost, and
//! serves every pool of the program.
//!
//! It runs from `init` to the end of the process, so that the agents always hear from it. It never waits for
//! a peer, and runs no code of the program but wakers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use super::engine::{Engine, EngineEvent};
use super::link::{Link, Status};
use super::remote::Run;
use super::remote_host::{Nonsense, RemoteHost};
use super::requests::{Handle, LEAVE_LIMIT, Opened, Plan, Request};
use super::wire::{self, Hello, Settings, ToAgent, ToManager};
use super::{BEAT, IDLE_PAUSE, LOSS, exclude_pause, next_look, pause_of};
use crate::error::Error;
use crate::pool::observe::events::EventKind;
use crate::pool::schedule::state;
use crate::pool::types::{HostInfo, WorkerInfo, WorkerState};
use crate::self_describing::SelfDescribing;
use crate::worker_ref::HostName;

/// Maximum number of workers of a host, whatever it says of its CPUs.
const MAX_WORKERS: usize = 4096;

/// The state of a peer.
#[derive(Debug)]
struct Peer {
    state: PeerState,
    heard: Instant,
}

#[derive(Debug)]
enum PeerState {
    /// Its first message has not arrived.
    Silent,
    Ready(Agent),
    /// It runs another build.
    Rejected {
        host: String,
        theirs: String,
    },
    Lost(String),
    /// It left on request.
    Left,
}

#[derive(Debug, Clone)]
struct Agent {
    hello: Hello,
    name: HostName,
    /// The number of agents on its host.
    share: usize,
}

/// A pool that is being opened.
#[derive(Debug)]
struct Opening {
    link: Arc<Link>,
    plan: Plan,
    reply: Option<SyncSender<Result<Opened, Error>>>,
    /// `None` without a limit.
    deadline: Option<Instant>,
    /// The settings sent to each host; empty until all peers have introduced themselves.
    hosts: Vec<RemoteHost>,
    /// Peers that have not opened it yet.
    waiting: Vec<usize>,
    own: Option<(HostName, usize)>,
    /// Events from before the pool could take them.
    events: Vec<(usize, Vec<EventKind>)>,
}

/// The manager's state.
pub(super) struct Manager<E> {
    engine: E,
    handle: &'static Handle,
    own: Hello,
    peers: Vec<Peer>,
    opening: HashMap<u32, Opening>,
    runs: HashMap<u32, Run>,
    next_run: u32,
    /// Whether all peers have introduced themselves or are lost.
    is_complete: bool,
    leaving: Option<(Instant, SyncSender<()>)>,
}

impl<E> Drop for Manager<E> {
    fn drop(&mut self) {
        self.handle.end();
    }
}

impl<E: Engine> Manager<E> {
    pub(super) fn new(engine: E, handle: &'static Handle, own: Hello) -> Self {
        let peer = || Peer { state: PeerState::Silent, heard: Instant::now() };
        let peers = (0..engine.size()).map(|_| peer()).collect();
        Self {
            engine,
            handle,
            own,
            peers,
            opening: HashMap::new(),
            runs: HashMap::new(),
            next_run: 0,
            is_complete: false,
            leaving: None,
        }
    }

    /// Runs until the program ends.
    pub(super) fn run(mut self) {
        state::mark_pool_thread();
        let mut events = Vec::new();
        let (mut next_beat, mut moved, mut last) = (Instant::now(), Instant::now(), Instant::now());
        loop {
            let mut has_moved = self.engine.poll(&mut events);
            for event in events.drain(..) {
                match event {
                    EngineEvent::Frame(peer, frame) => self.receive(peer, &frame),
                    EngineEvent::Alive(peer) => self.peers[peer].heard = Instant::now(),
                    EngineEvent::Lost(peer, reason) => self.lose(peer, reason),
                }
            }
            for request in self.handle.take() {
                self.obey(request);
                has_moved = true;
            }
            self.open_pools();
            for run in self.runs.values_mut() {
                has_moved |= run.serve(&mut self.engine);
            }
            has_moved |= self.runs.extract_if(|_, run| run.has_ended()).count() > 0;
            let now = Instant::now();
            let stopped = pause_of(&mut last, now);
            self.peers.iter_mut().for_each(|peer| exclude_pause(&mut peer.heard, stopped, now));
            if now >= next_beat {
                next_beat = now + BEAT;
                self.beat(now);
            }
            if self.has_left(now) {
                return;
            }
            if has_moved {
                moved = now;
            } else {
                self.pause(now, moved);
            }
        }
    }

    /// Sleeps until the next poll, for less time if a message is expected.
    fn pause(&self, now: Instant, moved: Instant) {
        let expected = self.runs.values().filter_map(Run::expected).min();
        let Some(pause) = next_look(expected, now.saturating_duration_since(moved)) else {
            return std::thread::yield_now();
        };
        let is_busy = self.engine.is_sending()
            || !self.opening.is_empty()
            || self.leaving.is_some()
            || self.runs.values().any(Run::is_busy);
        let limit = if is_busy { pause } else { IDLE_PAUSE };
        let has_news = || self.handle.has_requests() || self.runs.values().any(Run::has_news);
        self.handle.waker.sleep(limit, has_news);
    }

    fn send(&mut self, peer: usize, message: &ToAgent) {
        if let Ok(frame) = wire::encode(message) {
            self.engine.send(peer, frame);
        }
    }

    fn receive(&mut self, peer: usize, frame: &[u8]) {
        if matches!(self.peers[peer].state, PeerState::Lost(_) | PeerState::Rejected { .. }) {
            return;
        }
        self.peers[peer].heard = Instant::now();
        if matches!(self.peers[peer].state, PeerState::Silent) {
            return self.introduce(peer, frame);
        }
        let Ok(message) = wire::decode::<ToManager>(frame) else {
            return self.lose(peer, "it sent a message that can't be decoded".to_owned());
        };
        let outcome = match message {
            ToManager::Beat => Ok(()),
            ToManager::Bye if self.leaving.is_none() => Err(Nonsense("it left unasked")),
            ToManager::Bye => {
                self.peers[peer].state = PeerState::Left;
                Ok(())
            }
            ToManager::Opened { run, error } => {
                self.opened(peer, run, error);
                Ok(())
            }
            ToManager::Results { run, results } => self.of(run, |run| run.results(peer, results)),
            ToManager::Stolen { run, items } => self.of(run, |run| run.stolen(peer, items)),
            ToManager::Workers { run, workers } => {
                if let Some(opening) = self.opening.get(&run) {
                    let host = opening.hosts.iter().find(|host| host.peer == peer);
                    host.iter().for_each(|host| host.note_workers(&opening.link, workers.clone()));
                } else if let Some(run) = self.runs.get_mut(&run) {
                    run.workers(peer, workers);
                }
                Ok(())
            }
            ToManager::Updates { run, chunk, values, dropped, progress } => {
                self.of(run, |run| run.updates(peer, chunk, values, (dropped, progress)))
            }
            ToManager::Closed { run } => self.of(run, |run| run.closed(peer)),
            ToManager::Events { run, events } => {
                let kinds: Vec<EventKind> =
                    events.into_iter().map(|SelfDescribing(kind)| kind).collect();
                match self.opening.get_mut(&run) {
                    Some(opening) => {
                        opening.events.push((peer, kinds));
                        Ok(())
                    }
                    None => self.of(run, |run| run.events(peer, kinds)),
                }
            }
        };
        if let Err(Nonsense(what)) = outcome {
            self.lose(peer, what.to_owned());
        }
    }

    /// Calls `f` with a pool, if it is still open.
    fn of(
        &mut self,
        run: u32,
        f: impl FnOnce(&mut Run) -> Result<(), Nonsense>,
    ) -> Result<(), Nonsense> {
        self.runs.get_mut(&run).map_or(Ok(()), f)
    }

    /// Takes or rejects an agent by its first message.
    fn introduce(&mut self, peer: usize, frame: &[u8]) {
        let (host, theirs, hello) = match Hello::decode(frame) {
            Some(hello) if hello.image == self.own.image && hello.version == self.own.version => {
                (hello.host.clone(), String::new(), Some(hello))
            }
            Some(hello) => (hello.host.clone(), hello.build(), None),
            None => (format!("rank {peer}"), "a program that is no agent of it".to_owned(), None),
        };
        self.peers[peer].state = match hello {
            Some(hello) => {
                let name = HostName::new(&hello.host);
                PeerState::Ready(Agent { hello, name, share: 1 })
            }
            None => {
                let reason = format!(
                    "this host has another build of the program ({theirs}) than the first one ({})",
                    self.own.build()
                );
                self.send(peer, &ToAgent::Reject { reason });
                PeerState::Rejected { host, theirs }
            }
        };
        self.complete();
    }

    /// Once all have introduced themselves, names them and welcomes them.
    fn complete(&mut self) {
        let is_silent = |peer: &Peer| matches!(peer.state, PeerState::Silent);
        if self.is_complete || self.peers[1..].iter().any(is_silent) {
            return;
        }
        self.is_complete = true;
        let own = (0, self.own.boot.clone(), self.own.host.clone());
        let others = self.peers.iter().enumerate().filter_map(|(at, peer)| match &peer.state {
            PeerState::Ready(agent) => {
                Some((at, agent.hello.boot.clone(), agent.hello.host.clone()))
            }
            _ => None,
        });
        let all: Vec<_> = std::iter::once(own).chain(others).collect();
        for (at, boot, host) in &all {
            // One host by its name and its running system: containers share the latter.
            let share = all.iter().filter(|other| other.1 == *boot && other.2 == *host).count();
            let namesakes = all.iter().filter(|other| other.2 == *host).count();
            let name = if namesakes > 1 { format!("{host}#{at}") } else { host.clone() };
            if let PeerState::Ready(agent) = &mut self.peers[*at].state {
                (agent.name, agent.share) = (HostName::new(&name), share);
                self.send(*at, &ToAgent::Welcome);
            } else if *at == 0 {
                let hello = self.own.clone();
                self.peers[0].state =
                    PeerState::Ready(Agent { hello, name: HostName::new(&name), share });
            }
        }
    }

    /// Sends the settings of new pools to the agents, once all of these are known.
    fn open_pools(&mut self) {
        let late = Instant::now();
        let due: Vec<u32> = self
            .opening
            .iter()
            .filter(|(_, opening)| {
                opening.reply.is_some()
                    && (opening.hosts.is_empty() && self.is_complete
                        || opening.deadline.is_some_and(|deadline| late >= deadline))
            })
            .map(|(run, _)| *run)
            .collect();
        for run in due {
            let Some(mut opening) = self.opening.remove(&run) else { continue };
            match self.send_settings(run, &mut opening) {
                Ok(()) => drop(self.opening.insert(run, opening)),
                Err(error) => self.fail_opening(run, opening, error),
            }
        }
        let ready = |opening: &Opening| {
            opening.own.is_some() && opening.waiting.is_empty() && opening.reply.is_some()
        };
        for (_, opening) in self.opening.iter_mut().filter(|(_, opening)| ready(opening)) {
            let (Some(reply), Some((own, local))) = (opening.reply.take(), opening.own) else {
                continue;
            };
            let workers = opening.hosts.iter().map(|host| host.slots.end).max().unwrap_or(local);
            let link = Arc::clone(&opening.link);
            let _ = reply.send(Ok(Opened { link, own, local, workers }));
        }
    }

    fn send_settings(&mut self, run: u32, opening: &mut Opening) -> Result<(), Error> {
        if opening.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let silent: Vec<String> = match self.is_complete {
                true => opening.waiting.iter().map(|peer| self.name_of(*peer)).collect(),
                false => (1..self.peers.len())
                    .filter(|at| matches!(self.peers[*at].state, PeerState::Silent))
                    .map(|at| format!("rank {at}"))
                    .collect(),
            };
            let reason = format!(
                "no answer within the start timeout from {}: does the program call procpool::init() in its first line there?",
                silent.join(", ")
            );
            return Err(Error::Hosts { reason });
        }
        let mut first = 0;
        let mut infos = Vec::new();
        for at in 0..self.peers.len() {
            let agent = match &self.peers[at].state {
                PeerState::Ready(agent) => agent.clone(),
                PeerState::Rejected { host, theirs } => {
                    return Err(Error::BuildMismatch {
                        host: HostName::new(host),
                        own: self.own.build(),
                        theirs: theirs.clone(),
                    });
                }
                _ => continue,
            };
            let cpus = (agent.hello.cpus as usize).min(MAX_WORKERS);
            let workers = opening.plan.workers_of(&agent.name, cpus / agent.share);
            let slots = first..first + workers;
            first = slots.end;
            infos.push(HostInfo {
                name: agent.name,
                slots: slots.clone(),
                cpus,
                memory: agent.hello.memory,
                lost: None,
            });
            if at == 0 {
                opening.own = Some((agent.name, workers));
                continue;
            }
            let settings = Settings {
                host: agent.name.to_string(),
                workers: workers as u32,
                first_slot: slots.start as u32,
                ..opening.plan.settings.clone()
            };
            self.send(at, &ToAgent::Open { run, settings: Box::new(settings) });
            opening.hosts.push(RemoteHost::new(at, agent.name, slots));
            opening.waiting.push(at);
        }
        let workers = infos[1..].iter().flat_map(|info| {
            info.slots.clone().map(|slot| WorkerInfo {
                slot,
                host: Some(info.name),
                pid: 0,
                state: WorkerState::Idle,
                tasks_done: 0,
                restarts: 0,
                memory: None,
                cpu: None,
            })
        });
        let workers = workers.collect();
        opening.link.with_status(|status| *status = Status { hosts: infos, workers });
        Ok(())
    }

    fn name_of(&self, peer: usize) -> String {
        match &self.peers[peer].state {
            PeerState::Ready(agent) => agent.name.to_string(),
            _ => format!("rank {peer}"),
        }
    }

    fn fail_opening(&mut self, run: u32, opening: Opening, error: Error) {
        for host in &opening.hosts {
            self.send(host.peer, &ToAgent::Close { run, kill: true });
        }
        if let Some(reply) = opening.reply {
            let _ = reply.send(Err(error));
        }
    }

    /// An agent has workers for a pool, or can't have any.
    fn opened(&mut self, peer: usize, run: u32, error: Option<String>) {
        let Some(opening) = self.opening.get_mut(&run) else { return };
        if !opening.waiting.contains(&peer) {
            return;
        }
        opening.waiting.retain(|other| *other != peer);
        if let Some(error) = error
            && let Some(opening) = self.opening.remove(&run)
        {
            let reason = format!("{}: {error}", self.name_of(peer));
            self.fail_opening(run, opening, Error::Hosts { reason });
        }
    }

    fn obey(&mut self, request: Request) {
        match request {
            Request::Open { plan, reply } => {
                let run = self.next_run;
                self.next_run += 1;
                let deadline = Instant::now().checked_add(plan.settings.start_timeout);
                let opening = Opening {
                    link: Arc::new(Link::new(run, self.handle.waker.clone())),
                    plan: *plan,
                    reply: Some(reply),
                    deadline,
                    hosts: Vec::new(),
                    waiting: Vec::new(),
                    own: None,
                    events: Vec::new(),
                };
                self.opening.insert(run, opening);
                self.complete();
            }
            Request::Attach { link, shared } => {
                let Some(opening) = self.opening.remove(&link.run) else {
                    // Unreachable: then it has no hosts.
                    return drop(Run::new(link, shared, Vec::new()));
                };
                let id = link.run;
                let mut run = Run::new(link, shared, opening.hosts);
                for (peer, events) in opening.events {
                    // An event of a wrong slot is the loss of its sender, like any other message.
                    if let Err(Nonsense(what)) = run.events(peer, events) {
                        run.lose(peer, what);
                    }
                }
                for (at, peer) in self.peers.iter().enumerate() {
                    if let PeerState::Lost(reason) = &peer.state {
                        run.lose(at, reason);
                    }
                }
                self.runs.insert(id, run);
            }
            Request::Abandon { run } => {
                if let Some(opening) = self.opening.remove(&run) {
                    for host in &opening.hosts {
                        self.send(host.peer, &ToAgent::Close { run, kill: true });
                    }
                }
            }
            Request::Leave { reply } => {
                let is_lost = |peer: &Peer| !matches!(peer.state, PeerState::Ready(_));
                let finalize = !self.peers[1..].iter().any(is_lost);
                for peer in 1..self.peers.len() {
                    self.send(peer, &ToAgent::Bye { finalize });
                }
                self.leaving = Some((Instant::now() + LEAVE_LIMIT, reply));
            }
        }
    }

    /// Sends heartbeats to the agents, and detects lost ones.
    fn beat(&mut self, now: Instant) {
        for peer in 1..self.peers.len() {
            if !matches!(self.peers[peer].state, PeerState::Ready(_)) {
                continue;
            }
            let silent = now.saturating_duration_since(self.peers[peer].heard);
            if silent > LOSS {
                self.lose(peer, format!("no sign of life for {} s", silent.as_secs()));
            } else {
                self.send(peer, &ToAgent::Beat);
            }
        }
    }

    fn lose(&mut self, peer: usize, reason: String) {
        if matches!(self.peers[peer].state, PeerState::Lost(_) | PeerState::Left) {
            return;
        }
        self.engine.forget(peer);
        if matches!(self.peers[peer].state, PeerState::Rejected { .. }) {
            return;
        }
        for run in self.runs.values_mut() {
            run.lose(peer, &reason);
        }
        for opening in self.opening.values_mut() {
            opening.waiting.retain(|other| *other != peer);
        }
        self.peers[peer].state = PeerState::Lost(reason);
        self.complete();
    }

    /// Whether the program ends and the agents have said goodbye, or won't.
    fn has_left(&mut self, now: Instant) -> bool {
        let Some((limit, reply)) = &self.leaving else { return false };
        let is_there = |peer: &Peer| matches!(peer.state, PeerState::Ready(_));
        if now < *limit && self.peers[1..].iter().any(is_there) {
            return false;
        }
        let is_left = |peer: &Peer| matches!(peer.state, PeerState::Left);
        let remaining: Vec<usize> =
            (1..self.peers.len()).filter(|at| !is_left(&self.peers[*at])).collect();
        // Without all peers, the engine leaves without waiting for any.
        remaining.into_iter().for_each(|peer| self.engine.forget(peer));
        self.engine.leave();
        let _ = reply.send(());
        true
    }
}
