//! Single calls: the round trip of one, and the rate of many.

use serde_json::json;

use crate::measure::{Contender, Outcome, SampleSize, median_call, seconds, take_turns};
use crate::peers::Peers;
use crate::report::{Bound, Row, Unit};

/// A message of the size of a small call.
const MESSAGE: [u8; 48] = [7; 48];

/// Single calls made before the first result is taken.
const CALLS: usize = 20_000;

/// Calls to procspawn at a time: it uses several file descriptors per waiting call.
const PROCSPAWN_WINDOW: usize = 1_000;

fn identity(x: u64) -> u64 {
    x
}

pub(crate) fn apply(peers: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let Peers { pool, procspawn, echo, mp_pool, executor, .. } = peers;
    let calls = size.calls;
    let mut contenders = vec![
        Contender::new("procpool", || median_call(calls, || Ok(pool.apply(identity, 1)?))),
        Contender::new("ipc-channel", || median_call(calls, || echo.round_trip(&MESSAGE))),
        Contender::new("procspawn", || {
            median_call(calls, || Ok(procspawn.spawn(1, identity).join()?))
        }),
        Contender::new("rayon", || {
            median_call(calls, || {
                let (to, from) = std::sync::mpsc::sync_channel(1);
                rayon::spawn(move || to.send(identity(1)).unwrap());
                Ok(from.recv()?)
            })
        }),
    ];
    for (who, python) in [("Pool", mp_pool), ("ProcessPoolExecutor", executor)] {
        if let Some(python) = python {
            let turn = move || python.seconds("call", json!({"calls": calls}));
            contenders.push(Contender::new(who, turn));
        }
    }
    let field = take_turns(size.repetitions, contenders)?;
    let raw = field.ratio("procpool", "ipc-channel");
    let (pool, procspawn) = (field.ratio("Pool", "procpool"), field.ratio("procspawn", "procpool"));
    Ok(Row::new("round trip of `apply`, one in flight", Unit::Seconds, field)
        .at_most(1.3, "a raw ipc-channel round trip", raw)
        .at_least(7.0, "faster than Pool", pool)
        .at_least(7.0, "faster than procspawn", procspawn)
        .note(format!(
            "each figure is the median of {calls} calls; the raw channel carries 48 bytes each way \
             between two processes; rayon's is a `spawn` whose result comes through a channel."
        )))
}

pub(crate) fn apply_async(peers: &mut Peers, size: &SampleSize) -> Outcome<Row> {
    let Peers { pool, procspawn, mp_pool, executor, .. } = peers;
    let mut contenders = vec![
        Contender::new("procpool", || {
            let (time, done) = seconds(|| -> Outcome<()> {
                let tasks: Vec<_> =
                    (0..CALLS as u64).map(|x| pool.apply_async(identity, x)).collect();
                for task in tasks {
                    std::hint::black_box(task.get()?);
                }
                Ok(())
            });
            done.map(|()| CALLS as f64 / time)
        }),
        Contender::new("procspawn", || {
            let (time, done) = seconds(|| -> Outcome<()> {
                for first in (0..CALLS).step_by(PROCSPAWN_WINDOW) {
                    let window = first..(first + PROCSPAWN_WINDOW).min(CALLS);
                    let tasks: Vec<_> =
                        window.map(|x| procspawn.spawn(x as u64, identity)).collect();
                    for task in tasks {
                        std::hint::black_box(task.join()?);
                    }
                }
                Ok(())
            });
            done.map(|()| CALLS as f64 / time)
        }),
    ];
    for (who, python) in [("Pool", mp_pool), ("ProcessPoolExecutor", executor)] {
        if let Some(python) = python {
            let turn =
                move || Ok(CALLS as f64 / python.seconds("singles", json!({"calls": CALLS}))?);
            contenders.push(Contender::new(who, turn));
        }
    }
    let field = take_turns(size.repetitions.min(5), contenders)?;
    let rate = field.values("procpool");
    let (pool, procspawn) = (field.ratio("procpool", "Pool"), field.ratio("procpool", "procspawn"));
    Ok(Row::new("20,000 `apply_async`, then all gets", Unit::PerSecond, field)
        .goal("≥ 1,000,000 tasks/s", Bound::AtLeast(1e6), Unit::PerSecond, rate)
        .at_least(40.0, "Pool", pool)
        .at_least(40.0, "procspawn", procspawn)
        .note(format!(
            "procspawn gets {PROCSPAWN_WINDOW} at a time: with all 20,000 waiting it has no \
             file descriptors left."
        )))
}
