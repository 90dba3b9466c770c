//! `procpool run`: a built-in task over inputs, in a pool.
//!
//! This is the one place that decides what an event means: a report becomes a row and a line of the
//! tally, an interruption ends the run. It owns the pool and sees to it that its workers end with
//! the run.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::args::{Format, RunArgs};
use super::collect::{Collector, Event, Events, Threads, WAITING};
use super::exit::Exit;
use super::inputs::Feed;
use super::interrupt;
use super::jobs::JobMaker;
use super::mailbox::Taken;
use super::order::Order;
use super::plan::RunPlan;
use super::progress::Progress;
use super::render::{self, Render, Row};
use super::screen::Screen;
use super::summary::Tally;
use crate::Pool;

pub(super) fn run(args: RunArgs) -> Result<Exit> {
    let plan = RunPlan::resolve(args)?;
    let pool = build_pool(&plan)?;
    let progress = if plan.progress {
        Progress::shown(plan.source.count(plan.task.takes))
    } else {
        Progress::default()
    };

    let events = Arc::new(Events::new(WAITING));
    interrupt::watch(Arc::clone(&events))?;
    let is_live = plan.source.is_live();
    let (inputs, feed) = plan.source.stream(plan.task.takes);
    let jobs = JobMaker::new(plan.task, plan.params);
    let collector = Collector::new(pool.clone(), plan.task.run, Arc::clone(&events));
    let threads = if is_live {
        collector.live(inputs, jobs)?
    } else {
        collector.at_hand(inputs, jobs, plan.unordered)?
    };

    let mut run = Run {
        renderer: render::renderer(plan.format, plan.task),
        screen: Screen::new(progress),
        tally: Tally::new(),
        order: if plan.unordered { Order::of_arrival() } else { Order::of_inputs() },
        threads,
    };
    let ending = run.follow(&events);
    if !matches!(ending, Ok(Ending::Finished)) {
        // Whatever the pool is still at, nobody wants it.
        feed.stop();
        events.close();
        pool.terminate();
    }
    let exit = match ending? {
        Ending::Finished => {
            std::mem::take(&mut run.threads).join()?;
            run.exit(&feed)
        }
        Ending::Interrupted => Exit::Interrupted,
    };
    run.close(&pool, plan.summary, plan.format)?;
    say(&feed, exit);
    pool.close();
    pool.join();
    Ok(exit)
}

fn build_pool(plan: &RunPlan) -> Result<Pool> {
    let mut builder = Pool::builder().workers(plan.workers);
    if let Some(size) = plan.chunk_size {
        builder = builder.chunk_size(size);
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
}

/// How the results came to an end.
enum Ending {
    Finished,
    Interrupted,
}

impl Run {
    /// Shows every result that comes, until the last.
    fn follow(&mut self, events: &Events) -> Result<Ending> {
        self.renderer.header(self.screen.page());
        let mut arrived = VecDeque::new();
        loop {
            match events.take(&mut arrived, Some(Duration::ZERO)) {
                Taken::Some => {}
                Taken::End => return Ok(Ending::Finished),
                Taken::NothingYet => {
                    // Idle: whoever watches should see what there is.
                    self.screen.flush()?;
                    events.take(&mut arrived, None);
                }
            }
            for event in arrived.drain(..) {
                match event {
                    Event::Row(row) => self.take(row)?,
                    Event::Interrupted => return Ok(Ending::Interrupted),
                }
            }
        }
    }

    /// Shows it when it's its turn, and what waited for it.
    fn take(&mut self, row: Row) -> Result<()> {
        let Self { order, renderer, screen, tally, threads } = self;
        order.pass(row.id, row, |row| {
            tally.note(&row);
            threads.shown();
            screen.progress().advance(tally.failed());
            renderer.row(&row, screen.page());
            screen.flush_if_full()
        })
    }

    fn exit(&self, feed: &Feed) -> Exit {
        let all_well = self.tally.failed() == 0 && feed.trouble().is_none();
        if all_well { Exit::AllWell } else { Exit::SomeFailed }
    }

    /// Writes what is left to write: with a table the summary stands under it, otherwise rows are
    /// all that belongs on standard output.
    fn close(mut self, pool: &Pool, summary: bool, format: Format) -> Result<()> {
        self.screen.progress().finish();
        if !summary {
            return self.screen.flush();
        }
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

/// Says what no row says.
fn say(feed: &Feed, exit: Exit) {
    let mut stderr = io::stderr().lock();
    if let Some(trouble) = feed.trouble() {
        let _ = writeln!(stderr, "error: {trouble}; the inputs before it are done");
    }
    if exit == Exit::Interrupted {
        let _ = writeln!(stderr, "interrupted: what was not done yet is given up");
    }
}
