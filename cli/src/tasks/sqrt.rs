//! `sqrt`: the square root of each number of a range; millions of tasks that cost almost nothing.

use super::job::Job;
use super::output::{Column, Output};
use super::task::{Options, Takes, Task};

/// Returns the square root, if it is real.
pub(crate) fn root(x: f64) -> Option<f64> {
    (x >= 0.0).then(|| x.sqrt())
}

/// The task's descriptor.
pub(crate) static TASK: Task = Task {
    name: "sqrt",
    summary: "the square root of a number; a range may hold millions",
    takes: Takes::Numbers,
    default_inputs: &["10..20"],
    input: Column::number("x", 12),
    columns: &[Column::fixed("root", 18, 9)],
    options: Options { out: false, to: &[], points: None, seed: None },
    run,
    output_name: None,
};

fn run(job: Job) -> Result<Output, String> {
    const WANTED: &str = "a number from 0, such as 2.25, or a range such as 10..5000000";
    let x = job.input.real(WANTED)?;
    let root = root(x).ok_or_else(|| job.input.refused(WANTED))?;
    Ok(vec![root.into()])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tasks::Value;

    #[test]
    fn roots_are_those_of_the_processor() {
        assert_eq!(run(Job::new(144)).unwrap(), [Value::Real(12.0)]);
        assert_eq!(run(Job::new("2")).unwrap(), [Value::Real(std::f64::consts::SQRT_2)]);
        assert_eq!(run(Job::new("2.25")).unwrap(), [Value::Real(1.5)]);
    }

    #[test]
    fn a_negative_number_has_no_root() {
        assert!(run(Job::new(-1)).unwrap_err().contains("\"-1\""));
    }
}
