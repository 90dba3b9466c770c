//! Bounds the stack that a nested value uses while it is encoded or decoded: an overflow of the stack
//! kills the process, an error costs one task.
//!
//! What counts is the stack and not the number of levels: a level takes from 100 bytes to some KiB,
//! depending on the type and on optimisation. The measure is the address of a local variable, which costs
//! one comparison for each compound value.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::harden;

/// The most that decoding may use. Measured on `enum Json { Null, Arr(Vec<Json>) }`: a level takes
/// 1,150 bytes without optimisation. Half a MiB of stack holds it and what the program has used before.
pub const DECODE: usize = 384 << 10;

/// The most that encoding may use. It is less than [`DECODE`], since decoding the same value takes more:
/// what can't be decoded on a small stack is to fail where it is made. A level of the same type takes
/// 690 bytes without optimisation, so that 280 levels pass; `serde_json` reads 128.
pub const ENCODE: usize = 192 << 10;

/// Up to here, nothing is asked of the system: each thread has that much.
const SHALLOW: usize = 16 << 10;

/// Stays free at the stack's end, for what runs between two checks.
const RESERVE: usize = 64 << 10;

thread_local! {
    /// Where the outermost value of this thread begins, zero outside of one: a value that is encoded
    /// within another, as `SelfDescribing` is, must not start to count anew.
    static BASE: Cell<usize> = const { Cell::new(0) };
}

/// The value is nested too deeply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is nested so deeply that a small stack could not hold its decoding: send it flat, for example as a list of nodes that name each other by index"
)]
pub struct TooDeep;

/// Measures the stack from where it is made.
#[derive(Debug)]
pub struct Depth {
    base: usize,
    /// No check passes below this address.
    floor: usize,
    budget: usize,
    is_outermost: bool,
    /// It belongs to one thread's stack.
    _thread: PhantomData<*const ()>,
}

/// An address in the caller's stack frame.
#[inline(always)]
fn here() -> usize {
    let local = 0u8;
    (&raw const local).addr()
}

impl Depth {
    /// Starts to measure, unless that has been started further out in this thread.
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

    /// Checks that the caller may go deeper.
    ///
    /// # Errors
    ///
    /// When the budget is used up, or the thread's stack nearly.
    #[inline(always)]
    pub fn check(&mut self) -> Result<(), TooDeep> {
        let here = here();
        if here >= self.floor { Ok(()) } else { self.check_deep(here) }
    }

    /// Whether more has been used than every value may use.
    pub fn is_deep(&self) -> bool {
        self.floor != self.base.saturating_sub(SHALLOW)
    }

    /// How much the caller may use, whatever the budget.
    pub fn left(&self) -> usize {
        let here = here();
        match harden::stack().filter(|stack| stack.contains(&here)) {
            Some(stack) => here.saturating_sub(stack.start + RESERVE),
            None => self.budget.saturating_sub(self.base.saturating_sub(here)),
        }
    }

    #[cold]
    fn check_deep(&mut self, here: usize) -> Result<(), TooDeep> {
        self.floor = self.base.saturating_sub(self.budget);
        // A base outside of the thread's stack is on a stack of the program's own.
        if let Some(stack) = harden::stack().filter(|stack| stack.contains(&self.base)) {
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

    /// How far down it goes until the check fails.
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
    fn the_budget_is_what_may_be_used_and_the_end_of_a_small_stack_comes_first() {
        let large = with_stack(8 << 20, || descend(&mut Depth::new(DECODE)));
        assert!(large > SHALLOW / 1024 && large <= DECODE / 256, "{large}");
        with_stack(RESERVE + (64 << 10), || {
            // The C library may hand out a larger stack that it has kept.
            let size = harden::stack().unwrap().len();
            let levels = descend(&mut Depth::new(64 << 20));
            assert!(levels > 0 && levels < (size - RESERVE) / 256, "{levels}");
        });
    }

    #[test]
    fn a_value_within_another_does_not_start_to_count_anew() {
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
