//! Draws a picture as SVG or PNG: the font, the two backends and the encoding.
//!
//! A [`Drawing`] knows nothing of the format.

use std::error::Error;
use std::io::Cursor;
use std::sync::OnceLock;

use ::image::codecs::png::PngEncoder;
use ::image::imageops::{self, FilterType};
use ::image::{DynamicImage, RgbImage};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::job::FileFormat;

/// The name of the font in pictures. A viewer of SVG uses its own font instead.
pub(crate) const FONT: &str = "sans-serif";

/// A PNG is drawn this many times larger and scaled down, which smooths the edges that plotters
/// draws pixel by pixel.
const OVERSAMPLING: u32 = 3;

/// A picture that can be drawn in any format.
pub(crate) trait Drawing {
    /// Width and height, in pixels of the finished picture.
    const SIZE: (u32, u32);

    /// Draws it. `unit` scales all lengths in pixels.
    fn draw<B: DrawingBackend>(
        &self,
        on: &DrawingArea<B, Shift>,
        unit: u32,
    ) -> Result<(), Box<dyn Error>>
    where
        B::ErrorType: 'static;
}

/// Returns the content of a file with the drawing.
pub(crate) fn draw<D: Drawing>(drawing: &D, to: FileFormat) -> Result<Vec<u8>, String> {
    let content = register_font().and_then(|()| match to {
        FileFormat::Svg => svg(drawing),
        FileFormat::Png => png(drawing),
        FileFormat::Jpeg | FileFormat::Webp => Err("use svg or png as the format".into()),
    });
    content.map_err(|error| format!("failed to draw as {to}: {error}"))
}

fn svg<D: Drawing>(drawing: &D) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut text = String::new();
    drawing.draw(&SVGBackend::with_string(&mut text, D::SIZE).into_drawing_area(), 1)?;
    Ok(text.into_bytes())
}

fn png<D: Drawing>(drawing: &D) -> Result<Vec<u8>, Box<dyn Error>> {
    let (width, height) = (D::SIZE.0 * OVERSAMPLING, D::SIZE.1 * OVERSAMPLING);
    let mut pixels = RgbImage::new(width, height);
    let backend = BitMapBackend::with_buffer(&mut pixels, (width, height));
    drawing.draw(&backend.into_drawing_area(), OVERSAMPLING)?;
    let small = imageops::resize(&pixels, D::SIZE.0, D::SIZE.1, FilterType::Triangle);
    let mut content = Cursor::new(Vec::new());
    DynamicImage::from(small).write_with_encoder(PngEncoder::new(&mut content))?;
    Ok(content.into_inner())
}

/// plotters finds system fonts only through a C library, so the program embeds one.
fn register_font() -> Result<(), Box<dyn Error>> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let font = epaint_default_fonts::UBUNTU_LIGHT;
    let register = || plotters::style::register_font(FONT, FontStyle::Normal, font).is_ok();
    if *REGISTERED.get_or_init(register) { Ok(()) } else { Err("its font can't be read".into()) }
}
