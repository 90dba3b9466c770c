//! A page of a PDF: paths, and text that can be searched and copied.
//!
//! The font is embedded as the outlines of the characters that occur ("Type 3"), which takes some
//! kilobytes instead of the whole font file.

use ab_glyph::{Font, FontRef, InvalidFont, OutlineCurve, Point};
use pdf_writer::types::{SystemInfo, UnicodeCmap};
use pdf_writer::{Content, Filter, Finish, Name, Pdf, Rect, Ref, Str};
use plotters::style::FontTransform;
use plotters::style::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendTextStyle};

/// The most characters of one font of this type: a character is one byte, and 0 is left out.
const MOST: usize = 255;

/// The control points of a quarter circle of radius 1.
const QUARTER: f32 = 0.552_284_8;

/// A page that collects what is drawn.
pub(crate) struct PdfPage {
    size: (u32, u32),
    font: FontRef<'static>,
    units_per_em: f32,
    content: Content,
    /// The color, and the opacity in percent, of what is drawn next.
    ink: Option<((u8, u8, u8), u8)>,
    /// The opacities that occur, in percent.
    opacities: Vec<u8>,
    /// The characters that occur, in order of first use.
    characters: Vec<char>,
}

impl PdfPage {
    /// Creates a page of this size in points, with the content of a font's file.
    pub(super) fn new(size: (u32, u32), font: &'static [u8]) -> Result<Self, InvalidFont> {
        let font = FontRef::try_from_slice(font)?;
        let mut content = Content::new();
        // From the upper left downwards, as plotters counts.
        content.transform([1.0, 0.0, 0.0, -1.0, 0.0, size.1 as f32]);
        Ok(Self {
            size,
            units_per_em: font.units_per_em().unwrap_or(1000.0),
            font,
            content,
            ink: None,
            opacities: Vec::new(),
            characters: Vec::new(),
        })
    }

    pub(super) fn size(&self) -> (u32, u32) {
        self.size
    }

    /// Draws a line through these points.
    pub(super) fn line(
        &mut self,
        path: impl IntoIterator<Item = BackendCoord>,
        color: BackendColor,
        width: u32,
    ) {
        if self.dip(color) && self.path(path) {
            self.content.set_line_width(width as f32).stroke();
        }
    }

    /// Fills the polygon with these corners.
    pub(super) fn polygon(
        &mut self,
        corners: impl IntoIterator<Item = BackendCoord>,
        color: BackendColor,
    ) {
        if self.dip(color) && self.path(corners) {
            self.content.close_path().fill_nonzero();
        }
    }

    /// Fills a circle, or draws it as a line of this width.
    pub(super) fn circle(
        &mut self,
        (x, y): BackendCoord,
        radius: u32,
        color: BackendColor,
        width: Option<u32>,
    ) {
        if radius == 0 || !self.dip(color) {
            return;
        }
        let (x, y, r, k) = (x as f32, y as f32, radius as f32, QUARTER * radius as f32);
        self.content
            .move_to(x + r, y)
            .cubic_to(x + r, y + k, x + k, y + r, x, y + r)
            .cubic_to(x - k, y + r, x - r, y + k, x - r, y)
            .cubic_to(x - r, y - k, x - k, y - r, x, y - r)
            .cubic_to(x + k, y - r, x + r, y - k, x + r, y)
            .close_path();
        match width {
            Some(width) => self.content.set_line_width(width as f32).stroke(),
            None => self.content.fill_nonzero(),
        };
    }

    /// Writes a text at its anchor, with the size and the place that it has in an SVG by plotters.
    pub(super) fn text<S: BackendTextStyle>(&mut self, text: &str, style: &S, at: BackendCoord) {
        if text.is_empty() || !self.dip(style.color()) {
            return;
        }
        let size = style.size() as f32 / 1.24;
        let advance = |c| self.font.h_advance_unscaled(self.font.glyph_id(c));
        let width = text.chars().map(advance).sum::<f32>() / self.units_per_em * size;
        let along = match style.anchor().h_pos {
            HPos::Left => 0.0,
            HPos::Center => -width / 2.0,
            HPos::Right => -width,
        };
        let down = match style.anchor().v_pos {
            VPos::Top => 0.76,
            VPos::Center => 0.26,
            VPos::Bottom => -0.26,
        } * size;
        // The directions of a line of text and of its lines, downwards.
        let (right, below) = match style.transform() {
            FontTransform::None => ((1.0, 0.0), (0.0, 1.0)),
            FontTransform::Rotate90 => ((0.0, 1.0), (-1.0, 0.0)),
            FontTransform::Rotate180 => ((-1.0, 0.0), (0.0, -1.0)),
            FontTransform::Rotate270 => ((0.0, -1.0), (1.0, 0.0)),
        };
        let x = at.0 as f32 + along * right.0 + down * below.0;
        let y = at.1 as f32 + along * right.1 + down * below.1;
        self.content.begin_text();
        self.content.set_text_matrix([right.0, right.1, -below.0, -below.1, x, y]);
        let codes: Vec<(usize, u8)> = text.chars().map(|c| self.code(c)).collect();
        for run in codes.chunk_by(|one, next| one.0 == next.0) {
            let bytes: Vec<u8> = run.iter().map(|(_, byte)| *byte).collect();
            let name = font_name(run[0].0);
            self.content.set_font(Name(name.as_bytes()), size).show(Str(&bytes));
        }
        self.content.end_text();
    }

    /// Returns the content of the file.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut last = 0;
        let mut new = || {
            last += 1;
            Ref::new(last)
        };
        let (catalog, pages, page, content) = (new(), new(), new(), new());
        let mut pdf = Pdf::new();
        pdf.catalog(catalog).pages(pages);
        pdf.pages(pages).kids([page]).count(1);
        let fonts: Vec<Ref> = self
            .characters
            .chunks(MOST)
            .map(|characters| self.write_font(&mut pdf, &mut new, characters))
            .collect();
        let states: Vec<Ref> = self
            .opacities
            .iter()
            .map(|percent| {
                let opacity = f32::from(*percent) / 100.0;
                let id = new();
                pdf.ext_graphics(id).stroking_alpha(opacity).non_stroking_alpha(opacity);
                id
            })
            .collect();
        let mut writer = pdf.page(page);
        writer.parent(pages).contents(content);
        writer.media_box(Rect::new(0.0, 0.0, self.size.0 as f32, self.size.1 as f32));
        let mut resources = writer.resources();
        let mut named = resources.fonts();
        for (number, id) in fonts.iter().enumerate() {
            named.pair(Name(font_name(number).as_bytes()), *id);
        }
        named.finish();
        let mut named = resources.ext_g_states();
        for (percent, id) in self.opacities.iter().zip(&states) {
            named.pair(Name(state_name(*percent).as_bytes()), *id);
        }
        named.finish();
        resources.finish();
        writer.finish();
        write_stream(&mut pdf, content, &self.content.finish());
        pdf.finish()
    }

    /// Writes the outlines of these characters as a font.
    fn write_font(&self, pdf: &mut Pdf, new: &mut impl FnMut() -> Ref, of: &[char]) -> Ref {
        let (font, unicode) = (new(), new());
        let glyphs: Vec<(Ref, f32)> = of
            .iter()
            .map(|character| {
                let glyph = self.font.glyph_id(*character);
                let width = self.font.h_advance_unscaled(glyph);
                let id = new();
                write_stream(pdf, id, &self.outline(*character, width));
                (id, width)
            })
            .collect();
        let names: Vec<String> = (1..=of.len()).map(|code| format!("g{code}")).collect();
        let em = self.units_per_em;
        let mut writer = pdf.type3_font(font);
        writer.bbox(Rect::new(-em, -em, 2.0 * em, 2.0 * em));
        writer.matrix([1.0 / em, 0.0, 0.0, 1.0 / em, 0.0, 0.0]);
        let mut outlines = writer.char_procs();
        for (name, (id, _)) in names.iter().zip(&glyphs) {
            outlines.pair(Name(name.as_bytes()), *id);
        }
        outlines.finish();
        let mut encoding = writer.encoding_custom();
        let mut differences = encoding.differences();
        differences.consecutive(1, names.iter().map(|name| Name(name.as_bytes())));
        differences.finish();
        encoding.finish();
        writer.first_char(1).last_char(of.len() as u8);
        writer.widths(glyphs.iter().map(|(_, width)| *width));
        writer.to_unicode(unicode);
        writer.finish();
        let info = SystemInfo { registry: Str(b"Adobe"), ordering: Str(b"UCS"), supplement: 0 };
        let mut map = UnicodeCmap::<u8>::new(Name(b"Characters"), info);
        for (code, character) in (1..=u8::MAX).zip(of) {
            map.pair(code, *character);
        }
        write_stream(pdf, unicode, &map.finish());
        font
    }

    /// Returns the operators that draw a character.
    fn outline(&self, character: char, width: f32) -> Vec<u8> {
        let mut content = Content::new();
        let outline = self.font.outline(self.font.glyph_id(character));
        let bounds = outline.as_ref().map_or_else(Default::default, |outline| outline.bounds);
        let (low, high) = (bounds.min.y.min(bounds.max.y), bounds.min.y.max(bounds.max.y));
        content.start_shape_glyph(width, bounds.min.x, low, bounds.max.x, high);
        let curves = outline.map_or_else(Vec::new, |outline| outline.curves);
        let mut end = None;
        for curve in &curves {
            let start = match curve {
                OutlineCurve::Line(start, _)
                | OutlineCurve::Quad(start, ..)
                | OutlineCurve::Cubic(start, ..) => *start,
            };
            if end != Some(start) {
                content.move_to(start.x, start.y);
            }
            end = Some(match *curve {
                OutlineCurve::Line(_, to) => {
                    content.line_to(to.x, to.y);
                    to
                }
                OutlineCurve::Quad(from, by, to) => {
                    // The same curve with two control points.
                    let control = |end: Point| {
                        (end.x + (by.x - end.x) * 2.0 / 3.0, end.y + (by.y - end.y) * 2.0 / 3.0)
                    };
                    let ((x, y), (to_x, to_y)) = (control(from), control(to));
                    content.cubic_to(x, y, to_x, to_y, to.x, to.y);
                    to
                }
                OutlineCurve::Cubic(_, one, two, to) => {
                    content.cubic_to(one.x, one.y, two.x, two.y, to.x, to.y);
                    to
                }
            });
        }
        if !curves.is_empty() {
            content.fill_nonzero();
        }
        content.finish().to_vec()
    }

    /// Returns the font and the byte of a character.
    fn code(&mut self, character: char) -> (usize, u8) {
        let known = self.characters.iter().position(|known| *known == character);
        let place = known.unwrap_or_else(|| {
            self.characters.push(character);
            self.characters.len() - 1
        });
        (place / MOST, (place % MOST + 1) as u8)
    }

    /// Appends a path. Returns whether it has any points.
    fn path(&mut self, points: impl IntoIterator<Item = BackendCoord>) -> bool {
        let mut points = points.into_iter();
        let Some((x, y)) = points.next() else { return false };
        self.content.move_to(x as f32, y as f32);
        for (x, y) in points {
            self.content.line_to(x as f32, y as f32);
        }
        true
    }

    /// Sets the color of what follows. Returns whether it can be seen.
    fn dip(&mut self, color: BackendColor) -> bool {
        let percent = (color.alpha.clamp(0.0, 1.0) * 100.0).round() as u8;
        let ink = (color.rgb, percent);
        if percent == 0 || self.ink == Some(ink) {
            return percent != 0;
        }
        self.ink = Some(ink);
        if !self.opacities.contains(&percent) {
            self.opacities.push(percent);
        }
        let [r, g, b] = [color.rgb.0, color.rgb.1, color.rgb.2].map(|part| f32::from(part) / 255.0);
        self.content
            .set_parameters(Name(state_name(percent).as_bytes()))
            .set_fill_rgb(r, g, b)
            .set_stroke_rgb(r, g, b);
        true
    }
}

fn font_name(number: usize) -> String {
    format!("F{number}")
}

fn state_name(percent: u8) -> String {
    format!("A{percent}")
}

/// Writes a stream, compressed.
fn write_stream(pdf: &mut Pdf, id: Ref, content: &[u8]) {
    let compressed = miniz_oxide::deflate::compress_to_vec_zlib(content, 6);
    pdf.stream(id, &compressed).filter(Filter::FlateDecode);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{FONT, Format, draw};
    use plotters::prelude::*;

    /// Returns the contents of all streams of a file.
    fn streams(pdf: &[u8]) -> Vec<String> {
        let find = |from: usize, what: &[u8]| {
            pdf[from..].windows(what.len()).position(|window| window == what).map(|at| from + at)
        };
        let (mut found, mut at) = (Vec::new(), 0);
        while let Some(start) = find(at, b"\nstream\n") {
            let end = find(start, b"\nendstream").unwrap();
            let content = miniz_oxide::inflate::decompress_to_vec_zlib(&pdf[start + 8..end]);
            found.push(String::from_utf8_lossy(&content.unwrap()).into_owned());
            at = end;
        }
        found
    }

    fn write(text: String) -> Vec<String> {
        let pdf = draw(Format::Pdf, (300, 200), |area| {
            area.draw(&Text::new(text.clone(), (10, 10), (FONT, 20).into_font()))?;
            Ok(())
        });
        streams(&pdf.unwrap())
    }

    #[test]
    fn each_character_is_drawn_once_and_can_be_found_by_a_search() {
        let streams = write("πππ = 3".to_owned());
        let glyphs = streams.iter().filter(|stream| stream.contains(" d1"));
        assert_eq!(glyphs.count(), 4, "{streams:?}");
        let map = streams.iter().find(|stream| stream.contains("begincmap")).unwrap();
        assert!(map.contains("<01> <03C0>") && map.contains("<04> <0033>"), "{map}");
    }

    #[test]
    fn a_page_may_have_more_characters_than_a_font_has_codes() {
        let all = (0x20..0x17f_u32).filter_map(char::from_u32).filter(|c| !c.is_control());
        let streams = write(all.collect());
        let page = streams.iter().find(|stream| stream.contains("BT")).unwrap();
        assert!(page.contains("/F0 ") && page.contains("/F1 "), "{page}");
        assert_eq!(streams.iter().filter(|stream| stream.contains("begincmap")).count(), 2);
    }

    #[test]
    fn what_is_transparent_leaves_nothing_on_the_page() {
        let page = |color: RGBAColor| {
            let pdf = draw(Format::Pdf, (300, 200), |area| {
                area.draw(&Circle::new((50, 50), 10, color.filled()))?;
                area.draw(&Circle::new((50, 50), 0, color.filled()))?;
                area.draw(&Rectangle::new([(0, 0), (5, 5)], color))?;
                area.draw(&PathElement::new(Vec::<(i32, i32)>::new(), color))?;
                Ok(())
            });
            streams(&pdf.unwrap()).pop().unwrap()
        };
        let (seen, unseen) = (page(RED.mix(0.25)), page(RED.mix(0.0)));
        assert!(seen.contains("/A25 gs") && seen.contains(" c\n"), "{seen}");
        assert!(!unseen.contains("/A0") && !unseen.contains(" c\n"), "{unseen}");
    }
}
