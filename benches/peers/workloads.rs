//! Workloads: one with items of different cost, and two of pure work.

use std::time::Duration;

use procpool::Pool;
use rayon::prelude::*;
use serde_json::json;

use crate::measure::{Contender, Field, Outcome, SampleSize, seconds, take_turns};
use crate::peers::Peers;
use crate::random;
use crate::report::{Bound, Row, Unit};

const SLOW: f64 = 0.5;
const FAST: f64 = 0.01;
const SLOW_ITEMS: usize = 6;
const ITEMS: usize = 64;

fn sleep(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

pub(crate) fn skewed(peers: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let Peers { pool, mp_pool, cores, .. } = peers;
    let mut last = vec![FAST; ITEMS - SLOW_ITEMS];
    last.extend([SLOW; SLOW_ITEMS]);
    let shuffled = shuffled(&last);
    let ideal = ideal(&last, *cores);
    let turn = |load: &Vec<f64>| {
        let (time, done) = seconds(|| pool.map(sleep, load.clone()));
        done?;
        Ok(time)
    };
    let mut contenders = vec![
        Contender::new("procpool, shuffled", || turn(&shuffled)),
        Contender::new("procpool, slow ones last", || turn(&last)),
    ];
    if let Some(python) = mp_pool {
        let order = json!({"seconds": shuffled});
        contenders
            .push(Contender::new("Pool, shuffled", move || python.seconds("sleep", order.clone())));
    }
    let mut field = take_turns(size.long_repetitions, contenders)?;
    let share = |field: &Field, who: &str| -> Vec<f64> {
        field.values(who).iter().map(|time| time / ideal).collect()
    };
    let (mixed, late) =
        (share(&field, "procpool, shuffled"), share(&field, "procpool, slow ones last"));
    field.0.extend(Field::of([("ideal".to_owned(), vec![ideal])]).0);
    let bound = Bound::AtMost(1.05);
    let what = format!("a skewed load on {cores} workers, default chunking");
    Ok(Row::new(what, Unit::Seconds, field)
        .goal("≤ 1.05 × ideal, shuffled", bound, Unit::Times, mixed)
        .goal("≤ 1.05 × ideal, slow ones last", bound, Unit::Times, late)
        .note(
            "6 items of 0.5 s and 58 of 10 ms, which sleep; ideal: the longest first, each to the \
             worker that is free first.",
        ))
}

/// An `imap` whose first item is much slower than the others.
pub(crate) fn slow_first(peers: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    const FIRST: f64 = 3.0;
    const OTHERS: usize = 2_000;
    const EACH: f64 = 1e-3;
    let pool = Pool::new(2)?;
    let items = || std::iter::once(FIRST).chain(std::iter::repeat_n(EACH, OTHERS));
    let mut contenders = vec![
        Contender::new("procpool", || {
            let (time, done) = seconds(|| pool.imap(sleep, items()).try_for_each(|item| item));
            done?;
            Ok(time)
        }),
        // What the items take by themselves: a sleep is longer than it is asked to be.
        Contender::new("ideal", || {
            let (other, ()) = seconds(|| (0..OTHERS).for_each(|_| sleep(EACH)));
            Ok(other.max(FIRST))
        }),
    ];
    if let Some(python) = &mut peers.mp_pool {
        let order = json!({"seconds": items().collect::<Vec<f64>>()});
        contenders.push(Contender::new("Pool.imap", move || {
            python.seconds("sleep_in_order", order.clone())
        }));
    }
    let field = take_turns(size.long_repetitions, contenders)?;
    let ratio = field.ratio("procpool", "ideal");
    Ok(Row::new("imap with one slow item first, 2 workers", Unit::Seconds, field)
        .at_most(1.05, "ideal", ratio)
        .note("an item of 3 s, then 2,000 of 1 ms, which sleep."))
}

/// Shuffles in the same order on every machine, by a linear congruence.
fn shuffled(load: &[f64]) -> Vec<f64> {
    (0..load.len()).map(|place| load[(place * 29 + 17) % load.len()]).collect()
}

/// Returns the ideal time: the longest item first, each to the worker that is free first.
fn ideal(load: &[f64], workers: usize) -> f64 {
    let mut ends = vec![0.0f64; workers];
    let mut longest_first = load.to_vec();
    longest_first.sort_by(|a, b| b.total_cmp(a));
    for item in longest_first {
        ends.sort_by(f64::total_cmp);
        ends[0] += item;
    }
    ends.into_iter().fold(0.0, f64::max)
}

/// Estimates of π, and windows, per turn: about a second of work each.
const ESTIMATES: u64 = 400;
const WINDOWS: u64 = 6_000;

fn estimate(seed: u64) -> u64 {
    random::inside(seed, random::ESTIMATE_POINTS)
}

fn window(number: u64) -> u64 {
    let width = 0.1 + (number % 12) as f64 / 10.0;
    let points = random::gaussian(random::CLOUD_SEED, random::CLOUD_POINTS);
    random::count_in_window(points, [0.0, 0.0], width)
}

pub(crate) fn efficiency(peers: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let Peers { pool, cores, .. } = peers;
    let repetitions = size.repetitions.min(7);
    let pi = pure_work(pool, repetitions, "pi", estimate, ESTIMATES)?;
    let parzen = pure_work(pool, repetitions, "Parzen", window, WINDOWS)?;
    let efficiency = |field: &Field, task: &str, who: &str| -> Vec<f64> {
        let speed_up = field.ratio(&format!("{task}, serial"), &format!("{task}, {who}"));
        speed_up.iter().map(|speed_up| speed_up / *cores as f64).collect()
    };
    let mut row = Row::new(
        format!("Monte Carlo π and Parzen windows on {cores} cores"),
        Unit::Seconds,
        Field(pi.0.iter().chain(&parzen.0).cloned().collect()),
    );
    for (field, task) in [(&pi, "pi"), (&parzen, "Parzen")] {
        let own = efficiency(field, task, "procpool");
        let threads = crate::measure::median(&efficiency(field, task, "rayon"));
        let text = format!("efficiency ≥ 0.95, {task}");
        row = row
            .goal(text, Bound::AtLeast(0.95), Unit::Share, own)
            .note(format!("{task}: rayon's efficiency in the same run is {threads:.3}."));
    }
    Ok(row.note(format!(
        "{ESTIMATES} estimates of {} points and {WINDOWS} windows over {} points, against a plain \
         loop.",
        random::ESTIMATE_POINTS,
        random::CLOUD_POINTS
    )))
}

fn pure_work(
    pool: &Pool,
    repetitions: usize,
    task: &str,
    work: fn(u64) -> u64,
    items: u64,
) -> Outcome<Field> {
    let serial = || Ok(seconds(|| (0..items).map(work).collect::<Vec<_>>()).0);
    let processes = || {
        let (time, done) = seconds(|| pool.map(work, 0..items));
        done?;
        Ok(time)
    };
    let threads = || Ok(seconds(|| (0..items).into_par_iter().map(work).collect::<Vec<_>>()).0);
    take_turns(
        repetitions,
        vec![
            Contender::new(&format!("{task}, serial"), serial),
            Contender::new(&format!("{task}, procpool"), processes),
            Contender::new(&format!("{task}, rayon"), threads),
        ],
    )
}
