//! The supervisor's side of a pool's template process: starts it, sends it the preload function, and asks it for
//! workers. The other side is `template_process` in `procpool-worker`.
//!
//! Nothing here blocks: requests are packets, and the supervisor's poll tells of replies. A template that does
//! not answer in time is killed, and what was asked of it fails like any start.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use procpool_worker::codec;
use procpool_worker::control::Control;
use procpool_worker::error::TransportError;
use procpool_worker::protocol::{Handshake, MAX_ATTACHED, SpawnToken};
use procpool_worker::region::Region;
use procpool_worker::template::{MAX_FORK, TemplateReply, TemplateRequest};
use rustix::process::Signal;

use super::preparation::{Preparation, explain};
use crate::error::{DeathCause, StartError};
use crate::os::process::{CaptureFile, Child, OutputMode};
use crate::pool::config::{Config, Preload};
use crate::pool::process::worker::check_handshake;

/// How long a template may take to fork a worker. A fork copies the page tables, which takes about 10 ms for
/// each GiB.
const FORK_LIMIT: Duration = Duration::from_secs(5);

/// Forks that are asked for at once. More of the longest requests would fill the socket's buffer, and a send
/// would block.
const MAX_ASKED: usize = 16;

/// A template process, and the workers that it is to fork.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) child: Child,
    control: Control,
    stage: Stage,
    /// When the stage or the oldest fork must have ended.
    deadline: Option<Instant>,
    /// Workers that were asked for, oldest first; the first `asked` of them have been sent.
    waiting: VecDeque<Preparation>,
    asked: usize,
    /// Whether it has forked a worker.
    has_forked: bool,
    /// Takes the output of the preload function, where output is captured.
    _capture: Option<CaptureFile>,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// It has not sent its handshake.
    Connecting,
    /// It runs the preload function.
    Preloading,
    /// It forks workers.
    Ready,
    /// It was killed; the reason is what its requests fail with.
    Ending(StartError),
}

/// What a template has answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// It has forked this worker.
    Forked(Preparation, Child),
    /// It could not fork this worker.
    Refused(Preparation, String),
}

/// What is left of a template that has ended.
#[derive(Debug)]
pub(super) struct Remains {
    pub(super) pid: u32,
    pub(super) cause: DeathCause,
    /// Whether it had been ready, and was not killed by the pool.
    pub(super) was_ready: bool,
    /// Whether it had forked a worker.
    pub(super) has_forked: bool,
    /// The workers that it did not fork, and why.
    pub(super) failed: Vec<(Preparation, StartError)>,
}

impl Template {
    /// Starts the process. The calling thread must outlive it.
    pub(super) fn start(config: &Config, nonce: u64) -> Result<Self, String> {
        let token = SpawnToken { nonce, parent: std::process::id(), is_template: true };
        let (ours, theirs) = Control::pair().map_err(explain)?;
        let control = Control::new(ours, nonce);
        let liveness_pipe = config.launch.open_liveness_pipe().map_err(explain)?;
        control.send(&[], &[liveness_pipe.as_fd()]).map_err(|error| error.to_string())?;
        let capture = config.launch.output == OutputMode::Capture;
        let capture = capture.then(CaptureFile::new).transpose().map_err(explain)?;
        let file = capture.as_ref().map(CaptureFile::file);
        let title = format!("{}/template", config.name);
        let child = Child::start(&config.launch, [], &title, token, theirs, &liveness_pipe, file)
            .map_err(explain)?;
        Ok(Self {
            child,
            control,
            stage: Stage::Connecting,
            deadline: Instant::now().checked_add(config.start_timeout),
            waiting: VecDeque::new(),
            asked: 0,
            has_forked: false,
            _capture: capture,
        })
    }

    /// Returns the socket, which is readable when there are answers.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Asks for a worker.
    pub(super) fn ask(&mut self, preparation: Preparation) {
        self.waiting.push_back(preparation);
        self.send_waiting();
    }

    /// Sends requests for the workers that are waiting.
    fn send_waiting(&mut self) {
        while self.stage == Stage::Ready && self.asked < self.waiting.len().min(MAX_ASKED) {
            let preparation = &self.waiting[self.asked];
            let (packet, mut descriptors) = (preparation.request(), Vec::new());
            descriptors.extend(preparation.theirs.as_ref().map(AsFd::as_fd));
            descriptors.extend(preparation.capture.as_ref().map(|capture| capture.file().as_fd()));
            if let Err(error) = self.control.send(&packet, &descriptors) {
                return self.fail(StartError::Spawn(format!("its template process: {error}")));
            }
            // The worker alone holds its end, so that its death is noticed.
            self.waiting[self.asked].theirs = None;
            self.asked += 1;
            self.deadline.get_or_insert_with(|| Instant::now() + FORK_LIMIT);
        }
    }

    /// Reads the answers that have arrived.
    pub(super) fn answers(&mut self, config: &Config) -> Vec<Answer> {
        let mut answers = Vec::new();
        while !matches!(self.stage, Stage::Ending(_)) && self.control.has_packet() {
            let packet = match self.control.recv(false) {
                Ok(packet) => packet,
                // Its end is noticed by its pidfd. A process that has closed its socket is of no use, and
                // the socket would wake the supervisor for ever.
                Err(TransportError::PeerGone) => {
                    self.child.signal_group(Signal::KILL);
                    break;
                }
                Err(error) => {
                    self.fail(StartError::HandshakeMismatch(error.to_string()));
                    break;
                }
            };
            match codec::decode(&packet.bytes) {
                Ok(reply) => answers.extend(self.accept(reply, config)),
                Err(error) => self.fail(StartError::HandshakeMismatch(error.to_string())),
            }
        }
        self.send_waiting();
        answers
    }

    fn accept(&mut self, reply: TemplateReply, config: &Config) -> Option<Answer> {
        match (reply, &self.stage) {
            (TemplateReply::Handshake(handshake), Stage::Connecting) => {
                self.preload(&handshake, config.preload.as_ref());
                None
            }
            (TemplateReply::Preloaded(Ok(())), Stage::Preloading) => {
                (self.stage, self.deadline) = (Stage::Ready, None);
                None
            }
            (TemplateReply::Preloaded(Err(why)), Stage::Preloading) => {
                self.fail(StartError::Preload(why));
                None
            }
            (TemplateReply::Forked { nonce, pid }, Stage::Ready)
                if self.asked > 0 && self.waiting[0].nonce == nonce =>
            {
                let preparation = self.waiting.pop_front()?;
                self.asked -= 1;
                self.deadline = (self.asked > 0).then(|| Instant::now() + FORK_LIMIT);
                Some(match pid.map_err(std::io::Error::from_raw_os_error) {
                    Ok(pid) => match Child::adopt(pid, &preparation.liveness_pipe) {
                        Ok(child) => {
                            self.has_forked = true;
                            Answer::Forked(preparation, child)
                        }
                        Err(error) => Answer::Refused(preparation, error.to_string()),
                    },
                    Err(error) => Answer::Refused(preparation, explain_fork(&error)),
                })
            }
            (other, _) => {
                let text = format!("its template process sent {other:?}");
                self.fail(StartError::HandshakeMismatch(text));
                None
            }
        }
    }

    /// Checks the handshake and sends the preload function.
    fn preload(&mut self, handshake: &Handshake, preload: Option<&Preload>) {
        if let Err(what) = check_handshake(handshake, self.child.pid()) {
            return self.fail(StartError::HandshakeMismatch(what));
        }
        match self.send_preload(preload) {
            Ok(()) => self.stage = Stage::Preloading,
            Err(error) => self.fail(StartError::Spawn(format!("its template process: {error}"))),
        }
    }

    fn send_preload(&self, preload: Option<&Preload>) -> Result<(), TransportError> {
        let send = |request: &TemplateRequest, descriptors: &[BorrowedFd<'_>]| {
            let packet = codec::encode_to_vec(request)
                .map_err(|error| TransportError::Malformed(error.to_string()))?;
            self.control.send(&packet, descriptors)
        };
        let Some(Preload { call, argument, attachments }) = preload else {
            return send(&TemplateRequest::Preload { call: None, len: 0 }, &[]);
        };
        for files in attachments.files().chunks(MAX_ATTACHED) {
            let (names, descriptors): (Vec<_>, Vec<_>) = files.iter().copied().unzip();
            send(&TemplateRequest::Attached(names), &descriptors)?;
        }
        let region = (!argument.is_empty()).then(|| Region::copy_of(argument)).transpose()?;
        let descriptor: Vec<_> = region.iter().filter_map(Region::descriptor).collect();
        let len = argument.len() as u64;
        send(&TemplateRequest::Preload { call: Some(*call), len }, &descriptor)
    }

    /// Kills the process if it takes too long. Returns when to check again.
    pub(super) fn check_deadline(&mut self, config: &Config) -> Option<Instant> {
        let deadline = self.deadline?;
        if deadline > Instant::now() {
            return Some(deadline);
        }
        self.fail(match self.stage {
            Stage::Ready => {
                let text = format!("its template process did not fork it within {FORK_LIMIT:?}");
                StartError::Spawn(text)
            }
            _ => StartError::TimedOut(config.start_timeout),
        });
        None
    }

    /// Kills the process. What was asked of it fails for this reason.
    pub(super) fn fail(&mut self, reason: StartError) {
        if !matches!(self.stage, Stage::Ending(_)) {
            self.stage = Stage::Ending(reason);
        }
        self.deadline = None;
        // The group: a worker that it has forked, and that is not known here, must end too.
        self.child.signal_group(Signal::KILL);
    }

    /// Reaps the process, which has ended.
    pub(super) fn reap(mut self) -> Remains {
        let cause = self.child.reap();
        let (reason, was_ready) = match self.stage {
            Stage::Ending(reason) => (reason, false),
            Stage::Ready => (StartError::Spawn(format!("its template process {cause}")), true),
            Stage::Preloading => (StartError::Preload(format!("its process {cause}")), false),
            Stage::Connecting => (StartError::Died(cause), false),
        };
        let failed = self.waiting.drain(..).map(|preparation| (preparation, reason.clone()));
        let failed = failed.collect();
        Remains { pid: self.child.pid(), cause, was_ready, has_forked: self.has_forked, failed }
    }
}

/// Adds the remedy to a refused fork.
fn explain_fork(error: &std::io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(libc::EAGAIN) => ": this user has reached its limit of processes (`ulimit -u`)",
        Some(libc::ENOMEM) => ": preload less, or use fewer workers",
        Some(libc::EINVAL) => {
            ": the kernel lacks CONFIG_CHECKPOINT_RESTORE: use `StartMethod::Spawn`, and an initializer in place of the preload function"
        }
        Some(libc::ENOSYS | libc::EPERM) => {
            ": if a seccomp profile or a security module refuses clone3, allow it there, or use `StartMethod::Spawn`"
        }
        _ => "",
    };
    format!("the template process failed to fork it: {error}{remedy}")
}

impl Preparation {
    /// Returns the request for the worker. Its size was checked when it was prepared.
    fn request(&self) -> Vec<u8> {
        let env = self.env.iter().cloned();
        let env = env.map(|(name, value)| (name.into_vec(), value.into_vec())).collect();
        let title = self.title.clone();
        codec::encode_to_vec(&TemplateRequest::Fork { nonce: self.nonce, title, env })
            .unwrap_or_default()
    }

    /// Checks that the request fits in a packet.
    pub(super) fn check_size(&self) -> Result<(), String> {
        let env = self.env.iter().map(|(name, value)| name.len() + value.len() + 16);
        match self.title.len() + env.sum::<usize>() {
            bytes if bytes > MAX_FORK => Err(format!(
                "its name and the variables of `env_per_worker` take {bytes} bytes; from a template process they may take {MAX_FORK}: set variables that all workers share by `env`"
            )),
            _ => Ok(()),
        }
    }
}
