//! How many workers are worth waking for tasks that are over sooner than a worker is woken.
//!
//! To wake one costs the parent two changes of thread and a frame, 10 to 30 µs, however little it
//! then finds to do. When each task woke a driver as long as one was idle, 256 workers on two cores
//! had the parent change threads six times for each of 20,000 empty calls, 44 times the CPU of two
//! workers: each found a chunk of one or two items, and so many processes made the measured times,
//! by which chunks are sized, far too long. So brisk tasks
//! ([`CostEstimate::is_short_lived`](crate::pool::schedule::batch::CostEstimate::is_short_lived)) get as many workers as there are CPUs, and are
//! otherwise left to those that will be back in a moment: the same calls then take one change of
//! thread for a hundred of them, and the CPU of two workers. And while what waits is worth less than
//! [a chunk](crate::pool::schedule::batch::CostEstimate::MIN_WORTH_A_WAKE), one worker is enough: on two cores, 20,000 empty calls
//! took 1,000 changes of thread with two and 600 with one.
//!
//! That nobody waits behind a task that is brisk as a rule and slow this time: a chunk counts for a
//! period or two, which a [tick](Limiter::tick) ends every millisecond while there is work that
//! waits; what is out for longer makes room, and the limit is doubled each time: within 14 ms, 256
//! workers are out.

/// The chunks of brisk tasks that are out.
#[derive(Debug)]
pub(crate) struct Limiter {
    least: usize,
    limit: usize,
    period: u64,
    /// How many were sent in this period and are out, and how many in the one before.
    out: [usize; 2],
}

/// The period in which a chunk was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Period(u64);

impl Limiter {
    pub(crate) fn new(cpus: usize) -> Self {
        // One would be none while its driver is at the results.
        let least = cpus.max(2);
        Self { least, limit: least, period: 0, out: [0; 2] }
    }

    /// How many workers brisk tasks are shared out among.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether another worker is to be woken, while so many are on their way: for little, only the
    /// first.
    pub(crate) fn has_room(&self, coming: usize, is_much: bool) -> bool {
        self.out[0] + self.out[1] + coming < if is_much { self.limit } else { 1 }
    }

    /// A chunk of brisk tasks is sent.
    pub(crate) fn begin(&mut self) -> Period {
        self.out[0] += 1;
        Period(self.period)
    }

    /// It is back.
    pub(crate) fn end(&mut self, sent: Period) {
        if let age @ 0..2 = self.period - sent.0 {
            self.out[age as usize] -= 1;
        }
    }

    /// A period is over.
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
    fn chunks_that_stay_out_soon_make_room_for_more_and_more() {
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
