//! Results that are numbers, which drivers write straight into the caller's vector: whatever happens on the way, each
//! is in its place.

use procpool::{Pool, StartMethod, TaskErrorKind};

use crate::support::square;

/// More than are decoded in order.
const MANY: u64 = 200_000;

fn squares(items: u64) -> Vec<u64> {
    (0..items).map(square).collect()
}

/// An iterator that says it has another length.
struct Says<I>(I, usize);

impl<I: Iterator> Iterator for Says<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.1, Some(self.1))
    }
}

#[test]
fn numbers_of_each_width_are_in_their_places() {
    fn check<R: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Copy>(
        f: fn(u32) -> R,
    ) {
        let pool = Pool::new(2).unwrap();
        let results = pool.map(f, 0..MANY as u32).unwrap();
        assert!(results.len() == MANY as usize);
        assert!((0..).zip(&results).all(|(x, result)| *result == f(x)));
    }
    check(|x| x as u8);
    check(|x| x as i16);
    check(|x| x * 3);
    check(|x| f64::from(x).sqrt());
    check(|x| u128::from(x) << 90);
    // These are not numbers to the drivers: not all bytes are one.
    check(|x| x.is_multiple_of(3));
    check(|x| char::from_u32(x % 0xd800).unwrap());
    check(|x| (x, x + 1));
}

#[test]
fn an_input_that_lies_about_its_length_has_all_results() {
    let pool = Pool::new(2).unwrap();
    for said in [5_000, MANY as usize - 1, MANY as usize, MANY as usize + 1, 1_000_000] {
        let results = pool.map(square, Says(0..MANY, said)).unwrap();
        assert!(results == squares(MANY), "{said}");
    }
    assert!(pool.map(square, Says(0..0, 5_000)).unwrap().is_empty());
}

#[test]
fn the_first_failure_by_position_is_returned() {
    fn fails(x: u64) -> u64 {
        assert!(x != 150_000 && x != 30_000 && x != 190_000, "{x}");
        x
    }
    let pool = Pool::new(2).unwrap();
    let error = pool.map(fails, 0..MANY).unwrap_err();
    assert_eq!(error.id(), 30_000, "{error}");
    assert!(matches!(error.kind(), TaskErrorKind::Panicked { message, .. } if message == "30000"));
    assert_eq!(pool.map(square, 0..MANY).unwrap(), squares(MANY));
}

#[test]
fn crashes_and_retries_in_the_middle_leave_each_result_in_its_place() {
    fn once(x: u64) -> u64 {
        if x % 20_011 == 20_010 && procpool::worker().unwrap().attempt == 1 {
            std::process::abort();
        }
        square(x)
    }
    for start_method in [StartMethod::Spawn, StartMethod::Template] {
        let pool = Pool::builder().workers(3).retries(1).start_method(start_method);
        let pool = pool.build().unwrap();
        assert!(pool.map(once, 0..MANY).unwrap() == squares(MANY));
        assert_eq!(pool.stats().retried, 9);
    }
}

#[test]
fn an_input_that_panics_is_resumed_after_what_was_sent() {
    let pool = Pool::new(2).unwrap();
    for at in [100, 10_000, MANY - 1] {
        let input = (0..MANY).inspect(|x| assert!(*x != at, "the input ends here"));
        let input = Says(input, MANY as usize);
        let ended =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.map(square, input)));
        assert!(ended.is_err());
    }
    assert_eq!(pool.map(square, 0..MANY).unwrap(), squares(MANY));
}

#[test]
fn observed_limited_captured_and_slow_calls_have_the_same_results() {
    let check = |builder: procpool::PoolBuilder| {
        let pool = builder.workers(2).build().unwrap();
        assert!(pool.map(square, 0..20_000).unwrap() == squares(20_000));
    };
    check(Pool::builder().on_event(|_| {}));
    check(Pool::builder().task_timeout(std::time::Duration::from_secs(60)));
    check(Pool::builder().output(procpool::OutputMode::Capture));
    check(Pool::builder().window(100));
    let slow = |x: u64| {
        if x.is_multiple_of(5_000) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        x * x
    };
    assert!(Pool::new(2).unwrap().map(slow, 0..20_000).unwrap() == squares(20_000));
}

#[test]
fn callers_that_share_a_pool_get_their_own_results() {
    let pool = Pool::new(2).unwrap();
    std::thread::scope(|scope| {
        for offset in 0..4_u64 {
            let pool = &pool;
            scope.spawn(move || {
                for _ in 0..5 {
                    let results = pool.map(square, offset..offset + 50_000).unwrap();
                    assert!(results == (offset..offset + 50_000).map(square).collect::<Vec<_>>());
                }
            });
        }
    });
}

#[test]
fn a_pool_that_is_terminated_meanwhile_writes_no_more() {
    for _ in 0..20 {
        let pool = Pool::new(2).unwrap();
        let other = pool.clone();
        let ends = std::thread::spawn(move || other.terminate());
        match pool.map(square, 0..MANY) {
            Ok(results) => assert!(results == squares(MANY)),
            Err(error) => assert_eq!(error.kind(), &TaskErrorKind::Closed),
        }
        ends.join().unwrap();
    }
}
