//! The command line of a run: words with places in them for the input.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use serde::{Deserialize, Serialize};

use super::CommandJob;
use crate::tasks::Bytes;

/// The words of a command line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Template {
    words: Vec<Vec<Piece>>,
    /// Whether the words are one line for a shell.
    shell: bool,
}

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Piece {
    Text(Bytes),
    Place(Place),
}

/// What stands in for something of the job.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Place {
    Input,
    WithoutExtension,
    BaseName,
    Directory,
    Number,
    Slot,
}

/// As they are written.
const PLACES: [(&[u8], Place); 6] = [
    (b"{}", Place::Input),
    (b"{.}", Place::WithoutExtension),
    (b"{/}", Place::BaseName),
    (b"{//}", Place::Directory),
    (b"{#}", Place::Number),
    (b"{%}", Place::Slot),
];

/// Why a program can't be run, whatever the input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoProgram {
    /// There is no such file.
    #[error(
        "{0:?}: there is no such command: check its name, and PATH; for what only a shell knows, add --shell"
    )]
    NotFound(OsString),
    /// There is one that can't be run.
    #[error("{0:?} can't be run: it's a directory, or its permissions don't allow it (chmod +x)")]
    NotExecutable(OsString),
}

impl Template {
    /// Of words as they were typed. Without any place in them, the input is appended; `shell` has
    /// them joined by spaces and read by `/bin/sh`, in which an input is always one word.
    pub fn new(words: impl IntoIterator<Item = OsString>, shell: bool) -> Self {
        let mut words: Vec<Vec<Piece>> =
            words.into_iter().map(|word| pieces(word.as_bytes())).collect();
        if !words.iter().flatten().any(|piece| matches!(piece, Piece::Place(_))) {
            words.push(vec![Piece::Place(Place::Input)]);
        }
        Self { words, shell }
    }

    /// The file of the program, looked up once for all inputs; none where it depends on the input.
    ///
    /// # Errors
    ///
    /// When there is none that can be run.
    pub fn program(&self) -> Result<Option<PathBuf>, NoProgram> {
        if self.shell {
            return Ok(Some("/bin/sh".into()));
        }
        match self.words.first().map(Vec::as_slice) {
            Some([Piece::Text(name)]) => find(OsStr::from_bytes(name.as_slice())).map(Some),
            Some([]) => Err(NoProgram::NotFound(OsString::new())),
            _ => Ok(None),
        }
    }

    /// The words for this job in the slot of that number. In the line for a shell, what stands in
    /// for an input is quoted.
    pub fn words(&self, job: &CommandJob, slot: &str) -> Vec<OsString> {
        let fill = |word: &Vec<Piece>, quoted: bool| {
            let mut filled = Vec::new();
            for piece in word {
                match piece {
                    Piece::Text(text) => filled.extend_from_slice(text.as_slice()),
                    Piece::Place(place) => {
                        let value = place.value(job, slot);
                        filled.extend_from_slice(&if quoted { quote(&value) } else { value });
                    }
                }
            }
            filled
        };
        if !self.shell {
            return self.words.iter().map(|word| OsString::from_vec(fill(word, false))).collect();
        }
        let words: Vec<_> = self.words.iter().map(|word| fill(word, true)).collect();
        let line = OsString::from_vec(words.join(&b' '));
        vec!["sh".into(), "-c".into(), line]
    }

    /// The command line for this job, as it could be typed into a shell.
    pub fn line(&self, job: &CommandJob, slot: &str) -> Vec<u8> {
        let words = self.words(job, slot);
        if let (true, [_, _, line]) = (self.shell, words.as_slice()) {
            return line.as_bytes().to_vec();
        }
        let words: Vec<_> = words.iter().map(|word| quote(word.as_bytes())).collect();
        words.join(&b' ')
    }
}

impl Place {
    fn value<'a>(self, job: &'a CommandJob, slot: &'a str) -> Cow<'a, [u8]> {
        let path = || job.input.to_path();
        match self {
            Self::Input => job.input.to_bytes(),
            Self::WithoutExtension => {
                let path = path().into_owned();
                let extension = path.extension().map_or(0, |extension| extension.len() + 1);
                let mut bytes = path.into_os_string().into_vec();
                // Of "a.b/", the "b" is the name's extension and not the path's end.
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
                pieces.push(Piece::Place(*place));
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

/// As one word for a shell: as it is, if nothing in it means anything there.
fn quote(word: &[u8]) -> Cow<'_, [u8]> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(byte);
    if !word.is_empty() && word.iter().all(is_plain) {
        return Cow::Borrowed(word);
    }
    let mut quoted = vec![b'\''];
    for byte in word {
        match byte {
            b'\'' => quoted.extend_from_slice(br"'\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    Cow::Owned(quoted)
}

/// The file that a name stands for, as a shell finds it.
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
            // An empty one is the current directory, and there a name needs a "./".
            .map(|dir| if dir.as_os_str().is_empty() { ".".into() } else { dir })
            .map(|dir| dir.join(name))
            .find(|path| can_run(path))
    };
    let name = name.to_owned();
    found.ok_or(if refused { NoProgram::NotExecutable(name) } else { NoProgram::NotFound(name) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tasks::Input;

    fn job(input: &str) -> CommandJob {
        CommandJob { input: Input::from(input), number: 7, id: 0, limit: None }
    }

    fn words(template: &str, input: &str) -> Vec<String> {
        let template = Template::new(template.split(' ').map(OsString::from), false);
        let words = template.words(&job(input), "2");
        words.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn each_place_stands_for_its_part_of_the_input() {
        let places = |input| words("{} {.} {/} {//} {#} {%}", input);
        assert_eq!(places("a/b.c.gz"), ["a/b.c.gz", "a/b.c", "b.c.gz", "a", "7", "2"]);
        assert_eq!(places("plain"), ["plain", "plain", "plain", ".", "7", "2"]);
        assert_eq!(places("/x"), ["/x", "/x", "x", "/", "7", "2"]);
        assert_eq!(
            places("d.d/.hidden"),
            ["d.d/.hidden", "d.d/.hidden", ".hidden", "d.d", "7", "2"]
        );
        assert_eq!(places("a.b/"), ["a.b/", "a.b/", "a.b", ".", "7", "2"]);
        assert_eq!(places("/"), ["/", "/", "/", "/", "7", "2"]);
        assert_eq!(places(".."), ["..", "..", "..", ".", "7", "2"]);
    }

    #[test]
    fn an_input_is_one_word_whatever_is_in_it_and_is_appended_where_it_has_no_place() {
        assert_eq!(words("echo", "a b\n'c"), ["echo", "a b\n'c"]);
        assert_eq!(words("mv {} {/}.old-{}", "x/y"), ["mv", "x/y", "y.old-x/y"]);
        assert_eq!(words("echo {#}", "x"), ["echo", "7"], "another place is one too");
        assert_eq!(words("echo { {x} {}", "{.}"), ["echo", "{", "{x}", "{.}"]);
    }

    #[test]
    fn in_a_shell_an_input_is_one_word_too() {
        let template = Template::new(["gzip -c {} >".into(), "{.}.gz".into()], true);
        let words = template.words(&job("it's.$HOME"), "1");
        assert_eq!(words, ["sh", "-c", "gzip -c 'it'\\''s.$HOME' > 'it'\\''s'.gz"]);
    }

    #[test]
    fn a_line_can_be_typed_again() {
        let line = |words: &[&str], input| {
            let template = Template::new(words.iter().map(OsString::from), false);
            String::from_utf8(template.line(&job(input), "1")).unwrap()
        };
        assert_eq!(line(&["gzip", "-k"], "a/b.txt"), "gzip -k a/b.txt");
        assert_eq!(line(&["echo", "a b"], "it's"), r"echo 'a b' 'it'\''s'");
        assert_eq!(line(&["echo", ""], "$x"), "echo '' '$x'");
    }

    #[test]
    fn a_program_is_found_as_a_shell_finds_it_or_its_absence_told() {
        let program = |word: &str| Template::new([OsString::from(word)], false).program();
        assert!(program("sh").unwrap().unwrap().ends_with("sh"));
        assert_eq!(program("/bin/sh").unwrap(), Some("/bin/sh".into()));
        assert_eq!(program("{}").unwrap(), None);
        assert!(matches!(program("no-such-program"), Err(NoProgram::NotFound(_))));
        assert!(matches!(program("/nowhere/at/all"), Err(NoProgram::NotFound(_))));
        assert!(matches!(program("/etc/passwd"), Err(NoProgram::NotExecutable(_))));
        assert!(matches!(program("/etc"), Err(NoProgram::NotExecutable(_))));
        assert!(matches!(program(""), Err(NoProgram::NotFound(_))));
    }
}
