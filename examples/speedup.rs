//! Measures speed-up and efficiency with 1 to 8 processes. The work is to draw 64 scatter plots and to write
//! them as PDF files. Prints a table and draws a graph, with the ideal lines.
//!
//! S = T₁ / Tₚ and E = S / p. T₁ is the time of the serial run: a loop in the parent, without a pool. Each
//! time is the average of three runs. The serial run and the pools take turns, so that other work on the
//! machine affects all of them; measured one after another, a serial run in a bad moment gives efficiencies
//! above 100 %. A percent or two above 100 can remain: the times of the same run differ by that much.
//!
//! With more processes than CPUs, the speed-up stays level and the efficiency falls. On two CPUs, in a
//! debug build:
//!
//! ```text
//! $ cargo run --example speedup -- target/speedup.pdf
//! 64 plots, the average of 3 runs
//! processes      time  speed-up  efficiency
//!    serial  433.9 ms    1.00 ×       100 %
//!         1  466.9 ms    0.93 ×        93 %
//!         2  240.8 ms    1.80 ×        90 %
//!         3  244.2 ms    1.78 ×        59 %
//!         4  243.2 ms    1.78 ×        45 %
//!         5  223.8 ms    1.94 ×        39 %
//!         6  220.5 ms    1.97 ×        33 %
//!         7  219.3 ms    1.98 ×        28 %
//!         8  216.3 ms    2.01 ×        25 %
//! drawn: target/speedup.pdf
//! ```

#[path = "support/machine.rs"]
mod machine;
#[path = "support/picture.rs"]
mod picture;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plotters::prelude::*;
use procpool::Pool;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

const PLOTS: u64 = 64;
const RUNS: usize = 3;
const MOST: usize = 8;

/// Draws a scatter plot of 500 random points into a file of the directory.
fn plot((seed, dir): (u64, PathBuf)) -> Result<(), String> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let path = dir.join(format!("plot_{seed}.pdf"));
    let drawn = picture::draw(&path, (480, 480), |area| {
        let mut chart = ChartBuilder::on(area).margin(12).build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
        chart.draw_series((0..500).map(|_| {
            let [x, y, r]: [f64; 3] = random.random();
            Circle::new((x, y), (15.0 * r) as i32, BLUE.mix(0.5).filled())
        }))?;
        Ok(())
    });
    drawn.map_err(|error| error.to_string())
}

/// A chart: its title, the top of its axis, what was measured, and what would be ideal.
struct Chart<'a> {
    title: &'a str,
    top: f64,
    measured: Vec<(f64, f64)>,
    ideal: Vec<(f64, f64)>,
    legend: SeriesLabelPosition,
}

fn draw(path: &Path, speed_ups: &[f64], about: &str) -> Result<(), Box<dyn Error>> {
    let most = speed_ups.len() as f64;
    let series = |y: fn(f64, f64) -> f64| -> Vec<(f64, f64)> {
        (1u32..).map(f64::from).zip(speed_ups).map(|(p, &s)| (p, y(p, s))).collect()
    };
    let charts = [
        Chart {
            title: "Speed-up",
            top: most,
            measured: series(|_, s| s),
            ideal: series(|p, _| p),
            legend: SeriesLabelPosition::UpperLeft,
        },
        Chart {
            title: "Efficiency",
            top: 1.2,
            measured: series(|p, s| s / p),
            ideal: series(|_, _| 1.0),
            legend: SeriesLabelPosition::LowerLeft,
        },
    ];
    let style = (picture::FONT, 15);
    picture::draw(path, (800, 430), |area| {
        area.draw(&Text::new(about.to_owned(), (20, 408), style.into_font()))?;
        let (left, right) = area.margin(0, 30, 0, 0).split_horizontally(400);
        for (area, Chart { title, top, measured, ideal, legend }) in
            [left, right].iter().zip(charts)
        {
            let mut chart = ChartBuilder::on(area)
                .caption(title, (picture::FONT, 20))
                .margin(12)
                .x_label_area_size(40)
                .y_label_area_size(40)
                .build_cartesian_2d(1.0..most, 0.0..top)?;
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .x_desc("processes")
                .x_label_formatter(&|p| format!("{p:.0}"))
                .label_style(style)
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
                .label_font(style)
                .draw()?;
        }
        Ok(())
    })
}

/// A directory that is removed in the end.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    procpool::init();
    let path = picture::path("speedup.pdf")?;
    let dir = Dir(std::env::temp_dir().join(format!("procpool-speedup-{}", std::process::id())));
    std::fs::create_dir_all(&dir.0)?;
    let pools: Vec<Pool> = (1..=MOST).map(Pool::new).collect::<Result<_, _>>()?;
    let tasks = || (0..PLOTS).map(|seed| (seed, dir.0.clone()));
    // The time of each run: the serial one, then those of 1 to 8 processes.
    let run = |processes: usize| -> Result<Duration, Box<dyn Error>> {
        let (plots, time) = match processes.checked_sub(1) {
            None => machine::timed(|| Ok(tasks().map(plot).collect())),
            Some(place) => machine::timed(|| pools[place].map(plot, tasks())),
        };
        let plots: Vec<Result<(), String>> = plots?;
        plots.into_iter().collect::<Result<(), String>>()?;
        Ok(time)
    };
    let mut times = [Duration::ZERO; MOST + 1];
    for round in 0..=RUNS {
        for (processes, sum) in times.iter_mut().enumerate() {
            let time = run(processes)?;
            // The first round starts the workers.
            if round > 0 {
                *sum += time;
            }
        }
    }
    let about = format!("{PLOTS} plots, the average of {RUNS} runs");
    println!("{about}\nprocesses      time  speed-up  efficiency");
    let mut speed_ups = Vec::new();
    for (processes, sum) in times.iter().enumerate() {
        let millis = machine::millis(*sum / RUNS as u32);
        let speed_up = times[0].as_secs_f64() / sum.as_secs_f64();
        let efficiency = 100.0 * speed_up / processes.max(1) as f64;
        let name = if processes == 0 { "serial".to_owned() } else { processes.to_string() };
        println!("{name:>9}  {millis:>5.1} ms  {speed_up:>6.2} ×  {efficiency:>8.0} %");
        if processes > 0 {
            speed_ups.push(speed_up);
        }
    }
    draw(&path, &speed_ups, &format!("{about}; {}", machine::machine()))?;
    println!("drawn: {}", path.display());
    Ok(())
}
