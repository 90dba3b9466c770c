//! The lane in every interleaving of small steps, and its writers at the edges.

#![allow(clippy::unwrap_used)]
use super::*;

fn words(items: u32) -> Words {
    let words = Words::default();
    words.open_chunk(items, 0);
    words
}

/// Returns both halves of one region.
fn halves() -> (ParentLane, WorkerLane) {
    let region = Region::new(LANE_BYTES, 0).unwrap();
    let file = region.descriptor().unwrap().try_clone_to_owned().unwrap();
    let parent = ParentLane::new(region).unwrap();
    let region = Region::open(file, LANE_BYTES as u64).unwrap();
    // SAFETY: the only one.
    let worker = unsafe { WorkerLane::new(region) }.unwrap();
    (parent, worker)
}

/// A worker that runs a chunk in its smallest steps, as [`crate::run`] does.
#[derive(Debug, Clone, Default)]
struct Worker {
    claimed: Range<u32>,
    running: bool,
    committed: u32,
    done: bool,
}

impl Worker {
    fn step(&mut self, lane: &Words, block: u32) {
        if self.running && !self.claimed.is_empty() && lane.unclaim_requested() {
            lane.unclaim(self.claimed.start);
            self.claimed = 0..0;
        } else if self.running {
            self.committed += 1;
            self.running = false;
            lane.commit(Progress { items: self.committed, bytes: 0 });
        } else if self.claimed.is_empty() {
            self.claimed = lane.claim(block);
            self.done = self.claimed.is_empty();
        } else {
            self.claimed.start += 1;
            self.running = true;
            lane.set_started(self.claimed.start);
        }
    }
}

/// One move: a step of the worker, a theft or an unclaim request of the parent, or a kill.
#[derive(Debug, Clone, Copy)]
enum Move {
    Step,
    Steal(u32),
    RequestUnclaim,
    Kill,
}

/// Plays `moves` from the start. Returns the worker, the stolen ranges, and the lane.
fn play(items: u32, block: u32, moves: &[Move]) -> (Worker, Vec<Range<u32>>, Words) {
    let (lane, mut worker, mut stolen) = (words(items), Worker::default(), Vec::new());
    for next in moves {
        match next {
            Move::Step => worker.step(&lane, block),
            Move::Steal(max) => stolen.push(lane.steal(*max)),
            Move::RequestUnclaim => lane.request_unclaim(),
            Move::Kill => {}
        }
    }
    (worker, stolen, lane)
}

/// Checks that each item is in one place: committed, running, stolen, or never started.
fn check(items: u32, (worker, stolen, lane): &(Worker, Vec<Range<u32>>, Words), moves: &[Move]) {
    let (started, committed) = (lane.started(), lane.progress().items);
    let left = items - stolen.iter().map(|range| range.end - range.start).sum::<u32>();
    let mut end = items;
    for range in stolen.iter().filter(|range| !range.is_empty()) {
        assert_eq!(range.end, end, "stolen from the end, once: {moves:?}");
        end = range.start;
    }
    assert_eq!(end, left, "{moves:?}");
    assert!(committed <= started && started <= left, "no stolen item was started: {moves:?}");
    assert!(started - committed <= 1, "one item runs at a time: {moves:?}");
    assert_eq!(worker.committed, committed);
    if worker.done {
        assert_eq!(committed, left, "every item that was not stolen is done: {moves:?}");
    }
}

/// Every order of a worker's steps, two moves of the parent, and a kill at any moment.
#[test]
fn in_every_interleaving_each_item_is_in_exactly_one_place() {
    fn explore(items: u32, block: u32, moves: &mut Vec<Move>, thefts: u32, seen: &mut u64) {
        let state = play(items, block, moves);
        check(items, &state, moves);
        *seen += 1;
        if state.0.done {
            return;
        }
        let mut choices = vec![Move::Step, Move::Kill];
        if thefts > 0 {
            choices.extend([1, 2, u32::MAX].map(Move::Steal));
            choices.push(Move::RequestUnclaim);
        }
        for choice in choices {
            moves.push(choice);
            match choice {
                // The worker thefts no further step. The parent may still steal.
                Move::Kill => {
                    for max in [0, 1, u32::MAX] {
                        moves.push(Move::Steal(max));
                        check(items, &play(items, block, moves), moves);
                        moves.pop();
                    }
                }
                Move::Steal(_) | Move::RequestUnclaim => {
                    explore(items, block, moves, thefts - 1, seen);
                }
                Move::Step => explore(items, block, moves, thefts, seen),
            }
            moves.pop();
        }
    }
    let mut seen = 0;
    for items in 0..=3 {
        for block in 1..=2 {
            explore(items, block, &mut Vec::new(), 2, &mut seen);
        }
    }
    assert!(seen > 1000, "{seen} states");
}

#[test]
fn every_claimed_item_but_the_running_one_can_be_stolen_after_an_unclaim_request() {
    let (lane, mut worker) = (words(8), Worker::default());
    worker.step(&lane, 8);
    worker.step(&lane, 8);
    assert_eq!((lane.started(), lane.unclaimed()), (1, 0));
    lane.request_unclaim();
    worker.step(&lane, 8);
    assert_eq!(lane.steal(u32::MAX), 1..8);
}

#[test]
fn claimed_and_stolen_at_once_an_item_has_one_owner() {
    let lane = words(100_000);
    let (claimed, stolen) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut items = 0;
            loop {
                let block = lane.claim(7);
                if block.is_empty() {
                    return items;
                }
                items += block.len();
            }
        });
        let parent = scope.spawn(|| {
            let mut items = 0;
            while lane.unclaimed() > 0 {
                items += lane.steal(5).len();
            }
            items
        });
        (worker.join().unwrap(), parent.join().unwrap())
    });
    assert_eq!(claimed + stolen, 100_000);
}

#[test]
fn a_value_that_does_not_fit_is_spilled_whole() {
    let (_, mut lane) = halves();
    let mut writer = lane.writer(CAPACITY - 10, 2);
    writer.put_slice(b"1234567");
    assert_eq!(writer.finish(), Ok(CAPACITY - 3));
    let mut writer = lane.writer(CAPACITY - 10, 2);
    writer.put_slice(b"1234567");
    writer.put_slice(b"89");
    writer.put_slice(b"0");
    assert_eq!(writer.finish(), Err(b"1234567890".to_vec()));
}

#[test]
fn copying_from_outside_of_the_results_copies_nothing() {
    let (lane, _) = halves();
    let mut to = Vec::new();
    lane.copy_results(0..CAPACITY + 1, &mut to);
    #[allow(clippy::reversed_empty_ranges)]
    lane.copy_results(5..4, &mut to);
    assert!(to.is_empty());
}
