//! Timing and interleaving, apart from what the command makes of them: `benches/peers` includes this file.

use std::time::Instant;

/// Calls `turn` for each contender in every round, alternately forwards and backwards, so that other load on
/// the machine affects all of them. The first round is a warm-up and is dropped. Returns the figures of each
/// contender.
pub(super) fn interleave<E>(
    rounds: usize,
    contenders: usize,
    mut turn: impl FnMut(usize) -> Result<f64, E>,
) -> Result<Vec<Vec<f64>>, E> {
    let mut figures = vec![Vec::with_capacity(rounds); contenders];
    for round in 0..=rounds {
        for step in 0..contenders {
            let index = if round % 2 == 0 { step } else { contenders - 1 - step };
            let figure = turn(index)?;
            if round > 0 {
                figures[index].push(figure);
            }
        }
    }
    Ok(figures)
}

/// Measures the seconds of `work`. Its result is dropped afterwards.
pub(super) fn seconds<R>(work: impl FnOnce() -> R) -> (f64, R) {
    let start = Instant::now();
    let result = std::hint::black_box(work());
    (start.elapsed().as_secs_f64(), result)
}

/// Measures the seconds of each call.
pub(super) fn each_call<R, E>(
    calls: usize,
    mut call: impl FnMut() -> Result<R, E>,
) -> Result<Vec<f64>, E> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let (time, result) = seconds(&mut call);
        result?;
        times.push(time);
    }
    Ok(times)
}

/// Returns the median; not a number if there are no values.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Returns the least and the greatest value.
pub(super) fn range(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    (least, values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}
