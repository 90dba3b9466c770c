//! Estimates π by the Monte Carlo method: π/4 of random points in a square lie in the quarter circle. First
//! in a single loop, then in 16 parts, each with a seed of its own: serially, and by 4 processes. The parts
//! give the same estimate in both ways. Draws the first points. The times
//! are those of a debug build.
//!
//! ```text
//! $ cargo run --example pi -- target/pi.pdf
//! 10000000 random points
//! a single loop          π ≈ 3.14149  204.9ms
//! 16 parts, serially     π ≈ 3.14083  204.1ms
//! 16 parts, 4 processes  π ≈ 3.14083  119.4ms
//! drawn: target/pi.pdf
//! ```

#[path = "support/machine.rs"]
mod machine;
#[path = "support/picture.rs"]
mod picture;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use plotters::prelude::*;
use procpool::Pool;

const POINTS: u64 = 10_000_000;
const PARTS: u64 = 16;
const DRAWN: usize = 3_000;

/// Returns the random points of a seed.
fn points(seed: u64) -> impl Iterator<Item = (f64, f64)> {
    let mut state = seed;
    let mut random = move || {
        // SplitMix64, scaled to 0..1.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    std::iter::repeat_with(move || (random(), random()))
}

fn is_hit((x, y): (f64, f64)) -> bool {
    x * x + y * y < 1.0
}

/// Returns how many of a seed's first points lie in the quarter circle.
fn hits((seed, count): (u64, u64)) -> u64 {
    points(seed).take(count as usize).map(|point| u64::from(is_hit(point))).sum()
}

fn draw(path: &Path, estimate: f64) -> Result<(), Box<dyn Error>> {
    picture::draw(path, (480, 520), |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(format!("π ≈ {estimate:.5}"), (picture::FONT, 20))
            .margin(16)
            .x_label_area_size(28)
            .y_label_area_size(36)
            .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
        let labels = (picture::FONT, 15);
        chart.configure_mesh().disable_mesh().x_labels(6).y_labels(6).label_style(labels).draw()?;
        chart.draw_series(points(PARTS).take(DRAWN).map(|at| {
            let color = if is_hit(at) { BLUE } else { RED };
            Circle::new(at, 2, color.mix(0.5).filled())
        }))?;
        let arc = (0..=100).map(|step| f64::from(step) / 100.0 * std::f64::consts::FRAC_PI_2);
        let arc = arc.map(|angle| (angle.cos(), angle.sin()));
        chart.draw_series(LineSeries::new(arc, BLACK.stroke_width(2)))?;
        Ok(())
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    procpool::init();
    let path = picture::path("pi.pdf")?;
    let pool = Pool::new(4)?;
    pool.map(hits, (0..4).map(|seed| (seed, 1)))?; // starts the workers
    let pi = |hits: u64| 4.0 * hits as f64 / POINTS as f64;
    let show =
        |name: &str, pi: f64, time: Duration| println!("{name:<21}  π ≈ {pi:.5}  {time:.1?}");
    let parts = || (0..PARTS).map(|seed| (seed, POINTS / PARTS));

    println!("{POINTS} random points");
    let (single, time) = machine::timed(|| pi(hits((PARTS, POINTS))));
    show("a single loop", single, time);
    let (serial, time) = machine::timed(|| pi(parts().map(hits).sum()));
    show("16 parts, serially", serial, time);
    let (parallel, time) = machine::timed(|| pool.map(hits, parts()));
    let parallel = pi(parallel?.iter().sum());
    show("16 parts, 4 processes", parallel, time);

    assert_eq!(serial, parallel);
    assert!((parallel - std::f64::consts::PI).abs() < 0.002, "that is no π");
    draw(&path, single)?;
    println!("drawn: {}", path.display());
    Ok(())
}
