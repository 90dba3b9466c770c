//! What a worker receives for one input: the input and the options of the run.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::bytes::Bytes;
use super::strings::Strings;

/// One input with its options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The input.
    pub(crate) input: Input,
    /// The options, the same for every job of a run.
    pub(crate) params: Params,
    /// Whether an earlier input of the run writes the same file. The task then refuses to overwrite
    /// it.
    pub(crate) taken: bool,
}

impl Job {
    /// Creates a job without optional parameters.
    pub(crate) fn new(input: impl Into<Input>) -> Self {
        Self { input: input.into(), params: Params::default(), taken: false }
    }
}

/// The options of tasks. Each task has its own defaults.
///
/// They are sent with every job, so an option that is not set costs only a byte.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Params {
    /// The output directory.
    pub(crate) out: Option<Bytes>,
    /// The output format.
    pub(crate) to: Option<FileFormat>,
    /// The number of random points.
    pub(crate) points: Option<u64>,
    /// The seed of the random points, if the input is not the seed.
    pub(crate) seed: Option<u64>,
}

impl Params {
    /// Returns the output directory, or an error with the remedy.
    pub(super) fn out_dir(&self) -> Result<&Path, String> {
        let out = self.out.as_ref().ok_or("no output directory: set --out DIR")?;
        Ok(out.as_path())
    }
}

/// One input: text, or a number of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Input {
    /// A number of a range. It becomes text only when it is shown, so that a range of millions is
    /// cheap.
    Number(i64),
    /// An argument, or a line of a list.
    Text(Bytes),
    /// Several values: of several sources, or the columns of a line, or several inputs for one
    /// command.
    Several(Strings),
}

impl Input {
    /// Returns the input byte for byte.
    pub(crate) fn to_bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Number(number) => Cow::Owned(number.to_string().into_bytes()),
            Self::Text(text) => Cow::Borrowed(text.as_slice()),
            Self::Several(values) => Cow::Owned(values.joined(b' ')),
        }
    }

    /// Returns the values, byte for byte.
    pub(crate) fn values(&self) -> Vec<Cow<'_, [u8]>> {
        match self {
            Self::Several(values) => values.iter().map(Cow::Borrowed).collect(),
            one => vec![one.to_bytes()],
        }
    }

    /// Returns the number of values.
    pub(crate) fn count(&self) -> usize {
        if let Self::Several(values) = self { values.len() } else { 1 }
    }

    /// Returns the input as text; what is not UTF-8 becomes U+FFFD.
    pub(crate) fn to_text(&self) -> Cow<'_, str> {
        match self {
            Self::Number(number) => Cow::Owned(number.to_string()),
            Self::Text(text) => text.to_text(),
            Self::Several(values) => {
                Cow::Owned(String::from_utf8_lossy(&values.joined(b' ')).into_owned())
            }
        }
    }

    /// Returns the input as a path, byte for byte.
    pub(crate) fn to_path(&self) -> Cow<'_, Path> {
        match self {
            Self::Number(number) => Cow::Owned(number.to_string().into()),
            Self::Text(text) => Cow::Borrowed(text.as_path()),
            Self::Several(values) => {
                Cow::Owned(PathBuf::from(OsString::from_vec(values.joined(b' '))))
            }
        }
    }

    /// Parses a number of the task's type. `wanted` describes it in the error.
    pub(super) fn parse<N: FromStr + TryFrom<i64>>(&self, wanted: &str) -> Result<N, String> {
        match self {
            Self::Number(number) => N::try_from(*number).ok(),
            Self::Text(text) => text.to_text().trim().parse().ok(),
            Self::Several(_) => None,
        }
        .ok_or_else(|| self.refused(wanted))
    }

    /// Parses a finite real number.
    pub(super) fn real(&self, wanted: &str) -> Result<f64, String> {
        let number = match self {
            // Beyond 2^53 this is the nearest f64, as in any f64 arithmetic.
            Self::Number(number) => *number as f64,
            Self::Text(text) => text.to_text().trim().parse().map_err(|_| self.refused(wanted))?,
            Self::Several(_) => return Err(self.refused(wanted)),
        };
        if number.is_finite() { Ok(number) } else { Err(self.refused(wanted)) }
    }

    /// Formats the error of an invalid input.
    pub(super) fn refused(&self, wanted: &str) -> String {
        format!("invalid input {:?}: use {wanted}", self.to_text())
    }
}

impl From<i64> for Input {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Input {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<&Path> for Input {
    fn from(path: &Path) -> Self {
        Self::Text(path.to_path_buf().into())
    }
}

/// The format of an output file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FileFormat {
    /// Lossless pixels.
    Png,
    /// Photographs; no transparency.
    Jpeg,
    /// Lossless pixels, smaller than PNG.
    Webp,
    /// Lines and text that stay sharp at any size, for a browser.
    Svg,
    /// The same, for paper.
    Pdf,
}

impl FileFormat {
    /// All formats.
    pub(crate) const ALL: [Self; 5] = [Self::Png, Self::Jpeg, Self::Webp, Self::Svg, Self::Pdf];

    /// Returns the name for `--to`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
            Self::Svg => "svg",
            Self::Pdf => "pdf",
        }
    }

    /// Returns the file extension, without the dot.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            other => other.name(),
        }
    }
}

impl fmt::Display for FileFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_number_is_read_from_a_range_and_from_text_alike() {
        assert_eq!(Input::from(7).parse::<u64>("a seed").unwrap(), 7);
        assert_eq!(Input::from(" 7 ").parse::<u64>("a seed").unwrap(), 7);
        assert_eq!(Input::from("2.25").real("a number").unwrap(), 2.25);
        assert_eq!(Input::from(-3).real("a number").unwrap(), -3.0);
    }

    #[test]
    fn what_is_no_number_is_refused_with_the_remedy() {
        let error = Input::from("seven").parse::<u64>("a whole number such as 7").unwrap_err();
        assert!(error.contains("\"seven\"") && error.contains("such as 7"), "{error}");
        assert!(Input::from(-1).parse::<u64>("a seed").is_err());
        assert!(Input::from("nan").real("a number").is_err());
        assert!(Input::from("inf").real("a number").is_err());
    }
}
