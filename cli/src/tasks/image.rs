//! `image`: rotates a picture by 180° and writes it in another format.
//!
//! Reads PNG, JPEG and WebP, recognised by content and not by name. A photograph is first turned by
//! the orientation that its camera recorded. Its colour profile is kept. If the output format has
//! no transparency, the background is white.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, Cursor, ErrorKind};
use std::path::{Path, PathBuf};

use ::image::codecs::jpeg::JpegEncoder;
use ::image::codecs::png::PngEncoder;
use ::image::codecs::webp::WebPEncoder;
use ::image::{DynamicImage, ImageDecoder, ImageEncoder, ImageError, ImageReader};

use super::bytes::Bytes;
use super::files::{explain, write_whole};
use super::job::{FileFormat, Input, Job, Params};
use super::output::{Column, Output};
use super::task::{Options, Takes, Task};

/// The output formats; the first is the default.
const FORMATS: &[FileFormat] = &[FileFormat::Png, FileFormat::Jpeg, FileFormat::Webp];

/// High enough that another generation of a photograph looks the same.
const JPEG_QUALITY: u8 = 90;

/// The task's descriptor.
pub(crate) static TASK: Task = Task {
    name: "image",
    summary: "turns a picture by 180° and writes it as another format",
    takes: Takes::Files,
    default_inputs: &[],
    input: Column::FILE,
    columns: &[Column::number("width", 6), Column::number("height", 6), Column::text("output", 0)],
    options: Options { out: true, to: FORMATS, points: None, seed: None },
    run,
    output_name: Some(output_name),
};

fn run(job: Job) -> Result<Output, String> {
    let source = job.input.to_path();
    let dir = job.params.out_dir()?;
    let name = name_for(&source, job.params.to.unwrap_or(FORMATS[0]))?;
    if job.taken {
        return Err(format!(
            "{source:?} would overwrite {:?}, the output of another input of this run; rename \
             it, or use another --out DIR in a separate run",
            dir.join(name)
        ));
    }
    refuse_own_source(&source, &dir.join(&name))?;
    let mut picture = Picture::read(&source)?;
    picture.turn();
    let content = picture.encode(job.params.to.unwrap_or(FORMATS[0]))?;
    let output = write_whole(dir, &name, &content)?;
    Ok(vec![picture.pixels.width().into(), picture.pixels.height().into(), output.into()])
}

/// Returns the output name of an input.
fn output_name(input: &Input, params: &Params) -> Option<Bytes> {
    name_for(&input.to_path(), params.to.unwrap_or(FORMATS[0])).ok().map(Bytes::from)
}

/// Returns the name of a picture in another format, without its directory.
fn name_for(source: &Path, to: FileFormat) -> Result<PathBuf, String> {
    let stem = source.file_stem().ok_or_else(|| format!("{source:?} names no file"))?;
    // Not `with_extension`, which would remove ".2024" from the stem of "photo.2024.png".
    let mut name = OsString::from(stem);
    name.push(".");
    name.push(to.extension());
    Ok(name.into())
}

/// Refuses to overwrite the file that the picture was read from.
fn refuse_own_source(source: &Path, output: &Path) -> Result<(), String> {
    match (source.canonicalize(), output.canonicalize()) {
        (Ok(one), Ok(other)) if one == other => {
            Err(format!("{source:?} would overwrite itself; pass another directory to --out"))
        }
        _ => Ok(()),
    }
}

/// A picture in memory, in its upright orientation.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    /// Its pixels.
    pub(crate) pixels: DynamicImage,
    /// Its colour profile, where it has one.
    pub(crate) profile: Option<Vec<u8>>,
}

impl Picture {
    /// Reads a PNG, JPEG or WebP file.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let failed = |error: ImageError| explain_picture(path, error);
        // Not `ImageReader::open`, which trusts the name if the content says nothing.
        let reader = File::open(path)
            .and_then(|file| ImageReader::new(BufReader::new(file)).with_guessed_format())
            .map_err(|error| explain("read", path, &error))?;
        let mut decoder = reader.into_decoder().map_err(failed)?;
        // Missing or broken metadata is ignored.
        let orientation = decoder.orientation().ok();
        let profile = decoder.icc_profile().ok().flatten();
        let mut pixels = DynamicImage::from_decoder(decoder).map_err(failed)?;
        if let Some(orientation) = orientation {
            pixels.apply_orientation(orientation);
        }
        let (width, height, color) = (pixels.width(), pixels.height(), pixels.color());
        log::debug!(width, height, color:? = color, orientation:? = orientation; "read {path:?}");
        if profile.as_ref().is_some_and(|profile| !fits(profile, &pixels)) {
            log::warn!("the colour profile of {path:?} does not fit its pixels and is left out");
        }
        let profile = profile.filter(|profile| fits(profile, &pixels));
        Ok(Self { pixels, profile })
    }

    /// Rotates it by 180°.
    pub(crate) fn turn(&mut self) {
        self.pixels = self.pixels.rotate180();
    }

    /// Returns the content of a file in that format.
    pub(crate) fn encode(&self, to: FileFormat) -> Result<Vec<u8>, String> {
        let mut content = Cursor::new(Vec::new());
        match to {
            FileFormat::Png => self.write(&self.pixels, PngEncoder::new(&mut content)),
            FileFormat::Jpeg => self.write(
                &opaque(&self.pixels),
                JpegEncoder::new_with_quality(&mut content, JPEG_QUALITY),
            ),
            FileFormat::Webp => {
                self.write(&eight_bits(&self.pixels), WebPEncoder::new_lossless(&mut content))
            }
            FileFormat::Svg | FileFormat::Pdf => {
                return Err(format!("a picture can't be written as {to}"));
            }
        }
        .map_err(|error| format!("failed to encode the picture as {to}: {error}"))?;
        Ok(content.into_inner())
    }

    fn write(&self, pixels: &DynamicImage, mut to: impl ImageEncoder) -> Result<(), ImageError> {
        if let Some(profile) = &self.profile {
            // A format without profiles still holds the picture.
            let _ = to.set_icc_profile(profile.clone());
        }
        pixels.write_with_encoder(to)
    }
}

/// Whether a colour profile fits the pixels: that of a JPEG in CMYK does not after decoding to RGB.
/// Bytes 16 to 19 of a profile name its colour space.
fn fits(profile: &[u8], pixels: &DynamicImage) -> bool {
    let space: &[u8] = if pixels.color().has_color() { b"RGB " } else { b"GRAY" };
    profile.get(16..20) == Some(space)
}

/// Converts to 8 bits per channel, which is all that WebP and JPEG hold; grey stays grey.
fn eight_bits(pixels: &DynamicImage) -> DynamicImage {
    let color = pixels.color();
    match (color.has_color(), color.has_alpha()) {
        (true, true) => pixels.to_rgba8().into(),
        (true, false) => pixels.to_rgb8().into(),
        (false, true) => pixels.to_luma_alpha8().into(),
        (false, false) => pixels.to_luma8().into(),
    }
}

/// Converts to 8 bits per channel, on a white background.
fn opaque(pixels: &DynamicImage) -> DynamicImage {
    let on_white = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    match eight_bits(pixels) {
        DynamicImage::ImageRgba8(mut rgba) => {
            for pixel in rgba.pixels_mut() {
                let [r, g, b, a] = pixel.0;
                pixel.0 = [on_white(r, a), on_white(g, a), on_white(b, a), 255];
            }
            DynamicImage::from(rgba).to_rgb8().into()
        }
        DynamicImage::ImageLumaA8(mut grey) => {
            for pixel in grey.pixels_mut() {
                let [value, a] = pixel.0;
                pixel.0 = [on_white(value, a), 255];
            }
            DynamicImage::from(grey).to_luma8().into()
        }
        without_alpha => without_alpha,
    }
}

/// Formats an error: the cause and the remedy.
fn explain_picture(path: &Path, error: ImageError) -> String {
    let remedy = match &error {
        // The file ended too soon: a truncated picture, no trouble with the disk.
        ImageError::IoError(io) if io.kind() != ErrorKind::UnexpectedEof => {
            return explain("read", path, io);
        }
        ImageError::Unsupported(_) => "use a PNG, JPEG or WebP file, or convert it first",
        ImageError::Limits(_) => "it's too large; make it smaller first",
        _ => "the file is damaged or incomplete; get it anew",
    };
    format!("failed to read the picture {path:?}: {error}; {remedy}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tasks::Value;
    use ::image::{GenericImageView, GrayAlphaImage, Rgb, RgbImage, Rgba, RgbaImage};

    /// A picture in which no pixel is like another, so that a turn can be told from a flip.
    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 20) as u8, (y * 30) as u8, 7]))
    }

    fn job(source: &Path, dir: &Path, to: FileFormat) -> Job {
        let params =
            Params { out: Some(dir.to_path_buf().into()), to: Some(to), ..Params::default() };
        Job { params, ..Job::new(source) }
    }

    #[test]
    fn a_turned_picture_has_its_first_pixel_last() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("a.b.png");
        gradient(5, 3).save(&source).unwrap();
        for (to, name) in [(FileFormat::Png, "a.b.png"), (FileFormat::Webp, "a.b.webp")] {
            let out = dir.path().join("out");
            let answer = run(job(&source, &out, to)).unwrap();
            let expected = [Value::Whole(5), Value::Whole(3), Value::Text(out.join(name).into())];
            assert_eq!(answer, expected);
            let turned = Picture::read(&out.join(name)).unwrap().pixels;
            for (x, y, pixel) in gradient(5, 3).enumerate_pixels() {
                assert_eq!(turned.get_pixel(4 - x, 2 - y), Rgba([pixel[0], pixel[1], 7, 255]));
            }
        }
    }

    #[test]
    fn turned_twice_it_is_the_same_again() {
        let original = Picture { pixels: gradient(4, 6).into(), profile: None };
        let mut picture = original.clone();
        picture.turn();
        assert_ne!(picture.pixels, original.pixels);
        picture.turn();
        assert_eq!(picture.pixels, original.pixels);
    }

    #[test]
    fn every_kind_of_pixel_can_be_written_in_every_format() {
        let rgba = RgbaImage::from_pixel(8, 8, Rgba([10, 200, 30, 0]));
        let kinds: Vec<DynamicImage> = vec![
            DynamicImage::from(rgba.clone()),
            DynamicImage::from(gradient(8, 8)),
            DynamicImage::from(gradient(8, 8)).to_rgb16().into(),
            DynamicImage::from(rgba.clone()).to_rgba16().into(),
            DynamicImage::from(gradient(8, 8)).to_luma8().into(),
            DynamicImage::from(gradient(8, 8)).to_luma16().into(),
            DynamicImage::from(GrayAlphaImage::new(8, 8)),
        ];
        for pixels in kinds {
            let kind = pixels.color();
            let picture = Picture { pixels, profile: None };
            for to in FORMATS {
                let content = picture.encode(*to).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
                assert!(!content.is_empty());
            }
        }
        // What was transparent is white on paper.
        assert_eq!(opaque(&rgba.into()).get_pixel(3, 3), Rgba([255, 255, 255, 255]));
    }

    #[test]
    fn a_picture_is_never_written_over_its_source_or_its_neighbour() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("x.png");
        gradient(2, 2).save(&source).unwrap();
        let before = std::fs::read(&source).unwrap();
        let own = run(job(&source, dir.path(), FileFormat::Png)).unwrap_err();
        assert!(own.contains("overwrite itself"), "{own}");
        assert_eq!(std::fs::read(&source).unwrap(), before);

        let out = dir.path().join("out");
        let second = Job { taken: true, ..job(&source, &out, FileFormat::Png) };
        assert!(run(second).unwrap_err().contains("another input of this run"));
        assert!(!out.exists());
    }

    #[test]
    fn a_broken_picture_is_named_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let whole = dir.path().join("whole.png");
        gradient(50, 50).save(&whole).unwrap();
        let whole = std::fs::read(&whole).unwrap();
        let cases: [(&str, &[u8], &str); 3] = [
            ("text.png", b"no picture at all", "PNG, JPEG or WebP"),
            ("cut.png", &whole[..whole.len() / 2], "damaged or incomplete"),
            ("empty.jpg", b"", "PNG, JPEG or WebP"),
        ];
        for (name, content, remedy) in cases {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            let error = run(job(&path, &out, FileFormat::Png)).unwrap_err();
            assert!(error.contains(name) && error.contains(remedy), "{error}");
        }
        let missing = run(job(&dir.path().join("none.png"), &out, FileFormat::Png)).unwrap_err();
        assert!(missing.contains("check the name"), "{missing}");
        assert!(!out.exists(), "nothing was written");
    }
}
