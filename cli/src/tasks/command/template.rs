//! The command line of a run: words with placeholders for the input.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use serde::{Deserialize, Serialize};

use super::job::CommandJob;
use crate::tasks::Bytes;

/// The words of a command line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Template {
    words: Vec<Vec<Piece>>,
    /// Whether the words form one line for a shell.
    shell: bool,
}

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Piece {
    Text(Bytes),
    Placeholder(Placeholder),
}

/// A placeholder for a property of the job.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Placeholder {
    Input,
    WithoutExtension,
    BaseName,
    Directory,
    Number,
    Slot,
}

/// The replacement strings.
const PLACES: [(&[u8], Placeholder); 6] = [
    (b"{}", Placeholder::Input),
    (b"{.}", Placeholder::WithoutExtension),
    (b"{/}", Placeholder::BaseName),
    (b"{//}", Placeholder::Directory),
    (b"{#}", Placeholder::Number),
    (b"{%}", Placeholder::Slot),
];

/// Why a program cannot be run, for any input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoProgram {
    /// Not found.
    #[error("command {0:?} not found: check its name and PATH; shell built-ins need --shell")]
    NotFound(OsString),
    /// Found, but not executable.
    #[error("{0:?} is not executable: it is a directory, or its permissions forbid it (chmod +x)")]
    NotExecutable(OsString),
}

/// What is wrong with a command line, for any input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// A replacement string of another program.
    #[error(
        "'{0}' is not a replacement string; supported are {{}} {{.}} {{/}} {{//}} {{#}} {{%}} (see \
         --help); for a literal, use --shell and split it by quotes: {{''1}}"
    )]
    Unknown(String),
    /// A placeholder where a shell would not read it as one word.
    #[error(
        "'{0}' stands {1}: move it out, since with --shell it is always one word, as in: echo \"got \"{{}}"
    )]
    NotAWord(&'static str, &'static str),
}

impl Template {
    /// Parses words as typed. Without a placeholder, the input is appended. With `shell`, the words
    /// are joined by spaces and read by `/bin/sh`; an input is still always one word.
    pub(crate) fn new(words: impl IntoIterator<Item = OsString>, shell: bool) -> Self {
        let mut words: Vec<Vec<Piece>> =
            words.into_iter().map(|word| pieces(word.as_bytes())).collect();
        if !words.iter().flatten().any(|piece| matches!(piece, Piece::Placeholder(_))) {
            words.push(vec![Piece::Placeholder(Placeholder::Input)]);
        }
        Self { words, shell }
    }

    /// Returns the program's file, looked up once for all inputs; none if it depends on the input.
    ///
    /// # Errors
    ///
    /// If it is not executable or does not exist.
    pub(crate) fn program(&self) -> Result<Option<PathBuf>, NoProgram> {
        if self.shell {
            return Ok(Some("/bin/sh".into()));
        }
        match self.words.first().map(Vec::as_slice) {
            Some([Piece::Text(name)]) => find(OsStr::from_bytes(name.as_slice())).map(Some),
            Some([]) => Err(NoProgram::NotFound(OsString::new())),
            _ => Ok(None),
        }
    }

    /// Refuses command lines that would not do what they seem to.
    ///
    /// # Errors
    ///
    /// If something looks like a replacement string of another program, or a placeholder is within
    /// quotes of a line for a shell.
    pub(crate) fn check(&self) -> Result<(), TemplateError> {
        for piece in self.words.iter().flatten() {
            if let Piece::Text(text) = piece
                && let Some(unknown) = unknown_place(text.as_slice())
            {
                return Err(TemplateError::Unknown(String::from_utf8_lossy(unknown).into_owned()));
            }
        }
        if !self.shell {
            return Ok(());
        }
        let mut scan = Scan::default();
        for (index, word) in self.words.iter().enumerate() {
            if index > 0 {
                scan.pass(b" ");
            }
            for piece in word {
                match piece {
                    Piece::Text(text) => scan.pass(text.as_slice()),
                    // Digits mean the same everywhere.
                    Piece::Placeholder(Placeholder::Number | Placeholder::Slot) => scan.pass(b"1"),
                    Piece::Placeholder(place) => match scan.obstacle() {
                        Some(obstacle) => {
                            return Err(TemplateError::NotAWord(place.written(), obstacle));
                        }
                        None => scan.pass(b"x"),
                    },
                }
            }
        }
        Ok(())
    }

    /// Returns the words for a job in this slot.
    ///
    /// A shell never reads the input as code: inputs are arguments, are assigned to variables, and
    /// the line contains only their names.
    pub(crate) fn words(&self, job: &CommandJob, slot: &str) -> Vec<OsString> {
        if !self.shell {
            let fill = |word: &Vec<Piece>| {
                let filled = word.iter().flat_map(|piece| match piece {
                    Piece::Text(text) => text.as_slice().to_vec(),
                    Piece::Placeholder(place) => place.value(job, slot).into_owned(),
                });
                OsString::from_vec(filled.collect())
            };
            return self.words.iter().map(fill).collect();
        }
        let mut values: Vec<(Placeholder, Cow<'_, [u8]>)> = Vec::new();
        let line = self.shell_line(|place| {
            let value = place.value(job, slot);
            if matches!(place, Placeholder::Number | Placeholder::Slot) {
                return value.into_owned();
            }
            let known = values.iter().position(|(known, _)| *known == place);
            let index = known.unwrap_or_else(|| {
                values.push((place, value));
                values.len() - 1
            });
            format!("\"${{procpool_{}}}\"", index + 1).into_bytes()
        });
        // Not in the environment, where programs of the line would inherit them.
        let mut script = String::new();
        for index in 1..=values.len() {
            script += &format!("procpool_{index}=$1; shift; ");
        }
        let script = OsString::from_vec([script.as_bytes(), &line].concat());
        let values = values.into_iter().map(|(_, value)| OsString::from_vec(value.into_owned()));
        ["sh".into(), "-c".into(), script, "sh".into()].into_iter().chain(values).collect()
    }

    /// Returns the line for a shell.
    fn shell_line(&self, mut fill: impl FnMut(Placeholder) -> Vec<u8>) -> Vec<u8> {
        let words = self.words.iter().map(|word| {
            let filled = word.iter().flat_map(|piece| match piece {
                Piece::Text(text) => text.as_slice().to_vec(),
                Piece::Placeholder(place) => fill(*place),
            });
            filled.collect::<Vec<u8>>()
        });
        words.collect::<Vec<_>>().join(&b' ')
    }

    /// Returns the command line of a job, as it could be typed into a shell.
    pub(crate) fn line(&self, job: &CommandJob, slot: &str) -> Vec<u8> {
        if self.shell {
            return self.shell_line(|place| quote(&place.value(job, slot)).into_owned());
        }
        let words = self.words(job, slot);
        let words: Vec<_> = words.iter().map(|word| quote(word.as_bytes())).collect();
        words.join(&b' ')
    }
}

impl Placeholder {
    /// Returns the replacement string.
    fn written(self) -> &'static str {
        let found = PLACES.iter().find(|(_, place)| *place == self);
        found.and_then(|(written, _)| std::str::from_utf8(written).ok()).unwrap_or("{}")
    }

    fn value<'a>(self, job: &'a CommandJob, slot: &'a str) -> Cow<'a, [u8]> {
        let path = || job.input.to_path();
        match self {
            Self::Input => job.input.to_bytes(),
            Self::WithoutExtension => {
                let path = path().into_owned();
                let extension = path.extension().map_or(0, |extension| extension.len() + 1);
                let mut bytes = path.into_os_string().into_vec();
                // In "a.b/", the "b" is the name's extension and not the end of the path.
                if !bytes.ends_with(b"/") {
                    bytes.truncate(bytes.len() - extension);
                }
                Cow::Owned(bytes)
            }
            Self::BaseName => match path().file_name() {
                Some(name) => Cow::Owned(name.as_bytes().to_vec()),
                None => job.input.to_bytes(),
            },
            Self::Directory => Cow::Owned(match path().parent() {
                Some(parent) if parent.as_os_str().is_empty() => b".".to_vec(),
                Some(parent) => parent.as_os_str().as_bytes().to_vec(),
                None => b"/".to_vec(),
            }),
            Self::Number => Cow::Owned(job.number.to_string().into_bytes()),
            Self::Slot => Cow::Borrowed(slot.as_bytes()),
        }
    }
}

fn pieces(word: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut text, mut rest) = (Vec::new(), word);
    while let [first, others @ ..] = rest {
        match PLACES.iter().find(|(written, _)| rest.starts_with(written)) {
            Some((written, place)) => {
                if !text.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut text).into()));
                }
                pieces.push(Piece::Placeholder(*place));
                rest = &rest[written.len()..];
            }
            None => {
                text.push(*first);
                rest = others;
            }
        }
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text.into()));
    }
    pieces
}

/// Finds the first replacement string of another program: `{1}`, `{..}`, `{/.}`, `{2/}`, `{##}`,
/// `{= … =}`.
///
/// A repetition of a regular expression, as in `[0-9]{4}`, is not one: a number alone counts only
/// if nothing precedes it that could be repeated.
fn unknown_place(text: &[u8]) -> Option<&[u8]> {
    for (start, _) in text.iter().enumerate().filter(|(_, byte)| **byte == b'{') {
        let rest = &text[start..];
        if rest.starts_with(b"{=")
            && let Some(end) = rest.windows(2).position(|two| two == b"=}")
        {
            return Some(&rest[..end + 2]);
        }
        let Some(end) = rest.iter().position(|byte| *byte == b'}') else { continue };
        let inner = &rest[1..end];
        let sign = usize::from(inner.first().is_some_and(|byte| b"+-".contains(byte)));
        let digits = inner[sign..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, marks) = inner.split_at(sign + digits);
        let has_marks = !marks.is_empty() && marks.iter().all(|byte| b"./#%".contains(byte));
        let before = start.checked_sub(1).map(|before| text[before]);
        let is_count = before
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || b"])}.*\\$\"'_".contains(&byte));
        let is_number = marks.is_empty() && !number.is_empty() && digits > 0;
        if (has_marks && before != Some(b'$')) || (is_number && !is_count) {
            return Some(&rest[..=end]);
        }
    }
    None
}

/// Follows a shell's quoting, to tell whether a placeholder is within quotes.
///
/// Safety does not depend on it, since an input is never part of the line. It warns users of a
/// result that they do not expect.
#[derive(Default)]
struct Scan {
    /// The open constructs, the innermost last.
    open: Vec<Open>,
    last: u8,
    /// Whether the last byte was escaped, or is an escape itself.
    escape: bool,
    /// Whether a here-document follows this line.
    here: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Open {
    Single,
    Double,
    Backquote,
    Command,
    Arithmetic,
    Comment,
    Here,
}

impl Scan {
    fn pass(&mut self, text: &[u8]) {
        for (index, byte) in text.iter().enumerate() {
            let next = text.get(index + 1).copied();
            self.step(*byte, next);
            self.last = *byte;
        }
    }

    fn step(&mut self, byte: u8, next: Option<u8>) {
        let top = self.open.last().copied();
        if std::mem::take(&mut self.escape) && top != Some(Open::Single) {
            return;
        }
        match (top, byte) {
            (Some(Open::Here), _) => {}
            (Some(Open::Single), b'\'') | (Some(Open::Double), b'"') => drop(self.open.pop()),
            (Some(Open::Comment), b'\n') => {
                self.open.pop();
                self.end_line();
            }
            (Some(Open::Single | Open::Comment), _) => {}
            (_, b'\\') => self.escape = true,
            (Some(Open::Backquote), b'`') => drop(self.open.pop()),
            (_, b'`') => self.open.push(Open::Backquote),
            // The second parenthesis opens one more construct, and closes it again.
            (_, b'(') if self.last == b'$' && next == Some(b'(') => {
                self.open.push(Open::Arithmetic)
            }
            (_, b'(') if self.last == b'$' => self.open.push(Open::Command),
            (Some(Open::Double), _) => {}
            (_, b'\'') => self.open.push(Open::Single),
            (_, b'"') => self.open.push(Open::Double),
            (_, b'(') if next == Some(b'(') => self.open.push(Open::Arithmetic),
            (_, b'(') => {
                self.open.push(top.filter(|top| *top == Open::Arithmetic).unwrap_or(Open::Command))
            }
            (Some(Open::Command | Open::Arithmetic), b')') => drop(self.open.pop()),
            (_, b'#') if self.last == 0 || b" \t\n;&|()".contains(&self.last) => {
                self.open.push(Open::Comment);
            }
            (_, b'<') if self.last == b'<' && next != Some(b'<') => self.here = true,
            (_, b'\n') => self.end_line(),
            _ => {}
        }
    }

    fn end_line(&mut self) {
        if self.here {
            self.open.push(Open::Here);
        }
    }

    /// Returns why a placeholder here would not be a word, if it would not.
    fn obstacle(&self) -> Option<&'static str> {
        if self.open.contains(&Open::Arithmetic) {
            // Some shells execute the index of a variable there.
            return Some("in an arithmetic expression");
        }
        match self.open.last() {
            Some(Open::Single | Open::Double) => Some("within quotes"),
            Some(Open::Backquote) => Some("within backquotes, for which there is $(…)"),
            Some(Open::Comment) => Some("in a comment"),
            Some(Open::Here) => Some("in a here-document"),
            _ if self.escape => Some("after a backslash"),
            _ if self.last == b'$' => Some("after a $"),
            _ => None,
        }
    }
}

/// Quotes a word for a shell, if necessary. Control characters are escaped, in the form that bash,
/// zsh, ksh and POSIX since 2024 read.
pub(crate) fn quote(word: &[u8]) -> Cow<'_, [u8]> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(byte);
    if !word.is_empty() && word.iter().all(is_plain) {
        return Cow::Borrowed(word);
    }
    // Characters that change the writing direction make a line look like another.
    let is_unseen = |character: char| {
        character.is_control()
            || matches!(character, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let is_visible = std::str::from_utf8(word).is_ok_and(|text| !text.contains(is_unseen));
    let mut quoted = if is_visible { b"'".to_vec() } else { b"$'".to_vec() };
    for chunk in word.utf8_chunks() {
        for character in chunk.valid().chars() {
            let mut bytes = [0; 4];
            let bytes = character.encode_utf8(&mut bytes).as_bytes();
            match character {
                '\'' if is_visible => quoted.extend_from_slice(br"'\''"),
                '\'' | '\\' if !is_visible => quoted.extend_from_slice(&[b'\\', bytes[0]]),
                '\n' if !is_visible => quoted.extend_from_slice(br"\n"),
                '\t' if !is_visible => quoted.extend_from_slice(br"\t"),
                character if is_unseen(character) => octal(&mut quoted, bytes),
                _ => quoted.extend_from_slice(bytes),
            }
        }
        octal(&mut quoted, chunk.invalid());
    }
    quoted.push(b'\'');
    Cow::Owned(quoted)
}

fn octal(quoted: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        quoted.extend_from_slice(format!("\\{byte:03o}").as_bytes());
    }
}

/// Finds the file of a program, as a shell does.
fn find(name: &OsStr) -> Result<PathBuf, NoProgram> {
    let mut refused = false;
    let mut can_run = |path: &Path| {
        let allowed = rustix::fs::access(path, Access::EXEC_OK);
        let runs = allowed.is_ok() && path.is_file();
        let is_missing = |error: &rustix::io::Errno| {
            matches!(
                std::io::Error::from(*error).kind(),
                ErrorKind::NotFound | ErrorKind::NotADirectory
            )
        };
        refused |= !runs && !allowed.as_ref().err().is_some_and(is_missing);
        runs
    };
    let found = if name.as_bytes().contains(&b'/') {
        Some(PathBuf::from(name)).filter(|path| can_run(path))
    } else {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        std::env::split_paths(&path)
            // An empty entry is the current directory, where a name needs a "./".
            .map(|dir| if dir.as_os_str().is_empty() { ".".into() } else { dir })
            .map(|dir| dir.join(name))
            .find(|path| can_run(path))
    };
    let name = name.to_owned();
    found.ok_or(if refused { NoProgram::NotExecutable(name) } else { NoProgram::NotFound(name) })
}

#[cfg(test)]
mod tests;
