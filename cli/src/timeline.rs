//! `procpool timeline`: draws a trace as SVG, one row per worker.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::args::TimelineArgs;
use super::exit::{Exit, Usage};
use super::format;
use super::trace::Entry;

/// Sizes in pixels.
const WIDTH: f64 = 1200.0;
const LEFT: f64 = 90.0;
const TOP: f64 = 34.0;
const ROW: f64 = 26.0;
const BAR: f64 = 20.0;

/// Narrower slices are merged if they are of one kind.
const NARROWEST: f64 = 0.5;

pub(super) fn run(args: &TimelineArgs) -> Result<Exit> {
    let entries = read(&args.trace)?;
    let picture = draw(&entries);
    match &args.out {
        Some(path) => fs::write(path, picture)
            .with_context(|| format!("failed to write the picture to {path:?}"))?,
        None => {
            let mut stdout = io::stdout().lock();
            let written = stdout.write_all(picture.as_bytes()).and_then(|()| stdout.flush());
            written.context("failed to write the picture to standard output")?;
        }
    }
    Ok(Exit::Success)
}

fn read(path: &Path) -> Result<Vec<Entry>> {
    let refused = |error: &dyn std::fmt::Display| {
        Usage::error(format!(
            "failed to read {path:?} as a trace: {error}; use a file written by run --trace"
        ))
    };
    let text = fs::read(path).map_err(|error| refused(&error))?;
    serde_json::from_slice(&text).map_err(|error| refused(&error))
}

/// Returns the fill colour of a slice, by category.
fn fill(category: &str) -> &'static str {
    match category {
        "failed" => "#d62728",
        "start" => "#c7c7c7",
        _ => "#4c78a8",
    }
}

/// Adjacent slices of one kind.
struct Drawn<'a> {
    start: f64,
    end: f64,
    category: &'a str,
    count: usize,
    first: &'a Entry,
}

fn draw(entries: &[Entry]) -> String {
    let end = entries.iter().map(|entry| entry.ts + entry.dur.unwrap_or(0.0)).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - 20.0) / end;
    let mut tracks: BTreeMap<usize, Vec<&Entry>> = BTreeMap::new();
    let mut names: BTreeMap<usize, &str> = BTreeMap::new();
    for entry in entries {
        match entry.ph.as_str() {
            "X" | "i" => tracks.entry(entry.tid).or_default().push(entry),
            "M" if entry.name == "thread_name" => {
                names.extend(entry.args.name.as_deref().map(|name| (entry.tid, name)));
            }
            _ => {}
        }
    }
    let height = TOP + ROW * tracks.len() as f64 + 34.0;
    let bottom = height - 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    legend(&mut svg);
    let step = step(end);
    for tick in (0u32..).map(|tick| f64::from(tick) * step).take_while(|tick| *tick <= end) {
        let x = LEFT + tick * scale;
        let text = label(tick);
        // Labels at the edge stay within the picture.
        let middle = x.min(WIDTH - 4.0 * text.chars().count() as f64);
        add(
            &mut svg,
            format_args!(
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#e5e5e5\"/>\
             <text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">{text}</text>\n",
                bottom + 16.0
            ),
        );
    }
    for (row, (track, entries)) in tracks.iter().enumerate() {
        let y = TOP + ROW * row as f64 + (ROW - BAR) / 2.0;
        let name = names.get(track).copied().unwrap_or("?");
        add(
            &mut svg,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                LEFT - 8.0,
                y + BAR * 0.7,
                escape(name)
            ),
        );
        draw_track(&mut svg, entries, y, scale);
    }
    svg + "</svg>\n"
}

/// Returns the time between ticks in microseconds: 1, 2 or 5 times a power of ten, with room for
/// the labels.
fn step(end: f64) -> f64 {
    const MAX_TICKS: f64 = 9.0;
    let least = (end / MAX_TICKS).max(1.0);
    let power = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|digit| digit * power);
    steps.into_iter().find(|step| *step >= least).unwrap_or(10.0 * power)
}

/// Formats the time of a tick without needless digits.
fn label(micros: f64) -> String {
    let (unit, size) = match micros {
        ..1e3 => ("µs", 1.0),
        ..1e6 => ("ms", 1e3),
        _ => ("s", 1e6),
    };
    // A sum of steps may be off by the last bit of an f64.
    let number = (micros / size * 1e3).round() / 1e3;
    if number == 0.0 { "0".to_owned() } else { format!("{number} {unit}") }
}

fn legend(svg: &mut String) {
    let kinds = [("done", "done"), ("failed", "failed"), ("start", "start of a worker")];
    for (place, (category, text)) in kinds.into_iter().enumerate() {
        let x = LEFT + 90.0 * place as f64;
        let color = fill(category);
        add(
            svg,
            format_args!(
                "<rect x=\"{x}\" y=\"10\" width=\"12\" height=\"12\" fill=\"{color}\"/>\
             <text x=\"{}\" y=\"20\">{text}</text>\n",
                x + 17.0
            ),
        );
    }
    let x = LEFT + 320.0;
    add(
        svg,
        format_args!(
            "<path d=\"M{x} 10 l6 12 l-12 0 z\" fill=\"black\"/><text x=\"{}\" y=\"20\">worker lost</text>\n",
            x + 12.0
        ),
    );
}

fn draw_track(svg: &mut String, entries: &[&Entry], y: f64, scale: f64) {
    let mut slices: Vec<_> = entries.iter().filter(|entry| entry.ph == "X").collect();
    slices.sort_by(|one, other| one.ts.total_cmp(&other.ts));
    let mut pending: Option<Drawn<'_>> = None;
    for entry in slices {
        let (start, end) = (entry.ts, entry.ts + entry.dur.unwrap_or(0.0));
        match &mut pending {
            Some(drawn)
                if drawn.category == entry.cat
                    && (end - start) * scale < NARROWEST
                    && (start - drawn.end) * scale < NARROWEST =>
            {
                drawn.end = drawn.end.max(end);
                drawn.count += 1;
            }
            _ => {
                if let Some(drawn) = pending.take() {
                    draw_slice(svg, &drawn, y, scale);
                }
                pending = Some(Drawn { start, end, category: &entry.cat, count: 1, first: entry });
            }
        }
    }
    if let Some(drawn) = pending {
        draw_slice(svg, &drawn, y, scale);
    }
    for entry in entries.iter().filter(|entry| entry.ph == "i" && entry.name != "retired") {
        let x = LEFT + entry.ts * scale;
        let cause = entry.args.error.as_deref().unwrap_or_default();
        let pid = entry.args.pid.map_or(String::new(), |pid| format!("PID {pid} "));
        add(
            svg,
            format_args!(
                "<path d=\"M{x:.2} {:.1} l5 10 l-10 0 z\" fill=\"black\"><title>{pid}{}: {}</title></path>\n",
                y + BAR - 8.0,
                escape(&entry.name),
                escape(cause)
            ),
        );
    }
}

fn draw_slice(svg: &mut String, drawn: &Drawn<'_>, y: f64, scale: f64) {
    let (x, width) =
        (LEFT + drawn.start * scale, ((drawn.end - drawn.start) * scale).max(NARROWEST));
    let time = format::duration(Duration::from_secs_f64((drawn.end - drawn.start).max(0.0) / 1e6));
    let title = if drawn.count > 1 {
        format!("{} jobs, {time}", format::grouped(drawn.count as u64))
    } else {
        let error =
            drawn.first.args.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
        format!("{}, {time}{error}", drawn.first.name)
    };
    // A gap between adjacent slices, if there is room.
    let gap = if width > 3.0 { 0.5 } else { 0.0 };
    add(
        svg,
        format_args!(
            "<rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{:.2}\" height=\"{BAR}\" fill=\"{}\"><title>{}</title></rect>\n",
            width - gap,
            fill(drawn.category),
            escape(&title)
        ),
    );
    if drawn.count == 1 && width > 40.0 {
        let room = ((width - 8.0) / 7.0) as usize;
        let name: String = drawn.first.name.chars().take(room).collect();
        add(
            svg,
            format_args!(
                "<text x=\"{:.2}\" y=\"{:.1}\" fill=\"{}\" font-size=\"11\">{}</text>\n",
                x + 4.0,
                y + BAR * 0.7,
                if drawn.category == "start" { "black" } else { "white" },
                escape(&name)
            ),
        );
    }
}

fn add(svg: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = svg.write_fmt(text); // writing to memory can't fail
}

/// Escapes text for SVG, which cannot contain control characters.
fn escape(text: &str) -> String {
    format::one_line(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_times_and_as_many_as_fit() {
        for (end, expected) in
            [(2_628_000.0, 500_000.0), (999.0, 200.0), (9_000_000.0, 1_000_000.0), (3.0, 1.0)]
        {
            assert_eq!(step(end), expected, "{end}");
        }
        assert_eq!(
            [0.0, 500_000.0, 1.5e6, 2e6, 20.0].map(label),
            ["0", "500 ms", "1.5 s", "2 s", "20 µs"]
        );
    }
}
