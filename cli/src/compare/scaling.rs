//! Scaling: the same jobs serially, by p threads and by p processes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde::Serialize;

use super::fit::{Fit, fit};
use super::load::{Load, answer};
use super::machine::cores;
use super::measure::{Contender, Sample, SampleSize, seconds, take_turns};
use crate::tasks::{Output, Task};
use procpool::Pool;

#[derive(Debug, Serialize)]
pub(super) struct Scaling {
    pub(super) task: &'static str,
    pub(super) jobs: usize,
    /// Seconds of the serial run: a plain loop.
    pub(super) serial: Sample,
    pub(super) by_procs: Vec<AtProcs>,
    /// The fit of the processes' times.
    pub(super) fit: Option<Fit>,
    /// Why there is no fit.
    pub(super) unfit: Option<&'static str>,
}

/// The measurements for one number of threads and processes.
#[derive(Debug, Serialize)]
pub(super) struct AtProcs {
    pub(super) procs: usize,
    pub(super) threads: Variant,
    pub(super) processes: Variant,
}

/// Seconds, speed-up over the serial run, and efficiency.
#[derive(Debug, Serialize)]
pub(super) struct Variant {
    pub(super) seconds: Sample,
    pub(super) speed_up: Sample,
    pub(super) efficiency: Sample,
}

impl Variant {
    fn new(seconds: Sample, serial: &Sample, procs: usize) -> Self {
        let speed_up = serial.over(&seconds);
        let efficiency = speed_up.map(|speed_up| speed_up / procs as f64);
        Self { seconds, speed_up, efficiency }
    }
}

pub(super) fn measure(task: &'static Task, procs: &[usize], size: &SampleSize) -> Result<Scaling> {
    let load = Load::new(task, size.of(Duration::from_secs(1), Duration::from_millis(150)))?;
    let mut all_serial = Vec::new();
    let mut by_procs = Vec::new();
    for procs in procs {
        // The serial run is repeated each time: it is the baseline.
        let [serial, threads, processes] = at(&load, *procs, size.repetitions)?;
        all_serial.extend(&serial.values);
        by_procs.push(AtProcs {
            procs: *procs,
            threads: Variant::new(threads, &serial, *procs),
            processes: Variant::new(processes, &serial, *procs),
        });
    }
    let serial = Sample::of(all_serial);
    let times: Vec<(usize, f64)> =
        by_procs.iter().map(|at| (at.procs, at.processes.seconds.median)).collect();
    let (fit, unfit) = match fit(&times, cores()) {
        Ok(fit) => (Some(fit), None),
        Err(reason) => (None, Some(reason)),
    };
    Ok(Scaling { task: task.name, jobs: load.jobs.len(), serial, by_procs, fit, unfit })
}

fn at(load: &Load, procs: usize, repetitions: usize) -> Result<[Sample; 3]> {
    let pool = Pool::new(procs).context("failed to start the pool")?;
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(procs)
        .build()
        .context("failed to start the threads")?;
    let run = load.task.run;
    let check = |time: f64, answers: Vec<Result<Output, String>>| {
        ensure!(answers.len() == load.jobs.len(), "results are missing");
        for one in answers {
            answer(one)?;
        }
        Ok(time)
    };
    let serial: Contender<'_> = Box::new(|| {
        let (time, answers) = seconds(|| load.jobs.iter().cloned().map(run).collect());
        check(time, answers)
    });
    let by_threads: Contender<'_> = Box::new(|| {
        let work = || load.jobs.par_iter().cloned().map(run).collect();
        let (time, answers) = seconds(|| threads.install(work));
        check(time, answers)
    });
    let by_processes: Contender<'_> = Box::new(|| {
        let (time, answers) = seconds(|| pool.map(run, load.jobs.iter().cloned()));
        check(time, answers?)
    });
    take_turns(repetitions, [serial, by_threads, by_processes])
}
