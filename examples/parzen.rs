//! Estimates densities with Parzen windows, and measures 2, 3, 4 and 6 processes beside a serial run. Based
//! on Sebastian Raschka's tutorial on multiprocessing.
//!
//! A window of width h around a place is a cube with sides of length h, in as many dimensions d as the points
//! have. If k of n points lie in it, the density there is about k / n / hᵈ. First three dimensions: 3 of 10
//! points lie in the unit cube. Then two: 10,000 points of a Gaussian, whose density at the origin is 1/(2π).
//! A narrow window varies by chance, and a wide one includes the sparse edge of the distribution.
//!
//! A note on h and h²: in two dimensions, the window's area is h². The tutorial's function divides by h to
//! the number of columns of the place, which is 1 for a place that is written as a column. So its densities
//! in two dimensions are divided by h instead, and differ from those below by the factor h.
//!
//! The times are those of 100 widths from 1.0 to 1.2 over 200,000 points. The points are in shared memory, so
//! they are not copied to the workers. On two CPUs, two processes halve the time and more add nothing. These
//! are times of a debug build; with `--release` they are shorter.
//!
//! ```text
//! $ cargo run --example parzen -- target/parzen.pdf
//! 3 of 10 points in the unit cube: density 0.3
//! width 0.1: density 0.1100
//! width 0.2: density 0.1025
//! width 0.3: density 0.1400
//! width 0.4: density 0.1500
//! width 0.5: density 0.1544
//! width 0.6: density 0.1575
//! width 0.7: density 0.1555
//! width 0.8: density 0.1530
//! width 0.9: density 0.1523
//! width 1.0: density 0.1495
//! width 1.1: density 0.1462
//! width 1.2: density 0.1415
//! truly:     density 0.1592
//! serial      530.1 ms
//! 2 processes 276.6 ms  1.92 ×
//! 3 processes 274.4 ms  1.93 ×
//! 4 processes 287.3 ms  1.85 ×
//! 6 processes 285.7 ms  1.86 ×
//! drawn: target/parzen.pdf
//! ```

#[path = "support/machine.rs"]
mod machine;
#[path = "support/picture.rs"]
mod picture;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use procpool::Pool;
use procpool::shared::SharedSlice;
use rand::SeedableRng;
use rand::distr::Distribution;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::StandardNormal;

/// The numbers of processes that are measured.
const PROCESSES: [usize; 4] = [2, 3, 4, 6];

/// Three points in the unit cube around the origin, and seven outside of it.
const CUBE: [[f64; 3]; 10] = [
    [0.0, 0.0, 0.0],
    [0.2, 0.2, 0.2],
    [0.1, -0.1, -0.3],
    [-1.2, 0.3, -0.3],
    [0.8, -0.82, -0.9],
    [1.0, 0.6, -0.7],
    [0.8, 0.7, 0.2],
    [0.7, -0.8, -0.45],
    [-0.3, 0.6, 0.9],
    [0.7, -0.6, -0.8],
];

/// Returns how many of the points lie in a window of this width around the origin.
fn inside<const D: usize>(points: &[[f64; D]], width: f64) -> usize {
    let is_inside = |point: &&[f64; D]| point.iter().all(|x| x.abs() <= width / 2.0);
    points.iter().filter(is_inside).count()
}

/// Returns the density at the origin, by a window of this width.
fn density<const D: usize>(points: &[[f64; D]], width: f64) -> f64 {
    inside(points, width) as f64 / points.len() as f64 / width.powi(D as i32)
}

/// The task.
fn estimate(points: &SharedSlice<[f64; 2]>, width: f64) -> f64 {
    density(points, width)
}

/// Returns points of a Gaussian in two dimensions.
fn gaussian(count: usize) -> Vec<[f64; 2]> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(123);
    let mut coordinate = || StandardNormal.sample(&mut random);
    (0..count).map(|_| [coordinate(), coordinate()]).collect()
}

/// Draws the times as horizontal bars, and the serial time as a dashed line.
fn draw(path: &Path, title: &str, bars: &[(String, Duration)]) -> Result<(), Box<dyn Error>> {
    let style = (picture::FONT, 15);
    let most = bars.iter().map(|bar| machine::millis(bar.1)).fold(0.0, f64::max);
    let serial = machine::millis(bars[0].1);
    picture::draw(path, (640, 380), |area| {
        area.draw(&Text::new(machine::machine(), (20, 355), style.into_font()))?;
        let mut chart = ChartBuilder::on(&area.margin(0, 30, 0, 0))
            .caption(title, (picture::FONT, 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(96)
            .build_cartesian_2d(0.0..most * 1.15, bars.len() as f64 - 0.5..-0.5)?;
        let name = |y: &f64| match bars.get(*y as usize) {
            Some((name, _)) if y.fract() == 0.0 && *y >= 0.0 => name.clone(),
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_mesh()
            .x_label_formatter(&|ms| format!("{ms:.0}"))
            .x_desc("milliseconds")
            .y_labels(2 * bars.len())
            .y_label_formatter(&name)
            .label_style(style)
            .draw()?;
        let beside = style.into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
        for (place, (_, time)) in bars.iter().enumerate() {
            let (y, time) = (place as f64, machine::millis(*time));
            let bar = Rectangle::new([(0.0, y - 0.3), (time, y + 0.3)], BLUE.mix(0.5).filled());
            chart.draw_series([bar])?;
            let text = Text::new(format!("{time:.1}"), (time + most * 0.01, y), beside.clone());
            chart.draw_series([text])?;
        }
        let ends = [(serial, -0.5), (serial, bars.len() as f64 - 0.5)];
        chart.draw_series([DashedPathElement::new(ends, 6, 4, BLACK)])?;
        Ok(())
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    procpool::init();
    let path = picture::path("parzen.pdf")?;
    let (found, all) = (inside(&CUBE, 1.0), CUBE.len());
    println!("{found} of {all} points in the unit cube: density {}", density(&CUBE, 1.0));

    let points = gaussian(10_000);
    for width in (1..=12).map(|i| f64::from(i) / 10.0) {
        println!("width {width:.1}: density {:.4}", density(&points, width));
    }
    println!("truly:     density {:.4}", 1.0 / std::f64::consts::TAU);

    let points = SharedSlice::new(gaussian(200_000))?;
    let widths: Vec<f64> = (0..100).map(|i| 1.0 + 0.2 * f64::from(i) / 99.0).collect();
    let (serial, time) =
        machine::timed(|| widths.iter().map(|width| density(&points, *width)).collect::<Vec<_>>());
    println!("serial      {:>5.1} ms", machine::millis(time));
    let mut bars = vec![("serial".to_owned(), time)];
    for processes in PROCESSES {
        let pool = Pool::new(processes)?;
        pool.broadcast(|(): ()| (), ()); // starts the workers
        let (handle, items) = (points.clone(), widths.clone());
        let (parallel, time) = machine::timed(|| pool.map_with(handle, estimate, items));
        assert_eq!(parallel?, serial);
        let speed_up = bars[0].1.as_secs_f64() / time.as_secs_f64();
        println!("{processes} processes {:>5.1} ms  {speed_up:.2} ×", machine::millis(time));
        bars.push((format!("{processes} processes"), time));
    }
    draw(&path, "Parzen windows of 100 widths", &bars)?;
    println!("drawn: {}", path.display());
    Ok(())
}
