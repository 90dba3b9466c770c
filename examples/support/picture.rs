//! What the examples that draw have in common: an SVG file, a white ground, a font.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

/// The font of all text.
pub(crate) const FONT: (&str, u32) = ("sans-serif", 15);

/// Runs `draw` on the ground of a picture that becomes the file `path`.
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
