//! `procpool run`: runs a command or a built-in task over inputs in a pool.
//!
//! This file owns the pool and the threads around it, and ends the workers with the run.
//! `event_loop` decides what events mean.

mod dry_run;
mod event_loop;
mod messages;
mod place;

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::mem;
use std::num::NonZero;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use self::dry_run::dry_run;
use self::event_loop::{Run, Unstarted};
use self::messages::{report_skipped, say};
use self::place::{Place, Results};
use super::args::{Format, RunArgs};
use super::collect::{AHEAD, Collector, Event, Events, WAITING};
use super::control::Control;
use super::exit::{Exit, Usage};
use super::interrupt;
use super::job_files::JobFiles;
use super::jobs::{BuiltIn, Commands, JobMaker, Work};
use super::journal::{History, Journal};
use super::launch;
use super::log::Log;
use super::median::Median;
use super::numbers::Numbers;
use super::order::Order;
use super::plan::{LogTo, RunPlan, WorkPlan};
use super::progress::Progress;
use super::render;
use super::report::{Report, RunEnd};
use super::screen::{OutputClosed, Screen};
use super::spill::Spills;
use super::summary::Tally;
use super::top::{Board, Top};
use super::trace::Trace;
use super::units::TimeLimit;
use crate::os::terminal::Terminal;
use crate::tasks::command::{self, SharedStart};
use procpool::{LogLevel, Pool, PoolBuilder, StartMethod, WorkerInfo, WorkerState};

/// The most jobs of a run whose bar shows how far each is: watching costs a little for each.
const MAX_LONG_JOBS: u64 = 10_000;

/// A task with fewer inputs per worker than this waits until all workers are ready. Otherwise the
/// first ready worker would process all of them. Workers start within milliseconds.
const FEW_PER_WORKER: u64 = 8;

/// How long such a task waits at most.
const LONGEST_START: Duration = Duration::from_secs(1);

pub(super) fn run(mut args: RunArgs) -> Result<Exit> {
    let started = Instant::now();
    let orders = args.hosts.supervised.as_deref().map(launch::attach).transpose()?;
    if let Some(exit) = launch::launch(&args)? {
        return Ok(exit);
    }
    let place = Place::of(&mut args, orders);
    let mut plan = RunPlan::resolve(args)?;
    if plan.dry_run {
        return dry_run(plan);
    }
    let median = Arc::new(Median::default());
    let events = Arc::new(Events::new(WAITING));
    let mut spills = None;
    let mut starts = None;
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
            run_work(plan, place, work, builder, median, started, events, None, None)
        }
        WorkPlan::Command(ref mut spec) => {
            let template = spec.template.clone();
            if spec.start.hold() && place.spans_hosts() {
                return Err(Usage::error(
                    "--delay, --load and --memfree are for runs on one machine: leave them out",
                ));
            }
            if (spec.start.hold() || spec.start.retry_delay.is_some()) && !place.spans_hosts() {
                spec.start.shared = Some(SharedStart::new()?);
                starts = spec.start.shared.clone();
            }
            if spec.start.hold() && plan.chunk_size.is_none() {
                // A job that waits must not hold those behind it.
                plan.chunk_size = Some(1);
            }
            let waits = spec.start.hold() || spec.start.retry_delay.is_some();
            if spec.prints == command::OutputMode::Grouped {
                let (listening, name) = Spills::listen({
                    let events = Arc::clone(&events);
                    move |live| {
                        events.send_over_capacity(Event::Live(live));
                    }
                })?;
                spec.spill = name;
                spec.watched = plan.top;
                spills = Some(listening);
            }
            let mut builder = Pool::builder().initializer(command::prepare, (**spec).clone());
            match limits.timeout {
                // The worker enforces the limits of its jobs. This limit is for a worker that is
                // stopped, and would end the waiting for a start.
                Some(TimeLimit::Fixed(limit)) if !waits => {
                    let attempts = limits.retries.saturating_add(1);
                    builder = builder
                        .task_timeout((limit + Duration::from_secs(5)).saturating_mul(attempts));
                }
                // The limit is computed when a job is made, so few jobs are made ahead.
                Some(TimeLimit::OfMedian(_)) => {
                    let workers = match plan.workers {
                        0 => thread::available_parallelism().map_or(1, NonZero::get),
                        workers => workers,
                    };
                    builder = builder.window(2 * workers * place.hosts());
                }
                Some(TimeLimit::Fixed(_)) | None => {}
            }
            let work = Commands::new(template, limits.timeout, Arc::clone(&median));
            let work = work.reading(plan.blocks.clone());
            run_work(plan, place, work, builder, median, started, events, spills, starts)
        }
    }
}

#[allow(clippy::too_many_arguments)] // each is of another stage
fn run_work<W: Work>(
    mut plan: RunPlan,
    place: Place,
    work: W,
    builder: PoolBuilder,
    median: Arc<Median>,
    started: Instant,
    events: Arc<Events>,
    spills: Option<Spills>,
    starts: Option<SharedStart>,
) -> Result<Exit> {
    let is_command = matches!(plan.work, WorkPlan::Command(_));
    let has_terminal = matches!(&plan.work, WorkPlan::Command(spec) if spec.has_terminal);
    let terminal = has_terminal
        .then(Terminal::open)
        .transpose()
        .map_err(|error| Usage::error(format!("--tty needs a terminal: {error}; leave it out")))?;
    let numbers = Numbers::default();
    let log = match &plan.log {
        LogTo::File(path) => Some(Log::create(path, numbers.clone())?),
        LogTo::Stderr => Some(Log::to_stderr(numbers.clone())),
        LogTo::Nowhere => None,
    };
    let trace = plan.trace.as_deref();
    let trace = trace.map(|path| Trace::create(path, numbers.clone())).transpose()?;
    let manner = place.journal_manner(plan.results.is_some());
    let job_files = plan.job_files.as_deref();
    let job_files = job_files.map(|dir| JobFiles::create(dir, &plan.form)).transpose()?;
    let report = plan.report.as_deref().map(Report::open).transpose()?;
    let (journal, history): (_, Option<History>) =
        Journal::open(&plan.journal, plan.form.columns, manner)?.unzip();
    let results = Results::open(&plan, &place, history.as_ref())?;
    let known = history.as_ref().map(|history| (history.counts(), history.failed()));
    let before = history.as_ref().map(History::before).unwrap_or_default();
    let board = plan.top.then(Arc::<Board>::default);
    let builder = match &board {
        None => builder,
        Some(board) => {
            let board = Arc::clone(board);
            builder.on_event(move |event| board.note(event))
        }
    };
    // A supervisor writes the results to the terminal, without regard to a bar.
    let shows_bar = plan.progress && !(place.is_supervised() && io::stdout().is_terminal());
    let progress = if shows_bar {
        Progress::shown(plan.source.count(plan.takes))
    } else {
        Progress::default()
    };
    // Programs say nothing of their progress, and many jobs are too short to say it.
    let is_long = |total: u64| total <= MAX_LONG_JOBS;
    let is_long = !is_command && plan.source.count(plan.takes).is_none_or(is_long);
    let builder = match progress.jobs().filter(|_| is_long) {
        Some(jobs) => builder.on_event(move |event| jobs.note(event)),
        None => builder,
    };
    let builder = place.build_on(builder, &events);
    let signals = interrupt::catch(place.spans_hosts())?;
    let pool = build_pool(&plan, builder, log.clone(), trace.clone())?;
    plan.form.hosts = place.shows_hosts(&pool);
    let spans_hosts = place.spans_hosts();
    interrupt::watch(signals, Arc::clone(&events), pool.clone(), is_command, spans_hosts)?;
    let top = match &board {
        None => None,
        Some(board) => {
            let total = plan.source.count(plan.takes);
            // What is typed is input where the inputs come from the same terminal.
            let takes_keys = !plan.source.is_live() || !io::stdin().is_terminal();
            let events = Arc::clone(&events);
            let change = move |change| {
                events.send_over_capacity(Event::Changed(change));
            };
            let keys = takes_keys.then_some(change);
            Some(Top::start(Arc::clone(board), pool.clone(), total, keys)?)
        }
    };
    if let Some(deadline) = plan.deadline {
        end_at(started + deadline, &events)?;
    }
    let is_live = plan.source.is_live();
    let few = FEW_PER_WORKER * pool.workers().len() as u64;
    if !is_command && !is_live && plan.source.count_to(plan.takes, few).is_some_and(|it| it < few) {
        wait_until_ready(&pool);
    }
    let (inputs, feed) = plan.source.stream(plan.takes);
    let jobs = JobMaker::new(work, history, numbers);
    let collector = Collector::new(pool.clone(), jobs.task(), Arc::clone(&events), board.clone());
    let threads = if is_live {
        let ahead = plan.blocks.as_ref();
        let ahead = ahead.map_or(AHEAD, |blocks| blocks.ahead(pool.workers().len()));
        collector.live(inputs, jobs, feed.clone(), ahead)?
    } else {
        collector.at_hand(inputs, jobs, plan.unordered)?
    };

    let mut run = Run {
        renderer: render::renderer(plan.format, &plan.form, plan.plain.clone()),
        screen: Screen::new(progress),
        tally: Tally::since(started, before),
        order: if plan.unordered { Order::of_arrival() } else { Order::of_inputs() },
        journal,
        results: results.file,
        trace: trace.clone(),
        report,
        job_files,
        median,
        halt: plan.limits.halt,
        spills,
        starts,
        live: None,
        // Only where a row is nothing but the job's output.
        shows_live: plan.format == Format::Plain
            && plan.plain.tag.is_none()
            && plan.plain.command.is_none()
            && !plan.top
            && !results.is_elsewhere,
        announced: Vec::new(),
        waiting: VecDeque::new(),
        is_command,
        ended: before.succeeded + before.failed,
        failed: before.failed,
        unstarted: Unstarted::after(before.failed),
        not_started: 0,
        threads,
        feed,
        ending: None,
        board,
        top,
        control: Control::of(&pool),
        is_quiet: plan.is_quiet,
    };
    if run.top.is_some() {
        run.screen.hold();
    }
    if results.is_elsewhere {
        run.screen.write_to(results.out, results.err);
    }
    let ended = run.follow(&events, &pool, results.is_continued);
    if ended.is_err() {
        // The remaining results have no reader.
        run.feed.stop();
        events.close();
        pool.terminate();
    }
    let ended = run.end(ended, &pool, plan.summary.then_some(plan.format), plan.exit_count);
    let reported = run.report.take().map_or(Ok(()), |report| {
        let not_started = run.not_started();
        // The reader of the output may be gone, and that is a clean end.
        let exit = match &ended {
            Ok(exit) => *exit,
            Err(error) if error.is::<OutputClosed>() => Exit::Success,
            Err(_) => Exit::Failure,
        };
        report.write(&RunEnd { code: exit.code(), not_started: not_started.as_deref() })
    });
    if ended.is_ok() {
        pool.join();
    }
    terminal.iter().for_each(Terminal::recover);
    let closed = [log.map(|log| log.close()), trace.map(|trace| trace.close())];
    let reported = reported.map_err(|error| format!("{error:#}"));
    let closed = closed.into_iter().flatten().chain([reported]);
    let errors: Vec<_> = closed.filter_map(Result::err).collect();
    for error in &errors {
        say(format_args!("error: {error}"));
    }
    let exit = ended?;
    let is_in_vain = known.is_some_and(|(counts, failed)| {
        report_skipped(&plan.journal, &counts, failed, plan.is_quiet) && exit == Exit::Success
    });
    let is_new = (!errors.is_empty() && exit == Exit::Success) || is_in_vain;
    let exit = if is_new { Exit::Failure } else { exit };
    run.note_end(exit, place.spans_hosts())?;
    Ok(exit)
}

/// Ends the run at this time, if it has not ended.
fn end_at(deadline: Instant, events: &Arc<Events>) -> Result<()> {
    let events = Arc::downgrade(events);
    let wait = move || {
        thread::sleep(deadline.saturating_duration_since(Instant::now()));
        if let Some(events) = events.upgrade() {
            events.send_over_capacity(Event::DeadlinePassed);
        }
    };
    // Not waited for: it ends with the process.
    thread::Builder::new()
        .name("deadline".into())
        .spawn(wait)
        .context("failed to start a thread")?;
    Ok(())
}

/// Blocks until no worker is starting.
fn wait_until_ready(pool: &Pool) {
    let deadline = Instant::now() + LONGEST_START;
    let is_starting =
        |worker: &WorkerInfo| matches!(worker.state, WorkerState::Absent | WorkerState::Starting);
    while pool.workers().iter().any(is_starting) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
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
    if plan.source.count_to(plan.takes, 1).is_none() {
        // Of inputs that are not known yet: workers start as there is work for them.
        builder = builder.initial_workers(1);
    }
    if let Some(sandbox) = &plan.sandbox {
        builder = builder.sandbox(sandbox.clone());
    }
    if let Some(dir) = &plan.dir {
        builder = builder.current_dir(dir);
    }
    if plan.fresh {
        builder = builder.max_tasks_per_worker(1).start_method(StartMethod::Template);
    }
    if let Some(tasks) = limits.max_tasks {
        builder = builder.max_tasks_per_worker(tasks.get());
    }
    if !plan.gpus.is_empty() {
        let gpus = plan.gpus.clone();
        // Slots of a host count from 0 here, so that each host uses all GPUs.
        builder = builder.env_per_worker(move |slot| {
            let gpu = &gpus[slot % gpus.len()];
            let variables = ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"];
            variables.map(|name| (name.into(), gpu.into())).into()
        });
    }
    if let Some(log) = log {
        builder = builder.worker_logs(LogLevel::Debug).on_event(move |event| log.write(event));
    }
    if let Some(trace) = trace {
        builder = builder.on_event(move |event| trace.note(event));
    }
    builder.build().context("failed to start the pool")
}
