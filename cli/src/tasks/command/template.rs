//! The command line of a run: words with placeholders for the input.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use serde::{Deserialize, Serialize};

pub(crate) use self::place::TemplateError;
use self::place::{AtBrace, Place, at_brace};
use super::job::CommandJob;
use super::lines::tag_of;
use crate::tasks::{Bytes, Strings};

mod place;

pub(crate) use self::place::Replacements;

/// The words of a command line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Template {
    words: Vec<Vec<Piece>>,
    /// The shell that reads the words as one line, if one does.
    shell: Option<PathBuf>,
    /// Whether a word is repeated for each value of an input with several.
    repeats: bool,
}

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Piece {
    Text(Bytes),
    Place(Place),
}

/// What a value of an input costs of the length of a command.
#[derive(Clone, Debug, Default)]
pub(crate) struct ValueCost {
    /// How often it stands there.
    pub(crate) places: usize,
    /// The length of what is repeated with it.
    pub(crate) around: usize,
    /// The length of all else.
    pub(crate) rest: usize,
    pub(crate) in_shell: bool,
}

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

impl Template {
    /// Parses words as typed. Without a placeholder, the input is appended. With a shell, the words
    /// are joined by spaces and read by it; an input is still always one word.
    ///
    /// # Errors
    ///
    /// If something looks like a replacement string and is none.
    pub(crate) fn new(
        words: impl IntoIterator<Item = OsString>,
        shell: Option<PathBuf>,
        given: &Replacements,
    ) -> Result<Self, TemplateError> {
        let words = words.into_iter().map(|word| pieces(word.as_bytes(), given));
        let mut words = words.collect::<Result<Vec<_>, _>>()?;
        let has_place = words.iter().flatten().any(|piece| matches!(piece, Piece::Place(_)));
        if !has_place && !given.has_no_input {
            words.push(vec![Piece::Place(Place::input(b"{}"))]);
        }
        Ok(Self { words, shell, repeats: false })
    }

    /// Parses a text with placeholders that is no command line.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub(crate) fn text(text: OsString, given: &Replacements) -> Result<Self, TemplateError> {
        Ok(Self { words: vec![pieces(text.as_bytes(), given)?], shell: None, repeats: false })
    }

    /// Repeats the word around `{}` for each value of an input with several.
    pub(crate) fn repeating_words(self) -> Self {
        Self { repeats: true, ..self }
    }

    /// Returns what a value costs of the length of a command.
    pub(crate) fn value_cost(&self) -> ValueCost {
        let is_of_all = |piece: &Piece| matches!(piece, Piece::Place(place) if place.is_of_all());
        let mut cost = ValueCost { in_shell: self.shell.is_some(), ..ValueCost::default() };
        for word in &self.words {
            let texts = word.iter().map(|piece| match piece {
                Piece::Text(text) => text.as_slice().len(),
                Piece::Place(_) => 0,
            });
            let length: usize = texts.sum();
            cost.places += word.iter().filter(|piece| is_of_all(piece)).count();
            if self.repeats && word.iter().any(is_of_all) {
                cost.around += length;
            }
            // The other places are short.
            cost.rest += length + 64;
        }
        cost
    }

    /// Returns the program's file, looked up once for all inputs, from the directory of the jobs; none if
    /// it depends on the input.
    ///
    /// # Errors
    ///
    /// If it is not executable or does not exist.
    pub(crate) fn program(&self, dir: Option<&Path>) -> Result<Option<PathBuf>, NoProgram> {
        let from_there = |name: &OsStr| match (dir, name.as_bytes().contains(&b'/')) {
            // The file is run from there.
            (Some(dir), true) => {
                find(std::path::absolute(dir.join(name)).unwrap_or_default().as_os_str())
            }
            _ => find(name),
        };
        if let Some(shell) = &self.shell {
            return find(shell.as_os_str()).map(Some);
        }
        match self.words.first().map(Vec::as_slice) {
            Some([Piece::Text(name)]) => from_there(OsStr::from_bytes(name.as_slice())).map(Some),
            Some([]) => Err(NoProgram::NotFound(OsString::new())),
            _ => Ok(None),
        }
    }

    /// Refuses command lines that would not do what they seem to.
    ///
    /// # Errors
    ///
    /// If a placeholder is within quotes of a line for a shell.
    pub(crate) fn check(&self) -> Result<(), TemplateError> {
        if self.shell.is_none() {
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
                    Piece::Place(place) if place.is_number() => scan.pass(b"1"),
                    Piece::Place(place) => match scan.obstacle() {
                        Some(obstacle) => {
                            let written = place.written.to_text().into_owned();
                            return Err(TemplateError::NotAWord(written, obstacle));
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
    pub(crate) fn words(&self, job: &CommandJob, slot: &str) -> Strings {
        let Some(shell) = &self.shell else {
            let mut words = Strings::default();
            self.words.iter().for_each(|word| self.fill(&mut words, word, job, slot));
            return words;
        };
        let mut known: Vec<(&Place, Vec<u8>)> = Vec::new();
        let mut values: Vec<Cow<'_, [u8]>> = Vec::new();
        let line = self.shell_line(|place| {
            let new = place.values(job, slot);
            if place.is_number() {
                return new.concat();
            }
            if let Some((_, names)) =
                known.iter().find(|(known, _)| known.stands_for == place.stands_for)
            {
                return names.clone();
            }
            let numbers = values.len() + 1..=values.len() + new.len();
            let names: Vec<_> = numbers.map(|it| format!("\"${{procpool_{it}}}\"")).collect();
            values.extend(new);
            let names = names.join(" ").into_bytes();
            known.push((place, names.clone()));
            names
        });
        // Not in the environment, where programs of the line would inherit them.
        let mut script = String::new();
        for index in 1..=values.len() {
            script += &format!("procpool_{index}=$1; shift; ");
        }
        let script = [script.as_bytes(), &line].concat();
        // Some shells go by their name.
        let name = shell.file_name().map_or(&b"sh"[..], OsStrExt::as_bytes);
        let words = [name, b"-c", &script, name].into_iter();
        words.chain(values.iter().map(Cow::as_ref)).collect()
    }

    /// Appends the words that a word becomes. A placeholder for several values ends a word after each
    /// but the last, or repeats the whole word for each.
    fn fill(&self, words: &mut Strings, word: &[Piece], job: &CommandJob, slot: &str) {
        let is_of_all = |piece: &Piece| matches!(piece, Piece::Place(place) if place.is_of_all());
        let count = if self.repeats && word.iter().any(is_of_all) { job.input.count() } else { 1 };
        // Once for all repetitions: there may be thousands of values.
        let values = word.iter().map(|piece| match piece {
            Piece::Text(text) => (false, vec![Cow::Borrowed(text.as_slice())]),
            Piece::Place(place) => (place.is_of_all(), place.values(job, slot)),
        });
        let values: Vec<_> = values.collect();
        for index in 0..count {
            for (is_of_all, values) in &values {
                if count > 1 && *is_of_all {
                    words.extend(values.get(index).map_or(b"", Cow::as_ref));
                    continue;
                }
                for (index, value) in values.iter().enumerate() {
                    if index > 0 {
                        words.end();
                    }
                    words.extend(value);
                }
            }
            words.end();
        }
    }

    /// Returns the line for a shell.
    fn shell_line<'a>(&'a self, mut fill: impl FnMut(&'a Place) -> Vec<u8>) -> Vec<u8> {
        let words = self.words.iter().map(|word| {
            let filled = word.iter().flat_map(|piece| match piece {
                Piece::Text(text) => text.as_slice().to_vec(),
                Piece::Place(place) => fill(place),
            });
            filled.collect::<Vec<u8>>()
        });
        words.collect::<Vec<_>>().join(&b' ')
    }

    /// Returns the words of a job as the prefix of its lines.
    pub(crate) fn tag(&self, job: &CommandJob, slot: &str) -> Vec<u8> {
        tag_of(&self.words(job, slot).joined(b' '))
    }

    /// Returns the command line of a job, as it could be typed into a shell.
    pub(crate) fn line(&self, job: &CommandJob, slot: &str) -> Vec<u8> {
        let quoted = |words: Strings| words.iter().map(quote).collect::<Strings>().joined(b' ');
        if self.shell.is_some() {
            return self.shell_line(|place| quoted(place.values(job, slot).into_iter().collect()));
        }
        quoted(self.words(job, slot))
    }
}

fn pieces(word: &[u8], given: &Replacements) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let (mut text, mut at) = (Vec::new(), 0);
    let input = given.input.as_deref().filter(|input| !input.is_empty());
    while at < word.len() {
        let (place, length) = if input.is_some_and(|input| word[at..].starts_with(input)) {
            (Place::input(input.unwrap_or_default()), input.map_or(0, <[u8]>::len))
        } else if word[at] == b'{' {
            match at_brace(word, at, given)? {
                AtBrace::Place(place, length) => (place, length),
                AtBrace::Literal(literal, length) => {
                    text.extend(literal);
                    at += length;
                    continue;
                }
                AtBrace::Text => {
                    text.push(word[at]);
                    at += 1;
                    continue;
                }
            }
        } else {
            text.push(word[at]);
            at += 1;
            continue;
        };
        if !text.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut text).into()));
        }
        pieces.push(Piece::Place(place));
        at += length;
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text.into()));
    }
    Ok(pieces)
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
