//! Room for a large vector that is about to be filled, in large pages where they are to be had: a page
//! fault for each 4 KiB costs about four times what copying them does.
//!
//! But a large page that has to be made by moving others, or that a virtual machine has given back to
//! its host meanwhile, costs more than all of its small ones. Measured under Firecracker with free page
//! reporting: 0.2 ms for one that was in use a moment ago, 6 ms for one that had been free for some
//! seconds, and 1.2 ms for 512 small pages either way, or 0.8 when they are had by one system call. So
//! they are asked for one by one, right before they are filled; after the first that is [slow](SLOW),
//! small ones are. To go on with large ones all the same, since one that has been used is quick the next
//! time, was tried: it made one call in two or three as slow as ten.

use crate::harden::{self, cpu_time};

/// The size of a large page.
const LARGE: usize = 2 << 20;

/// Vectors of less than this are left alone: the allocator mostly has memory for them that has been
/// touched before.
const LEAST: usize = 4 << 20;

/// What the first touch of a large page may take in nanoseconds of CPU time, so that it is no worse than
/// small ones.
const SLOW: u64 = 1_000_000;

/// What is to be asked for of one vector's memory.
#[derive(Debug)]
pub struct Room {
    /// Where the vector begins: it may have been given other memory.
    start: usize,
    /// Where the next large page begins, and where the last one ends.
    next: usize,
    end: usize,
    /// Whether a large page was slow.
    is_slow: bool,
}

impl Room {
    /// An empty vector with room for so many elements.
    pub fn new<T>(count: usize) -> (Vec<T>, Self) {
        Self::of(Vec::with_capacity(count))
    }

    /// As [`new`](Self::new), where there is memory for so many.
    pub(crate) fn try_new<T>(count: usize) -> Option<(Vec<T>, Self)> {
        let mut elements = Vec::new();
        elements.try_reserve_exact(count).ok()?;
        Some(Self::of(elements))
    }

    fn of<T>(elements: Vec<T>) -> (Vec<T>, Self) {
        let bytes = elements.capacity().saturating_mul(size_of::<T>());
        let start = elements.as_ptr().addr();
        let end = if bytes < LEAST { start } else { (start + bytes) / LARGE * LARGE };
        (elements, Self { start, next: start.next_multiple_of(LARGE), end, is_slow: false })
    }

    /// Asks for the pages of the next `count` elements of this vector. Of any other vector, and of one
    /// that has been given other memory or less since, only what it has reserved is touched.
    #[inline]
    pub fn prepare<T>(&mut self, elements: &mut Vec<T>, count: usize) {
        if self.next < self.end {
            self.ask(elements, count);
        }
    }

    #[cold]
    fn ask<T>(&mut self, elements: &mut Vec<T>, count: usize) {
        let start = elements.as_ptr().addr();
        let spare = elements.spare_capacity_mut();
        let (base, full) = (spare.as_mut_ptr().cast::<u8>(), spare.as_ptr().addr());
        let reach = full.saturating_add(count.saturating_mul(size_of::<T>()));
        let reserved = full + size_of_val(spare);
        if start != self.start {
            self.next = self.end;
        }
        while self.next < self.end && self.next < reach {
            let at = self.next;
            self.next += LARGE;
            if at < full {
                continue;
            }
            if at + LARGE > reserved {
                self.next = self.end;
                break;
            }
            let page = base.wrapping_add(at - full);
            if self.is_slow {
                harden::populate(page, LARGE);
                continue;
            }
            let began = cpu_time();
            harden::prefer_huge_page(page, LARGE);
            // SAFETY: the page lies in what the vector has reserved behind its elements, as was just
            // checked against the vector itself. Volatile, since nobody reads it.
            unsafe { page.write_volatile(0) };
            self.is_slow = cpu_time().saturating_sub(began) > SLOW;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_vector_stays_and_what_comes_is_prepared() {
        let count = 5 * LARGE / size_of::<u64>();
        let (mut numbers, mut room) = Room::new::<u64>(count);
        for first in (0..count).step_by(1000) {
            let next = first..count.min(first + 1000);
            room.prepare(&mut numbers, next.len());
            numbers.extend(next.map(|number| number as u64));
        }
        assert!(room.next >= room.end);
        assert!((0..).zip(&numbers).all(|(place, number)| place == *number));
    }

    #[test]
    fn memory_that_a_vector_no_longer_has_is_left_alone() {
        let (mut bytes, mut room) = Room::new::<u8>(64 * LARGE);
        bytes.push(7);
        bytes.shrink_to(2 * LARGE);
        // The allocator may leave it where it was, with the rest unmapped.
        (room.start, room.next) = (bytes.as_ptr().addr(), room.start.next_multiple_of(LARGE));
        room.prepare(&mut bytes, 64 * LARGE);
        assert!(room.next >= room.end && bytes == [7]);
        let (mut other, (_kept, mut room)) = (vec![1u8; 3], Room::new::<u8>(64 * LARGE));
        room.prepare(&mut other, usize::MAX);
        assert!(other == [1; 3]);
    }

    #[test]
    fn a_vector_that_has_moved_or_is_small_is_left_alone() {
        let (mut bytes, mut room) = Room::new::<u8>(2 * LEAST);
        bytes.reserve_exact(64 * LEAST);
        let moved = bytes.as_ptr().addr() != room.start;
        room.prepare(&mut bytes, LEAST);
        assert!(!moved || room.next == room.end);
        let (mut few, mut room) = Room::new::<u8>(100);
        room.prepare(&mut few, 100);
        assert!(room.next >= room.end && few.is_empty());
    }
}
