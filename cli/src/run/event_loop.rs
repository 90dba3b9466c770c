//! The loop that takes each event of a run and decides what it means: a row is shown and counted, an
//! interruption or too many failures end the run.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::messages::say;
use crate::args::{Format, Halt};
use crate::collect::{Event, Events, Threads};
use crate::exit::Exit;
use crate::inputs::Feed;
use crate::journal::Journal;
use crate::mailbox::Taken;
use crate::median::Median;
use crate::order::Order;
use crate::render::Render;
use crate::row::{End, Row};
use crate::screen::{Screen, Unread};
use crate::spill::{Live, Spills};
use crate::summary::Tally;
use crate::top::{Board, Top};
use crate::trace::Trace;
use crate::{humane, interrupt};
use procpool::Pool;

/// How often a job that is live is looked at, while it prints nothing.
const LOOK: Duration = Duration::from_millis(5);

/// A run while its results come in.
pub(super) struct Run {
    pub(super) renderer: Box<dyn Render>,
    pub(super) screen: Screen,
    pub(super) tally: Tally,
    pub(super) order: Order<Box<Row>>,
    pub(super) journal: Option<Journal>,
    pub(super) trace: Option<Trace>,
    pub(super) median: Arc<Median>,
    pub(super) halt: Option<Halt>,
    /// What jobs print that is too much for memory.
    pub(super) spills: Option<Spills>,
    /// The job whose output is shown while it runs. It has standard output for itself.
    pub(super) live: Option<Live>,
    /// Whether there may be one.
    pub(super) shows_live: bool,
    /// Jobs that run and could be the next one.
    pub(super) announced: Vec<Live>,
    /// Rows that come after what is live.
    pub(super) waiting: VecDeque<Box<Row>>,
    pub(super) is_command: bool,
    /// How many inputs were sent to the pool and never begun.
    pub(super) not_begun: u64,
    /// How many jobs have ended, and how many of them have failed, be they shown or not.
    pub(super) ended: u64,
    pub(super) failed: u64,
    pub(super) unstarted: Unstarted,
    pub(super) threads: Threads,
    pub(super) feed: Feed,
    /// Why the run is to end before its time, if it is.
    pub(super) ending: Option<Ending>,
    pub(super) board: Option<Arc<Board>>,
    /// The live table, while it's shown.
    pub(super) top: Option<Top>,
}

/// Why the jobs that failed could not be started, as long as it's the same for all of them.
#[derive(Default)]
pub(super) enum Unstarted {
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
pub(super) enum Ending {
    /// Somebody wants it to end in this way.
    Interrupted(Exit),
    /// They want it to end at once.
    Killed(Exit),
    /// Too many have failed; what runs is ended, or done.
    Halted { now: bool },
}

impl Run {
    /// Shows every result that comes, until the last.
    pub(super) fn follow(&mut self, events: &Events, pool: &Pool) -> Result<()> {
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
    pub(super) fn end(
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
