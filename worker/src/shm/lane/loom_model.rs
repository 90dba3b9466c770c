//! The lane under every order that its memory orderings allow.

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Mutex};
use loom::thread::{spawn, yield_now};

use super::*;

/// The words and what they protect: items and results, which loom lets one thread at a time access, and
/// the sockets.
struct Model {
    words: Words,
    items: [UnsafeCell<Item>; 3],
    results: [UnsafeCell<u32>; CAPACITY],
    /// How many frames each side has sent. A socket orders like a release and an acquire.
    to_worker: AtomicU32,
    to_parent: AtomicU32,
}

/// Capacity for results.
const CAPACITY: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Item {
    Waiting,
    Started,
    Stolen,
}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            words: Words::default(),
            items: [(); 3].map(|()| UnsafeCell::new(Item::Waiting)),
            results: [(); CAPACITY].map(|()| UnsafeCell::new(0)),
            to_worker: AtomicU32::default(),
            to_parent: AtomicU32::default(),
        })
    }

    /// Changes a waiting item. Fails if another thread has changed it, or does so concurrently.
    fn change(&self, item: u32, what: Item) {
        // SAFETY: loom fails the test if two threads are here at once.
        self.items[item as usize].with_mut(|item| unsafe {
            assert_eq!(*item, Item::Waiting);
            *item = what;
        });
    }

    fn steal(&self, max: u32) -> u32 {
        let range = self.words.steal(max);
        range.clone().for_each(|item| self.change(item, Item::Stolen));
        range.end - range.start
    }

    /// Runs every item that can be claimed, as [`crate::run`] does. Returns how many it has run.
    fn run(&self, block: u32) -> u32 {
        let mut done = 0;
        loop {
            let mut claimed = self.words.claim(block);
            if claimed.is_empty() {
                return done;
            }
            while !claimed.is_empty() {
                self.words.set_started(claimed.start + 1);
                self.change(claimed.start, Item::Started);
                claimed.start += 1;
                done += 1;
                if !claimed.is_empty() && self.words.unclaim_requested() {
                    self.words.unclaim(claimed.start);
                    claimed.end = claimed.start;
                }
                self.words.commit(Progress { items: done, bytes: 0 });
            }
        }
    }
}

/// Explores every order with at most `preemptions` preemptions.
fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

fn send(count: &AtomicU32) {
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Release);
}

fn wait_for(count: &AtomicU32, frames: u32) {
    while count.load(Ordering::Acquire) < frames {
        yield_now();
    }
}

#[test]
fn each_item_is_committed_or_stolen_and_none_is_both() {
    for block in 1..=3 {
        explore(3, move || {
            let model = Model::new();
            model.words.open_chunk(3, 0);
            let worker = spawn({
                let model = Arc::clone(&model);
                move || model.run(block)
            });
            let mut stolen = model.steal(1);
            model.words.request_unclaim();
            stolen += model.steal(u32::MAX);
            let done = worker.join().unwrap();
            assert_eq!((done + stolen, model.words.unclaimed()), (3, 0));
            assert_eq!(model.words.progress().items, done);
            // Items at the front ran, those at the end were stolen.
            for (item, what) in (0..).zip(&model.items) {
                let expected = if item < done { Item::Started } else { Item::Stolen };
                // SAFETY: all threads are joined.
                what.with(|what| assert_eq!(unsafe { *what }, expected));
            }
        });
    }
}

#[test]
fn at_most_one_item_is_started_and_not_committed() {
    explore(3, || {
        let model = Model::new();
        model.words.open_chunk(2, 0);
        let worker = spawn({
            let model = Arc::clone(&model);
            move || model.run(2)
        });
        let started = model.words.started();
        let committed = model.words.progress().items;
        assert!(started <= committed + 1, "{started} started, {committed} committed");
        assert!(model.words.started() >= committed);
        worker.join().unwrap();
    });
}

/// Where items have time limits, each is claimed alone. The parent steals the rest, and then kills the
/// worker if the item is not committed.
#[test]
fn the_commit_of_an_item_whose_successor_was_claimed_is_seen() {
    explore(3, || {
        let model = Model::new();
        model.words.open_chunk(2, 0);
        let worker = spawn({
            let model = Arc::clone(&model);
            move || model.run(1)
        });
        if model.steal(u32::MAX) == 0 {
            assert!(model.words.progress().items >= 1);
        }
        worker.join().unwrap();
    });
}

#[test]
fn after_an_unclaim_request_all_but_the_running_item_can_be_stolen() {
    explore(3, || {
        let model = Model::new();
        model.words.open_chunk(3, 0);
        let worker = spawn({
            let model = Arc::clone(&model);
            move || {
                let claimed = model.words.claim(3);
                model.words.set_started(1);
                model.change(0, Item::Started);
                // The item runs until the parent notices.
                while !model.words.unclaim_requested() {
                    yield_now();
                }
                model.words.unclaim(claimed.start + 1);
                model.words.commit(Progress { items: 1, bytes: 0 });
                wait_for(&model.to_worker, 1);
                assert_eq!(model.words.claim(3), 0..0);
            }
        });
        while model.words.unclaimed() > 0 || model.words.started() == 0 {
            yield_now();
        }
        let mut stolen = 0;
        while stolen < 2 {
            model.words.request_unclaim();
            stolen += model.steal(u32::MAX);
            yield_now();
        }
        send(&model.to_worker);
        worker.join().unwrap();
        assert_eq!(stolen, 2);
    });
}

#[test]
fn the_results_of_committed_items_are_seen_whole_also_after_a_reset() {
    explore(2, || {
        let model = Model::new();
        model.words.open_chunk(3, 0);
        let worker = spawn({
            let model = Arc::clone(&model);
            move || {
                let mut bytes = 0;
                for item in 0..3 {
                    if bytes == CAPACITY {
                        send(&model.to_parent);
                        wait_for(&model.to_worker, 1);
                        bytes = 0;
                    }
                    model.words.set_started(item + 1);
                    // SAFETY: loom fails the test if the parent reads it meanwhile.
                    model.results[bytes].with_mut(|result| unsafe { *result = item + 1 });
                    bytes += 1;
                    let progress = Progress { items: item + 1, bytes: bytes as u32 };
                    model.words.commit(progress);
                }
            }
        });
        let (mut items, mut read) = (0, 0);
        let mut read_results = || {
            let progress = model.words.progress();
            for result in &model.results[read..progress.bytes as usize] {
                items += 1;
                // SAFETY: loom fails the test if the worker writes it meanwhile.
                result.with(|result| assert_eq!(unsafe { *result }, items));
            }
            read = progress.bytes as usize;
            assert_eq!(items, progress.items);
            if read == CAPACITY && model.to_parent.load(Ordering::Acquire) == 1 {
                model.words.reset_results();
                read = 0;
                send(&model.to_worker);
            }
            items
        };
        read_results();
        while read_results() < 3 {
            yield_now();
        }
        worker.join().unwrap();
    });
}

/// The supervisor reads a chunk under its slot's lock while the driver opens one after the other.
#[test]
fn a_thread_that_reads_a_chunk_sees_nothing_of_the_previous_one() {
    explore(2, || {
        let model = Model::new();
        model.words.open_chunk(2, 1);
        let worker = spawn({
            let model = Arc::clone(&model);
            move || {
                for (frame, items) in [(1, 2), (2, 1)] {
                    wait_for(&model.to_worker, frame);
                    let claimed = model.words.claim(2);
                    assert!(claimed.end <= items);
                    for item in claimed {
                        assert!(!model.words.unclaim_requested());
                        model.words.set_started(item + 1);
                        model.words.commit(Progress { items: item + 1, bytes: 0 });
                    }
                    send(&model.to_parent);
                }
            }
        });
        let chunk = Arc::new(Mutex::new(0));
        let supervisor = spawn({
            let (model, chunk) = (Arc::clone(&model), Arc::clone(&chunk));
            move || {
                let items = chunk.lock().unwrap();
                if *items == 1 {
                    assert!(model.words.started() <= 1 && model.words.progress().items <= 1);
                    assert_eq!(model.words.block_start(), 2);
                }
            }
        });
        send(&model.to_worker);
        wait_for(&model.to_parent, 1);
        model.words.open_chunk(1, 2);
        *chunk.lock().unwrap() = 1;
        send(&model.to_worker);
        wait_for(&model.to_parent, 2);
        worker.join().unwrap();
        supervisor.join().unwrap();
        assert_eq!(model.words.progress().items, 1);
    });
}
