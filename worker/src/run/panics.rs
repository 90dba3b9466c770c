//! Turning a panic into a report: what was said, where, and the way there.
//!
//! A hook notes each panic of the serving thread instead of printing it, since the report travels
//! to whoever asked for the task. Panics of threads that a task started go to the hook that was
//! there before, as they would in any program.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use serde::{Deserialize, Serialize};

/// A panic, as it travels to the parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PanicReport {
    /// The panic's message.
    pub message: String,
    /// `file:line:column`, where it is known.
    pub location: Option<String>,
    /// The stack at the panic; empty where it was not asked for.
    pub backtrace: String,
}

impl PanicReport {
    /// As a text that says in which part of the user's code it was.
    pub(crate) fn in_part(&self, part: &str) -> String {
        match &self.location {
            Some(at) => format!("{part} panicked at {at}: {}", self.message),
            None => format!("{part} panicked: {}", self.message),
        }
    }
}

thread_local! {
    static SERVING: Cell<bool> = const { Cell::new(false) };
    static NOTED: RefCell<Option<PanicReport>> = const { RefCell::new(None) };
}

/// What is to be done with a report in a program built with `panic = "abort"`, where the hook is
/// the last that runs.
pub(crate) type LastWords = fn(PanicReport);

/// Makes this thread's panics be noted for [`take`], and calls `last_words` where a panic is the
/// end of the process.
pub(crate) fn install(last_words: LastWords) {
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
            last_words(report);
        } else {
            NOTED.set(Some(report));
        }
    }));
}

/// The report of the panic that was just caught with this payload.
pub(crate) fn take(payload: &(dyn Any + Send)) -> PanicReport {
    // A task may have put a hook of its own in the place of ours, or used `resume_unwind`, which
    // calls none: then the payload is all there is.
    NOTED.take().unwrap_or_else(|| PanicReport {
        message: message(payload),
        location: None,
        backtrace: String::new(),
    })
}

/// Calls `f`; the report of a panic in it says that it was in this part of the user's code.
pub(crate) fn within<T>(part: &str, f: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| {
        let mut report = take(&*payload);
        report.message = format!("{part} panicked: {}", report.message);
        NOTED.set(Some(report));
        resume_unwind(payload)
    })
}

/// The text of a panic's payload.
pub fn message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic whose payload is not text".to_owned())
}

/// The stack, where `RUST_LIB_BACKTRACE` or `RUST_BACKTRACE` asks for it, as in any Rust program.
///
/// It is not taken without being asked for: a worker's first one reads the program's debug
/// information, which takes 100 ms and 64 MiB.
fn backtrace() -> String {
    let stack = Backtrace::capture();
    match stack.status() {
        BacktraceStatus::Captured => stack.to_string(),
        _ => String::new(),
    }
}
