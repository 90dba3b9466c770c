//! Moves what a preload function has built into huge pages. A fork copies an entry for each page, and so the end of a
//! process frees one: beside 400 MB in small pages a fork takes 10 ms and an exit 12, in huge pages 0.2 and 0.2 (2 cores,
//! Linux 6.18).
//!
//! It must be done before the first fork: afterwards the pages are shared, and a copy of them would be one more in memory.
//! The kernel copies 2 MiB in 0.6 ms, and in 5 ms where it has to make room first. So the time is limited, and the
//! largest stretches of memory come first.
//!
//! Allocators could be told to use huge pages from the start. The C library's has a setting for it
//! (`glibc.malloc.hugetlb`), but version 2.36 compares what it reads with bytes that it has not read, and may ignore it.

use std::ops::Range;
use std::time::{Duration, Instant};

/// Fewer are not worth the effort: each saves 0.1 ms of a worker's start and end.
const FEWEST: usize = 32;

/// The shortest and the longest time that this may take, whatever the preload function took.
const LIMITS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];

/// When the kernel has refused so many huge pages in a row, it has none left.
const MOST_REFUSALS: usize = 8;

/// Moves this process's own memory into huge pages, as far as the system allows and all of a huge page is in use. What
/// is not moved stays as it is. Takes about as long as the preload function did, at most.
pub(super) fn collapse(preloaded: Duration) {
    let deadline = Instant::now() + preloaded.clamp(LIMITS[0], LIMITS[1]);
    let Some(size) = size() else { return };
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    let mut ranges: Vec<_> = maps.lines().filter_map(anonymous).collect();
    ranges.sort_by_key(|range| std::cmp::Reverse(range.len()));
    let whole = ranges.iter().flat_map(|range| {
        (range.start.next_multiple_of(size)..range.end)
            .step_by(size)
            .filter(|at| at + size <= range.end)
    });
    let whole: Vec<_> = whole.collect();
    if whole.len() < FEWEST {
        return;
    }
    let mut refusals = 0;
    for start in whole {
        if refusals == MOST_REFUSALS || Instant::now() >= deadline {
            return;
        }
        if is_resident(start, size) {
            refusals = if collapse_one(start, size) { 0 } else { refusals + 1 };
        }
    }
}

/// Returns the size of a huge page in bytes, unless the administrator has turned them off.
fn size() -> Option<usize> {
    let read = |name: &str| {
        std::fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{name}")).ok()
    };
    if read("enabled")?.contains("[never]") {
        return None;
    }
    read("hpage_pmd_size")?.trim().parse().ok().filter(|size: &usize| size.is_power_of_two())
}

/// Returns the addresses of a line of `/proc/self/maps`, if that memory is private, writable, and of no file.
fn anonymous(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let range = address(start)?..address(end)?;
    let (mode, inode, name) = (fields.next()?, fields.nth(2)?, fields.next());
    let is_own = name.is_none_or(|name| name == "[heap]" || name.starts_with("[anon"));
    (mode == "rw-p" && inode == "0" && is_own).then_some(range)
}

/// Whether all of this memory has pages. Where it has not, a huge page would take more memory.
fn is_resident(start: usize, size: usize) -> bool {
    let mut pages = vec![0_u8; size.div_ceil(rustix::param::page_size())];
    // SAFETY: the kernel writes a byte for each page, and checks the addresses.
    let result = unsafe { libc::mincore(start as *mut _, size, pages.as_mut_ptr()) };
    result == 0 && pages.iter().all(|page| page & 1 == 1)
}

/// Moves this memory into one huge page. Returns whether the kernel has.
fn collapse_one(start: usize, size: usize) -> bool {
    // SAFETY: the memory keeps its content and its addresses. The kernel checks them.
    unsafe { libc::madvise(start as *mut _, size, libc::MADV_COLLAPSE) == 0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_private_writable_memory_of_no_file_is_moved() {
        let heap = "555e20000000-555e20021000 rw-p 00000000 00:00 0      [heap]";
        assert_eq!(anonymous(heap), Some(0x555e_2000_0000..0x555e_2002_1000));
        assert!(anonymous("7f0000000000-7f0000200000 rw-p 00000000 00:00 0 ").is_some());
        for other in [
            "7f0000000000-7f0000200000 r--p 00000000 00:00 0 ",
            "7f0000000000-7f0000200000 rw-s 00000000 00:01 77 /memfd:procpool (deleted)",
            "7f0000000000-7f0000200000 rw-p 00000000 08:01 77 /usr/lib/libc.so",
            "7ffc00000000-7ffc00200000 rw-p 00000000 00:00 0 [stack]",
            "",
        ] {
            assert_eq!(anonymous(other), None, "{other}");
        }
    }

    #[test]
    fn memory_keeps_its_content_and_what_is_not_used_stays_unused() {
        let Some(size) = size() else { return };
        let bytes: Vec<u8> = (0..40 * size).map(|at| (at % 251) as u8).collect();
        let unused: Vec<u8> = vec![0; 40 * size];
        collapse(Duration::from_secs(10));
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
        let first = (unused.as_ptr() as usize).next_multiple_of(size);
        assert!(!is_resident(first, size), "it was never written, and so it has no pages");
    }
}
