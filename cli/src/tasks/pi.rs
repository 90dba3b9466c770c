//! `pi`: estimates π by the Monte Carlo method. Pure arithmetic, so it shows how processes scale.
//!
//! Of points spread evenly over the unit square, the share within the quarter circle of radius 1
//! tends to π/4. Each seed is an independent estimate.

use super::job::Job;
use super::output::{Column, Output};
use super::random::{ESTIMATE_POINTS, estimate};
use super::task::{A_SEED, Options, Takes, Task};

/// The task's descriptor.
pub(crate) static TASK: Task = Task {
    name: "pi",
    summary: "an estimate of π by the Monte Carlo method, one per seed",
    takes: Takes::Numbers,
    default_inputs: &["0..8"],
    input: Column::number("seed", 10),
    columns: &[Column::fixed("pi", 10, 6), Column::fixed("error", 10, 6)],
    options: Options { out: false, to: &[], points: Some(ESTIMATE_POINTS), seed: None },
    run,
    output_name: None,
};

fn run(job: Job) -> Result<Output, String> {
    let seed = job.input.parse(A_SEED)?;
    let pi = estimate(seed, job.params.points.unwrap_or(ESTIMATE_POINTS));
    Ok(vec![pi.into(), (pi - std::f64::consts::PI).into()])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::random::inside;
    use super::*;
    use crate::tasks::{Params, Value};

    #[test]
    fn the_estimate_is_near_pi_and_nearer_over_many_seeds() {
        // The standard deviation of one estimate is sqrt(pi (4 - pi) / n) = 0.0023; that of the
        // mean of ten, a third of it.
        let estimates: Vec<f64> = (0..10).map(|seed| estimate(seed, ESTIMATE_POINTS)).collect();
        assert!(estimates.iter().all(|pi| (pi - std::f64::consts::PI).abs() < 0.012));
        let mean = estimates.iter().sum::<f64>() / 10.0;
        assert!((mean - std::f64::consts::PI).abs() < 0.004, "{mean}");
    }

    #[test]
    fn a_seed_gives_the_same_points_in_every_release() {
        assert_eq!([inside(0, 1_000), inside(1, 1_000), inside(u64::MAX, 1_000)], [790, 786, 809]);
    }

    #[test]
    fn the_number_of_points_can_be_chosen() {
        let params = Params { points: Some(1), ..Params::default() };
        let answer = run(Job { params, ..Job::new(3) }).unwrap();
        assert!(answer[0] == Value::Real(0.0) || answer[0] == Value::Real(4.0));
    }
}
