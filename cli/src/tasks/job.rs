//! What goes to a worker for one input: the input itself and the options of the run.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::bytes::Bytes;

/// One input with the options it is to be worked on with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// What to work on.
    pub(crate) input: Input,
    /// The options, the same for every job of a run.
    pub(crate) params: Params,
    /// An earlier input of the same run writes the file that this one would: refuse rather than
    /// overwrite it.
    pub(crate) taken: bool,
}

impl Job {
    /// The job with no options that have to be given.
    pub(crate) fn new(input: impl Into<Input>) -> Self {
        Self { input: input.into(), params: Params::default(), taken: false }
    }
}

/// The options that tasks take; what isn't given is the task's own default.
///
/// They travel with every job, so what is not given costs a byte and no more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Params {
    /// The directory to write to.
    pub(crate) out: Option<Bytes>,
    /// The format to write.
    pub(crate) to: Option<FileFormat>,
    /// How many random points to draw.
    pub(crate) points: Option<u64>,
    /// The seed of the random points, where the input isn't the seed.
    pub(crate) seed: Option<u64>,
}

impl Params {
    /// The directory to write to, or what to do where there is none.
    pub(super) fn out_dir(&self) -> Result<&Path, String> {
        let out = self.out.as_ref().ok_or("no output directory: give --out DIR")?;
        Ok(out.as_path())
    }
}

/// One input, as text was given for it or as a number of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Input {
    /// A number out of a range: no text is made of it until it's shown, so that a range of millions
    /// is cheap.
    Number(i64),
    /// What was typed, or a line of what was read.
    Text(Bytes),
}

impl Input {
    /// As it was given, byte for byte.
    pub(crate) fn to_bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Number(number) => Cow::Owned(number.to_string().into_bytes()),
            Self::Text(text) => Cow::Borrowed(text.as_slice()),
        }
    }

    /// As text to look at; what is not UTF-8 shows as U+FFFD.
    pub(crate) fn to_text(&self) -> Cow<'_, str> {
        match self {
            Self::Number(number) => Cow::Owned(number.to_string()),
            Self::Text(text) => text.to_text(),
        }
    }

    /// As the path of a file, byte for byte.
    pub(crate) fn to_path(&self) -> Cow<'_, Path> {
        match self {
            Self::Number(number) => Cow::Owned(number.to_string().into()),
            Self::Text(text) => Cow::Borrowed(text.as_path()),
        }
    }

    /// As a number of the type that the task works on; `wanted` says in words what that is.
    pub(super) fn parse<N: FromStr + TryFrom<i64>>(&self, wanted: &str) -> Result<N, String> {
        match self {
            Self::Number(number) => N::try_from(*number).ok(),
            Self::Text(text) => text.to_text().trim().parse().ok(),
        }
        .ok_or_else(|| self.refused(wanted))
    }

    /// As a real number, finite.
    pub(super) fn real(&self, wanted: &str) -> Result<f64, String> {
        let number = match self {
            // Beyond 2^53 the nearest f64 stands for the number, as it does in any f64 arithmetic.
            Self::Number(number) => *number as f64,
            Self::Text(text) => text.to_text().trim().parse().map_err(|_| self.refused(wanted))?,
        };
        if number.is_finite() { Ok(number) } else { Err(self.refused(wanted)) }
    }

    /// The error for an input that is not what the task works on.
    pub(super) fn refused(&self, wanted: &str) -> String {
        format!("invalid input {:?}: give {wanted}", self.to_text())
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

/// A format of the files that tasks write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FileFormat {
    /// Lossless pixels.
    Png,
    /// Photographs; no transparency.
    Jpeg,
    /// Lossless pixels, smaller than PNG.
    Webp,
    /// Lines and text that stay sharp at any size.
    Svg,
}

impl FileFormat {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Png, Self::Jpeg, Self::Webp, Self::Svg];

    /// What `--to` calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
            Self::Svg => "svg",
        }
    }

    /// How the names of such files end, without the dot.
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
