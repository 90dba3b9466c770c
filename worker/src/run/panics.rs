//! Turns a panic into a report: its message, its location, its backtrace.
//!
//! A hook records each panic of the serving thread instead of printing it, because the report travels to
//! the task's caller. Panics of threads that a task has started go to the previous hook, as in any
//! program.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use serde::{Deserialize, Serialize};

/// A panic, in the form that travels to the parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PanicReport {
    /// The panic's message.
    pub message: String,
    /// `file:line:column`, where known.
    pub location: Option<String>,
    /// The backtrace; empty unless the environment asks for it.
    pub backtrace: String,
}

impl PanicReport {
    /// Returns the report as text, prefixed with the part of the user's code that panicked.
    pub(crate) fn prefixed(&self, part: &str) -> String {
        match &self.location {
            Some(at) => format!("{part} panicked at {at}: {}", self.message),
            None => format!("{part} panicked: {}", self.message),
        }
    }
}

thread_local! {
    static SERVING: Cell<bool> = const { Cell::new(false) };
    static LAST_PANIC: RefCell<Option<PanicReport>> = const { RefCell::new(None) };
}

/// Handles a report in a program built with `panic = "abort"`, where no code runs after the hook.
pub(crate) type AbortHook = fn(PanicReport);

/// Installs a hook that records this thread's panics for [`take_report`]. Where a panic ends the process, the
/// hook calls `on_abort`.
pub(crate) fn install(on_abort: AbortHook) {
    SERVING.set(true);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !SERVING.get() {
            return before(info);
        }
        let report = PanicReport {
            message: message(info.payload()),
            location: info.location().map(ToString::to_string),
            backtrace: backtrace(),
        };
        if cfg!(panic = "abort") {
            on_abort(report);
        } else {
            LAST_PANIC.set(Some(report));
        }
    }));
}

/// Returns the report of the panic that was just caught with this payload.
pub(crate) fn take_report(payload: &(dyn Any + Send)) -> PanicReport {
    // A task may have replaced the hook, or called `resume_unwind`, which runs no hook. Only the payload
    // is known then.
    LAST_PANIC.take().unwrap_or_else(|| PanicReport {
        message: message(payload),
        location: None,
        backtrace: String::new(),
    })
}

/// Calls `f`. The report of a panic in it names `part` of the user's code as its origin.
pub(crate) fn with_origin<T>(part: &str, f: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| {
        let mut report = take_report(&*payload);
        report.message = format!("{part} panicked: {}", report.message);
        LAST_PANIC.set(Some(report));
        resume_unwind(payload)
    })
}

/// Returns the text of a panic's payload.
pub fn message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic whose payload is not text".to_owned())
}

/// Returns the backtrace, if `RUST_LIB_BACKTRACE` or `RUST_BACKTRACE` asks for it.
///
/// It is not captured by default: a worker's first backtrace reads the program's debug information,
/// which takes 100 ms and 64 MiB.
fn backtrace() -> String {
    let stack = Backtrace::capture();
    match stack.status() {
        BacktraceStatus::Captured => stack.to_string(),
        _ => String::new(),
    }
}
