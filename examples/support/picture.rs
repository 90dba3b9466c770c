//! Shared by the examples that draw: an SVG file, a white background, a font.

use std::error::Error;
use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;

/// The font of all text.
pub(crate) const FONT: (&str, u32) = ("sans-serif", 15);

/// Returns the path of the picture: the first argument, or `default`. A path without the ending `.svg` is an
/// error.
#[allow(dead_code)] // not every example draws a single picture
pub(crate) fn path(default: &str) -> Result<PathBuf, Box<dyn Error>> {
    let path = std::env::args_os().nth(1).map_or_else(|| default.into(), PathBuf::from);
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("svg")) {
        return Ok(path);
    }
    Err(format!("{path:?} can't be written: the picture is an SVG, as in {default}").into())
}

/// Draws a picture with a white background using `draw`, and writes it to `path`.
pub(crate) fn draw(
    path: &Path,
    size: (u32, u32),
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let font = epaint_default_fonts::UBUNTU_LIGHT;
    plotters::style::register_font(FONT.0, FontStyle::Normal, font)
        .map_err(|_| "the font can't be read")?;
    let area = SVGBackend::new(path, size).into_drawing_area();
    area.fill(&WHITE)?;
    draw(&area)?;
    Ok(area.present()?)
}
