//! Restores the order of the inputs, where it is asked for.

use std::collections::BTreeMap;

/// Items that came early.
pub(super) struct Order<T> {
    /// The next number in order; none to pass everything on at once.
    next: Option<u64>,
    early: BTreeMap<u64, T>,
}

impl<T> Order<T> {
    /// Creates an order by number, from 0 and without gaps.
    pub(super) fn of_inputs() -> Self {
        Self { next: Some(0), early: BTreeMap::new() }
    }

    /// Creates an order of arrival.
    pub(super) fn of_arrival() -> Self {
        Self { next: None, early: BTreeMap::new() }
    }

    /// Whether an item with this number would pass now.
    pub(super) fn is_turn(&self, number: u64) -> bool {
        self.next.is_none_or(|next| next == number)
    }

    /// Passes the early items to `show` in order, and from now on everything: some numbers will
    /// never come.
    pub(super) fn release<E>(&mut self, show: impl FnMut(T) -> Result<(), E>) -> Result<(), E> {
        self.next = None;
        std::mem::take(&mut self.early).into_values().try_for_each(show)
    }

    /// Adds an item, and passes every item whose turn it is to `show`.
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
