//! The threads that wait for the pool. They turn reports into rows, and hear nothing of terminals
//! or signals.
//!
//! The pool reads its input inside of `next`, on the thread that asks for a result. Where inputs
//! are at hand, that's all there is to it: one thread, one stream. But where they come from a pipe,
//! that thread would sit in a read while results are ready to be shown. So there the inputs are
//! read by a thread of their own, and the pool is given what has come so far, a burst: a stream
//! that ends when there is nothing more at the moment. Bursts overlap, one thread each, so that a
//! slow task in one doesn't keep the inputs after it waiting. With as many of them as there are
//! workers, each has a task that is running whenever none can be begun.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::exit::Exit;
use super::inputs::{Feed, Inputs};
use super::jobs::{JobMaker, Work};
use super::mailbox::{Mailbox, Taken};
use super::pending::{InFlight, PendingJob};
use super::row::Row;
use super::spill::Live;
use super::top::Board;
use crate::tasks::Input;
use procpool::{Pool, TaskOptions};

/// What happens in a run.
pub(super) enum Event {
    /// A job ended, well or not.
    Row(Box<Row>),
    /// A job that runs prints a lot to standard output.
    Prints(Live),
    /// Somebody wants it to end, in this way.
    Interrupted(Exit),
}

/// Events on their way to whoever shows them. It is closed at the end of all collectors.
pub(super) type Events = Mailbox<Event>;

/// How many rows may wait to be shown, and how many inputs that were read to be sent. Enough that
/// neither side stops for the other all the time; few enough that a slow one slows the run down and
/// doesn't fill the memory.
pub(super) const WAITING: usize = 1024;

/// How many inputs of a pipe may be read whose results are not shown yet, for behind a slow one
/// results pile up that must be shown after it.
const AHEAD: usize = 16 * 1024;

/// How long a burst waits for more inputs, in all, before it ends. A new one costs some ten
/// microseconds, which would count if there were one for each line of a busy pipe; and the eye
/// doesn't see results come later by this.
const PATIENCE: Duration = Duration::from_millis(2);

/// What all the threads need.
pub(super) struct Collector<W: Work> {
    pool: Pool,
    task: fn(W::Job) -> W::Answer,
    events: Arc<ClosedAtEnd>,
    /// Who shows what is under way, if anybody does.
    board: Option<Arc<Board>>,
}

/// The threads of a run.
#[derive(Default)]
pub(super) struct Threads {
    collectors: Vec<JoinHandle<()>>,
    /// Inputs that were read from a pipe, for the collectors.
    read: Option<Arc<Mailbox<Input>>>,
    /// One for each input of a pipe that may be read; returned when its result is shown.
    tickets: Option<Arc<Mailbox<()>>>,
}

impl<W: Work> Clone for Collector<W> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            task: self.task,
            events: Arc::clone(&self.events),
            board: self.board.clone(),
        }
    }
}

impl<W: Work> Collector<W> {
    pub(super) fn new(
        pool: Pool,
        task: fn(W::Job) -> W::Answer,
        events: Arc<Events>,
        board: Option<Arc<Board>>,
    ) -> Self {
        Self { pool, task, events: Arc::new(ClosedAtEnd(events)), board }
    }

    /// Collects the results of inputs that are at hand.
    pub(super) fn at_hand(
        self,
        inputs: Inputs,
        jobs: JobMaker<W>,
        unordered: bool,
    ) -> Result<Threads> {
        let collect = move || {
            let mut jobs = jobs;
            self.run(0, inputs.filter_map(move |input| jobs.make(input)), unordered);
        };
        Ok(Threads { collectors: vec![spawn("collector", collect)?], ..Threads::default() })
    }

    /// Collects the results of inputs that come when they come. The rows come as the tasks end.
    pub(super) fn live(self, inputs: Inputs, jobs: JobMaker<W>, feed: Feed) -> Result<Threads> {
        let tickets = Arc::new(Mailbox::new(AHEAD));
        for _ in 0..AHEAD {
            tickets.put_at_once(());
        }
        let read = Arc::new(Mailbox::new(WAITING));
        spawn("reader", {
            let reader = Reader { tickets: Arc::clone(&tickets), read: Arc::clone(&read) };
            move || reader.run(inputs) // not waited for: it may sit in a read that never ends
        })?;
        let mut threads = Threads {
            collectors: Vec::new(),
            read: Some(Arc::clone(&read)),
            tickets: Some(Arc::clone(&tickets)),
        };
        let queue = Queue { read, taken: VecDeque::new(), tickets, jobs, feed };
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..self.pool.workers().len() {
            let (collector, queue) = (self.clone(), Arc::clone(&queue));
            threads.collectors.push(spawn("collector", move || {
                while let Some((first_id, burst)) = Burst::wait(&queue) {
                    if !collector.run(first_id, burst, true) {
                        return;
                    }
                }
            })?);
        }
        Ok(threads)
    }

    /// Runs these jobs, whose positions count from `first_id`, to the end. False if nobody listens
    /// any more; then what was left of them is cancelled.
    fn run(
        &self,
        first_id: u64,
        jobs: impl Iterator<Item = (W::Job, PendingJob)>,
        unordered: bool,
    ) -> bool {
        let in_flight = InFlight::default();
        let board = self.board.clone();
        let jobs = (first_id..).zip(jobs).map(move |(id, (job, kept))| {
            if let Some(board) = &board {
                board.begin(id, &kept.input);
            }
            (job, kept)
        });
        let jobs = in_flight.keeping(jobs);
        // Events tell of positions in this stream; from its label listeners know those in the run.
        let pool = self.pool.with_options(TaskOptions::new().label(first_id.to_string()));
        let send = |mut report: procpool::Report<_>| {
            let kept = in_flight.take(report.id);
            report.id += first_id;
            self.events.0.put(Event::Row(Box::new(W::row(report, kept))))
        };
        if unordered {
            pool.imap_unordered(self.task, jobs).reports().all(send)
        } else {
            pool.imap(self.task, jobs).reports().all(send)
        }
    }
}

impl Threads {
    /// A result was shown, so there is room for one more.
    pub(super) fn shown(&self) {
        if let Some(tickets) = &self.tickets {
            tickets.put_at_once(());
        }
    }

    /// Wakes those that wait for inputs, of which there will be no more.
    pub(super) fn end_wait(&self) {
        if let Some(read) = &self.read {
            read.close();
        }
    }

    /// Waits for the end of threads that have sent all they had.
    pub(super) fn join(self) -> Result<()> {
        for thread in self.collectors {
            if thread.join().is_err() {
                anyhow::bail!("a thread that collects results panicked; what is shown is not all");
            }
        }
        Ok(())
    }
}

/// Reads the inputs of a pipe.
struct Reader {
    tickets: Arc<Mailbox<()>>,
    read: Arc<Mailbox<Input>>,
}

impl Reader {
    fn run(&self, inputs: Inputs) {
        let mut tickets = VecDeque::new();
        for input in inputs {
            if tickets.is_empty() {
                self.tickets.take(&mut tickets, None);
            }
            tickets.pop_front();
            if !self.read.put(input) {
                return;
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.read.close(); // at the end of the inputs, or of the thread
    }
}

/// Inputs that were read from a pipe. Whoever has it locked makes jobs of them; so the inputs of a
/// burst follow each other.
struct Queue<W> {
    read: Arc<Mailbox<Input>>,
    /// Those of them that were taken from the mailbox together.
    taken: VecDeque<Input>,
    tickets: Arc<Mailbox<()>>,
    jobs: JobMaker<W>,
    feed: Feed,
}

impl<W> Queue<W> {
    /// Whether there is a next input within that time, or ever.
    fn wait(&mut self, patience: Option<Duration>) -> bool {
        let some =
            !self.taken.is_empty() || self.read.take(&mut self.taken, patience) == Taken::Some;
        // What was read and is not sent yet is not begun.
        some && !self.feed.stopped()
    }
}

/// The jobs that can be had without much waiting.
struct Burst<'a, W> {
    patience: Duration,
    /// Let go at the end, for the next burst.
    queue: Option<MutexGuard<'a, Queue<W>>>,
}

impl<'a, W: Work> Burst<'a, W> {
    /// Waits for an input, and gives its position and the burst that begins with it; none at the
    /// end of inputs.
    fn wait(queue: &'a Mutex<Queue<W>>) -> Option<(u64, Self)> {
        // What panicked elsewhere did so between two jobs, or the thread that joins it will say so.
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let there_is_one = queue.wait(None);
        there_is_one
            .then(|| (queue.jobs.next_id(), Self { patience: PATIENCE, queue: Some(queue) }))
    }
}

impl<W: Work> Iterator for Burst<'_, W> {
    type Item = (W::Job, PendingJob);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let queue = self.queue.as_mut()?;
            let start = queue.taken.is_empty().then(Instant::now);
            if !queue.wait(Some(self.patience)) {
                self.queue = None;
                return None;
            }
            if let Some(start) = start {
                self.patience = self.patience.saturating_sub(start.elapsed());
            }
            let input = queue.taken.pop_front()?;
            let made = queue.jobs.make(input);
            if made.is_some() {
                return made;
            }
            // One that is left out is never shown: there is room for another.
            queue.tickets.put_at_once(());
        }
    }
}

/// Closes the mailbox when the last collector lets go of it, even by a panic: the listener must not
/// wait for ever.
struct ClosedAtEnd(Arc<Events>);

impl Drop for ClosedAtEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(run).context("failed to start a thread")
}
