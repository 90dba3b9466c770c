//! Amdahl's question: which share of the time is serial, and how many processes are best.
//!
//! Fits T(p) = s + w/p + c·p to the times measured with p processes. s is the time that no process
//! shortens, w the time that processes share, and c the cost of each process. More processes than
//! cores share no more work, so w is divided by the number of cores there.

use serde::Serialize;

/// The fitted times, in seconds.
#[derive(Debug, Serialize)]
pub(super) struct Fit {
    /// s, the serial part.
    pub(super) serial: f64,
    /// w, the part that processes share.
    pub(super) parallel: f64,
    /// c, the overhead of each process.
    pub(super) per_process: f64,
    /// s / (s + w).
    pub(super) serial_share: f64,
    /// (s + w) / s, the speed-up that no number of processes exceeds. `None` if s is 0.
    pub(super) limit: Option<f64>,
    /// The number of processes with the shortest fitted time, up to one per core.
    pub(super) best: usize,
    /// The largest relative distance of a measured time from the fit.
    pub(super) deviation: f64,
    pub(super) cores: usize,
}

impl Fit {
    /// Returns the fitted time of p processes.
    pub(super) fn time(&self, procs: f64) -> f64 {
        let shared_by = procs.min(self.cores as f64);
        self.serial + self.parallel / shared_by + self.per_process * procs
    }
}

/// Fits the times in seconds of some numbers of processes. Returns why if that is impossible.
pub(super) fn fit(times: &[(usize, f64)], cores: usize) -> Result<Fit, &'static str> {
    let mut procs: Vec<usize> = times.iter().map(|(procs, _)| *procs).collect();
    procs.sort_unstable();
    procs.dedup();
    if procs.len() < 3 {
        return Err("three unknowns need at least three numbers of processes");
    }
    procs.iter_mut().for_each(|procs| *procs = (*procs).min(cores));
    procs.dedup();
    if procs.len() < 2 {
        return Err("serial and parallel work take the same time on the measured numbers of cores");
    }
    // Each row is divided by its time, so that relative distances count.
    let rows: Vec<[f64; 3]> = times
        .iter()
        .map(|(procs, time)| {
            [1.0, 1.0 / (*procs).min(cores) as f64, *procs as f64].map(|value| value / time)
        })
        .collect();
    let [serial, parallel, per_process] =
        least_squares(&rows).ok_or("the measured times have no fit")?;
    let whole = serial + parallel;
    if !whole.is_normal() {
        return Err("the measured times have no fit");
    }
    let mut fit = Fit {
        serial,
        parallel,
        per_process,
        serial_share: serial / whole,
        limit: (serial > 0.0).then(|| whole / serial),
        best: 1,
        deviation: 0.0,
        cores,
    };
    let best = (1..=cores).min_by(|one, other| {
        fit.time(*one as f64).total_cmp(&fit.time(*other as f64)) // the first of equals
    });
    fit.best = best.unwrap_or(1);
    let distance = |(procs, time): &(usize, f64)| (fit.time(*procs as f64) / time - 1.0).abs();
    fit.deviation = times.iter().map(distance).fold(0.0, f64::max);
    Ok(fit)
}

/// Returns the x without negative values for which each row times x is nearest to 1.
///
/// The best x is the ordinary solution for some of the columns, with 0 for the others. There are
/// only seven choices of columns.
fn least_squares(rows: &[[f64; 3]]) -> Option<[f64; 3]> {
    let distance =
        |x: &[f64; 3]| -> f64 { rows.iter().map(|row| (dot(row, x) - 1.0).powi(2)).sum() };
    (1..8_u32)
        .filter_map(|chosen| {
            let columns: Vec<usize> = (0..3).filter(|column| chosen >> column & 1 == 1).collect();
            let solution = solve(rows, &columns)?;
            let mut x = [0.0; 3];
            for (column, value) in columns.iter().zip(solution) {
                x[*column] = value;
            }
            x.iter().all(|value| *value >= 0.0 && value.is_finite()).then_some(x)
        })
        .min_by(|one, other| distance(one).total_cmp(&distance(other)))
}

fn dot(row: &[f64; 3], x: &[f64; 3]) -> f64 {
    row.iter().zip(x).map(|(one, other)| one * other).sum()
}

/// Solves the normal equations of these columns by elimination. `None` if the columns depend on
/// each other.
fn solve(rows: &[[f64; 3]], columns: &[usize]) -> Option<Vec<f64>> {
    /// The smallest pivot, relative to its diagonal element, that counts as different from 0.
    const SINGULAR: f64 = 1e-9;
    let size = columns.len();
    let product =
        |one: usize, other: usize| -> f64 { rows.iter().map(|row| row[one] * row[other]).sum() };
    let mut system: Vec<Vec<f64>> = columns
        .iter()
        .map(|column| {
            let left = columns.iter().map(|other| product(*column, *other));
            left.chain([rows.iter().map(|row| row[*column]).sum()]).collect()
        })
        .collect();
    for pivot in 0..size {
        // The matrix is positive definite, so that no rows need to be swapped.
        if system[pivot][pivot] <= SINGULAR * product(columns[pivot], columns[pivot]) {
            return None;
        }
        let row = system[pivot].clone();
        for other in (0..size).filter(|other| *other != pivot) {
            let factor = system[other][pivot] / row[pivot];
            for (value, above) in system[other].iter_mut().zip(&row) {
                *value -= factor * above;
            }
        }
    }
    Some((0..size).map(|place| system[place][size] / system[place][place]).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn times(s: f64, w: f64, c: f64, cores: usize) -> Vec<(usize, f64)> {
        let time = |procs: usize| s + w / procs.min(cores) as f64 + c * procs as f64;
        [1, 2, 3, 4, 6, 8].map(|procs| (procs, time(procs))).to_vec()
    }

    fn near(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-6
    }

    #[test]
    fn the_parts_of_a_time_are_found_again() {
        for cores in [2, 3, 8, 64] {
            let fit = fit(&times(0.1, 0.9, 0.01, cores), cores).unwrap();
            assert!(near(fit.serial, 0.1) && near(fit.parallel, 0.9), "{fit:?}");
            assert!(near(fit.per_process, 0.01) && fit.deviation < 1e-6, "{fit:?}");
            assert!(near(fit.serial_share, 0.1) && near(fit.limit.unwrap(), 10.0), "{fit:?}");
        }
    }

    #[test]
    fn the_best_number_of_processes_is_where_more_cost_more_than_they_save() {
        // The minimum of w/p + c·p is at √(w/c).
        assert_eq!(fit(&times(0.1, 0.9, 0.025, 64), 64).unwrap().best, 6);
        // More processes than cores share no more work.
        assert_eq!(fit(&times(0.1, 0.9, 0.025, 4), 4).unwrap().best, 4);
        // Sending costs more than all the work.
        assert_eq!(fit(&times(0.1, 0.001, 0.9, 8), 8).unwrap().best, 1);
    }

    #[test]
    fn no_part_is_negative() {
        // Faster than linear, as measured on a noisy machine.
        let fit = fit(&[(1, 1.0), (2, 0.4), (4, 0.2)], 4).unwrap();
        assert!(fit.serial >= 0.0 && fit.parallel > 0.0 && fit.per_process >= 0.0, "{fit:?}");
        assert!(fit.limit.is_none() && fit.deviation > 0.05, "{fit:?}");
    }

    #[test]
    fn times_that_tell_too_little_have_no_fit() {
        assert!(fit(&[(1, 1.0), (2, 0.6)], 8).unwrap_err().contains("three numbers"));
        assert!(fit(&[(1, 1.0), (1, 1.0), (2, 0.6)], 8).unwrap_err().contains("three numbers"));
        assert!(fit(&times(0.1, 0.9, 0.01, 1), 1).unwrap_err().contains("cores"));
        assert!(fit(&[(1, f64::NAN), (2, f64::NAN), (3, f64::NAN)], 8).is_err());
    }
}
