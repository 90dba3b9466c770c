//! Several sources: every combination of their values, or those of linked sources side by side.

use super::exit::Usage;
use crate::tasks::Bytes;

/// All values of a source. Each is a row of columns, of which there is one without a separator.
pub(super) type Rows = Vec<Vec<Bytes>>;

/// One source.
pub(super) struct Listed {
    pub(super) rows: Rows,
    /// Whether its values go side by side with those of the source before.
    pub(super) linked: bool,
}

/// The combinations, in the order of nested loops over the sources: the last one turns fastest.
pub(super) struct Combination {
    groups: Vec<Rows>,
    /// The next one, as an index for each group; none at the end.
    next: Option<Vec<usize>>,
}

impl Combination {
    /// Combines sources. With `wraps`, all are linked, and a shorter one starts again at its end.
    pub(super) fn new(sources: Vec<Listed>, wraps: bool) -> anyhow::Result<Self> {
        let mut groups: Vec<Rows> = Vec::new();
        if wraps {
            let longest = sources.iter().map(|source| source.rows.len()).max().unwrap_or(0);
            let longest = if sources.iter().any(|it| it.rows.is_empty()) { 0 } else { longest };
            groups.push(vec![Vec::new(); longest]);
        }
        for Listed { rows, linked } in sources {
            match groups.last_mut() {
                Some(group) if wraps => {
                    for (row, more) in group.iter_mut().zip(rows.into_iter().cycle()) {
                        row.extend(more);
                    }
                }
                Some(group) if linked => {
                    group.truncate(rows.len());
                    group.iter_mut().zip(rows).for_each(|(row, more)| row.extend(more));
                }
                None if linked => {
                    return Err(Usage::error(
                        ":::+ and ::::+ link a source to the one before: use ::: for the first",
                    ));
                }
                _ => groups.push(rows),
            }
        }
        let has_some = groups.iter().all(|group| !group.is_empty());
        Ok(Self { next: has_some.then(|| vec![0; groups.len()]), groups })
    }

    /// Returns the number of combinations from the start.
    pub(super) fn total(&self) -> u64 {
        self.groups.iter().fold(1, |count: u64, group| count.saturating_mul(group.len() as u64))
    }
}

impl Iterator for Combination {
    type Item = Vec<Bytes>;

    fn next(&mut self) -> Option<Vec<Bytes>> {
        let indexes = self.next.as_mut()?;
        let values =
            indexes.iter().zip(&self.groups).flat_map(|(index, rows)| rows[*index].clone());
        let values = values.collect();
        let mut is_last = true;
        for (index, rows) in indexes.iter_mut().zip(&self.groups).rev() {
            *index += 1;
            if *index < rows.len() {
                is_last = false;
                break;
            }
            *index = 0;
        }
        if is_last {
            self.next = None;
        }
        Some(values)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn combined(sources: &[(&str, bool)], wraps: bool) -> Vec<String> {
        let listed = sources.iter().map(|(values, linked)| Listed {
            rows: values.split_whitespace().map(|value| vec![value.into()]).collect(),
            linked: *linked,
        });
        let all = Combination::new(listed.collect(), wraps).unwrap();
        let count = all.total();
        let all: Vec<_> = all
            .map(|row| row.iter().map(|it| it.to_text().into_owned()).collect::<String>())
            .collect();
        assert_eq!(all.len() as u64, count);
        all
    }

    #[test]
    fn every_combination_comes_once_and_the_last_source_turns_fastest() {
        assert_eq!(combined(&[("a b", false), ("1 2", false)], false), ["a1", "a2", "b1", "b2"]);
        assert!(combined(&[("a b", false), ("", false)], false).is_empty());
    }

    #[test]
    fn linked_sources_go_side_by_side() {
        let linked = [("a b c", false), ("1 2", true), ("x y", false)];
        assert_eq!(
            combined(&linked, false),
            ["a1x", "a1y", "b2x", "b2y"],
            "as long as the shortest"
        );
        assert_eq!(combined(&[("a b c", false), ("1 2", false)], true), ["a1", "b2", "c1"]);
        assert!(combined(&[("a b c", false), ("", false)], true).is_empty());
        let first = Listed { rows: Vec::new(), linked: true };
        assert!(Combination::new(vec![first], false).is_err());
    }
}
