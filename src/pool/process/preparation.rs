//! What is prepared for a worker before its process exists: its channels, its lane, its environment.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use procpool_worker::control::Control;
use procpool_worker::error::TransportError;
use procpool_worker::lane::{LANE_BYTES, ParentLane};
use procpool_worker::protocol::SpawnToken;
use procpool_worker::region::Region;
use procpool_worker::transport::{self, FrameSender};

use crate::os::process::{CaptureFile, Child, OutputMode};
use crate::pool::config::Config;
use crate::pool::observe::callbacks::contain;
use crate::pool::process::worker::{PendingWorker, Process};

/// File descriptors that a worker uses in this process: for frames, its control socket, its pidfd, and
/// captured output.
pub(crate) const FDS_PER_WORKER: u64 = 4;

/// Memory in bytes that a lane gets before its worker starts: for the words, and for the results of a few tasks.
/// The worker gets the rest when it first fills it. All of it at once would take 75 µs of each start, and 25 µs of
/// each end.
const LANE_MEMORY: usize = 16 << 10;

/// A worker's channels and settings, before its process exists.
#[derive(Debug)]
pub(super) struct Preparation {
    pub(super) slot: usize,
    pub(super) generation: u64,
    /// Identifies this start.
    pub(super) nonce: u64,
    control: Control,
    /// The worker's end of the control socket, until it is passed.
    pub(super) theirs: Option<OwnedFd>,
    lane: ParentLane,
    requests: FrameSender,
    pub(super) liveness_pipe: OwnedFd,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) title: String,
    pub(super) capture: Option<CaptureFile>,
}

impl Preparation {
    /// Prepares a worker. The error's text has a remedy.
    pub(super) fn new(
        config: &Config,
        slot: usize,
        generation: u64,
        nonce: u64,
    ) -> Result<Self, String> {
        let (ours, theirs) = Control::pair().map_err(explain)?;
        let control = Control::new(ours, nonce);
        let (requests, frames) = transport::frame_channel().map_err(|error| match error {
            TransportError::Io(error) => explain(error),
            error => error.to_string(),
        })?;
        let mut lane = Region::new(LANE_BYTES, LANE_MEMORY).map_err(explain)?;
        let liveness_pipe = config.launch.open_liveness_pipe().map_err(explain)?;
        let start = lane.descriptor().into_iter();
        let passed: Vec<_> =
            std::iter::once(liveness_pipe.as_fd()).chain(start).chain([frames.as_fd()]).collect();
        control.send(&[], &passed).map_err(|error| error.to_string())?;
        lane.close_descriptor();
        drop(frames);
        let lane = ParentLane::new(lane).map_err(|_| "the lane has a wrong size".to_owned())?;
        let env = || config.env_per_worker.iter().flat_map(|env| env(slot)).collect::<Vec<_>>();
        let env = contain(env)
            .map_err(|message| format!("the closure of `env_per_worker` panicked: {message}"))?;
        let title = config.title(slot);
        let capture = config.launch.output == OutputMode::Capture;
        let capture = capture.then(CaptureFile::new).transpose().map_err(explain)?;
        let theirs = Some(theirs);
        Ok(Self {
            slot,
            generation,
            nonce,
            control,
            theirs,
            lane,
            requests,
            liveness_pipe,
            env,
            title,
            capture,
        })
    }

    /// Starts the process by executing this program.
    pub(super) fn execute(&mut self, config: &Config) -> Result<Child, String> {
        let token =
            SpawnToken { nonce: self.nonce, parent: std::process::id(), is_template: false };
        let theirs = self.theirs.take().ok_or("its control socket was passed before")?;
        let file = self.capture.as_ref().map(CaptureFile::file);
        let env = std::mem::take(&mut self.env);
        Child::start(&config.launch, env, &self.title, token, theirs, &self.liveness_pipe, file)
            .map_err(explain)
    }

    /// Returns the worker, whose process has started.
    pub(super) fn into_pending(self, child: Child, config: &Config) -> PendingWorker {
        let Self { slot, generation, control, lane, requests, capture, .. } = self;
        let (host, grace) = (config.observers.host, config.kill_grace);
        let process = Process::new(slot, host, generation, child, control, capture, grace);
        PendingWorker { process, lane: Arc::new(lane), requests }
    }
}

/// Adds the remedy to the error of a system call.
pub(super) fn explain(error: std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE) => format!(
            "{error}: this process has reached its limit of open files (`ulimit -n`), of which a worker needs {FDS_PER_WORKER}"
        ),
        Some(libc::ENFILE) => {
            format!("{error}: the system has reached its limit of open files")
        }
        Some(libc::EAGAIN) => {
            format!("{error}: this user has reached its limit of processes (`ulimit -u`)")
        }
        _ => error.to_string(),
    }
}
