//! `procpool run`: a command or a built-in task over inputs, in a pool.
//!
//! This is the one place that decides what an event means: a report becomes a row and a line of the
//! tally, an interruption ends the run, and so do too many failures. It owns the pool and sees to it
//! that its workers end with the run.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::args::{Format, Halt, JournalArgs};
use super::collect::{Collector, Event, Events, Threads, WAITING};
use super::exit::Exit;
use super::humane;
use super::inputs::Feed;
use super::interrupt;
use super::jobs::{BuiltIn, Commands, JobMaker, Work};
use super::journal::{Counts, Journal, Past};
use super::key::JobKey;
use super::log::Log;
use super::mailbox::Taken;
use super::median::Median;
use super::numbers::Numbers;
use super::order::Order;
use super::plan::{LogTo, RunPlan, WorkPlan};
use super::progress::Progress;
use super::render::{self, Render};
use super::row::{End, Row};
use super::screen::{Screen, Unread, shown};
use super::spill::{Live, Spills};
use super::summary::Tally;
use super::top::{Board, Top};
use super::trace::Trace;
use super::units::TimeLimit;
use crate::tasks::Input;
use crate::tasks::command::{self, CommandJob};
use procpool::{Pool, PoolBuilder};

/// How often a job that is live is looked at, while it prints nothing.
const LOOK: Duration = Duration::from_millis(5);

pub(super) fn run(args: super::args::RunArgs) -> Result<Exit> {
    let started = Instant::now();
    let mut plan = RunPlan::resolve(args)?;
    if plan.dry_run {
        return dry_run(plan);
    }
    let median = Arc::new(Median::default());
    let events = Arc::new(Events::new(WAITING));
    let mut spills = None;
    let limits = &plan.limits;
    match plan.work {
        WorkPlan::Task(task, ref mut params) => {
            let work = BuiltIn::new(task, mem::take(params));
            let mut builder = Pool::builder();
            if let Some(TimeLimit::Fixed(limit)) = limits.timeout {
                builder = builder.task_timeout(limit);
            }
            if let Some(bytes) = limits.memory {
                builder = builder.max_memory_per_worker(bytes);
            }
            run_work(plan, work, builder, median, started, events, None)
        }
        WorkPlan::Command(ref mut recipe) => {
            let template = recipe.template.clone();
            if recipe.prints == command::Prints::Grouped {
                let (listening, name) = Spills::listen({
                    let events = Arc::clone(&events);
                    move |live| {
                        events.put_at_once(Event::Prints(live));
                    }
                })?;
                recipe.spill = name;
                spills = Some(listening);
            }
            let mut builder = Pool::builder().initializer(command::prepare, recipe.clone());
            match limits.timeout {
                // A worker keeps its jobs' limits; this is for one that can't, since it is stopped.
                Some(TimeLimit::Fixed(limit)) => {
                    let attempts = limits.retries.saturating_add(1);
                    builder = builder
                        .task_timeout((limit + Duration::from_secs(5)).saturating_mul(attempts));
                }
                // The limit is found when a job is made, so few are made before they are run.
                Some(TimeLimit::OfMedian(_)) => {
                    let workers = match plan.workers {
                        0 => thread::available_parallelism().map_or(1, NonZero::get),
                        workers => workers,
                    };
                    builder = builder.window(2 * workers);
                }
                None => {}
            }
            let work = Commands::new(template, limits.timeout, Arc::clone(&median));
            run_work(plan, work, builder, median, started, events, spills)
        }
    }
}

/// Names an input's work in the journal.
type ToKey = Box<dyn Fn(&Input, u64) -> JobKey>;

/// Prints what would be run.
fn dry_run(plan: RunPlan) -> Result<Exit> {
    let mut past = Journal::look(&plan.journal)?;
    let failed_before = past.as_ref().map_or(0, Past::failed);
    let work: ToKey = match &plan.work {
        WorkPlan::Task(task, params) => {
            let work = BuiltIn::new(task, params.clone());
            Box::new(move |input, number| work.key(input, number))
        }
        WorkPlan::Command(recipe) => {
            let work = Commands::new(recipe.template.clone(), None, Arc::default());
            Box::new(move |input, number| work.key(input, number))
        }
    };
    let (inputs, feed) = plan.source.stream(plan.takes);
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    for (number, input) in (1..).zip(inputs) {
        if past.as_mut().is_some_and(|past| past.leaves_out(work(&input, number))) {
            continue;
        }
        let mut line = match &plan.work {
            WorkPlan::Task(task, _) => {
                [task.name.as_bytes(), b" ", &command::quote(&input.to_bytes())].concat()
            }
            // Which worker it would be isn't known.
            WorkPlan::Command(recipe) => {
                let job = CommandJob { input, number, id: 0, limit: None };
                recipe.template.line(&job, "{%}")
            }
        };
        line.push(b'\n');
        shown(stdout.write_all(&line))?;
    }
    shown(stdout.flush())?;
    let is_in_vain = past.is_some_and(|past| {
        tell_left_out(&plan.journal, &past.counts(), failed_before, plan.summary)
    });
    match feed.trouble() {
        None if is_in_vain => Ok(Exit::SomeFailed),
        None => Ok(Exit::AllWell),
        Some(trouble) => Err(anyhow::anyhow!("{trouble}")),
    }
}

/// Says how many inputs the journal has left out. Returns whether that was all of them although jobs
/// that failed were to be tried again: then they were those of another command.
fn tell_left_out(
    journal: &JournalArgs,
    counts: &Counts,
    failed_before: u64,
    summary: bool,
) -> bool {
    let [left_out, taken] =
        [&counts.left_out, &counts.taken].map(|count| count.load(Ordering::Relaxed));
    if journal.retry_failed && failed_before > 0 && taken == 0 {
        say(format_args!(
            "error: none of the {} jobs that failed according to the journal is among these: their \
             command, options or inputs were others; --resume does what has not succeeded",
            humane::grouped(failed_before)
        ));
        return true;
    }
    if left_out > 0 && summary {
        let (noun, why) = match (left_out, journal.retry_failed) {
            (1, false) => ("input was", "has succeeded"),
            (_, false) => ("inputs were", "have succeeded"),
            (1, true) => ("input was", "hasn't failed"),
            (_, true) => ("inputs were", "haven't failed"),
        };
        let left_out = humane::grouped(left_out);
        say(format_args!("{left_out} {noun} left out, which {why} according to the journal"));
    }
    false
}

fn run_work<W: Work>(
    plan: RunPlan,
    work: W,
    builder: PoolBuilder,
    median: Arc<Median>,
    started: Instant,
    events: Arc<Events>,
    spills: Option<Spills>,
) -> Result<Exit> {
    let is_command = matches!(plan.work, WorkPlan::Command(_));
    let numbers = Numbers::default();
    let log = match &plan.log {
        LogTo::File(path) => Some(Log::create(path, numbers.clone())?),
        LogTo::Stderr => Some(Log::to_stderr(numbers.clone())),
        LogTo::Nowhere => None,
    };
    let trace = plan.trace.as_deref();
    let trace = trace.map(|path| Trace::create(path, numbers.clone())).transpose()?;
    let (journal, past): (_, Option<Past>) =
        Journal::open(&plan.journal, plan.form.columns)?.unzip();
    let known = past.as_ref().map(|past| (past.counts(), past.failed()));
    let board = plan.top.then(Arc::<Board>::default);
    let builder = match &board {
        None => builder,
        Some(board) => {
            let board = Arc::clone(board);
            builder.on_event(move |event| board.note(event))
        }
    };
    let pool = build_pool(&plan, builder, log.clone(), trace.clone())?;
    let progress = if plan.progress {
        Progress::shown(plan.source.count(plan.takes))
    } else {
        Progress::default()
    };

    interrupt::watch(Arc::clone(&events), pool.clone(), is_command)?;
    let top = match &board {
        None => None,
        Some(board) => {
            let total = plan.source.count(plan.takes);
            Some(Top::start(Arc::clone(board), pool.clone(), total)?)
        }
    };
    let is_live = plan.source.is_live();
    let (inputs, feed) = plan.source.stream(plan.takes);
    let jobs = JobMaker::new(work, past, numbers);
    let collector = Collector::new(pool.clone(), jobs.task(), Arc::clone(&events), board.clone());
    let threads = if is_live {
        collector.live(inputs, jobs, feed.clone())?
    } else {
        collector.at_hand(inputs, jobs, plan.unordered)?
    };

    let mut run = Run {
        renderer: render::renderer(plan.format, &plan.form, plan.voice),
        screen: Screen::new(progress),
        tally: Tally::since(started),
        order: if plan.unordered { Order::of_arrival() } else { Order::of_inputs() },
        journal,
        trace: trace.clone(),
        median,
        halt: plan.limits.halt,
        spills,
        live: None,
        // Where a row is what the job prints and nothing else.
        shows_live: plan.format == Format::Plain && !plan.voice.tag && !plan.top,
        announced: Vec::new(),
        waiting: VecDeque::new(),
        is_command,
        ended: 0,
        failed: 0,
        unstarted: Unstarted::default(),
        not_begun: 0,
        threads,
        feed,
        ending: None,
        board,
        top,
    };
    if run.top.is_some() {
        run.screen.hold();
    }
    let ended = run.follow(&events, &pool);
    if ended.is_err() {
        // Whatever the pool is still at, nobody wants it.
        run.feed.stop();
        events.close();
        pool.terminate();
    }
    let exit = run.end(ended, &pool, plan.summary.then_some(plan.format), plan.exit_count)?;
    pool.join();
    let is_in_vain = known.is_some_and(|(counts, failed)| {
        tell_left_out(&plan.journal, &counts, failed, plan.summary) && exit == Exit::AllWell
    });
    let closed = [log.map(|log| log.close()), trace.map(|trace| trace.close())];
    let troubles: Vec<_> = closed.into_iter().flatten().filter_map(Result::err).collect();
    for trouble in &troubles {
        say(format_args!("error: {trouble}"));
    }
    let is_new = (!troubles.is_empty() && exit == Exit::AllWell) || is_in_vain;
    Ok(if is_new { Exit::SomeFailed } else { exit })
}

fn build_pool(
    plan: &RunPlan,
    builder: PoolBuilder,
    log: Option<Log>,
    trace: Option<Trace>,
) -> Result<Pool> {
    let limits = &plan.limits;
    let mut builder =
        builder.workers(plan.workers).retries(limits.retries).nice(limits.nice).output(plan.output);
    if let Some(size) = plan.chunk_size {
        builder = builder.chunk_size(size);
    }
    if let Some(tasks) = limits.max_tasks {
        builder = builder.max_tasks_per_worker(tasks.get());
    }
    let gpus = plan.gpus.clone();
    builder = builder.env_per_worker(move |slot| {
        let mut env = vec![(command::SLOT.into(), (slot + 1).to_string().into())];
        if !gpus.is_empty() {
            let gpu = &gpus[slot % gpus.len()];
            let variables = ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"];
            env.extend(variables.map(|name| (name.into(), gpu.into())));
        }
        env
    });
    if let Some(log) = log {
        builder = builder.on_event(move |event| log.write(event));
    }
    if let Some(trace) = trace {
        builder = builder.on_event(move |event| trace.note(event));
    }
    builder.build().context("failed to start the pool")
}

/// A run while its results come in.
struct Run {
    renderer: Box<dyn Render>,
    screen: Screen,
    tally: Tally,
    order: Order<Box<Row>>,
    journal: Option<Journal>,
    trace: Option<Trace>,
    median: Arc<Median>,
    halt: Option<Halt>,
    /// What jobs print that is too much for memory.
    spills: Option<Spills>,
    /// The job whose output is shown while it runs. It has standard output for itself.
    live: Option<Live>,
    /// Whether there may be one.
    shows_live: bool,
    /// Jobs that run and could be the next one.
    announced: Vec<Live>,
    /// Rows that come after what is live.
    waiting: VecDeque<Box<Row>>,
    is_command: bool,
    /// How many inputs were sent to the pool and never begun.
    not_begun: u64,
    /// How many jobs have ended, and how many of them have failed, be they shown or not.
    ended: u64,
    failed: u64,
    unstarted: Unstarted,
    threads: Threads,
    feed: Feed,
    /// Why the run is to end before its time, if it is.
    ending: Option<Ending>,
    board: Option<Arc<Board>>,
    /// The live table, while it's shown.
    top: Option<Top>,
}

/// Why the jobs that failed could not be started, as long as it's the same for all of them.
#[derive(Default)]
enum Unstarted {
    #[default]
    NoneFailed,
    All(i32),
    NotAll,
}

impl Unstarted {
    /// One more has failed: with the code of why it could not be started, or otherwise.
    fn note(&mut self, code: Option<i32>) {
        *self = match (&self, code) {
            (Self::NoneFailed, Some(code)) => Self::All(code),
            (Self::All(all), Some(code)) if *all == code => Self::All(code),
            _ => Self::NotAll,
        };
    }

    fn code(&self) -> Option<i32> {
        if let Self::All(code) = self { Some(*code) } else { None }
    }
}

/// Why a run ends before its inputs do.
#[derive(Clone, Copy)]
enum Ending {
    /// Somebody wants it to end in this way.
    Interrupted(Exit),
    /// They want it to end at once.
    Killed(Exit),
    /// Too many have failed; what runs is ended, or done.
    Halted { now: bool },
}

impl Run {
    /// Shows every result that comes, until the last.
    fn follow(&mut self, events: &Events, pool: &Pool) -> Result<()> {
        self.renderer.header(self.screen.page());
        let mut arrived = VecDeque::new();
        loop {
            let some = self.follow_live()?;
            match events.take(&mut arrived, Some(Duration::ZERO)) {
                Taken::Some => {}
                Taken::End => return Ok(()),
                Taken::NothingYet => {
                    // Idle: whoever watches should see what there is.
                    self.screen.flush()?;
                    self.trace.iter().for_each(Trace::flush);
                    let patience = match &self.live {
                        None => None,
                        Some(_) if some => Some(Duration::ZERO),
                        Some(_) => Some(LOOK),
                    };
                    events.take(&mut arrived, patience);
                }
            }
            self.keep(&arrived)?;
            for event in arrived.drain(..) {
                match event {
                    Event::Row(row) => self.take(row, pool)?,
                    Event::Prints(live) if self.shows_live => {
                        self.announced.push(live);
                        self.begin_live();
                    }
                    Event::Prints(_) => {}
                    Event::Interrupted(exit) => self.interrupt(exit, pool)?,
                }
            }
        }
    }

    /// Shows what the job that is live has printed since; whether that was anything.
    fn follow_live(&mut self) -> Result<bool> {
        match &mut self.live {
            None => Ok(false),
            Some(live) => self.screen.follow(live),
        }
    }

    /// Has a job be live whose turn it is, where none is.
    fn begin_live(&mut self) {
        if self.live.is_none() {
            let next = self.announced.iter().position(|live| self.order.is_turn(live.id));
            self.live = next.map(|next| self.announced.swap_remove(next));
        }
    }

    /// Shows a row when it's its turn, and what waited for it.
    fn present(&mut self, mut row: Box<Row>) -> Result<()> {
        self.announced.retain(|live| live.id != row.id);
        match self.live.take_if(|live| live.id == row.id) {
            Some(mut live) => {
                // Of one that was lost with its worker, nothing else comes.
                while self.screen.follow(&mut live)? {}
                row.stdout.skip(live.shown);
                self.pass(row)?;
                while self.live.is_none()
                    && let Some(row) = self.waiting.pop_front()
                {
                    self.pass(row)?;
                }
                self.begin_live();
                Ok(())
            }
            None if self.live.is_some() => {
                self.waiting.push_back(row);
                Ok(())
            }
            None => {
                self.pass(row)?;
                self.begin_live();
                Ok(())
            }
        }
    }

    fn pass(&mut self, row: Box<Row>) -> Result<()> {
        let Self { order, renderer, screen, tally, threads, .. } = self;
        order.pass(row.id, row, |row| {
            threads.shown();
            show(&row, &mut **renderer, screen, tally)
        })
    }

    /// Puts what has ended on the disk, before any of it is shown.
    fn keep(&mut self, arrived: &VecDeque<Event>) -> Result<()> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        for event in arrived {
            if let Event::Row(row) = event
                && !row.cancelled
            {
                journal.note(row)?;
            }
        }
        journal.sync()
    }

    /// No more is begun; what has been is waited for. What came before its turn is shown.
    fn begin_no_more(&mut self, ending: Ending, pool: &Pool) -> Result<()> {
        self.ending = Some(ending);
        self.feed.stop();
        self.threads.end_wait();
        pool.cancel_queued();
        let Self { order, waiting, .. } = self;
        order.release(|row| {
            waiting.push_back(row);
            Ok::<(), anyhow::Error>(())
        })?;
        while self.live.is_none()
            && let Some(row) = self.waiting.pop_front()
        {
            self.pass(row)?;
        }
        self.screen.flush()
    }

    fn interrupt(&mut self, exit: Exit, pool: &Pool) -> Result<()> {
        let again = matches!(self.ending, Some(Ending::Interrupted(_) | Ending::Killed(_)));
        let ending = if again { Ending::Killed(exit) } else { Ending::Interrupted(exit) };
        self.begin_no_more(ending, pool)?;
        self.leave_top()?;
        self.screen.progress().finish();
        let running = humane::grouped(pool.stats().running);
        if again {
            say(format_args!("interrupted again: {running} inputs are running and will be ended"));
        } else {
            say(format_args!(
                "interrupted: {running} inputs are running and will be done; once more ends them"
            ));
        }
        Ok(())
    }

    /// Shows results again where the live table was.
    fn leave_top(&mut self) -> Result<()> {
        let Some(top) = self.top.take() else { return Ok(()) };
        drop(top);
        self.screen.release()
    }

    /// Ends the run if too many have failed.
    fn halt(&mut self, pool: &Pool) -> Result<()> {
        let due = self.halt.filter(|halt| halt.is_due(self.failed, self.ended));
        let Some(halt) = due.filter(|_| self.ending.is_none()) else { return Ok(()) };
        self.begin_no_more(Ending::Halted { now: halt.now }, pool)?;
        self.leave_top()?;
        let running = humane::grouped(pool.stats().running);
        if halt.now {
            interrupt::end_jobs(pool, self.is_command).context("failed to start a thread")?;
        }
        let fate = if halt.now { "will be ended" } else { "will be done" };
        self.screen.progress().aside(|| {
            say(format_args!(
                "halted: {} of {} have failed; {running} were running and {fate}",
                humane::grouped(self.failed),
                humane::grouped(self.ended),
            ));
        });
        Ok(())
    }

    /// Takes note of a row and shows it.
    fn take(&mut self, mut row: Box<Row>, pool: &Pool) -> Result<()> {
        if let Some(board) = &self.board {
            board.end(&row);
        }
        if row.cancelled {
            self.not_begun += 1;
            return Ok(());
        }
        if let Some(spills) = &self.spills {
            row.find(spills);
        }
        match row.end.take() {
            None => {}
            Some(End::Unread) => return Err(Unread.into()),
            Some(End::Unwritten(error)) => {
                anyhow::bail!("failed to write what jobs print to standard output: {error}")
            }
        }
        self.ended += 1;
        if let Some(trace) = &self.trace {
            trace.row(&row);
        }
        let (failed, unstarted) = (row.error.is_some(), row.unstarted);
        if !failed {
            self.median.note(row.elapsed);
        }
        let is_ended =
            matches!(self.ending, Some(Ending::Killed(_) | Ending::Halted { now: true }));
        row.killed |= failed && is_ended;
        self.present(row)?;
        if failed {
            self.failed += 1;
            self.unstarted.note(unstarted);
            self.halt(pool)?;
        }
        Ok(())
    }

    /// Writes what is left to write, and finds out how it went.
    fn end(
        mut self,
        ended: Result<()>,
        pool: &Pool,
        summary: Option<Format>,
        count: bool,
    ) -> Result<Exit> {
        let left = self.leave_top();
        let ended = ended
            .and(left)
            .and_then(|()| mem::take(&mut self.threads).join())
            .and_then(|()| self.close(pool, summary));
        if let Some(trouble) = self.feed.trouble() {
            say(format_args!("error: {trouble}; the inputs before it are done"));
        }
        match (ended, self.ending) {
            (Err(error), Some(Ending::Interrupted(exit) | Ending::Killed(exit))) => {
                // With the terminal or the reader gone, there is no writing to them, of course.
                if !error.is::<Unread>() {
                    say(format_args!("error: {error:#}"));
                }
                Ok(exit)
            }
            (Ok(()), Some(Ending::Interrupted(exit) | Ending::Killed(exit))) => Ok(exit),
            (Err(error), _) => Err(error),
            (Ok(()), _) if self.failed == 0 && self.feed.trouble().is_some() => {
                Ok(if count { Exit::Uncounted } else { Exit::SomeFailed })
            }
            (Ok(()), _) => Ok(Exit::of_failed(self.failed, count, self.unstarted.code())),
        }
    }

    /// How many inputs were not begun, as far as that is known; none where the run was not ended early
    /// or all were.
    fn not_begun(&self) -> Option<String> {
        self.ending?;
        let (left, is_least) = self.feed.left();
        let not_begun = self.not_begun.saturating_add(left);
        let number = humane::grouped(not_begun);
        if is_least {
            return Some(format!("{number} or more"));
        }
        (not_begun > 0).then_some(number)
    }

    /// The summary stands under a table, in whose format it is asked for; otherwise rows are all
    /// that belongs on standard output.
    fn close(&mut self, pool: &Pool, summary: Option<Format>) -> Result<()> {
        self.screen.progress().finish();
        let not_begun = self.not_begun();
        self.screen.flush()?;
        let Some(format) = summary else {
            // Who has interrupted it has been told already that it ends early.
            let halted = matches!(self.ending, Some(Ending::Halted { .. }));
            if let Some(not_begun) = not_begun.filter(|_| halted) {
                say(format_args!("{not_begun} inputs were not begun"));
            }
            return Ok(());
        };
        let workers = pool.workers();
        // The end of the workers is part of the time that it took.
        pool.close();
        pool.join();
        let now = Instant::now();
        let not_begun = not_begun.as_deref();
        let text = match format {
            Format::Plain => self.tally.summary("jobs", now, not_begun),
            _ => self.tally.workers(&workers) + &self.tally.summary("tasks", now, not_begun),
        };
        let to =
            if format == Format::Table { self.screen.page() } else { self.screen.error_lines() };
        to.extend_from_slice(text.as_bytes());
        self.screen.flush()
    }
}

/// Writes a row and counts it.
fn show(
    row: &Row,
    renderer: &mut dyn Render,
    screen: &mut Screen,
    tally: &mut Tally,
) -> Result<()> {
    tally.note(row);
    screen.progress().advance(tally.failed());
    renderer.row(row, screen.page());
    renderer.aside(row, screen.errors());
    screen.flush_if_full()
}

/// Says what no row says.
fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{what}");
}
