//! The start of processes, the replacement of dead ones, and the memory of idle ones.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use procpool::shared::SharedValue;
use procpool::{Pool, WorkerState};
use serde_json::json;

use crate::machine::available_memory;
use crate::measure::{
    Contender, Field, Outcome, SampleSize, median, median_call, seconds, take_turns,
};
use crate::peers::{Peers, start_copy};
use crate::report::{Bound, Row, Unit};

/// Memory that a large parent holds, and that must be free for it.
const BALLAST: usize = 4 << 30;
const ROOM_FOR_BALLAST: u64 = 6 << 30;

/// Starts per turn, of which the median counts.
const STARTS: usize = 7;

pub(crate) fn identity(x: u64) -> u64 {
    x
}

/// Returns the seconds until a pool of 2 has its first result. The end of the pool is not timed.
fn first_answer() -> Outcome<f64> {
    let (time, pool) = seconds(|| -> Outcome<Pool> {
        let pool = Pool::new(2)?;
        pool.apply(identity, 1)?;
        Ok(pool)
    });
    pool?.terminate();
    Ok(time)
}

fn median_of_starts(mut start: impl FnMut() -> Outcome<f64>) -> Outcome<f64> {
    let times: Outcome<Vec<_>> = (0..STARTS).map(|_| start()).collect();
    Ok(median(&times?))
}

pub(crate) fn start(peers: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let mut field = starts(peers, size.repetitions)?;
    let ratio = field.ratio("procpool", "a copy of oneself");
    let (beside, note) = if available_memory() < ROOM_FOR_BALLAST {
        (Vec::new(), "Less than 6 GiB were available: not tried beside a parent of 4 GiB.")
    } else {
        let mut ballast = vec![0u8; BALLAST];
        ballast.iter_mut().step_by(4096).for_each(|page| *page = 1);
        let large = take_turns(
            size.repetitions,
            vec![
                Contender::new("procpool, parent of 4 GiB", || median_of_starts(first_answer)),
                Contender::new("a copy of oneself, parent of 4 GiB", || {
                    median_call(STARTS, start_copy)
                }),
            ],
        )?;
        drop(std::hint::black_box(ballast));
        let small = median(&field.values("procpool"));
        let beside = large.values("procpool, parent of 4 GiB");
        field.0.extend(large.0);
        (beside.iter().map(|time| time / small).collect(), "")
    };
    Ok(Row::new("pool of 2 and first answer", Unit::Seconds, field)
        .at_most(3.0, "starting a copy of oneself", ratio)
        .goal(
            "no slower beside a parent of 4 GiB (≤ 1.1 ×)",
            Bound::AtMost(1.1),
            Unit::Times,
            beside,
        )
        .note(format!("each figure is the median of {STARTS} starts."))
        .note(note))
}

fn starts(peers: &mut Peers, repetitions: usize) -> Outcome<Field> {
    let Peers { mp_pool, executor, .. } = peers;
    let mut contenders = vec![
        Contender::new("procpool", || median_of_starts(first_answer)),
        Contender::new("a copy of oneself", || median_call(STARTS, start_copy)),
        Contender::new("procspawn", || {
            median_of_starts(|| {
                let (time, pool) = seconds(|| -> Outcome<procspawn::Pool> {
                    let pool = procspawn::Pool::new(2)?;
                    pool.spawn(1, identity).join()?;
                    Ok(pool)
                });
                pool?.kill();
                Ok(time)
            })
        }),
    ];
    for (who, python) in [("Pool", mp_pool), ("ProcessPoolExecutor", executor)] {
        if let Some(python) = python {
            contenders.push(Contender::new(who, move || python.seconds("start", json!({}))));
        }
    }
    take_turns(repetitions, contenders)
}

/// Records the time, on the clock that all processes share, and dies. In shared memory: a write to a file may
/// wait for the disk.
fn die(death: SharedValue<AtomicU64>) {
    death.store(clock(), Relaxed);
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
        .unwrap();
}

/// Returns the nanoseconds of CLOCK_MONOTONIC.
fn clock() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that may be written.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub(crate) fn crash(_: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let death = SharedValue::<AtomicU64>::atomic(0)?;
    let pool = Pool::new(1)?; // only the replacement can return the next result
    let busy = || {
        if pool.apply(die, death.clone()).is_ok() {
            return Err("the task did not die".into());
        }
        pool.apply(identity, 1)?;
        let answered = clock();
        Ok((answered - death.load(Relaxed)) as f64 / 1e9)
    };
    let spare = Pool::builder().workers(1).spares(1).build()?;
    let replaced = || {
        wait_until_idle(&spare)?;
        if spare.apply(die, death.clone()).is_ok() {
            return Err("the task did not die".into());
        }
        spare.apply(identity, 1)?;
        let answered = clock();
        Ok((answered - death.load(Relaxed)) as f64 / 1e9)
    };
    let idle = || {
        let worker = pool.workers().first().map_or(0, |worker| worker.pid);
        let pid = rustix::process::Pid::from_raw(worker as i32).ok_or("there is no worker")?;
        let start = Instant::now();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        while pool.apply(|()| std::process::id(), ()).unwrap_or(worker) == worker {}
        Ok(start.elapsed().as_secs_f64())
    };
    let contenders = vec![
        Contender::new("it dies in a task", || median_of_starts(busy)),
        Contender::new("it dies in a task, and a spare stands by", || median_of_starts(replaced)),
        Contender::new("it is killed while idle", || median_of_starts(idle)),
    ];
    let field = take_turns(size.repetitions, contenders)?;
    let busy = field.values("it dies in a task");
    let replaced = field.values("it dies in a task, and a spare stands by");
    Ok(Row::new("a crash: from the death to the next answer", Unit::Seconds, field)
        .goal("≤ 3 ms", Bound::AtMost(3e-3), Unit::Seconds, busy)
        .goal("≤ 0.5 ms with a spare", Bound::AtMost(0.5e-3), Unit::Seconds, replaced)
        .note(
            "a pool of one, so that the answer is the replacement's; it includes telling the \
               caller of the death, and the caller's next call.",
        ))
}

pub(crate) fn memory(_: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let mut private = Vec::new();
    let mut resident = Vec::new();
    for _ in 0..size.repetitions {
        let pool = Pool::new(2)?;
        pool.map(identity, 0..1_000)?;
        wait_until_idle(&pool)?;
        for worker in pool.workers() {
            private.push(rollup(worker.pid, &["Private_Clean:", "Private_Dirty:"])?);
            resident.push(rollup(worker.pid, &["Rss:"])?);
        }
    }
    let figures = [("private".to_owned(), private.clone()), ("resident".to_owned(), resident)];
    Ok(Row::new("idle worker's memory", Unit::Bytes, Field::of(figures))
        .goal("≤ 1 MiB private", Bound::AtMost(1048576.0), Unit::Bytes, private)
        .note(
            "each worker of several pools of 2 that have done 1,000 small items; \
               Private_Clean + Private_Dirty of smaps_rollup.",
        ))
}

/// Waits until all workers are idle.
pub(crate) fn wait_until_idle(pool: &Pool) -> Outcome<()> {
    let start = Instant::now();
    while pool.workers().iter().any(|worker| worker.state != WorkerState::Idle) {
        if start.elapsed() > Duration::from_secs(60) {
            return Err("the workers did not come to rest within a minute".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Returns the sum of these lines of smaps_rollup in bytes.
pub(crate) fn rollup(pid: u32, names: &[&str]) -> Outcome<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = |line: &str| -> Option<f64> {
        let (name, rest) = line.split_once(' ')?;
        let value = rest.trim().strip_suffix(" kB")?.parse().ok()?;
        names.contains(&name).then_some(value)
    };
    Ok(text.lines().filter_map(kib).sum::<f64>() * 1024.0)
}
