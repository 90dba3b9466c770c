//! The memory of a call's results, into which drivers copy numbers straight from their workers' lanes.
//!
//! The caller of a `map` of numbers owns the memory, a [`Numbers`]. Its job shares a [`Destination`] of it with the
//! drivers. Each item's number has a place of its own, and an item is with one driver at a time, so no two write to
//! one place. The memory is zeroed at first, and any bytes are a number: what nobody has written is a zero, not
//! undefined.
//!
//! A driver may still hold the job when the caller is done. So writes are counted, and before the caller takes or
//! frees the memory, it closes the destination and waits for the last write.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use procpool_worker::bulk;
use procpool_worker::prefault::Prefault;

/// Set in [`Destination::writers`] once it is closed.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// Where the results of a call go.
#[derive(Debug)]
pub(crate) struct Destination {
    start: NonNull<u8>,
    /// Bytes of a result, and how many results have a place.
    width: usize,
    items: u64,
    /// How many threads are writing, and [`CLOSED`].
    writers: AtomicUsize,
}

// SAFETY: the memory is written to between `enter` and `leave` only, while its owner waits for those who write.
unsafe impl Send for Destination {}
// SAFETY: as above. Two threads never write to one place: an item is with one driver.
unsafe impl Sync for Destination {}

impl Destination {
    /// Returns the bytes of a result.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Whether so many items from `first` on have places.
    pub(crate) fn holds(&self, first: u64, items: u32) -> bool {
        first.checked_add(items.into()).is_some_and(|end| end <= self.items)
    }

    /// Calls `write` with the place of so many items from `first` on. Returns false, without a call, if they have no
    /// places, or the owner of the memory has it back.
    ///
    /// # Safety
    ///
    /// No other thread has these items.
    pub(crate) unsafe fn write(&self, first: u64, items: u32, write: impl FnOnce(*mut u8)) -> bool {
        if !self.holds(first, items) {
            return false;
        }
        if self.writers.fetch_add(1, Ordering::Acquire) & CLOSED != 0 {
            self.writers.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        // SAFETY: the place is inside of the memory, which its owner keeps until `writers` is 0.
        write(unsafe { self.start.add(first as usize * self.width) }.as_ptr());
        self.writers.fetch_sub(1, Ordering::Release);
        true
    }

    /// Ends all writes. Waits for those that have begun: each takes microseconds.
    fn close(&self) {
        self.writers.fetch_or(CLOSED, Ordering::Relaxed);
        while self.writers.load(Ordering::Acquire) != CLOSED {
            std::thread::yield_now();
        }
    }
}

/// Zeroed memory for numbers, which drivers fill.
#[derive(Debug)]
pub(crate) struct Numbers<R> {
    start: NonNull<R>,
    items: usize,
    shared: Arc<Destination>,
    prefault: Prefault,
}

impl<R> Numbers<R> {
    /// Returns memory for the results of so many items. `None` if an `R` is no number, or memory is refused.
    pub(crate) fn new(items: usize) -> Option<Self> {
        let width = bulk::fixed_width::<R>()?;
        let layout = Layout::array::<R>(items).ok().filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout has a size.
        let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }.cast::<R>())?;
        let shared = Destination {
            start: start.cast(),
            width,
            items: items as u64,
            writers: AtomicUsize::new(0),
        };
        let prefault = Prefault::of_memory(start.as_ptr().cast(), layout.size());
        Some(Self { start, items, shared: Arc::new(shared), prefault })
    }

    pub(crate) fn destination(&self) -> &Arc<Destination> {
        &self.shared
    }

    /// Faults in the memory of the first `items` items, of which those that were not covered before are with no
    /// driver yet.
    pub(crate) fn prefault(&mut self, items: u64) {
        let bytes = items.min(self.items as u64) as usize * size_of::<R>();
        // SAFETY: the memory is this value's own, and no driver has the items whose pages are new.
        unsafe { self.prefault.ensure_memory(self.start.as_ptr().cast(), bytes) };
    }

    /// Writes results that were not written to their places. Returns false if they have none.
    pub(crate) fn put(&mut self, first: u64, results: &[R]) -> bool {
        let Ok(items) = u32::try_from(results.len()) else { return false };
        // SAFETY: these results were delivered to the caller's thread, so no driver has their items. `R` is a number,
        // of as many bytes as it takes in the array.
        unsafe {
            self.shared.write(first, items, |place| {
                place.cast::<R>().copy_from_nonoverlapping(results.as_ptr(), results.len());
            })
        }
    }

    /// Returns the first `items` results. Those that nobody has written are zeros.
    pub(crate) fn into_vec(self, items: usize) -> Vec<R> {
        let this = std::mem::ManuallyDrop::new(self);
        this.shared.close();
        // SAFETY: the counter and the prefaulter are read once, and `this` is not dropped. The memory was allocated
        // as an array of `self.items`. Any bytes are a number, and all were zeroed.
        unsafe {
            drop(std::ptr::read(&this.shared));
            Vec::from_raw_parts(this.start.as_ptr(), items.min(this.items), this.items)
        }
    }
}

impl<R> Drop for Numbers<R> {
    fn drop(&mut self) {
        self.shared.close();
        // SAFETY: nobody writes any more. The memory was allocated as an array of `items`; numbers need no drop.
        drop(unsafe { Vec::from_raw_parts(self.start.as_ptr(), 0, self.items) });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn threads_write_to_their_places_and_nothing_is_written_after_the_end() {
        assert!(Numbers::<String>::new(3).is_none() && Numbers::<bool>::new(3).is_none());
        assert!(Numbers::<u64>::new(0).is_none() && Numbers::<u64>::new(usize::MAX).is_none());
        let mut numbers = Numbers::<u64>::new(100_000).unwrap();
        numbers.prefault(u64::MAX);
        let destination = Arc::clone(numbers.destination());
        assert!(!destination.holds(99_999, 2) && !destination.holds(u64::MAX, 1));
        std::thread::scope(|scope| {
            for part in 0..4_u64 {
                let destination = &destination;
                scope.spawn(move || {
                    for first in (part * 20_000..(part + 1) * 20_000).step_by(10) {
                        // SAFETY: each thread has items of its own.
                        let written = unsafe {
                            destination.write(first, 10, |place| {
                                (0..10).for_each(|n| {
                                    place.cast::<u64>().add(n).write(first + n as u64)
                                });
                            })
                        };
                        assert!(written);
                    }
                });
            }
        });
        assert!(numbers.put(80_000, &[7; 100]) && !numbers.put(99_950, &[7; 100]));
        let numbers = numbers.into_vec(80_200);
        assert!(numbers[..80_000].iter().enumerate().all(|(n, number)| n as u64 == *number));
        assert!(numbers[80_000..80_100].iter().all(|number| *number == 7));
        assert!(numbers[80_100..].iter().all(|number| *number == 0));
        // SAFETY: nobody has them.
        assert!(!unsafe { destination.write(0, 1, |_| panic!("it is closed")) });
    }

    #[test]
    fn memory_that_is_given_up_is_written_no_more() {
        for _ in 0..50 {
            let numbers = Numbers::<u32>::new(50_000).unwrap();
            let destination = Arc::clone(numbers.destination());
            let writes = std::thread::spawn(move || {
                let value = |place: *mut u8| {
                    // SAFETY: the place of one number.
                    unsafe { place.cast::<u32>().write(7) }
                };
                // SAFETY: this thread has all items.
                (0..50_000)
                    .take_while(|first| unsafe { destination.write(*first, 1, value) })
                    .count()
            });
            std::thread::yield_now();
            drop(numbers);
            assert!(writes.join().unwrap() <= 50_000);
        }
    }
}
