//! Makes one input of several, for commands that take many arguments.

use std::env;
use std::os::unix::ffi::OsStrExt;

use rustix::process::{Resource, getrlimit};

use crate::tasks::Strings;
use crate::tasks::command::ValueCost;

/// The length of a command unless another is asked for. As with xargs: longer ones save little, as
/// starting a program takes much less time than so many arguments keep it busy.
const DEFAULT_LENGTH: usize = 128 << 10;

/// What Linux allows at most, whatever the limit of the stack is.
const MAX_LENGTH: usize = 6 << 20;

/// What a worker adds to the environment, and what the kernel puts beside the arguments.
const RESERVE: usize = 8 << 10;

/// A pointer to each argument, and its end.
const PER_ARGUMENT: usize = 9;

/// With a shell, each value is assigned to a variable by a script, which is one argument, and those
/// are limited to 128 KiB.
const MAX_SHELL_VALUES: usize = 1500;

/// How many inputs go into one.
#[derive(Clone, Debug)]
pub(super) struct PackRule {
    most: usize,
    /// The length of the values with all that is repeated for each; none without a limit.
    length: Option<usize>,
    cost: ValueCost,
    /// Over how many commands the last inputs are spread.
    spread: usize,
}

impl PackRule {
    /// Exactly so many, and the last one has what is left.
    pub(super) fn of(most: usize) -> Self {
        Self { most, length: None, cost: ValueCost::default(), spread: 1 }
    }

    /// As many as fit into a command, and at most `most`, spread evenly over the workers.
    pub(super) fn fitting(
        most: Option<usize>,
        length: Option<usize>,
        cost: ValueCost,
        workers: usize,
    ) -> Self {
        let stack = getrlimit(Resource::Stack).current;
        let allowed =
            stack.map_or(MAX_LENGTH, |stack| usize::try_from(stack / 4).unwrap_or(MAX_LENGTH));
        let variables = env::vars_os();
        let variables = variables
            .map(|(name, value)| name.as_bytes().len() + value.as_bytes().len() + 2 + PER_ARGUMENT);
        let taken = variables.sum::<usize>() + cost.rest + RESERVE;
        let allowed = allowed.clamp(DEFAULT_LENGTH, MAX_LENGTH).saturating_sub(taken);
        let asked = length.unwrap_or(DEFAULT_LENGTH).saturating_sub(cost.rest);
        let in_shell =
            if cost.in_shell { MAX_SHELL_VALUES / cost.places.max(1) } else { usize::MAX };
        Self {
            most: most.unwrap_or(usize::MAX).min(in_shell).max(1),
            length: Some(asked.min(allowed)),
            cost,
            spread: workers.max(1),
        }
    }

    /// Returns how many inputs a command has, if it is always as many.
    pub(super) fn exact(&self) -> Option<usize> {
        self.length.is_none().then_some(self.most)
    }

    fn length_of(&self, value: &[u8]) -> usize {
        self.cost.places * (value.len() + PER_ARGUMENT) + self.cost.around
    }

    /// Returns how many of the first ones fit, at least one.
    fn fit(&self, queue: &Strings) -> usize {
        let Some(length) = self.length else { return self.most.min(queue.len()) };
        let mut left = length;
        let fit = queue.iter().take(self.most).take_while(|value| {
            let rest = left.checked_sub(self.length_of(value));
            left = rest.unwrap_or(left);
            rest.is_some()
        });
        fit.count().clamp(1, self.most)
    }
}

/// Inputs that wait to be one.
#[derive(Debug)]
pub(super) struct Packer {
    rule: PackRule,
    queue: Strings,
    /// The length of those in the queue.
    length: usize,
    /// At the end of the inputs, how many go into each.
    share: Option<usize>,
}

impl Packer {
    pub(super) fn new(rule: PackRule) -> Self {
        Self { rule, queue: Strings::default(), length: 0, share: None }
    }

    /// Returns the number of inputs that were read and are in no pack yet.
    pub(super) fn waiting(&self) -> u64 {
        self.queue.len() as u64
    }

    /// Makes the next one of what `read` appends: one input, or none at their end.
    pub(super) fn next(&mut self, mut read: impl FnMut(&mut Strings)) -> Option<Strings> {
        let rule = &self.rule;
        let count = rule.most.saturating_mul(rule.spread);
        let length = rule.length.map(|length| length.saturating_mul(rule.spread));
        while self.share.is_none()
            && self.queue.len() < count
            && length.is_none_or(|length| self.length < length)
        {
            let before = self.queue.len();
            read(&mut self.queue);
            match self.queue.get(before) {
                Some(value) => self.length += rule.length_of(value),
                None => self.share = Some(self.queue.len().div_ceil(rule.spread)),
            }
        }
        if self.queue.len() == 0 {
            return None;
        }
        let fit = rule.fit(&self.queue);
        // One that does not fit alone fails when it starts, which says so.
        let take = self.share.map_or(fit, |share| fit.min(share.max(1)));
        let pack = self.queue.take_front(take);
        self.length -= pack.iter().map(|value| rule.length_of(value)).sum::<usize>();
        Some(pack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(rule: PackRule, count: usize) -> Vec<usize> {
        let mut left = count;
        let mut read = |queue: &mut Strings| {
            if left > 0 {
                left -= 1;
                queue.push(b"four");
            }
        };
        let mut packer = Packer::new(rule);
        let mut sizes = Vec::new();
        while let Some(pack) = packer.next(&mut read) {
            sizes.push(pack.len());
        }
        assert_eq!(packer.length, 0);
        sizes
    }

    #[test]
    fn a_number_of_inputs_is_exact_and_the_last_pack_has_the_rest() {
        assert_eq!(packed(PackRule::of(2), 5), [2, 2, 1]);
        assert!(packed(PackRule::of(2), 0).is_empty());
    }

    #[test]
    fn as_many_as_fit_are_spread_evenly_over_the_workers() {
        let cost = ValueCost { places: 1, around: 0, rest: 0, in_shell: false };
        let rule = |length, most, workers| PackRule {
            spread: workers,
            ..PackRule::fitting(most, Some(length), cost.clone(), workers)
        };
        assert_eq!(packed(rule(1000, None, 2), 5), [3, 2]);
        assert_eq!(packed(rule(1000, None, 4), 3), [1, 1, 1]);
        assert_eq!(packed(rule(1000, Some(2), 2), 5), [2, 2, 1]);
        // 13 bytes each: three fit. More than the workers take at once go out full.
        assert_eq!(packed(rule(39, None, 2), 10), [3, 3, 2, 2]);
        assert_eq!(packed(rule(1, None, 2), 3), [1, 1, 1], "one that is too long goes alone");
        let all: usize =
            packed(PackRule::fitting(None, None, cost.clone(), 3), 100_000).iter().sum();
        assert_eq!(all, 100_000);
    }
}
