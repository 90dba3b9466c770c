//! Workers that are forked from a template: a fresh process for each task, many workers, and a preloaded table.

use std::time::Instant;

use procpool::{Pool, PoolBuilder, StartMethod, with_state};

use crate::measure::{Contender, Outcome, SampleSize, median, seconds, take_turns};
use crate::peers::Peers;
use crate::report::{Bound, Row, Unit};
use crate::startup_and_death::{identity, rollup, wait_until_idle};

/// Bytes that the preload function builds.
const TABLE: usize = 400_000_000;

struct Table(Vec<u64>);

fn build(bytes: usize) -> Table {
    Table((0..(bytes / 8) as u64).collect())
}

fn look_up(x: u64) -> u64 {
    with_state(|table: &mut Table| table.0[x as usize]).unwrap()
}

fn template() -> PoolBuilder {
    Pool::builder().start_method(StartMethod::Template)
}

/// Returns the seconds that `forks` forks take, each with its exit and its end awaited. Runs in a worker: as the
/// template, it is a small process with one thread.
fn bare_forks(forks: u32) -> f64 {
    let start = Instant::now();
    for _ in 0..forks {
        // SAFETY: the copy exits at once, and the process has one thread.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                libc::_exit(0);
            }
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }
    start.elapsed().as_secs_f64()
}

/// The same with the crate mem-isolate.
fn isolated_calls(calls: u32) -> f64 {
    let start = Instant::now();
    for _ in 0..calls {
        mem_isolate::execute_in_isolated_process(|| 1u64).unwrap();
    }
    start.elapsed().as_secs_f64()
}

/// A fresh process for each of many empty tasks.
pub(crate) fn fresh(_: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let tasks = if size.name == "full" { 1_000 } else { 200 };
    let in_pool = |pool: PoolBuilder| -> Outcome<Pool> {
        Ok(pool.workers(2).max_tasks_per_worker(1).build()?)
    };
    let (forked, executed) =
        (in_pool(template())?, in_pool(Pool::builder().start_method(StartMethod::Spawn))?);
    let single = template().workers(1).build()?;
    let per_task = |time: f64| time / f64::from(tasks);
    let through = |pool: &Pool| -> Outcome<f64> {
        let (time, results) = seconds(|| pool.map(identity, 0..u64::from(tasks)));
        results?;
        Ok(per_task(time))
    };
    let contenders = vec![
        Contender::new("procpool, from a template", || through(&forked)),
        Contender::new("procpool, spawned", || through(&executed)),
        Contender::new("bare fork", || Ok(per_task(single.apply(bare_forks, tasks)?))),
        Contender::new("mem-isolate", || Ok(per_task(single.apply(isolated_calls, tasks)?))),
        Contender::new("procspawn", || {
            let few = 50;
            let (time, outcome) = seconds(|| -> Outcome<()> {
                for x in 0..few {
                    procspawn::spawn(x, identity).join()?;
                }
                Ok(())
            });
            outcome?;
            Ok(time / few as f64)
        }),
    ];
    let field = take_turns(size.repetitions, contenders)?;
    let who = "procpool, from a template";
    let bare = field.ratio(who, "bare fork");
    let rate = field.values(who).iter().map(|time| 1.0 / time).collect();
    let faster = |than| field.ratio(than, who);
    let (isolate, spawn, exec) =
        (faster("mem-isolate"), faster("procspawn"), faster("procpool, spawned"));
    Ok(Row::new("a fresh process for each empty task, 2 workers", Unit::Seconds, field)
        .at_most(3.0, "a bare fork, `_exit` and wait", bare)
        .goal("≥ 3,800 tasks/s (4 × 950)", Bound::AtLeast(3_800.0), Unit::PerSecond, rate)
        .at_least(1.0, "faster than mem-isolate", isolate)
        .at_least(1.0, "faster than procspawn", spawn)
        .at_least(4.0, "faster than procpool without a template", exec)
        .note("the bare fork and mem-isolate run one after the other, in a worker."))
}

/// Many workers, made and all answering.
pub(crate) fn many_workers(_: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    const WORKERS: usize = 64;
    let made = |pool: PoolBuilder| {
        let (time, pool) = seconds(|| -> Outcome<Pool> {
            let pool = pool.workers(WORKERS).build()?;
            for result in pool.broadcast(identity, 1) {
                result?;
            }
            Ok(pool)
        });
        pool?.terminate();
        Ok(time)
    };
    let contenders = vec![
        Contender::new("from a template", || made(template())),
        Contender::new("spawned", || made(Pool::builder().start_method(StartMethod::Spawn))),
    ];
    let field = take_turns(size.repetitions, contenders)?;
    let values = field.values("from a template");
    Ok(Row::new("64 workers made and all answering", Unit::Seconds, field)
        .goal("≤ 15 ms", Bound::AtMost(15e-3), Unit::Seconds, values)
        .note("the start of the template included."))
}

/// The memory of workers with a large preloaded table.
pub(crate) fn preload_memory(_: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    /// Sums the workers' proportional set sizes, with that of the template.
    fn memory(pool: PoolBuilder, workers: usize) -> Outcome<f64> {
        let pool = pool.name("table").workers(workers).build()?;
        for result in pool.broadcast(look_up, 1) {
            result?;
        }
        wait_until_idle(&pool)?;
        let template = children("table/template")?;
        let pids = pool.workers().into_iter().map(|worker| worker.pid).chain(template);
        pids.map(|pid| rollup(pid, &["Pss:"])).sum()
    }
    let turns = size.long_repetitions;
    let contenders = vec![
        Contender::new("4 workers from a template, and it", || {
            memory(Pool::builder().preload(build, TABLE), 4)
        }),
        Contender::new("1 worker with an initializer", || {
            memory(Pool::builder().initializer(build, TABLE), 1)
        }),
        Contender::new("4 workers with an initializer", || {
            memory(Pool::builder().initializer(build, TABLE), 4)
        }),
    ];
    let field = take_turns(turns, contenders)?;
    let ratio = field.ratio("4 workers from a template, and it", "1 worker with an initializer");
    Ok(Row::new("memory of workers with a table of 400 MB (sum of PSS)", Unit::Bytes, field)
        .at_most(1.2, "one worker", ratio))
}

/// Returns the children of this process whose title this is.
fn children(title: &str) -> Outcome<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(Ok(pid)) = entry?.file_name().to_str().map(str::parse) else { continue };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).any(|argument| argument.ends_with(title.as_bytes())) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// From the crash of a worker with a large preloaded table to the next answer.
pub(crate) fn preload_crash(_: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    const CRASHES: usize = 5;
    let pool = |pool: PoolBuilder| pool.workers(1).build();
    let (preloaded, initialized) = (
        pool(Pool::builder().preload(build, TABLE))?,
        pool(Pool::builder().initializer(build, TABLE))?,
    );
    let crashes = |pool: &Pool| -> Outcome<f64> {
        let mut times = Vec::new();
        for _ in 0..CRASHES {
            let start = Instant::now();
            let outcome = pool.apply(|x: u64| if x == 0 { std::process::abort() } else { x }, 0);
            if outcome.is_ok() {
                return Err("the task did not crash".into());
            }
            pool.apply(look_up, 1)?;
            times.push(start.elapsed().as_secs_f64());
        }
        Ok(median(&times))
    };
    let field = take_turns(
        size.long_repetitions,
        vec![
            Contender::new("preloaded", || crashes(&preloaded)),
            Contender::new("initialized anew", || crashes(&initialized)),
        ],
    )?;
    let values = field.values("preloaded");
    Ok(Row::new("a crash beside a table of 400 MB, to the next answer", Unit::Seconds, field)
        .goal("≤ 5 ms", Bound::AtMost(5e-3), Unit::Seconds, values)
        .note("from the call that crashes; a pool of one, without a spare."))
}
