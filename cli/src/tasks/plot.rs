//! `plot`: a scatter plot of random points, one picture per seed, in a directory. After matplotlib's
//! demonstration of `scatter`, whose dots have areas of π(15 r)² for random numbers r.

use std::path::PathBuf;

use plotters::prelude::*;
use rand::RngExt;

use super::files::write_whole;
use super::job::{FileFormat, Job};
use super::output::{Column, Output};
use super::random::stream;
use super::task::{A_SEED, Options, Takes, Task};
use crate::drawing::{self, Area, Drawn, FONT, Format};

/// The default number of points of a plot.
pub(crate) const POINTS: u64 = 500;

/// The output formats; the first is the default.
const FORMATS: &[FileFormat] = &[FileFormat::Pdf, FileFormat::Png, FileFormat::Svg];

/// Width and height, in pixels.
const SIZE: (u32, u32) = (640, 480);

/// The largest radius of a dot, in pixels.
const RADIUS: f64 = 15.0;

/// The task's descriptor.
pub(crate) static TASK: Task = Task {
    name: "plot",
    summary: "a scatter plot of random points, one per seed, as a file",
    takes: Takes::Numbers,
    default_inputs: &["1..=8"],
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
    let name = PathBuf::from(format!("plot_{seed}.{}", to.extension()));
    let output = write_whole(job.params.out_dir()?, &name, &content)?;
    Ok(vec![points.into(), output.into()])
}

/// Returns the content of a file with a scatter plot of random points. The same seed always draws
/// the same plot.
pub(crate) fn scatter(seed: u64, points: u64, to: FileFormat) -> Result<Vec<u8>, String> {
    let to = match to {
        FileFormat::Pdf => Format::Pdf,
        FileFormat::Png => Format::Png,
        FileFormat::Svg => Format::Svg,
        FileFormat::Jpeg | FileFormat::Webp => {
            return Err(format!("failed to draw as {to}: use pdf, png or svg as the format"));
        }
    };
    drawing::draw(to, SIZE, |area| draw(area, seed, points))
}

fn draw(area: &Area<'_>, seed: u64, points: u64) -> Drawn {
    let ink = RGBColor(40, 44, 52);
    let text = |size: u32| (FONT, size).into_font().color(&ink);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("Seed {seed}: {points} random points"), text(20))
        .margin(16)
        .x_label_area_size(32)
        .y_label_area_size(40)
        .build_cartesian_2d(-0.05..1.05, -0.05..1.05)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_labels(6)
        .y_labels(6)
        .label_style(text(15))
        .axis_style(ink)
        .draw()?;
    let mut random = stream(seed);
    chart.draw_series((0..points).map(|_| {
        let [x, y, r, hue]: [f64; 4] = random.random();
        let dot = ViridisRGB::get_color(hue).mix(0.5).filled();
        Circle::new((x, y), (RADIUS * r).round() as i32, dot)
    }))?;
    Ok(())
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
        assert_eq!(svg.matches("<circle").count(), 500);
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
        let path = dir.path().join("plot_3.png");
        assert_eq!(answer, [Value::Whole(500), Value::Text(path.clone().into())]);
        let picture = ::image::open(&path).unwrap();
        assert_eq!((picture.width(), picture.height()), SIZE);
    }

    #[test]
    fn a_pdf_has_a_page_of_the_size_and_its_text_can_be_searched() {
        let pdf = scatter(7, 5, FileFormat::Pdf).unwrap();
        assert!(pdf.starts_with(b"%PDF-") && pdf.ends_with(b"%%EOF"));
        let text = String::from_utf8_lossy(&pdf);
        assert!(text.contains("/MediaBox [0 0 640 480]"), "{text}");
        assert!(text.contains("/ToUnicode"), "{text}");
    }

    #[test]
    fn a_plot_that_cannot_be_made_says_why() {
        let dir = tempfile::tempdir().unwrap();
        assert!(run(job("x", dir.path(), FileFormat::Png)).unwrap_err().contains("seed"));
        assert!(run(Job::new("1")).unwrap_err().contains("--out DIR"));
        assert!(scatter(1, 5, FileFormat::Webp).unwrap_err().contains("pdf, png or svg"));
    }
}
