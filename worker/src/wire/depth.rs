//! Bounds the stack that a nested value uses while it is encoded or decoded. A stack overflow kills the
//! process; an error costs one task.
//!
//! The bound is on bytes of stack, not on levels: a level takes from 100 bytes to some KiB, depending on
//! the type and on optimisation. The measure is the address of a local variable, which costs one
//! comparison per compound value.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::shm::sys;

/// The stack budget for decoding. Measured on `enum Json { Null, Arr(Vec<Json>) }`: a level takes 1,150
/// bytes without optimisation. A stack of half a MiB holds the budget and the program's own frames.
pub const DECODE: usize = 384 << 10;

/// The stack budget for encoding. It is smaller than [`DECODE`], because decoding the same value takes
/// more: a value that can't be decoded on a small stack must fail at its sender. A level of the same type
/// takes 690 bytes without optimisation, so 280 levels pass; `serde_json` reads 128.
pub const ENCODE: usize = 192 << 10;

/// Stack use below which the system is not asked for bounds: every thread has that much.
const SHALLOW: usize = 16 << 10;

/// Bytes kept free at the stack's end, for code between two checks.
const RESERVE: usize = 64 << 10;

thread_local! {
    /// Where the outermost value of this thread starts; zero outside of one. A value encoded within
    /// another, as `SelfDescribing` is, must not restart the measurement.
    static BASE: Cell<usize> = const { Cell::new(0) };
}

/// The value is nested too deeply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "nested so deeply that decoding it could overflow a small stack: send it flat, for example as a list of nodes that name each other by index"
)]
pub struct TooDeep;

/// Measures stack use, from its creation on.
#[derive(Debug)]
pub struct Depth {
    base: usize,
    /// Checks fail below this address.
    floor: usize,
    budget: usize,
    is_outermost: bool,
    /// A value belongs to one thread's stack.
    _thread: PhantomData<*const ()>,
}

/// Returns an address in the caller's stack frame.
#[inline(always)]
fn here() -> usize {
    let local = 0u8;
    (&raw const local).addr()
}

impl Depth {
    /// Starts measuring, unless an outer value on this thread has started already.
    #[inline]
    pub fn new(budget: usize) -> Self {
        let outer = BASE.get();
        let base = if outer == 0 { here() } else { outer };
        BASE.set(base);
        Self {
            base,
            floor: base.saturating_sub(SHALLOW),
            budget,
            is_outermost: outer == 0,
            _thread: PhantomData,
        }
    }

    /// Checks that the caller may recurse further.
    ///
    /// # Errors
    ///
    /// When the budget is used up, or the thread's stack nearly.
    #[inline(always)]
    pub fn check(&mut self) -> Result<(), TooDeep> {
        let here = here();
        if here >= self.floor { Ok(()) } else { self.check_deep(here) }
    }

    /// Returns whether more stack is used than any value may use without a closer check.
    pub fn is_deep(&self) -> bool {
        self.floor != self.base.saturating_sub(SHALLOW)
    }

    /// Returns how much stack the caller may use, whatever the budget.
    pub fn left(&self) -> usize {
        let here = here();
        match sys::stack_bounds().filter(|stack| stack.contains(&here)) {
            Some(stack) => here.saturating_sub(stack.start + RESERVE),
            None => self.budget.saturating_sub(self.base.saturating_sub(here)),
        }
    }

    #[cold]
    fn check_deep(&mut self, here: usize) -> Result<(), TooDeep> {
        self.floor = self.base.saturating_sub(self.budget);
        // A base outside of the thread's stack lies on a stack that the program has switched to.
        if let Some(stack) = sys::stack_bounds().filter(|stack| stack.contains(&self.base)) {
            self.floor = self.floor.max(stack.start + RESERVE);
        }
        if here >= self.floor { Ok(()) } else { Err(TooDeep) }
    }
}

impl Drop for Depth {
    #[inline]
    fn drop(&mut self) {
        if self.is_outermost {
            BASE.set(0);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Recurses until the check fails. Returns the number of levels.
    #[inline(never)]
    fn descend(depth: &mut Depth) -> usize {
        let local = std::hint::black_box([0u8; 256]);
        match depth.check() {
            Ok(()) => descend(depth) + usize::from(local[7] == 0),
            Err(TooDeep) => 0,
        }
    }

    fn with_stack<R: Send + 'static>(size: usize, f: impl FnOnce() -> R + Send + 'static) -> R {
        std::thread::Builder::new().stack_size(size).spawn(f).unwrap().join().unwrap()
    }

    #[test]
    fn depth_is_bounded_by_the_budget_and_by_the_end_of_a_small_stack() {
        let large = with_stack(8 << 20, || descend(&mut Depth::new(DECODE)));
        assert!(large > SHALLOW / 1024 && large <= DECODE / 256, "{large}");
        with_stack(RESERVE + (64 << 10), || {
            // The C library may reuse a larger stack from its cache.
            let size = sys::stack_bounds().unwrap().len();
            let levels = descend(&mut Depth::new(64 << 20));
            assert!(levels > 0 && levels < (size - RESERVE) / 256, "{levels}");
        });
    }

    #[test]
    fn a_value_within_another_does_not_restart_the_measurement() {
        fn nested(levels: usize) -> usize {
            let local = std::hint::black_box([0u8; 256]);
            let mut depth = Depth::new(DECODE);
            match depth.check() {
                Ok(()) => nested(levels + usize::from(local[7] == 0)),
                Err(TooDeep) => levels,
            }
        }
        let levels = with_stack(8 << 20, || nested(0));
        assert!(levels <= DECODE / 256, "{levels}");
        assert_eq!(BASE.get(), 0);
    }
}
