//! Turns log records of this process into notes: a logger of the crate `log`, and a subscriber of the crate
//! `tracing`.
//!
//! Each is installed before the worker's first task, unless code before `init` has installed another. The
//! subscriber keeps the text of each open span, and a record carries those that it was made in.

use crate::wire::note::LogLevel;

/// Sends records of `level` or more urgent to the parent from here on.
pub(crate) fn install(level: LogLevel) {
    #[cfg(feature = "log")]
    of_log::install(level);
    #[cfg(feature = "tracing")]
    of_tracing::install(level);
}

#[cfg(feature = "log")]
mod of_log {
    use log::kv::{self, VisitSource};
    use log::{Level, LevelFilter, Log, Metadata, Record};

    use crate::run::outbox;
    use crate::wire::note::{LogLevel, LogRecord, LogSource};

    struct Logger;

    pub(super) fn install(level: LogLevel) {
        if log::set_logger(&Logger).is_ok() {
            log::set_max_level(match level {
                LogLevel::Error => LevelFilter::Error,
                LogLevel::Warn => LevelFilter::Warn,
                LogLevel::Info => LevelFilter::Info,
                LogLevel::Debug => LevelFilter::Debug,
                LogLevel::Trace => LevelFilter::Trace,
            });
        }
    }

    impl Log for Logger {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.level() <= log::max_level()
        }

        fn log(&self, record: &Record<'_>) {
            if !self.enabled(record.metadata()) {
                return;
            }
            let mut fields = Fields::default();
            let _ = record.key_values().visit(&mut fields);
            outbox::record(LogRecord {
                level: match record.level() {
                    Level::Error => LogLevel::Error,
                    Level::Warn => LogLevel::Warn,
                    Level::Info => LogLevel::Info,
                    Level::Debug => LogLevel::Debug,
                    Level::Trace => LogLevel::Trace,
                },
                target: record.target().to_owned(),
                message: record.args().to_string(),
                fields: fields.0,
                spans: Vec::new(),
                file: record.file().map(str::to_owned),
                line: record.line(),
                source: LogSource::Log,
                dropped: 0,
            });
        }

        fn flush(&self) {}
    }

    #[derive(Default)]
    struct Fields(Vec<(String, String)>);

    impl<'kvs> VisitSource<'kvs> for Fields {
        fn visit_pair(
            &mut self,
            key: kv::Key<'kvs>,
            value: kv::Value<'kvs>,
        ) -> Result<(), kv::Error> {
            self.0.push((key.to_string(), value.to_string()));
            Ok(())
        }
    }
}

#[cfg(feature = "tracing")]
mod of_tracing {
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::fmt::{Debug, Write};
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use tracing_core::field::{Field, Visit};
    use tracing_core::span::{Attributes, Current, Id, Record};
    use tracing_core::{Dispatch, Event, Interest, Level, LevelFilter, Metadata, Subscriber};

    use crate::run::outbox;
    use crate::wire::note::{LogLevel, LogRecord, LogSource};

    /// Sends events as notes.
    struct Sender {
        level: LevelFilter,
        next: AtomicU64,
        spans: Mutex<HashMap<u64, Span>>,
    }

    struct Span {
        metadata: &'static Metadata<'static>,
        parent: Option<u64>,
        fields: Fields,
        handles: usize,
    }

    thread_local! {
        /// The spans that this thread is in, the innermost last.
        static ENTERED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn install(level: LogLevel) {
        let level = match level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        };
        let sender = Sender { level, next: AtomicU64::new(1), spans: Mutex::default() };
        // Another one was installed before `init`: it stays.
        let _ = tracing_core::dispatcher::set_global_default(Dispatch::new(sender));
    }

    fn innermost() -> Option<u64> {
        // None while the thread's own variables are dropped.
        ENTERED.try_with(|entered| entered.borrow().last().copied()).ok().flatten()
    }

    impl Sender {
        fn spans(&self) -> MutexGuard<'_, HashMap<u64, Span>> {
            self.spans.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Returns the texts of a span and of those around it, from the outermost.
        fn texts(&self, innermost: Option<u64>) -> Vec<String> {
            let spans = self.spans();
            let mut texts = Vec::new();
            let mut at = innermost;
            while let Some(span) = at.and_then(|id| spans.get(&id)) {
                let mut text = span.metadata.name().to_owned();
                if !span.fields.0.is_empty() {
                    let fields =
                        span.fields.0.iter().map(|(name, value)| format!("{name}={value}"));
                    let _ = write!(text, "{{{}}}", fields.collect::<Vec<_>>().join(" "));
                }
                texts.push(text);
                at = span.parent;
            }
            texts.reverse();
            texts
        }
    }

    impl Subscriber for Sender {
        fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
            if self.enabled(metadata) { Interest::always() } else { Interest::never() }
        }

        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= self.level
        }

        fn max_level_hint(&self) -> Option<LevelFilter> {
            Some(self.level)
        }

        fn new_span(&self, attributes: &Attributes<'_>) -> Id {
            let id = self.next.fetch_add(1, Relaxed);
            let parent = match attributes.parent() {
                Some(parent) => Some(parent.into_u64()),
                None if attributes.is_contextual() => innermost(),
                None => None,
            };
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            let span = Span { metadata: attributes.metadata(), parent, fields, handles: 1 };
            let mut spans = self.spans();
            // A span stays as long as those in it.
            if let Some(parent) = parent.and_then(|id| spans.get_mut(&id)) {
                parent.handles += 1;
            }
            spans.insert(id, span);
            Id::from_u64(id)
        }

        fn record(&self, span: &Id, values: &Record<'_>) {
            // Formatted without the lock: a field's `Debug` may make records, too.
            let mut fields = Fields::default();
            values.record(&mut fields);
            if let Some(span) = self.spans().get_mut(&span.into_u64()) {
                fields.0.into_iter().for_each(|(name, value)| span.fields.put(&name, value));
            }
        }

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            let innermost = match event.parent() {
                Some(parent) => Some(parent.into_u64()),
                None if event.is_contextual() => innermost(),
                None => None,
            };
            let mut fields = Fields::default();
            event.record(&mut fields);
            let is_message = |(name, _): &(String, String)| name == "message";
            let message = fields.0.iter().position(is_message).map(|at| fields.0.remove(at).1);
            let metadata = event.metadata();
            outbox::record(LogRecord {
                level: match *metadata.level() {
                    Level::ERROR => LogLevel::Error,
                    Level::WARN => LogLevel::Warn,
                    Level::INFO => LogLevel::Info,
                    Level::DEBUG => LogLevel::Debug,
                    Level::TRACE => LogLevel::Trace,
                },
                target: metadata.target().to_owned(),
                message: message.unwrap_or_default(),
                fields: fields.0,
                spans: self.texts(innermost),
                file: metadata.file().map(str::to_owned),
                line: metadata.line(),
                source: LogSource::Tracing,
                dropped: 0,
            });
        }

        fn enter(&self, span: &Id) {
            let _ = ENTERED.try_with(|entered| entered.borrow_mut().push(span.into_u64()));
        }

        fn exit(&self, span: &Id) {
            let _ = ENTERED.try_with(|entered| {
                let mut entered = entered.borrow_mut();
                if let Some(at) = entered.iter().rposition(|id| *id == span.into_u64()) {
                    entered.remove(at);
                }
            });
        }

        fn clone_span(&self, span: &Id) -> Id {
            if let Some(span) = self.spans().get_mut(&span.into_u64()) {
                span.handles += 1;
            }
            span.clone()
        }

        fn try_close(&self, span: Id) -> bool {
            let mut spans = self.spans();
            let mut at = Some(span.into_u64());
            let mut has_closed = false;
            while let Some(id) = at {
                let Some(span) = spans.get_mut(&id) else { break };
                span.handles -= 1;
                if span.handles > 0 {
                    break;
                }
                at = span.parent;
                spans.remove(&id);
                has_closed = true;
            }
            has_closed
        }

        fn current_span(&self) -> Current {
            let spans = self.spans();
            match innermost().and_then(|id| Some((id, spans.get(&id)?.metadata))) {
                Some((id, metadata)) => Current::new(Id::from_u64(id), metadata),
                None => Current::none(),
            }
        }
    }

    #[derive(Default)]
    struct Fields(Vec<(String, String)>);

    impl Fields {
        fn put(&mut self, field: &str, value: String) {
            match self.0.iter_mut().find(|(name, _)| name == field) {
                Some((_, before)) => *before = value,
                None => self.0.push((field.to_owned(), value)),
            }
        }
    }

    impl Visit for Fields {
        fn record_str(&mut self, field: &Field, value: &str) {
            self.put(field.name(), value.to_owned());
        }

        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            self.put(field.name(), format!("{value:?}"));
        }
    }
}
