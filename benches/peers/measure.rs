//! Contenders that take turns, and what comes of it.

use std::error::Error;
use std::time::{Duration, Instant};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// How much is measured.
pub(crate) struct Effort {
    pub(crate) name: &'static str,
    /// How often all contenders of a row take their turn.
    pub(crate) repetitions: usize,
    /// The same for rows whose every turn takes seconds.
    pub(crate) long_repetitions: usize,
    /// How many calls one turn of a quick call has.
    pub(crate) calls: usize,
    /// How many items the longest stream has.
    pub(crate) items: u64,
    /// How many workers the largest pool has.
    pub(crate) workers: usize,
    /// A row that takes longer than this hangs.
    pub(crate) limit: Duration,
}

impl Effort {
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

/// One who takes part in a row. A turn gives a figure, in the unit of the row.
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
    /// Of figures that were taken by other means than turns.
    pub(crate) fn of(figures: impl IntoIterator<Item = (String, Vec<f64>)>) -> Self {
        Self(figures.into_iter().map(|(who, values)| Series::new(&who, values)).collect())
    }

    /// How many times the first contender's figure is the second's, repetition by repetition; empty
    /// where one of them did not take part.
    pub(crate) fn ratio(&self, of: &str, to: &str) -> Vec<f64> {
        let (Some(of), Some(to)) = (self.find(of), self.find(to)) else { return Vec::new() };
        of.values.iter().zip(&to.values).map(|(of, to)| of / to).collect()
    }

    /// The figures of one of them.
    pub(crate) fn values(&self, who: &str) -> Vec<f64> {
        self.find(who).map_or_else(Vec::new, |series| series.values.clone())
    }

    fn find(&self, who: &str) -> Option<&Series> {
        self.0.iter().find(|series| series.who == who)
    }
}

/// Lets all take their turn, so many times, forwards and backwards alternately. The first round
/// warms up and does not count.
pub(crate) fn take_turns(repetitions: usize, mut contenders: Vec<Contender>) -> Outcome<Field> {
    let mut field: Vec<Series> =
        contenders.iter().map(|one| Series::new(&one.who, Vec::new())).collect();
    for round in 0..=repetitions {
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for place in order {
            let one = &mut contenders[place];
            let figure = (one.turn)().map_err(|error| format!("{}: {error}", one.who))?;
            if round > 0 {
                field[place].values.push(figure);
            }
        }
    }
    Ok(Field(field))
}

/// Seconds that this takes. What it gives is dropped afterwards.
pub(crate) fn seconds<R>(work: impl FnOnce() -> R) -> (f64, R) {
    let start = Instant::now();
    let result = std::hint::black_box(work());
    (start.elapsed().as_secs_f64(), result)
}

/// The median of the seconds that so many calls take, each by itself.
pub(crate) fn median_call<R>(calls: usize, mut call: impl FnMut() -> Outcome<R>) -> Outcome<f64> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let (time, result) = seconds(&mut call);
        result?;
        times.push(time);
    }
    Ok(median(&times))
}

/// The middle one, or the mean of the two in the middle; not a number where there are none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The least and the greatest.
pub(crate) fn range(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    (least, values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}
