//! Arguments and results of any size.

use std::collections::BTreeMap;

use crate::support::{SideEffects, alone, kill, wait_until};
use procpool::{Failure, Pool, SelfDescribing, TaskError, TaskErrorKind, ValueSide};
use serde::{Deserialize, Serialize};

fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect()
}

/// Returns how many bytes of shared memory this process has mapped.
fn mapped_shared() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let size = |line: &str| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        Some(u64::from_str_radix(to, 16).ok()? - u64::from_str_radix(from, 16).ok()?)
    };
    maps.lines().filter(|line| line.contains("memfd:")).filter_map(size).sum()
}

#[test]
fn any_size_passes_both_ways() {
    // The sizes at which the transport changes: those of a frame, a lane and a fragment.
    let edges = [192 << 10, 212_960, 252 << 10, 256 << 10].into_iter();
    let around = edges.flat_map(|edge: usize| (edge - 130)..(edge + 10)).step_by(7);
    let sizes: Vec<usize> = [0, 1, 2, 4095, 4096, 16 << 20].into_iter().chain(around).collect();
    let pool = Pool::new(2).unwrap();
    for result in pool.imap(echo, sizes.iter().map(|size| pattern(*size))).zip(&sizes) {
        let (bytes, size) = result;
        assert!(bytes.unwrap() == pattern(*size), "{size} bytes");
    }
    for size in [0, 1, 212_960, 1 << 20] {
        assert!(pool.apply(echo, pattern(size)).unwrap() == pattern(size), "{size} bytes");
    }
}

#[test]
fn results_above_a_mebibyte_pass() {
    let pool = Pool::new(2).unwrap();
    for size in [(1 << 20) + 1, 100 << 20] {
        let bytes = pool.apply(pattern, size).unwrap();
        assert!(bytes == pattern(size), "{size} bytes");
    }
}

#[test]
fn a_gibibyte_passes_as_argument_and_as_result() {
    const LEN: usize = 1 << 30;
    let pool = Pool::new(1).unwrap();
    let check = |bytes: Vec<u8>| (bytes.len(), bytes[0], bytes[LEN / 2], bytes[LEN - 1]);
    let make = |len: usize| {
        let mut bytes = vec![0u8; len];
        (bytes[0], bytes[len / 2], bytes[len - 1]) = (1, 2, 3);
        bytes
    };
    assert_eq!(pool.apply(check, make(LEN)).unwrap(), (LEN, 1, 2, 3));
    let bytes = pool.apply(make, LEN).unwrap();
    assert_eq!(check(bytes), (LEN, 1, 2, 3));
}

#[test]
fn large_arguments_and_results_at_once_do_not_deadlock() {
    let pool = Pool::builder().workers(3).chunk_size(4).build().unwrap();
    let inputs = || (0..48).map(|i| pattern(i * 40_000));
    let results = pool.map(echo, inputs()).unwrap();
    assert!(results.into_iter().eq(inputs()));
    let tasks: Vec<_> = inputs().map(|input| pool.apply_async(echo, input)).collect();
    assert!(tasks.into_iter().map(|task| task.get().unwrap()).eq(inputs()));
}

#[test]
fn reused_memory_carries_each_value_and_no_other() {
    let pool = Pool::builder().workers(2).retries(1).build().unwrap();
    let input = |round: usize| pattern((1 << 20) - 50_000 * (round % 5) + round);
    for round in 0..8 {
        let tasks: Vec<_> = (0..3).map(|i| pool.apply_async(echo, input(round + i))).collect();
        if round % 4 == 1 {
            kill(pool.workers()[round / 4 % 2].pid, libc::SIGKILL);
        }
        for (i, task) in tasks.into_iter().enumerate() {
            assert!(task.get().unwrap() == input(round + i), "{round}, {i}");
        }
    }
}

#[test]
fn functions_with_results_of_all_widths_share_chunks() {
    let pool = Pool::new(2).unwrap();
    for _ in 0..3 {
        let bytes: Vec<_> = (0..3000u32).map(|x| pool.apply_async(|x| x as u8, x)).collect();
        let mixed: Vec<_> = (0..3000u32)
            .map(|x| (pool.apply_async(u64::from, x), pool.apply_async(|x: u32| x as u16, x)))
            .collect();
        let text: Vec<_> =
            (0..300u32).map(|x| pool.apply_async(|x: u32| x.to_string(), x)).collect();
        assert!(
            bytes.into_iter().map(|task| task.get().unwrap()).eq((0..3000u32).map(|x| x as u8))
        );
        for (x, (wide, narrow)) in (0u32..).zip(mixed) {
            assert_eq!((wide.get().unwrap(), narrow.get().unwrap()), (u64::from(x), x as u16));
        }
        for (x, text) in text.into_iter().enumerate() {
            assert_eq!(text.get().unwrap(), x.to_string());
        }
    }
}

#[test]
fn structured_data_passes() {
    type Nested = BTreeMap<String, Vec<Option<(i8, f64, char)>>>;
    let pool = Pool::new(1).unwrap();
    let value: Nested = (0..500)
        .map(|i| (format!("key {i}"), vec![None, Some((i as i8, f64::from(i), 'ß'))]))
        .collect();
    assert_eq!(pool.apply(|value: Nested| value, value.clone()).unwrap(), value);
    let numbers: Vec<f64> = (0..100_000).map(f64::from).collect();
    assert_eq!(pool.apply(|numbers: Vec<f64>| numbers, numbers.clone()).unwrap(), numbers);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Json {
    Null,
    Arr(Vec<Json>),
}

fn nested(levels: usize) -> Json {
    (0..levels).fold(Json::Null, |inner, _| Json::Arr(vec![inner]))
}

/// Its encoding claims this many elements and has none.
#[derive(Debug, Deserialize)]
struct Claims(#[allow(dead_code)] Vec<()>);

impl Serialize for Claims {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (1u64 << 40).serialize(serializer)
    }
}

fn encode_error<R: std::fmt::Debug>(result: Result<R, TaskError>, at: ValueSide) -> String {
    match result.unwrap_err().kind() {
        TaskErrorKind::Encode { side, reason } if *side == at => reason.clone(),
        other => panic!("{other:?}"),
    }
}

fn decode_error<R: std::fmt::Debug>(result: Result<R, TaskError>, at: ValueSide) -> String {
    match result.unwrap_err().kind() {
        TaskErrorKind::Decode { side, reason } if *side == at => reason.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_value_nested_too_deeply_is_its_tasks_error_on_both_ways_and_on_a_small_stack() {
    /// Its encoding is nested this deeply. The encoder does not recurse, so it is not stopped.
    #[derive(Debug)]
    struct Written(usize);
    impl Serialize for Written {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            use serde::ser::SerializeTuple as _;
            let mut all = serializer.serialize_tuple(2 * self.0 + 1)?;
            for _ in 0..self.0 {
                all.serialize_element(&1u32)?;
                all.serialize_element(&1u64)?;
            }
            all.serialize_element(&0u32)?;
            all.end()
        }
    }
    impl<'de> Deserialize<'de> for Written {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            fn levels(json: &Json) -> usize {
                match json {
                    Json::Null => 0,
                    Json::Arr(inner) => 1 + inner.iter().map(levels).sum::<usize>(),
                }
            }
            Json::deserialize(deserializer).map(|json| Self(levels(&json)))
        }
    }
    let test = || {
        let pool = Pool::new(1).unwrap();
        let pid = pool.workers()[0].pid;
        assert_eq!(pool.apply(nested, 60).unwrap(), nested(60));
        for levels in [6_000, 20_000] {
            let reason = encode_error(pool.apply(nested, levels), ValueSide::Result);
            assert!(reason.contains("Json") && reason.contains("nested so deeply"), "{reason}");
            let reason = decode_error(pool.apply(Written, levels), ValueSide::Result);
            assert!(reason.contains("nested so deeply"), "{reason}");
            let reason =
                decode_error(pool.apply(|_: Written| 0, Written(levels)), ValueSide::Argument);
            assert!(reason.contains("nested so deeply"), "{reason}");
        }
        assert_eq!(pool.apply(Written, 60).unwrap().0, 60);
        assert_eq!(pool.workers()[0].pid, pid, "no worker was lost");
    };
    std::thread::Builder::new().stack_size(512 << 10).spawn(test).unwrap().join().unwrap();
}

#[test]
fn a_claimed_length_without_bytes_is_an_error_and_a_million_units_pass() {
    let pool = Pool::new(1).unwrap();
    let reason = decode_error(pool.apply(|()| Claims(Vec::new()), ()), ValueSide::Result);
    assert!(reason.contains("take no bytes"), "{reason}");
    let reason = decode_error(pool.apply(|_: Claims| 0, Claims(Vec::new())), ValueSide::Argument);
    assert!(reason.contains("take no bytes"), "{reason}");
    assert_eq!(pool.apply(|units: Vec<()>| units, vec![(); 1_000_000]).unwrap().len(), 1_000_000);
}

#[test]
fn types_that_the_format_cannot_carry_are_refused_with_the_remedy_and_pass_in_the_wrapper() {
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Value {
        Number(f64),
        Text(String),
        List(Vec<Value>),
    }
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Record {
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        #[serde(flatten)]
        rest: BTreeMap<String, Value>,
    }
    #[derive(Debug, Serialize, Deserialize)]
    struct Skips {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        list: Vec<u8>,
        after: u64,
    }
    let pool = Pool::new(1).unwrap();
    let value = Value::List(vec![Value::Number(0.5), Value::Text("é".into())]);
    let record = Record { name: None, rest: [("value".to_owned(), value.clone())].into() };
    let skips = || Skips { list: Vec::new(), after: 1 };
    let reasons = [
        decode_error(pool.apply(|_: Value| (), value.clone()), ValueSide::Argument),
        decode_error(pool.apply(|()| Value::Number(1.0), ()), ValueSide::Result),
        encode_error(pool.apply(|_: Record| (), record.clone()), ValueSide::Argument),
        encode_error(pool.apply(|_: Skips| (), skips()), ValueSide::Argument),
    ];
    for reason in reasons {
        assert!(reason.contains("wrap it in `procpool::SelfDescribing`"), "{reason}");
    }
    let echo = |value: SelfDescribing<Record>| value;
    assert_eq!(pool.apply(echo, SelfDescribing(record.clone())).unwrap().0, record);
}

#[test]
fn a_tasks_error_of_any_type_is_returned_with_its_causes() {
    fn task(text: String) -> Result<u64, Failure> {
        let number: u64 = text.parse()?;
        if number == 0 {
            return Err("zero".into());
        }
        Ok(number)
    }
    let pool = Pool::new(1).unwrap();
    let results = pool.map(task, ["7", "x", "0"].map(str::to_owned)).unwrap();
    let text = |result: Result<u64, Failure>| {
        result.map_or_else(|failure| failure.to_string(), |number| number.to_string())
    };
    let texts: Vec<_> = results.into_iter().map(text).collect();
    assert_eq!(texts, ["7", "invalid digit found in string", "zero"]);
}

#[test]
fn shared_memory_is_freed_when_either_side_is_done_or_killed() {
    alone!("shared_memory_is_freed_when_either_side_is_done_or_killed_alone");
}

#[test]
#[ignore = "run by the one before, alone"]
fn shared_memory_is_freed_when_either_side_is_done_or_killed_alone() {
    let pool = Pool::new(1).unwrap();
    pool.apply(echo, pattern(1000)).unwrap();
    let before = mapped_shared();
    assert!(before > 0, "the lane");
    for _ in 0..3 {
        pool.apply(echo, pattern(8 << 20)).unwrap();
    }
    let effects = SideEffects::new();
    let task = pool.apply_async(
        |(effects, bytes): (SideEffects, Vec<u8>)| {
            effects.note(0);
            std::thread::sleep(std::time::Duration::from_secs(3600));
            bytes
        },
        (effects.clone(), pattern(8 << 20)),
    );
    wait_until("the task runs", || effects.count(0) == 1);
    kill(pool.workers()[0].pid, libc::SIGKILL);
    assert!(task.get().is_err());
    pool.apply(echo, pattern(1000)).unwrap();
    // The memory kept for the next large value is bounded and does not grow.
    wait_until("it is freed", || mapped_shared() <= before);
    pool.terminate();
    drop(pool);
    wait_until("the lane is freed", || mapped_shared() == 0);
}

/// A vector whose elements tell their place.
fn marked(len: usize) -> Vec<u32> {
    (0..len as u32).map(|place| place.wrapping_mul(2_654_435_761)).collect()
}

#[test]
fn a_large_argument_that_the_worker_copies_meanwhile_is_whole() {
    let pool = Pool::new(2).unwrap();
    // Around the size from which both copy at once, and around the parts in which they do.
    for bytes in [1 << 20, 2 << 20, 3 << 20, 9 << 20] {
        for len in [bytes / 4 - 1, bytes / 4, bytes / 4 + 1] {
            assert!(pool.apply(|elements: Vec<u32>| elements, marked(len)).unwrap() == marked(len));
        }
    }
    let text = "äöü".repeat(1 << 20);
    assert!(pool.apply(|text: String| text, text.clone()).unwrap() == text);
    let tasks: Vec<_> = (1..9)
        .map(|n| pool.apply_async(|elements: Vec<u32>| elements, marked(n * 500_000)))
        .collect();
    for (n, task) in (1..9).zip(tasks) {
        assert!(task.get().unwrap() == marked(n * 500_000));
    }
    let mut process =
        procpool::Process::spawn(|elements: Vec<u32>| elements, marked(3_000_000)).unwrap();
    assert!(process.join().unwrap() == marked(3_000_000));
}

#[test]
fn a_worker_that_dies_while_a_large_argument_is_copied_costs_its_task_or_is_retried() {
    let pool = Pool::builder().workers(1).retries(20).build().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..60 {
                let worker = pool.workers()[0].pid;
                if worker != 0 {
                    kill(worker, libc::SIGKILL);
                }
                // Sometimes in the middle of a copy.
                std::thread::sleep(std::time::Duration::from_millis(23));
            }
        });
        for _ in 0..5 {
            match pool.apply(|elements: Vec<u32>| elements, marked(4_000_000)) {
                Ok(elements) => assert!(elements == marked(4_000_000)),
                // On a busy machine, one worker after the other dies before it has begun.
                Err(error) => match error.kind() {
                    TaskErrorKind::Died { .. } | TaskErrorKind::Initializer { .. } => {}
                    _ => panic!("{error}"),
                },
            }
        }
    });
    assert!(
        pool.apply(|elements: Vec<u32>| elements, marked(4_000_000)).unwrap() == marked(4_000_000)
    );
}
