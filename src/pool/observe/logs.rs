//! Hands log records of workers to this program's loggers: those of the crate `tracing` to its subscriber, those of
//! the crate `log` to its logger.
//!
//! A subscriber identifies where an event comes from by a static call site. One is made for each place that
//! records come from, up to [`MAX_SITES`], because what a worker sends is not trusted.

use procpool_worker::note::{LogLevel, LogRecord};

use crate::worker_ref::HostName;

/// Where a record comes from.
#[cfg_attr(not(any(feature = "log", feature = "tracing")), allow(dead_code))]
#[derive(Debug)]
pub(super) struct Origin<'a> {
    pub(super) pool: &'a str,
    pub(super) host: Option<HostName>,
    pub(super) slot: usize,
    pub(super) pid: u32,
    pub(super) task: Option<u64>,
    pub(super) attempt: u32,
}

/// Returns the least urgent level that the program's loggers take, or `None` if there is no logger.
pub(crate) fn level() -> Option<LogLevel> {
    let levels: [Option<LogLevel>; _] = [
        #[cfg(feature = "log")]
        of_log::level(),
        #[cfg(feature = "tracing")]
        of_tracing::level(),
    ];
    levels.into_iter().max().flatten()
}

/// Hands a record on.
#[cfg(any(feature = "log", feature = "tracing"))]
pub(super) fn forward(origin: &Origin<'_>, record: &LogRecord) {
    use procpool_worker::note::LogSource;

    match record.source {
        #[cfg(feature = "log")]
        LogSource::Log => of_log::forward(origin, record),
        #[cfg(feature = "tracing")]
        LogSource::Tracing => of_tracing::forward(origin, record),
        // Made by a worker that lies: both are the same program.
        #[allow(unreachable_patterns)]
        _ => {}
    }
}

#[cfg(not(any(feature = "log", feature = "tracing")))]
pub(super) fn forward(_: &Origin<'_>, _: &LogRecord) {}

#[cfg(feature = "log")]
mod of_log {
    use log::kv::{self, Source, VisitSource};
    use log::{Level, Record};
    use procpool_worker::note::{LogLevel, LogRecord};

    use super::Origin;

    pub(super) fn level() -> Option<LogLevel> {
        Some(match log::max_level().to_level()? {
            Level::Error => LogLevel::Error,
            Level::Warn => LogLevel::Warn,
            Level::Info => LogLevel::Info,
            Level::Debug => LogLevel::Debug,
            Level::Trace => LogLevel::Trace,
        })
    }

    /// The fields of a record, and where it is from.
    struct Fields<'a>(&'a Origin<'a>, &'a LogRecord);

    impl Source for Fields<'_> {
        fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
            let Self(origin, record) = self;
            let mut pair = |name: &'kvs str, value: kv::Value<'kvs>| {
                visitor.visit_pair(kv::Key::from_str(name), value)
            };
            for (name, value) in &record.fields {
                pair(name, value.as_str().into())?;
            }
            pair("procpool.pool", origin.pool.into())?;
            if let Some(host) = &origin.host {
                pair("procpool.host", kv::Value::from_display(host))?;
            }
            pair("procpool.slot", origin.slot.into())?;
            pair("procpool.pid", origin.pid.into())?;
            if let Some(task) = origin.task {
                pair("procpool.task", task.into())?;
                pair("procpool.attempt", origin.attempt.into())?;
            }
            if record.dropped > 0 {
                pair("procpool.dropped", record.dropped.into())?;
            }
            Ok(())
        }
    }

    pub(super) fn forward(origin: &Origin<'_>, record: &LogRecord) {
        let level = match record.level {
            LogLevel::Error => Level::Error,
            LogLevel::Warn => Level::Warn,
            LogLevel::Info => Level::Info,
            LogLevel::Debug => Level::Debug,
            LogLevel::Trace => Level::Trace,
        };
        if level > log::max_level() {
            return;
        }
        let fields = Fields(origin, record);
        log::logger().log(
            &Record::builder()
                .args(format_args!("{}", record.message))
                .level(level)
                .target(&record.target)
                .file(record.file.as_deref())
                .line(record.line)
                .key_values(&fields)
                .build(),
        );
    }
}

#[cfg(feature = "tracing")]
mod of_tracing {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

    use procpool_worker::note::{LogLevel, LogRecord};
    use tracing::callsite::{Callsite, Identifier};
    use tracing::field::{Field, FieldSet, Value, display};
    use tracing::level_filters::LevelFilter;
    use tracing::subscriber::Interest;
    use tracing::{Event, Level, Metadata, dispatcher};

    use super::Origin;

    /// The most call sites that records of workers make.
    const MAX_SITES: usize = 1024;

    /// The longest text of a site, which is never freed.
    const MAX_TEXT: usize = 256;

    /// The fields that each event has.
    const OWN: [&str; 10] = [
        "message",
        "procpool.pool",
        "procpool.host",
        "procpool.slot",
        "procpool.pid",
        "procpool.task",
        "procpool.attempt",
        "procpool.spans",
        "procpool.dropped",
        // Those of the task that are too many, or of a site too many.
        "procpool.fields",
    ];

    /// The most fields of an event that the crate allows.
    const MAX_FIELDS: usize = 32;

    pub(super) fn level() -> Option<LogLevel> {
        Some(match LevelFilter::current().into_level()? {
            Level::ERROR => LogLevel::Error,
            Level::WARN => LogLevel::Warn,
            Level::INFO => LogLevel::Info,
            Level::DEBUG => LogLevel::Debug,
            Level::TRACE => LogLevel::Trace,
        })
    }

    /// A call site for records of one place.
    struct Site(OnceLock<Metadata<'static>>);

    impl Callsite for Site {
        fn set_interest(&self, _: Interest) {}

        fn metadata(&self) -> &Metadata<'_> {
            self.0.get().expect("a site is registered after it has got its metadata")
        }
    }

    type Key = (LogLevel, String, Option<String>, Option<u32>, Vec<String>);

    static SITES: LazyLock<Mutex<HashMap<Key, &'static Site>>> = LazyLock::new(Mutex::default);

    /// Returns the call site for a record, and how many of the record's fields it has.
    fn site(record: &LogRecord) -> (&'static Site, usize) {
        let count = record.fields.len().min(MAX_FIELDS - OWN.len());
        let names = record.fields[..count].iter().map(|(name, _)| name.clone()).collect();
        let key = (record.level, record.target.clone(), record.file.clone(), record.line, names);
        let mut sites = SITES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(site) = sites.get(&key) {
            return (*site, count);
        }
        let texts = key.4.iter().chain([&key.1]).chain(&key.2);
        let is_short = texts.map(String::len).all(|len| len <= MAX_TEXT);
        let key = match is_short && sites.len() < MAX_SITES {
            true => key,
            // One for each level takes the rest.
            false => (record.level, "procpool::worker".to_owned(), None, None, Vec::new()),
        };
        let count = key.4.len();
        let site = *sites.entry(key.clone()).or_insert_with(|| make(key));
        (site, count)
    }

    /// Makes a call site, for ever.
    fn make((level, target, file, line, names): Key) -> &'static Site {
        let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
        let target = leak(target);
        let names = OWN.into_iter().chain(names.into_iter().map(leak));
        let names: &'static [&'static str] =
            Box::leak(names.collect::<Vec<_>>().into_boxed_slice());
        let site: &'static Site = Box::leak(Box::new(Site(OnceLock::new())));
        let level = match level {
            LogLevel::Error => Level::ERROR,
            LogLevel::Warn => Level::WARN,
            LogLevel::Info => Level::INFO,
            LogLevel::Debug => Level::DEBUG,
            LogLevel::Trace => Level::TRACE,
        };
        let fields = FieldSet::new(names, Identifier(site));
        let kind = tracing::metadata::Kind::EVENT;
        let metadata = Metadata::new(
            "event of a task",
            target,
            level,
            file.map(leak),
            line,
            None,
            fields,
            kind,
        );
        let _ = site.0.set(metadata);
        site
    }

    pub(super) fn forward(origin: &Origin<'_>, record: &LogRecord) {
        let (site, count) = site(record);
        let Some(metadata) = site.0.get() else { return };
        dispatcher::get_default(|subscriber| {
            if !subscriber.enabled(metadata) {
                return;
            }
            let message = display(&record.message);
            let host = origin.host.as_ref().map(display);
            let slot = origin.slot as u64;
            let spans = (!record.spans.is_empty()).then(|| record.spans.join(":"));
            let rest = record.fields[count..].iter();
            let rest: Vec<_> = rest.map(|(name, value)| format!("{name}={value}")).collect();
            let rest = (!rest.is_empty()).then(|| rest.join(" "));
            let attempt = origin.task.map(|_| origin.attempt);
            let dropped = (record.dropped > 0).then_some(record.dropped);
            let values: Vec<_> =
                record.fields[..count].iter().map(|(_, value)| display(value)).collect();
            let own: [Option<&dyn Value>; OWN.len()] = [
                Some(&message),
                Some(&origin.pool),
                host.as_ref().map(|host| host as &dyn Value),
                Some(&slot),
                Some(&origin.pid),
                origin.task.as_ref().map(|task| task as &dyn Value),
                attempt.as_ref().map(|attempt| attempt as &dyn Value),
                spans.as_ref().map(|spans| spans as &dyn Value),
                dropped.as_ref().map(|dropped| dropped as &dyn Value),
                rest.as_ref().map(|rest| rest as &dyn Value),
            ];
            let fields: Vec<Field> = metadata.fields().iter().collect();
            let values =
                own.into_iter().chain(values.iter().map(|value| Some(value as &dyn Value)));
            // The crate takes arrays only. The places behind the last field are empty.
            let mut array = [(&fields[0], None::<&dyn Value>); MAX_FIELDS];
            for (place, (field, value)) in array.iter_mut().zip(fields.iter().zip(values)) {
                *place = (field, value);
            }
            subscriber.event(&Event::new(metadata, &metadata.fields().value_set(&array)));
        });
    }
}
