//! Byte strings in one block: the inputs of a packed command, and the words of a command line. There
//! may be tens of thousands, and memory of its own for each would cost more than all else that is
//! done with it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::bytes::Bytes;

/// Byte strings in order, one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Strings {
    /// All of them, which travel as one block.
    text: Bytes,
    /// Where each ends in the text.
    ends: Vec<usize>,
}

impl Strings {
    /// Appends a string.
    pub(crate) fn push(&mut self, string: &[u8]) {
        self.extend(string);
        self.end();
    }

    /// Appends to the string that the next [`end`](Self::end) completes.
    pub(crate) fn extend(&mut self, part: &[u8]) {
        self.text.push_all(part);
    }

    /// Completes a string of all that was appended since the one before.
    pub(crate) fn end(&mut self) {
        self.ends.push(self.text.as_slice().len());
    }

    /// Returns the number of strings.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns the strings in order.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|index| &self.text.as_slice()[self.range(index)])
    }

    /// Returns a string.
    pub(crate) fn get(&self, index: usize) -> Option<&[u8]> {
        (index < self.len()).then(|| &self.text.as_slice()[self.range(index)])
    }

    /// Returns the first string.
    pub(crate) fn first(&self) -> Option<&[u8]> {
        self.get(0)
    }

    fn range(&self, index: usize) -> Range<usize> {
        index.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[index]
    }

    /// Removes the first `count` strings and returns them.
    pub(crate) fn take_front(&mut self, count: usize) -> Self {
        let Some(last) = count.min(self.len()).checked_sub(1) else { return Self::default() };
        let length = self.ends[last];
        let ends = self.ends.drain(..=last).collect();
        self.ends.iter_mut().for_each(|end| *end -= length);
        Self { text: self.text.take_front(length), ends }
    }

    /// Returns all with this byte between them.
    pub(crate) fn joined(&self, between: u8) -> Vec<u8> {
        self.iter().collect::<Vec<_>>().join(&between)
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut all = Self::default();
        strings.into_iter().for_each(|string| all.push(string.as_ref()));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_come_back_as_they_went_in_and_are_taken_from_the_front() {
        let mut strings: Strings = ["a b", "", "c"].into_iter().collect();
        strings.extend(b"d");
        strings.extend(b"e");
        strings.end();
        assert_eq!(strings.iter().collect::<Vec<_>>(), [&b"a b"[..], b"", b"c", b"de"]);
        assert_eq!((strings.get(3), strings.get(4)), (Some(&b"de"[..]), None));
        assert_eq!(strings.joined(b' '), b"a b  c de");

        let front = strings.take_front(2);
        assert_eq!(front, ["a b", ""].into_iter().collect());
        assert_eq!(strings, ["c", "de"].into_iter().collect());
        assert_eq!(strings.take_front(0), Strings::default());
        assert_eq!(strings.take_front(9).len(), 2);
        assert_eq!(strings, Strings::default());
    }
}
