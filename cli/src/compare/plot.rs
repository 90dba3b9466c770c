//! Draws pictures for a talk, each as SVG, PNG and PDF.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::figures;
use super::fit::Fit;
use super::overhead::Payload;
use super::report::Report;
use super::scaling::{AtProcs, Scaling, Variant};
use crate::drawing::{self, Area, Drawn, FONT, Format, Page};
use crate::format;

/// The size of a slide.
const SLIDE: (u32, u32) = (1280, 720);

// Distinguishable for the colour-blind (Okabe and Ito).
const INK: RGBColor = RGBColor(34, 40, 49);
const PROCESSES: RGBColor = RGBColor(213, 94, 0);
const THREADS: RGBColor = RGBColor(0, 114, 178);
const OTHER: RGBColor = RGBColor(130, 138, 148);

/// Draws a picture.
type Draw<'a> = dyn Fn(&Area<'_>) -> Drawn + 'a;

/// The numbers of processes in the bar chart, if measured.
const BARS: [usize; 4] = [2, 3, 4, 6];

/// Draws everything that was measured. Returns the paths of the files.
pub(super) fn write_all(report: &Report, dir: &Path) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    each(report, &mut |name, draw| write(draw, dir, name, &mut written))?;
    Ok(written)
}

/// Draws everything that was measured. Returns names and SVG.
pub(super) fn svgs(report: &Report) -> Result<Vec<(String, Vec<u8>)>> {
    let mut pictures = Vec::new();
    each(report, &mut |name, draw| {
        let content = drawing::draw(Format::Svg, SLIDE, draw).map_err(|error| anyhow!(error))?;
        pictures.push((name.replace('-', " "), content));
        Ok(())
    })?;
    Ok(pictures)
}

/// Passes each picture with its name.
fn each(report: &Report, take: &mut dyn FnMut(&str, &Draw<'_>) -> Result<()>) -> Result<()> {
    let cores = report.machine.cores;
    let busy = report.machine.busy().map_or_else(String::new, |busy| format!("; {busy}"));
    let busy = busy.as_str();
    if let Some(scaling) = &report.scaling {
        let by_speed = Lines { scaling, cores, busy, what: What::SpeedUp };
        take("speed-up", &|on| by_speed.draw(on))?;
        let by_efficiency = Lines { scaling, cores, busy, what: What::Efficiency };
        take("efficiency", &|on| by_efficiency.draw(on))?;
        let bars = Bars { scaling, cores, busy };
        take("serial-and-processes", &|on| bars.draw(on))?;
        if let Some(fit) = &scaling.fit {
            let amdahl = Amdahl { scaling, fit, busy };
            take("amdahl", &|on| amdahl.draw(on))?;
        }
    }
    if let Some(overhead) = &report.overhead {
        let payloads = Payloads(&overhead.payloads, busy);
        take("payload", &|on| payloads.draw(on))?;
    }
    Ok(())
}

fn write(draw: &Draw<'_>, dir: &Path, name: &str, written: &mut Vec<PathBuf>) -> Result<()> {
    for to in [Format::Svg, Format::Png, Format::Pdf] {
        let content = drawing::draw(to, SLIDE, draw).map_err(|error| anyhow!(error))?;
        let path = dir.join(format!("{name}.{to}"));
        fs::write(&path, content).with_context(|| format!("failed to write {}", path.display()))?;
        written.push(path);
    }
    Ok(())
}

/// Returns a text style of this size.
fn text(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}

/// Draws the title of a slide, and returns the area below it.
fn titled<'a>(
    on: &Area<'a>,
    title: &str,
    subtitle: &str,
) -> std::result::Result<Area<'a>, Box<dyn Error>> {
    on.draw(&Text::new(title.to_owned(), (40, 28), text(38)))?;
    on.draw(&Text::new(subtitle.to_owned(), (40, 78), text(22).color(&OTHER)))?;
    Ok(on.margin(115, 20, 20, 50))
}

/// Draws the axes and the grid of a chart.
fn mesh<'a, X, Y>(
    chart: &mut ChartContext<'a, Page<'a>, Cartesian2d<X, Y>>,
    [x, y]: [&str; 2],
    x_label: &dyn Fn(&X::ValueType) -> String,
    y_label: &dyn Fn(&Y::ValueType) -> String,
) -> Drawn
where
    X: Ranged + ValueFormatter<X::ValueType>,
    Y: Ranged + ValueFormatter<Y::ValueType>,
{
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(x_label)
        .y_label_formatter(y_label)
        .x_labels(12)
        .y_labels(8)
        .set_all_tick_mark_size(8)
        .label_style(text(22))
        .axis_desc_style(text(24))
        .axis_style(INK.stroke_width(1))
        .bold_line_style(INK.mix(0.12).stroke_width(1))
        .light_line_style(TRANSPARENT)
        .draw()?;
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    SpeedUp,
    Efficiency,
}

/// Speed-up or efficiency by the number of threads and processes, with the ideal line.
struct Lines<'a> {
    scaling: &'a Scaling,
    cores: usize,
    /// Describes a machine that other programs used.
    busy: &'a str,
    what: What,
}

impl Lines<'_> {
    /// Returns the value to draw of a variant.
    fn value(&self, way: &Variant) -> f64 {
        match self.what {
            What::SpeedUp => way.speed_up.median,
            What::Efficiency => way.efficiency.median,
        }
    }

    /// Returns the best possible value on these cores.
    fn ideal(&self, procs: f64) -> f64 {
        let speed_up = procs.min(self.cores as f64);
        match self.what {
            What::SpeedUp => speed_up,
            What::Efficiency => speed_up / procs,
        }
    }
}

impl Lines<'_> {
    fn draw(&self, on: &Area<'_>) -> Drawn {
        let (title, axis) = match self.what {
            What::SpeedUp => ("Speed-up", "speed-up  S = T1 / Tp"),
            What::Efficiency => ("Efficiency", "efficiency  E = S / p"),
        };
        let area = titled(
            on,
            &format!("{title}: {} on {} cores", self.scaling.task, self.cores),
            &format!(
                "against the true serial run; median, bars from least to greatest{}",
                self.busy
            ),
        )?;
        let most = self.scaling.by_procs.last().map_or(1, |at| at.procs) as f64;
        let all = self.scaling.by_procs.iter().flat_map(|at| [&at.threads, &at.processes]);
        let highest = all
            .map(|way| match self.what {
                What::SpeedUp => way.speed_up.greatest,
                What::Efficiency => way.efficiency.greatest,
            })
            .fold(self.ideal(1.0).max(self.ideal(most)), f64::max);
        let mut chart = ChartBuilder::on(&area)
            .x_label_area_size(76)
            .y_label_area_size(100)
            .build_cartesian_2d(0.7..most + 0.3, 0.0..highest * 1.12)?;
        let whole = |x: &f64| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() };
        let decimals = |y: &f64| format!("{y:.1}");
        mesh(&mut chart, ["p, threads or processes", axis], &whole, &decimals)?;

        let steps = |to: f64| (0..=200).map(move |step| 1.0 + (to - 1.0) * f64::from(step) / 200.0);
        let ideal = steps(most).map(|procs| (procs, self.ideal(procs)));
        let dashes = OTHER.stroke_width(2);
        chart
            .draw_series(DashedLineSeries::new(ideal, 10, 7, dashes))?
            .label(format!("ideal on {} cores", self.cores))
            .legend(move |(x, y)| {
                let ends = [(x, y), (x + 40, y)];
                DashedPathElement::new(ends, 10, 7, dashes)
            });
        type Of = fn(&AtProcs) -> &Variant;
        let ways: [(&str, RGBColor, f64, Of); 2] = [
            ("threads (rayon)", THREADS, -0.03, |at| &at.threads),
            ("processes (procpool)", PROCESSES, 0.03, |at| &at.processes),
        ];
        for (name, colour, aside, way) in ways {
            let points =
                || self.scaling.by_procs.iter().map(|at| (at.procs as f64 + aside, way(at)));
            chart
                .draw_series(LineSeries::new(
                    points().map(|(x, way)| (x, self.value(way))),
                    colour.stroke_width(4),
                ))?
                .label(name)
                .legend(move |(x, y)| line_in_legend(x, y, colour, 4));
            chart.draw_series(points().map(|(x, way)| {
                let sample = match self.what {
                    What::SpeedUp => &way.speed_up,
                    What::Efficiency => &way.efficiency,
                };
                let ends = vec![(x, sample.least), (x, sample.greatest)];
                PathElement::new(ends, colour.mix(0.6).stroke_width(2))
            }))?;
            chart.draw_series(
                points().map(|(x, way)| Circle::new((x, self.value(way)), 7, colour.filled())),
            )?;
        }
        let place = match self.what {
            What::SpeedUp => SeriesLabelPosition::LowerRight,
            What::Efficiency => SeriesLabelPosition::UpperRight,
        };
        chart
            .configure_series_labels()
            .position(place)
            .margin(24)
            .legend_area_size(50)
            .label_font(text(24))
            .background_style(WHITE.mix(0.9).filled())
            .draw()?;
        Ok(())
    }
}

/// The times of processes, and the fit that shows their serial part.
struct Amdahl<'a> {
    scaling: &'a Scaling,
    fit: &'a Fit,
    /// Describes a machine that other programs used.
    busy: &'a str,
}

impl Amdahl<'_> {
    fn draw(&self, on: &Area<'_>) -> Drawn {
        let Self { scaling, fit, busy } = self;
        let area = titled(
            on,
            &format!("Amdahl: {} on {} cores", scaling.task, fit.cores),
            &format!(
                "serial share {:.1} %, overhead {} per process, best at p = {}{busy}",
                fit.serial_share * 100.0,
                figures::time(fit.per_process),
                fit.best
            ),
        )?;
        let most = scaling.by_procs.last().map_or(1, |at| at.procs) as f64;
        let slowest = scaling.by_procs.iter().map(|at| at.processes.seconds.greatest);
        let highest = slowest.fold(fit.time(1.0), f64::max);
        let mut chart = ChartBuilder::on(&area)
            .x_label_area_size(76)
            .y_label_area_size(120)
            .build_cartesian_2d(0.7..most + 0.3, 0.0..highest * 1.12)?;
        let whole = |x: &f64| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() };
        let time = |seconds: &f64| match seconds {
            0.0 => "0".to_owned(),
            seconds => figures::time(*seconds),
        };
        mesh(&mut chart, ["p, processes", "time T(p)"], &whole, &time)?;
        let steps = || (0..=200).map(|step| 1.0 + (most - 1.0) * f64::from(step) / 200.0);
        let ideal = |procs: f64| fit.time(1.0) / procs.min(fit.cores as f64);
        let serial = |_: f64| fit.serial;
        type Line<'a> = &'a dyn Fn(f64) -> f64;
        let dashed: [(&str, RGBColor, Line<'_>); 2] =
            [("ideal: T(1)/p up to the cores", OTHER, &ideal), ("the serial part s", INK, &serial)];
        for (name, colour, time) in dashed {
            let dashes = colour.stroke_width(2);
            let line = steps().map(|procs| (procs, time(procs)));
            chart
                .draw_series(DashedLineSeries::new(line, 10, 7, dashes))?
                .label(name)
                .legend(move |(x, y)| DashedPathElement::new([(x, y), (x + 40, y)], 10, 7, dashes));
        }
        chart
            .draw_series(LineSeries::new(
                steps().map(|p| (p, fit.time(p))),
                PROCESSES.stroke_width(3),
            ))?
            .label("the fit T(p) = s + w/p + c·p")
            .legend(move |(x, y)| line_in_legend(x, y, PROCESSES, 3));
        let points = || scaling.by_procs.iter().map(|at| (at.procs as f64, &at.processes.seconds));
        chart.draw_series(points().map(|(x, sample)| {
            let ends = vec![(x, sample.least), (x, sample.greatest)];
            PathElement::new(ends, THREADS.mix(0.6).stroke_width(2))
        }))?;
        chart
            .draw_series(
                points().map(|(x, sample)| Circle::new((x, sample.median), 7, THREADS.filled())),
            )?
            .label("measured, with least and greatest")
            .legend(move |(x, y)| Circle::new((x + 20, y), 7, THREADS.filled()));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .margin(24)
            .legend_area_size(50)
            .label_font(text(24))
            .background_style(WHITE.mix(0.9).filled())
            .draw()?;
        Ok(())
    }
}

/// Draws a line before a name of the legend.
fn line_in_legend(x: i32, y: i32, colour: RGBColor, width: u32) -> PathElement<(i32, i32)> {
    PathElement::new([(x, y), (x + 40, y)], colour.stroke_width(width))
}

/// The round trip of a payload by size, beside a copy in memory.
struct Payloads<'a>(&'a [Payload], &'a str);

impl Payloads<'_> {
    fn draw(&self, on: &Area<'_>) -> Drawn {
        let area = titled(
            on,
            "What a payload costs",
            &format!(
                "a Vec<u8> to a worker and back, median; bars from least to greatest{}",
                self.1
            ),
        )?;
        let sizes = || self.0.iter().map(|payload| payload.bytes as f64);
        let (least, most) = (sizes().fold(f64::INFINITY, f64::min), sizes().fold(1.0, f64::max));
        let times = || self.0.iter().flat_map(|payload| [&payload.seconds, &payload.copy]);
        let quickest = times().map(|sample| sample.least).fold(f64::INFINITY, f64::min);
        let slowest = times().map(|sample| sample.greatest).fold(0.0, f64::max);
        // Whole powers of ten, so that the axis begins and ends at a label.
        let power = |time: f64| 10f64.powf(time);
        let (low, high) = (power(quickest.log10().floor()), power(slowest.log10().ceil()));
        let mut chart = ChartBuilder::on(&area)
            .x_label_area_size(76)
            .y_label_area_size(120)
            .build_cartesian_2d(
                (least.log2() - 0.4)..(most.log2() + 0.4),
                (low..high).log_scale().base(10.0),
            )?;
        let size = |power: &f64| {
            let is_even = power.fract() == 0.0 && (*power as i64) % 2 == 0;
            if is_even { binary(*power) } else { String::new() }
        };
        let time = |seconds: &f64| short_time(*seconds);
        mesh(&mut chart, ["size", "time there and back"], &size, &time)?;
        type Of = fn(&Payload) -> &super::measure::Sample;
        let series: [(&str, RGBColor, Of); 2] = [
            ("one memcpy (clone)", OTHER, |payload| &payload.copy),
            ("process (procpool)", PROCESSES, |payload| &payload.seconds),
        ];
        for (name, colour, of) in series {
            let points =
                || self.0.iter().map(|payload| ((payload.bytes as f64).log2(), of(payload)));
            chart
                .draw_series(LineSeries::new(
                    points().map(|(x, sample)| (x, sample.median)),
                    colour.stroke_width(4),
                ))?
                .label(name)
                .legend(move |(x, y)| line_in_legend(x, y, colour, 4));
            chart.draw_series(points().map(|(x, sample)| {
                let ends = vec![(x, sample.least), (x, sample.greatest)];
                PathElement::new(ends, colour.mix(0.6).stroke_width(2))
            }))?;
            chart.draw_series(
                points().map(|(x, sample)| Circle::new((x, sample.median), 7, colour.filled())),
            )?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .margin(24)
            .legend_area_size(50)
            .label_font(text(24))
            .background_style(WHITE.mix(0.9).filled())
            .draw()?;
        Ok(())
    }
}

/// 2 to that power, in units of 1024.
fn binary(power: f64) -> String {
    let power = power as u32;
    let (unit, name) = match power {
        ..10 => (0, "B"),
        10..20 => (10, "KiB"),
        20..30 => (20, "MiB"),
        _ => (30, "GiB"),
    };
    format!("{} {name}", 1u64 << (power - unit))
}

/// A power of ten of a second.
fn short_time(seconds: f64) -> String {
    match seconds {
        ..0.95e-6 => format!("{:.0} ns", seconds * 1e9),
        ..0.95e-3 => format!("{:.0} µs", seconds * 1e6),
        ..0.95 => format!("{:.0} ms", seconds * 1e3),
        _ => format!("{seconds:.0} s"),
    }
}

/// The serial run against some numbers of processes.
struct Bars<'a> {
    scaling: &'a Scaling,
    cores: usize,
    /// What to say of a machine where others worked, too.
    busy: &'a str,
}

impl Bars<'_> {
    fn draw(&self, on: &Area<'_>) -> Drawn {
        let serial = &self.scaling.serial;
        let mut bars = vec![("serial".to_owned(), OTHER, serial)];
        let several = || self.scaling.by_procs.iter().filter(|at| at.procs > 1);
        let as_asked: Vec<_> = several().filter(|at| BARS.contains(&at.procs)).collect();
        let shown = if as_asked.is_empty() { several().collect() } else { as_asked };
        for at in shown {
            let name = format!("{} processes", at.procs);
            bars.push((name, PROCESSES, &at.processes.seconds));
        }
        let area = titled(
            on,
            &format!("Serial against processes: {} on {} cores", self.scaling.task, self.cores),
            &format!(
                "time for {} jobs, median; lines from least to greatest{}",
                format::grouped(self.scaling.jobs as u64),
                self.busy
            ),
        )?;
        let highest = bars.iter().map(|(_, _, sample)| sample.greatest).fold(0.0, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .x_label_area_size(76)
            .y_label_area_size(120)
            .build_cartesian_2d(-0.5..bars.len() as f64 - 0.5, 0.0..highest * 1.15)?;
        let name = |x: &f64| {
            let bar = (x.fract() == 0.0 && *x >= 0.0).then(|| bars.get(*x as usize)).flatten();
            bar.map_or_else(String::new, |(name, ..)| name.clone())
        };
        let time = |seconds: &f64| match seconds {
            0.0 => "0".to_owned(),
            seconds => figures::time(*seconds),
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .y_desc("time")
            .x_label_formatter(&name)
            .y_label_formatter(&time)
            .x_labels(bars.len() * 2)
            .y_labels(6)
            .set_all_tick_mark_size(8)
            .label_style(text(22))
            .axis_desc_style(text(24))
            .axis_style(INK.stroke_width(1))
            .bold_line_style(INK.mix(0.12).stroke_width(1))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (place, (_, colour, sample)) in bars.iter().enumerate() {
            let x = place as f64;
            let corners = [(x - 0.32, 0.0), (x + 0.32, sample.median)];
            chart.draw_series([Rectangle::new(corners, colour.filled())])?;
            let ends = vec![(x, sample.least), (x, sample.greatest)];
            chart.draw_series([PathElement::new(ends, INK.stroke_width(2))])?;
            let speed_up = serial.median / sample.median;
            let mut label = figures::time(sample.median);
            if place > 0 {
                label += &format!("  ({speed_up:.2} ×)");
            }
            use plotters::style::text_anchor::{HPos, Pos, VPos};
            let style = text(24).pos(Pos::new(HPos::Center, VPos::Bottom));
            let above = sample.greatest + highest * 0.02;
            chart.draw_series([Text::new(label, (x, above), style)])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::compare::measure::Sample;

    #[test]
    fn pictures_show_what_was_measured_in_all_formats() {
        let sample = |value: f64| Sample::of(vec![value, value * 1.1, value * 0.9]);
        let way = |speed_up: f64| Variant {
            seconds: sample(1.0 / speed_up),
            speed_up: sample(speed_up),
            efficiency: sample(0.9),
        };
        let by_procs = [1, 2, 3].map(|procs| AtProcs {
            procs,
            threads: way(procs as f64),
            processes: way(procs as f64),
        });
        let fit = super::super::fit::fit(&[(1, 1.0), (2, 0.5), (3, 0.4)], 3).ok();
        assert!(fit.is_some());
        let scaling = Scaling {
            task: "pi",
            jobs: 1000,
            serial: sample(1.0),
            by_procs: by_procs.into(),
            fit,
            unfit: None,
        };
        let mut report = Report::new(super::super::machine::Machine::detect(), 3);
        report.scaling = Some(scaling);
        let dir = tempfile::tempdir().unwrap();
        let written = write_all(&report, dir.path()).unwrap();
        assert_eq!(written.len(), 4 * 3);
        let svg = fs::read_to_string(dir.path().join("serial-and-processes.svg")).unwrap();
        assert!(svg.contains("3 processes") && svg.contains("serial"), "{svg}");
        let png = ::image::open(dir.path().join("speed-up.png")).unwrap();
        assert_eq!((png.width(), png.height()), SLIDE);
        let pdf = fs::read(dir.path().join("amdahl.pdf")).unwrap();
        assert!(pdf.starts_with(b"%PDF-"), "{} bytes", pdf.len());
    }

    #[test]
    fn sizes_and_times_on_axes_are_short() {
        assert_eq!([9.0, 12.0, 26.0].map(binary), ["512 B", "4 KiB", "64 MiB"]);
        assert_eq!([1e-7, 1e-6, 1e-3, 1.0].map(short_time), ["100 ns", "1 µs", "1 ms", "1 s"]);
    }
}
