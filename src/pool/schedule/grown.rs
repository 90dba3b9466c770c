//! A list that grows while other threads read it. Elements are never moved or removed.

use std::ops::Index;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Parts of 1, 2, 4, … elements: enough for the workers of thousands of hosts.
const PARTS: usize = 24;

/// A list that grows at its end. One thread may grow it at a time, while any number read it.
#[derive(Debug)]
pub(crate) struct Grown<T> {
    parts: [OnceLock<Box<[T]>>; PARTS],
    /// How many elements there are.
    count: AtomicUsize,
}

/// Returns the part of an element, and its place there.
fn place(index: usize) -> (usize, usize) {
    let part = (index + 1).ilog2();
    (part as usize, index + 1 - (1 << part))
}

impl<T: Default> Grown<T> {
    pub(crate) fn with(count: usize) -> Self {
        let this = Self::default();
        this.grow(count);
        this
    }

    /// Grows the list to `count` default elements.
    ///
    /// # Panics
    ///
    /// If these are more than 16,777,215.
    pub(crate) fn grow(&self, count: usize) {
        for part in 0..PARTS {
            if count >= 1 << part {
                let new = || (0..1usize << part).map(|_| T::default()).collect();
                self.parts[part].get_or_init(new);
            }
        }
        assert!(count < 1 << PARTS, "{count} elements");
        // After the parts, so that a thread that sees the number sees the elements.
        self.count.fetch_max(count, Ordering::Release);
    }
}

impl<T> Grown<T> {
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.count()).map(|index| &self[index])
    }
}

impl<T> Default for Grown<T> {
    fn default() -> Self {
        Self { parts: [const { OnceLock::new() }; PARTS], count: AtomicUsize::new(0) }
    }
}

impl<T> Index<usize> for Grown<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        let (part, at) = place(index);
        // A part is there for every index that is less than the count.
        match self.parts.get(part).and_then(OnceLock::get) {
            Some(part) => &part[at],
            None => panic!("element {index} of {}", self.count()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn elements_stay_where_they_are_while_the_list_grows() {
        let list: Grown<AtomicU64> = Grown::with(3);
        list[2].store(7, Relaxed);
        let first = &raw const list[2];
        std::thread::scope(|scope| {
            scope.spawn(|| (4..9000).for_each(|count| list.grow(count)));
            scope.spawn(|| {
                while list.count() < 8999 {
                    assert_eq!(list.iter().map(|it| it.load(Relaxed)).sum::<u64>(), 7);
                }
            });
        });
        assert_eq!((list.count(), &raw const list[2]), (8999, first));
        list.grow(5);
        assert_eq!(list.count(), 8999, "it never shrinks");
    }
}
