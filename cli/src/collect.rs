//! The threads that wait for the pool. They turn reports into rows and know nothing of terminals or
//! signals.
//!
//! The pool reads its input inside of `next`, on the thread that asks for a result. Where inputs
//! are available at once, one thread with one stream is enough. Where they come from a pipe, that
//! thread would block in a read while results are ready. So a reader thread reads the pipe, and the
//! pool receives what has arrived as a burst: a stream that ends when no input is available. Bursts
//! overlap, one thread each, so that a slow task in one does not hold back later inputs. There are
//! as many burst threads as workers: if none is free, every worker is busy.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::batch_queue::{BatchQueue, RecvOutcome};
use super::control::Change;
use super::exit::Exit;
use super::inputs::{Feed, Inputs};
use super::jobs::{JobMaker, Work};
use super::pending::{InFlight, PendingJob};
use super::record::LostHost;
use super::row::Row;
use super::spill::LiveOutput;
use super::top::Board;
use crate::tasks::Input;
use procpool::{Pool, TaskOptions};

/// An event of a run.
pub(super) enum Event {
    /// A job has ended, with success or not.
    Row(Box<Row>),
    /// A running job prints a lot to standard output.
    Live(LiveOutput),
    /// A signal asks the run to end with this exit code.
    Interrupted(Exit),
    /// The user changes the run.
    Changed(Change),
    /// The time of the run is over.
    DeadlinePassed,
    /// A host is lost.
    HostLost(LostHost),
}

/// Events on their way to the event loop. The queue closes when all collectors have ended.
pub(super) type Events = BatchQueue<Event>;

/// Capacity of the queues: rows that wait to be shown, and inputs that wait to be sent. Large
/// enough that neither side blocks all the time; small enough that a slow consumer slows the run
/// down instead of filling memory.
pub(super) const WAITING: usize = 1024;

/// Inputs of a pipe that may be read before their results are shown: behind a slow one, results
/// pile up that must be shown after it.
pub(super) const AHEAD: usize = 16 * 1024;

/// How long a burst waits for more inputs, in total. A new burst costs about 10 µs, too much for
/// each line of a busy pipe. A person does not see results come later by this.
const BATCHING_DELAY: Duration = Duration::from_millis(2);

/// What every collector thread needs.
pub(super) struct Collector<W: Work> {
    pool: Pool,
    task: fn(W::Job) -> W::Answer,
    events: Arc<CloseOnDrop>,
    /// The live table's data, if it is shown.
    board: Option<Arc<Board>>,
}

/// The threads of a run.
#[derive(Default)]
pub(super) struct Threads {
    collectors: Vec<JoinHandle<()>>,
    /// Starts one more of them, where each serves one worker.
    start: Option<StartCollector>,
    /// Inputs from the pipe, for the collectors.
    read: Option<Arc<BatchQueue<Input>>>,
    /// One credit per input that may still be read from the pipe. Returned when the result is
    /// shown.
    credits: Option<Arc<BatchQueue<()>>>,
}

/// Starts a collector thread. Returns none if the collectors have ended.
type StartCollector = Box<dyn Fn() -> Result<Option<JoinHandle<()>>>>;

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
        Self { pool, task, events: Arc::new(CloseOnDrop(events)), board }
    }

    /// Starts collecting results of inputs that are available at once.
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

    /// Starts collecting results of inputs from a pipe, of which at most `ahead` are read before their results
    /// are shown. Rows arrive as tasks finish.
    pub(super) fn live(
        self,
        inputs: Inputs,
        jobs: JobMaker<W>,
        feed: Feed,
        ahead: usize,
    ) -> Result<Threads> {
        let credits = Arc::new(BatchQueue::new(ahead));
        for _ in 0..ahead {
            credits.send_over_capacity(());
        }
        let read = Arc::new(BatchQueue::new(WAITING));
        spawn("reader", {
            let reader = Reader { credits: Arc::clone(&credits), read: Arc::clone(&read) };
            move || reader.run(inputs) // not waited for: it may sit in a read that never ends
        })?;
        let (known_read, known_credits) = (Arc::clone(&read), Arc::clone(&credits));
        let queue = Queue { read, taken: VecDeque::new(), credits, jobs, feed };
        let queue = Arc::new(Mutex::new(queue));
        let workers = self.pool.workers().len();
        // Not a collector itself: the events end with the last of them.
        let (pool, task, board) = (self.pool.clone(), self.task, self.board.clone());
        let events = Arc::downgrade(&self.events);
        let start = move || {
            let Some(events) = Weak::upgrade(&events) else { return Ok(None) };
            let collector = Self { pool: pool.clone(), task, events, board: board.clone() };
            let queue = Arc::clone(&queue);
            let collect = move || {
                while let Some((first_id, burst)) = Burst::wait(&queue) {
                    if !collector.run(first_id, burst, true) {
                        return;
                    }
                }
            };
            spawn("collector", collect).map(Some)
        };
        let mut threads = Threads {
            collectors: Vec::new(),
            start: Some(Box::new(start)),
            read: Some(known_read),
            credits: Some(known_credits),
        };
        threads.serve(workers)?;
        Ok(threads)
    }

    /// Runs these jobs, whose ids count from `first_id`. Returns false if the queue was closed; the
    /// remaining jobs are then cancelled.
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
        // Events have the position in this stream. The label tells listeners the position in the
        // run.
        let pool = self.pool.with_options(TaskOptions::new().label(first_id.to_string()));
        let send = |mut report: procpool::Report<_>| {
            let kept = in_flight.take(report.id);
            report.id += first_id;
            self.events.0.send(Event::Row(Box::new(W::row(report, kept))))
        };
        if unordered {
            pool.imap_unordered(self.task, jobs).reports().all(send)
        } else {
            pool.imap(self.task, jobs).reports().all(send)
        }
    }
}

impl Threads {
    /// Ensures that this many workers can have jobs of their own.
    pub(super) fn serve(&mut self, workers: usize) -> Result<()> {
        let Some(start) = &self.start else { return Ok(()) };
        while self.collectors.len() < workers {
            let Some(collector) = start()? else { break };
            self.collectors.push(collector);
        }
        Ok(())
    }

    /// Returns a credit: a result was shown.
    pub(super) fn shown(&self) {
        if let Some(credits) = &self.credits {
            credits.send_over_capacity(());
        }
    }

    /// Wakes the threads that wait for inputs. There will be no more.
    pub(super) fn end_wait(&self) {
        if let Some(read) = &self.read {
            read.close();
        }
    }

    /// Joins the threads, which have sent all their rows.
    pub(super) fn join(self) -> Result<()> {
        for thread in self.collectors {
            if thread.join().is_err() {
                anyhow::bail!("a collector thread panicked; results are missing");
            }
        }
        Ok(())
    }
}

/// Reads the inputs of a pipe.
struct Reader {
    credits: Arc<BatchQueue<()>>,
    read: Arc<BatchQueue<Input>>,
}

impl Reader {
    fn run(&self, inputs: Inputs) {
        let mut credits = VecDeque::new();
        for input in inputs {
            if credits.is_empty() {
                self.credits.recv(&mut credits, None);
            }
            credits.pop_front();
            if !self.read.send(input) {
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

/// Inputs that were read from a pipe. The thread that holds the lock makes jobs of them, so the
/// inputs of a burst are consecutive.
struct Queue<W> {
    read: Arc<BatchQueue<Input>>,
    /// Received together and not used yet.
    taken: VecDeque<Input>,
    credits: Arc<BatchQueue<()>>,
    jobs: JobMaker<W>,
    feed: Feed,
}

impl<W> Queue<W> {
    /// Waits for the next input. Returns whether there is one.
    fn wait(&mut self, timeout: Option<Duration>) -> bool {
        let some = !self.taken.is_empty()
            || self.read.recv(&mut self.taken, timeout) == RecvOutcome::Received;
        // After a stop, inputs that were read and not sent are not started.
        some && !self.feed.stopped()
    }
}

/// The jobs that are available without much waiting.
struct Burst<'a, W> {
    timeout: Duration,
    /// Released at the end, for the next burst.
    queue: Option<MutexGuard<'a, Queue<W>>>,
}

impl<'a, W: Work> Burst<'a, W> {
    /// Waits for an input. Returns its id and the burst that starts with it, or none at the end of
    /// the inputs.
    fn wait(queue: &'a Mutex<Queue<W>>) -> Option<(u64, Self)> {
        // A panic of another thread was between two jobs, or its join reports it.
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let there_is_one = queue.wait(None);
        there_is_one
            .then(|| (queue.jobs.next_id(), Self { timeout: BATCHING_DELAY, queue: Some(queue) }))
    }
}

impl<W: Work> Iterator for Burst<'_, W> {
    type Item = (W::Job, PendingJob);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let queue = self.queue.as_mut()?;
            let start = queue.taken.is_empty().then(Instant::now);
            if !queue.wait(Some(self.timeout)) {
                self.queue = None;
                return None;
            }
            if let Some(start) = start {
                self.timeout = self.timeout.saturating_sub(start.elapsed());
            }
            let input = queue.taken.pop_front()?;
            let made = queue.jobs.make(input);
            if made.is_some() {
                return made;
            }
            // A skipped input is never shown: return its credit.
            queue.credits.send_over_capacity(());
        }
    }
}

/// Closes the event queue when the last collector drops it, also in a panic: the event loop must
/// not wait forever.
struct CloseOnDrop(Arc<Events>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(run).context("failed to start a thread")
}
