//! The replacement strings: what is one, and what it stands for.

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use std::ffi::OsStr;

use serde::{Deserialize, Serialize};

use crate::tasks::Bytes;
use crate::tasks::command::job::CommandJob;

/// What is wrong with a command line, for any input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// A replacement string that there is not.
    #[error(
        "'{0}' is not a replacement string; there are {{}} {{.}} {{/}} {{//}} {{/.}} {{..}} {{+/}} \
         {{+.}} {{%suffix}} {{#prefix}} {{1}} {{-1}} {{1/.}} {{#}} {{04#}} {{%}}{1} (see --help); for a \
         literal, double the braces of one, as in {{{{}}}}"
    )]
    Unknown(String, String),
    /// A value that inputs do not have.
    #[error(
        "'{0}' stands for a value that there is not: each input has {1}; for more, use several \
         sources (::: a ::: b), --colsep, --csv or -n"
    )]
    NoSuchValue(String, usize),
    /// A placeholder where a shell would not read it as one word.
    #[error(
        "'{0}' stands {1}: move it out, since with --shell it is always one word, as in: echo \"got \"{{}}"
    )]
    NotAWord(String, &'static str),
}

/// What is known of the inputs when the command line is parsed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replacements {
    /// What stands for the input instead of `{}`.
    pub(crate) input: Option<Vec<u8>>,
    /// How many values an input has, if all have as many.
    pub(crate) values: Option<usize>,
    /// The names of the values, from a header.
    pub(crate) names: Option<Vec<Bytes>>,
    /// Whether no input is appended to a command that names none.
    pub(crate) has_no_input: bool,
}

/// A replacement string.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Place {
    /// As it was typed.
    pub(super) written: Bytes,
    pub(super) stands_for: StandsFor,
}

/// What a replacement string stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum StandsFor {
    /// All values of the input, or one of them, or a part of it.
    Value(Which, Part),
    /// The job's number, with zeros up to this width.
    Number(usize),
    /// The worker's number.
    Slot(usize),
}

/// Which values of an input.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Which {
    All,
    /// From 0.
    FromStart(usize),
    /// From 1.
    FromEnd(usize),
}

/// A part of a value, as of the path of a file. The numbers are of extensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Part {
    Whole,
    WithoutExtensions(usize),
    /// The base name without so many extensions.
    BaseName(usize),
    Directory,
    /// The directory, or nothing where the value names none.
    DirectoryIfAny,
    Extensions(usize),
    WithoutSuffix(Bytes),
    WithoutPrefix(Bytes),
}

/// What stands at a brace.
pub(super) enum AtBrace {
    /// A replacement string, of this length.
    Place(Place, usize),
    /// A replacement string in doubled braces: what it stands for as text, and its length.
    Literal(Vec<u8>, usize),
    /// Text.
    Text,
}

/// The widest number.
const MAX_WIDTH: usize = 20;

impl Place {
    /// The input itself, for which this stands.
    pub(super) fn input(written: &[u8]) -> Self {
        let stands_for = StandsFor::Value(Which::All, Part::Whole);
        Self { written: written.to_vec().into(), stands_for }
    }

    /// Whether it stands for all values of the input.
    pub(super) fn is_of_all(&self) -> bool {
        matches!(self.stands_for, StandsFor::Value(Which::All, _))
    }

    /// Whether it stands for digits.
    pub(super) fn is_number(&self) -> bool {
        matches!(self.stands_for, StandsFor::Number(_) | StandsFor::Slot(_))
    }

    /// Returns what it stands for in a job in this slot.
    pub(super) fn values<'a>(&self, job: &'a CommandJob, slot: &str) -> Vec<Cow<'a, [u8]>> {
        let padded =
            |number: &str, width: usize| vec![format!("{number:0>width$}").into_bytes().into()];
        let (which, part) = match &self.stands_for {
            StandsFor::Number(width) => return padded(&job.number.to_string(), *width),
            StandsFor::Slot(width) => return padded(slot, *width),
            StandsFor::Value(which, part) => (*which, part),
        };
        let values = job.input.values();
        let one = |index: Option<usize>| {
            let value = index.and_then(|index| values.get(index));
            vec![value.map_or(Cow::Borrowed(&b""[..]), |value| part.of_one(value.clone()))]
        };
        match which {
            Which::All => values.into_iter().map(|value| part.of_one(value)).collect(),
            Which::FromStart(index) => one(Some(index)),
            Which::FromEnd(index) => one(values.len().checked_sub(index)),
        }
    }
}

impl Part {
    /// Parses what follows the number or the name of the value.
    fn parse(written: &[u8]) -> Option<Self> {
        Some(match written {
            b"" => Self::Whole,
            b"." | b".." | b"..." => Self::WithoutExtensions(written.len()),
            b"/" | b"/." | b"/.." | b"/..." => Self::BaseName(written.len() - 1),
            b"//" => Self::Directory,
            b"+/" => Self::DirectoryIfAny,
            b"+." | b"+.." | b"+..." => Self::Extensions(written.len() - 1),
            [mark @ (b'%' | b'#'), text @ ..]
                if text.first().is_some_and(|first| !b"%#".contains(first))
                    && !text.iter().any(u8::is_ascii_whitespace) =>
            {
                let text = Bytes::from(text.to_vec());
                if *mark == b'%' { Self::WithoutSuffix(text) } else { Self::WithoutPrefix(text) }
            }
            _ => return None,
        })
    }

    fn of_one<'a>(&self, value: Cow<'a, [u8]>) -> Cow<'a, [u8]> {
        match value {
            Cow::Borrowed(value) => Cow::Borrowed(self.of(value)),
            Cow::Owned(value) => Cow::Owned(self.of(&value).to_vec()),
        }
    }

    fn of<'a>(&self, value: &'a [u8]) -> &'a [u8] {
        let path = Path::new(OsStr::from_bytes(value));
        match self {
            Self::Whole => value,
            Self::WithoutExtensions(count) => {
                split_extensions(value, *count).map_or(value, |(stem, _)| stem)
            }
            Self::Extensions(count) => {
                split_extensions(value, *count).map_or(b"", |(_, extensions)| extensions)
            }
            Self::BaseName(count) => {
                let name = path.file_name().map_or(value, OsStrExt::as_bytes);
                split_extensions(name, *count).map_or(name, |(stem, _)| stem)
            }
            Self::Directory => match path.parent() {
                Some(parent) if parent.as_os_str().is_empty() => b".",
                Some(parent) => parent.as_os_str().as_bytes(),
                None => b"/",
            },
            Self::DirectoryIfAny => {
                let end = value.iter().rposition(|byte| *byte == b'/');
                end.map_or(b"", |end| &value[..end])
            }
            Self::WithoutSuffix(suffix) => value.strip_suffix(suffix.as_slice()).unwrap_or(value),
            Self::WithoutPrefix(prefix) => value.strip_prefix(prefix.as_slice()).unwrap_or(value),
        }
    }
}

/// Splits a path before its last `count` extensions, if its name has as many. The name of a hidden
/// file begins with a dot that starts no extension.
fn split_extensions(path: &[u8], count: usize) -> Option<(&[u8], &[u8])> {
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let name = &path[start..];
    if name == b".." || count == 0 {
        return None;
    }
    let mut dots = (1..name.len()).rev().filter(|index| name[*index] == b'.');
    let dot = start + dots.nth(count - 1)?;
    Some((&path[..dot], &path[dot + 1..]))
}

/// Reads what stands at the `{` that `text[at..]` starts with.
pub(super) fn at_brace(
    text: &[u8],
    at: usize,
    given: &Replacements,
) -> Result<AtBrace, TemplateError> {
    let rest = &text[at..];
    let before = at.checked_sub(1).map(|before| text[before]);
    if rest.starts_with(b"{{")
        && let AtBrace::Place(place, length) = parse(&rest[1..], None, given)?
        && rest.get(1 + length) == Some(&b'}')
    {
        return Ok(AtBrace::Literal(place.written.into_vec(), length + 2));
    }
    parse(rest, before, given)
}

fn parse(rest: &[u8], before: Option<u8>, given: &Replacements) -> Result<AtBrace, TemplateError> {
    let unknown = |length: usize| {
        let written = String::from_utf8_lossy(&rest[..length]).into_owned();
        let names = given.names.iter().flatten().map(|name| format!(" {{{}}}", name.to_text()));
        Err(TemplateError::Unknown(written, names.collect()))
    };
    if rest.starts_with(b"{=")
        && let Some(end) = rest.windows(2).position(|two| two == b"=}")
    {
        return unknown(end + 2);
    }
    let Some(end) = rest.iter().position(|byte| *byte == b'}') else { return Ok(AtBrace::Text) };
    let (inner, length) = (&rest[1..end], end + 1);
    let place = |stands_for| {
        let written = Bytes::from(rest[..length].to_vec());
        Ok(AtBrace::Place(Place { written, stands_for }, length))
    };
    let is_after_dollar = before == Some(b'$');
    match inner {
        b"" if given.input.is_some() => return Ok(AtBrace::Text),
        b"" | b"." | b"/" | b"//" => {
            return place(StandsFor::Value(Which::All, Part::parse(inner).unwrap_or(Part::Whole)));
        }
        b"#" => return place(StandsFor::Number(0)),
        b"%" => return place(StandsFor::Slot(0)),
        // A variable of a shell.
        _ if is_after_dollar => return Ok(AtBrace::Text),
        b"seq" => return place(StandsFor::Number(0)),
        b"slot" => return place(StandsFor::Slot(0)),
        _ => {}
    }
    if let Some(names) = &given.names {
        let mut longest: Option<(usize, usize, Part)> = None;
        for (index, name) in names.iter().enumerate() {
            let is_longer =
                longest.as_ref().is_none_or(|(known, ..)| name.as_slice().len() > *known);
            if let Some(part) = inner.strip_prefix(name.as_slice()).and_then(Part::parse)
                && !name.as_slice().is_empty()
                && is_longer
            {
                longest = Some((name.as_slice().len(), index, part));
            }
        }
        if let Some((_, index, part)) = longest {
            return place(StandsFor::Value(Which::FromStart(index), part));
        }
    }
    if let [b'0', digits @ .., mark @ (b'#' | b'%')] = inner
        && let Ok(width) = std::str::from_utf8(digits).unwrap_or_default().parse::<usize>()
        && (1..=MAX_WIDTH).contains(&width)
    {
        let is_job = *mark == b'#';
        return place(if is_job { StandsFor::Number(width) } else { StandsFor::Slot(width) });
    }
    let sign = usize::from(inner.first().is_some_and(|byte| b"+-".contains(byte)));
    let digits = inner[sign..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, marks) = inner.split_at(sign + digits);
    if digits == 0 {
        if let Some(part) = Part::parse(inner) {
            return place(StandsFor::Value(Which::All, part));
        }
    } else {
        // A repetition of a regular expression, as in [0-9]{4}, is none.
        let is_count = marks.is_empty()
            && given.values == Some(1)
            && before.is_some_and(|byte| {
                byte.is_ascii_alphanumeric() || b"])}.*\\$\"'_".contains(&byte)
            });
        if is_count {
            return Ok(AtBrace::Text);
        }
        let index = std::str::from_utf8(&number[sign..]).unwrap_or_default().parse::<usize>();
        let index = index.ok().filter(|index| *index > 0 && !number.starts_with(b"+"));
        if let (Some(index), Some(part)) = (index, Part::parse(marks)) {
            if let Some(values) = given.values.filter(|values| index > *values) {
                let written = String::from_utf8_lossy(&rest[..length]).into_owned();
                return Err(TemplateError::NoSuchValue(written, values));
            }
            let is_from_end = number.starts_with(b"-");
            let which =
                if is_from_end { Which::FromEnd(index) } else { Which::FromStart(index - 1) };
            return place(StandsFor::Value(which, part));
        }
    }
    let has_marks = (!marks.is_empty() && marks.iter().all(|byte| b"./#%+".contains(byte)))
        || [&b"%%"[..], b"##"].iter().any(|mark| marks.starts_with(mark));
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-".contains(byte);
    let is_misnamed = given.names.is_some() && !inner.is_empty() && inner.iter().all(is_name);
    if has_marks || is_misnamed || (digits > 0 && marks.is_empty()) {
        return unknown(length);
    }
    Ok(AtBrace::Text)
}
