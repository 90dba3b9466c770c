//! One thread per slot: performs its worker's handshake, sends it chunks, and waits for its replies. A worker
//! that hangs blocks only its own driver.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use procpool_worker::seed;
#[cfg(feature = "sandbox")]
use procpool_worker::{
    error::TransportError,
    protocol::{Reply, Request},
};

use crate::error::StartError;
use crate::pool::call::job::Job;
use crate::pool::config::Initializer;
use crate::pool::drive::chunk::Chunk;
use crate::pool::drive::exchange;
use crate::pool::options::TaskOptions;
#[cfg(feature = "sandbox")]
use crate::pool::process::worker::died;
use crate::pool::process::worker::{KillReason, PendingWorker, Worker};
use crate::pool::schedule::batch::Batch;
use crate::pool::schedule::cost::CostEstimate;
use crate::pool::schedule::counters::Counters;
use crate::pool::schedule::state::{PoolState, Step};

/// Runs a driver's thread.
pub(crate) fn drive(shared: &PoolState, slot: usize) {
    loop {
        match shared.next_step(slot) {
            Step::Handshake(pending) => match handshake(shared, slot, pending) {
                Ok(worker) => shared.ready(slot, worker),
                Err(cause) => shared.start_failed(slot, cause, true),
            },
            Step::Run { worker, ticket } => shared.run(slot, worker, ticket),
            Step::Retire(worker) => worker.retire(),
            Step::Quit(worker) => {
                if let Some(worker) = worker {
                    worker.retire();
                }
                break;
            }
        }
    }
    shared.driver_ended();
}

/// Performs the handshake of a [`Process`](crate::Process), which has no driver, on this thread.
pub(crate) fn start_one(shared: &PoolState) -> Result<(), StartError> {
    let pending = shared.wait_pending_worker()?;
    match handshake(shared, 0, pending) {
        Ok(worker) => {
            shared.ready(0, worker);
            Ok(())
        }
        Err(cause) => {
            shared.start_failed(0, cause.clone(), true);
            Err(cause)
        }
    }
}

/// Turns a started process into a ready worker: handshake, then initializer.
fn handshake(
    shared: &PoolState,
    slot: usize,
    pending: PendingWorker,
) -> Result<Worker, StartError> {
    let mut worker =
        pending.handshake(shared.config.setup(slot), &shared.regions, &shared.config.observers)?;
    worker.process.set_connected();
    #[cfg(feature = "sandbox")]
    confine(shared, &mut worker, false)?;
    shared.handshake_done();
    if let Some(initializer) = &shared.config.initializer {
        initialize(shared, slot, &mut worker, initializer)?;
    }
    #[cfg(feature = "sandbox")]
    confine(shared, &mut worker, true)?;
    Ok(worker)
}

/// Confines a worker, if it is time.
#[cfg(feature = "sandbox")]
fn confine(
    shared: &PoolState,
    worker: &mut Worker,
    after_initializer: bool,
) -> Result<(), StartError> {
    let sandbox = shared.config.sandbox.as_ref();
    let Some(to) = sandbox.and_then(|sandbox| sandbox.due(after_initializer)) else {
        return Ok(());
    };
    let answer = worker.send(&Request::Confine(to.clone())).and_then(|()| worker.recv_reply());
    let error = match answer {
        Ok(Reply::Confined(Ok(()))) => return Ok(()),
        Ok(Reply::Confined(Err(why))) => Some(StartError::Sandbox(why)),
        Ok(other) => Some(StartError::HandshakeMismatch(format!("it answers {other:?}"))),
        Err(TransportError::PeerGone) => None,
        Err(error) => Some(StartError::HandshakeMismatch(error.to_string())),
    };
    worker.process.child.kill();
    Err(error.unwrap_or_else(|| died(&worker.process)))
}

/// Runs the initializer.
fn initialize(
    shared: &PoolState,
    slot: usize,
    worker: &mut Worker,
    initializer: &Initializer,
) -> Result<(), StartError> {
    // The initializer runs like any task, so it fails like one; but no other worker may steal it.
    let seed = seed::finalize(seed::advance(shared.config.seed, slot as u64));
    let (call, cost) = (Ok(initializer.call), Arc::new(CostEstimate::default()));
    let job = Job::new(call, TaskOptions::default(), cost, 0, None, seed);
    job.reserve(1);
    let Initializer { argument, attachments, width, .. } = initializer;
    let batch = Batch::new(Arc::clone(&job), 0, 1, *width, argument, attachments.clone());
    let running = &shared.slots[slot].running;
    *running.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(Chunk::new(worker, VecDeque::from([batch.for_slot(0, slot)])));
    // It is not counted as a task.
    let counters = Counters::new(shared.slots.count());
    let limit = shared.inline_limit;
    if let Err(loss) = exchange::run(worker, running, limit, &counters, None, None) {
        return Err(match worker.process.kill_reason() {
            Some(KillReason::StartTimedOut(limit)) => StartError::TimedOut(limit),
            _ if shared.is_terminated() => StartError::Terminated,
            _ => StartError::Initializer(format!("the worker {}", loss.cause(&worker.process))),
        });
    }
    match job.take_delivery().and_then(|mut delivery| delivery.next::<()>(job.offset)) {
        Some(outcome) => match outcome.result {
            Ok(()) => {
                worker.tasks = 0;
                Ok(())
            }
            Err(error) => {
                worker.process.child.kill();
                Err(StartError::Initializer(error.kind().to_string()))
            }
        },
        None => Err(StartError::Initializer("it returned no result".to_owned())),
    }
}
