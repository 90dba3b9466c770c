//! `square`: x², the smallest task, to observe the pool itself.

use std::time::Duration;

use super::job::{Input, Job};
use super::output::{Column, Output};
use super::task::{Options, Takes, Task};

/// Returns the square of a whole number, exact for every `i64`.
pub(crate) fn square(x: i64) -> i128 {
    i128::from(x) * i128::from(x)
}

/// The task's descriptor.
pub(crate) static TASK: Task = Task {
    name: "square",
    summary: "the square of a whole number",
    takes: Takes::Numbers,
    default_inputs: &["0..6"],
    input: Column::number("x", 10),
    columns: &[Column::number("result", 14)],
    options: Options { out: false, to: &[], points: None, seed: None },
    run,
    output_name: None,
};

/// The task of `procpool run` without arguments. The squares take their time, so that each worker
/// gets some, and the first input takes the longest, so that input order and order of completion
/// differ.
pub(crate) static DEMONSTRATION: Task = Task { run: run_slowly, ..TASK };

/// The demonstration's shortest square takes three of these, which is longer than six workers need to
/// start, and its longest takes eight.
const STEP: Duration = Duration::from_millis(30);

fn run_slowly(job: Job) -> Result<Output, String> {
    let x = parse(&job.input)?;
    std::thread::sleep(STEP * (8 - x).clamp(3, 8) as u32);
    run(job)
}

fn run(job: Job) -> Result<Output, String> {
    let x = parse(&job.input)?;
    Ok(vec![square(x).into()])
}

fn parse(input: &Input) -> Result<i64, String> {
    input.parse("a whole number such as 7, or a range such as 0..5")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tasks::Value;

    #[test]
    fn squares_are_exact_to_the_ends_of_the_range() {
        assert_eq!(run(Job::new(-12)).unwrap(), [Value::Whole(144)]);
        assert_eq!(run(Job::new("9")).unwrap(), [Value::Whole(81)]);
        assert_eq!(square(i64::MIN), 1 << 126);
    }

    #[test]
    fn what_is_no_whole_number_is_refused() {
        for input in ["", "x", "2.5", "5..0", "9223372036854775808"] {
            assert!(run(Job::new(input)).is_err(), "{input}");
        }
    }
}
