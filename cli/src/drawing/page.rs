//! The page of a picture: one backend of plotters for all formats, so that what is drawn depends on
//! none.

use std::error::Error;
use std::fmt;

use plotters::prelude::*;
use plotters::style::FontDesc;
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind,
};

use super::pdf::PdfPage;

/// Pixels are drawn this many times larger and scaled down, which smooths the edges that plotters
/// draws pixel by pixel.
pub(super) const OVERSAMPLING: u32 = 3;

/// A page that can be drawn on. All lengths are in pixels of the finished picture.
pub(crate) enum Page<'a> {
    Svg(SVGBackend<'a>),
    Pixels(BitMapBackend<'a>),
    Pdf(&'a mut PdfPage),
}

/// The error of a backend.
#[derive(Debug)]
pub(crate) struct PageError(String);

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for PageError {}

type Drawn = Result<(), DrawingErrorKind<PageError>>;

fn failed<E: Error + Send + Sync>(error: DrawingErrorKind<E>) -> DrawingErrorKind<PageError> {
    match error {
        DrawingErrorKind::DrawingError(error) => {
            DrawingErrorKind::DrawingError(PageError(error.to_string()))
        }
        DrawingErrorKind::FontError(error) => DrawingErrorKind::FontError(error),
    }
}

/// Returns a point in the larger pixels.
fn larger((x, y): BackendCoord) -> BackendCoord {
    (x.saturating_mul(OVERSAMPLING as i32), y.saturating_mul(OVERSAMPLING as i32))
}

/// A style with thicker lines.
struct Larger<'a, S>(&'a S);

impl<S: BackendStyle> BackendStyle for Larger<'_, S> {
    fn color(&self) -> BackendColor {
        self.0.color()
    }

    fn stroke_width(&self) -> u32 {
        self.0.stroke_width() * OVERSAMPLING
    }
}

impl DrawingBackend for Page<'_> {
    type ErrorType = PageError;

    fn get_size(&self) -> (u32, u32) {
        match self {
            Self::Svg(svg) => svg.get_size(),
            Self::Pixels(pixels) => {
                let (width, height) = pixels.get_size();
                (width / OVERSAMPLING, height / OVERSAMPLING)
            }
            Self::Pdf(pdf) => pdf.size(),
        }
    }

    fn ensure_prepared(&mut self) -> Drawn {
        match self {
            Self::Svg(svg) => svg.ensure_prepared().map_err(failed),
            Self::Pixels(pixels) => pixels.ensure_prepared().map_err(failed),
            Self::Pdf(_) => Ok(()),
        }
    }

    fn present(&mut self) -> Drawn {
        match self {
            Self::Svg(svg) => svg.present().map_err(failed),
            Self::Pixels(pixels) => pixels.present().map_err(failed),
            Self::Pdf(_) => Ok(()),
        }
    }

    fn draw_pixel(&mut self, at: BackendCoord, color: BackendColor) -> Drawn {
        self.draw_rect(at, (at.0 + 1, at.1 + 1), &color, true)
    }

    fn draw_line<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
    ) -> Drawn {
        match self {
            Self::Svg(svg) => svg.draw_line(from, to, style).map_err(failed),
            // A line of more than a pixel is a path.
            Self::Pixels(pixels) => {
                pixels.draw_path([larger(from), larger(to)], &Larger(style)).map_err(failed)
            }
            Self::Pdf(pdf) => {
                pdf.line([from, to], style.color(), style.stroke_width());
                Ok(())
            }
        }
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        upper_left: BackendCoord,
        bottom_right: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn {
        match self {
            Self::Svg(svg) => svg.draw_rect(upper_left, bottom_right, style, fill).map_err(failed),
            Self::Pixels(pixels) => pixels
                .draw_rect(larger(upper_left), larger(bottom_right), &Larger(style), fill)
                .map_err(failed),
            Self::Pdf(pdf) => {
                let [(x, y), (to_x, to_y)] = [upper_left, bottom_right];
                let corners = [(x, y), (to_x, y), (to_x, to_y), (x, to_y), (x, y)];
                match fill {
                    true => pdf.polygon(corners, style.color()),
                    false => pdf.line(corners, style.color(), style.stroke_width()),
                }
                Ok(())
            }
        }
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Drawn {
        match self {
            Self::Svg(svg) => svg.draw_path(path, style).map_err(failed),
            Self::Pixels(pixels) => {
                pixels.draw_path(path.into_iter().map(larger), &Larger(style)).map_err(failed)
            }
            Self::Pdf(pdf) => {
                pdf.line(path, style.color(), style.stroke_width());
                Ok(())
            }
        }
    }

    fn draw_circle<S: BackendStyle>(
        &mut self,
        center: BackendCoord,
        radius: u32,
        style: &S,
        fill: bool,
    ) -> Drawn {
        match self {
            Self::Svg(svg) => svg.draw_circle(center, radius, style, fill).map_err(failed),
            Self::Pixels(pixels) => pixels
                .draw_circle(larger(center), radius * OVERSAMPLING, &Larger(style), fill)
                .map_err(failed),
            Self::Pdf(pdf) => {
                let width = (!fill).then(|| style.stroke_width());
                pdf.circle(center, radius, style.color(), width);
                Ok(())
            }
        }
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Drawn {
        match self {
            Self::Svg(svg) => svg.fill_polygon(path, style).map_err(failed),
            Self::Pixels(pixels) => {
                pixels.fill_polygon(path.into_iter().map(larger), &Larger(style)).map_err(failed)
            }
            Self::Pdf(pdf) => {
                pdf.polygon(path, style.color());
                Ok(())
            }
        }
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, at: BackendCoord) -> Drawn {
        match self {
            Self::Svg(svg) => svg.draw_text(text, style, at).map_err(failed),
            Self::Pixels(pixels) => {
                let size = style.size() * f64::from(OVERSAMPLING);
                let font = FontDesc::new(style.family(), size, style.style());
                let font = font.transform(style.transform());
                let style = TextStyle { font, color: style.color(), pos: style.anchor() };
                pixels.draw_text(text, &style, larger(at)).map_err(failed)
            }
            Self::Pdf(pdf) => {
                pdf.text(text, style, at);
                Ok(())
            }
        }
    }
}
