//! Measures speed-up and efficiency with 1 to 8 processes for 64 plots. Prints a table and draws a graph.
//!
//! S = T₁ / Tₚ and E = S / p, where T₁ is the time of the serial run without a pool. With more processes
//! than CPUs, the speed-up stays level and the efficiency falls. Times differ between machines, and by some
//! percent between runs:
//!
//! ```text
//! $ cargo run --release --example speedup -- target/speedup.svg
//! processes      time  speed-up  efficiency
//!    serial  113.3 ms    1.00 ×       100 %
//!         1   90.3 ms    1.26 ×       126 %
//!         2   56.1 ms    2.02 ×       101 %
//!         3   59.6 ms    1.90 ×        63 %
//!         4   55.6 ms    2.04 ×        51 %
//!         5   61.4 ms    1.85 ×        37 %
//!         6   57.9 ms    1.96 ×        33 %
//!         7   56.5 ms    2.01 ×        29 %
//!         8   63.0 ms    1.80 ×        22 %
//! ```

#[path = "support/picture.rs"]
mod picture;

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use plotters::prelude::*;
use procpool::Pool;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

const PLOTS: u64 = 64;

/// Returns a scatter plot of random points as SVG text.
fn plot(seed: u64) -> String {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut svg = String::from(r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1">"#);
    for _ in 0..5_000 {
        let (x, y): (f64, f64) = (random.random(), random.random());
        svg += &format!(r#"<circle cx="{x}" cy="{y}" r="0.01"/>"#);
    }
    svg + "</svg>"
}

fn draw(path: &Path, speed_ups: &[f64]) -> Result<(), Box<dyn Error>> {
    let most = speed_ups.len() as f64;
    let series = |y: fn(f64, f64) -> f64| -> Vec<(f64, f64)> {
        (1u32..).map(f64::from).zip(speed_ups).map(|(p, &s)| (p, y(p, s))).collect()
    };
    picture::draw(path, (800, 400), |area| {
        let (left, right) = area.split_horizontally(400);
        let (upper, lower) = (SeriesLabelPosition::UpperLeft, SeriesLabelPosition::LowerLeft);
        for (area, title, top, measured, ideal, legend) in [
            (left, "Speed-up", most, series(|_, s| s), series(|p, _| p), upper),
            (right, "Efficiency", 1.2, series(|p, s| s / p), series(|_, _| 1.0), lower),
        ] {
            let mut chart = ChartBuilder::on(&area)
                .caption(title, (picture::FONT.0, 20))
                .margin(12)
                .x_label_area_size(40)
                .y_label_area_size(40)
                .build_cartesian_2d(1.0..most, 0.0..top)?;
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .x_desc("processes")
                .x_label_formatter(&|p| format!("{p:.0}"))
                .label_style(picture::FONT)
                .draw()?;
            chart
                .draw_series(LineSeries::new(ideal, BLACK.mix(0.4)))?
                .label("ideal")
                .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLACK.mix(0.4)));
            chart
                .draw_series(
                    LineSeries::new(measured, BLUE.filled().stroke_width(2)).point_size(4),
                )?
                .label("measured")
                .legend(|(x, y)| Circle::new((x + 8, y), 4, BLUE.filled()));
            chart
                .configure_series_labels()
                .position(legend)
                .background_style(WHITE.mix(0.8))
                .label_font(picture::FONT)
                .draw()?;
        }
        Ok(())
    })
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (work(), start.elapsed())
}

fn main() -> Result<(), Box<dyn Error>> {
    procpool::init();
    let path = picture::path("speedup.svg")?;
    // A warm-up run, which also allocates memory.
    (0..PLOTS).map(plot).for_each(drop);
    let (plots, serial) = timed(|| (0..PLOTS).map(plot).collect::<Vec<_>>());
    let row = |name: &str, time: Duration, speed_up: f64, processes: usize| {
        let millis = time.as_secs_f64() * 1e3;
        let efficiency = 100.0 * speed_up / processes as f64;
        println!("{name:>9}  {millis:>5.1} ms  {speed_up:>6.2} ×  {efficiency:>8.0} %");
    };
    println!("processes      time  speed-up  efficiency");
    row("serial", serial, 1.0, 1);
    let mut speed_ups = Vec::new();
    for workers in 1..=8 {
        let pool = Pool::new(workers)?;
        pool.map(plot, 0..workers as u64)?; // starts the workers
        let (answers, time) = timed(|| pool.map(plot, 0..PLOTS));
        assert_eq!(answers?, plots);
        let speed_up = serial.as_secs_f64() / time.as_secs_f64();
        row(&workers.to_string(), time, speed_up, workers);
        speed_ups.push(speed_up);
    }
    draw(&path, &speed_ups)
}
