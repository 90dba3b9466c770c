//! `wordcount`: the lines, words and bytes of a file, as `wc` counts them.
//!
//! A word depends on the locale, as in `wc` of GNU coreutils 9.1: white space separates words, a
//! word contains something printable, and bytes that are not characters are ignored.

use std::path::Path;
use std::str;

use super::ctype::{Class, Locale};
use super::files::read_blocks;
use super::job::Job;
use super::output::{Column, Output};
use super::task::{Options, Takes, Task};

/// The counts of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Line feeds.
    pub(crate) lines: u64,
    /// Words.
    pub(crate) words: u64,
    /// Bytes.
    pub(crate) bytes: u64,
}

/// Counts a file, block by block.
pub(crate) fn count(path: &Path) -> Result<Counts, String> {
    let mut counter = Counter::new(Locale::of_environment());
    read_blocks(path, |block| counter.take(block))?;
    Ok(counter.finish())
}

/// The task's descriptor.
pub(crate) static TASK: Task = Task {
    name: "wordcount",
    summary: "the lines, words and bytes of a file, as wc prints them",
    takes: Takes::Files,
    default_inputs: &[],
    input: Column::FILE,
    columns: &[Column::number("lines", 9), Column::number("words", 9), Column::number("bytes", 11)],
    options: Options { out: false, to: &[], points: None, seed: None },
    run,
    output_name: None,
};

fn run(job: Job) -> Result<Output, String> {
    let counts = count(&job.input.to_path())?;
    Ok(vec![counts.lines.into(), counts.words.into(), counts.bytes.into()])
}

/// The state between two blocks.
struct Counter<'a> {
    counts: Counts,
    locale: &'a Locale,
    in_word: bool,
    /// The start of a character whose end is in the next block; at most 3 bytes.
    rest: Vec<u8>,
}

impl<'a> Counter<'a> {
    fn new(locale: &'a Locale) -> Self {
        Self { counts: Counts::default(), locale, in_word: false, rest: Vec::new() }
    }

    fn take(&mut self, block: &[u8]) {
        self.counts.bytes += block.len() as u64;
        if !self.locale.is_utf8() {
            self.single_bytes(block);
        } else if self.rest.is_empty() {
            self.utf8(block);
        } else {
            // Copies a block only if a character crosses its start.
            let mut joined = std::mem::take(&mut self.rest);
            joined.extend_from_slice(block);
            self.utf8(&joined);
        }
    }

    fn finish(mut self) -> Counts {
        self.note(Class::Space);
        self.counts
    }

    fn single_bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.counts.lines += u64::from(byte == b'\n');
            self.note(self.locale.class_of_byte(byte));
        }
    }

    fn utf8(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            for character in chunk.valid().chars() {
                match u8::try_from(character) {
                    Ok(byte) if byte.is_ascii() => self.single_bytes(&[byte]),
                    _ => self.note(self.locale.class_of_char(character)),
                }
            }
            // At the end of a block, a character may continue in the next one.
            if chunks.peek().is_none() && is_cut_off(chunk.invalid()) {
                self.rest = chunk.invalid().to_vec();
            }
        }
    }

    fn note(&mut self, class: Class) {
        match class {
            Class::Space if self.in_word => {
                self.in_word = false;
                self.counts.words += 1;
            }
            Class::Printable => self.in_word = true,
            Class::Space | Class::Neither => {}
        }
    }
}

/// Whether more bytes could complete these to a character.
fn is_cut_off(bytes: &[u8]) -> bool {
    matches!(str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}

#[cfg(test)]
#[cfg(not(miri))] // which has no C library to ask for the locale
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::ffi::CStr;

    const C: &CStr = c"C";
    const UTF8: &CStr = c"C.UTF-8";

    /// Counts it in blocks of every small size, which must not matter.
    fn counted(content: &[u8], locale: &CStr) -> [u64; 3] {
        let locale = Locale::named(locale);
        let in_blocks_of = |size: usize| {
            let mut counter = Counter::new(&locale);
            content.chunks(size).for_each(|block| counter.take(block));
            let counts = counter.finish();
            [counts.lines, counts.words, counts.bytes]
        };
        let whole = in_blocks_of(content.len().max(1));
        for size in 1..8 {
            assert_eq!(in_blocks_of(size), whole, "in blocks of {size}");
        }
        whole
    }

    #[test]
    fn words_are_parted_by_white_space() {
        for locale in [C, UTF8] {
            assert_eq!(counted(b"", locale), [0, 0, 0]);
            assert_eq!(counted(b"one", locale), [0, 1, 3]);
            assert_eq!(counted(b"one two\nthree\n", locale), [2, 3, 14]);
            assert_eq!(counted(b" \t a\r\n\x0b\x0cb  ", locale), [1, 2, 11]);
        }
    }

    #[test]
    fn what_cannot_be_printed_makes_no_word() {
        // The figures are those of wc under LC_ALL=C and under LANG=C.UTF-8.
        let content = b"a\xc2\xa0b \xe2\x80\x83c\xff\xfe d \x01 \xe3\x80\x80x\xe2\x80\x8by\n\x01\n";
        assert_eq!(counted(content, C), [2, 4, 27]);
        assert_eq!(counted(content, UTF8), [2, 5, 27]);
        assert_eq!(counted(b"\xff \xfe \xf0\x9f\x98", UTF8), [0, 0, 7]);
        assert_eq!(counted("é ü\u{301} \u{301} \u{e000}".as_bytes(), UTF8), [0, 4, 14]);
        assert_eq!(counted("\u{378} \u{2028} \u{85}".as_bytes(), UTF8), [0, 0, 9]);
    }
}
