//! `plot`: a scatter plot of random points, one picture per seed, as SVG or PNG in a directory.

use std::error::Error;
use std::path::PathBuf;

use plotters::coord::Shift;
use plotters::prelude::*;
use rand::distr::Distribution;
use rand_distr::StandardNormal;

use super::canvas::{self, Drawing, FONT};
use super::files::write_whole;
use super::job::{FileFormat, Job};
use super::output::{Column, Output};
use super::random::stream;
use super::task::{A_SEED, Options, Takes, Task};

/// The default number of points of a plot.
pub(crate) const POINTS: u64 = 500;

/// The output formats; the first is the default.
const FORMATS: &[FileFormat] = &[FileFormat::Svg, FileFormat::Png];

/// The range of the axes. Fixed, so that plots can be compared; of 500 points of a Gaussian, hardly
/// one per plot lies beyond 3.
const REACH: f64 = 4.0;

/// The task's descriptor.
pub(crate) static TASK: Task = Task {
    name: "plot",
    summary: "a scatter plot of random points, one per seed, as a file",
    takes: Takes::Numbers,
    default_inputs: &["0..8"],
    input: Column::number("seed", 10),
    columns: &[Column::number("points", 8), Column::text("output", 0)],
    options: Options { out: true, to: FORMATS, points: Some(POINTS), seed: None },
    run,
    output_name: None, // one per seed, and a seed's plot is always the same
};

fn run(job: Job) -> Result<Output, String> {
    let seed: u64 = job.input.parse(A_SEED)?;
    let to = job.params.to.unwrap_or(FORMATS[0]);
    let points = job.params.points.unwrap_or(POINTS);
    let content = scatter(seed, points, to)?;
    let name = PathBuf::from(format!("scatter-{seed:04}.{}", to.extension()));
    let output = write_whole(job.params.out_dir()?, &name, &content)?;
    Ok(vec![points.into(), output.into()])
}

/// Returns the content of a file with a scatter plot of random points. The same seed always draws
/// the same plot.
pub(crate) fn scatter(seed: u64, points: u64, to: FileFormat) -> Result<Vec<u8>, String> {
    canvas::draw(&Scatter { seed, points }, to)
}

struct Scatter {
    seed: u64,
    points: u64,
}

impl Drawing for Scatter {
    const SIZE: (u32, u32) = (640, 640);

    fn draw<B: DrawingBackend>(
        &self,
        on: &DrawingArea<B, Shift>,
        unit: u32,
    ) -> Result<(), Box<dyn Error>>
    where
        B::ErrorType: 'static,
    {
        let ink = RGBColor(40, 44, 52);
        let text = |size: u32| (FONT, size * unit).into_font().color(&ink);
        on.fill(&WHITE)?;
        let title = format!("Seed {}: {} random points", self.seed, self.points);
        let mut chart = ChartBuilder::on(on)
            .caption(title, text(22))
            .margin(16 * unit)
            .x_label_area_size(40 * unit)
            .y_label_area_size(48 * unit)
            .build_cartesian_2d(-REACH..REACH, -REACH..REACH)?;
        chart
            .configure_mesh()
            .x_labels(9)
            .y_labels(9)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.0}"))
            .x_desc("x")
            .y_desc("y")
            .label_style(text(14))
            .axis_desc_style(text(16))
            .axis_style(ink.stroke_width(unit))
            .bold_line_style(ink.mix(0.15).stroke_width(unit))
            .light_line_style(TRANSPARENT)
            .draw()?;
        let dot = RGBColor(31, 119, 180).mix(0.55).filled();
        let mut random = stream(self.seed);
        chart.draw_series((0..self.points).map(|_| {
            let x: f64 = StandardNormal.sample(&mut random);
            let y: f64 = StandardNormal.sample(&mut random);
            Circle::new((x, y), 4 * unit, dot)
        }))?;
        on.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tasks::{Params, Value};

    fn job(seed: &str, dir: &std::path::Path, to: FileFormat) -> Job {
        let params =
            Params { out: Some(dir.to_path_buf().into()), to: Some(to), ..Params::default() };
        Job { params, ..Job::new(seed) }
    }

    #[test]
    fn a_plot_shows_all_its_points_under_its_seed() {
        let svg = String::from_utf8(scatter(7, 500, FileFormat::Svg).unwrap()).unwrap();
        assert!(svg.contains("Seed 7: 500 random points"));
        assert!(svg.matches("<circle").count() >= 495, "few lie outside the axes");
    }

    #[test]
    fn a_seed_draws_the_same_plot_and_another_seed_another() {
        for to in FORMATS {
            assert_eq!(scatter(1, 50, *to).unwrap(), scatter(1, 50, *to).unwrap());
            assert_ne!(scatter(1, 50, *to).unwrap(), scatter(2, 50, *to).unwrap());
        }
    }

    #[test]
    fn plots_are_written_as_files_that_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let answer = run(job("3", dir.path(), FileFormat::Png)).unwrap();
        let path = dir.path().join("scatter-0003.png");
        assert_eq!(answer, [Value::Whole(500), Value::Text(path.clone().into())]);
        let picture = ::image::open(&path).unwrap();
        assert_eq!((picture.width(), picture.height()), Scatter::SIZE);
    }

    #[test]
    fn a_plot_that_cannot_be_made_says_why() {
        let dir = tempfile::tempdir().unwrap();
        assert!(run(job("x", dir.path(), FileFormat::Png)).unwrap_err().contains("seed"));
        assert!(run(Job::new("1")).unwrap_err().contains("--out DIR"));
        assert!(scatter(1, 5, FileFormat::Webp).unwrap_err().contains("svg or png"));
    }
}
