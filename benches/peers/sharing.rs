//! Messages through a channel, and shared memory.

use procpool::channel::Sender;
use procpool::shared::SharedSlice;
use serde_json::json;

use crate::measure::{Contender, Outcome, SampleSize, median_call, seconds, take_turns};
use crate::peers::Peers;
use crate::report::{Row, Unit};

/// Messages per turn.
const MESSAGES: u64 = 200_000;

/// Shared numbers: 64 MiB.
const NUMBERS: usize = 8 << 20;

/// Calls per turn of the contenders that copy everything.
const COPIES: usize = 5;

pub(crate) fn channel(peers: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let Peers { pool, echo, mp_pool, .. } = peers;
    let per_second = |time: f64| MESSAGES as f64 / time;
    let send = |(numbers, count): (Sender<u64>, u64)| {
        (0..count).try_for_each(|x| numbers.send(x)).map_err(|error| error.to_string())
    };
    let mut contenders = vec![
        Contender::new("procpool", || {
            let (sender, receiver) = procpool::channel::unbounded()?;
            let (time, sum) = seconds(|| {
                let task = pool.apply_async(send, (sender, MESSAGES));
                let sum: u64 = receiver.iter().map(Result::unwrap).sum();
                task.get().map(|sent| sent.map(|()| sum))
            });
            let is_all = sum?? == MESSAGES * (MESSAGES - 1) / 2;
            if is_all { Ok(per_second(time)) } else { Err("other numbers".into()) }
        }),
        Contender::new("ipc-channel", || {
            let (time, done) = seconds(|| echo.stream(MESSAGES));
            done.map(|()| per_second(time))
        }),
    ];
    if let Some(python) = mp_pool {
        contenders.push(Contender::new("Queue", move || {
            python.seconds("queue", json!({"messages": MESSAGES})).map(per_second)
        }));
    }
    let field = take_turns(size.repetitions, contenders)?;
    let queue = field.ratio("procpool", "Queue");
    let raw = field.ratio("procpool", "ipc-channel");
    Ok(Row::new("numbers through a channel, one process to another", Unit::PerSecond, field)
        .at_least(25.0, "faster than multiprocessing.Queue", queue)
        .at_least(1.0, "faster than a raw ipc-channel", raw)
        .note("the raw channel carries bare bytes, eight a message."))
}

pub(crate) fn memory(peers: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let Peers { pool, mp_pool, .. } = peers;
    let numbers: Vec<f64> = (0..NUMBERS).map(|i| i as f64).collect();
    let shared = SharedSlice::new(&numbers)?;
    let calls = size.calls;
    let last = |numbers: &[f64]| numbers[numbers.len() - 1];
    let expected = last(&numbers);
    let right =
        |result: f64| if result == expected { Ok(()) } else { Err("another number".into()) };
    let mut contenders = vec![
        Contender::new("SharedSlice", || {
            let read = |numbers: SharedSlice<f64>| numbers[numbers.len() - 1];
            median_call(calls, || right(pool.apply(read, shared.clone())?))
        }),
        Contender::new("a number", || median_call(calls, || right(pool.apply(|x| x, expected)?))),
        Contender::new("copying", || {
            let read = |numbers: Vec<f64>| numbers[numbers.len() - 1];
            median_call(COPIES, || right(pool.apply(read, numbers.clone())?))
        }),
    ];
    if let Some(python) = mp_pool {
        let order = json!({"numbers": NUMBERS, "calls": calls});
        let turn = move || python.seconds("shared", order.clone());
        contenders.push(Contender::new("shared_memory", turn));
    }
    let field = take_turns(size.repetitions, contenders)?;
    let python = field.ratio("shared_memory", "SharedSlice");
    let copying = field.ratio("copying", "SharedSlice");
    let number = field.ratio("SharedSlice", "a number");
    Ok(Row::new("a call that is given 64 MiB of numbers and reads one", Unit::Seconds, field)
        .at_most(2.0, "the same call with a number", number)
        .at_least(100.0, "faster than copying", copying)
        .at_least(2.0, "faster than Python's shared_memory", python)
        .note(
            "the memory is created once and passed to each call; Python's tasks attach to it by name.",
        ))
}
