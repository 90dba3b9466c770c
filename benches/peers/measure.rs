//! Contenders that take turns, and their figures.

use std::error::Error;
use std::time::Duration;

use crate::timing::{each_call, interleave};
pub(crate) use crate::timing::{median, range, seconds};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// How much to measure.
pub(crate) struct SampleSize {
    pub(crate) name: &'static str,
    /// Turns of each contender of a row.
    pub(crate) repetitions: usize,
    /// The same for rows whose turns take seconds.
    pub(crate) long_repetitions: usize,
    /// Calls in a turn of a short call.
    pub(crate) calls: usize,
    /// Items of the longest stream.
    pub(crate) items: u64,
    /// Workers of the largest pool.
    pub(crate) workers: usize,
    /// A row that takes longer than this hangs.
    pub(crate) limit: Duration,
}

impl SampleSize {
    pub(crate) fn full() -> Self {
        Self {
            name: "full",
            repetitions: 9,
            long_repetitions: 3,
            calls: 3_000,
            items: 10_000_000,
            workers: 256,
            limit: Duration::from_secs(300),
        }
    }

    pub(crate) fn quick() -> Self {
        Self {
            name: "quick",
            repetitions: 3,
            long_repetitions: 1,
            calls: 500,
            items: 1_000_000,
            workers: 32,
            limit: Duration::from_secs(120),
        }
    }
}

/// A contender of a row. A turn returns a figure, in the unit of the row.
pub(crate) struct Contender<'a> {
    who: String,
    turn: Box<dyn FnMut() -> Outcome<f64> + 'a>,
}

impl<'a> Contender<'a> {
    pub(crate) fn new(who: &str, turn: impl FnMut() -> Outcome<f64> + 'a) -> Self {
        Self { who: who.to_owned(), turn: Box::new(turn) }
    }
}

/// The figures of one contender, one per repetition.
#[derive(Clone)]
pub(crate) struct Series {
    pub(crate) who: String,
    pub(crate) values: Vec<f64>,
}

impl Series {
    pub(crate) fn new(who: &str, values: Vec<f64>) -> Self {
        Self { who: who.to_owned(), values }
    }
}

/// The figures of all contenders, found by name.
pub(crate) struct Field(pub(crate) Vec<Series>);

impl Field {
    /// Creates a field of figures by contender.
    pub(crate) fn of(figures: impl IntoIterator<Item = (String, Vec<f64>)>) -> Self {
        Self(figures.into_iter().map(|(who, values)| Series::new(&who, values)).collect())
    }

    /// Divides a contender's figures by another's, by repetition. Empty if one of them did not take part.
    pub(crate) fn ratio(&self, of: &str, to: &str) -> Vec<f64> {
        let (Some(of), Some(to)) = (self.find(of), self.find(to)) else { return Vec::new() };
        of.values.iter().zip(&to.values).map(|(of, to)| of / to).collect()
    }

    /// Returns a contender's figures.
    pub(crate) fn values(&self, who: &str) -> Vec<f64> {
        self.find(who).map_or_else(Vec::new, |series| series.values.clone())
    }

    fn find(&self, who: &str) -> Option<&Series> {
        self.0.iter().find(|series| series.who == who)
    }
}

/// Runs all contenders in turn, alternately forwards and backwards. The first round is a warm-up and is
/// dropped.
pub(crate) fn take_turns(repetitions: usize, mut contenders: Vec<Contender>) -> Outcome<Field> {
    let figures = interleave(repetitions, contenders.len(), |index| {
        let one = &mut contenders[index];
        (one.turn)().map_err(|error| format!("{}: {error}", one.who))
    })?;
    let names = contenders.iter().map(|one| one.who.clone());
    Ok(Field::of(names.zip(figures)))
}

/// Returns the median of the seconds of each call.
pub(crate) fn median_call<R>(calls: usize, call: impl FnMut() -> Outcome<R>) -> Outcome<f64> {
    Ok(median(&each_call(calls, call)?))
}
