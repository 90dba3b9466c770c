//! Estimates the density of a 2-D Gaussian at its origin with Parzen windows of 100 widths: serially, then
//! with 2, 3, 4 and 6 processes. Draws a bar chart of the times. Based on Sebastian Raschka's tutorial.
//!
//! Each task counts how many of 100,000 points lie in a window of one width. The estimates are identical in
//! all runs. They are close to the true density, 1/(2π), for narrow windows; a wide window includes the
//! sparse edge of the distribution, and its estimate is too low.
//!
//! ```text
//! $ cargo run --release --example parzen -- target/parzen.svg
//! 2 CPUs, AMD EPYC, Linux 6.18; 100000 points, 100 widths
//! serial       61.9 ms
//! 2 processes  31.3 ms  1.98 ×
//! 3 processes  28.7 ms  2.16 ×
//! 4 processes  30.3 ms  2.05 ×
//! 6 processes  40.3 ms  1.54 ×
//! width 0.5: density 0.1577, truly 0.1592
//! width 5.0: density 0.0390, truly 0.1592
//! ```

#[path = "support/picture.rs"]
mod picture;

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use plotters::prelude::*;
use procpool::Pool;
use rand::SeedableRng;
use rand::distr::Distribution;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::StandardNormal;
use sysinfo::System;

const POINTS: usize = 100_000;

/// Returns the fraction of the points in a square of this width around the origin, divided by its area.
fn density(width: f64) -> f64 {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(123);
    let mut coordinate = || -> f64 { StandardNormal.sample(&mut random) };
    let within = |x: f64| x.abs() <= width / 2.0;
    let inside = (0..POINTS).filter(|_| within(coordinate()) & within(coordinate())).count();
    inside as f64 / POINTS as f64 / (width * width)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (work(), start.elapsed())
}

fn draw(path: &Path, machine: &str, bars: &[(usize, Duration)]) -> Result<(), Box<dyn Error>> {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let most = bars.iter().map(|bar| millis(bar.1)).fold(0.0, f64::max);
    picture::draw(path, (640, 360), |area| {
        let mut chart = ChartBuilder::on(area)
            .caption("Parzen windows of 100 widths", (picture::FONT.0, 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(96)
            .build_cartesian_2d(0.0..most * 1.1, (0..bars.len() - 1).into_segmented())?;
        let name = |at: &SegmentValue<usize>| match at {
            SegmentValue::CenterOf(at) => match bars.get(*at) {
                Some((1, _)) => "serial".to_owned(),
                Some((n, _)) => format!("{n} processes"),
                None => String::new(),
            },
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|ms| format!("{ms:.0}"))
            .x_desc(format!("milliseconds; {machine}"))
            .y_label_formatter(&name)
            .label_style(picture::FONT)
            .draw()?;
        chart.draw_series(bars.iter().enumerate().map(|(at, (_, time))| {
            let (low, high) = (SegmentValue::Exact(at), SegmentValue::Exact(at + 1));
            let mut bar =
                Rectangle::new([(0.0, low), (millis(*time), high)], BLUE.mix(0.6).filled());
            bar.set_margin(6, 6, 0, 0);
            bar
        }))?;
        Ok(())
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    procpool::init();
    let path = picture::path("parzen.svg")?;
    let widths: Vec<f64> = (1..=100).map(|i| f64::from(i) * 0.05).collect();
    let system = System::new_all();
    let machine = format!(
        "{} CPUs, {}, Linux {}",
        system.cpus().len(),
        system.cpus().first().map_or("", |cpu| cpu.brand()),
        System::kernel_version().unwrap_or_default()
    );
    println!("{machine}; {POINTS} points, {} widths", widths.len());

    let (densities, serial) = timed(|| widths.iter().map(|&w| density(w)).collect::<Vec<_>>());
    println!("serial      {:>5.1} ms", serial.as_secs_f64() * 1e3);
    let mut bars = vec![(1, serial)];
    for workers in [2, 3, 4, 6] {
        let pool = Pool::new(workers)?;
        pool.map(density, widths.iter().copied().take(workers))?; // starts the workers
        let (answers, time) = timed(|| pool.map(density, widths.clone()));
        assert_eq!(answers?, densities);
        let speed_up = serial.as_secs_f64() / time.as_secs_f64();
        println!("{workers} processes {:>5.1} ms  {speed_up:.2} ×", time.as_secs_f64() * 1e3);
        bars.push((workers, time));
    }

    let truth = 1.0 / std::f64::consts::TAU;
    for at in [9, 99] {
        let (width, density) = (widths[at], densities[at]);
        println!("width {width:.1}: density {density:.4}, truly {truth:.4}");
    }
    draw(&path, &machine, &bars)
}
