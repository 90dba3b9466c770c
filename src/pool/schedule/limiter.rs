//! Limits how many workers are woken for short tasks, which finish sooner than a worker wakes up.
//!
//! Waking a worker costs the parent two context switches and a frame, 10 to 30 µs, however little work it
//! finds. When each task woke a driver while one was idle, 256 workers on two cores cost six context switches
//! for each of 20,000 empty calls and 44 times the CPU time of two workers. Each worker found a chunk of one
//! or two items, and with so many processes the measured times, which determine chunk sizes, came out far too
//! long.
//!
//! So short tasks
//! ([`CostEstimate::is_short_lived`](crate::pool::schedule::cost::CostEstimate::is_short_lived)) get as many
//! workers as there are CPUs, and the rest waits for workers that return in a moment. The same calls then
//! take one context switch per hundred and the CPU time of two workers. While the queue is worth less than [a
//! chunk](crate::pool::schedule::cost::CostEstimate::MIN_WORTH_A_WAKE), one worker is enough: on two cores,
//! 20,000 empty calls took 1,000 context switches with two workers and 600 with one.
//!
//! No task may wait behind a usually short task that is slow this time. So a chunk counts only for the period
//! in which it was sent and the next; a [tick](Limiter::tick) ends a period every millisecond while tasks
//! wait. A chunk that is out longer stops counting, and the limit doubles each time: all of 256 workers are
//! in use within 14 ms.

/// Running chunks of short tasks.
#[derive(Debug)]
pub(crate) struct Limiter {
    least: usize,
    limit: usize,
    period: u64,
    /// Running chunks sent in this period and in the previous one.
    out: [usize; 2],
}

/// The period in which a chunk was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Period(u64);

impl Limiter {
    pub(crate) fn new(cpus: usize) -> Self {
        // With one, no worker would run while its driver handles results.
        let least = cpus.max(2);
        Self { least, limit: least, period: 0, out: [0; 2] }
    }

    /// Returns how many workers share short tasks.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether to wake another worker while `coming` are waking up. For little work, only the first.
    pub(crate) fn has_room(&self, coming: usize, is_much: bool) -> bool {
        self.out[0] + self.out[1] + coming < if is_much { self.limit } else { 1 }
    }

    /// Counts a chunk of short tasks that is sent.
    pub(crate) fn begin(&mut self) -> Period {
        self.out[0] += 1;
        Period(self.period)
    }

    /// Counts a chunk that has returned.
    pub(crate) fn end(&mut self, sent: Period) {
        if let age @ 0..2 = self.period - sent.0 {
            self.out[age as usize] -= 1;
        }
    }

    /// Ends a period.
    pub(crate) fn tick(&mut self, has_work: bool) {
        let [recent, overdue] = self.out;
        self.out = [0, recent];
        self.period += 1;
        if has_work && overdue > 0 {
            self.limit = self.limit.saturating_mul(2);
        } else if recent < self.limit {
            self.limit = self.least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_chunks_raise_the_limit() {
        let mut limiter = Limiter::new(2);
        let mut sent = Vec::new();
        for _ in 0..12 {
            while limiter.has_room(0, true) {
                sent.push(limiter.begin());
            }
            limiter.tick(true);
        }
        assert!(sent.len() >= 126, "{}", sent.len());
        sent.into_iter().for_each(|period| limiter.end(period));
        limiter.tick(false);
        assert_eq!((limiter.limit, limiter.out), (2, [0, 0]));
    }
}
