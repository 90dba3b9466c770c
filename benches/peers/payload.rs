//! 64 MiB to a worker and back, as bytes and as numbers.

use serde_json::json;

use crate::measure::{Contender, Outcome, SampleSize, seconds, take_turns};
use crate::peers::Peers;
use crate::report::{Row, Unit};

const BYTES: usize = 64 << 20;
const FLOATS: usize = BYTES / size_of::<f64>();

fn identity<T>(x: T) -> T {
    x
}

fn some_bytes() -> Vec<u8> {
    (0..BYTES).map(|i| i as u8).collect()
}

fn some_floats() -> Vec<f64> {
    (0..FLOATS).map(|i| i as f64 * 0.5).collect()
}

pub(crate) fn bytes(peers: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let Peers { pool, procspawn, mp_pool, executor, .. } = peers;
    let content = some_bytes();
    let mut touched = content.clone();
    let mut contenders = vec![
        Contender::new("procpool", || {
            let argument = content.clone();
            let (time, result) = seconds(|| pool.apply(identity::<Vec<u8>>, argument));
            if result?.last() == content.last() { Ok(time) } else { Err("other bytes".into()) }
        }),
        Contender::new("memcpy (clone)", || Ok(seconds(|| content.clone()).0)),
        Contender::new("memcpy to memory that is there", || {
            Ok(seconds(|| touched.copy_from_slice(&content)).0)
        }),
        Contender::new("procspawn", || {
            let argument = content.clone();
            let work = || procspawn.spawn(argument, identity::<Vec<u8>>).join();
            let (time, result) = seconds(work);
            if result?.last() == content.last() { Ok(time) } else { Err("other bytes".into()) }
        }),
    ];
    for (who, python) in [("Pool", mp_pool), ("ProcessPoolExecutor", executor)] {
        if let Some(python) = python {
            let turn = move || python.seconds("echo", json!({"bytes": BYTES}));
            contenders.push(Contender::new(who, turn));
        }
    }
    let field = take_turns(size.repetitions.min(7), contenders)?;
    let memcpy = field.ratio("procpool", "memcpy (clone)");
    let (pool, procspawn) = (field.ratio("Pool", "procpool"), field.ratio("procspawn", "procpool"));
    Ok(Row::new("64 MiB `Vec<u8>` in and out", Unit::Seconds, field)
        .at_most(2.0, "a memcpy", memcpy)
        .at_least(10.0, "faster than Pool", pool)
        .at_least(10.0, "faster than procspawn", procspawn)
        .note("the memcpy of the goal is a `clone`, whose memory is new, as that of a result is."))
}

pub(crate) fn floats(peers: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let Peers { pool, .. } = peers;
    let (content, numbers) = (some_bytes(), some_floats());
    let contenders = vec![
        Contender::new("Vec<f64>", || {
            let argument = numbers.clone();
            let (time, result) = seconds(|| pool.apply(identity::<Vec<f64>>, argument));
            if result?.last() == numbers.last() { Ok(time) } else { Err("other numbers".into()) }
        }),
        Contender::new("Vec<u8>", || {
            let argument = content.clone();
            let (time, result) = seconds(|| pool.apply(identity::<Vec<u8>>, argument));
            if result?.last() == content.last() { Ok(time) } else { Err("other bytes".into()) }
        }),
    ];
    let field = take_turns(size.repetitions.min(7), contenders)?;
    let ratio = field.ratio("Vec<f64>", "Vec<u8>");
    Ok(Row::new("`Vec<f64>` of 8 Mi in and out", Unit::Seconds, field).at_most(
        2.0,
        "the same bytes as `Vec<u8>`",
        ratio,
    ))
}
