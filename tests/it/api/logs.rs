//! Log records of workers: in the parent's logger and subscriber, in events, and in the errors of dead workers.

use std::io::Write;
use std::sync::{Arc, Mutex};

use procpool::{EventKind, LogLevel, LogRecord, LogSource, Pool, TaskErrorKind};

use crate::support::{alone, square, wait_until};

/// Collects the records of a pool's workers from its events.
#[derive(Clone, Default)]
struct Records(Arc<Mutex<Vec<Logged>>>);

/// The task, the attempt and the record.
type Logged = (Option<u64>, u32, LogRecord);

impl Records {
    fn pool(&self, level: impl Into<Option<LogLevel>>) -> procpool::PoolBuilder {
        let records = Arc::clone(&self.0);
        Pool::builder().workers(1).worker_logs(level).on_event(move |event| {
            if let EventKind::Logged { id, attempt, record, .. } = &event.kind {
                records.lock().unwrap().push((*id, *attempt, record.clone()));
            }
        })
    }

    fn wait(&self, count: usize) -> Vec<Logged> {
        wait_until("the records", || self.0.lock().unwrap().len() >= count);
        self.0.lock().unwrap().clone()
    }
}

fn fields(record: &LogRecord) -> Vec<(&str, &str)> {
    record.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

fn chatter(page: u32) {
    let _document = tracing::info_span!("document", name = "a b.pdf").entered();
    let parse = tracing::debug_span!("parse", page, words = tracing::field::Empty);
    parse.in_scope(|| tracing::warn!(target: "reader", line = 7, "strange {}", "glyph"));
    parse.record("words", 12);
    parse.in_scope(|| tracing::trace!("too much"));
    tracing::event!(parent: &parse, tracing::Level::DEBUG, ok = true);
    log::error!(target: "old", count = 3, path:? = "x"; "from {}", "log");
}

#[test]
fn records_have_their_level_target_fields_spans_and_place() {
    let records = Records::default();
    let pool = records.pool(LogLevel::Debug).build().unwrap();
    pool.apply(chatter, 2).unwrap();
    let got = records.wait(3);
    assert_eq!(got.len(), 3, "{got:?}");
    assert!(got.iter().all(|(id, attempt, _)| (*id, *attempt) == (Some(0), 1)));
    let [(.., warning), (.., bare), (.., old)] = &got[..] else { unreachable!() };
    assert_eq!(
        (warning.level, &*warning.target, warning.source),
        (LogLevel::Warn, "reader", LogSource::Tracing)
    );
    assert_eq!((&*warning.message, fields(warning)), ("strange glyph", vec![("line", "7")]));
    assert_eq!(warning.spans, ["document{name=a b.pdf}", "parse{page=2}"]);
    assert!(warning.file.as_ref().unwrap().ends_with("logs.rs") && warning.line.is_some());
    assert_eq!((bare.level, fields(bare)), (LogLevel::Debug, vec![("ok", "true")]));
    assert_eq!(bare.spans, ["document{name=a b.pdf}", "parse{page=2 words=12}"]);
    assert_eq!((old.level, &*old.target, old.source), (LogLevel::Error, "old", LogSource::Log));
    assert_eq!((&*old.message, fields(old)), ("from log", vec![("count", "3"), ("path", "\"x\"")]));
    assert_eq!(
        warning.to_string(),
        "WARN document{name=a b.pdf}:parse{page=2}: reader: strange glyph line=7"
    );
}

#[test]
fn a_worker_sends_no_record_that_nobody_wants() {
    let records = Records::default();
    let pool = records.pool(None).build().unwrap();
    pool.apply(chatter, 2).unwrap();
    // This program has no logger, so the default is none, too.
    let unset = Records::default();
    let seen = Arc::clone(&unset.0);
    let builder = Pool::builder().workers(1).on_event(move |event| {
        if let EventKind::Logged { id, attempt, record, .. } = &event.kind {
            seen.lock().unwrap().push((*id, *attempt, record.clone()));
        }
    });
    builder.build().unwrap().apply(chatter, 2).unwrap();
    pool.join();
    assert!(records.0.lock().unwrap().is_empty() && unset.0.lock().unwrap().is_empty());
}

#[test]
fn the_last_records_before_a_crash_arrive_and_are_part_of_the_error() {
    fn crash(records: u32) {
        (0..records).for_each(|n| log::info!("step {n}"));
        std::process::abort();
    }
    let records = Records::default();
    let pool = records.pool(LogLevel::Info).retries(1).build().unwrap();
    let error = pool.apply(crash, 25).unwrap_err();
    let TaskErrorKind::Died { last_records, .. } = error.kind() else { panic!("{error}") };
    let last: Vec<_> = last_records.iter().map(|record| &*record.message).collect();
    let expected: Vec<_> = (15..25).map(|n| format!("step {n}")).collect();
    assert_eq!(last, expected);
    assert!(
        error.to_string().ends_with("its last log record: INFO it::api::logs: step 24"),
        "{error}"
    );
    let got = records.wait(50);
    let got: Vec<_> =
        got.iter().map(|(id, attempt, record)| (*id, *attempt, &*record.message)).collect();
    let steps: Vec<_> = (0..25).map(|n| format!("step {n}")).collect();
    let of = |attempt| steps.iter().map(move |step| (Some(0), attempt, &**step));
    assert_eq!(got, of(1).chain(of(2)).collect::<Vec<_>>());
    // Those of one task are not those of the next.
    let error = pool.apply(|()| -> () { std::process::abort() }, ()).unwrap_err();
    assert!(
        matches!(error.kind(), TaskErrorKind::Died { last_records, .. } if last_records.is_empty())
    );
}

#[test]
fn records_of_initializers_and_other_threads_arrive() {
    fn initialize(_: ()) {
        log::warn!("starting");
    }
    fn task(_: ()) {
        std::thread::spawn(|| tracing::info!("elsewhere")).join().unwrap();
    }
    let records = Records::default();
    let pool = records.pool(LogLevel::Trace).initializer(initialize, ()).build().unwrap();
    pool.apply(task, ()).unwrap();
    let got = records.wait(2);
    assert_eq!((got[0].0, &*got[0].2.message), (None, "starting"));
    assert_eq!((got[1].0, &*got[1].2.message), (Some(0), "elsewhere"));
}

#[test]
fn long_records_are_cut_and_a_flood_neither_blocks_nor_harms_the_pool() {
    fn flood(records: u64) {
        log::info!("{}", "ä".repeat(100_000));
        (0..records).for_each(|n| log::info!("record {n}"));
    }
    let records = Records::default();
    let pool = records.pool(LogLevel::Info).build().unwrap();
    let (first, second) = (pool.apply_async(flood, 30_000), pool.apply_async(square, 3));
    first.get().unwrap();
    assert_eq!(second.get(), Ok(9));
    pool.join();
    let got = records.0.lock().unwrap();
    let long = &got[0].2.message;
    assert!(long.len() < 40_000 && long.ends_with("ä… (cut)"), "{}", long.len());
    // None is missing that was not counted.
    let mut next = 0;
    for (_, _, record) in &got[1..] {
        next += record.dropped;
        assert_eq!(record.message, format!("record {next}"));
        next += 1;
    }
}

#[test]
fn a_template_and_a_retired_worker_change_nothing() {
    let records = Records::default();
    let pool = records.pool(LogLevel::Error).start_method(procpool::StartMethod::Template);
    let pool = pool.max_tasks_per_worker(1).build().unwrap();
    for page in 0..5 {
        pool.apply(chatter, page).unwrap();
    }
    let got = records.wait(5);
    assert!((0..).zip(&got).all(|(id, (of, ..))| *of == Some(id)), "{got:?}");
}

#[test]
fn records_reach_the_programs_logger_and_subscriber_with_their_tags() {
    alone!("of_loggers");
}

/// What the program's logger and subscriber have written.
static WRITTEN: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Writer;

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        WRITTEN.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        struct Pairs(String);
        impl<'kvs> log::kv::VisitSource<'kvs> for Pairs {
            fn visit_pair(
                &mut self,
                key: log::kv::Key<'kvs>,
                value: log::kv::Value<'kvs>,
            ) -> Result<(), log::kv::Error> {
                self.0.push_str(&format!(" {key}={value}"));
                Ok(())
            }
        }
        let mut pairs = Pairs(String::new());
        record.key_values().visit(&mut pairs).unwrap();
        let (level, target, args) = (record.level(), record.target(), record.args());
        writeln!(Writer, "log {level} {target}: {args}{}", pairs.0).unwrap();
    }

    fn flush(&self) {}
}

#[test]
#[ignore = "sets the loggers of a whole process"]
fn of_loggers() {
    log::set_logger(&Logger).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    tracing_subscriber::fmt()
        .with_writer(|| Writer)
        .with_ansi(false)
        .without_time()
        .with_max_level(tracing::Level::DEBUG)
        .init();
    let pool = Pool::builder().workers(1).name("docs").build().unwrap();
    pool.apply(chatter, 2).unwrap();
    let pid = pool.workers()[0].pid;
    let written = || String::from_utf8(WRITTEN.lock().unwrap().clone()).unwrap();
    wait_until("the last record", || written().contains("from log"));
    let written = written();
    let tags = format!(
        "procpool.pool=\"docs\" procpool.slot=0 procpool.pid={pid} procpool.task=0 procpool.attempt=1"
    );
    let warning = format!(
        " WARN reader: strange glyph {tags} procpool.spans=\"document{{name=a b.pdf}}:parse{{page=2}}\" line=7"
    );
    assert!(written.contains(&warning), "{written}");
    assert!(written.contains("DEBUG it::api::logs: ") && written.contains(" ok=true"), "{written}");
    let old = format!(
        "log ERROR old: from log count=3 path=\"x\" procpool.pool=docs procpool.slot=0 procpool.pid={pid} procpool.task=0 procpool.attempt=1"
    );
    assert!(written.contains(&old), "{written}");
    assert!(!written.contains("too much"), "{written}");
}

#[test]
fn a_logger_that_blocks_keeps_no_task_from_its_end() {
    alone!("with_a_logger_that_blocks");
}

/// Blocks each record while this is held.
static BLOCKED: Mutex<()> = Mutex::new(());

struct Blocking;

impl log::Log for Blocking {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let _blocked = BLOCKED.lock().unwrap();
        writeln!(Writer, "{}", record.args()).unwrap();
    }

    fn flush(&self) {}
}

#[test]
#[ignore = "sets the loggers of a whole process"]
fn with_a_logger_that_blocks() {
    fn talk(records: u32) -> u32 {
        (0..records).for_each(|n| log::info!("record {n}"));
        records
    }
    log::set_logger(&Blocking).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let pool = Pool::new(1).unwrap();
    let blocked = BLOCKED.lock().unwrap();
    for _ in 0..5 {
        assert_eq!(pool.apply(talk, 2_000), Ok(2_000));
    }
    assert_eq!((pool.stats().restarts, WRITTEN.lock().unwrap().len()), (0, 0));
    drop(blocked);
    pool.join();
    let written = String::from_utf8(WRITTEN.lock().unwrap().clone()).unwrap();
    assert_eq!(written.lines().count(), 10_000);
    assert_eq!(written.lines().last(), Some("record 1999"));
}
