//! What a sandbox costs: the start of a pool, and its calls.

use procpool::{Pool, Sandbox};

use crate::measure::{Contender, Outcome, SampleSize, median, median_call, seconds, take_turns};
use crate::peers::Peers;
use crate::report::{Bound, Row, Unit};
use crate::startup_and_death::identity;

/// Starts per turn, of which the median counts.
const STARTS: usize = 9;

/// Calls per turn, of which the median counts.
const CALLS: usize = 5_000;

fn pool(confined: bool) -> Outcome<Pool> {
    let builder = Pool::builder().workers(1);
    Ok(if confined { builder.sandbox(Sandbox::strict()) } else { builder }.build()?)
}

/// Returns the seconds until a pool of one worker has its first result.
fn first_answer(confined: bool) -> Outcome<f64> {
    let times: Outcome<Vec<_>> = (0..STARTS)
        .map(|_| {
            let (time, pool) = seconds(|| -> Outcome<Pool> {
                let pool = pool(confined)?;
                pool.apply(identity, 1)?;
                Ok(pool)
            });
            pool?.terminate();
            Ok(time)
        })
        .collect();
    Ok(median(&times?))
}

pub(crate) fn cost(_: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let mut field = take_turns(
        size.repetitions,
        vec![
            Contender::new("a pool of 1 and first answer", || first_answer(false)),
            Contender::new("the same in Sandbox::strict()", || first_answer(true)),
        ],
    )?;
    let starts = field.values("a pool of 1 and first answer");
    let confined = field.values("the same in Sandbox::strict()");
    let more = starts.iter().zip(&confined).map(|(start, confined)| confined - start).collect();
    let (plain, sandboxed) = (pool(false)?, pool(true)?);
    let call = |pool: &Pool| median_call(CALLS, || Ok(pool.apply(identity, 1)?));
    let calls = take_turns(
        size.repetitions,
        vec![
            Contender::new("apply", || call(&plain)),
            Contender::new("apply in Sandbox::strict()", || call(&sandboxed)),
        ],
    )?;
    let ratio = calls.ratio("apply in Sandbox::strict()", "apply");
    field.0.extend(calls.0);
    Ok(Row::new("a sandbox", Unit::Seconds, field)
        .goal("start + 0.3 ms", Bound::AtMost(0.3e-3), Unit::Seconds, more)
        .goal("calls unchanged (≤ 1.05 ×)", Bound::AtMost(1.05), Unit::Times, ratio))
}
