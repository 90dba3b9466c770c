//! Draws a picture as SVG, PNG or PDF: the font, the page and the encoding.
//!
//! The examples of the library use the same files, by links in `examples/support/drawing`. So this
//! module knows nothing of the command.

mod page;
mod pdf;

use std::error::Error;
use std::fmt;
use std::io::Cursor;
use std::sync::OnceLock;

use image::codecs::png::PngEncoder;
use image::imageops::{self, FilterType};
use image::{DynamicImage, RgbImage};
use plotters::coord::Shift;
use plotters::prelude::*;

use self::page::OVERSAMPLING;
pub(crate) use self::page::Page;
use self::pdf::PdfPage;

/// The name of the font in pictures. A viewer of SVG uses its own font instead.
pub(crate) const FONT: &str = "sans-serif";

/// The font itself. plotters finds system fonts only through a C library, so the program embeds
/// one.
const FONT_FILE: &[u8] = epaint_default_fonts::UBUNTU_LIGHT;

/// The area that a picture is drawn on, in pixels of the finished picture.
pub(crate) type Area<'a> = DrawingArea<Page<'a>, Shift>;

/// What drawing returns.
pub(crate) type Drawn = Result<(), Box<dyn Error>>;

/// The format of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// A page with vectors and text.
    Pdf,
    /// Pixels.
    Png,
    /// Vectors and text, for a browser.
    Svg,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pdf => "pdf",
            Self::Png => "png",
            Self::Svg => "svg",
        })
    }
}

/// Returns the content of a file with what `draw` draws on a white page. The size is in pixels, and
/// in points of a PDF.
pub(crate) fn draw(
    to: Format,
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<Vec<u8>, String> {
    let content = register_font().and_then(|()| match to {
        Format::Pdf => pdf(size, draw),
        Format::Png => png(size, draw),
        Format::Svg => svg(size, draw),
    });
    content.map_err(|error| format!("failed to draw as {to}: {error}"))
}

fn on_white(page: Page<'_>, draw: impl FnOnce(&Area<'_>) -> Drawn) -> Drawn {
    let area = page.into_drawing_area();
    area.fill(&WHITE)?;
    draw(&area)?;
    Ok(area.present()?)
}

fn svg(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut text = String::new();
    on_white(Page::Svg(SVGBackend::with_string(&mut text, size)), draw)?;
    Ok(text.into_bytes())
}

fn pdf(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut page = PdfPage::new(size, FONT_FILE)?;
    on_white(Page::Pdf(&mut page), draw)?;
    Ok(page.finish())
}

fn png(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<Vec<u8>, Box<dyn Error>> {
    let (width, height) = (size.0 * OVERSAMPLING, size.1 * OVERSAMPLING);
    let mut pixels = RgbImage::new(width, height);
    let backend = BitMapBackend::with_buffer(&mut pixels, (width, height));
    on_white(Page::Pixels(backend), draw)?;
    let small = imageops::resize(&pixels, size.0, size.1, FilterType::Triangle);
    let mut content = Cursor::new(Vec::new());
    DynamicImage::from(small).write_with_encoder(PngEncoder::new(&mut content))?;
    Ok(content.into_inner())
}

fn register_font() -> Result<(), Box<dyn Error>> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let register = || plotters::style::register_font(FONT, FontStyle::Normal, FONT_FILE).is_ok();
    if *REGISTERED.get_or_init(register) { Ok(()) } else { Err("its font can't be read".into()) }
}
