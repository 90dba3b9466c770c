//! `--halt`: when a run stops before the end of its inputs.

/// When a run stops before the end of its inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Halt {
    /// Kills running jobs instead of waiting for them.
    pub(super) now: bool,
    /// Which jobs count.
    pub(super) outcome: Outcome,
    amount: Amount,
}

/// How jobs have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Failed,
    Succeeded,
    Done,
}

/// How many jobs stop a run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Amount {
    Count(u64),
    /// A share of the finished jobs, between 0 and 1.
    Share(f64),
    /// More than there are.
    Never,
}

impl Outcome {
    /// Returns the verb of a message.
    pub(super) fn past(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Succeeded => "succeeded",
            Self::Done => "ended",
        }
    }
}

impl Halt {
    /// Returns how many of `ended` jobs, of which `failed` have failed, count.
    pub(super) fn counted(&self, failed: u64, ended: u64) -> u64 {
        match self.outcome {
            Outcome::Failed => failed,
            Outcome::Succeeded => ended.saturating_sub(failed),
            Outcome::Done => ended,
        }
    }

    /// Whether that is enough.
    pub(super) fn is_due(&self, failed: u64, ended: u64) -> bool {
        /// With fewer jobs, a share means little: the first job to fail may be all that has
        /// finished.
        const MIN_COUNT: u64 = 3;
        let counted = self.counted(failed, ended);
        match self.amount {
            Amount::Count(count) => counted >= count,
            Amount::Share(share) => counted >= MIN_COUNT && counted as f64 >= share * ended as f64,
            Amount::Never => false,
        }
    }
}

/// Parses `--halt`, in the spelling of GNU parallel. Without now or soon, running jobs end.
pub(super) fn halt(text: &str) -> Result<Halt, String> {
    let parse = || {
        if text == "never" {
            return Some(Halt { now: false, outcome: Outcome::Failed, amount: Amount::Never });
        }
        let (when, rule) = text.split_once(',').unwrap_or(("soon", text));
        let now = match when {
            "now" => true,
            "soon" => false,
            _ => return None,
        };
        let (outcome, amount) = rule.split_once('=')?;
        let outcome = match outcome {
            "fail" => Outcome::Failed,
            "success" => Outcome::Succeeded,
            "done" => Outcome::Done,
            _ => return None,
        };
        let amount = match amount.strip_suffix('%') {
            Some(percent) => {
                let percent =
                    percent.parse().ok().filter(|it| (f64::MIN_POSITIVE..=100.0).contains(it));
                Amount::Share(percent? / 100.0)
            }
            None => Amount::Count(amount.parse().ok().filter(|count| *count > 0)?),
        };
        Some(Halt { now, outcome, amount })
    };
    parse().ok_or_else(|| {
        "use what to count, after now or soon: now,fail=1, soon,fail=10%, now,success=1; or never"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_outcome_counts_what_it_says() {
        let is_due = |text, failed, ended| halt(text).unwrap().is_due(failed, ended);
        assert!(!is_due("soon,fail=3", 2, 100) && is_due("soon,fail=3", 3, 100));
        assert!(!is_due("now,success=2", 99, 100) && is_due("now,success=2", 98, 100));
        assert!(!is_due("now,done=5", 4, 4) && is_due("now,done=5", 0, 5));
        assert!(!is_due("soon,fail=10%", 2, 3) && is_due("soon,fail=10%", 3, 30));
        assert!(!is_due("never", 1000, 1000));
        assert_eq!(halt("success=1"), halt("soon,success=1"), "running jobs are not killed");
    }

    #[test]
    fn what_is_no_rule_is_refused_with_some_that_are() {
        for text in ["", "later,fail=1", "now", "now,fail", "now,fail=0", "now,fail=0%", "now,x=1"]
        {
            assert!(halt(text).unwrap_err().contains("now,success=1"), "{text}");
        }
    }
}
