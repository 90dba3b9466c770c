//! Shared by the examples that draw: the file, whose ending decides the format, and what charts have in
//! common.

mod drawing;

use std::error::Error;
use std::path::{Path, PathBuf};

use self::drawing::Format;
pub(crate) use self::drawing::{Area, Drawn, FONT};

/// Returns the path of the picture: the first argument, or `default`. Any other ending than `.pdf`, `.png`
/// and `.svg` is an error.
#[allow(dead_code)] // not every example draws a single picture
pub(crate) fn path(default: &str) -> Result<PathBuf, Box<dyn Error>> {
    let path = std::env::args_os().nth(1).map_or_else(|| default.into(), PathBuf::from);
    format(&path)?;
    Ok(path)
}

/// Returns the format that a file's ending stands for.
pub(crate) fn format(path: &Path) -> Result<Format, String> {
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    match ending.to_str() {
        Some("pdf") => Ok(Format::Pdf),
        Some("png") => Ok(Format::Png),
        Some("svg") => Ok(Format::Svg),
        _ => Err(format!("failed to draw {path:?}: its name must end in .pdf, .png or .svg")),
    }
}

/// Draws a picture on white with `draw`, and writes it to `path`.
pub(crate) fn draw(
    path: &Path,
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<(), Box<dyn Error>> {
    let content = drawing::draw(format(path)?, size, draw)?;
    std::fs::write(path, content)
        .map_err(|error| format!("failed to write {}: {error}", path.display()))?;
    Ok(())
}
