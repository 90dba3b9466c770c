//! Puts what comes in any order back into the order of the inputs, where that is wanted.

use std::collections::BTreeMap;

/// What came before its turn.
pub(super) struct Order<T> {
    /// The number whose turn it is; none where everything is let through as it comes.
    next: Option<u64>,
    early: BTreeMap<u64, T>,
}

impl<T> Order<T> {
    /// In the order of the numbers, from 0 and without gaps.
    pub(super) fn of_inputs() -> Self {
        Self { next: Some(0), early: BTreeMap::new() }
    }

    /// In the order in which they come.
    pub(super) fn of_arrival() -> Self {
        Self { next: None, early: BTreeMap::new() }
    }

    /// Whether it would be let through now.
    pub(super) fn is_turn(&self, number: u64) -> bool {
        self.next.is_none_or(|next| next == number)
    }

    /// Gives what came before its turn to `show`, in order, and lets through from now on what comes:
    /// some numbers will never come.
    pub(super) fn release<E>(&mut self, show: impl FnMut(T) -> Result<(), E>) -> Result<(), E> {
        self.next = None;
        std::mem::take(&mut self.early).into_values().try_for_each(show)
    }

    /// Takes one in, and gives each whose turn it is now to `show`.
    pub(super) fn pass<E>(
        &mut self,
        number: u64,
        item: T,
        mut show: impl FnMut(T) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(next) = &mut self.next else { return show(item) };
        if number != *next {
            self.early.insert(number, item);
            return Ok(());
        }
        *next += 1;
        show(item)?;
        while let Some(item) = self.early.remove(next) {
            *next += 1;
            show(item)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn passed(mut order: Order<u64>, numbers: &[u64]) -> Vec<u64> {
        let mut shown = Vec::new();
        for &number in numbers {
            let show = |number| {
                shown.push(number);
                Ok::<(), ()>(())
            };
            order.pass(number, number, show).unwrap();
        }
        shown
    }

    #[test]
    fn each_is_shown_as_soon_as_all_before_it_are() {
        assert_eq!(passed(Order::of_inputs(), &[2, 0, 3, 1, 5, 4]), [0, 1, 2, 3, 4, 5]);
        assert!(passed(Order::of_inputs(), &[1, 2, 3]).is_empty());
        assert_eq!(passed(Order::of_inputs(), &[1, 0]), [0, 1]);
    }

    #[test]
    fn or_as_they_come() {
        assert_eq!(passed(Order::of_arrival(), &[2, 0, 3, 1]), [2, 0, 3, 1]);
    }
}
