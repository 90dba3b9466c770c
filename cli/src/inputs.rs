//! The sources of inputs. Inputs stream one at a time, so a million lines are never in memory.
//!
//! A line or an argument is one input, none (a blank line), or many: a range of numbers is counted
//! through and never expanded.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::blocks::Blocks;
use super::combine::Combination;
use super::exit::Usage;
use super::pack::{PackRule, Packer};
use crate::tasks::{Bytes, Input, Strings, Takes};
use rand::seq::SliceRandom;

/// Where inputs come from.
pub(super) struct Source {
    texts: Texts,
    /// A path at which the same lines can be read again.
    again: Option<PathBuf>,
    /// Whether reading may block until another process writes.
    live: bool,
    /// The byte that ends a line: a line feed or NUL.
    end: u8,
    /// How a line has several values.
    split: Option<Split>,
    /// How many inputs make one.
    pack: Option<PackRule>,
    /// Whether some of standard input was read before the run.
    took_stdin: bool,
    /// Whether the inputs come in random order.
    shuffles: bool,
}

/// How a line has several values.
#[derive(Clone, Debug)]
pub(super) enum Split {
    /// Between them stands this.
    Columns(Vec<u8>),
    /// It is a record of CSV, with this between its fields.
    Csv(u8),
}

impl Split {
    fn values(&self, line: &Bytes) -> Result<Vec<Bytes>, csv::Error> {
        let line = line.as_slice();
        Ok(match self {
            Self::Columns(separator) => {
                let (mut values, mut rest) = (Vec::new(), line);
                while let Some(at) = find(rest, separator) {
                    values.push(rest[..at].to_vec().into());
                    rest = &rest[at + separator.len()..];
                }
                values.push(rest.to_vec().into());
                values
            }
            Self::Csv(separator) => {
                let record = csv_reader(line, *separator).into_byte_records().next();
                record.transpose()?.map_or_else(|| vec![Bytes::default()], |record| fields(&record))
            }
        })
    }
}

/// Where this first is; nothing is nowhere.
fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    if wanted.is_empty() {
        return None;
    }
    text.windows(wanted.len()).position(|window| window == wanted)
}

fn csv_reader<R: io::Read>(reader: R, separator: u8) -> csv::Reader<R> {
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true).delimiter(separator).from_reader(reader)
}

fn fields(record: &csv::ByteRecord) -> Vec<Bytes> {
    record.iter().map(|field| field.to_vec().into()).collect()
}

/// The name of standard input, in errors.
pub(super) const STANDARD_INPUT: &str = "standard input";

enum Texts {
    /// All of them, as arguments.
    Given(std::vec::IntoIter<Bytes>),
    /// Lines of a reader, read on demand.
    Lines { name: String, reader: Box<dyn BufRead + Send> },
    /// Records of CSV.
    Records { name: String, records: csv::ByteRecordsIntoIter<Box<dyn BufRead + Send>> },
    /// Combinations of several sources.
    Combined(Combination),
    /// Blocks of a stream. Their numbers are the inputs.
    Blocks { name: String, blocks: Blocks },
}

/// What was read of a source.
enum Read {
    Text(Bytes),
    Several(Vec<Bytes>),
    Block(i64),
}

impl Source {
    pub(super) fn given(texts: impl IntoIterator<Item = Bytes>) -> Self {
        let texts: Vec<_> = texts.into_iter().collect();
        Self::of(Texts::Given(texts.into_iter()))
    }

    fn of(texts: Texts) -> Self {
        Self {
            texts,
            again: None,
            live: false,
            end: b'\n',
            split: None,
            pack: None,
            took_stdin: false,
            shuffles: false,
        }
    }

    /// All combinations of several sources, of which one may have been standard input.
    pub(super) fn combined(combination: Combination, took_stdin: bool) -> Self {
        Self { took_stdin, ..Self::of(Texts::Combined(combination)) }
    }

    /// Lines of a file. Reading them never blocks for long.
    pub(super) fn file(name: impl Into<String>, reader: impl BufRead + Send + 'static) -> Self {
        Self::of(Texts::Lines { name: name.into(), reader: Box::new(reader) })
    }

    /// Lines of a pipe or a terminal. Reading them may block.
    pub(super) fn live(name: impl Into<String>, reader: impl BufRead + Send + 'static) -> Self {
        Self { live: true, ..Self::file(name, reader) }
    }

    /// Blocks of a stream, each for one job.
    pub(super) fn blocks(name: impl Into<String>, blocks: Blocks) -> Self {
        Self { live: true, ..Self::of(Texts::Blocks { name: name.into(), blocks }) }
    }

    /// Whether the inputs come from standard input.
    pub(super) fn is_standard_input(&self) -> bool {
        match &self.texts {
            Texts::Lines { name, .. }
            | Texts::Records { name, .. }
            | Texts::Blocks { name, .. } => name == STANDARD_INPUT,
            Texts::Given(_) | Texts::Combined(_) => false,
        }
    }

    /// Whether some of standard input was read before the run.
    pub(super) fn took_standard_input(&self) -> bool {
        self.took_stdin
    }

    /// Splits each line into values.
    pub(super) fn splitting(mut self, split: Split) -> Self {
        if let Split::Csv(separator) = split
            && let Texts::Lines { name, reader } = self.texts
        {
            // A record may have several lines.
            let records = csv_reader(reader, separator).into_byte_records();
            self.texts = Texts::Records { name, records };
            self.again = None;
        }
        Self { split: Some(split), ..self }
    }

    /// Takes the inputs in random order.
    pub(super) fn shuffling(self, shuffles: bool) -> Self {
        Self { shuffles, ..self }
    }

    /// Makes one input of several, for one command.
    pub(super) fn packing(self, rule: PackRule) -> Self {
        Self { pack: Some(rule), ..self }
    }

    /// Reads the first line, which names the values.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub(super) fn take_names(&mut self) -> anyhow::Result<Vec<Bytes>> {
        self.took_stdin |= self.is_standard_input();
        self.again = None;
        let read = self.texts.next(self.end, Takes::Files).map_err(|error| {
            Usage::error(format!("failed to read the header of the inputs: {error}"))
        })?;
        match (read, &self.split) {
            (None, _) => Err(Usage::error("--header needs a first line with names: it is missing")),
            (Some(Read::Text(line)), Some(split)) => {
                split.values(&line).map_err(|error| Usage::error(error.to_string()))
            }
            (Some(Read::Text(name)), None) => Ok(vec![name]),
            (Some(Read::Several(names)), _) => Ok(names),
            // Blocks have no header.
            (Some(Read::Block(_)), _) => Ok(Vec::new()),
        }
    }

    /// Allows the lines to be counted in the file at this path.
    pub(super) fn readable_again_at(self, path: PathBuf) -> Self {
        Self { again: Some(path), ..self }
    }

    /// Sets the byte that ends a line.
    pub(super) fn ending_with(self, end: u8) -> Self {
        Self { end, ..self }
    }

    /// Whether reading may block until another process writes.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// Returns the number of inputs, where it is known beforehand. Reads a file to count its lines.
    pub(super) fn count(&self, takes: Takes) -> Option<u64> {
        self.count_to(takes, u64::MAX)
    }

    /// Returns the number of inputs, where it is known beforehand. Reads at most `most` inputs of a
    /// file.
    pub(super) fn count_to(&self, takes: Takes, most: u64) -> Option<u64> {
        let per_pack = match &self.pack {
            None => 1,
            Some(rule) => rule.exact()? as u64,
        };
        let count = self.count_singly(takes, most.saturating_mul(per_pack))?;
        Some(count.div_ceil(per_pack))
    }

    fn count_singly(&self, takes: Takes, most: u64) -> Option<u64> {
        match (&self.texts, &self.again) {
            (Texts::Given(texts), _) => Some(
                texts.as_slice().iter().map(|text| Expanded::of(text.clone(), takes).len()).sum(),
            ),
            (Texts::Lines { .. }, Some(path)) => {
                let mut reader = BufReader::new(File::open(path).ok()?);
                let mut count: u64 = 0;
                while let Some(line) = read_input(&mut reader, self.end, takes).ok()? {
                    count = count.saturating_add(Expanded::of(line, takes).len());
                    if count >= most {
                        break;
                    }
                }
                Some(count)
            }
            (Texts::Combined(combination), _) => Some(combination.total()),
            (Texts::Lines { .. } | Texts::Records { .. } | Texts::Blocks { .. }, _) => None,
        }
    }

    /// Returns the inputs in order, and a handle to stop them and to ask for errors.
    pub(super) fn stream(self, takes: Takes) -> (Inputs, Feed) {
        let feed = Feed::default();
        let Self { texts, end, live, split, pack, shuffles, .. } = self;
        let shuffled = if shuffles { Shuffled::Unread } else { Shuffled::No };
        let pack = pack.map(Packer::new);
        let range = None;
        (Inputs { texts, end, takes, live, split, pack, range, shuffled, feed: feed.clone() }, feed)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("again", &self.again).finish_non_exhaustive()
    }
}

/// Iterates over the inputs.
pub(super) struct Inputs {
    texts: Texts,
    end: u8,
    takes: Takes,
    live: bool,
    split: Option<Split>,
    pack: Option<Packer>,
    /// The rest of a range.
    range: Option<RangeInclusive<i64>>,
    shuffled: Shuffled,
    feed: Feed,
}

/// Whether the inputs come in random order, which must all be known first.
enum Shuffled {
    No,
    Unread,
    Read(std::vec::IntoIter<Input>),
}

impl Iterator for Inputs {
    type Item = Input;

    fn next(&mut self) -> Option<Input> {
        let Some(mut packer) = self.pack.take() else { return self.next_single() };
        let read = |pack: &mut Strings| {
            self.next_single().iter().for_each(|input| pack.push(&input.to_bytes()));
        };
        let pack = packer.next(read);
        self.pack = Some(packer);
        if self.feed.stopped() && self.feed.error().is_none() {
            return None;
        }
        pack.map(Input::Several)
    }
}

impl Inputs {
    fn next_single(&mut self) -> Option<Input> {
        if let Shuffled::Unread = self.shuffled {
            let mut all: Vec<_> = std::iter::from_fn(|| self.next_in_order()).collect();
            all.shuffle(&mut rand::rng());
            self.shuffled = Shuffled::Read(all.into_iter());
        }
        match &mut self.shuffled {
            // After an error, those before it are used, as without this option.
            Shuffled::Read(_) if self.feed.stopped() && self.feed.error().is_none() => None,
            Shuffled::Read(inputs) => inputs.next(),
            _ => self.next_in_order(),
        }
    }

    fn next_in_order(&mut self) -> Option<Input> {
        loop {
            if self.feed.stopped() {
                return None;
            }
            if let Some(number) = self.range.as_mut().and_then(Iterator::next) {
                return Some(Input::Number(number));
            }
            let text = match (self.next_text()?, &self.split) {
                (Read::Several(values), _) => return Some(Input::Several(values.iter().collect())),
                (Read::Block(number), _) => return Some(Input::Number(number)),
                (Read::Text(text), None) => text,
                (Read::Text(text), Some(split)) => match split.values(&text) {
                    Ok(values) => return Some(Input::Several(values.iter().collect())),
                    Err(error) => {
                        self.feed.break_off(format!("failed to read an input: {error}"));
                        return None;
                    }
                },
            };
            match Expanded::of(text, self.takes) {
                Expanded::One(input) => return Some(input),
                Expanded::Range(range) => self.range = Some(range),
            }
        }
    }

    fn next_text(&mut self) -> Option<Read> {
        self.texts.next(self.end, self.takes).unwrap_or_else(|error| {
            let name = match &self.texts {
                Texts::Lines { name, .. }
                | Texts::Records { name, .. }
                | Texts::Blocks { name, .. } => name,
                Texts::Given(_) | Texts::Combined(_) => "the inputs",
            };
            self.feed.break_off(format!("failed to read {name}: {error}"));
            None
        })
    }
}

impl Texts {
    fn next(&mut self, end: u8, takes: Takes) -> io::Result<Option<Read>> {
        match self {
            Self::Given(texts) => Ok(texts.next().map(Read::Text)),
            Self::Lines { reader, .. } => Ok(read_input(reader, end, takes)?.map(Read::Text)),
            Self::Records { records, .. } => {
                let record = records.next().transpose()?;
                Ok(record.map(|record| Read::Several(fields(&record))))
            }
            Self::Combined(combination) => Ok(combination.next().map(Read::Several)),
            Self::Blocks { blocks, .. } => Ok(blocks.next()?.map(Read::Block)),
        }
    }
}

/// Counts the remaining inputs if they were stopped and are available.
impl Drop for Inputs {
    fn drop(&mut self) {
        if !self.feed.stopped() {
            return;
        }
        if self.live {
            return self.feed.0.rest_unknown.store(true, Ordering::Relaxed);
        }
        let deadline = Instant::now() + COUNTING;
        let mut left = self.range.as_ref().map_or(0, |range| Expanded::Range(range.clone()).len());
        left = left.saturating_add(self.pack.as_ref().map_or(0, Packer::waiting));
        if let Shuffled::Read(inputs) = &self.shuffled {
            left = left.saturating_add(inputs.len() as u64);
        }
        while let Some(text) = self.next_text() {
            left = left.saturating_add(match text {
                Read::Text(text) if self.split.is_none() => Expanded::of(text, self.takes).len(),
                Read::Text(_) | Read::Several(_) | Read::Block(_) => 1,
            });
            if Instant::now() > deadline {
                self.feed.0.rest_unknown.store(true, Ordering::Relaxed);
                break;
            }
        }
        self.feed.0.left.store(left, Ordering::Relaxed);
    }
}

/// How long the remaining inputs may be counted: the user wants the run to end.
const COUNTING: Duration = Duration::from_millis(500);

/// What other threads know of the inputs while the pool reads them.
#[derive(Clone, Debug, Default)]
pub(super) struct Feed(Arc<FeedState>);

#[derive(Debug, Default)]
struct FeedState {
    stopped: AtomicBool,
    error: OnceLock<String>,
    /// Inputs that were not read when reading stopped.
    left: AtomicU64,
    /// Whether there may be more than those.
    rest_unknown: AtomicBool,
}

impl Feed {
    /// Stops reading.
    pub(super) fn stop(&self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }

    /// Returns how many inputs were never read, and whether there may be more. Known once the
    /// inputs have been dropped.
    pub(super) fn left(&self) -> (u64, bool) {
        (self.0.left.load(Ordering::Relaxed), self.0.rest_unknown.load(Ordering::Relaxed))
    }

    /// Why reading failed, if it did.
    pub(super) fn error(&self) -> Option<&str> {
        self.0.error.get().map(String::as_str)
    }

    pub(super) fn stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Relaxed)
    }

    fn break_off(&self, error: String) {
        let _ = self.0.error.set(error); // the first one is the cause
        self.stop();
    }
}

/// What a line or an argument stands for.
#[derive(Debug, PartialEq)]
enum Expanded {
    One(Input),
    Range(RangeInclusive<i64>),
}

impl Expanded {
    fn of(text: Bytes, takes: Takes) -> Self {
        match takes {
            Takes::Files => Self::One(Input::Text(text)),
            Takes::Numbers => match range(&text.to_text()) {
                Some(range) => Self::Range(range),
                None => Self::One(Input::Text(text)),
            },
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::One(_) => 1,
            Self::Range(range) if range.is_empty() => 0,
            Self::Range(range) => range.end().abs_diff(*range.start()).saturating_add(1),
        }
    }
}

/// Parses `a..b` or `a..=b`, as Rust does. A range that runs backwards is not a range: the task
/// then refuses it by name, where an empty range would be skipped silently.
fn range(text: &str) -> Option<RangeInclusive<i64>> {
    let (start, end) = text.trim().split_once("..")?;
    let (end, inclusive) = match end.strip_prefix('=') {
        Some(end) => (end, true),
        None => (end, false),
    };
    let (start, end) = (i64::from_str(start).ok()?, i64::from_str(end).ok()?);
    match inclusive {
        _ if start > end => None,
        true => Some(start..=end),
        false if start == end => Some(RangeInclusive::new(1, 0)),
        false => Some(start..=end - 1),
    }
}

/// Reads the next input of a list. Skips blank lines, but no input that ends with NUL: only
/// programs write those, deliberately.
fn read_input(reader: &mut impl BufRead, end: u8, takes: Takes) -> io::Result<Option<Bytes>> {
    loop {
        let line = read_line(reader, end)?;
        let is_blank = line.as_ref().is_some_and(|line| match takes {
            // The name of a file may consist of spaces.
            Takes::Files => line.as_slice().is_empty(),
            Takes::Numbers => line.as_slice().trim_ascii().is_empty(),
        });
        if !is_blank || end != b'\n' {
            return Ok(line);
        }
    }
}

/// Reads the next line without its end, which may be CR LF. Returns none at the end of the file.
fn read_line(reader: &mut impl BufRead, end: u8) -> io::Result<Option<Bytes>> {
    let without_end = |line: &[u8]| {
        let line = line.strip_suffix(&[end]).unwrap_or(line);
        let line = if end == b'\n' { line.strip_suffix(b"\r").unwrap_or(line) } else { line };
        Bytes::from(line.to_vec()) // no larger than it is: it waits for its result, among many
    };
    // Most lines are in the buffer as a whole.
    let buffered = match reader.fill_buf() {
        Ok(buffer) => memchr::memchr(end, buffer).map(|at| (without_end(&buffer[..at]), at + 1)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
        Err(error) => return Err(error),
    };
    if let Some((line, length)) = buffered {
        reader.consume(length);
        return Ok(Some(line));
    }
    let mut line = Vec::new();
    let length = reader.read_until(end, &mut line)?;
    Ok((length > 0).then(|| without_end(&line)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn texts(source: Source, takes: Takes) -> Vec<String> {
        source.stream(takes).0.map(|input| input.to_text().into_owned()).collect()
    }

    #[test]
    fn a_line_is_an_input_whatever_its_end() {
        let lines = || Source::file("", &b"a b\r\n\n\r\n c\nlast"[..]);
        assert_eq!(texts(lines(), Takes::Files), ["a b", " c", "last"]);
        let blank = || Source::file("", &b" \n\t\r\n"[..]);
        assert_eq!(texts(blank(), Takes::Files), [" ", "\t"]);
        assert!(texts(blank(), Takes::Numbers).is_empty());
    }

    #[test]
    fn an_input_that_ends_with_nul_may_have_any_other_byte() {
        let source = Source::file("", &b"a\nb\0\0c\r\n\0last"[..]).ending_with(0);
        assert_eq!(texts(source, Takes::Files), ["a\nb", "", "c\r\n", "last"]);
    }

    #[test]
    fn names_that_are_no_text_come_through_byte_for_byte() {
        let (mut inputs, _) = Source::file("", &b"\xff\xfe,\"\n"[..]).stream(Takes::Files);
        assert_eq!(inputs.next(), Some(Input::Text(b"\xff\xfe,\"".to_vec().into())));
    }

    #[test]
    fn a_range_is_counted_through() {
        let given = |text: &str| Source::given([Bytes::from(text)]);
        assert_eq!(texts(given("2..5"), Takes::Numbers), ["2", "3", "4"]);
        assert_eq!(texts(given(" -1..=1 "), Takes::Numbers), ["-1", "0", "1"]);
        assert!(texts(given("7..7"), Takes::Numbers).is_empty());
        assert_eq!(texts(given("7..=7"), Takes::Numbers), ["7"]);
        // Not ranges, so the task refuses them; nor is the name of a file a range.
        assert_eq!(texts(given("5..0"), Takes::Numbers), ["5..0"]);
        assert_eq!(texts(given("0..x"), Takes::Numbers), ["0..x"]);
        assert_eq!(texts(given("0..5"), Takes::Files), ["0..5"]);
    }

    #[test]
    fn a_range_of_everything_is_as_cheap_as_a_short_one() {
        let all = || Source::given([Bytes::from("-9223372036854775808..=9223372036854775807")]);
        assert_eq!(all().count(Takes::Numbers), Some(u64::MAX));
        assert_eq!(all().stream(Takes::Numbers).0.next(), Some(Input::Number(i64::MIN)));
    }

    #[test]
    fn what_can_be_counted_beforehand_is() {
        let given = Source::given(["0..5", "", "9"].map(Bytes::from));
        assert_eq!(given.count(Takes::Numbers), Some(7), "an empty argument is one too");
        assert_eq!(texts(given, Takes::Numbers).len(), 7);
        assert_eq!(Source::file("", &b"1\n"[..]).count(Takes::Numbers), None);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        std::fs::write(&path, "0..5\n\n7\n").unwrap();
        let file = BufReader::new(File::open(&path).unwrap());
        let source = Source::file("", file).readable_again_at(path);
        assert_eq!(source.count(Takes::Numbers), Some(6));
        assert_eq!(source.count_to(Takes::Numbers, 3), Some(5), "no line after the first is read");
        assert_eq!(texts(source, Takes::Numbers).len(), 6, "counting took nothing away");
    }

    #[test]
    fn a_feed_that_is_stopped_gives_no_more() {
        let (mut inputs, feed) = Source::given([Bytes::from("0..5")]).stream(Takes::Numbers);
        assert!(inputs.next().is_some());
        feed.stop();
        assert_eq!(inputs.next(), None);
        assert_eq!(feed.error(), None);
    }

    #[test]
    fn a_reader_that_fails_ends_the_inputs_with_its_reason() {
        struct Broken;
        impl io::Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("unplugged"))
            }
        }
        let (mut inputs, feed) =
            Source::file("the disk", BufReader::new(Broken)).stream(Takes::Files);
        assert_eq!(inputs.next(), None);
        assert_eq!(feed.error(), Some("failed to read the disk: unplugged"));
    }
}
