//! [`Failure`]: an error that can be sent between processes.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The maximum number of causes that are kept, in case an error's chain of sources is endless.
const MAX_CAUSES: usize = 64;

/// An error that can be sent: the text of any error and of its causes.
///
/// Most error types, such as [`std::io::Error`] and `anyhow::Error`, can't be sent. A task that returns
/// `Result<R, Failure>` can use `?` on all of them:
///
/// ```
/// use procpool::Failure;
///
/// fn lines(path: String) -> Result<usize, Failure> {
///     let text = std::fs::read_to_string(&path)?;
///     if text.is_empty() {
///         return Err(format!("{path} is empty").into());
///     }
///     Ok(text.lines().count())
/// }
///
/// let failure = lines("/nowhere".into()).unwrap_err();
/// assert_eq!(failure.to_string(), "No such file or directory (os error 2)");
/// ```
///
/// `Display` writes the error alone; `{:#}` writes the error and its causes on one line. A cause is
/// skipped if the text of the previous error already ends with it.
///
/// Like `anyhow::Error`, this type does not implement [`Error`], so that `?` can convert any error into
/// it. [`as_error`](Self::as_error) and [`into_error`](Self::into_error) return an [`Error`] with its
/// [`source`](Error::source).
pub struct Failure(Box<Link>);

/// The text of an error, and its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    text: String,
    cause: Option<Box<Link>>,
}

impl Link {
    fn new(texts: Vec<String>) -> Option<Box<Self>> {
        let link = |cause, text| Some(Box::new(Self { text, cause }));
        texts.into_iter().take(MAX_CAUSES).rev().fold(None, link)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Link {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

impl Failure {
    /// Returns the text of the error, then those of its causes.
    pub fn chain(&self) -> impl Iterator<Item = &str> {
        std::iter::successors(Some(&*self.0), |link| link.cause.as_deref())
            .map(|link| link.text.as_str())
    }

    /// Borrows this as an [`Error`].
    pub fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0
    }

    /// Converts this into a boxed [`Error`], which `anyhow` and `?` accept.
    pub fn into_error(self) -> Box<dyn Error + Send + Sync> {
        self.0
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let mut texts = vec![error.to_string()];
        let causes = std::iter::successors(error.source(), |&error| error.source());
        for cause in causes.take(MAX_CAUSES) {
            let text = cause.to_string();
            if !texts.last().is_some_and(|last| last.ends_with(&text)) {
                texts.push(text);
            }
        }
        // There is at least one text.
        Self(
            Link::new(texts).unwrap_or_else(|| Box::new(Link { text: String::new(), cause: None })),
        )
    }
}

impl AsRef<dyn Error + Send + Sync> for Failure {
    fn as_ref(&self) -> &(dyn Error + Send + Sync + 'static) {
        self.as_error()
    }
}

impl Clone for Failure {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl PartialEq for Failure {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)?;
        if f.alternate() {
            for cause in self.chain().skip(1) {
                write!(f, ": {cause}")?;
            }
        }
        Ok(())
    }
}

/// Writes the causes on lines of their own, like `anyhow`, for a `main` that returns this.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)?;
        for (number, cause) in self.chain().skip(1).enumerate() {
            f.write_str(if number == 0 { "\n\nCaused by:" } else { "" })?;
            write!(f, "\n    {cause}")?;
        }
        Ok(())
    }
}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.chain().collect::<Vec<_>>().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Failure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let link = Link::new(Vec::deserialize(deserializer)?);
        link.map(Self).ok_or_else(|| serde::de::Error::custom("a failure without a text"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use procpool_worker::codec;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn a_failure_keeps_each_cause_once_across_the_encoding() {
        let texts =
            ["cannot start: no room: disk full", "no room: disk full", "disk full", "quota"];
        let link = |source, text| Some(Box::new(Layer { text, source }));
        let layers = texts.into_iter().rev().fold(None, link).unwrap();
        let failure = Failure::from(*layers);
        let bytes = codec::encode_to_vec(&failure).unwrap();
        let failure: Failure = codec::decode(&bytes).unwrap();
        assert_eq!(failure.to_string(), texts[0]);
        assert_eq!(format!("{failure:#}"), "cannot start: no room: disk full: quota");
        assert_eq!(
            format!("{failure:?}"),
            "cannot start: no room: disk full\n\nCaused by:\n    quota"
        );
        assert_eq!(failure.as_error().source().unwrap().to_string(), "quota");
        let failure = Failure::from(failure.into_error());
        assert!(failure.chain().eq([texts[0], "quota"]));
    }

    #[test]
    fn any_error_becomes_a_failure() {
        fn task() -> Result<u8, Failure> {
            Ok("300".parse::<u8>()?)
        }
        assert_eq!(task().unwrap_err().to_string(), "number too large to fit in target type");
        assert_eq!(Failure::from("a text").to_string(), "a text");
        assert!(codec::decode::<Failure>(&0u64.to_le_bytes()).is_err());
    }
}
