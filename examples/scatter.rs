//! Writes scatter plots of random data to a directory, with one process per CPU.
//!
//! Each plot is a task with a random stream of its own ([`procpool::random_u64`]), so the plots do not
//! depend on the number of processes or their order. In Python, the workers of a pool inherit one state of
//! numpy's generator, and the same program draws the same picture several times.
//!
//! ```text
//! $ cargo run --example scatter -- -n 4 -o target/scatter
//! plot 0: target/scatter/scatter_0.svg
//! plot 1: target/scatter/scatter_1.svg
//! plot 2: target/scatter/scatter_2.svg
//! plot 3: target/scatter/scatter_3.svg
//! ```

#[path = "support/picture.rs"]
mod picture;

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Parser;
use plotters::prelude::*;
use procpool::Pool;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// Draws scatter plots of random data.
#[derive(Parser)]
struct Args {
    /// How many plots
    #[arg(short, default_value_t = 16)]
    n: usize,
    /// The directory for them
    #[arg(short, default_value = "scatter")]
    out: PathBuf,
    /// How many processes; 0 means one per CPU
    #[arg(short, default_value_t = 0)]
    processes: usize,
}

/// Draws plot `number`. Returns its number and its file.
fn plot((number, dir): (usize, PathBuf)) -> Result<(usize, PathBuf), String> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(procpool::random_u64());
    let points: Vec<(f64, f64)> = (0..200).map(|_| (random.random(), random.random())).collect();
    let path = dir.join(format!("scatter_{number}.svg"));
    draw(&path, number, &points).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((number, path))
}

fn draw(path: &Path, number: usize, points: &[(f64, f64)]) -> Result<(), Box<dyn Error>> {
    picture::draw(path, (480, 480), |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(format!("Plot {number}"), picture::FONT)
            .margin(12)
            .x_label_area_size(28)
            .y_label_area_size(36)
            .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
        chart.configure_mesh().light_line_style(TRANSPARENT).label_style(picture::FONT).draw()?;
        let dots = points.iter().map(|&at| Circle::new(at, 4, BLUE.mix(0.5).filled()));
        chart.draw_series(dots)?;
        Ok(())
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    procpool::init();
    let args = Args::parse();
    std::fs::create_dir_all(&args.out)?;
    let pool = Pool::builder().workers(args.processes).seed(42).build()?;
    let tasks: Vec<_> =
        (0..args.n).map(|number| pool.apply_async(plot, (number, args.out.clone()))).collect();
    for task in tasks {
        let (number, path) = task.get()??;
        println!("plot {number}: {}", path.display());
    }
    Ok(())
}
