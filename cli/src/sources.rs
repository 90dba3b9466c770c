//! Where the inputs of a run come from, by its arguments.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::blocks::{BlockFiles, BlockRules, Blocks};
use super::combine::{Combination, Listed};
use super::exit::Usage;
use super::input_args::InputArgs;
use super::inputs::{STANDARD_INPUT, Source};
use super::launch::environment::is_launched;
use crate::tasks::command::Replacements;
use crate::tasks::{Bytes, Input, Takes, Task};

/// What the arguments say of all inputs.
pub(super) struct Given {
    pub(super) inputs: Vec<OsString>,
    pub(super) file: Option<PathBuf>,
    pub(super) count: Option<i64>,
    pub(super) null: bool,
    pub(super) delimiter: Option<u8>,
}

impl Given {
    fn end(&self) -> u8 {
        self.delimiter.unwrap_or(if self.null { b'\0' } else { b'\n' })
    }

    /// Refuses inputs from two sources: those of the second must not be ignored silently.
    fn refuse_two(&self) -> Result<()> {
        let read = match (&self.file, self.count) {
            (Some(_), _) => "--input",
            (None, Some(_)) => "--count",
            (None, None) if self.null => "--null (-0)",
            (None, None) if self.delimiter.is_some() => "--delimiter (-d)",
            (None, None) => return Ok(()),
        };
        if self.inputs.is_empty() {
            return Ok(());
        }
        Err(Usage::error(format!(
            "{read} cannot be used with inputs that are arguments: leave out one of them, or put all of \
             them into one list"
        )))
    }

    /// Returns the source that was asked for, if any.
    fn source(self) -> Result<Option<Source>> {
        let end = self.end();
        if !self.inputs.is_empty() {
            return Ok(Some(Source::given(self.inputs.into_iter().map(|it| it.into_vec().into()))));
        }
        if let Some(count) = self.count {
            return Ok(Some(Source::given([Bytes::from(format!("0..{count}").as_str())])));
        }
        Ok(match self.file {
            Some(file) => Some(open(file, end)?),
            None if end != b'\n' => Some(standard_input(end)),
            None => None,
        })
    }
}

/// A source behind a command.
struct Listing {
    linked: bool,
    texts: ListedTexts,
}

enum ListedTexts {
    Given(Vec<OsString>),
    File(PathBuf),
}

/// A command, and what it runs over.
pub(super) struct CommandSource {
    pub(super) words: Vec<OsString>,
    pub(super) source: Source,
    pub(super) takes: Takes,
    pub(super) replacements: Replacements,
    /// The blocks that jobs read, if the input is split.
    pub(super) blocks: Option<BlockFiles>,
}

/// Splits a command from its inputs. Returns where they come from.
pub(super) fn of_command(
    words: Vec<OsString>,
    mut given: Given,
    args: &InputArgs,
) -> Result<CommandSource> {
    let (words, mut listings) = split_command(words)?;
    if let Some(rules) = args.block_rules() {
        return of_blocks(words, &listings, given, rules);
    }
    let mut replacements = Replacements {
        input: args.replace.as_ref().map(|it| it.clone().into_vec()),
        ..Replacements::default()
    };
    let split = args.split()?;
    if let [Listing { linked: false, texts }] = listings.as_mut_slice() {
        match texts {
            ListedTexts::Given(texts) => given.inputs.append(texts),
            ListedTexts::File(file) => {
                if let Some(other) = given.file.replace(std::mem::take(file)) {
                    return Err(Usage::error(format!(
                        "{other:?} and :::: are two lists: leave out --input, or name both after ::::"
                    )));
                }
            }
        }
        listings.clear();
    }
    given.refuse_two()?;
    if listings.is_empty() {
        // A launcher connects the standard input of every run to a pipe.
        if given.count.is_some() && !is_launched() {
            refuse_unread_input()?;
        }
        let takes = if given.count.is_some() { Takes::Numbers } else { Takes::Files };
        let mut source = match given.source()? {
            Some(source) => source,
            None if io::stdin().is_terminal() => {
                return Err(Usage::error(
                    "a command needs inputs: add some after :::, or --input LIST, or pipe them in, \
                     as from: find DIR -type f",
                ));
            }
            None => standard_input(b'\n'),
        };
        let has_columns = split.is_some();
        if let Some(split) = split {
            source = source.splitting(split);
        }
        if args.header.is_some() {
            replacements.names = Some(source.take_names()?);
        }
        if args.max_args.is_some() || args.packs() {
            if has_columns {
                return Err(Usage::error(
                    "-n, -X and -m cannot be used with --colsep or --csv: each line is the input of \
                     one command",
                ));
            }
        } else if !has_columns {
            replacements.values = Some(1);
        }
        return Ok(CommandSource { words, source, takes, replacements, blocks: None });
    }
    if !given.inputs.is_empty() || given.file.is_some() || given.count.is_some() {
        return Err(Usage::error(
            "several sources all follow the command: leave out the inputs before --, --input and \
             --count",
        ));
    }
    if args.max_args.is_some() || args.packs() {
        return Err(Usage::error(
            "-n, -X and -m cannot be used with several sources: each combination is the input of \
             one command",
        ));
    }
    let end = given.end();
    let (mut sources, mut names) = (Vec::new(), Vec::new());
    let mut reads_standard_input = false;
    for Listing { linked, texts } in listings {
        let mut source = match texts {
            ListedTexts::Given(texts) => {
                Source::given(texts.into_iter().map(|text| text.into_vec().into()))
            }
            ListedTexts::File(file) => open(file, end)?,
        };
        if source.is_standard_input() && std::mem::replace(&mut reads_standard_input, true) {
            return Err(Usage::error("standard input can be one of the sources, not two"));
        }
        if let Some(split) = &split {
            source = source.splitting(split.clone());
        }
        if args.header.is_some() {
            names.extend(source.take_names()?);
        }
        let (inputs, feed) = source.stream(Takes::Files);
        let values = |input: Input| -> Vec<Bytes> {
            input.values().into_iter().map(|value| value.into_owned().into()).collect()
        };
        let rows = inputs.map(values).collect();
        if let Some(error) = feed.error() {
            return Err(Usage::error(error.to_owned()));
        }
        sources.push(Listed { rows, linked });
    }
    replacements.values = split.is_none().then_some(sources.len());
    replacements.names = args.header.is_some().then_some(names);
    let source = Source::combined(Combination::new(sources, args.link)?, reads_standard_input);
    Ok(CommandSource { words, source, takes: Takes::Files, replacements, blocks: None })
}

/// Splits the input of a command into blocks.
fn of_blocks(
    words: Vec<OsString>,
    listings: &[Listing],
    given: Given,
    rules: BlockRules,
) -> Result<CommandSource> {
    if !listings.is_empty() || !given.inputs.is_empty() {
        return Err(Usage::error(
            "with --pipe, jobs get blocks of standard input and no other inputs: leave out :::, or --pipe",
        ));
    }
    let (name, reader): (String, Box<dyn Read + Send>) = match given.file {
        Some(path) if path != Path::new("-") => {
            let failed = |error: &dyn std::fmt::Display| {
                Usage::error(format!("failed to read {path:?}: {error}; check --input"))
            };
            let file = File::open(&path).map_err(|error| failed(&error))?;
            if file.metadata().map_err(|error| failed(&error))?.is_dir() {
                return Err(failed(&"it's a directory"));
            }
            (format!("{path:?}"), Box::new(file))
        }
        _ if io::stdin().is_terminal() => {
            return Err(Usage::error(
                "--pipe splits standard input: pipe something in, or name a file with --input",
            ));
        }
        // Without the buffer of `io::stdin`, which is smaller than a block.
        _ => {
            let stdin = io::stdin().as_fd().try_clone_to_owned()?;
            (STANDARD_INPUT.to_owned(), Box::new(File::from(stdin)))
        }
    };
    let blocks = Blocks::new(reader, rules);
    let files = blocks.files();
    let replacements =
        Replacements { has_no_input: true, values: Some(1), ..Replacements::default() };
    let source = Source::blocks(name, blocks);
    Ok(CommandSource { words, source, takes: Takes::Files, replacements, blocks: Some(files) })
}

/// Splits a command into its words and the sources after them.
fn split_command(words: Vec<OsString>) -> Result<(Vec<OsString>, Vec<Listing>)> {
    let is_separator =
        |word: &OsString| [":::", ":::+", "::::", "::::+"].iter().any(|it| word == it);
    let mut listings = Vec::new();
    let end = words.iter().position(is_separator).unwrap_or(words.len());
    let (command, mut rest) = words.split_at(end);
    if command.is_empty() {
        return Err(Usage::error("there is no command between -- and ::: (add one)"));
    }
    while let Some((separator, values)) = rest.split_first() {
        let (values, others) =
            values.split_at(values.iter().position(is_separator).unwrap_or(values.len()));
        rest = others;
        let separator = separator.to_string_lossy();
        if values.is_empty() {
            return Err(Usage::error(format!(
                "there are no inputs after {separator} (add some, or leave it out)"
            )));
        }
        let linked = separator.ends_with('+');
        if separator.starts_with("::::") {
            let files = values.iter().map(|file| ListedTexts::File(file.into()));
            listings.extend(files.map(|texts| Listing { linked, texts }));
        } else {
            listings.push(Listing { linked, texts: ListedTexts::Given(values.to_vec()) });
        }
    }
    Ok((command.to_vec(), listings))
}

/// Refuses `--count` if standard input is a pipe or a file, which it would ignore.
fn refuse_unread_input() -> Result<()> {
    let kind = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|stdin| File::from(stdin).metadata())
        .map(|metadata| metadata.file_type());
    match kind {
        Ok(kind) if kind.is_fifo() || kind.is_file() => Err(Usage::error(
            "--count uses the inputs 0..N and ignores standard input: leave it out to read \
             standard input (-p sets the number of workers), or add '< /dev/null'",
        )),
        _ => Ok(()),
    }
}

/// Where a task's inputs come from.
///
/// A task with default inputs reads standard input only when it is told to. Programs are started
/// with all kinds of standard inputs, among them pipes that no process writes to or closes: reading
/// unasked would hang there.
pub(super) fn of_task(task: &Task, given: Given) -> Result<Source> {
    given.refuse_two()?;
    if given.count.is_some() && task.takes != Takes::Numbers {
        let message = format!("the task '{}' takes files, not --count", task.name);
        return Err(Usage::error(message));
    }
    if let Some(source) = given.source()? {
        return Ok(source);
    }
    if !task.default_inputs.is_empty() {
        return Ok(Source::given(task.default_inputs.iter().copied().map(Bytes::from)));
    }
    if io::stdin().is_terminal() {
        return Err(Usage::error(format!(
            "the task '{}' needs inputs: pass files, or --input LIST, or pipe names in, as from: \
             find DIR -type f",
            task.name
        )));
    }
    Ok(standard_input(b'\n'))
}

fn standard_input(end: u8) -> Source {
    let stdin = io::stdin();
    let is_file = stdin
        .as_fd()
        .try_clone_to_owned()
        .and_then(|stdin| File::from(stdin).metadata())
        .is_ok_and(|metadata| metadata.is_file());
    let (name, reader) = (STANDARD_INPUT, BufReader::new(stdin));
    let source = if is_file { Source::file(name, reader) } else { Source::live(name, reader) };
    source.ending_with(end)
}

/// Opens a list; - is standard input.
fn open(path: PathBuf, end: u8) -> Result<Source> {
    if path == Path::new("-") {
        return Ok(standard_input(end));
    }
    let failed = |error: &dyn std::fmt::Display| {
        Usage::error(format!("failed to read the inputs from {path:?}: {error}; check --input"))
    };
    let file = File::open(&path).map_err(|error| failed(&error))?;
    let kind = file.metadata().map_err(|error| failed(&error))?.file_type();
    if kind.is_dir() {
        return Err(failed(&"it's a directory, not a list of inputs"));
    }
    let (name, reader) = (format!("{path:?}"), BufReader::new(file));
    Ok(if kind.is_file() {
        // It can be read twice: once to count what's in it, once to work on it.
        Source::file(name, reader).readable_again_at(path).ending_with(end)
    } else {
        Source::live(name, reader).ending_with(end)
    })
}
