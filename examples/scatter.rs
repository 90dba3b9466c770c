//! Writes scatter plots of random data to a directory, with one process per CPU. Based on matplotlib's
//! demonstration: 500 points, half transparent, with areas of π(15 r)² for random numbers r.
//!
//! Each plot is a task with a random stream of its own ([`procpool::random_u64`]), so the plots do not
//! depend on the number of processes or their order. In Python, the workers of a pool inherit one state of
//! numpy's generator, and the same program draws the same picture several times.
//!
//! The workers print "Making plot N", in any order. `--ending png` and `--ending svg` write other formats. Any
//! other ending is refused before anything is made.
//!
//! ```text
//! $ cargo run --example scatter -- -n 4 -o target/scatter
//! Making plot 1
//! Making plot 2
//! Making plot 3
//! Making plot 4
//! Result: plot 1 written to target/scatter/plot_1.pdf
//! Result: plot 2 written to target/scatter/plot_2.pdf
//! Result: plot 3 written to target/scatter/plot_3.pdf
//! Result: plot 4 written to target/scatter/plot_4.pdf
//! $ cargo run --example scatter -- -n 4 -o target/scatter --ending gif || echo "exit code $?"
//! exit code 1
//! ```

#[path = "support/picture.rs"]
mod picture;

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Parser;
use plotters::prelude::*;
use procpool::{Pool, Task};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// The number of points of a plot.
const POINTS: usize = 500;

/// Draws scatter plots of random data.
#[derive(Parser)]
struct Args {
    /// How many plots
    #[arg(short, default_value_t = 16)]
    n: usize,
    /// The directory for them; created if missing
    #[arg(short, long, value_name = "DIR", default_value = "scatter")]
    out: PathBuf,
    /// How many processes; 0 means one per CPU
    #[arg(short, long, default_value_t = 0)]
    processes: usize,
    /// The ending of the files, which decides the format: pdf, png or svg
    #[arg(short, long, default_value = "pdf")]
    ending: String,
    /// Repeats the plots of a run
    #[arg(short, long, default_value_t = 42)]
    seed: u64,
}

/// Draws plot `number` into a file. Returns the file.
fn plot((number, path): (usize, PathBuf)) -> Result<PathBuf, String> {
    println!("Making plot {number}");
    draw(&path, number).map_err(|error| error.to_string())?;
    Ok(path)
}

fn draw(path: &Path, number: usize) -> Result<(), Box<dyn Error>> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(procpool::random_u64());
    picture::draw(path, (640, 480), |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(format!("Plot {number}"), (picture::FONT, 20))
            .margin(16)
            .x_label_area_size(28)
            .y_label_area_size(36)
            .build_cartesian_2d(-0.05..1.05, -0.05..1.05)?;
        let labels = (picture::FONT, 15);
        chart.configure_mesh().disable_mesh().x_labels(6).y_labels(6).label_style(labels).draw()?;
        chart.draw_series((0..POINTS).map(|_| {
            let [x, y, r, hue]: [f64; 4] = random.random();
            // The area is π(15 r)².
            let radius = (15.0 * r).round() as i32;
            Circle::new((x, y), radius, ViridisRGB::get_color(hue).mix(0.5).filled())
        }))?;
        Ok(())
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    procpool::init();
    let args = Args::parse();
    let path = |number: usize| args.out.join(format!("plot_{number}.{}", args.ending));
    picture::format(&path(1))?; // refuses an ending before anything is made
    std::fs::create_dir_all(&args.out)?;
    let pool = Pool::builder().workers(args.processes).seed(args.seed).build()?;
    let tasks: Vec<_> =
        (1..=args.n).map(|number| pool.apply_async(plot, (number, path(number)))).collect();
    let results: Result<Vec<_>, _> = tasks.into_iter().map(Task::get).collect();
    for (number, result) in (1..).zip(results?) {
        println!("Result: plot {number} written to {}", result?.display());
    }
    Ok(())
}
