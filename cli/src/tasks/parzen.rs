//! `parzen`: the density of a cloud of points at one place, by the Parzen-window method, for each
//! window width.
//!
//! 10,000 points are drawn from a 2-D Gaussian with unit covariance. Of them, k fall into a square
//! of width h around the origin, and k / n / h² estimates the density there. The true one is
//! 1/(2π): a narrow window strays by chance, a wide one is too low for sure, and the widths in
//! between show where it is best. After the well-known tutorial by Sebastian Raschka.

use super::job::Job;
use super::output::{Column, Output};
use super::random::{CLOUD_POINTS, CLOUD_SEED, TRUE_DENSITY, count_in_window, density, gaussian};
use super::task::{Options, Takes, Task};

/// The task's descriptor.
pub(crate) static TASK: Task = Task {
    name: "parzen",
    summary: "the density of a 2-D Gaussian at the origin, by Parzen windows of a width",
    takes: Takes::Numbers,
    default_inputs: &[
        "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0", "1.1", "1.2",
    ],
    input: Column::number("width", 10),
    columns: &[
        Column::number("inside", 8),
        Column::fixed("density", 10, 6),
        Column::fixed("error", 10, 6),
    ],
    options: Options { out: false, to: &[], points: Some(CLOUD_POINTS), seed: Some(CLOUD_SEED) },
    run,
    output_name: None,
};

fn run(job: Job) -> Result<Output, String> {
    const WANTED: &str = "the width of a window, which is a number above 0, such as 0.5";
    let width = job.input.real(WANTED)?;
    if width <= 0.0 {
        return Err(job.input.refused(WANTED));
    }
    let n = job.params.points.unwrap_or(CLOUD_POINTS);
    let points = gaussian(job.params.seed.unwrap_or(CLOUD_SEED), n);
    let k = count_in_window(points, [0.0, 0.0], width);
    let density = density(k, n, width);
    Ok(vec![k.into(), density.into(), (density - TRUE_DENSITY).into()])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tasks::Value;

    #[test]
    fn the_window_is_a_square_with_its_border() {
        let points = [[0.0, 0.0], [0.5, 0.5], [0.5, 0.51], [-0.5, 0.2], [2.0, 0.0]];
        assert_eq!(count_in_window(points.into_iter(), [0.0, 0.0], 1.0), 3);
        assert_eq!(count_in_window(points.into_iter(), [2.0, 0.0], 1.0), 1);
        assert_eq!(density(3, 5, 0.5), 2.4);
    }

    #[test]
    fn the_density_at_the_origin_is_near_the_true_one() {
        for width in [0.3, 0.5, 0.7] {
            let answer = run(Job::new(width.to_string().as_str())).unwrap();
            let Value::Real(density) = answer[1] else { panic!("{answer:?}") };
            // Three standard deviations of a count of that many points.
            let chance = 3.0 * (TRUE_DENSITY / CLOUD_POINTS as f64).sqrt() / width;
            assert!((density - TRUE_DENSITY).abs() < chance, "{width}: {density}");
        }
    }

    #[test]
    fn a_window_without_a_width_is_refused() {
        for width in ["0", "-1", "wide"] {
            assert!(run(Job::new(width)).is_err(), "{width}");
        }
    }
}
