//! `procpool run`: a built-in task over inputs, in a pool.
//!
//! This is the one place that decides what an event means: a report becomes a row and a line of the
//! tally, an interruption ends the run. It owns the pool and sees to it that its workers end with
//! the run.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::args::{Format, Prints, RunArgs};
use super::collect::{Collector, Event, Events, Threads, WAITING};
use super::exit::Exit;
use super::humane;
use super::inputs::Feed;
use super::interrupt;
use super::jobs::JobMaker;
use super::log::{self, Log};
use super::mailbox::Taken;
use super::order::Order;
use super::plan::{LogTo, RunPlan};
use super::progress::Progress;
use super::render::{self, Render, Row};
use super::screen::Screen;
use super::summary::Tally;
use crate::{Output, Pool};

pub(super) fn run(args: RunArgs) -> Result<Exit> {
    let plan = RunPlan::resolve(args)?;
    let log = match &plan.log {
        LogTo::File(path) => Some(Log::create(path)?),
        LogTo::Nowhere | LogTo::Stderr => None,
    };
    let pool = build_pool(&plan, log.clone())?;
    let progress = if plan.progress {
        Progress::shown(plan.source.count(plan.task.takes))
    } else {
        Progress::default()
    };

    let events = Arc::new(Events::new(WAITING));
    interrupt::watch(Arc::clone(&events), pool.clone())?;
    let is_live = plan.source.is_live();
    let (inputs, feed) = plan.source.stream(plan.task.takes);
    let jobs = JobMaker::new(plan.task, plan.params);
    let collector = Collector::new(pool.clone(), plan.task.run, Arc::clone(&events));
    let threads = if is_live {
        collector.live(inputs, jobs, feed.clone())?
    } else {
        collector.at_hand(inputs, jobs, plan.unordered)?
    };

    let mut run = Run {
        renderer: render::renderer(plan.format, plan.task, plan.prints == Prints::Capture),
        screen: Screen::new(progress),
        tally: Tally::new(),
        order: if plan.unordered { Order::of_arrival() } else { Order::of_inputs() },
        threads,
        feed,
        interrupted: None,
    };
    let ended = run.follow(&events, &pool);
    if ended.is_err() {
        // Whatever the pool is still at, nobody wants it.
        run.feed.stop();
        events.close();
        pool.terminate();
    }
    let exit = run.end(ended, &pool, plan.summary.then_some(plan.format))?;
    pool.join();
    match log.map_or(Ok(()), |log| log.close()) {
        Err(trouble) => {
            say(format_args!("error: {trouble}"));
            Ok(if exit == Exit::AllWell { Exit::SomeFailed } else { exit })
        }
        Ok(()) => Ok(exit),
    }
}

fn build_pool(plan: &RunPlan, log: Option<Log>) -> Result<Pool> {
    let limits = &plan.limits;
    let mut builder =
        Pool::builder().workers(plan.workers).retries(limits.retries).nice(limits.nice).output(
            match plan.prints {
                Prints::Inherit => Output::Inherit,
                Prints::Null => Output::Null,
                Prints::Capture => Output::Capture,
            },
        );
    if let Some(size) = plan.chunk_size {
        builder = builder.chunk_size(size);
    }
    if let Some(limit) = limits.timeout {
        builder = builder.task_timeout(limit);
    }
    if let Some(bytes) = limits.memory {
        builder = builder.max_memory_per_worker(bytes);
    }
    if let Some(tasks) = limits.max_tasks {
        builder = builder.max_tasks_per_worker(tasks.get());
    }
    if let Some(log) = log {
        builder = builder.on_event(move |event| log.write(event));
    } else if matches!(plan.log, LogTo::Stderr) {
        builder = builder.on_event(log::tell);
    }
    builder.build().context("failed to start the pool")
}

/// A run while its results come in.
struct Run {
    renderer: Box<dyn Render>,
    screen: Screen,
    tally: Tally,
    order: Order<Row>,
    threads: Threads,
    feed: Feed,
    /// How the run is to end, if somebody wants it to before its time.
    interrupted: Option<Exit>,
}

impl Run {
    /// Shows every result that comes, until the last.
    fn follow(&mut self, events: &Events, pool: &Pool) -> Result<()> {
        self.renderer.header(self.screen.page());
        let mut arrived = VecDeque::new();
        loop {
            match events.take(&mut arrived, Some(Duration::ZERO)) {
                Taken::Some => {}
                Taken::End => return Ok(()),
                Taken::NothingYet => {
                    // Idle: whoever watches should see what there is.
                    self.screen.flush()?;
                    events.take(&mut arrived, None);
                }
            }
            for event in arrived.drain(..) {
                match event {
                    Event::Row(row) => self.take(row)?,
                    Event::Interrupted(exit) => self.interrupt(exit, pool)?,
                }
            }
        }
    }

    /// No more is begun; what has been is waited for. What came before its turn is shown.
    fn interrupt(&mut self, exit: Exit, pool: &Pool) -> Result<()> {
        self.interrupted = Some(exit);
        self.feed.stop();
        self.threads.end_wait();
        pool.cancel_queued();
        let Self { order, renderer, screen, tally, .. } = self;
        order.release(|row| show(&row, &mut **renderer, screen, tally))?;
        self.screen.flush()?;
        self.screen.progress().finish();
        let stats = pool.stats();
        say(format_args!(
            "interrupted: {} inputs are running and will be done; once more ends it at once",
            humane::grouped(stats.running)
        ));
        Ok(())
    }

    /// Shows it when it's its turn, and what waited for it.
    fn take(&mut self, row: Row) -> Result<()> {
        if row.cancelled {
            return Ok(());
        }
        let Self { order, renderer, screen, tally, threads, .. } = self;
        order.pass(row.id, row, |row| {
            threads.shown();
            show(&row, &mut **renderer, screen, tally)
        })
    }

    /// Writes what is left to write, and finds out how it went.
    fn end(mut self, ended: Result<()>, pool: &Pool, summary: Option<Format>) -> Result<Exit> {
        let ended = ended
            .and_then(|()| mem::take(&mut self.threads).join())
            .and_then(|()| self.close(pool, summary));
        if let Some(trouble) = self.feed.trouble() {
            say(format_args!("error: {trouble}; the inputs before it are done"));
        }
        match (ended, self.interrupted) {
            // With the terminal or the reader gone, there is no writing to them, of course.
            (_, Some(exit)) => Ok(exit),
            (Err(error), None) => Err(error),
            (Ok(()), None) if self.tally.failed() > 0 || self.feed.trouble().is_some() => {
                Ok(Exit::SomeFailed)
            }
            (Ok(()), None) => Ok(Exit::AllWell),
        }
    }

    /// The summary stands under a table, in whose format it is asked for; otherwise rows are all
    /// that belongs on standard output.
    fn close(&mut self, pool: &Pool, summary: Option<Format>) -> Result<()> {
        self.screen.progress().finish();
        let Some(format) = summary else { return self.screen.flush() };
        let text = self.tally.summary(&pool.workers(), Instant::now());
        if format == Format::Table {
            self.screen.page().extend_from_slice(text.as_bytes());
            return self.screen.flush();
        }
        self.screen.flush()?;
        let _ = io::stderr().write_all(text.as_bytes()); // if nobody sees it, nobody misses it
        Ok(())
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
    screen.flush_if_full()
}

/// Says what no row says.
fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{what}");
}
