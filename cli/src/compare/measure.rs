//! Interleaved measurements: the median of some repetitions, with the minimum and the maximum.

use anyhow::{Context, Result};
use serde::Serialize;

pub(super) use super::timing::seconds;
use super::timing::{each_call, interleave, median, range};

/// How much to measure.
pub(super) struct SampleSize {
    pub(super) quick: bool,
    pub(super) repetitions: usize,
}

impl SampleSize {
    pub(super) fn new(quick: bool, repetitions: Option<usize>) -> Self {
        Self { quick, repetitions: repetitions.unwrap_or(if quick { 3 } else { 7 }) }
    }

    /// Returns `full`, or `quick` for a quick run.
    pub(super) fn of<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// One figure, by repetition.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Sample {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) greatest: f64,
    pub(super) values: Vec<f64>,
}

impl Sample {
    pub(super) fn of(values: Vec<f64>) -> Self {
        let (least, greatest) = range(&values);
        Self { median: median(&values), least, greatest, values }
    }

    /// Divides this figure by another, by repetition.
    pub(super) fn over(&self, other: &Self) -> Self {
        Self::of(self.values.iter().zip(&other.values).map(|(this, that)| this / that).collect())
    }

    /// Applies `f` to each repetition.
    pub(super) fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self::of(self.values.iter().map(|value| f(*value)).collect())
    }
}

/// A contender of a comparison. Each call returns a figure.
pub(super) type Contender<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;

/// Runs all contenders in turn, alternately forwards and backwards. The first round is a warm-up
/// and is dropped.
pub(super) fn take_turns<const N: usize>(
    repetitions: usize,
    mut turns: [Contender<'_>; N],
) -> Result<[Sample; N]> {
    let values = interleave(repetitions, N, |index| turns[index]())?;
    let mut samples = values.into_iter().map(Sample::of);
    // There are `N` of them.
    Ok(std::array::from_fn(|_| samples.next().unwrap_or_default()))
}

/// Measures the seconds of each call. Returns them sorted.
pub(super) fn sorted_calls<R>(calls: usize, call: impl FnMut() -> Result<R>) -> Result<Vec<f64>> {
    let mut times = each_call(calls, call).context("a measured call failed")?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Returns the value that this share does not exceed.
pub(super) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_middle_and_both_ends() {
        let sample = Sample::of(vec![3.0, 1.0, 10.0]);
        assert_eq!((sample.median, sample.least, sample.greatest), (3.0, 1.0, 10.0));
        assert_eq!(Sample::of(vec![1.0, 2.0]).median, 1.5);
        let ratio = sample.over(&Sample::of(vec![1.0, 1.0, 2.0]));
        assert_eq!(ratio.values, [3.0, 1.0, 5.0]);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| percentile(&hundred, share)), [50.0, 99.0, 100.0]);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
    }

    #[test]
    fn the_first_round_does_not_count_and_nobody_is_always_first() {
        let order = std::cell::RefCell::new(Vec::new());
        let turn = |who: f64| -> Contender<'_> {
            let order = &order;
            Box::new(move || {
                order.borrow_mut().push(who);
                Ok(who)
            })
        };
        let spreads = take_turns(2, [turn(1.0), turn(2.0)]).unwrap();
        assert_eq!(*order.borrow(), [1.0, 2.0, 2.0, 1.0, 1.0, 2.0]);
        assert_eq!(spreads[1].values, [2.0, 2.0]);
    }
}
