//! The event loop of a run. It decides what each event means: it shows and counts rows, and ends
//! the run after an interruption or too many failures.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::messages::say;
use crate::args::Format;
use crate::batch_queue::RecvOutcome;
use crate::collect::{Event, Events, Threads};
use crate::control::{Change, Control};
use crate::exit::Exit;
use crate::halt::{Halt, Outcome};
use crate::inputs::Feed;
use crate::job_files::JobFiles;
use crate::journal::Journal;
use crate::median::Median;
use crate::order::Order;
use crate::record::{End, LostHost, Shown};
use crate::render::Render;
use crate::report::Report;
use crate::row::{Abort, Row};
use crate::screen::{OutputClosed, Screen};
use crate::spill::{LiveOutput, Spills};
use crate::summary::Tally;
use crate::tasks::command::SharedStart;
use crate::top::{Board, Top};
use crate::trace::Trace;
use crate::{format, interrupt};
use procpool::Pool;

/// How often to poll the live job's output for more.
const LIVE_POLL: Duration = Duration::from_millis(5);

/// A run, while its results arrive.
pub(super) struct Run {
    pub(super) renderer: Box<dyn Render>,
    pub(super) screen: Screen,
    pub(super) tally: Tally,
    pub(super) order: Order<Box<Row>>,
    pub(super) journal: Option<Journal>,
    /// The name of the file of the results in the journal.
    pub(super) results: Option<String>,
    pub(super) trace: Option<Trace>,
    pub(super) report: Option<Report>,
    pub(super) job_files: Option<JobFiles>,
    pub(super) median: Arc<Median>,
    pub(super) halt: Option<Halt>,
    /// Output of jobs that exceeds memory.
    pub(super) spills: Option<Spills>,
    /// Where jobs wait for their start, if they may have to.
    pub(super) starts: Option<SharedStart>,
    /// The job whose output is shown while it runs. It has standard output to itself.
    pub(super) live: Option<LiveOutput>,
    /// Whether output may be shown live.
    pub(super) shows_live: bool,
    /// Running jobs that may become the live one.
    pub(super) announced: Vec<LiveOutput>,
    /// Rows that follow the live job.
    pub(super) waiting: VecDeque<Box<Row>>,
    pub(super) is_command: bool,
    /// Inputs that were sent to the pool and never started.
    pub(super) not_started: u64,
    /// Jobs that have ended, and those of them that failed, shown or not.
    pub(super) ended: u64,
    pub(super) failed: u64,
    pub(super) unstarted: Unstarted,
    pub(super) threads: Threads,
    pub(super) feed: Feed,
    /// Why the run ends early, if it does.
    pub(super) ending: Option<Ending>,
    pub(super) board: Option<Arc<Board>>,
    /// The live table, while it is shown.
    pub(super) top: Option<Top>,
    pub(super) control: Control,
    pub(super) is_quiet: bool,
}

/// Why the failed jobs could not be started, while the reason is the same for all.
#[derive(Default)]
pub(super) enum Unstarted {
    #[default]
    NoneFailed,
    All(i32),
    NotAll,
}

impl Unstarted {
    /// Continues after earlier failures, of which the reasons are not known.
    pub(super) fn after(failed: u64) -> Self {
        if failed > 0 { Self::NotAll } else { Self::NoneFailed }
    }

    /// Counts a failure. `code` is the shell's code of a job that could not be started.
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
    /// By a signal: running jobs finish.
    Interrupted(Exit),
    /// By a second signal: running jobs are killed.
    Killed(Exit),
    /// By `--halt`.
    Halted(Halt),
    /// By its deadline: running jobs are killed.
    Late,
}

impl Run {
    /// Processes events until the last.
    ///
    /// If the results are continued, they have a header.
    pub(super) fn follow(
        &mut self,
        events: &Events,
        pool: &Pool,
        is_continued: bool,
    ) -> Result<()> {
        if !is_continued {
            self.renderer.header(self.screen.page());
        }
        let mut arrived = VecDeque::new();
        loop {
            let some = self.follow_live()?;
            match events.recv(&mut arrived, Some(Duration::ZERO)) {
                RecvOutcome::Received => {}
                RecvOutcome::Closed => return Ok(()),
                RecvOutcome::TimedOut => {
                    // Idle: show everything so far.
                    self.screen.flush()?;
                    self.trace.iter().for_each(Trace::flush);
                    let timeout = match &self.live {
                        None => None,
                        Some(_) if some => Some(Duration::ZERO),
                        Some(_) => Some(LIVE_POLL),
                    };
                    events.recv(&mut arrived, timeout);
                }
            }
            self.take_output(&mut arrived)?;
            self.keep(&arrived)?;
            for event in arrived.drain(..) {
                match event {
                    Event::Row(row) => self.take(row, pool)?,
                    Event::Live(live) if self.shows_live => {
                        self.announced.push(live);
                        self.begin_live();
                    }
                    Event::Live(live) => {
                        if let Some(board) = &self.board {
                            board.watch(live);
                        }
                    }
                    Event::Changed(change) => self.change(change, pool)?,
                    Event::Interrupted(exit) => self.interrupt(exit, pool)?,
                    Event::DeadlinePassed => self.end_late(pool)?,
                    Event::HostLost(lost) => self.lose(&lost)?,
                }
            }
            self.commit()?;
        }
    }

    /// Changes the run.
    fn change(&mut self, change: Change, pool: &Pool) -> Result<()> {
        let what = self.control.change(change, pool, self.is_command);
        self.threads.serve(self.control.workers())?;
        match (&self.board, what) {
            (Some(board), what) => board.changed(what, self.control.is_paused),
            (None, Some(what)) if !self.is_quiet => {
                self.screen.progress().suspend(|| say(format_args!("{what}")));
            }
            (None, _) => {}
        }
        Ok(())
    }

    /// Reports a lost host.
    fn lose(&mut self, lost: &LostHost) -> Result<()> {
        let LostHost { host, reason } = lost;
        let what = format!("lost the host {host}: {reason}");
        if self.top.is_some() {
            // The live table has the terminal, and shows it.
            let errors = self.screen.error_lines();
            errors.extend_from_slice(what.as_bytes());
            errors.push(b'\n');
        } else {
            self.screen.progress().suspend(|| say(format_args!("{what}")));
        }
        match &mut self.journal {
            Some(journal) => journal.note_lost(lost),
            None => Ok(()),
        }
    }

    /// Shows what the live job has printed since. Returns whether there was anything.
    fn follow_live(&mut self) -> Result<bool> {
        match &mut self.live {
            None => Ok(false),
            Some(live) => self.screen.follow(live),
        }
    }

    /// Makes the next job in order live, if none is.
    fn begin_live(&mut self) {
        if self.live.is_none() {
            let next = self.announced.iter().position(|live| self.order.is_turn(live.id));
            self.live = next.map(|next| self.announced.swap_remove(next));
        }
    }

    /// Shows a row when it is its turn, and the rows that waited for it.
    fn present(&mut self, mut row: Box<Row>) -> Result<()> {
        self.announced.retain(|live| live.id != row.id);
        match self.live.take_if(|live| live.id == row.id) {
            Some(mut live) => {
                // If the job was lost with its worker, nothing else is left of it.
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
        let Self { order, renderer, screen, tally, threads, journal, .. } = self;
        order.pass(row.id, row, |row| {
            threads.shown();
            if let Some(journal) = journal.as_mut().filter(|journal| journal.is_pending()) {
                journal.note(&row)?;
            }
            show(&row, &mut **renderer, screen, tally)
        })
    }

    /// Writes the results that were shown to their file, and then their jobs to the journal. A job
    /// whose row waits for its turn is not among them: the row would be lost with this process.
    fn commit(&mut self) -> Result<()> {
        let Some(journal) = self.journal.as_mut().filter(|journal| journal.is_pending()) else {
            return Ok(());
        };
        if journal.is_empty() {
            return Ok(());
        }
        let shown = shown(&mut self.screen, &self.results)?;
        journal.note_shown(&shown)?;
        journal.sync()
    }

    /// Writes the end of the run to the journal, where others wait for it.
    pub(super) fn note_end(&mut self, exit: Exit, spans_hosts: bool) -> Result<()> {
        let not_started = self.not_started.saturating_add(self.feed.left().0);
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let end = End {
            exit: exit.code(),
            succeeded: self.ended.saturating_sub(self.failed),
            failed: self.failed,
            not_started,
        };
        match journal.is_pending() {
            true => journal.note_end(end, Some(&shown(&mut self.screen, &self.results)?)),
            false if spans_hosts => journal.note_end(end, None),
            false => Ok(()),
        }
    }

    /// Finds the output of finished jobs, and writes their files. Before the journal has them: a run that
    /// goes on leaves out what is there.
    fn take_output(&mut self, arrived: &mut VecDeque<Event>) -> Result<()> {
        for event in arrived {
            let Event::Row(row) = event else { continue };
            if row.cancelled {
                continue;
            }
            if let Some(spills) = &self.spills {
                row.find(spills);
            }
            if let Some(files) = &mut self.job_files {
                files.write(row)?;
            }
        }
        Ok(())
    }

    /// Writes finished jobs to the journal before any of them is shown.
    fn keep(&mut self, arrived: &VecDeque<Event>) -> Result<()> {
        let journal = self.journal.as_mut().filter(|journal| !journal.is_pending());
        let Some(journal) = journal else { return Ok(()) };
        for event in arrived {
            if let Event::Row(row) = event
                && !row.cancelled
            {
                journal.note(row)?;
            }
        }
        journal.sync()
    }

    /// Starts no more jobs, and shows the rows that came early. Running jobs continue.
    fn start_no_more(&mut self, ending: Ending, pool: &Pool) -> Result<()> {
        self.ending = Some(ending);
        self.control.resume(pool);
        self.feed.stop();
        self.starts.iter().for_each(SharedStart::stop);
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
        self.start_no_more(ending, pool)?;
        self.leave_top()?;
        self.screen.progress().finish();
        let running = format::grouped(pool.stats().running);
        if again {
            say(format_args!("interrupted again: {running} running inputs will be killed"));
        } else {
            say(format_args!(
                "interrupted: {running} running inputs will finish; interrupt again to kill them"
            ));
        }
        Ok(())
    }

    /// Ends the run at its deadline.
    fn end_late(&mut self, pool: &Pool) -> Result<()> {
        if matches!(self.ending, Some(Ending::Killed(_) | Ending::Halted(Halt { now: true, .. }))) {
            return Ok(());
        }
        // The exit of an interruption stays.
        match self.ending {
            Some(Ending::Interrupted(exit)) => self.ending = Some(Ending::Killed(exit)),
            _ => self.start_no_more(Ending::Late, pool)?,
        }
        self.leave_top()?;
        let running = format::grouped(pool.stats().running);
        interrupt::end_jobs(pool, self.is_command).context("failed to start a thread")?;
        self.screen.progress().suspend(|| {
            say(format_args!("the deadline has passed: {running} running jobs will be killed"));
        });
        Ok(())
    }

    /// Leaves the live table and shows results in its place.
    fn leave_top(&mut self) -> Result<()> {
        let Some(top) = self.top.take() else { return Ok(()) };
        drop(top);
        self.screen.release()
    }

    /// Ends the run if enough jobs have failed, or succeeded.
    fn halt(&mut self, pool: &Pool) -> Result<()> {
        let due = self.halt.filter(|halt| halt.is_due(self.failed, self.ended));
        let Some(halt) = due.filter(|_| self.ending.is_none()) else { return Ok(()) };
        self.start_no_more(Ending::Halted(halt), pool)?;
        self.leave_top()?;
        let running = format::grouped(pool.stats().running);
        if halt.now {
            interrupt::end_jobs(pool, self.is_command).context("failed to start a thread")?;
        }
        let fate = if halt.now { "will be killed" } else { "will finish" };
        self.screen.progress().suspend(|| {
            say(format_args!(
                "halted: {} of {} jobs {}; {running} running jobs {fate}",
                format::grouped(halt.counted(self.failed, self.ended)),
                format::grouped(self.ended),
                halt.outcome.past(),
            ));
        });
        Ok(())
    }

    /// Counts a row and shows it.
    fn take(&mut self, mut row: Box<Row>, pool: &Pool) -> Result<()> {
        if let Some(board) = &self.board {
            board.end(&row);
        }
        if row.cancelled {
            self.not_started += 1;
            return Ok(());
        }
        match row.abort.take() {
            None => {}
            Some(Abort::Interrupted) => self.interrupt(Exit::Interrupted, pool)?,
            Some(Abort::OutputClosed) => return Err(OutputClosed.into()),
            Some(Abort::OutputFailed(error)) => {
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
        let is_ended = matches!(
            self.ending,
            Some(Ending::Killed(_) | Ending::Halted(Halt { now: true, .. }) | Ending::Late)
        );
        row.killed |= failed && is_ended;
        if let Some(report) = &mut self.report {
            report.note(&row);
        }
        self.present(row)?;
        if failed {
            self.failed += 1;
            self.unstarted.note(unstarted);
        }
        self.halt(pool)
    }

    /// Writes what is left and returns how the run ended.
    pub(super) fn end(
        &mut self,
        ended: Result<()>,
        pool: &Pool,
        summary: Option<Format>,
        count: bool,
    ) -> Result<Exit> {
        let left = self.leave_top();
        let ended = ended
            .and(left)
            .and_then(|()| mem::take(&mut self.threads).join())
            .and_then(|()| self.commit())
            .and_then(|()| self.close(pool, summary));
        if let Some(error) = self.feed.error() {
            say(format_args!("error: {error}; earlier inputs were processed"));
        }
        match (ended, self.ending) {
            (Err(error), Some(Ending::Interrupted(exit) | Ending::Killed(exit))) => {
                // Writing fails if the terminal or the reader is gone: no error after an
                // interruption.
                if !error.is::<OutputClosed>() {
                    say(format_args!("error: {error:#}"));
                }
                Ok(exit)
            }
            (Ok(()), Some(Ending::Interrupted(exit) | Ending::Killed(exit))) => Ok(exit),
            (Err(error), _) => Err(error),
            (Ok(()), ending)
                if self.failed == 0
                    && (self.feed.error().is_some() || matches!(ending, Some(Ending::Late))) =>
            {
                Ok(if count { Exit::Uncounted } else { Exit::Failure })
            }
            // What it was to wait for has come.
            (Ok(()), Some(Ending::Halted(Halt { outcome: Outcome::Succeeded, .. }))) => {
                Ok(Exit::Success)
            }
            (Ok(()), _) => Ok(Exit::of_failed(self.failed, count, self.unstarted.code())),
        }
    }

    /// Returns how many inputs were not started, as far as known; none if the run was not ended
    /// early.
    pub(super) fn not_started(&self) -> Option<String> {
        self.ending?;
        let (left, is_least) = self.feed.left();
        let not_started = self.not_started.saturating_add(left);
        let number = format::grouped(not_started);
        if is_least {
            return Some(format!("{number} or more"));
        }
        (not_started > 0).then_some(number)
    }

    /// Prints the summary: below a table on standard output, otherwise on standard error.
    fn close(&mut self, pool: &Pool, summary: Option<Format>) -> Result<()> {
        self.screen.progress().finish();
        let not_started = self.not_started();
        self.screen.flush()?;
        let Some(format) = summary else {
            // An interruption has already reported the early end.
            let halted = matches!(self.ending, Some(Ending::Halted(_) | Ending::Late));
            if let Some(not_started) = not_started.filter(|_| halted) {
                say(format_args!("{not_started} inputs were not started"));
            }
            return Ok(());
        };
        let workers = pool.workers();
        // The wall time includes the end of the workers.
        pool.close();
        pool.join();
        let now = Instant::now();
        let not_started = not_started.as_deref();
        let text = match format {
            Format::Plain => self.tally.summary("jobs", now, not_started),
            _ => self.tally.workers(&workers) + &self.tally.summary("tasks", now, not_started),
        };
        let to =
            if format == Format::Table { self.screen.page() } else { self.screen.error_lines() };
        to.extend_from_slice(text.as_bytes());
        self.screen.flush()
    }
}

/// Writes everything, and returns how far the results are written.
fn shown(screen: &mut Screen, results: &Option<String>) -> Result<Shown> {
    screen.flush()?;
    if results.is_some() {
        screen.sync()?;
    }
    let [out, err] = screen.lengths();
    Ok(Shown { out, err, file: results.clone() })
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
    renderer.row_errors(row, screen.errors());
    screen.flush_if_full()
}
