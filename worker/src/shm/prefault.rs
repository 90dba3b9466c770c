//! Pre-faults the memory of large vectors, with huge pages where they are cheap. A page fault per 4 KiB
//! costs about four times as much as copying them.
//!
//! A huge page is expensive if the kernel must move other pages to make it, or if a virtual machine has
//! returned it to its host. Measured under Firecracker with free page reporting: 0.2 ms for a huge page
//! that was in use a moment ago, 6 ms for one that was free for some seconds, 1.2 ms for 512 small pages
//! by page faults, and 0.8 ms for them by one system call. So huge pages are requested one by one, right
//! before they are filled. After the first [slow](SLOW_FAULT_NS) one, small pages are requested instead.
//! Continuing with huge pages after a slow one was tried; it made one call in two or three up to ten
//! times slower.

use crate::shm::sys::{self, cpu_time};

/// Size of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Vectors of fewer bytes are left alone: the allocator mostly has memory for them that was touched
/// before.
const MIN_BYTES: usize = 4 << 20;

/// How long the first touch of a huge page may take, in nanoseconds of CPU time, to be no worse than
/// small pages.
const SLOW_FAULT_NS: u64 = 1_000_000;

/// Which pages of one vector are still to be faulted in.
#[derive(Debug)]
pub struct Prefault {
    /// Where the vector starts: a reallocation moves it.
    start: usize,
    /// Where the next huge page starts, and where the last one ends.
    next: usize,
    end: usize,
    /// Whether a huge page was slow.
    is_slow: bool,
}

impl Prefault {
    /// Returns an empty vector with capacity for `count` elements, and its prefaulter.
    pub fn new<T>(count: usize) -> (Vec<T>, Self) {
        Self::of(Vec::with_capacity(count))
    }

    /// As [`new`](Self::new). Returns `None` if the memory is refused.
    pub(crate) fn try_new<T>(count: usize) -> Option<(Vec<T>, Self)> {
        let mut elements = Vec::new();
        elements.try_reserve_exact(count).ok()?;
        Some(Self::of(elements))
    }

    fn of<T>(elements: Vec<T>) -> (Vec<T>, Self) {
        let bytes = elements.capacity().saturating_mul(size_of::<T>());
        let start = elements.as_ptr().addr();
        let end = if bytes < MIN_BYTES { start } else { (start + bytes) / HUGE_PAGE * HUGE_PAGE };
        (elements, Self { start, next: start.next_multiple_of(HUGE_PAGE), end, is_slow: false })
    }

    /// Returns the prefaulter of memory that is no vector's.
    pub fn of_memory(start: *mut u8, bytes: usize) -> Self {
        let (start, is_small) = (start.addr(), bytes < MIN_BYTES);
        let end = if is_small { start } else { (start + bytes) / HUGE_PAGE * HUGE_PAGE };
        Self { start, next: start.next_multiple_of(HUGE_PAGE), end, is_slow: false }
    }

    /// Faults in the whole huge pages that begin in the first `bytes` bytes of the memory. Each is written to once.
    ///
    /// # Safety
    ///
    /// `start` is that of [`of_memory`](Self::of_memory), and its memory is valid for writes. Nobody else uses the
    /// huge pages that begin in these bytes and did not in those of an earlier call; their content is lost.
    pub unsafe fn ensure_memory(&mut self, start: *mut u8, bytes: usize) {
        let reach = self.start.saturating_add(bytes);
        while self.next < self.end && self.next < reach {
            let page = start.wrapping_add(self.next - self.start);
            self.next += HUGE_PAGE;
            // SAFETY: as the caller promises. The end is that of whole pages.
            unsafe { self.fault_in_page(page) };
        }
    }

    /// Faults in a huge page.
    ///
    /// # Safety
    ///
    /// The page is valid for writes, and nobody else uses its first byte.
    unsafe fn fault_in_page(&mut self, page: *mut u8) {
        if self.is_slow {
            return sys::populate(page, HUGE_PAGE);
        }
        let began = cpu_time();
        sys::prefer_huge_page(page, HUGE_PAGE);
        // SAFETY: as the caller promises. Volatile, because nothing reads it.
        unsafe { page.write_volatile(0) };
        self.is_slow = cpu_time().saturating_sub(began) > SLOW_FAULT_NS;
    }

    /// Faults in the pages of the next `count` elements of this vector. With another vector, or after a
    /// reallocation, it touches only memory that the vector has reserved.
    #[inline]
    pub fn ensure<T>(&mut self, elements: &mut Vec<T>, count: usize) {
        if self.next < self.end {
            self.fault_in(elements, count);
        }
    }

    #[cold]
    fn fault_in<T>(&mut self, elements: &mut Vec<T>, count: usize) {
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
            self.next += HUGE_PAGE;
            if at < full {
                continue;
            }
            if at + HUGE_PAGE > reserved {
                self.next = self.end;
                break;
            }
            let page = base.wrapping_add(at - full);
            // SAFETY: the page lies in the vector's spare capacity, as just checked against the vector
            // itself.
            unsafe { self.fault_in_page(page) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_keeps_its_elements_and_its_next_pages_are_faulted_in() {
        let count = 5 * HUGE_PAGE / size_of::<u64>();
        let (mut numbers, mut prefault) = Prefault::new::<u64>(count);
        for first in (0..count).step_by(1000) {
            let next = first..count.min(first + 1000);
            prefault.ensure(&mut numbers, next.len());
            numbers.extend(next.map(|number| number as u64));
        }
        assert!(prefault.next >= prefault.end);
        assert!((0..).zip(&numbers).all(|(place, number)| place == *number));
    }

    #[test]
    fn memory_that_a_vector_no_longer_has_is_left_alone() {
        let (mut bytes, mut prefault) = Prefault::new::<u8>(64 * HUGE_PAGE);
        bytes.push(7);
        bytes.shrink_to(2 * HUGE_PAGE);
        // The allocator may leave it where it was, with the rest unmapped.
        (prefault.start, prefault.next) =
            (bytes.as_ptr().addr(), prefault.start.next_multiple_of(HUGE_PAGE));
        prefault.ensure(&mut bytes, 64 * HUGE_PAGE);
        assert!(prefault.next >= prefault.end && bytes == [7]);
        let (mut other, (_kept, mut prefault)) =
            (vec![1u8; 3], Prefault::new::<u8>(64 * HUGE_PAGE));
        prefault.ensure(&mut other, usize::MAX);
        assert!(other == [1; 3]);
    }

    #[test]
    fn a_vector_that_has_moved_or_is_small_is_left_alone() {
        let (mut bytes, mut prefault) = Prefault::new::<u8>(2 * MIN_BYTES);
        bytes.reserve_exact(64 * MIN_BYTES);
        let moved = bytes.as_ptr().addr() != prefault.start;
        prefault.ensure(&mut bytes, MIN_BYTES);
        assert!(!moved || prefault.next == prefault.end);
        let (mut few, mut prefault) = Prefault::new::<u8>(100);
        prefault.ensure(&mut few, 100);
        assert!(prefault.next >= prefault.end && few.is_empty());
    }
}
