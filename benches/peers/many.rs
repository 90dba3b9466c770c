//! Very many items, and very many workers.

use procpool::Pool;

use crate::machine::cpu_seconds;
use crate::measure::{Field, Outcome, SampleSize, median, seconds};
use crate::peers::Peers;
use crate::report::{Bound, Row, Unit};
use crate::startup_and_death::wait_until_idle;

/// Items of a `map`, and single calls, for a pool of any size.
const ITEMS: u64 = 200_000;
const CALLS: u64 = 20_000;

/// The largest ratio that counts as flat.
const FLAT: f64 = 1.25;

fn identity(x: u64) -> u64 {
    x
}

pub(crate) fn stream(peers: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let lengths: Vec<u64> =
        (4..=7).map(|power| 10u64.pow(power)).filter(|items| *items <= size.items).collect();
    let mut costs = vec![Vec::new(); lengths.len()];
    let mut growths = Vec::new();
    run_through(&peers.pool, lengths[0])?;
    for _ in 0..size.long_repetitions {
        for (items, costs) in lengths.iter().zip(&mut costs) {
            // A single short stream is over too soon to mean much.
            let times = (1_000_000 / items).clamp(1, 30);
            let streams: Outcome<Vec<_>> =
                (0..times).map(|_| run_through(&peers.pool, *items)).collect();
            let streams = streams?;
            let each: Vec<f64> = streams.iter().map(|(cost, _)| *cost).collect();
            costs.push(median(&each));
            if *items == size.items {
                growths.extend(streams.iter().map(|(_, growth)| *growth));
            }
        }
    }
    let flatness = |costs: &[Vec<f64>]| -> Vec<f64> {
        let (first, last) = (&costs[0], &costs[costs.len() - 1]);
        last.iter().zip(first).map(|(last, first)| last / first).collect()
    };
    let flat = flatness(&costs);
    let figures = lengths
        .iter()
        .zip(costs)
        .map(|(items, costs)| (format!("an item of 10^{}", items.ilog10()), costs));
    let field = Field::of(figures);
    Ok(Row::new(
        format!("{} items through `imap_unordered`", power(size.items)),
        Unit::Seconds,
        field,
    )
    .goal(
        "the parent's memory grows by ≤ 8 MiB",
        Bound::AtMost(8.0 * 1048576.0),
        Unit::Bytes,
        growths,
    )
    .goal(
        format!("cost per item flat from 10^4 to {} (≤ {FLAT} ×)", power(size.items)),
        Bound::AtMost(FLAT),
        Unit::Times,
        flat,
    )
    .note(
        "growth: the most resident memory at any time, less what it was after the first \
               hundredth of the items.",
    ))
}

fn power(items: u64) -> String {
    format!("10^{}", items.ilog10())
}

/// Returns the seconds per item, and by how many bytes the parent grew.
fn run_through(pool: &Pool, items: u64) -> Outcome<(f64, f64)> {
    let (mut early, mut most) = (0, 0);
    let (time, done) = seconds(|| -> Outcome<u64> {
        let mut sum = 0u64;
        for (place, result) in (0..).zip(pool.imap_unordered(identity, 0..items)) {
            sum += result?;
            if place == items / 100 {
                early = resident();
            }
            if place % 65_536 == 0 && early > 0 {
                most = most.max(resident());
            }
        }
        Ok(sum)
    });
    if done? != items * (items - 1) / 2 {
        return Err("not every item came back once".into());
    }
    most = most.max(resident());
    Ok((time / items as f64, most as f64 - early as f64))
}

/// Returns the resident memory of this process in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}

pub(crate) fn workers(_: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let sizes: Vec<usize> =
        (0..=8).map(|power| 1 << power).filter(|count| *count <= size.workers).collect();
    let mut in_maps = vec![Vec::new(); sizes.len()];
    let mut in_calls = vec![Vec::new(); sizes.len()];
    for _ in 0..size.long_repetitions {
        for (place, size) in sizes.iter().enumerate() {
            let pool = Pool::new(*size)?;
            wait_until_idle(&pool)?;
            pool.map(identity, 0..ITEMS / 10)?; // warms up
            in_maps[place].push(cpu(|| Ok(pool.map(identity, 0..ITEMS)?))? / ITEMS as f64);
            single_calls(&pool, CALLS / 10)?;
            in_calls[place].push(cpu(|| single_calls(&pool, CALLS))? / CALLS as f64);
            pool.terminate();
        }
    }
    let (maps, calls) = (worst(&sizes, &in_maps), worst(&sizes, &in_calls));
    let name = |kind: &str, size: &usize| match size {
        1 => format!("{kind}, 1 worker"),
        size => format!("{kind}, {size} workers"),
    };
    let figures = sizes.iter().zip(in_maps).map(|(size, costs)| (name("map", size), costs));
    let calls_figures =
        sizes.iter().zip(in_calls).map(|(size, costs)| (name("apply_async", size), costs));
    let field = Field::of(figures.chain(calls_figures));
    let what = format!("1 to {} workers, empty tasks: parent's CPU per task", size.workers);
    Ok(Row::new(what, Unit::Seconds, field)
        .at_most(1.5, "its cost at 2 workers, the worst, in a `map`", maps)
        .at_most(1.5, "its cost at 2 workers, the worst, in single calls", calls)
        .note(format!(
            "a `map` of {ITEMS} items and {CALLS} `apply_async`; the CPU time of all threads of the \
             parent."
        )))
}

/// Divides the cost at each size by the cost at 2 workers, by repetition, and takes the worst.
fn worst(sizes: &[usize], costs: &[Vec<f64>]) -> Vec<f64> {
    let two = sizes.iter().position(|size| *size == 2).unwrap();
    let most = |round: usize| costs.iter().map(|costs| costs[round]).fold(0.0, f64::max);
    costs[two].iter().enumerate().map(|(round, two)| most(round) / two).collect()
}

fn single_calls(pool: &Pool, calls: u64) -> Outcome<()> {
    let tasks: Vec<_> = (0..calls).map(|x| pool.apply_async(identity, x)).collect();
    for task in tasks {
        task.get()?;
    }
    Ok(())
}

/// Returns the CPU seconds that this process spends in `work`, over all threads.
fn cpu<R>(work: impl FnOnce() -> Outcome<R>) -> Outcome<f64> {
    let start = cpu_seconds();
    let result = work()?;
    let spent = cpu_seconds() - start;
    drop(result);
    Ok(spent)
}
