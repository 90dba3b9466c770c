//! `map` over square roots: items that cost almost nothing.

use std::ops::Range;

use rayon::prelude::*;
use serde_json::json;

use crate::measure::{Contender, Field, Outcome, SampleSize, seconds, take_turns};
use crate::peers::Peers;
use crate::report::{Row, Unit};

fn root(x: u64) -> f64 {
    (x as f64).sqrt()
}

pub(crate) fn five_million(peers: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let field = roots(peers, size.repetitions, 10..5_000_000)?;
    let (rayon, pool) = (field.ratio("procpool", "rayon"), field.ratio("Pool", "procpool"));
    Ok(Row::new("`map` of square roots over 10..5,000,000", Unit::Seconds, field)
        .at_most(1.5, "rayon", rayon)
        .at_least(15.0, "faster than Pool.map", pool)
        .note(
            "ProcessPoolExecutor sends one item a message by default; it has Pool's chunks here.",
        ))
}

pub(crate) fn ten_thousand(peers: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let field = roots(peers, size.repetitions * 5, 10..10_010)?;
    let pool = field.ratio("Pool", "procpool");
    Ok(Row::new("`map` of square roots over 10,000 items", Unit::Seconds, field).at_least(
        15.0,
        "faster than Pool.map",
        pool,
    ))
}

fn roots(peers: &mut Peers, repetitions: usize, range: Range<u64>) -> Outcome<Field> {
    let Peers { pool, mp_pool, executor, .. } = peers;
    let mut contenders = vec![
        Contender::new("procpool", || {
            let (time, roots) = seconds(|| pool.map(root, range.clone()));
            check(&roots?, &range)?;
            Ok(time)
        }),
        Contender::new("rayon", || {
            let (time, roots) =
                seconds(|| range.clone().into_par_iter().map(root).collect::<Vec<_>>());
            check(&roots, &range)?;
            Ok(time)
        }),
        Contender::new("serial", || {
            let (time, roots) = seconds(|| range.clone().map(root).collect::<Vec<_>>());
            check(&roots, &range)?;
            Ok(time)
        }),
    ];
    for (who, python) in [("Pool", mp_pool), ("ProcessPoolExecutor", executor)] {
        if let Some(python) = python {
            let order = json!({"from": range.start, "to": range.end});
            let turn = move || python.seconds("roots", order.clone());
            contenders.push(Contender::new(who, turn));
        }
    }
    take_turns(repetitions, contenders)
}

/// Checks the results: a wrong one has no speed.
fn check(roots: &[f64], range: &Range<u64>) -> Outcome<()> {
    let right = roots.len() as u64 == range.end - range.start
        && roots.first() == Some(&root(range.start))
        && roots.last() == Some(&root(range.end - 1));
    if right { Ok(()) } else { Err("wrong square roots".into()) }
}
